"""Writes the trained model as a diffusers directory (moving averages, 16-bit floats), and a contact sheet of fixed prompts.

  python export.py --out export      # StableDiffusionPipeline.from_pretrained("export") loads it
"""
import argparse, os, shutil
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch

from networks import *


def load_pipeline(autoencoder="autoencoder.pt", denoiser="unet.pt"):
    from diffusers import StableDiffusionPipeline
    tok, a, d = load_tokenizer(), torch.load(autoencoder), torch.load(denoiser)
    vae, unet, text = make_vae(), make_unet(), make_text(tok)
    vae.load_state_dict(a["weights"]); unet.load_state_dict(d["ema"]["unet"]); text.load_state_dict(d["ema"]["text"]); vae.register_to_config(scaling_factor=a["scale"])
    print("UNet at step", d["step"], flush=True)
    return StableDiffusionPipeline(vae=vae, unet=unet, text_encoder=text, tokenizer=tok, scheduler=make_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def generate(pipe, prompts, steps=12, guidance=3., seed=1, batch=48):
    """One picture for each prompt; prompt number i always begins from the same noise."""
    pipe.set_progress_bar_config(disable=True); images = []
    for k in range(0, len(prompts), batch):
        some = prompts[k:k + batch]
        images += pipe(some, num_inference_steps=steps, guidance_scale=guidance, height=SIZE, width=SIZE, generator=[torch.Generator().manual_seed(seed * 100003 + k + i) for i in range(len(some))]).images
    return images


def sheet(images, path, columns=6):
    from PIL import Image
    out = Image.new("RGB", (columns * SIZE, -(-len(images) // columns) * SIZE))
    for i, im in enumerate(images): out.paste(im, (i % columns * SIZE, i // columns * SIZE))
    out.save(path)


if __name__ == "__main__":
    p = argparse.ArgumentParser(); p.add_argument("--out", default="export"); p.add_argument("--steps", type=int, default=12); p.add_argument("--guidance", type=float, default=3.); p.add_argument("--prompts", default="prompts.txt")
    p.add_argument("--only-sheet", action="store_true"); p.add_argument("--autoencoder", default="autoencoder.pt")
    o = p.parse_args(); os.chdir(os.path.dirname(os.path.abspath(__file__))); pipe = load_pipeline(o.autoencoder)
    if not o.only_sheet:
        new = o.out + ".new"; shutil.rmtree(new, ignore_errors=True); pipe.to(dtype=torch.float16).save_pretrained(new, safe_serialization=True)
        shutil.rmtree(o.out, ignore_errors=True); os.rename(new, o.out); pipe.to(dtype=torch.float32)
        print({k: round(sum(p.numel() for p in getattr(pipe, k).parameters()) / 1e6, 2) for k in ("text_encoder", "unet", "vae")}, "million parameters")
    sheet(generate(pipe, open(o.prompts).read().strip().split("\n"), o.steps, o.guidance), f"{o.out}-sheet.png")
