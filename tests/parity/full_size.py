"""Writes models of random weights in the true size of Stable Diffusion 1.5, 2.1 and SDXL with diffusers, runs both, and prints the errors.

  pip install torch diffusers transformers accelerate && cargo build --release && python tests/parity/full_size.py --work DIR

By hand, not in CI: DIR keeps the models (2 to 7 GB each, in f16), and diffusers takes up to 19 GiB of memory for SDXL. Everything is worked out in
f32 on both sides; sd-worker keeps the weights in f16, as the files have them, which changes no number.

With --memory 512,1024 it prints the most memory that sd-worker takes at these sizes instead, for one step with guidance and each of --dtypes.
"""
import argparse, gc, json, os, pathlib, shutil, subprocess, tempfile

import numpy, torch
from diffusers import (AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel)
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from make_family_goldens import BETAS, tokenizer

WORKER = pathlib.Path(__file__).parents[2] / "target/release/sd-worker"
PROMPT, NEGATIVE, GUIDANCE, SEED = "An owl and a PIZZA, on yellow!", "red, blurry", 5., 7
CLIP_L = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu", eos_token_id=2)
CLIP_G = dict(vocab_size=49408, hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu", projection_dim=1280, eos_token_id=2)
CLIP_H = dict(vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu", eos_token_id=2)
XL_UNET = dict(sample_size=128, block_out_channels=(320, 640, 1280), down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
               transformer_layers_per_block=[1, 2, 10], attention_head_dim=[5, 10, 20], cross_attention_dim=2048, use_linear_projection=True, addition_embed_type="text_time",
               addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816)


def vae(scaling_factor):
    return AutoencoderKL(block_out_channels=(128, 256, 512, 512), down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2,
                         latent_channels=4, scaling_factor=scaling_factor)


SHAPES = {
    "sd15": dict(text_encoder=lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L)), unet=lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8), vae=lambda: vae(.18215)),
    "sd21": dict(text_encoder=lambda: CLIPTextModel(CLIPTextConfig(**CLIP_H)), vae=lambda: vae(.18215),
                 unet=lambda: UNet2DConditionModel(sample_size=96, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)),
    "sdxl": dict(text_encoder=lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L)), text_encoder_2=lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G)),
                 unet=lambda: UNet2DConditionModel(**XL_UNET), vae=lambda: vae(.13025)),
}


def write(name, path):
    """One part after the other, so that no more than the largest is in memory."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    for part, make in SHAPES[name].items():
        make().save_pretrained(path / part)
        gc.collect()
    torch.set_default_dtype(torch.float32)
    xl = name == "sdxl"
    for folder, pad in [("tokenizer", "<|endoftext|>")] + [("tokenizer_2", "!")] * xl:
        tokenizer(path / "words" / folder, pad).save_pretrained(path / folder)
    shutil.rmtree(path / "words")
    EulerDiscreteScheduler(timestep_spacing="leading", **BETAS).save_pretrained(path / "scheduler")
    index = {"_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline", "scheduler": ["diffusers", "EulerDiscreteScheduler"], "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "CLIPTokenizer"], "force_zeros_for_empty_prompt": True} if xl else {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    (path / "model_index.json").write_text(json.dumps(index))


@torch.no_grad()
def reference(name, path, o):
    """What diffusers makes of it: the text first, then the rest, so that not all is in memory at once."""
    kind = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_pretrained(path, unet=None, vae=None, torch_dtype=torch.float32)
    encoded = pipe.encode_prompt(PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=NEGATIVE)
    del pipe; gc.collect()
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    without = dict(text_encoder=None, tokenizer=None) | (dict(text_encoder_2=None, tokenizer_2=None) if name == "sdxl" else {})
    pipe = kind.from_pretrained(path, **without, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    latents = []
    keep = lambda pipe, step, t, kw: latents.append(kw["latents"].clone()) or {}
    image = pipe(**dict(zip(names, encoded)), guidance_scale=GUIDANCE, num_inference_steps=o.steps, width=o.size, height=o.size, generator=torch.Generator().manual_seed(SEED),
                 callback_on_step_end=keep, output_type="np").images[0]
    return torch.cat([encoded[1], encoded[0]]), latents, (image * 255).round()


def ours(path, o):
    with tempfile.TemporaryDirectory() as out:
        picture, tensors = f"{out}/x.png", f"{out}/x.safetensors"
        subprocess.run([WORKER, "generate", PROMPT, "--negative-prompt", NEGATIVE, "--guidance-scale", str(GUIDANCE), "--seed", str(SEED), "--steps", str(o.steps), "--width", str(o.size), "--height", str(o.size),
                        "--sampler", "euler", "--schedule", "default", "--model", path, "--dtype", "f16", "--save-latents", tensors, "-o", picture], check=True)
        kept = load_file(tensors)
        return kept["text_embeddings"], [kept[f"latents.{i}"] for i in range(1, o.steps + 1)], numpy.array(Image.open(picture).convert("RGB"), dtype=float)


def peak(path, size, dtype, *more):
    """GiB that a run takes at its most, what is mapped of the files among them."""
    with tempfile.TemporaryDirectory() as out:
        run = subprocess.Popen([WORKER, "generate", PROMPT, "--guidance-scale", str(GUIDANCE), "--seed", str(SEED), "--steps", "1", "--width", str(size), "--height", str(size),
                                "--max-pixels", str(1 << 24), "--model", path, "--dtype", dtype, *more, "-o", f"{out}/x.png"])
        _, status, usage = os.wait4(run.pid, 0)
        assert status == 0
        return usage.ru_maxrss / 2**20


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=pathlib.Path, required=True, help="keeps the models")
    p.add_argument("--models", default=",".join(SHAPES)); p.add_argument("--size", type=int, default=256); p.add_argument("--steps", type=int, default=2)
    p.add_argument("--memory", help="sizes"); p.add_argument("--dtypes", default="f32,f16")
    o = p.parse_args()
    for name in o.models.split(","):
        path = o.work / name
        if not (path / "model_index.json").exists():
            write(name, path)
        if o.memory:
            figures = [f"{size} x {size} in {dtype}: {peak(path, size, dtype):.1f} GiB" for dtype in o.dtypes.split(",") for size in o.memory.split(",")]
            print(f"{name}: {', '.join(figures)}", flush=True)
            continue
        (text, latents, image), (our_text, our_latents, our_image) = reference(name, path, o), ours(path, o)
        off = lambda a, b: ((a - b).abs().max() / b.abs().max()).item()
        print(f"{name}: text {off(our_text, text):.1e}, latents by step {', '.join(f'{off(a, b):.1e}' for a, b in zip(our_latents, latents))}, pixels {abs(our_image - image).max():.0f} of 255")


if __name__ == "__main__":
    main()
