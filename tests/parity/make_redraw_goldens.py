"""Draws pictures in diffusers, enlarges them or their latents in torch, and draws them again: tests/parity/redraws.{json,safetensors}.

  pip install torch diffusers transformers accelerate pillow && python tests/parity/make_redraw_goldens.py

The model is tests/parity/tiny. "<case>.<n>" are the latents after n steps of both drawings; after the last step of the first, those that the
second begins with. "<case>.image" is the picture. "<filter>.<h>x<w>" is what torch's interpolate makes of "small", the latents of a picture.
"""
import json, pathlib

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from make_goldens import MORE, SAMPLERS, SETTINGS, TINY
from PIL import Image
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
PROMPT = dict(prompt="a fox on a blue background", negative_prompt="red", guidance_scale=4.0)
FILTERS = {  # A1111's names: mode, antialias
    "Latent": ("bilinear", False), "Latent (antialiased)": ("bilinear", True), "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True), "Latent (nearest)": ("nearest", False), "Latent (nearest-exact)": ("nearest-exact", False),
}
CASES = [  # all: the schedule's steps, of which the strength leaves `steps`
    dict(sampler="euler", width=64, height=64, first=4, name="Latent", scale=2, strength=0.6, steps=3, all=5, seed=11),
    dict(sampler="dpmpp_2m", width=64, height=96, first=3, name="Latent (bicubic antialiased)", scale=1.5, strength=0.5, steps=2, all=4, seed=12),
    dict(sampler="euler_a", width=96, height=64, first=2, name="Nearest", scale=2, strength=0.7, steps=2, all=3, seed=13),
]


def interpolate(latents, name, size):
    mode, antialias = FILTERS[name]
    return torch.nn.functional.interpolate(latents, size=size, mode=mode, antialias=antialias)


@torch.no_grad()
def run(pipe, own, case, tensors):
    def keep(_, step, t, kw):
        latents.append(kw["latents"].clone())
        return {}
    latents = []
    settings = SETTINGS.get(case["sampler"], {})
    pipe.scheduler = (SAMPLERS | MORE)[case["sampler"]].from_config(own, **settings)
    seeded = lambda: dict(generator=torch.Generator("cpu").manual_seed(case["seed"]), callback_on_step_end=keep, **PROMPT)
    pipe(width=case["width"], height=case["height"], num_inference_steps=case["first"], output_type="latent", **seeded())
    last, size = latents.pop(), [int(case[side] * case["scale"]) for side in ("height", "width")]
    if case["name"] == "Nearest":
        image = pipe.image_processor.postprocess(pipe.vae.decode(last / pipe.vae.config.scaling_factor).sample, output_type="pil")[0]
        start = image.resize(size[::-1], Image.NEAREST)
    else:
        start = interpolate(last, case["name"], [side // 8 for side in size])
    again = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    prepare = again.prepare_latents

    def prepare_and_keep(*args, **kw):
        latents.append(prepare(*args, **kw).clone())
        return latents[-1]
    again.prepare_latents = prepare_and_keep
    image = again(image=start, strength=case["strength"], num_inference_steps=case["all"], output_type="np", **seeded()).images[0]
    assert len(latents) == case["first"] + case["steps"], len(latents)
    for n, latent in enumerate(latents, 1):
        tensors[f"{case['sampler']}.{n}"] = latent.contiguous()
    tensors[f"{case['sampler']}.image"] = torch.from_numpy((image * 255).round().astype("uint8")).contiguous()


def main():
    tensors = {"small": torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(1))}
    for name in FILTERS:
        for size in (10, 14), (8, 11), (5, 7), (3, 4):
            tensors[f"{name}.{size[0]}x{size[1]}"] = interpolate(tensors["small"], name, size).contiguous()
    pipe = StableDiffusionPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    own = {key: value for key, value in pipe.scheduler.config.items() if key != "_use_default_values"}  # as if read from a file
    for case in CASES:
        run(pipe, own, case, tensors)
    HERE.joinpath("redraws.json").write_text("[\n" + ",\n".join(json.dumps(PROMPT | case) for case in CASES) + "\n]\n")
    save_file(tensors, HERE / "redraws.safetensors")


main()
