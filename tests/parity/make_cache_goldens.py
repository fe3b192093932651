"""Runs diffusers with DeepCache's own package, branch 0, on the small models of make_family_goldens.py and writes what they compute:
tests/parity/cache.{json,safetensors}.

  pip install torch diffusers transformers accelerate pillow DeepCache==0.1.1 && python tests/parity/make_cache_goldens.py

A case is a request with "cache", whose interval is the package's `cache_interval`. Beside it, it says at which evaluations of the UNet it was "full".

Where DeepCache 0.1.1 is not to be followed blindly:
- It counts by the place of a timestep among the scheduler's: of two evaluations at one timestep (PNDM, Heun), the second counts as the first.
  Here every evaluation counts, and no case has such a scheduler.
- With a ControlNet, it asks that network in every step, and adds its newest answer to the first layer's output. Here a shallow step adds what
  the latest full one added: the network is asked in full steps only, and its last answer is given in the others. Here a step at which a
  network begins or ends is full; in the case of a window, it is full in the package, too.
"""
import json, pathlib, tempfile

import numpy, torch
from DeepCache import DeepCacheSDHelper
from diffusers import (DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler, StableDiffusionImg2ImgPipeline,
                       StableDiffusionInpaintPipeline, StableDiffusionXLImg2ImgPipeline, UniPCMultistepScheduler)
from PIL import Image
from safetensors.torch import save_file

import make_control_goldens
from make_family_goldens import FOX, OWL, fill, make

HERE = pathlib.Path(__file__).parent


def cases():
    """Requests, each with its scheduler and what is changed in the configuration of the model's own.

    Made-up models that predict noise let the latents grow: most are taken to predict velocity."""
    names = iter(range(100))

    def case(model, interval, scheduler, prediction="v_prediction", words=FOX, **more):
        base = dict(name=f"{next(names)}", model=model, scheduler=None, cache=f"deep,interval={interval}", **words, guidance_scale=5., seed=7, width=72, height=64, steps=7, mask=False, control=[], reference=[])
        return base | more, scheduler, dict(prediction_type=prediction)
    unguided, begins = dict(guidance_scale=1.), dict(strength=.7, steps=10)
    yield case("sd1", 2, DDIMScheduler)
    yield case("sd1", 3, EulerDiscreteScheduler, words=OWL)
    yield case("sd1", 3, DPMSolverMultistepScheduler, **unguided)
    yield case("sd1", 2, EulerAncestralDiscreteScheduler, "epsilon", steps=4, **unguided)
    yield case("sd1", 5, UniPCMultistepScheduler)
    yield case("sd1", 3, EulerDiscreteScheduler, words=OWL, **begins)
    yield case("sd1", 2, DDIMScheduler, **begins, **unguided)
    yield case("sd1", 2, DDIMScheduler, words=OWL, **begins | dict(mask=True))
    yield case("sd1-inpainting", 3, EulerDiscreteScheduler, **begins | dict(mask=True))
    yield case("sd2", 3, DDIMScheduler)
    yield case("sd2", 2, EulerDiscreteScheduler, **unguided)
    yield case("sd2", 2, DPMSolverMultistepScheduler, words=OWL, **begins)
    yield case("sdxl", 2, EulerDiscreteScheduler, words=OWL)
    yield case("sdxl", 3, EulerDiscreteScheduler, **unguided)
    yield case("sdxl", 3, DDIMScheduler, **begins)
    yield case("ssd-1b", 2, EulerDiscreteScheduler)
    net = dict(net="controlnet-sd1", picture="a", scale=.8, start=0., end=1., guess_mode=False)
    yield case("sd1", 3, EulerDiscreteScheduler, control=[net])
    yield case("sd1", 2, DDIMScheduler, control=[net | dict(start=.2, end=.8)], steps=10)
    yield case("sd1", 2, EulerDiscreteScheduler, control=[net], **unguided)
    yield case("sd1", 3, EulerDiscreteScheduler, reference=[dict(adapter="ip-adapter-sd1", picture="a", scale=.6)])
    yield case("lcm", 2, LCMScheduler, "epsilon", guidance_scale=8.5, steps=4)


def pipeline(case, pipes, nets):
    """diffusers' pipeline for a case, and its pictures."""
    if case["control"] or case["reference"]:
        return make_control_goldens.pipeline(case, pipes, nets)
    pipe = pipes[case["model"]]
    if "strength" not in case:
        return pipe, {}
    begin, mask = Image.open(HERE / "picture.png"), Image.open(HERE / "mask.png")
    if case["mask"]:
        return StableDiffusionInpaintPipeline.from_pipe(pipe), dict(image=begin, mask_image=mask, strength=case["strength"])
    return (StableDiffusionXLImg2ImgPipeline if case["model"] == "sdxl" else StableDiffusionImg2ImgPipeline).from_pipe(pipe), dict(image=begin, strength=case["strength"])


@torch.no_grad()
def run(case, scheduler, changes, pipes, nets, ip_shapes, tensors):
    own = {key: value for key, value in pipes[case["model"]].scheduler.config.items() if key != "_use_default_values"}  # as if read from a file
    pipe, inputs = pipeline(case, pipes, nets)
    pipe.set_progress_bar_config(disable=True)
    former, pipe.scheduler = pipe.scheduler, scheduler.from_config(own, **changes)
    case["scheduler"] = {key: value for key, value in dict(pipe.scheduler.config, _class_name=scheduler.__name__).items() if value not in (None, -float("inf")) and key != "_use_default_values"}  # JSON has no infinity
    if case["model"] != "lcm":
        inputs["negative_prompt"] = case["negative_prompt"] or None  # diffusers takes an empty one for one that is given
    if not case["mask"] and "strength" not in case or case["mask"]:
        inputs |= dict(width=case["width"], height=case["height"])
    for reference in case["reference"]:
        make_control_goldens.load_ip_adapter(pipe, reference["adapter"], ip_shapes[reference["adapter"]])
        pipe.set_ip_adapter_scale(reference["scale"])
        inputs["ip_adapter_image"] = make_control_goldens.control_picture(reference["picture"], 56, 56)
    latents, prepare = [], pipe.prepare_latents

    def prepare_and_keep(*args, **kw):
        prepared = prepare(*args, **kw)
        latents.append((prepared[0] if isinstance(prepared, tuple) else prepared).clone())
        return prepared
    pipe.prepare_latents = prepare_and_keep
    inputs["callback_on_step_end"] = lambda pipe, step, t, kw: latents.append(kw["latents"].clone()) or {}
    asked, full = [0], []
    hooks = [pipe.unet.register_forward_pre_hook(lambda *_: asked.__setitem__(0, asked[0] + 1)),
             pipe.unet.mid_block.resnets[0].register_forward_pre_hook(lambda *_: full.append(asked[0] - 1))]
    interval = int(case["cache"].split("=")[1])
    for control in case["control"]:
        net, answers = nets[control["net"]], []

        def ask_when_full(*args, ask=type(net).forward, net=net, answers=answers, **kw):
            if asked[0] % interval == 0:
                answers.append(ask(net, *args, **kw))
            return answers[-1]
        net.forward = ask_when_full
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    image = pipe(case["prompt"], guidance_scale=case["guidance_scale"], num_inference_steps=case["steps"], generator=torch.Generator("cpu").manual_seed(case["seed"]),
                 output_type="np", **inputs).images[0]
    helper.disable()
    for hook in hooks:
        hook.remove()
    pipe.prepare_latents, pipe.scheduler = prepare, former
    for control in case["control"]:
        del nets[control["net"]].forward
    if case["reference"]:
        pipe.unload_ip_adapter()
    image = (image * 255).round().astype("uint8")
    if case["mask"]:  # what is kept is kept to the pixel
        image = numpy.where(numpy.array(Image.open(HERE / "mask.png"))[..., None] > 127, image, numpy.array(Image.open(HERE / "picture.png")))
    case |= dict(evaluations=asked[0], full=full)
    assert len(latents) == asked[0] + 1 and len(full) < asked[0]
    tensors[f"{case['name']}.latents"], tensors[f"{case['name']}.image"] = torch.cat(latents), torch.from_numpy(image)


def main():
    torch.set_num_threads(1)
    tensors, made = {}, []
    with tempfile.TemporaryDirectory() as work:
        pipes = dict(make(pathlib.Path(work)))
        for pipe in pipes.values():
            for part, module in pipe.components.items():
                if isinstance(module, torch.nn.Module):
                    fill(part, module)
        name = "ip-adapter-sd1"
        nets, ip_shapes = dict(make_control_goldens.controls(pipes)), {name: make_control_goldens.ip_adapter(pipes["sd1"].unet, False)}
        for net in nets:
            fill(net, nets[net])
        for case, *sampling in cases():
            run(case, *sampling, pipes, nets, ip_shapes, tensors)
            made.append(case)
            latents, image = tensors[f"{case['name']}.latents"], tensors[f"{case['name']}.image"].float()
            print(case["name"], case["model"], case["scheduler"]["_class_name"], case["cache"], case["full"], "of", len(latents) - 1,
                  "latents", [round(v, 2) for v in latents.abs().amax(dim=(1, 2, 3)).tolist()], "deviation", round(image.std().item(), 1))
    HERE.joinpath("cache.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in made) + "\n]\n")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, HERE / "cache.safetensors")


if __name__ == "__main__":
    main()
