// The official Node client against a real worker: typed objects, typed errors. Usage: node client.mjs PATH-TO-SD-WORKER

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import OpenAI, { toFile } from "openai";
import { VERSION } from "openai/version";

const SMALL = { size: "64x64", prompt: "a fox", steps: 2, seed: 1 };
const LONG = { size: "64x64", prompt: "a fox", steps: 1000 };

async function withWorker(args, use) {
  const child = spawn(process.argv[2], ["serve", "--port", "0", ...args], { stdio: ["ignore", "pipe", "ignore"] });
  try {
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    const url = `http://127.0.0.1:${JSON.parse((await lines.next()).value).port}`;
    assert.equal(JSON.parse((await lines.next()).value).event, "ready");
    const metric = async (name) => {
      const text = await (await fetch(`${url}/metrics`)).text();
      const found = text.split("\n").filter((line) => line.startsWith(name));
      return found.reduce((sum, line) => sum + Number(line.split(" ").pop()), 0);
    };
    await use({
      child,
      client: (options) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0, ...options }),
      waitFor: async (name, willDo) => {
        while (!willDo(await metric(name)));
      },
      ask: async (method, path, body) => {
        const headers = { "content-type": "application/json" };
        return (await fetch(url + path, { method, headers, body: JSON.stringify(body) })).json();
      },
    });
  } finally {
    child.kill("SIGKILL");
  }
}

const isPng = (text) => Buffer.from(text, "base64").subarray(1, 4).toString() === "PNG";

async function all(stream) {
  const events = [];
  for await (const event of await stream) events.push(event);
  return events;
}

const checks = {
  "generates and streams": () =>
    withWorker([], async ({ client }) => {
      const answer = await client().images.generate(SMALL);
      assert(isPng(answer.data[0].b64_json) && answer.size === "64x64" && answer.output_format === "png");
      assert.equal((await client().images.generate({ ...SMALL, n: 3 })).data.length, 3);
      const events = await all(client().images.generate({ ...SMALL, steps: 6, stream: true, partial_images: 2 }));
      const partial = "image_generation.partial_image";
      assert.deepEqual(events.map((event) => event.type), [partial, partial, "image_generation.completed"]);
      assert.deepEqual(events.slice(0, 2).map((event) => event.partial_image_index), [0, 1]);
      assert(events.every((event) => isPng(event.b64_json)));
      assert.equal((await client().models.list()).data[0].id, "builtin");
    }),

  "pictures are changed": () =>
    withWorker([], async ({ client }) => {
      const bytes = Buffer.from((await client().images.generate(SMALL)).data[0].b64_json, "base64");
      const file = () => toFile(bytes, "fox.png", { type: "image/png" });
      const small = async () => ({ image: await file(), prompt: "an owl", steps: 6, seed: 1 });
      const answer = await client().images.edit({ ...(await small()), n: 2 });
      assert(answer.data.length === 2 && answer.data.every((data) => isPng(data.b64_json)) && answer.size === "64x64");
      assert.equal(answer.parameters.strength, 0.8);
      const listed = await client().images.edit({ ...(await small()), image: [await file()] });
      assert.deepEqual(listed.data, answer.data.slice(0, 1));
      // A picture without transparency is a mask in white: the built-in model's backgrounds are light.
      const masked = await client().images.edit({ ...(await small()), mask: await file() });
      assert.equal(masked.parameters.mask, "white");
      const events = await all(client().images.edit({ ...(await small()), stream: true, partial_images: 1 }));
      assert.deepEqual(events.map((event) => event.type), ["image_edit.partial_image", "image_edit.completed"]);
      assert.equal(events[1].b64_json, answer.data[0].b64_json);
    }),

  "errors are typed": async () => {
    await withWorker([], async ({ client }) => {
      const bad = client().images.generate({ prompt: "a fox", size: "100x100" });
      await assert.rejects(bad, (error) => {
        assert(error instanceof OpenAI.BadRequestError && error.requestID);
        assert.deepEqual([error.param, error.code, error.type], ["size", "invalid_size", "invalid_request_error"]);
        return true;
      });
      const edit = client().images.edit({ image: await toFile(Buffer.from("GIF89a...."), "fox.gif"), prompt: "an owl" });
      await assert.rejects(edit, (error) => error instanceof OpenAI.BadRequestError && error.param === "image" && error.code === "invalid_image");
    });
    await withWorker(["--api-key", "right"], async ({ client }) => {
      const wrong = client({ apiKey: "wrong" }).images.generate(SMALL);
      await assert.rejects(wrong, (error) => error instanceof OpenAI.AuthenticationError && error.code === "invalid_api_key");
      assert((await client({ apiKey: "right" }).images.generate(SMALL)).data.length);
    });
  },

  "a full queue is waited for": () =>
    withWorker(["--queue-capacity", "1"], async ({ client, ask, waitFor }) => {
      await client().images.generate(SMALL);
      const busy = { operation: "image_generation", prompt: "a fox", steps: 1000, width: 64, height: 64 };
      const { job_id } = await ask("POST", "/v1/jobs", busy);
      const full = client().images.generate(SMALL);
      await assert.rejects(full, (error) => error instanceof OpenAI.RateLimitError && Number(error.headers.get("retry-after")) >= 1);
      const patient = client({ maxRetries: 5 }).images.generate(SMALL);
      await waitFor('sdw_rejected_total{reason="queue_full"}', (count) => count >= 2);
      await ask("DELETE", `/v1/jobs/${job_id}`);
      assert((await patient).data.length);
    }),

  "streams that end early are noticed": async () => {
    for (const [signal, check] of [
      ["SIGTERM", (error) => error instanceof OpenAI.APIError && error.code === "shutting_down"],
      ["SIGKILL", (error) => error instanceof Error],
    ]) {
      await withWorker(["--drain-timeout", "0"], async ({ child, client, waitFor }) => {
        const stream = await client().images.generate({ ...LONG, stream: true, partial_images: 1 });
        await waitFor("sdw_requests_running", (count) => count > 0);
        const ended = once(child, "exit");
        child.kill(signal);
        await assert.rejects(all(stream), check);
        await ended;
      });
    }
  },

  "a client that does not wait costs nothing": () =>
    withWorker([], async ({ client, waitFor }) => {
      const hurried = client({ timeout: 300 }).images.generate(LONG);
      await assert.rejects(hurried, (error) => error instanceof OpenAI.APIConnectionTimeoutError);
      await waitFor("sdw_cancelled_total", (count) => count === 1);
    }),
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(`node, openai ${VERSION}: ${name}`);
}
