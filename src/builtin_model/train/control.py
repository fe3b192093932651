"""Trains a ControlNet that follows a line drawing, white on black: edges of a picture, or lines by hand. Only the ControlNet learns; UNet and text encoder stay as they are.

  python train.py import --model DIR --steps 6700   # DIR: what `sd-worker models export builtin DIR` wrote; and sprites.npz is there
  python control.py --minutes 50                    # ../model/controlnets/lines, in 8 bits, and control.pt for --resume; --sheet FILE shows the training pictures only
"""
import argparse, math, os, random, time
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import data, pack
from lora import blur, edges, grow
from networks import *
from optimizer import Optimizer
from train import Store


# ---- pictures ---------------------------------------------------------------------------------------------------------

def uniform(n, low, high): return (low + (high - low) * torch.rand(n)).view(n, 1, 1, 1)


def bend(sprites):
    """Art turned, mirrored, stretched and bent, so that only the lines tell where things are."""
    n = len(sprites); angle, wide = uniform(n, -.6, .6).flatten(), uniform(n, -.25, .25).flatten().exp(); size = uniform(n, 1, 1.25).flatten(); mirror = torch.where(torch.rand(n) < .5, -1., 1.)
    theta = torch.zeros(n, 2, 3); theta[:, 0, 0], theta[:, 0, 1], theta[:, 1, 0], theta[:, 1, 1] = angle.cos() * mirror * size / wide, angle.sin() * size / wide, -angle.sin() * mirror * size * wide, angle.cos() * size * wide
    wave = F.interpolate(torch.randn(n, 2, 4, 4) * uniform(n, 0, .1), size=SIZE, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return F.grid_sample(sprites.float(), F.affine_grid(theta, sprites.shape, align_corners=False) + wave, mode="bilinear", align_corners=False)


def lines(image, alpha):
    """Edges of pictures, outlines of the things in them, or both: of various strength, one to three pixels wide, some paler, some with a part missing."""
    n = len(image); q = torch.rand(n, 1, 1, 1); on = edges(blur(torch.cat([image * uniform(n, .4, 1.6) * (q > .25), alpha * (q < .55)], 1), random.uniform(.7, 1.9)))
    q = torch.rand(n, 1, 1, 1); on = torch.where(q < .5, on, torch.where(q < .8, F.max_pool2d(F.pad(on, (0, 1, 0, 1)), 2, 1), grow(on, 1)))
    if random.random() < .15: on = blur(on, .6) * 1.2
    on = on.clamp(0, 1) * torch.where(torch.rand(n, 1, 1, 1) < .2, uniform(n, .4, 1), 1.)
    for one in on:
        if random.random() < .25: w, h = random.randint(16, 64), random.randint(16, 64); x, y = random.randint(0, SIZE - w), random.randint(0, SIZE - h); one[:, y:y + h, x:x + w] = 0
    return on


class Drawn(data.Scenes):
    """The scenes with their captions, more than half of them out of shape and place; `hints` are the line drawings of the latest pictures."""

    def __init__(self, *args, wild=.6, **options): super().__init__(*args, **options); self.wild = wild

    def draw(self, scenes):
        texts, top, bottom, layouts = zip(*scenes); n, r = len(scenes), self.rng; image, alpha = data.fill(top, bottom), torch.zeros(n, 1, SIZE, SIZE); wild = [r.random() < self.wild for _ in scenes]
        for k in range(2):
            rows = [i for i, l in enumerate(layouts) if len(l) > k]
            if not rows: continue
            what, *where = zip(*[layouts[i][k] for i in rows]); art = self.sprites[list(what)].float(); where = list(zip(*where))
            for j, i in enumerate(rows):
                if not wild[i]: continue
                scale, cx, cy = where[j]
                if len(layouts[i]) == 1: scale = r.uniform(.5, 1.1); cx, cy = (r.uniform(-1, 1) * max(.1, 1 - scale) for _ in "xy")
                else: cy = r.uniform(-.35, .35)
                art[j:j + 1] = bend(art[j:j + 1]); where[j] = scale, cx, cy
            layer = data.place(art, *zip(*where)); image[rows] = data.over(layer, image[rows]); alpha[rows] = alpha[rows].maximum(layer[:, 3:])
        self.hints = lines(image, alpha)
        return image * 2 - 1, list(texts)


class Pairs(Store):
    """Encoded pictures and their captions, and line drawings beside them."""

    def __init__(self, scenes, tok, size): super().__init__(scenes, tok, size, ""); self.hints = torch.empty(size, 1, SIZE, SIZE, dtype=torch.uint8)

    def renew(self, n):
        at = torch.arange(self.next, self.next + n) % len(self.ids); super().renew(n); self.hints[at] = (self.scenes.hints * 255).round().byte()

    def batch(self, n):
        i = torch.randint(0, self.filled, (n,)); return self.latents[i].float(), self.ids[i].long(), (self.hints[i].float() / 255).expand(-1, 3, -1, -1)


# ---- training ---------------------------------------------------------------------------------------------------------

def save(control, out):
    """In 8 bits for the worker, and as it is in control.pt."""
    torch.save(control.state_dict(), "control.pt.tmp"); os.replace("control.pt.tmp", "control.pt")
    control.save_config(out); path = f"{out}/diffusion_pytorch_model.safetensors"
    save_file({k: v.contiguous() if v.ndim > 1 else v.half() for k, v in control.state_dict().items()}, path + ".f32"); pack.pack(path + ".f32", path + ".new", None, None); os.remove(path + ".f32"); os.replace(path + ".new", path)


def train(o):
    from diffusers import ControlNetModel
    from diffusers.models.attention_processor import AttnProcessor
    torch.manual_seed(1); random.seed(1); d, tok = torch.load("unet.pt"), load_tokenizer(); unet, text = make_unet(), make_text(tok); unet.load_state_dict(d["ema"]["unet"]); text.load_state_dict(d["ema"]["text"])
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64, 96)); unet.requires_grad_(False); text.requires_grad_(False); text.set_attn_implementation("eager")
    if o.resume: control.load_state_dict(torch.load(o.resume))
    for net in (unet, control): net.to(memory_format=torch.channels_last); net.set_attn_processor(AttnProcessor())
    params = list(control.parameters()); opt = Optimizer(list(control.named_parameters()), o.lr); print(sum(p.numel() for p in params), "parameters", flush=True)
    begun = saved = time.time(); store = Pairs(Drawn("sprites.npz", data.read_concepts("concepts.txt"), seed=o.seed), tok, 12000); alphas, empty = make_scheduler().alphas_cumprod, tokens(tok, [""]); n, step, losses = o.batch, 0, []
    while store.filled < o.first: store.renew(32)
    while (done := (time.time() - begun) / 60 / o.minutes) < 1:   # the rate falls to nothing at the end of the time
        store.renew(max(1, n // 6)); x, ids, hints = store.batch(n); ids = torch.where(torch.rand(n, 1) < .33, empty, ids)   # without words, the lines are all there is
        t = ((torch.arange(n) + torch.rand(n)) / n * 1000).long().clamp(0, 999); t[torch.rand(n) < .06] = 999
        a = alphas[t].view(-1, 1, 1, 1); noise = torch.randn_like(x); noisy, v = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        noisy, hints = noisy.contiguous(memory_format=torch.channels_last), hints.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            words = text(ids).last_hidden_state; down, mid = control(noisy, t, words, controlnet_cond=hints, return_dict=False)
            out = unet(noisy, t, words, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
        loss = (out.float() - v).pow(2).mean(); loss.backward(); torch.nn.utils.clip_grad_norm_(params, 1.)
        opt.step(o.lr * min(1, (step + 1) / 50) * .5 * (1 + math.cos(math.pi * done))); opt.zero_grad(); step += 1; losses.append(loss.item())
        if step % 25 == 0: print(time.strftime("%H:%M:%S"), "step", step, f"mse {sum(losses) / len(losses):.4f}, {step * n / (time.time() - begun):.1f} images/s", flush=True); losses = []
        if time.time() - saved > 180: save(control, o.out); saved = time.time()
    save(control, o.out); print(step, "steps,", step * n, "pictures,", os.path.getsize(f"{o.out}/diffusion_pytorch_model.safetensors"), "bytes")


if __name__ == "__main__":
    p = argparse.ArgumentParser(); p.add_argument("--out", default="../model/controlnets/lines", type=os.path.abspath); p.add_argument("--minutes", type=float, default=50.); p.add_argument("--batch", type=int, default=32); p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--sheet", type=os.path.abspath); p.add_argument("--seed", type=int, default=1, help="of the scenes"); p.add_argument("--first", type=int, default=512, help="pictures before the first step"); p.add_argument("--resume", type=os.path.abspath, help="goes on from this control.pt, with a fresh optimizer and rate")
    o = p.parse_args(); os.chdir(data.HERE)
    if o.sheet:
        from PIL import Image
        from export import sheet
        scenes = Drawn("sprites.npz", data.read_concepts("concepts.txt"), seed=o.seed); show = lambda x: [Image.fromarray((i * 255).byte().permute(1, 2, 0).numpy()) for i in x.expand(-1, 3, -1, -1)]; images = []
        for _ in range(4): x, texts = scenes.batch(12); print(*texts, sep="\n"); images += show((x + 1) / 2) + show(scenes.hints)
        sheet(images, o.sheet, 12)
    else: train(o)
