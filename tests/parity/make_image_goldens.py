"""Runs diffusers on pictures and masks and writes what it computes on the way: tests/parity/image_goldens.{json,safetensors}.

  pip install torch diffusers transformers accelerate pillow && python tests/parity/make_image_goldens.py

Three models: the built-in one, tests/parity/tiny, and that one with the UNet in tests/parity/tiny-inpainting, which looks at a mask. That
UNet (of random weights), picture.png and mask.png are made here if they are not there. Run it again whenever the built-in model changes.
"""
import json, pathlib

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, UNet2DConditionModel
from make_goldens import BUILTIN, MORE, SAMPLERS, SETTINGS, TINY
from PIL import Image
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
INPAINTING = HERE / "tiny-inpainting"
PROMPT = dict(prompt="a fox on a blue background", negative_prompt="red", guidance_scale=4.0, seed=11)


def make_picture():
    y, x = np.mgrid[:64, :72]
    disc = ((x - 40) ** 2 + (y - 28) ** 2 < 300)[..., None]
    picture = np.where(disc, [230, 120, 30], np.stack([x * 2, y * 3, 255 - x - y], -1)).astype("uint8")
    Image.fromarray(picture).save(HERE / "picture.png")
    Image.fromarray(((x - 37) ** 2 + 2 * (y - 33) ** 2 < 500).astype("uint8") * 255).save(HERE / "mask.png")


def make_inpainting_unet():
    torch.manual_seed(5)
    UNet2DConditionModel(in_channels=9, block_out_channels=(16, 24), layers_per_block=1, sample_size=8, cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
                         down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).half().save_pretrained(INPAINTING / "unet")


@torch.no_grad()
def run(pipe, own_config, case, tensors):
    settings = SETTINGS.get(case["sampler"], {}) | ({} if case["schedule"] == "default" else {f"use_{case['schedule']}_sigmas": True})
    pipe.scheduler = (SAMPLERS | MORE)[case["sampler"]].from_config(own_config, **settings)
    latents, prepare = [], type(pipe).prepare_latents

    def prepare_and_keep(*args, **kw):
        prepared = prepare(pipe, *args, **kw)
        latents.append((prepared[0] if isinstance(prepared, tuple) else prepared).clone())
        return prepared
    pipe.prepare_latents = prepare_and_keep
    keep = lambda pipe, step, t, kw: latents.append(kw["latents"].clone()) or {}
    picture, mask = Image.open(HERE / "picture.png"), Image.open(HERE / "mask.png")
    eta = {"tcd": 0.3}.get(case["sampler"], 0.0)  # ours has its own where a request does not say
    inputs = dict(image=picture, eta=eta) | (dict(mask_image=mask, width=picture.width, height=picture.height) if case["mask"] else {})
    image = pipe(case["prompt"], negative_prompt=case["negative_prompt"], guidance_scale=case["guidance_scale"], num_inference_steps=case["steps"], strength=case["strength"],
                 generator=torch.Generator("cpu").manual_seed(case["seed"]), callback_on_step_end=keep, output_type="np", **inputs).images[0]
    image = (image * 255).round().astype("uint8")
    if case["mask"]:  # what is kept is kept to the pixel
        image = np.where(np.array(mask)[..., None] > 127, image, np.array(picture))
    tensors[f"{case['name']}.latents"] = torch.cat(latents).contiguous()
    tensors[f"{case['name']}.image"] = torch.from_numpy(image).contiguous()


def main():
    if not (HERE / "picture.png").exists():
        make_picture()
    if not INPAINTING.exists():
        make_inpainting_unet()
    tensors, cases = {}, []
    few = [(s, "default") for s in SAMPLERS] + [("euler", "karras")]
    every = few + [(s, "default") for s in MORE] + [("dpm2", "karras"), ("unipc", "karras")]
    models = [("builtin", BUILTIN, {}, few), ("tests/parity/tiny", TINY, {}, every),
              ("tests/parity/tiny-inpainting", TINY, dict(unet=UNet2DConditionModel.from_pretrained(INPAINTING / "unet", torch_dtype=torch.float32)), few)]
    for model, path, parts, samplers in models:
        for mask, cls in ((False, StableDiffusionImg2ImgPipeline), (True, StableDiffusionInpaintPipeline)):
            if parts and not mask:
                continue
            pipe = cls.from_pretrained(path, torch_dtype=torch.float32, **parts)
            pipe.set_progress_bar_config(disable=True)
            own = pipe.scheduler.config
            runs = [(*sampler, 0.7) for sampler in samplers] + [("euler", "default", 1.0), ("euler_a", "default", 1.0), ("heun", "default", 0.2)]
            for sampler, schedule, strength in runs:
                cases.append(dict(name=f"{len(cases)}", model=model, sampler=sampler, schedule=schedule, mask=mask, strength=strength, steps=8, **PROMPT))
                run(pipe, own, cases[-1], tensors)
        if not parts:
            picture = pipe.image_processor.preprocess(Image.open(HERE / "picture.png"))
            latents = pipe.vae.encode(picture).latent_dist
            tensors[f"{model}.mean"], tensors[f"{model}.deviation"] = ((t.detach() * pipe.vae.config.scaling_factor).contiguous() for t in (latents.mean, latents.std))
    HERE.joinpath("image_goldens.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    save_file(tensors, HERE / "image_goldens.safetensors")


main()
