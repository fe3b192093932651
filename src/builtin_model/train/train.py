"""Trains the autoencoder, then the UNet together with the text encoder. Every stage resumes from its checkpoint.

  python train.py vae  --steps 5000      # vae.pt, and in the end autoencoder.pt, its moving average with latents brought to one size
  python train.py unet --steps 200000    # unet.pt, and latents.pt, the pictures in store
  python train.py import --model DIR --steps 1831   # instead of both: goes on from an exported directory of so many UNet steps; autoencoder.pt, unet.pt, tokenizer
  python train.py decoder --steps 3000   # later: trains the decoder alone, on what the UNet of unet.pt makes of noisy latents; decoder.pt, autoencoder-sharp.pt
"""
import argparse, math, os, random, time
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import torch.nn.functional as F

import data, fast_norm
from networks import *
from optimizer import Optimizer

WARM = 200   # steps until the full learning rate

torch.set_flush_denormal(True)
fast_norm.install()


class Run:
    """Learning rate, moving average, log and checkpoint of one stage. Progress counts in steps, so that pauses cost nothing."""

    def __init__(self, path, modules, total, rate, keep):
        self.path, self.modules, self.total, self.rate, self.keep = path, modules, total, rate, keep
        named = [(f"{k}.{n}", p) for k, m in modules.items() for n, p in m.named_parameters() if p.requires_grad]
        self.params, self.opt, self.step, self.begun, self.losses = [p for _, p in named], Optimizer(named, rate(0)), 0, 0, {}
        if os.path.exists(path):
            c = torch.load(path); self.step, self.begun = c["step"], c.get("begun", 0)   # begun: where the optimizer began, at the first step or that of an import
            if c["opt"]: self.opt.load_state_dict(c["opt"])
            for k, m in modules.items(): m.load_state_dict(c["weights"][k])
            self.ema = c["ema"]; self.say("resumed")
        else: self.ema = {k: {n: w.clone() for n, w in m.state_dict().items()} for k, m in modules.items()}
        self.saved, self.shown, self.start = time.time(), self.step, time.time()

    def say(self, *what): print(time.strftime("%H:%M:%S"), "step", self.step, *what, flush=True)

    def going(self): return self.step < self.total

    def update(self, loss, batch, **losses):
        loss.backward(); torch.nn.utils.clip_grad_norm_(self.params, 1.)
        lr = self.rate(self.step) * min(1, (self.step - self.begun + 1) / WARM); self.opt.step(lr); self.opt.zero_grad(); self.step += 1
        if self.step % 4 == 0:
            keep = min(self.keep, 1 - 10 / (self.step + 10)) ** 4
            for k, m in self.modules.items():
                now = m.state_dict(); torch._foreach_lerp_([self.ema[k][n] for n in now], list(now.values()), 1 - keep)
        for k, v in losses.items(): self.losses.setdefault(k, []).append(v.item() if torch.is_tensor(v) else v)
        if self.step % 50 == 0:
            rate = (self.step - self.shown) * batch / (time.time() - self.start); self.shown, self.start = self.step, time.time()
            self.say(*(f"{k} {sum(v) / len(v):.4f}" for k, v in self.losses.items()), f"lr {lr:.1e}, {rate:.1f} images/s"); self.losses = {}
        if time.time() - self.saved > 120 or not self.going(): self.save()

    def save(self):
        torch.save(dict(weights={k: m.state_dict() for k, m in self.modules.items()}, ema=self.ema, opt=self.opt.state_dict(), step=self.step, begun=self.begun), self.path + ".tmp")
        os.replace(self.path + ".tmp", self.path); self.saved = time.time()


def slopes(t): return t[..., 1:, :] - t[..., :-1, :], t[..., 1:] - t[..., :-1]


def train_vae(o):
    if os.path.exists("autoencoder.pt"): return print("autoencoder.pt is there")
    art, net = data.Art("sprites.npz"), make_vae().to(memory_format=torch.channels_last); lr = o.lr or 2e-3
    run = Run("vae.pt", dict(vae=net), o.steps, lambda i: lr * max(.03, .5 * (1 + math.cos(math.pi * min(1, i / o.steps)))), .998)
    while run.going():
        x = art.batch(o.batch or 8).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            q = net.encode(x).latent_dist; y = net.decode(q.sample()).sample
        y = y.float(); near, square = (y - x).abs().mean(), (y - x).pow(2).mean()
        edge = sum((a - b).abs().mean() for s in (1, 2) for a, b in zip(slopes(F.avg_pool2d(y, s)), slopes(F.avg_pool2d(x, s))))
        flat = (F.avg_pool2d(y, 8) - F.avg_pool2d(x, 8)).abs().mean()
        kl = q.kl().mean() / q.mean[0].numel()
        run.update(near + square + edge + .5 * flat + 2e-3 * min(1, run.step / 1000) * kl, len(x), l1=near, psnr=-10 * math.log10(square.item() / 4), edge=edge, kl=kl)
    finish_vae(run.ema["vae"])


@torch.no_grad()
def finish_vae(weights):
    """Moves every latent channel to mean 0 and one common deviation, by the 1 x 1 convolutions on both sides: pictures stay the same."""
    net = make_vae(); net.load_state_dict(weights); net.eval().to(memory_format=torch.channels_last); scenes = scenes_of("concepts.txt", seed=1)
    z = torch.cat([net.encode(scenes.batch(50)[0]).latent_dist.mean for _ in range(20)])
    mean, each, common = z.mean((0, 2, 3)), z.std((0, 2, 3)), z.std((0, 2, 3)).pow(2).mean().sqrt(); gain = common / each; q, p = net.quant_conv, net.post_quant_conv
    q.weight[:4] *= gain.view(-1, 1, 1, 1); q.bias[:4] = (q.bias[:4] - mean) * gain; q.bias[4:] += 2 * gain.log()
    p.bias += p.weight[:, :, 0, 0] @ mean; p.weight /= gain.view(1, -1, 1, 1)
    torch.save(dict(weights=net.state_dict(), scale=float(1 / common)), "autoencoder.pt"); print("latents had mean", mean, "and deviation", each, flush=True)


def scenes_of(concepts, **options):
    return data.Scenes("sprites.npz", data.read_concepts(concepts), **options)


class Store:
    """Encoded pictures and their captions: starts small, is renewed a little at every step, and serves random batches."""

    def __init__(self, scenes, tok, size, path="latents.pt"):
        c = torch.load("autoencoder.pt"); self.net = make_vae(); self.net.load_state_dict(c["weights"]); self.net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.scale, self.scenes, self.tok, self.path, self.filled, self.next = c["scale"], scenes, tok, path, 0, 0
        self.latents, self.ids = torch.empty(size, 4, LATENT, LATENT, dtype=torch.bfloat16), torch.empty(size, LENGTH, dtype=torch.int16)
        if os.path.exists(path):
            s = torch.load(path); n = min(size, len(s["ids"])); self.latents[:n], self.ids[:n] = s["latents"][:n], s["ids"][:n]; self.filled = n; self.next = n % size

    @torch.no_grad()
    def renew(self, n):
        x, captions = self.scenes.batch(n); at = torch.arange(self.next, self.next + n) % len(self.ids)
        with torch.autocast("cpu", torch.bfloat16): z = self.net.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        self.latents[at] = (z.float() * self.scale).bfloat16(); self.ids[at] = tokens(self.tok, captions).short()
        self.next = int(at[-1] + 1) % len(self.ids); self.filled = min(len(self.ids), self.filled + n)

    def batch(self, n):
        i = torch.randint(0, self.filled, (n,)); return self.latents[i].float(), self.ids[i].long()

    def save(self):
        torch.save(dict(latents=self.latents[:self.filled].clone(), ids=self.ids[:self.filled].clone()), self.path + ".tmp"); os.replace(self.path + ".tmp", self.path)


def make_critic():
    """Judges patches of about 30 pixels."""
    from torch.nn import Conv2d, GroupNorm, LeakyReLU, Sequential
    return Sequential(Conv2d(3, 32, 4, 2, 1), LeakyReLU(.2), Conv2d(32, 64, 4, 2, 1), GroupNorm(8, 64), LeakyReLU(.2), Conv2d(64, 128, 4, 2, 1), GroupNorm(8, 128), LeakyReLU(.2), Conv2d(128, 1, 3, 1, 1))


class Sampled:
    """What sampling leaves of latents: noise of one of the last of twelve steps, taken away again by the UNet, with guidance. So the decoder sees what it will be given, at the places where the picture has it."""

    def __init__(self, scale, steps=12, last=3, guidance=3.):
        d, self.tok, self.scale, self.guidance = torch.load("unet.pt"), load_tokenizer(), scale, guidance; self.unet, self.text = make_unet().to(memory_format=torch.channels_last), make_text(self.tok)
        self.unet.load_state_dict(d["ema"]["unet"]); self.text.load_state_dict(d["ema"]["text"]); scheduler = make_scheduler(); scheduler.set_timesteps(steps)
        self.times = scheduler.timesteps[-last:].tolist(); self.alphas = [scheduler.alphas_cumprod[t].item() for t in self.times] + [scheduler.final_alpha_cumprod.item()]
        with torch.autocast("cpu", torch.bfloat16): self.empty = self.text(tokens(self.tok, [""])).last_hidden_state.detach()

    def __call__(self, z, captions):
        begin = random.randint(0, len(self.times))   # at the end: not at all
        if begin == len(self.times): return z
        text = torch.cat([self.empty.expand(len(z), -1, -1), self.text(tokens(self.tok, captions)).last_hidden_state]); a = self.alphas[begin]; x = a ** .5 * z.float() * self.scale + (1 - a) ** .5 * torch.randn(z.shape)
        for t, a, after in zip(self.times[begin:], self.alphas[begin:], self.alphas[begin + 1:]):
            without, with_text = self.unet(torch.cat([x, x]).contiguous(memory_format=torch.channels_last), t, text).sample.float().chunk(2); v = without + self.guidance * (with_text - without)
            x = after ** .5 * (a ** .5 * x - (1 - a) ** .5 * v) + (1 - after) ** .5 * ((1 - a) ** .5 * x + a ** .5 * v)
        return x / self.scale


def train_decoder(o):
    """The encoder stays, so the UNet need not learn anything again. With `--critic` above 0, a critic has a say as well."""
    c = torch.load("autoencoder.pt"); net, critic = make_vae(), make_critic().to(memory_format=torch.channels_last); net.load_state_dict(c["weights"]); net.to(memory_format=torch.channels_last)
    net.encoder.requires_grad_(False); net.quant_conv.requires_grad_(False); scenes, sampled, lr, n = scenes_of(o.concepts), Sampled(c["scale"]), o.lr or 1e-3, o.batch or 8
    rate = lambda i: lr * min(1, (o.steps - i) / max(1, o.cool)); run = Run("decoder.pt", dict(vae=net), o.steps, rate, o.keep)
    if o.critic: other = Run("critic.pt", dict(critic=critic), 10 ** 9, lambda i: 3e-4, .9)
    while run.going():
        x, captions = scenes.batch(n); x = x.contiguous(memory_format=torch.channels_last); critic.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad(): z = sampled(net.encode(x).latent_dist.mean, captions)
            y = net.decode(z).sample; fooled = -critic(y).float().mean() if o.critic else torch.zeros(())
        y = y.float(); near, square = (y - x).abs().mean(), (y - x).pow(2).mean(); flat = (F.avg_pool2d(y, 8) - F.avg_pool2d(x, 8)).abs().mean()
        edge = sum((a - b).abs().mean() for s in (1, 2) for a, b in zip(slopes(F.avg_pool2d(y, s)), slopes(F.avg_pool2d(x, s))))
        run.update(near + square + edge + .5 * flat + o.critic * fooled, n, l1=near, edge=edge, fooled=fooled, psnr=-10 * math.log10(square.item() / 4))
        if not o.critic: continue
        critic.requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16): real, fake = critic(x).float(), critic(y.detach()).float()
        other.update(F.relu(1 - real).mean() + F.relu(1 + fake).mean(), n, real=real.mean(), fake=fake.mean())
    if o.critic: other.save()
    torch.save(dict(weights=run.ema["vae"], scale=c["scale"]), "autoencoder-sharp.pt")


def train_unet(o):
    from diffusers.models.attention_processor import AttnProcessor
    tok, lr, n = load_tokenizer(), o.lr or 1.5e-3, o.batch or 64
    unet, text = make_unet().to(memory_format=torch.channels_last), make_text(tok)
    unet.set_attn_processor(AttnProcessor()); text.set_attn_implementation("eager")  # plain attention: for so few tokens, its backward pass is the quicker one here
    run = Run("unet.pt", dict(unet=unet, text=text), o.steps, lambda i: lr / (1 + i / o.slow) ** .5 * min(1, (o.steps - i) / max(1, o.cool)), o.keep)
    store = Store(scenes_of(o.concepts, two=o.two, known=o.known, favour=o.favour), tok, o.store); alphas, empty = make_scheduler().alphas_cumprod, tokens(tok, [""])
    while store.filled < 2000: store.renew(50)
    while run.going():
        store.renew(max(1, n // o.renew)); x, ids = store.batch(n); ids = torch.where(torch.rand(n, 1) < .1, empty, ids)
        t = ((torch.arange(n) + torch.rand(n)) / n * 1000).long().clamp(0, 999); t[torch.rand(n) < .06] = 999   # evenly over time, and more of the first step, which decides what goes where
        a = alphas[t].view(-1, 1, 1, 1); noise = torch.randn_like(x); noisy, v = a.sqrt() * x + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x
        with torch.autocast("cpu", torch.bfloat16): out = unet(noisy.contiguous(memory_format=torch.channels_last), t, text(ids).last_hidden_state).sample
        each = (out.float() - v).pow(2).mean((1, 2, 3)); third = lambda k: each[(t * 3 // 1000) == k].mean().item()
        run.update(each.mean(), n, mse=each.mean(), low=third(0), mid=third(1), high=third(2))
        if run.step % 1000 == 0: store.save()


def import_model(o):
    """An exported directory holds moving averages only: training takes them as weights, with a fresh optimizer and a new warm-up."""
    from diffusers import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained(o.model, torch_dtype=torch.float32, local_files_only=True); pipe.tokenizer.save_pretrained("tokenizer")
    weights = dict(unet=pipe.unet.state_dict(), text=pipe.text_encoder.state_dict())
    torch.save(dict(weights=pipe.vae.state_dict(), scale=pipe.vae.config.scaling_factor), "autoencoder.pt")
    torch.save(dict(weights=weights, ema=weights, opt=None, step=o.steps, begun=o.steps), "unet.pt"); print("goes on from step", o.steps)


if __name__ == "__main__":
    p = argparse.ArgumentParser(); p.add_argument("stage", choices=["vae", "unet", "decoder", "import"]); p.add_argument("--steps", type=int, required=True); p.add_argument("--batch", type=int); p.add_argument("--lr", type=float)
    p.add_argument("--concepts", default="concepts.txt"); p.add_argument("--two", type=float, default=.3, help="share of pictures with two things"); p.add_argument("--slow", type=int, default=8000, help="the rate falls as 1 / sqrt(1 + step / this)")
    p.add_argument("--cool", type=int, default=0, help="over the last so many steps the rate falls to nothing as well"); p.add_argument("--keep", type=float, default=.9995, help="of the moving average, at every step")
    p.add_argument("--known", type=int, help="concepts known already, from the first"); p.add_argument("--favour", type=float, default=1., help="how much more often the others are drawn")
    p.add_argument("--store", type=int, default=60000, help="encoded pictures kept"); p.add_argument("--renew", type=int, default=8, help="every step encodes one new picture for so many in its batch")
    p.add_argument("--critic", type=float, default=0., help="weight of the critic's opinion of the decoder")
    p.add_argument("--model", type=os.path.abspath, help="import: the exported directory")
    o = p.parse_args(); os.chdir(os.path.dirname(os.path.abspath(__file__)))
    {"vae": train_vae, "unet": train_unet, "decoder": train_decoder, "import": import_model}[o.stage](o)
