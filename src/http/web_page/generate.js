
// A request from its beginning to its end.

/** What ends the request that runs, if one runs. The worker stops its work when the connection closes. */
let running = null;

async function generate() {
  if (running) return;
  clearProblems();
  running = new AbortController();
  setBusy(true);
  try {
    const count = await follow(await readSettings(), running.signal);
    say(count === 1 ? "The picture is finished." : `${count} pictures are finished.`);
  } catch (error) {
    if (error.name === "AbortError") say("Cancelled.");
    else showProblem(error);
  } finally {
    running = null;
    setBusy(false);
  }
}

/** Sends a request and shows what comes of it. Returns how many pictures came. */
async function follow(settings, signal) {
  const body = JSON.stringify({ ...(await withFiles(settings)), stream: true, partial_images: 3, progress: true });
  const answer = await ask(routeOf(settings), { body, signal });
  const { n = 1, ...one } = settings;
  let count = 0;
  for await (const event of eventsOf(answer)) {
    const kind = event.type.split(".").pop();
    if (kind === "error") throw new Problem(event.error.message, event.error);
    if (kind === "progress") showProgress(event);
    if (kind === "partial_image") showPreview(event);
    if (kind === "completed") {
      // Of several pictures, the others have the seeds that follow.
      addPicture({ ...one, seed: event.seed }, event);
      count += 1;
    }
  }
  if (count < n) throw new Problem("The connection to the worker ended before the picture was finished.");
  return count;
}

function setBusy(isBusy) {
  // What is hidden loses the focus.
  if (document.activeElement === $("cancel")) $("generate").focus();
  $("cancel").hidden = !isBusy;
  // A disabled button would lose the focus.
  $("generate").setAttribute("aria-disabled", isBusy);
  if (isBusy) {
    say("Drawing …");
    showBusy();
    $("stage").scrollIntoView({ block: "nearest" });
  } else showIdle();
}

function cancel() {
  running?.abort();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
$("cancel").addEventListener("click", cancel);
document.addEventListener("keydown", (event) => {
  if (event.isComposing || $("key-dialog").open) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  }
  if (event.key === "Escape" && running) cancel();
});
