"""Trains a LoRA that draws everything in ink: black lines and dark places on white paper. Only the UNet learns; the captions stay as they are.

  python train.py import --model DIR --steps 6700   # DIR: what `sd-worker models export builtin DIR` wrote; and sprites.npz is there
  python lora.py --minutes 20                       # ../model/loras/ink.safetensors, by kohya's names; --sheet FILE shows the training pictures only
"""
import argparse, json, math, os, random, time
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import data
from networks import *
from train import Store


# ---- pictures ---------------------------------------------------------------------------------------------------------

def blur(x, s):
    r = int(3 * s + .5); k = torch.exp(-torch.arange(-r, r + 1.) ** 2 / (2 * s * s)); k = (k / k.sum()).expand(x.shape[1], 1, -1)
    x = F.pad(x, (r, r, r, r), mode="replicate")
    return F.conv2d(F.conv2d(x, k[:, :, None, :], groups=x.shape[1]), k[:, :, :, None], groups=x.shape[1])


def grow(x, r): return F.max_pool2d(x, 2 * r + 1, 1, r)


def close(x, r): return -grow(-grow(x, r), r)   # what is dark and narrower than 2 r + 1 disappears


def edges(x, weak=.025, strong=.05):
    """Canny's edges, one pixel wide: the ridges of the steepest channel's slope that are steep somewhere."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate"); gx, gy = (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) / 2, (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) / 2
    slope, at = (gx ** 2 + gy ** 2).sqrt().max(1, keepdim=True); ux, uy = gx.gather(1, at) / (slope + 1e-6), gy.gather(1, at) / (slope + 1e-6)
    y, x = torch.meshgrid(*[torch.arange(SIZE) + .5] * 2, indexing="ij")
    beside = lambda d: F.grid_sample(slope, torch.stack([(x + d * ux[:, 0]) / SIZE, (y + d * uy[:, 0]) / SIZE], -1) * 2 - 1, align_corners=False)
    ridge = (slope >= beside(1)) & (slope >= beside(-1)); on, may = (ridge & (slope > strong)).float(), (ridge & (slope > weak)).float()
    for _ in range(30): on = grow(on, 1) * may
    return on


def ink(layer):
    """An ink drawing of premultiplied RGBA: small dark places are black, everything else is outlines. The autoencoder keeps lines of three pixels or more,
    and makes a blot of finer ones that lie close together, so that gaps between lines are closed here already where they are too narrow."""
    paper = data.over(layer, torch.ones(1)); light = (paper * torch.tensor([.3, .5, .2]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    dark = (blur((close(light, 5) - light > .25).float(), .8) > .5).float()
    plain = torch.where(grow(dark, 3) > 0, close(paper, 7), paper)   # dark places have no outlines of their own
    lines = edges(blur(torch.cat([plain, layer[:, 3:]], 1), 1.8)) * (1 - grow(dark, 1))
    black = torch.maximum(blur(lines, 1.4) * 4.8, grow(dark, 1)).clamp(0, 1)
    return 1 - ((blur(close(black, 1), .8) - .5) * 3 + .5).clamp(0, 1).expand(-1, 3, -1, -1)


class Drawings(data.Scenes):
    """The scenes with their captions, as drawings on white paper."""

    def draw(self, scenes):
        texts, _, _, layouts = zip(*scenes); image = torch.ones(len(scenes), 3, SIZE, SIZE)
        for k in range(2):
            rows = [i for i, l in enumerate(layouts) if len(l) > k]
            if rows: what, *where = zip(*[layouts[i][k] for i in rows]); image[rows] = image[rows].minimum(ink(data.place(self.sprites[list(what)], *where)))
        return image * 2 - 1, list(texts)


# ---- layers -----------------------------------------------------------------------------------------------------------

class Lora(nn.Module):
    """A layer and its change of low rank; alpha is the rank, so the factor between them is 1."""

    def __init__(self, layer, rank):
        super().__init__(); self.layer = layer
        if isinstance(layer, nn.Linear): self.down, self.up = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
        else: self.down, self.up = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, bias=False), nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5)); nn.init.zeros_(self.up.weight)

    def forward(self, x, *_, **__): return self.layer(x) + self.up(self.down(x))


def attach(unet, rank, conv_rank):
    """Puts a Lora around every layer of the transformers and every convolution of the blocks."""
    loras = {}
    for name, layer in list(unet.named_modules()):
        if isinstance(layer, nn.Linear) and ".transformer_blocks." in name: r = rank
        elif isinstance(layer, nn.Conv2d) and "_block" in name: r = rank if layer.kernel_size == (1, 1) else conv_rank
        else: continue
        parent, _, last = name.rpartition("."); loras[name] = Lora(layer, r); setattr(unet.get_submodule(parent), last, loras[name])
    return loras


def kohya(name): return "lora_unet_" + name.replace(".", "_")


def save(loras, path, o):
    tensors = {}
    for name, l in loras.items():
        key = kohya(name); rank = len(l.down.weight)
        tensors |= {f"{key}.lora_down.weight": l.down.weight.detach().half().contiguous(), f"{key}.lora_up.weight": l.up.weight.detach().half().contiguous(), f"{key}.alpha": torch.tensor(float(rank)).half()}
    os.makedirs(os.path.dirname(path), exist_ok=True); name = os.path.basename(path).removesuffix(".safetensors")
    save_file(tensors, path, metadata=dict(format="pt", ss_output_name=name, ss_network_module="networks.lora", ss_network_dim=str(o.rank), ss_network_alpha=str(o.rank), ss_network_args=json.dumps(dict(conv_dim=str(o.conv_rank), conv_alpha=str(o.conv_rank))),
              ss_base_model_version="sd_v1", ss_v2="False", ss_resolution=f"({SIZE}, {SIZE})", **{"modelspec.title": "Ink drawings", "modelspec.description": "Black lines on white paper, for sd-worker's built-in model.", "modelspec.prediction_type": "v"}))


def train(o):
    from diffusers.models.attention_processor import AttnProcessor
    torch.manual_seed(1); random.seed(1); d, tok = torch.load("unet.pt"), load_tokenizer(); unet, text = make_unet(), make_text(tok); unet.load_state_dict(d["ema"]["unet"]); text.load_state_dict(d["ema"]["text"])
    unet.requires_grad_(False); text.requires_grad_(False); loras = attach(unet, o.rank, o.conv_rank); unet.to(memory_format=torch.channels_last); unet.set_attn_processor(AttnProcessor()); text.set_attn_implementation("eager")
    params = [p for p in unet.parameters() if p.requires_grad]; opt = torch.optim.AdamW(params, o.lr, betas=(.9, .99), weight_decay=0.); print(len(loras), "layers,", sum(p.numel() for p in params), "parameters", flush=True)
    if o.resume:
        t = load_file(o.resume)
        for name, l in loras.items(): l.down.weight.data.copy_(t[kohya(name) + ".lora_down.weight"]); l.up.weight.data.copy_(t[kohya(name) + ".lora_up.weight"])
    begun = time.time(); store = Store(Drawings("sprites.npz", data.read_concepts("concepts.txt"), seed=1), tok, 12000, "drawings.pt"); alphas, empty = make_scheduler().alphas_cumprod, tokens(tok, [""]); n, step, losses = o.batch, 0, []
    while store.filled < o.first: store.renew(32)
    while (done := (time.time() - begun) / 60 / o.minutes) < 1:   # the rate falls to nothing at the end of the time
        for g in opt.param_groups: g["lr"] = o.lr * min(1, (step + 1) / 20) * .5 * (1 + math.cos(math.pi * done))
        store.renew(max(1, n // 6)); x, ids = store.batch(n); ids = torch.where(torch.rand(n, 1) < .1, empty, ids)
        t = ((torch.arange(n) + torch.rand(n)) / n * 1000).long().clamp(0, 999); t[torch.rand(n) < .06] = 999
        a = alphas[t].view(-1, 1, 1, 1); noise = torch.randn_like(x); noisy, v = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        with torch.autocast("cpu", torch.bfloat16): out = unet(noisy.contiguous(memory_format=torch.channels_last), t, text(ids).last_hidden_state).sample
        loss = (out.float() - v).pow(2).mean(); loss.backward(); torch.nn.utils.clip_grad_norm_(params, 1.); opt.step(); opt.zero_grad(); step += 1; losses.append(loss.item())
        if step % 25 == 0: print(time.strftime("%H:%M:%S"), "step", step, f"mse {sum(losses) / len(losses):.4f}, {step * n / (time.time() - begun):.1f} images/s", flush=True); losses = []
        if step % 100 == 0: save(loras, o.out, o)
    save(loras, o.out, o); print(step, "steps,", step * n, "pictures,", os.path.getsize(o.out), "bytes")


if __name__ == "__main__":
    p = argparse.ArgumentParser(); p.add_argument("--out", default="../model/loras/ink.safetensors", type=os.path.abspath); p.add_argument("--minutes", type=float, default=20.); p.add_argument("--batch", type=int, default=32); p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--rank", type=int, default=8); p.add_argument("--conv-rank", type=int, default=4); p.add_argument("--sheet", type=os.path.abspath)
    p.add_argument("--first", type=int, default=512, help="drawings before the first step"); p.add_argument("--resume", type=os.path.abspath, help="goes on from this file, with a fresh optimizer and rate")
    o = p.parse_args(); os.chdir(data.HERE)
    if o.sheet:
        from PIL import Image
        from export import sheet
        x, texts = Drawings("sprites.npz", data.read_concepts("concepts.txt"), seed=1).batch(48); print(*texts, sep="\n"); sheet([Image.fromarray(((i + 1) * 127.5).byte().permute(1, 2, 0).numpy()) for i in x], o.sheet, 12)
    else: train(o)
