// A browser with the worker's page, and what tests do with it. The arguments are those of `page.mjs`.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [binary, executablePath, python] = process.argv.slice(2);
export const FOX = { prompt: "a fox on a blue background", size: "64x64", num_inference_steps: 12, seed: 7 };
/** So long that it is over only when it is cancelled. */
export const LONG = { prompt: "a fox", size: "64x64", num_inference_steps: 1000, n: 10 };
export const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const folder = mkdtempSync(join(tmpdir(), "page-"));

async function withWorker(args, use) {
  const child = spawn(binary, ["serve", "--port", "0", ...args], { stdio: ["ignore", "pipe", "ignore"] });
  try {
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const url = `http://127.0.0.1:${JSON.parse((await lines.next()).value).port}`;
    assert.equal(JSON.parse((await lines.next()).value).event, "ready");
    await use({
      child,
      url,
      ask: async (path, body, headers = {}) => {
        const method = body ? "POST" : "GET";
        return fetch(url + path, { method, headers: { "content-type": "application/json", ...headers }, body: body && JSON.stringify(body) });
      },
      waitFor: async (name, willDo) => {
        const value = async () => {
          const lines = (await (await fetch(`${url}/metrics`)).text()).split("\n").filter((line) => line.startsWith(name));
          return lines.reduce((sum, line) => sum + Number(line.split(" ").pop()), 0);
        };
        while (!willDo(await value()));
      },
    });
  } finally {
    child.kill("SIGKILL");
  }
}

/** Opens the page and looks on: it must load nothing from elsewhere, set no cookies, and break no rule of its own. */
export async function withPage(args, use, { context: options = {}, expected = [], before = async () => {} } = {}) {
  await withWorker(args, async (worker) => {
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, permissions: ["clipboard-read", "clipboard-write"], ...options });
    const page = await context.newPage();
    page.setDefaultTimeout(240_000); // only a limit for tests that hang
    const wrong = [];
    page.on("request", (request) => [worker.url, "blob:", "data:"].some((start) => request.url().startsWith(start)) || wrong.push(request.url()));
    page.on("pageerror", (error) => wrong.push(String(error)));
    page.on("console", (message) => message.type() === "error" && !expected.some((text) => message.text().includes(text)) && wrong.push(message.text()));
    await before(page, worker);
    await page.goto(worker.url);
    // The screen reader's region changes faster than a test can look.
    await page.evaluate(() => {
      window.previews = [];
      const look = () => document.querySelector("#stage").dataset.preview && window.previews.push(document.querySelector("#stage").dataset.preview);
      new MutationObserver(look).observe(document.querySelector("#stage"), { attributeFilter: ["data-preview"] });
    });
    await use({ ...worker, page, context });
    assert.deepEqual(wrong, []);
    assert.deepEqual(await context.cookies(), []);
    await context.close();
  });
}

export const isLoaded = (page) => page.locator("#model", { hasText: "builtin" }).waitFor();

export async function fill(page, { prompt, size = "", num_inference_steps = "", seed = "", n = "", negative_prompt = "" }) {
  const [width, height = ""] = size.split("x");
  for (const [id, value] of Object.entries({ prompt, width, height, num_inference_steps, seed, n, negative_prompt })) await page.fill(`#${id}`, String(value));
}

/** Generates, and returns the file of the (last) picture as the page offers it for download. */
export async function generate(page, count = 1) {
  const before = await page.locator("#gallery li").count();
  await page.click("#generate");
  await page.waitForFunction((least) => document.querySelectorAll("#gallery li").length >= least, before + count);
  await page.locator("#cancel").waitFor({ state: "hidden" });
  return download(page);
}

export async function download(page) {
  const [file] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  return readFileSync(await file.path());
}

/** The file that the API makes. */
export async function made(ask, body, headers) {
  const answer = await ask(body.image ? "/v1/images/edits" : "/v1/images/generations", body, headers);
  const json = await answer.json();
  assert.equal(answer.status, 200, JSON.stringify(json));
  return Buffer.from(json.data[0].b64_json, "base64");
}

/** The text that a button copies. */
export async function copied(page, button) {
  await page.evaluate(() => navigator.clipboard.writeText(""));
  await page.click(button);
  await page.waitForFunction(() => navigator.clipboard.readText());
  return page.evaluate(() => navigator.clipboard.readText());
}

/** What a copied text makes. */
export async function madeByCopies(page, env = {}) {
  const run = (program, text) => {
    const cwd = mkdtempSync(join(folder, "copy-"));
    execFileSync(program, program === "bash" ? ["-euo", "pipefail"] : ["-"], { cwd, input: text, env: { ...process.env, ...env } });
    return readFileSync(join(cwd, "picture.png"));
  };
  const all = [run("bash", await copied(page, "#copy-curl"))];
  if (python) all.push(run(python, await copied(page, "#copy-python")));
  return all;
}

/** The colours of a picture: three numbers for each pixel. */
export const pixels = (page, file) =>
  page.evaluate(async (base64) => {
    const picture = new Image();
    picture.src = `data:image/png;base64,${base64}`;
    await picture.decode();
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: picture.naturalWidth, height: picture.naturalHeight });
    const pen = canvas.getContext("2d");
    pen.drawImage(picture, 0, 0);
    return { width: canvas.width, height: canvas.height, data: [...pen.getImageData(0, 0, canvas.width, canvas.height).data] };
  }, file.toString("base64"));

/** Drops a file on an element, or pastes it there. */
export const drop = (page, selector, file, kind = "drop") =>
  page.evaluate(
    ([selector, base64, kind]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], "fox.png", { type: "image/png" }));
      const more = { bubbles: true, cancelable: true };
      const event = kind === "drop" ? new DragEvent(kind, { dataTransfer: transfer, ...more }) : new ClipboardEvent(kind, { clipboardData: transfer, ...more });
      document.querySelector(selector).dispatchEvent(event);
    },
    [selector, file.toString("base64"), kind],
  );

export async function screenshot(page, name) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`), fullPage: true });
}

/** Everything that can be used has a name for those who do not see it. */
export async function checkNames(page) {
  await page.evaluate(() => document.querySelectorAll("details").forEach((part) => (part.open = true)));
  const session = await page.context().newCDPSession(page);
  const { nodes } = await session.send("Accessibility.getFullAXTree");
  const roles = ["textbox", "spinbutton", "combobox", "button", "slider", "link", "progressbar", "image", "img", "DisclosureTriangle"];
  const used = nodes.filter((node) => !node.ignored && roles.includes(node.role.value));
  for (const node of used) assert(node.name.value, JSON.stringify(node));
  const inputs = await page.locator("input, select, textarea").all();
  for (const input of inputs) {
    const isNamed = await input.evaluate((element) => element.labels.length > 0 || element.hasAttribute("aria-label"));
    assert(isNamed, await input.evaluate((element) => element.outerHTML));
  }
  return used.map((node) => node.name.value);
}

export const fits = (page) => page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth);
