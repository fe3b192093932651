"""Runs diffusers' ControlNets, T2I-Adapters and IP-Adapters on the small models of make_family_goldens.py and writes what they compute:
tests/parity/controls.{json,safetensors} and tests/parity/controls/.

  pip install torch diffusers transformers accelerate pillow && python tests/parity/make_control_goldens.py

As with the models, the networks' numbers follow from their tensors' names, made_up("<network>/<name>", shape), and what is kept of them are
their configurations and the names and shapes of their tensors. IP-Adapters have the names that published files have.

Goldens of a network by itself: "<ControlNet>.down.<i>" and ".mid" for 2 * made_up("latents", [1, 4, 8, 9]), twice, timestep 801, both sides of
OWL's guidance, and control picture "a" of 72x64 (the union's: of type 2); "<T2I-Adapter>.<i>", its features of control picture "a" (sdxl:
96x64); "image-encoder.embeds" and ".penultimate" of the 56x56 picture "a"; "<IP-Adapter>.tokens" of it, and ".negative", of no picture.

Beside the request, a case says what diffusers made of it: "evaluations", how often the UNet was asked, and for each control "on", at which of
these it was in use. A control's window goes by evaluations, i of n: PNDM has one more than it has steps, Heun two a step but for the last,
and with a picture to begin with only those count that are left. A T2I-Adapter's "end" is `adapter_conditioning_factor`.

Where diffusers 0.42.1 (transformers 5.24) is not to be followed blindly:
- It reads Plus files with four layers in their resampler, whatever the file has: with two, load_ip_adapter fails (missing keys). So they are four here.
- ControlNetUnion with guess mode and guidance fails (the types are repeated for two sides, the latents are of one), so there is no such case.
- ControlNetUnion with two types: a window that is closed sets its scale to 0, but that is put on what goes in: the network's answer is added still.
- A network with pooled conditions, if it is the first, puts all into guess mode, whatever is asked (itself without guess mode's factors), and
  fails if others follow that are not pooled (their middle is added in place). If it is not the first, it is run as any other.
"""
import functools, json, pathlib, shutil, tempfile

import numpy, torch
from diffusers import (ControlNetModel, ControlNetUnionModel, EulerDiscreteScheduler, HeunDiscreteScheduler, StableDiffusionAdapterPipeline, StableDiffusionControlNetImg2ImgPipeline,
                       StableDiffusionControlNetInpaintPipeline, StableDiffusionControlNetPipeline, StableDiffusionPipeline, StableDiffusionXLAdapterPipeline,
                       StableDiffusionXLControlNetImg2ImgPipeline, StableDiffusionXLControlNetPipeline, StableDiffusionXLControlNetUnionPipeline, StableDiffusionXLPipeline, T2IAdapter)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from make_family_goldens import FOX, OWL, conditions, fill, made_up, make

HERE = pathlib.Path(__file__).parent
ENCODER = dict(hidden_size=64, intermediate_size=128, num_attention_heads=2, num_hidden_layers=3, image_size=56, patch_size=14, projection_dim=32, hidden_act="gelu")
HINTS = (16, 32, 96, 256)


def control_picture(name, width, height):
    """A picture of 8-bit RGB: of v = made_up("control <name>", [height, width, 3]), in row-major order, each as a 64-bit float,
    round((v - least) / (greatest - least) * 255), computed from left to right in 64 bits, where least and greatest are those of the whole picture."""
    v = made_up(f"control {name}", [height, width, 3]).double().numpy()
    scaled = (v - v.min()) / (v.max() - v.min()) * 255
    assert (abs(scaled % 1 - .5) > 1e-6).all()  # no halves: however they are rounded, it is the same picture
    return Image.fromarray(scaled.round().astype("uint8"))


def pixels(width, height):
    """Control picture "a" as networks take it: 0 to 1."""
    return torch.from_numpy(numpy.array(control_picture("a", width, height))).permute(2, 0, 1)[None].float() / 255


def ip_adapter(unet, plus):
    """Names and shapes of an IP-Adapter's tensors, as published files have them: attention over text has the odd numbers, in the order of the UNet's modules: down, up, middle."""
    width, cross, tokens = ENCODER["hidden_size"], unet.config.cross_attention_dim, 4
    shapes = {"image_proj.proj.weight": [tokens * cross, ENCODER["projection_dim"]], "image_proj.proj.bias": [tokens * cross], "image_proj.norm.weight": [cross], "image_proj.norm.bias": [cross]}
    if plus:
        inner, heads = 64, 2  # 64 numbers a head, always
        shapes = {"image_proj.latents": [1, 16, inner], "image_proj.proj_in.weight": [inner, width], "image_proj.proj_in.bias": [inner],
                  "image_proj.proj_out.weight": [cross, inner], "image_proj.proj_out.bias": [cross], "image_proj.norm_out.weight": [cross], "image_proj.norm_out.bias": [cross]}
        for i in range(4):
            layer = f"image_proj.layers.{i}"
            shapes |= {f"{layer}.0.{norm}.{part}": [inner] for norm in ("norm1", "norm2") for part in ("weight", "bias")}
            shapes |= {f"{layer}.0.to_q.weight": [heads * 64, inner], f"{layer}.0.to_kv.weight": [2 * heads * 64, inner], f"{layer}.0.to_out.weight": [inner, heads * 64]}
            shapes |= {f"{layer}.1.0.weight": [inner], f"{layer}.1.0.bias": [inner], f"{layer}.1.1.weight": [4 * inner, inner], f"{layer}.1.3.weight": [inner, 4 * inner]}
    for i, name in enumerate(unet.attn_processors):
        if ".attn2." in name:
            assert i % 2 == 1
            rows = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            shapes |= {f"ip_adapter.{i}.{part}_ip.weight": [rows, cross] for part in ("to_k", "to_v")}
    return shapes


def controls(pipes):
    """The networks, by name, but for IP-Adapters."""
    unets = {name: pipe.unet for name, pipe in pipes.items()}
    for name in "sd1", "sd1-b", "sd2", "sdxl":
        yield f"controlnet-{name}", ControlNetModel.from_unet(unets[name.removesuffix("-b")], conditioning_embedding_out_channels=HINTS)
    # Called with its configuration: from_config() takes its own defaults for what was one in the other.
    config = lambda name: {key: value for key, value in ControlNetModel.from_unet(unets[name], conditioning_embedding_out_channels=HINTS).config.items() if key[0] != "_"}
    yield "controlnet-sd1-pooled", ControlNetModel(**config("sd1") | dict(global_pool_conditions=True))
    union = config("sdxl")
    union.pop("mid_block_type")
    first = union["block_out_channels"][0]
    yield "controlnet-union", ControlNetUnionModel(**union | dict(num_control_type=6, num_trans_channel=first, num_trans_head=8, num_trans_layer=1, num_proj_channel=first))
    yield "t2i-sd1", T2IAdapter(channels=[32, 64, 64], num_res_blocks=2, downscale_factor=8, adapter_type="full_adapter")
    yield "t2i-light-sd1", T2IAdapter(channels=[32, 64], num_res_blocks=2, downscale_factor=8, adapter_type="light_adapter")
    yield "t2i-sdxl", T2IAdapter(channels=[64, 128], num_res_blocks=2, downscale_factor=16, adapter_type="full_adapter_xl")
    yield "image-encoder", CLIPVisionModelWithProjection(CLIPVisionConfig(**ENCODER)).eval()


def write(name, shapes, config=None):
    folder = HERE / "controls" / name
    folder.mkdir(parents=True)
    (folder / "tensors.json").write_text("{\n" + ",\n".join(f"{json.dumps(key)}: {shape}" for key, shape in shapes.items()) + "\n}\n")
    if config:
        shutil.copy(config, folder / "config.json")


@torch.no_grad()
def by_itself(name, net, pipes, tensors):
    if name.startswith("controlnet"):
        pipe = pipes["sdxl" if "union" in name else name.split("-")[1]]
        embeddings, _, extra = conditions(pipe, OWL, 64, 72)
        hint = torch.cat([pixels(72, 64)] * 2)
        if "union" in name:
            types = torch.nn.functional.one_hot(torch.tensor([2, 2]), net.config.num_control_type).float()
            extra, hint = dict(extra, control_type=types, control_type_idx=[2]), [hint]
        down, mid = net(torch.cat([2 * made_up("latents", [1, 4, 8, 9])] * 2), 801, embeddings, controlnet_cond=hint, conditioning_scale=1., guess_mode=False, return_dict=False, **extra)
        tensors |= {f"{name}.down.{i}": part for i, part in enumerate(down)} | {f"{name}.mid": mid}
    elif name.startswith("t2i"):
        tensors |= {f"{name}.{i}": part for i, part in enumerate(net(pixels(96 if "sdxl" in name else 72, 64)))}
    else:
        encoded = net(CLIPImageProcessor(size=56, crop_size=56)(control_picture("a", 56, 56), return_tensors="pt").pixel_values, output_hidden_states=True)
        tensors |= {f"{name}.embeds": encoded.image_embeds, f"{name}.penultimate": encoded.hidden_states[-2]}


@torch.no_grad()
def load_ip_adapter(pipe, name, shapes):
    state = {"image_proj": {}, "ip_adapter": {}}
    for key, shape in shapes.items():
        part, rest = key.split(".", 1)
        state[part][rest] = made_up(f"{name}/{key}", shape)
    pipe.load_ip_adapter(state, subfolder="", weight_name="", low_cpu_mem_usage=False)


@torch.no_grad()
def tokens(pipe, name, tensors):
    """What text attention looks at beside the text: [negative, tokens]."""
    embeds = pipe.prepare_ip_adapter_image_embeds(control_picture("a", 56, 56), None, "cpu", 1, True)
    tensors[f"{name}.negative"], tensors[f"{name}.tokens"] = pipe.unet.encoder_hid_proj(embeds)[0].chunk(2)


def pipeline(case, pipes, nets):
    """diffusers' pipeline for a case, and its controls as it wants to be told of them."""
    xl, begins = case["model"] == "sdxl", "strength" in case
    parts = {key: part for key, part in pipes[case["model"]].components.items()} | (dict(image_encoder=nets["image-encoder"], feature_extractor=CLIPImageProcessor(size=56, crop_size=56)))
    more = dict(add_watermarker=False) if xl else dict(requires_safety_checker=False)
    control = case["control"]
    pictures = [control_picture(c["picture"], case["width"], case["height"]) for c in control]
    if not control:
        return (StableDiffusionXLPipeline if xl else StableDiffusionPipeline)(**parts, **more), {}
    if control[0]["net"].startswith("t2i"):
        inputs = dict(image=pictures[0], adapter_conditioning_scale=control[0]["scale"]) | (dict(adapter_conditioning_factor=control[0]["end"]) if xl else {})
        if xl:
            return StableDiffusionXLAdapterPipeline(adapter=nets[control[0]["net"]], **parts), inputs
        parts.pop("image_encoder")
        return StableDiffusionAdapterPipeline(adapter=nets[control[0]["net"]], **parts, **more), inputs
    one_net = len({c["net"] for c in control}) == 1
    listed = {key: [c[of] for c in control] for key, of in (("controlnet_conditioning_scale", "scale"), ("control_guidance_start", "start"), ("control_guidance_end", "end"))}
    net = nets[control[0]["net"]] if one_net else [nets[c["net"]] for c in control]
    if "mode" in control[0]:
        return StableDiffusionXLControlNetUnionPipeline(controlnet=net, **parts, **more), listed | dict(control_image=pictures, control_mode=[c["mode"] for c in control])
    single = len(control) == 1
    inputs = ({key: values[0] for key, values in listed.items()} if single else listed) | dict(guess_mode=control[0]["guess_mode"])
    inputs["control_image" if begins else "image"] = pictures[0] if single else pictures
    kinds = {(False, False): StableDiffusionControlNetPipeline, (True, False): StableDiffusionControlNetImg2ImgPipeline, (True, True): StableDiffusionControlNetInpaintPipeline}
    xl_kinds = {(False, False): StableDiffusionXLControlNetPipeline, (True, False): StableDiffusionXLControlNetImg2ImgPipeline}
    return (xl_kinds if xl else kinds)[begins, case["mask"]](controlnet=net, **parts, **more), inputs


@torch.no_grad()
def run(case, scheduler, changes, pipes, nets, ip_shapes, tensors):
    pipe, inputs = pipeline(case, pipes, nets)
    pipe.set_progress_bar_config(disable=True)
    own = {key: value for key, value in pipes[case["model"]].scheduler.config.items() if key != "_use_default_values"}  # as if read from a file
    pipe.scheduler = (scheduler or type(pipe.scheduler)).from_config(own, **changes)
    case["scheduler"] = {key: value for key, value in dict(pipe.scheduler.config, _class_name=type(pipe.scheduler).__name__).items() if value is not None and key != "_use_default_values"}
    if case["reference"]:
        [reference] = case["reference"]
        load_ip_adapter(pipe, reference["adapter"], ip_shapes[reference["adapter"]])
        pipe.set_ip_adapter_scale(reference["scale"])
        inputs["ip_adapter_image"] = control_picture(reference["picture"], 56, 56)
    if "strength" in case:
        begin, mask = Image.open(HERE / "picture.png"), Image.open(HERE / "mask.png")
        inputs |= dict(image=begin, strength=case["strength"]) | (dict(mask_image=mask) if case["mask"] else {})

    latents, asked, used = [], [0], [[] for _ in case["control"]]
    prepare = pipe.prepare_latents

    def prepare_and_keep(*args, **kw):
        prepared = prepare(*args, **kw)
        latents.append((prepared[0] if isinstance(prepared, tuple) else prepared).clone())
        return prepared
    pipe.prepare_latents = prepare_and_keep
    if "adapter" in pipe.components:  # these pipelines call nobody back after a step
        step = pipe.scheduler.step

        @functools.wraps(step)
        def step_and_keep(*args, **kw):
            stepped = step(*args, **kw)
            latents.append(stepped[0].clone())
            return stepped
        pipe.scheduler.step = step_and_keep
    else:
        inputs["callback_on_step_end"] = lambda pipe, step, t, kw: latents.append(kw["latents"].clone()) or {}

    def at_unet(module, args, kw):
        if kw.get("down_intrablock_additional_residuals") is not None:
            used[0].append(asked[0])
        asked[0] += 1

    def at_net(places, module, args, kw):
        scales = kw["conditioning_scale"]
        for place, scale in zip(places, scales if isinstance(scales, list) else [scales]):
            if scale:
                used[place].append(asked[0])
    hooks = [pipe.unet.register_forward_pre_hook(at_unet, with_kwargs=True)]
    for name in {c["net"] for c in case["control"] if c["net"].startswith("controlnet")}:
        places = [place for place, c in enumerate(case["control"]) if c["net"] == name]
        hooks.append(nets[name].register_forward_pre_hook(functools.partial(at_net, places), with_kwargs=True))

    # diffusers takes an empty one for one that is given: SDXL's zeros come of none.
    image = pipe(case["prompt"], negative_prompt=case["negative_prompt"] or None, guidance_scale=case["guidance_scale"], num_inference_steps=case["steps"], width=case["width"],
                 height=case["height"], generator=torch.Generator("cpu").manual_seed(case["seed"]), output_type="np", **inputs).images[0]
    image = (image * 255).round().astype("uint8")
    if case["mask"]:  # what is kept is kept to the pixel
        image = numpy.where(numpy.array(mask)[..., None] > 127, image, numpy.array(begin))
    for hook in hooks:
        hook.remove()
    case["evaluations"] = asked[0]
    assert len(latents) == asked[0] + 1
    for c, on in zip(case["control"], used):
        c["on"] = on
    if case["reference"]:
        pipe.unload_ip_adapter()
    tensors[f"{case['name']}.latents"], tensors[f"{case['name']}.image"] = torch.cat(latents), torch.from_numpy(image)


def cases():
    """Requests, each with its scheduler if that is not the model's own, and what is changed in its configuration.

    Made-up models that predict noise let the latents grow, whatever the control, to about 20 in 4 steps: most are taken to predict velocity."""
    def case(model, *control, scheduler=None, prediction="v_prediction", reference=(), words=FOX, **more):
        base = dict(name=f"{next(names)}", model=model, scheduler=None, **words, guidance_scale=5., seed=7, width=72, height=64, steps=4, mask=False)
        return base | more | dict(control=list(control), reference=list(reference)), scheduler, dict(prediction_type=prediction)

    def net(name, picture="a", scale=.8, start=0., end=1., guess_mode=False, **more):
        return dict(net=name, picture=picture, scale=scale, start=start, end=end, guess_mode=guess_mode, **more)
    names = iter(range(100))
    one, other, noise = "controlnet-sd1", "controlnet-sd1-b", dict(prediction="epsilon")
    refer = lambda adapter, scale, picture="a": [dict(adapter=adapter, picture=picture, scale=scale)]
    yield case("sd1", net(one), **noise)
    yield case("sd1", net(one, scale=.6), net(other, "b", .9), words=OWL)
    yield case("sd1", net(one, guess_mode=True))
    yield case("sd1", net(one, scale=1.2, guess_mode=True), net(other, "b", .7, guess_mode=True), words=OWL)
    yield case("sd1", net(one, start=.2, end=.8), steps=10)
    yield case("sd1", net(one, start=.2, end=.6), net(other, "b", .6, start=.4), steps=5, scheduler=EulerDiscreteScheduler)
    yield case("sd1", net(one), guidance_scale=1.)
    yield case("sd1", net(one, start=.1, end=.7), steps=8, strength=.7, scheduler=EulerDiscreteScheduler, **noise)
    yield case("sd1", net(one), steps=6, strength=.7, mask=True, words=OWL, **noise)
    yield case("sd1-inpainting", net(one), steps=6, strength=.7, mask=True, scheduler=EulerDiscreteScheduler, **noise)
    yield case("sd2", net("controlnet-sd2"), steps=2, **noise)
    yield case("sdxl", net("controlnet-sdxl"), steps=2, **noise)
    yield case("sdxl", net("controlnet-sdxl", guess_mode=True), words=OWL)
    yield case("sdxl", net("controlnet-sdxl"), steps=6, strength=.7, **noise)
    yield case("sd1", net("controlnet-sd1-pooled"))
    yield case("sd1", net(one, start=.3, end=.7), scheduler=HeunDiscreteScheduler)
    yield case("sd1", net("t2i-sd1"))
    yield case("sd1", net("t2i-light-sd1"), words=OWL)
    yield case("sdxl", net("t2i-sdxl", end=.5), width=96)
    yield case("sd1", reference=refer("ip-adapter-sd1", .6))
    yield case("sd1", reference=refer("ip-adapter-plus-sd1", .7, "b"), words=OWL)
    yield case("sdxl", reference=refer("ip-adapter-sdxl", .8))
    yield case("sd1", reference=refer("ip-adapter-sd1", .6), guidance_scale=1.)
    yield case("sd1", net(one), reference=refer("ip-adapter-sd1", .6, "b"))
    yield case("sdxl", net("controlnet-union", mode=3))
    yield case("sdxl", net("controlnet-union", scale=.6, mode=1), net("controlnet-union", "b", .9, mode=4), words=OWL)


def main():
    torch.set_num_threads(1)
    tensors, made, ip_shapes = {}, [], {}
    shutil.rmtree(HERE / "controls", ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        pipes = {name: pipe for name, pipe in make(work) if name in ("sd1", "sd1-inpainting", "sd2", "sdxl")}
        for pipe in pipes.values():
            for part, module in pipe.components.items():
                if isinstance(module, torch.nn.Module):
                    fill(part, module)
        nets = dict(controls(pipes))
        for name, net in nets.items():
            shapes = fill(name, net)
            net.save_pretrained(work / name)
            write(name, shapes, work / name / "config.json")
            by_itself(name, net, pipes, tensors)
        for name, model in ("ip-adapter-sd1", "sd1"), ("ip-adapter-plus-sd1", "sd1"), ("ip-adapter-sdxl", "sdxl"):
            ip_shapes[name] = ip_adapter(pipes[model].unet, "plus" in name)
            write(name, ip_shapes[name])
            pipe, _ = pipeline(dict(model=model, control=[]), pipes, nets)
            load_ip_adapter(pipe, name, ip_shapes[name])
            tokens(pipe, name, tensors)
            pipe.unload_ip_adapter()
        for case, *sampling in cases():
            run(case, *sampling, pipes, nets, ip_shapes, tensors)
            made.append(case)
            latents, image = tensors[f"{case['name']}.latents"], tensors[f"{case['name']}.image"].float()
            print(case["name"], case["model"], case["scheduler"]["_class_name"], [(c["net"], c["on"]) for c in case["control"]], case["reference"], case["evaluations"],
                  "latents", [round(v, 2) for v in latents.abs().amax(dim=(1, 2, 3)).tolist()], "deviation", round(image.std().item(), 1))
    HERE.joinpath("controls.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in made) + "\n]\n")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, HERE / "controls.safetensors")


if __name__ == "__main__":
    main()
