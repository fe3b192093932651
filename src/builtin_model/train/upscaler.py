"""Trains the network `crisp`, which makes the model's pictures four times as large: Real-ESRGAN's compact architecture, no critic.

  python data.py sprites --npm NPM --size 256       # sprites-256.npz: the art at its own size
  python train.py import --model DIR --steps 6700   # DIR: what `sd-worker models export builtin DIR` wrote
  python upscaler.py --minutes 40                   # ../model/upscalers/crisp.safetensors; --sheet FILE shows the training pictures only
  python upscaler.py --evaluate                     # PSNR of scenes that no training had, beside nearest neighbours, Lanczos and bicubic
"""
import argparse, math, os, random, time
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import data
from lora import blur
from networks import *
from optimizer import Optimizer
from train import Sampled, slopes

SCALE, OWN = 4, 256   # how much larger each side becomes; pixels of the art
LARGE = SCALE * SIZE


class Compact(nn.Module):
    """`SRVGGNetCompact`: convolutions of one width with PReLU; the last one makes what nearest neighbours lack. Three channels of every layer carry the picture through, so that it begins as
    bilinear enlarging, and need not learn to take the grid of nearest neighbours away."""

    def __init__(self, features=36, convs=10):
        super().__init__(); sides = [3] + [features] * (convs + 1); layers = []
        for a, b in zip(sides, sides[1:]): layers += [nn.Conv2d(a, b, 3, 1, 1), nn.PReLU(b, .2)]
        for m in layers[::2]: nn.init.kaiming_normal_(m.weight, a=.2); nn.init.zeros_(m.bias)
        self.body = nn.Sequential(*layers, nn.Conv2d(features, 3 * SCALE ** 2, 3, 1, 1)); last = self.body[-1]; nn.init.zeros_(last.weight); nn.init.zeros_(last.bias); self.carry()
        point = F.pad(torch.eye(9).view(9, 1, 3, 3), (1, 1, 1, 1)); larger = lambda mode: F.interpolate(point, scale_factor=SCALE, mode=mode)[..., 2 * SCALE:3 * SCALE, 2 * SCALE:3 * SCALE]   # of the pixel in the middle
        for c in range(3): last.weight.data[c * SCALE ** 2:(c + 1) * SCALE ** 2, c] = (larger("bilinear") - larger("nearest")).reshape(9, -1).T.view(-1, 3, 3)

    @torch.no_grad()
    def carry(self):
        for m in self.body[:-1:2]: m.weight[:3] = 0; m.weight[range(3), range(3), 1, 1] = 1; m.bias[:3] = 0

    def forward(self, x): return F.pixel_shuffle(self.body(x).float(), SCALE) + F.interpolate(x, scale_factor=SCALE, mode="nearest")


# ---- pictures ---------------------------------------------------------------------------------------------------------

def resized(art, side): return F.interpolate(art[None].float() / 255, size=(side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)


def paste(image, layer, x, y):
    """Lays premultiplied RGBA over a picture, in place; what is outside of it is cut off."""
    h, w = layer.shape[1:]; x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, image.shape[2]), min(y + h, image.shape[1])
    if x1 > x0 and y1 > y0: image[:, y0:y1, x0:x1] = data.over(layer[None, :, y0 - y:y1 - y, x0 - x:x1 - x], image[None, :, y0:y1, x0:x1])[0]


class Loose:
    """Art at most at its own size, 2 to 7 pieces anywhere. Every twentieth piece that has no caption is kept for the evaluation."""

    def __init__(self, path, concepts, seed, held_out):
        z = np.load(path); free = [i for i, n in enumerate(z["names"]) if str(n) not in concepts]; kept = set(free[::20])
        self.sprites, self.rng, self.which = torch.from_numpy(z["sprites"]), random.Random(seed), [i for i in range(len(z["names"])) if (i in kept) == held_out]

    def batch(self, n):
        r, images = self.rng, []; color = lambda: r.choice(list(data.COLORS.values())) if r.random() < .6 else tuple(r.uniform(0, 255) for _ in range(3))
        for _ in range(n):
            top = color(); image = data.fill([top], [color() if r.random() < .4 else top], r.uniform(-.5, .5) * (r.random() < .3), LARGE)[0]
            for _ in range(r.randint(2, 7)): side = OWN if r.random() < .4 else r.randint(100, OWN); paste(image, resized(self.sprites[r.choice(self.which)], side), *(r.randint(-side // 4, LARGE - side * 3 // 4) for _ in "xy"))
            images.append(image)
        return torch.stack(images), [""] * n


class Captioned(data.Scenes):
    """The model's own scenes at the large size: two things at less than the art's own size, one at 1.5 to 2 times."""

    def batch(self, n):
        texts, images = [], []
        for _ in range(n):
            text, top, bottom, layout = self.scene(); image = data.fill([top], [bottom], size=LARGE)[0]; texts.append(text)
            for what, scale, cx, cy in layout: side = round(scale * LARGE); paste(image, resized(self.sprites[what], side), *(round((c + 1) / 2 * LARGE - side / 2) for c in (cx, cy)))
            images.append(image)
        return torch.stack(images), texts


def uniform(n, a, b): return torch.rand(n, 1, 1, 1) * (b - a) + a


def cloud(n, channels, cells): return F.interpolate(torch.randn(n, channels, cells, cells), size=(SIZE, SIZE), mode="bicubic")


class Small:
    """What the network is given for large pictures in [0, 1]: only made smaller ("plain"); out of focus and blotchy by degrees, as the model's pictures are ("soft"); what its autoencoder
    leaves of them ("model"); or the last steps of sampling ("sampled"). Edges stay where they are in the first two, and so the network dares to make them sharp."""

    def __init__(self):
        c = torch.load("autoencoder.pt"); self.net = make_vae(); self.net.load_state_dict(c["weights"]); self.net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.scale, self.sampled = c["scale"], Sampled(c["scale"])

    @torch.no_grad()
    def __call__(self, large, texts, kind):
        n = len(large); x = F.avg_pool2d(large, SCALE) if random.random() < .5 else F.interpolate(large, size=(SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        if kind == "soft":
            mask = (cloud(n, 1, random.randint(3, 12)) * 2 + .5).clamp(0, 1); x = mask * blur(x, random.uniform(.3, 1.5)) + (1 - mask) * blur(x, random.uniform(.3, 2.3))
            x = x + cloud(n, 3, random.choice([8, 16, 32])) * uniform(n, 0, .01) + torch.randn_like(x) * uniform(n, 0, .004)
        if kind in ("model", "sampled"):
            with torch.autocast("cpu", torch.bfloat16):
                z = self.net.encode((x * 2 - 1).contiguous(memory_format=torch.channels_last)).latent_dist.mean
                z = self.sampled(z, texts) if kind == "sampled" else z + torch.randn_like(z) * random.uniform(0, .1) / self.scale
                x = self.net.decode(z.contiguous(memory_format=torch.channels_last)).sample.float() / 2 + .5
        return x.clamp(0, 1)


class Pairs:
    """A store of large pictures with small ones for them, in 8 bits, renewed a little at every step."""

    def __init__(self, size, seed, held_out=False):
        concepts = data.read_concepts("concepts.txt"); self.small, self.rng = Small(), random.Random(seed)
        self.loose, self.captioned = Loose("sprites-256.npz", concepts, seed, held_out), Captioned("sprites-256.npz", concepts, seed=seed, two=.4)
        self.large, self.little, self.filled, self.next = torch.empty(size, 3, LARGE, LARGE, dtype=torch.uint8), torch.empty(size, 3, SIZE, SIZE, dtype=torch.uint8), 0, 0

    def make(self, n, loose, kind):
        large, texts = (self.loose if loose else self.captioned).batch(n); bits = lambda x: (x * 255).round().byte()
        return bits(large), bits(self.small(large, texts, kind))

    def renew(self, n):
        """The autoencoder does not know small art well enough: through it go the model's own scenes alone."""
        at = torch.arange(self.next, self.next + n) % len(self.large); kind = self.rng.choices(["plain", "soft", "model"], [.1, .6, .3])[0]
        self.large[at], self.little[at] = self.make(n, kind != "model" and self.rng.random() < .7, kind); self.next = int(at[-1] + 1) % len(self.large); self.filled = min(len(self.large), self.filled + n)

    def batch(self, n, side):
        """Parts of the pictures, turned and mirrored."""
        r, large, little = self.rng, [], []
        for _ in range(n):
            i, x, y, turn, flip = r.randrange(self.filled), r.randint(0, SIZE - side), r.randint(0, SIZE - side), r.randrange(4), r.random() < .5
            for all_, out, s in ((self.large, large, SCALE), (self.little, little, 1)):
                part = torch.rot90(all_[i, :, y * s:(y + side) * s, x * s:(x + side) * s], turn, (1, 2)); out.append(part.flip(2) if flip else part)
        return torch.stack(large).float() / 255, torch.stack(little).float() / 255


# ---- training ---------------------------------------------------------------------------------------------------------

def save(weights, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in weights.items()}, path + ".tmp", metadata={"format": "pt", "modelspec.title": "crisp", "modelspec.description": "Makes pictures of sd-worker's built-in model four times as large."}); os.replace(path + ".tmp", path)


def train(o):
    torch.manual_seed(1); random.seed(1); net = Compact(o.features, o.convs).to(memory_format=torch.channels_last); pairs = Pairs(o.store, 1)
    ends = {0: "conv_in.", 2 * o.convs + 2: "conv_out."}; opt = Optimizer([(ends.get(i, "") + k, p) for i, m in enumerate(net.body) for k, p in m.named_parameters()], o.lr)   # Muon leaves both ends to AdamW
    print(sum(p.numel() for p in net.parameters()), "parameters", flush=True); step, losses, begun = 0, [], time.time(); saved = begun
    if o.resume: net.load_state_dict({k: v.float() for k, v in load_file(o.resume).items()})
    ema = {k: v.clone() for k, v in net.state_dict().items()}
    while pairs.filled < o.first: pairs.renew(8)
    while (done := (time.time() - begun) / 60 / o.minutes) < 1:   # the rate falls to nothing at the end of the time
        if step % o.renew == 0: pairs.renew(8)
        large, little = pairs.batch(o.batch, o.side)
        with torch.autocast("cpu", torch.bfloat16): out = net(little.contiguous(memory_format=torch.channels_last))
        off = out - large; color = off - off.mean(1, keepdim=True); near, edge, tint = off.abs().mean(), sum(a.abs().mean() for a in slopes(off)), color.abs().mean() + sum(a.abs().mean() for a in slopes(color))
        loss = near + o.edge * edge + o.tint * tint; loss.backward(); torch.nn.utils.clip_grad_norm_(net.parameters(), 1.)
        opt.step(o.lr * min(1, (step + 1) / 50) * .5 * (1 + math.cos(math.pi * done))); opt.zero_grad(); net.carry(); step += 1
        now = net.state_dict(); torch._foreach_lerp_([ema[k] for k in now], list(now.values()), 1 - min(.995, 1 - 10 / (step + 10)))
        losses.append((near.item(), edge.item(), tint.item(), off.pow(2).mean().item()))
        if step % 50 == 0: a, b, c, d = (sum(v) / len(v) for v in zip(*losses)); print(time.strftime("%H:%M:%S"), "step", step, f"l1 {a:.5f}, edge {b:.5f}, tint {c:.5f}, psnr {-10 * math.log10(d):.2f}, {step / (time.time() - begun):.2f} steps/s, {pairs.filled} pictures", flush=True); losses = []
        if time.time() - saved > 120: save(ema, o.out); saved = time.time()
    save(ema, o.out); print(step, "steps,", step * o.batch, "parts of", pairs.next, "and more pictures,", os.path.getsize(o.out), "bytes")


@torch.no_grad()
def evaluate(o):
    torch.manual_seed(7); random.seed(7); t = {k: v.float() for k, v in load_file(o.out).items()}; pairs = Pairs(1, 7, held_out=True)
    net = Compact(t["body.0.weight"].shape[0], sum(v.ndim == 4 for v in t.values()) - 2); net.load_state_dict(t)
    from PIL import Image
    def pil(x, how): return torch.stack([torch.from_numpy(np.array(Image.fromarray(i.permute(1, 2, 0).numpy()).resize((LARGE, LARGE), how))).permute(2, 0, 1) for i in x])
    ways = dict(nearest=lambda x: pil(x, Image.NEAREST), bicubic=lambda x: pil(x, Image.BICUBIC), Lanczos=lambda x: pil(x, Image.LANCZOS), crisp=lambda x: (net(x.float() / 255).clamp(0, 1) * 255).round())
    for title, *how in (("art without a caption, held out, made smaller", True, "plain"), ("the same out of focus", True, "soft"), ("captioned scenes of another seed, through the autoencoder", False, "model"), ("and through the last steps of sampling", False, "sampled")):
        errors = {k: [] for k in ways}
        for _ in range(o.scenes // 8):
            large, little = pairs.make(8, *how)
            for k, f in ways.items(): errors[k] += (f(little).float() - large.float()).div(255).pow(2).mean((1, 2, 3)).tolist()
        print(f"{len(errors['crisp'])} x {title}:", ", ".join(f"{k} {sum(-10 * math.log10(e) for e in v) / len(v):.2f} dB" for k, v in errors.items()), flush=True)


if __name__ == "__main__":
    p = argparse.ArgumentParser(); p.add_argument("--out", default="../model/upscalers/crisp.safetensors", type=os.path.abspath); p.add_argument("--minutes", type=float, default=40.); p.add_argument("--batch", type=int, default=8); p.add_argument("--side", type=int, default=48, help="of a part, in small pixels")
    p.add_argument("--lr", type=float, default=2e-3); p.add_argument("--features", type=int, default=36); p.add_argument("--convs", type=int, default=10); p.add_argument("--edge", type=float, default=.3, help="weight of the slopes"); p.add_argument("--tint", type=float, default=1., help="weight of what differs in colour and not in lightness"); p.add_argument("--store", type=int, default=1600, help="pictures kept"); p.add_argument("--first", type=int, default=160, help="pictures before the first step")
    p.add_argument("--renew", type=int, default=24, help="every so many steps 8 pictures are new"); p.add_argument("--resume", type=os.path.abspath, help="goes on from this file, with a fresh optimizer and rate"); p.add_argument("--sheet", type=os.path.abspath); p.add_argument("--evaluate", action="store_true"); p.add_argument("--scenes", type=int, default=80)
    o = p.parse_args(); os.chdir(data.HERE)
    if o.sheet:
        from PIL import Image
        pairs = Pairs(16, 1); show = lambda x: np.concatenate(list(x.permute(0, 2, 3, 1).numpy()), 1); rows = []
        for how in ((True, "soft"), (False, "soft"), (False, "model"), (False, "sampled")): large, little = pairs.make(4, *how); rows += [show(large), show(F.interpolate(little, scale_factor=SCALE, mode="nearest"))]
        Image.fromarray(np.concatenate(rows)).save(o.sheet)
    elif o.evaluate: evaluate(o)
    else: train(o)
