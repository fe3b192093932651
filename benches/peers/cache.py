"""Measures what reusing features between steps saves, and how far it changes the pictures, and prints a table.

  python benches/peers/cache.py --worker target/release/sd-worker                                             # the built-in model
  python benches/peers/cache.py --worker target/release/sd-worker --model DIR --size 512x512 --prompts 1 --caches interval=3

Each prompt of --file is drawn without a cache and with each, in turns, after one picture that does not count. time is the share of the
seconds of all steps (`timings.denoise_ms`), in sum; PSNR is the mean over the pictures, in dB of 8-bit RGB, against those without.
"""
import argparse, base64, io, json, math, pathlib, subprocess, time, urllib.request

import numpy
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
CACHES = "interval=2,interval=3,interval=5,threshold=0.1,threshold=0.2,threshold=0.4"


def draw(url, request):
    body = json.dumps(request).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"}), timeout=3600) as answer:
        answer = json.load(answer)
    pixels = numpy.array(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).convert("RGB"), dtype=float)
    return pixels, answer["timings"]["denoise_ms"]


def psnr(one, other):
    error = ((one - other) ** 2).mean()
    return math.inf if error == 0 else 10 * math.log10(255 ** 2 / error)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", required=True)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--file", type=pathlib.Path, default=ROOT / "src/builtin_model/train/prompts.txt")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", default="auto")
    parser.add_argument("--sampler", help="the model's own where it is left out")
    parser.add_argument("--guidance", type=float, help="the model's own where it is left out")
    parser.add_argument("--caches", type=lambda text: text.split(","), default=CACHES.split(","))
    o = parser.parse_args()
    worker = subprocess.Popen([o.worker, "serve", "--port", "0", "--model", o.model], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = json.loads(worker.stdout.readline())["port"]
        worker.stdout.readline()  # ready
        url = f"http://127.0.0.1:{port}/v1/images/generations"
        caches = {"none": None} | {text: dict(kind="deep", **{text.split("=")[0]: float(text.split("=")[1])}) for text in o.caches}
        times, nearness = {name: 0 for name in caches}, {name: [] for name in caches}
        for i, prompt in enumerate(o.file.read_text().splitlines()[:o.prompts]):
            request = dict(prompt=prompt, seed=i, steps=o.steps, size=o.size, sampler=o.sampler, guidance_scale=o.guidance)
            if i == 0:
                draw(url, request | dict(steps=2))
            plain = None
            for name, cache in caches.items():
                pixels, millis = draw(url, request | dict(cache=cache))
                plain = pixels if plain is None else plain
                times[name] += millis
                nearness[name].append(psnr(pixels, plain))
        print(f"| {o.model}, {o.steps} steps | seconds | time | PSNR |\n|---|---|---|---|")
        for name in caches:
            near = "" if name == "none" else f"{numpy.mean(nearness[name]):.1f}"
            print(f"| {name} | {times[name] / 1000:.2f} | {times[name] / times['none']:.2f} | {near} |")
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main()
