"""Runs diffusers on pictures and masks and writes what it computes on the way: tests/parity/image_goldens.{json,safetensors}.

  pip install torch diffusers transformers accelerate pillow && python tests/parity/make_image_goldens.py

Four models: the built-in one, tests/parity/tiny, and of make_family_goldens.py the inpainting model, whose UNet looks at the mask, and
SDXL. picture.png and mask.png are made here if they are not there. Run it again whenever the built-in model changes.
"""
import json, pathlib, tempfile

import numpy as np
import torch
from diffusers import (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline, StableDiffusionXLImg2ImgPipeline,
                       StableDiffusionXLInpaintPipeline)
from make_family_goldens import fill, make
from make_goldens import MORE, SAMPLERS, SETTINGS, TINY, export_builtin
from PIL import Image
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
PROMPT = dict(prompt="a fox on a blue background", negative_prompt="red", guidance_scale=4.0, seed=11)


def make_picture():
    y, x = np.mgrid[:64, :72]
    disc = ((x - 40) ** 2 + (y - 28) ** 2 < 300)[..., None]
    picture = np.where(disc, [230, 120, 30], np.stack([x * 2, y * 3, 255 - x - y], -1)).astype("uint8")
    Image.fromarray(picture).save(HERE / "picture.png")
    Image.fromarray(((x - 37) ** 2 + 2 * (y - 33) ** 2 < 500).astype("uint8") * 255).save(HERE / "mask.png")


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
    tensors, cases = {}, []
    few = [(s, "default") for s in SAMPLERS] + [("euler", "karras")]
    every = few + [(s, "default") for s in MORE] + [("dpm2", "karras"), ("unipc", "karras")]
    made_up = dict(make(pathlib.Path(tempfile.mkdtemp())))
    for name in "sd1-inpainting", "sdxl":
        for part, module in made_up[name].components.items():
            if isinstance(module, torch.nn.Module):
                fill(part, module)
    builtin = export_builtin()
    plain = StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
    for model, pipe, samplers, classes in (("builtin", pathlib.Path(builtin.name), few, plain), ("tests/parity/tiny", TINY, every, plain), ("sd1-inpainting", made_up["sd1-inpainting"], few, plain[1:]),
                                           ("sdxl", made_up["sdxl"], few[:2], (StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline))):
        if isinstance(pipe, pathlib.Path):
            pipe = StableDiffusionPipeline.from_pretrained(pipe, torch_dtype=torch.float32)
            pixels = pipe.image_processor.preprocess(Image.open(HERE / "picture.png"))
            latents = pipe.vae.encode(pixels).latent_dist
            tensors[f"{model}.mean"], tensors[f"{model}.deviation"] = ((t.detach() * pipe.vae.config.scaling_factor).contiguous() for t in (latents.mean, latents.std))
        own = {key: value for key, value in pipe.scheduler.config.items() if key != "_use_default_values"}  # as if read from a file
        for cls in classes:
            pipe = cls.from_pipe(pipe)
            pipe.set_progress_bar_config(disable=True)
            runs = [(*sampler, 0.7) for sampler in samplers] + [("euler", "default", 1.0), ("euler_a", "default", 1.0), ("heun", "default", 0.2)]
            for sampler, schedule, strength in runs:
                cases.append(dict(name=f"{len(cases)}", model=model, sampler=sampler, schedule=schedule, mask="Inpaint" in cls.__name__, strength=strength, steps=8, **PROMPT))
                run(pipe, own, cases[-1], tensors)
    HERE.joinpath("image_goldens.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    save_file(tensors, HERE / "image_goldens.safetensors")


main()
