"""Measures how far stable-diffusion.cpp's caches for UNets change the built-in model's pictures, and prints a table to lay beside cache.py's.

  pip install torch diffusers transformers accelerate
  python benches/peers/cache_methods.py --worker target/release/sd-worker
  python benches/peers/cache_methods.py --worker target/release/sd-worker --methods "ucache threshold=0.5;spectrum window=3 flex=0;steps=9"

stable-diffusion.cpp cannot run the built-in model, so its methods (docs/caching.md there) are written anew around diffusers' UNet, with the
same parameters and defaults. Both leave out whole steps: share is that of the steps that are evaluated. `steps=9` is fewer steps without a
cache. PSNR, prompts and seeds are cache.py's. The script stops if the picture of the first prompt is more than 2 of 255 from the worker's,
or if a method that leaves out nothing changes it.
"""
import argparse, json, math, pathlib, subprocess, sys, tempfile

import numpy
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from cache import ROOT, psnr

METHODS = """ucache;ucache threshold=1.2 start=0.05;ucache threshold=10 start=0.05
spectrum;spectrum window=3 flex=0 warmup=2;spectrum window=5 flex=0 warmup=2 stop=0.95
spectrum w=0;spectrum w=0 window=3 flex=0 warmup=2;spectrum w=0 window=5 flex=0 warmup=2 stop=0.95
steps=11;steps=9;steps=6""".replace("\n", ";")
NOTHING_LEFT_OUT = "ucache threshold=0", "spectrum window=1 flex=0"


class UCache:
    """A step reuses the latest output less its input, added to the new input, until the estimated changes of the output add up to a
    threshold. The estimate is the change of the input since the latest evaluation, times the rate at which the output changed there."""

    def __init__(self, steps, threshold=1.0, start=0.15, end=0.95):
        self.steps, self.threshold, self.active = steps, threshold, range(int(start * steps), min(int(end * steps), steps - 1))
        self.input = self.output = self.rate = self.usual_change = None
        self.evaluated = self.reused = self.error = 0

    def guess(self, step, x, alpha, sigma):
        if step not in self.active or self.input is None:
            return None
        self.moved = apart(x, self.input)
        if self.rate is None:
            return None
        scale = math.sqrt(apart(self.output, 0) * 1.6 * self.usual_change)
        self.error += self.rate * self.moved / scale * (1 + self.reused / 2)
        done = self.evaluated / self.steps
        if self.error < self.threshold * (0.5 if done < 0.2 else 1.5 if done > 0.8 else 1):
            self.reused += 1
            return x + self.output - self.input
        self.error = 0
        return None

    def learn(self, step, x, output, alpha, sigma):
        if step not in self.active:
            return
        if self.input is not None:
            change = apart(output, self.output)
            self.rate = change / self.moved
            self.usual_change = change if self.usual_change is None else 0.8 * self.usual_change + 0.2 * change
        self.input, self.output, self.reused, self.evaluated = x, output, 0, self.evaluated + 1


class Spectrum:
    """A step forecasts the denoised latents from those of the latest six evaluations: a ridge regression on Chebyshev polynomials of the
    step, blended with the latest plus half of their change. After a warm-up, one step of each window is evaluated, and windows grow.
    The forecast is linear, so that of the guided latents is the guided forecast of both halves."""

    def __init__(self, steps, w=0.4, m=3, lam=1.0, window=2, flex=0.5, warmup=4, stop=0.9):
        self.w, self.degree, self.ridge, self.window, self.flex = w, int(m), lam, window, flex
        self.active, self.known, self.reused = range(int(warmup), int(stop * steps)), [], 0

    def basis(self, steps):
        return numpy.polynomial.chebyshev.chebvander(numpy.array(steps) / 25 - 1, self.degree)

    def guess(self, step, x, alpha, sigma):
        if step not in self.active or len(self.known) < 2 or (self.reused + 1) % max(1, int(self.window)) == 0:
            return None
        self.reused += 1
        basis = self.basis([known for known, _ in self.known])
        ridge = self.ridge * numpy.eye(self.degree + 1)
        shares = self.w * basis @ numpy.linalg.solve(basis.T @ basis + ridge, self.basis([step])[0])
        shares[-2:] += (1 - self.w) * numpy.array([-0.5, 1.5])
        forecast = sum(float(share) * denoised for share, (_, denoised) in zip(shares, self.known))
        return (alpha * x - forecast) / sigma

    def learn(self, step, x, output, alpha, sigma):
        self.known = (self.known + [(step, alpha * x - sigma * output)])[-max(self.degree + 1, 6):]
        self.window += self.flex if step >= self.active.start else 0
        self.reused = 0


def apart(one, other):
    """The mean absolute difference in the half with the prompt."""
    return float((one - other)[-1].abs().mean())


def draw(pipe, prompt, seed, steps, guidance, method=""):
    """The 8-bit pixels, and the number of evaluated steps."""
    kind, *options = method.split() or [""]
    options = {key: float(value) for key, value in (option.split("=") for option in options)}
    if kind.startswith("steps="):
        kind, steps = "", int(kind.removeprefix("steps="))
    cache = {"ucache": UCache, "spectrum": Spectrum}[kind](steps, **options) if kind else None
    evaluate, step, evaluated = pipe.unet.forward, -1, 0

    def forward(x, t, **kw):
        nonlocal step, evaluated
        step += 1
        signal = pipe.scheduler.alphas_cumprod[t]
        alpha, sigma = signal ** 0.5, (1 - signal) ** 0.5
        guess = cache and cache.guess(step, x, alpha, sigma)
        if guess is not None:
            return (guess,)
        evaluated += 1
        v = evaluate(x, t, **kw)[0]
        if cache:
            cache.learn(step, x, v, alpha, sigma)
        return (v,)

    pipe.unet.forward = forward
    try:
        picture = pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=torch.Generator().manual_seed(seed)).images[0]
    finally:
        pipe.unet.forward = evaluate
    return numpy.array(picture, dtype=float), evaluated


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", required=True)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", type=lambda text: text.split(";"), default=METHODS.split(";"), help="each with its parameters")
    o = parser.parse_args()
    prompts = (ROOT / "src/builtin_model/train/prompts.txt").read_text().splitlines()[:o.prompts]
    with tempfile.TemporaryDirectory() as work:
        model, file = pathlib.Path(work, "model"), pathlib.Path(work, "picture.png")
        subprocess.run([o.worker, "models", "export", "builtin", model], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([o.worker, "generate", prompts[0], "--seed", "0", "--steps", str(o.steps), "-o", file], check=True, stdout=subprocess.DEVNULL)
        workers = numpy.array(Image.open(file).convert("RGB"), dtype=float)
        guidance = json.loads((model / "generation_config.json").read_text())["guidance_scale"]
        pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    plain = [draw(pipe, prompt, i, o.steps, guidance)[0] for i, prompt in enumerate(prompts)]
    if abs(plain[0] - workers).max() > 2:
        sys.exit(f"without a cache, diffusers' picture is {abs(plain[0] - workers).max():.0f} of 255 from the worker's")
    for method in NOTHING_LEFT_OUT:
        pixels, evaluated = draw(pipe, prompts[0], 0, o.steps, guidance, method)
        if evaluated != o.steps or (pixels != plain[0]).any():
            sys.exit(f"{method} left out {o.steps - evaluated} steps, or its picture is another than without a cache")
    print(f"| builtin, {o.steps} steps | share | PSNR |\n|---|---|---|")
    for method in o.methods:
        drawn = [draw(pipe, prompt, i, o.steps, guidance, method) for i, prompt in enumerate(prompts)]
        share = numpy.mean([evaluated for _, evaluated in drawn]) / o.steps
        print(f"| {method} | {share:.2f} | {numpy.mean([psnr(pixels, near) for (pixels, _), near in zip(drawn, plain)]):.1f} |", flush=True)


if __name__ == "__main__":
    main()
