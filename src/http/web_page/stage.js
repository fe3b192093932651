
// The picture that is looked at: a preview while it is made, then the picture with how it was made.

/** The picture of the gallery that is shown. */
let shown = null;
let previewUrl = "";

const blobOf = (base64, type) => new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type });

function showImage(url, alt) {
  Object.assign($("shown"), { src: url, alt, hidden: false });
  $("empty").hidden = true;
}

function dropPreview() {
  URL.revokeObjectURL(previewUrl);
  previewUrl = "";
}

function showPreview(event) {
  dropPreview();
  previewUrl = URL.createObjectURL(blobOf(event.b64_json, `image/${event.output_format}`));
  $("stage").dataset.preview = event.partial_image_index;
  showImage(previewUrl, "Preview");
  // It is of no picture that is finished.
  $("caption").hidden = true;
}

/** Shows how far the work is; without numbers, that it waits. */
function showProgress(progress) {
  $("progress").hidden = false;
  if (!progress) {
    $("bar").removeAttribute("value");
    $("bar-text").textContent = "Waiting for its turn …";
    return;
  }
  const { step, total, eta_ms } = progress;
  Object.assign($("bar"), { max: total, value: step });
  $("bar-text").textContent = `Step ${step} of ${total}${eta_ms >= 1000 ? `, about ${Math.round(eta_ms / 1000)} s left` : ""}`;
}

/** Shows that a request runs. What was shown gives way to the first preview. */
function showBusy() {
  $("caption").hidden = true;
  $("stage").classList.add("busy");
  delete $("stage").dataset.preview;
  showProgress(null);
}

/** Ends what `showBusy` began. A picture that was not finished gives way to the latest one that was. */
function showIdle() {
  $("progress").hidden = true;
  $("stage").classList.remove("busy");
  if (!$("caption").hidden) return;
  if (shown) showPicture(shown);
  else {
    $("shown").hidden = true;
    $("empty").hidden = false;
  }
  dropPreview();
}

function showPicture(picture) {
  shown = picture;
  const { settings, event, url } = picture;
  showImage(url, settings.prompt);
  dropPreview();
  $("caption").hidden = false;
  $("shown-prompt").textContent = settings.prompt;
  Object.assign($("download"), { href: url, download: `${fileName(settings.prompt)}-${event.seed}.${event.output_format}` });
  const lines = Object.entries(describe(picture)).filter(([, text]) => text !== undefined && text !== "");
  $("parameters").replaceChildren(...lines.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(text)))));
  const ignored = event.ignored.length ? [`Without effect: ${event.ignored.join(", ")}`] : [];
  $("remarks").replaceChildren(...[...event.warnings, ...ignored].map((text) => make("li", {}, sentence(text))));
  markShown();
}

/** How a picture was made, in words. */
function describe({ settings, event: { parameters: made, timings } }) {
  const scaled = (list = []) => list.map(({ name = "picture", scale }) => `${name} ${scale}`).join(", ");
  return {
    Seed: made.seed,
    Size: `${made.width} × ${made.height}`,
    Steps: made.steps,
    Guidance: made.guidance_scale,
    Sampler: `${made.sampler}, ${made.schedule}`,
    Strength: made.strength,
    Avoids: settings.negative_prompt,
    Enlarged: settings.upscale?.name,
    LoRAs: scaled(made.loras),
    Guides: scaled([...(made.control ?? []), ...(made.reference ?? [])]),
    Time: `${((timings.total_ms - timings.queue_ms) / 1000).toFixed(1)} s`,
  };
}

/** The beginning of a prompt as a file's name. */
const fileName = (prompt) => prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40).replace(/^-+|-+$/g, "") || "picture";

$("reuse").addEventListener("click", async () => {
  await fill(shown.settings);
  say("The settings of this picture are in the form.");
  $("prompt").focus();
});
$("continue").addEventListener("click", async () => {
  await beginWith(shown.blob);
  say("The next picture begins with this one.");
  $("begin").querySelector("summary").focus();
});
for (const [id, write, what] of [["copy-curl", asCurl, "a curl command"], ["copy-python", asPython, "Python"]]) {
  $(id).addEventListener("click", async () => {
    try {
      await copy(await write(shown.settings));
      say(`Copied as ${what}.`);
    } catch (error) {
      showProblem(error);
    }
  });
}
