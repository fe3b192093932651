
// Requests to the worker, with its key if it has one.

const KEY_NAME = "sd-worker key";

/** What the worker refused, or what went wrong; `param` is the field at fault. */
class Problem extends Error {
  constructor(message, { param = null, status = 0, retryAfter = 0, isUnreached = false } = {}) {
    super(message);
    Object.assign(this, { param, status, retryAfter, isUnreached });
  }

  /** Whether it may be gone after a while, as when the model loads. */
  get isPassing() {
    return this.isUnreached || [429, 502, 503].includes(this.status);
  }

  static async of(answer) {
    const retryAfter = Number(answer.headers.get("retry-after")) || 0;
    const body = await answer.json().catch(() => null);
    const { message = `the worker answered ${answer.status}`, param } = body?.error ?? {};
    return new Problem(message, { param, status: answer.status, retryAfter });
  }
}

/** The key of this tab. A browser may forbid storage; then it lasts as long as the page. */
const keyStore = {
  value: null,
  get() {
    if (this.value === null) {
      try {
        this.value = sessionStorage.getItem(KEY_NAME) ?? "";
      } catch {
        this.value = "";
      }
    }
    return this.value;
  },
  set(value) {
    this.value = value;
    try {
      sessionStorage.setItem(KEY_NAME, value);
    } catch {
      // It stays in `value`.
    }
  },
};

/** Asks the worker, and the person for a key as long as the worker wants another. Throws a `Problem` for every answer but a good one. */
async function ask(path, { body, signal } = {}) {
  for (;;) {
    const key = keyStore.get();
    const answer = await send(path, body, key, signal);
    if (answer.ok) return answer;
    if (answer.status !== 401) throw await Problem.of(answer);
    // Of several refused requests, the first asks for all.
    if (key === keyStore.get()) await askForKey(key ? "This is not the worker's key." : "This worker asks for a key.");
  }
}

async function send(path, body, key, signal) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  // A header takes bytes as characters, and a key need not be ASCII.
  if (key) headers.authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`;
  try {
    return await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The worker does not answer. Is it still running?", { isUnreached: true });
  }
}

let keyAsked = null;

/** Opens the dialog, and settles when there is a key or when the person has none. */
function askForKey(message) {
  keyAsked ??= new Promise((resolve, reject) => {
    $("key-message").textContent = message;
    $("key").value = "";
    $("key-open").hidden = false;
    $("key-dialog").returnValue = "";
    $("key-dialog").onclose = () => {
      keyAsked = null;
      if ($("key-dialog").returnValue === "use") resolve();
      else reject(new Problem("This worker asks for an API key."));
    };
    $("key-dialog").showModal();
  });
  return keyAsked;
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!key) return;
  keyStore.set(key);
  $("key").value = "";
  $("key-dialog").close("use");
});
$("key-cancel").addEventListener("click", () => $("key-dialog").close());

/** The events of a stream. Their data say their type; comments say nothing here. */
async function* eventsOf(answer) {
  let data = "";
  for await (const line of linesOf(answer.body)) {
    if (line.startsWith("data:")) data += line.slice(5);
    else if (line === "" && data) {
      yield JSON.parse(data);
      data = "";
    }
  }
}

/** The lines of a body. A picture is one long line in many pieces, which are joined once. */
async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Problem("The connection to the worker broke.");
    });
    if (done) return;
    const [first, ...rest] = value.split("\n");
    pieces.push(first);
    for (const next of rest) {
      yield pieces.join("");
      pieces = [next];
    }
  }
}
