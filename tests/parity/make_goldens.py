"""Runs diffusers on the same models as the tests and writes what it computes on the way: tests/parity/goldens.{json,safetensors}.

  pip install torch diffusers transformers accelerate && python tests/parity/make_goldens.py

Two models: the built-in one, and tests/parity/tiny, which has random weights and everything that the built-in one has not
(epsilon prediction, linear projections, heads by level, several layers, 8x latents, GELU). The tiny one is made here if it is
not there. Run it again whenever the built-in model changes; the binary exports it for diffusers, and is built if need be.
"""
import json, pathlib, subprocess, tempfile

import torch
from diffusers import (AutoencoderKL, DDIMScheduler, DDPMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler,
                       DPMSolverSinglestepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler,
                       KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler, LCMScheduler, LMSDiscreteScheduler, PNDMScheduler,
                       StableDiffusionPipeline, TCDScheduler, UNet2DConditionModel, UniPCMultistepScheduler)
from diffusers.guiders import ClassifierFreeGuidance
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
TOKENIZER = ROOT / "src/builtin_model/model/tokenizer"
TINY = HERE / "tiny"
SAMPLERS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "euler_a": EulerAncestralDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
MORE = {"ddpm": DDPMScheduler, "pndm": PNDMScheduler, "lms": LMSDiscreteScheduler, "heun": HeunDiscreteScheduler, "dpm2": KDPM2DiscreteScheduler,
        "dpm2_a": KDPM2AncestralDiscreteScheduler, "dpmpp_2m_sde": DPMSolverMultistepScheduler, "dpmpp_sde": DPMSolverSinglestepScheduler,
        "unipc": UniPCMultistepScheduler, "deis": DEISMultistepScheduler, "lcm": LCMScheduler, "tcd": TCDScheduler}
SETTINGS = {"pndm": dict(skip_prk_steps=True), "dpmpp_2m_sde": dict(algorithm_type="sde-dpmsolver++"),
            "dpmpp_sde": dict(algorithm_type="sde-dpmsolver++", lower_order_final=True)}
FOX = dict(prompt="a fox on a blue background", negative_prompt="", guidance_scale=4.0, seed=1, width=64, height=64, steps=6)
OWL = dict(prompt="An owl and a PIZZA, on yellow!", negative_prompt="a red background", guidance_scale=7.5, seed=2**32 + 99, width=72, height=64, steps=5)
PLAIN = dict(prompt="strawberry 🍓 ünder 3 skies", negative_prompt="ignored", guidance_scale=1.0, seed=3, width=64, height=88, steps=4)


def make_tiny():
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    text = CLIPTextModel(CLIPTextConfig(hidden_size=32, intermediate_size=48, num_attention_heads=2, num_hidden_layers=2, vocab_size=len(tokenizer), hidden_act="gelu",
                                        max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=0))
    unet = UNet2DConditionModel(block_out_channels=(16, 24, 32), layers_per_block=2, sample_size=8, cross_attention_dim=32, attention_head_dim=(2, 3, 4), norm_num_groups=8,
                                transformer_layers_per_block=(1, 2, 1), use_linear_projection=True, freq_shift=1, flip_sin_to_cos=False,
                                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"))
    vae = AutoencoderKL(block_out_channels=(16, 16, 16, 32), down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2,
                        norm_num_groups=8, latent_channels=4, sample_size=64, scaling_factor=.18215)
    scheduler = EulerDiscreteScheduler(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading")
    pipe = StableDiffusionPipeline(vae=vae, unet=unet, text_encoder=text, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.to(torch.float16).save_pretrained(TINY)


class Pipeline(StableDiffusionPipeline):
    """With guidance in some of the steps, if there is a guider that says in which."""
    guider = None

    @property
    def guidance_scale(self):
        return 1. if self.guider and not self.guider._is_cfg_enabled() else self._guidance_scale


@torch.no_grad()
def run(pipe, own_config, case, tensors):
    name = case["name"]
    settings = SETTINGS.get(case["sampler"], {}) | ({} if case["schedule"] == "default" else {f"use_{case['schedule']}_sigmas": True})
    pipe.scheduler = (SAMPLERS | MORE)[case["sampler"]].from_config(own_config, **settings)
    latents = []
    interval = case.get("guidance_interval")
    pipe.guider = interval and ClassifierFreeGuidance(case["guidance_scale"], start=interval[0], stop=interval[1])
    at = lambda step: interval and pipe.guider.set_state(step, case["steps"], None)
    at(0)
    keep = lambda pipe, step, t, kw: latents.append(kw["latents"].clone()) or at(step + 1) or {}
    generator = torch.Generator("cpu").manual_seed(case["seed"])
    guided = case["guidance_scale"] > 1
    positive, negative = pipe.encode_prompt(case["prompt"], "cpu", 1, guided, case["negative_prompt"])
    options = {key: case[key] for key in ("eta", "guidance_rescale") if key in case}
    image = pipe(case["prompt"], **options, negative_prompt=case["negative_prompt"], guidance_scale=case["guidance_scale"], num_inference_steps=case["steps"], width=case["width"],
                 height=case["height"], generator=generator, callback_on_step_end=keep, output_type="np").images[0]
    shape = latents[0].shape
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(case["seed"]))
    tensors[f"{name}.latents"] = torch.cat([noise * pipe.scheduler.init_noise_sigma] + latents)
    if case["sampler"] == "ddim" and not options:  # what is the same, or follows from the latents, for all other samplers
        tensors[f"{name}.text_embeddings"] = torch.cat([negative, positive]) if guided else positive
        tensors[f"{name}.image"] = torch.from_numpy((image * 255).round().astype("uint8")).contiguous()


def export_builtin():
    """A folder with the built-in model, for as long as it is held."""
    folder = tempfile.TemporaryDirectory()
    subprocess.run(["cargo", "run", "--release", "--quiet", "--", "models", "export", "builtin", folder.name], cwd=ROOT, check=True)
    return folder


def main():
    if not TINY.exists():
        make_tiny()
    tensors, cases = {}, []
    builtin = export_builtin()
    for model, path in (("builtin", builtin.name), ("tests/parity/tiny", TINY)):
        pipe = Pipeline.from_pretrained(path, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        own = pipe.scheduler.config
        for prompt in (FOX, OWL, PLAIN):
            for sampler, schedule in [(s, "default") for s in SAMPLERS] + [("euler", "karras"), ("dpmpp_2m", "karras")]:
                cases.append(dict(name=f"{len(cases)}", model=model, sampler=sampler, schedule=schedule, **prompt))
                run(pipe, own, cases[-1], tensors)
        if model != "builtin":
            more = [(s, "default", {}) for s in MORE if s != "tcd"] + [("tcd", "default", dict(eta=.3)), ("ddim", "default", dict(eta=.7)), ("euler", "default", dict(guidance_rescale=.7)),
                    ("heun", "exponential", {}), ("unipc", "beta", {}), ("dpm2_a", "karras", {}), ("euler", "default", dict(guidance_interval=[.2, .7])),
                    ("dpmpp_2m", "default", dict(guidance_interval=[0, .5])), ("ddim", "default", dict(guidance_interval=[.34, 1], guidance_rescale=.7))]
            for sampler, schedule, options in more:
                cases.append(dict(name=f"{len(cases)}", model=model, sampler=sampler, schedule=schedule, **FOX, **options))
                run(pipe, own, cases[-1], tensors)
    HERE.joinpath("goldens.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    save_file(tensors, HERE / "goldens.safetensors")


if __name__ == "__main__":
    main()
