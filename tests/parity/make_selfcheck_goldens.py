"""Writes src/builtin_model/goldens.safetensors, what `sd-worker selfcheck` compares a device with: the built-in model in diffusers, in f32.

  pip install torch diffusers transformers accelerate && python tests/parity/make_selfcheck_goldens.py

It prints what diffusers itself is off by in f16 and bf16, on this CPU, which the limits in src/backend/selfcheck.rs are made of.
"""
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from make_goldens import FOX, ROOT, export_builtin

TOKENS = 24  # of 77: in the others there is no more than padding
CORNER = 4  # of 8 latents along each side: what the decoder is compared by


@torch.no_grad()
def stages(path, dtype, given=None):
    """Every golden; the VAE sees what is `given`, so that it is compared alone."""
    pipe = StableDiffusionPipeline.from_pretrained(path, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    passes = []
    hook = pipe.unet.register_forward_hook(lambda unet, inputs, output: passes.append(output[0]))
    positive, negative = pipe.encode_prompt(FOX["prompt"], "cpu", 1, True, FOX["negative_prompt"])
    settings = {key: FOX[key] for key in ("guidance_scale", "width", "height")} | dict(num_inference_steps=FOX["steps"], generator=torch.Generator().manual_seed(FOX["seed"]))
    latents = pipe(FOX["prompt"], negative_prompt=FOX["negative_prompt"], output_type="latent", **settings).images
    hook.remove()
    decode = lambda latents: pipe.vae.decode(latents.to(dtype) / pipe.vae.config.scaling_factor).sample.float()
    picture = ((decode(latents)[0].permute(1, 2, 0) / 2 + .5).clamp(0, 1) * 255).round().to(torch.uint8)
    found = dict(text_embeddings=torch.cat([negative, positive])[:, :TOKENS].float(), unet=passes[0].float(), latents=latents.float(), picture=picture)
    given = given or found
    pixels = given["picture"].float().permute(2, 0, 1)[None] / 255 * 2 - 1
    found["decoded"] = decode(given["latents"][..., :CORNER, :CORNER])
    found["encoded"] = (pipe.vae.encode(pixels.to(dtype)).latent_dist.mean * pipe.vae.config.scaling_factor).float()
    return {name: tensor.contiguous() for name, tensor in found.items()}


def main():
    with export_builtin() as model:
        goldens = stages(model, torch.float32)
        for dtype in torch.float16, torch.bfloat16:
            off = lambda ours, golden: ((ours.float() - golden.float()).abs().max() / golden.float().abs().max()).item()
            print(dtype, {name: f"{off(tensor, goldens[name]):.1e}" for name, tensor in stages(model, dtype, goldens).items()})
    save_file(goldens, ROOT / "src/builtin_model/goldens.safetensors")


if __name__ == "__main__":
    main()
