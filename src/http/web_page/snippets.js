
// A request as text that makes the same picture elsewhere: for a shell, and for OpenAI's client in Python.

const routeOf = (settings) => (settings.image ? "v1/images/edits" : "v1/images/generations");

/** Where the key comes from. It is not copied: text that was copied ends up in many places. */
const KEY_VARIABLE = "SD_WORKER_API_KEY";

async function asCurl(settings) {
  const url = new URL(routeOf(settings), document.baseURI).href.replaceAll("'", "%27");
  const key = keyStore.get() ? ` -H "authorization: Bearer $${KEY_VARIABLE}"` : "";
  // JSON has no line ends of its own, so no line of it can end the text early.
  const body = JSON.stringify(await withFiles(settings));
  return `curl -s '${url}' -H 'content-type: application/json'${key} -d @- <<'END' | jq -r '.data[0].b64_json' | base64 -d > picture.png\n${body}\nEND\n`;
}

async function asPython({ prompt, image, mask, ...rest }) {
  const url = new URL("v1", document.baseURI).href;
  const key = keyStore.get() ? `os.environ["${KEY_VARIABLE}"]` : `"any"`;
  const file = async (name, blob) => {
    const [head, base64] = (await dataUrl(blob)).split(",");
    const type = head.slice("data:".length).split(";")[0];
    return `${name}=("${name}.${type.split("/")[1]}", base64.b64decode("${base64}"), "${type}"), `;
  };
  const more = await withFiles(rest);
  const files = image ? (await file("image", image)) + (mask ? await file("mask", mask) : "") : "";
  // A form has lists as text.
  const asText = (value) => (image && typeof value === "object" ? JSON.stringify(value) : value);
  const extra = Object.entries(more).filter(([, value]) => value !== undefined).map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(asText(value))}`);
  return [
    `import base64${keyStore.get() ? "\nimport os" : ""}`,
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${url}", api_key=${key})`,
    `answer = client.images.${image ? "edit" : "generate"}(${files}prompt=${JSON.stringify(prompt)}, extra_body={${extra.join(", ")}})`,
    `with open("picture.png", "wb") as file:`,
    "    file.write(base64.b64decode(answer.data[0].b64_json))",
    "",
  ].join("\n");
}

/** Copies text, also where a page that did not come over TLS may not use the clipboard's own interface. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { value: text, className: "unseen" });
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    before?.focus();
    if (!copied) throw new Problem("This browser does not let the page copy.");
  }
}
