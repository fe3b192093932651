// The page at `/` in a real browser against a real worker. Usage: node page.mjs PATH-TO-SD-WORKER CHROMIUM [PYTHON-WITH-OPENAI]
// With SCREENSHOTS=DIR, pictures of the page are kept there; ONLY=WORDS runs the checks with these in their names.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { browser, checkNames, copied, download, drop, fill, fits, FOX, generate, isLoaded, LONG, made, madeByCopies, pixels, screenshot, withPage } from "./browser.mjs";

const checks = {
  "from a prompt to its picture, with previews": () =>
    withPage([], async ({ page, ask }) => {
      await isLoaded(page);
      await screenshot(page, "empty");
      await fill(page, FOX);
      const file = await generate(page);
      assert(file.equals(await made(ask, FOX)));
      assert.deepEqual(await page.evaluate(() => window.previews), ["0", "1", "2"]);
      assert.equal(await page.textContent("#status"), "The picture is finished.");
      const shown = await page.locator("#shown").evaluate((image) => [image.naturalWidth, image.naturalHeight, image.alt]);
      assert.deepEqual(shown, [64, 64, FOX.prompt]);
      for (const text of ["7", "64 × 64", "12"]) await page.locator("#parameters dd", { hasText: text }).first().waitFor();
      // Another seed each time, and several at once.
      await fill(page, { ...FOX, seed: "", n: 3 });
      await generate(page, 3);
      const seeds = await page.locator("#gallery button").evaluateAll((buttons) => buttons.map((button) => Number(button.getAttribute("aria-label").split("seed ")[1])));
      assert.deepEqual([seeds[0] - seeds[1], seeds[1] - seeds[2], seeds.length], [1, 1, 4]);
      // Of the latest, as of any, the settings come back.
      const last = await download(page);
      await page.locator("#gallery button").last().click();
      await page.click("#reuse");
      assert.deepEqual(await page.locator("#seed, #num_inference_steps, #width").evaluateAll((all) => all.map((input) => input.value)), ["64", "12", "7"]);
      assert((await generate(page)).equals(file) && !last.equals(file));
      // Enlarged after that.
      await page.selectOption("#upscaler", "Nearest");
      await page.fill("#times", "3");
      const large = await generate(page);
      assert(large.equals(await made(ask, { ...FOX, upscale: { name: "Nearest", scale: 3 } })));
      await page.selectOption("#upscaler", "");
      await page.click("#reuse");
      assert.deepEqual([await page.inputValue("#upscaler"), await page.inputValue("#times")], ["Nearest", "3"]);
      for (const copy of await madeByCopies(page)) assert(copy.equals(large));
    }),

  "copied text makes the same picture": () =>
    withPage([], async ({ page }) => {
      await isLoaded(page);
      await fill(page, { ...FOX, prompt: "it's a \"fox\" $HOME `id` \\ 🦊\nEND\n", negative_prompt: "a cat", n: 2 });
      const file = await generate(page, 2);
      for (const copy of await madeByCopies(page)) assert(copy.equals(file));
      // Without TLS, only this machine's browsers have the newer interface.
      await page.evaluate(() => {
        navigator.clipboard.writeText = () => Promise.reject(new Error("not here"));
      });
      await page.click("#copy-curl");
      await page.waitForFunction(async () => (await navigator.clipboard.readText()).startsWith("curl"));
      assert.equal(await page.evaluate(() => document.activeElement.id), "copy-curl");
    }),

  "a request is cancelled": () =>
    withPage([], async ({ page, waitFor }) => {
      await isLoaded(page);
      await fill(page, LONG);
      for (const [count, cancel] of [[1, () => page.keyboard.press("Escape")], [2, () => page.click("#cancel")]]) {
        await page.click("#generate");
        await page.locator("#bar-text", { hasText: "Step" }).waitFor();
        if (count === 1) await screenshot(page, "busy");
        await cancel();
        await page.locator("#status", { hasText: "Cancelled." }).waitFor();
        assert.equal(await page.evaluate(() => document.activeElement.id), "generate");
        // Every picture of a request counts.
        await waitFor("sdw_requests_running", (running) => running === 0);
        await waitFor("sdw_cancelled_total", (cancelled) => cancelled >= count);
      }
      assert.equal(await page.textContent("#problem"), "");
    }),

  "a refusal is said at its field": () =>
    withPage(
      [],
      async ({ page }) => {
        await isLoaded(page);
        const settings = page.locator("#settings");
        for (const [size, steps, field, id] of [["100x100", "12", "size", "width"], ["64x64", "0", "num_inference_steps", "num_inference_steps"]]) {
          await fill(page, { ...FOX, size, num_inference_steps: steps });
          await settings.evaluate((part) => (part.open = false));
          await page.click("#generate");
          const note = page.locator(`[data-param~="${field}"] .field-problem`);
          await note.waitFor();
          assert(/^(Size|Steps) must be/.test(await note.textContent()), await note.textContent());
          assert.equal(await page.textContent("#problem"), await note.textContent());
          assert.equal(await page.locator(`#${id}`).getAttribute("aria-describedby"), await note.getAttribute("id"));
          assert.equal(await page.evaluate(() => document.activeElement.id), id);
          assert.equal(await page.locator(".field-problem").count(), 1);
        }
        await screenshot(page, "refused");
        await fill(page, FOX);
        await generate(page);
        assert.equal(await page.locator(".field-problem, [aria-invalid]").count(), 0);
        // No browser hands out what is no number.
        await page.focus("#n");
        await page.keyboard.type("e");
        await page.click("#generate");
        assert.equal(await page.textContent("[data-param=n] .field-problem"), "Pictures must be a number.");
        await page.fill("#n", "");
        // What has no field here is said all the same.
        const error = { message: "loras: there is none", type: "invalid_request_error", param: "loras", code: "invalid_loras" };
        await page.route("**/generations", (route) => route.fulfill({ status: 400, json: { error } }), { times: 1 });
        await page.click("#generate");
        await page.locator("#problem:not(.unseen)", { hasText: "Loras: there is none." }).waitFor();
        await drop(page, "#results", Buffer.from("no picture"));
        await page.locator("#begin .field-problem", { hasText: "no picture that this browser can read" }).waitFor();
        assert.equal(await page.locator("#painting").isVisible(), false);
      },
      { expected: ["400 (Bad Request)"] },
    ),

  "a full queue, a worker that loads and one that stops": () =>
    withPage(
      ["--queue-capacity", "1", "--drain-timeout", "0"],
      async ({ page, ask, child, waitFor }) => {
        await page.locator("#model", { hasText: "The model is still loading." }).waitFor();
        await isLoaded(page);
        const busy = { operation: "image_generation", prompt: "a fox", steps: 1000, width: 256, height: 256 };
        const { job_id } = await (await ask("/v1/jobs", busy)).json();
        await fill(page, FOX);
        await page.click("#generate");
        await page.locator("#problem", { hasText: /The queue is full\. Try again in \d+ s\./ }).waitFor();
        await fetch(`${page.url()}v1/jobs/${job_id}`, { method: "DELETE" });
        await waitFor("sdw_requests_running", (running) => running === 0);
        await fill(page, { ...LONG, n: "" });
        await page.click("#generate");
        await page.locator("#bar-text", { hasText: "Step" }).waitFor();
        child.kill("SIGTERM");
        await page.locator("#problem", { hasText: "shutting down" }).waitFor();
        await page.click("#generate");
        await page.locator("#problem", { hasText: /does not answer|shutting down/ }).waitFor();
      },
      {
        expected: ["429", "503", "ERR_CONNECTION", "ERR_INCOMPLETE", "ERR_EMPTY"],
        before: async (page) => {
          const error = { message: "the model is still loading", type: "server_error", param: null, code: "model_loading" };
          const answer = { status: 503, headers: { "retry-after": "1" }, json: { error } };
          await page.route("**/v1/capabilities", (route) => route.fulfill(answer), { times: 1 });
        },
      },
    ),

  "a wrong key, then the right one": () =>
    withPage(
      ["--api-key", "schlüssel"],
      async ({ page, ask }) => {
        await page.locator("#key-dialog").waitFor();
        await page.fill("#key", "wrong");
        await page.keyboard.press("Enter");
        await page.locator("#key-message", { hasText: "This is not the worker's key." }).waitFor();
        await screenshot(page, "key");
        await page.click("#key-cancel");
        await page.locator("#model", { hasText: "This worker asks for an API key." }).waitFor();
        await page.click("#key-open");
        await page.fill("#key", "schlüssel");
        await page.keyboard.press("Enter");
        await isLoaded(page);
        await fill(page, FOX);
        const file = await generate(page);
        const authorization = Buffer.from("Bearer schlüssel").toString("latin1");
        assert(file.equals(await made(ask, FOX, { authorization })));
        for (const button of ["#copy-curl", "#copy-python"]) {
          const copy = await copied(page, button);
          assert(copy.includes("SD_WORKER_API_KEY") && !copy.includes("schl"));
        }
        await page.reload();
        await isLoaded(page);
      },
      { expected: ["401 (Unauthorized)"] },
    ),

  "copied text has no key": () =>
    withPage(
      ["--api-key", "right"],
      async ({ page }) => {
        await page.fill("#key", "right");
        await page.keyboard.press("Enter");
        await isLoaded(page);
        await fill(page, FOX);
        const file = await generate(page);
        for (const copy of await madeByCopies(page, { SD_WORKER_API_KEY: "right" })) assert(copy.equals(file));
      },
      { expected: ["401 (Unauthorized)"] },
    ),

  "a dropped picture is changed where it is painted over": () =>
    withPage([], async ({ page, ask }) => {
      await isLoaded(page);
      const start = { ...FOX, size: "128x128" };
      const before = await made(ask, start);
      await drop(page, "#results", before);
      await page.locator("#paint-picture").waitFor();
      await fill(page, { prompt: "an owl on a red background", num_inference_steps: 12, seed: 3 });
      // Without paint, the whole picture is changed.
      const changed = await generate(page);
      const image = `data:image/png;base64,${before.toString("base64")}`;
      const body = { prompt: "an owl on a red background", num_inference_steps: 12, seed: 3, image };
      assert(changed.equals(await made(ask, body)));
      // A stroke down the right side.
      await page.fill("#brush", "30");
      await page.locator("#mask").scrollIntoViewIfNeeded();
      const box = await page.locator("#mask").boundingBox();
      await page.mouse.move(box.x + box.width * 0.8, box.y + 2);
      await page.mouse.down();
      await page.mouse.move(box.x + box.width * 0.8, box.y + box.height - 2, { steps: 5 });
      await page.mouse.up();
      const painted = await generate(page);
      await screenshot(page, "painted");
      const [from, to] = [await pixels(page, before), await pixels(page, painted)];
      assert.deepEqual([to.width, to.height], [128, 128]);
      const changes = from.data.flatMap((number, i) => (number === to.data[i] ? [] : [Math.floor(i / 4) % 128]));
      assert(changes.length > 1000 && Math.min(...changes) >= 64, `${changes.length} numbers changed, from column ${Math.min(...changes)} on`);
      for (const copy of await madeByCopies(page)) assert(copy.equals(painted));
      // Erased, the mask is none; with its settings, it is back.
      await page.click("#clear");
      assert((await generate(page)).equals(changed));
      await page.locator("#gallery button").nth(1).click();
      await page.click("#reuse");
      assert((await generate(page)).equals(painted));
      // The eraser takes away what the brush brought.
      await page.click("#erase");
      await page.fill("#brush", "50");
      await page.focus("#mask");
      const press = async (times, ...keys) => {
        for (let i = 0; i < times; i++) for (const key of keys) await page.keyboard.press(key);
      };
      await press(10, "ArrowRight");
      await press(10, "ArrowUp");
      await press(10, " ", "ArrowDown");
      await press(1, "ArrowLeft");
      await press(10, " ", "ArrowUp");
      assert((await generate(page)).equals(changed));
      // A finished picture is one to begin with, too.
      await page.click("#continue");
      const again = await generate(page);
      assert(again.equals(await made(ask, { ...body, image: `data:image/png;base64,${changed.toString("base64")}` })));
    }),

  "LoRAs and pictures that guide": () =>
    withPage(["--loras", "builtin", "--controlnet", "lines=src/builtin_model/model/controlnets/lines"], async ({ page, ask }) => {
      await isLoaded(page);
      await page.click("#loras summary");
      await page.click("#lora-add");
      await page.getByLabel("Scale of ink").fill("0.5");
      await page.click("#guides summary");
      const heart = readFileSync(".github/heart.png");
      await page.setInputFiles("#guides input[type=file]", { name: "heart.png", mimeType: "image/png", buffer: heart });
      await page.locator("#guides").getByLabel("Scale").fill("1.25");
      await page.locator("#guides").getByLabel("Preprocess").selectOption("invert");
      await fill(page, FOX);
      const file = await generate(page);
      const control = [{ name: "lines", image: heart.toString("base64"), scale: 1.25, preprocess: "invert" }];
      assert(file.equals(await made(ask, { ...FOX, loras: [{ name: "ink", scale: 0.5 }], control })));
      for (const copy of await madeByCopies(page)) assert(copy.equals(file));
      await screenshot(page, "guided");
      const names = await checkNames(page);
      for (const name of ["Scale of ink", "Remove ink", "Picture for lines", "Strength", "Brush"]) assert(name === "Brush" || names.some((other) => other.includes(name)), name);
      // The sampler's schedules are offered, and no others.
      assert.deepEqual(await page.locator("#sampler").selectOption("lcm"), ["lcm"]);
      assert.deepEqual(await page.locator("#schedule option").evaluateAll((all) => all.map((option) => option.value)), ["", "default"]);
      await page.getByRole("button", { name: "Remove ink" }).click();
      await page.getByRole("button", { name: "Remove: Picture for lines" }).click();
      await page.locator("#sampler").selectOption("");
      assert((await generate(page)).equals(await made(ask, FOX)));
      await page.locator("#gallery button").last().click();
      await page.click("#reuse");
      assert((await generate(page)).equals(file));
      await screenshot(page, "dark");
    }, { context: { colorScheme: "dark" } }),

  "networks that this worker does not have are asked for as the API has them": () =>
    withPage(
      [],
      async ({ page }) => {
        await isLoaded(page);
        await fill(page, FOX);
        await page.click("#guides summary");
        const heart = readFileSync(".github/heart.png");
        await page.setInputFiles("#guides fieldset:nth-child(1) input[type=file]", { name: "heart.png", mimeType: "image/png", buffer: heart });
        await drop(page, "#guides fieldset:nth-child(2) .drop", heart);
        await page.locator("#guides").getByLabel("Type").selectOption("depth");
        await page.locator("#guides").getByLabel("Scale").nth(1).fill("0.6");
        await page.locator("#guides fieldset:nth-child(2) img").waitFor();
        const [request] = await Promise.all([page.waitForRequest("**/generations"), page.click("#generate")]);
        const image = `data:image/png;base64,${heart.toString("base64")}`;
        const { control, reference } = request.postDataJSON();
        assert.deepEqual([control, reference], [[{ image, name: "union", type: "depth" }], [{ image, scale: 0.6 }]]);
        await page.locator("#guides .field-problem").waitFor();
      },
      {
        expected: ["400 (Bad Request)"],
        before: (page) =>
          page.route("**/v1/capabilities", async (route) => {
            const json = await (await route.fetch()).json();
            await route.fulfill({ json: { ...json, references: true, controls: [{ name: "union", kind: "controlnet", types: ["depth", "canny"] }] } });
          }),
      },
    ),

  "with the keyboard alone": () =>
    withPage(["--steps", "5", "--negative-prompt", "a cat"], async ({ page }) => {
      await isLoaded(page);
      const shown = await page.locator("#negative_prompt, #width, #num_inference_steps").evaluateAll((all) => all.map((input) => input.placeholder));
      assert.deepEqual(shown, ["a cat", "128", "5"]);
      await page.keyboard.type("a fox");
      const visible = await page.locator("a, button, input, select, textarea, summary").evaluateAll((all) => all.filter((element) => element.checkVisibility() && !element.disabled).map((element) => element.id || element.textContent));
      const reached = new Set();
      for (let i = 0; i < visible.length + 5; i++) {
        await page.keyboard.press("Tab");
        reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent));
      }
      assert.deepEqual(visible.filter((name) => !reached.has(name)), []);
      await page.focus("#num_inference_steps");
      await page.keyboard.type("3");
      await page.keyboard.press("Control+Enter");
      await page.locator("#gallery li").waitFor();
      assert.equal(await page.evaluate(() => document.activeElement.id), "num_inference_steps");
      // An empty field begins at what it shows.
      await page.focus("#width");
      await page.keyboard.press("ArrowUp");
      assert.equal(await page.inputValue("#width"), "136");
      await page.getByRole("button", { name: "16:9" }).press("Enter");
      await page.locator("#swap").press("Enter");
      assert.deepEqual([await page.inputValue("#width"), await page.inputValue("#height")], ["96", "168"]);
    }),

  "the pictures of a visit are bounded": () =>
    withPage([], async ({ page }) => {
      await isLoaded(page);
      await fill(page, { ...FOX, num_inference_steps: 1, n: 10 });
      const first = page.locator("#gallery li").last();
      for (let i = 1; i <= 7; i++) {
        await page.click("#generate");
        await page.locator("#cancel").waitFor({ state: "visible" });
        await page.locator("#cancel").waitFor({ state: "hidden" });
        assert.equal(await page.locator("#gallery li").count(), Math.min(60, 10 * i));
      }
      assert.equal(await first.locator("button").getAttribute("aria-label"), `${FOX.prompt}, seed 7`);
    }),

  "on a phone, light and dark": async () => {
    for (const colorScheme of ["light", "dark"]) {
      const context = { viewport: { width: 360, height: 740 }, colorScheme, hasTouch: true, isMobile: true, deviceScaleFactor: 2 };
      const args = ["--loras", "builtin", "--controlnet", "lines=src/builtin_model/model/controlnets/lines"];
      await withPage(
        args,
        async ({ page, ask }) => {
          await isLoaded(page);
          assert(await fits(page));
          await screenshot(page, `phone-${colorScheme}-empty`);
          await page.evaluate(() => document.querySelectorAll("details").forEach((part) => (part.open = true)));
          await page.click("#lora-add");
          await drop(page, "#form", await made(ask, FOX), "paste");
          await page.locator("#paint-picture").waitFor();
          await fill(page, { ...FOX, prompt: "a-fox-".repeat(60) });
          await generate(page);
          assert(await fits(page));
          await page.fill("#width", "100");
          await page.click("#generate");
          await page.locator(".field-problem").waitFor();
          assert(await fits(page));
          await checkNames(page);
          await screenshot(page, `phone-${colorScheme}`);
        },
        { context, expected: ["400 (Bad Request)"] },
      );
    }
  },
};

try {
  for (const [name, check] of Object.entries(checks)) {
    if (process.env.ONLY && !name.includes(process.env.ONLY)) continue;
    await check();
    console.log(`page, Chromium ${browser.version()}: ${name}`);
  }
} finally {
  await browser.close();
}
