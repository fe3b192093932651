"""Runs diffusers on small models of every family and writes what it computes on the way: tests/parity/families.{json,safetensors}
and tests/parity/families/.

  pip install torch diffusers transformers accelerate && python tests/parity/make_family_goldens.py

The models' weights are not kept: they follow from the tensors' names by made_up(), here and in tests/it/made_up.rs. What is kept are
their configurations and the names and shapes of their tensors, as diffusers has them.
"""
import gzip, json, pathlib, shutil, tempfile

import numpy, torch
from diffusers import (AutoencoderKL, DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LatentConsistencyModelPipeline, LCMScheduler,
                       PNDMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

HERE = pathlib.Path(__file__).parent
MERGES = HERE.parent.parent / "src/backend/model_files/clip_vocabulary/merges.txt.gz"
SD1_PARTS, XL_PARTS = ["text_embeddings", "encoded", "decoded"], ["text_embeddings", "pooled", "added", "encoded", "decoded"]
OWNERS = {"sd1-inpainting": ("sd1", SD1_PARTS), "lcm": ("sd1", SD1_PARTS), "ssd-1b": ("sdxl", XL_PARTS), "vega": ("sdxl", XL_PARTS)}
FOX = dict(prompt="a fox on a blue background", negative_prompt="")
OWL = dict(prompt="An owl's PIZZA, ünder 3 🍓 skies!", negative_prompt="red, blurry")
BETAS = dict(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear", steps_offset=1)


def made_up(name, shape):
    """Numbers that follow from a tensor's name: those of splitmix64, started from its FNV-1a hash, brought to a useful size."""
    seed, count = 0xcbf29ce484222325, int(numpy.prod(shape))
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001b3 % 2**64
    with numpy.errstate(over="ignore"):
        z = numpy.uint64(seed) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9e3779b97f4a7c15)
        z = (z ^ z >> numpy.uint64(30)) * numpy.uint64(0xbf58476d1ce4e5b9)
        z = (z ^ z >> numpy.uint64(27)) * numpy.uint64(0x94d049bb133111eb)
        z = z ^ z >> numpy.uint64(31)
    v = (z >> numpy.uint64(40)).astype(numpy.float32) / numpy.float32(2**23) - numpy.float32(1)
    if len(shape) == 1:
        v = v * numpy.float32(.1) + numpy.float32(1 if name.endswith("weight") else 0)
    elif "embeddings" not in name:
        v = v * numpy.float32((3 / (count // shape[0])) ** .5)
    return torch.from_numpy(v.reshape(shape))


def fill(part, module):
    """All of a module's tensors, and what they are called."""
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    module.load_state_dict({name: made_up(f"{part}/{name}", shape) for name, shape in shapes.items()})
    return shapes


def tokenizer(folder, pad="<|endoftext|>"):
    """CLIP's, from its merges."""
    merges = gzip.decompress(MERGES.read_bytes()).decode().strip().split("\n")[1:]
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [byte for byte in range(256) if byte not in order]
    letters = [chr(byte if place < 188 else 256 + place - 188) for place, byte in enumerate(order)]
    vocab = letters + [letter + "</w>" for letter in letters] + [merge.replace(" ", "") for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, pad_token=pad, bos_token="<|startoftext|>", eos_token="<|endoftext|>", model_max_length=77)


def text(model, width, act, **more):
    return model(CLIPTextConfig(vocab_size=49408, hidden_size=width, intermediate_size=2 * width, num_attention_heads=width // 64, num_hidden_layers=3, hidden_act=act, **more))


def unet(channels, heads, cross, **more):
    down = more.pop("down_block_types", ["CrossAttnDownBlock2D"] * (len(channels) - 1) + ["DownBlock2D"])
    up = [kind.replace("Down", "Up") for kind in reversed(down)]
    return UNet2DConditionModel(block_out_channels=channels, layers_per_block=2, sample_size=8, cross_attention_dim=cross, attention_head_dim=heads, down_block_types=down, up_block_types=up, **more)


def vae(scaling_factor):
    return AutoencoderKL(block_out_channels=(32, 32, 32, 64), down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2,
                         latent_channels=4, sample_size=64, scaling_factor=scaling_factor)


def make(folder):
    """The models, by name: a pipeline and the names and shapes of its tensors."""
    plain = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    eps, bang = dict(skip_prk_steps=True, **BETAS), "!"
    sd1 = dict(text_encoder=text(CLIPTextModel, 64, "quick_gelu"), tokenizer=tokenizer(folder / "1"), vae=vae(.18215), scheduler=PNDMScheduler(**eps))
    yield "sd1", StableDiffusionPipeline(unet=unet((32, 64, 64), 8, 64), **sd1, **plain)
    yield "sd1-inpainting", StableDiffusionPipeline(unet=unet((32, 64, 64), 8, 64, in_channels=9), **sd1, **plain)
    yield "lcm", LatentConsistencyModelPipeline(unet=unet((32, 64), 8, 64, time_cond_proj_dim=32), **sd1 | dict(scheduler=LCMScheduler(**BETAS)), **plain)
    sd2 = dict(text_encoder=text(CLIPTextModel, 128, "gelu"), tokenizer=tokenizer(folder / "2", bang), vae=vae(.18215), scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **BETAS))
    yield "sd2", StableDiffusionPipeline(unet=unet((64, 128), (1, 2), 128, use_linear_projection=True), **sd2, **plain)
    xl = dict(down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], use_linear_projection=True, addition_embed_type="text_time",
              addition_time_embed_dim=32, projection_class_embeddings_input_dim=128 + 6 * 32)
    both = dict(text_encoder=text(CLIPTextModel, 64, "quick_gelu"), tokenizer=tokenizer(folder / "3"), text_encoder_2=text(CLIPTextModelWithProjection, 128, "gelu", projection_dim=128),
                tokenizer_2=tokenizer(folder / "4", bang), vae=vae(.13025), scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **BETAS), force_zeros_for_empty_prompt=True)
    yield "sdxl", StableDiffusionXLPipeline(unet=unet((64, 128), (1, 2), 192, transformer_layers_per_block=[1, 2], **xl), **both)
    # Distilled to fewer blocks: no transformer in the middle, and another number of blocks in each transformer on the way up.
    for name, down, up in ("ssd-1b", [1, [2, 2]], [[2, 2, 3], 1]), ("vega", [1, [1, 1]], [[1, 1, 1], 1]):
        few = dict(transformer_layers_per_block=down, reverse_transformer_layers_per_block=up, mid_block_type="UNetMidBlock2D")
        yield name, StableDiffusionXLPipeline(unet=unet((64, 128), (1, 2), 192, **few, **xl), **both)


def kept(path):
    """Files of a model that are kept: all but its weights and its vocabulary."""
    return path.suffix == ".json" and path.name != "vocab.json" and path.name != "tokenizer.json"


@torch.no_grad()
def conditions(pipe, words, height, width):
    """What the UNet is told of a prompt, for both sides of guidance: embeddings, pooled ones if it looks at those, and further arguments."""
    encoded = pipe.encode_prompt(words["prompt"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, negative_prompt=words["negative_prompt"])
    embeddings, pooled, extra = torch.cat([encoded[1], encoded[0]]), None, {}
    if hasattr(pipe, "text_encoder_2"):
        pooled = torch.cat([encoded[3], encoded[2]])
        extra["added_cond_kwargs"] = dict(text_embeds=pooled, time_ids=torch.tensor([[height, width, 0., 0, height, width]] * 2))
    if pipe.unet.config.time_cond_proj_dim:
        extra["timestep_cond"] = pipe.get_guidance_scale_embedding(torch.tensor([7.5 - 1] * 2), embedding_dim=pipe.unet.config.time_cond_proj_dim)
    return embeddings, pooled, extra


@torch.no_grad()
def networks(name, pipe, tensors):
    """Each network by itself."""
    embeddings, pooled, extra = conditions(pipe, OWL, 64, 72)
    tensors[f"{name}.text_embeddings"] = embeddings
    if pooled is not None:
        tensors[f"{name}.pooled"] = pooled
        tensors[f"{name}.added"] = pipe.unet.get_aug_embed(emb=torch.zeros(2, 1), encoder_hidden_states=embeddings, added_cond_kwargs=extra["added_cond_kwargs"])
    sample = 2 * made_up("latents", [1, pipe.unet.config.in_channels, 8, 9])
    tensors[f"{name}.unet"] = pipe.unet(torch.cat([sample] * 2), 801, embeddings, **extra).sample
    tensors[f"{name}.encoded"] = pipe.vae.encode(made_up("picture", [1, 3, 64, 72])).latent_dist.mode() * pipe.vae.config.scaling_factor
    tensors[f"{name}.decoded"] = pipe.vae.decode(made_up("latents", [1, 4, 8, 9]) / pipe.vae.config.scaling_factor).sample


@torch.no_grad()
def picture(pipe, case, tensors):
    """A whole run."""
    latents = []
    keep = lambda pipe, step, t, kw: latents.append(kw["latents"].clone()) or {}
    generator = lambda: torch.Generator("cpu").manual_seed(case["seed"])
    words = dict(prompt=case["prompt"])
    if not isinstance(pipe, LatentConsistencyModelPipeline):
        # diffusers takes an empty one for one that is given: SDXL's zeros come of none.
        words["negative_prompt"] = case["negative_prompt"] or None
    image = pipe(**words, guidance_scale=case["guidance_scale"], num_inference_steps=case["steps"], width=case["width"], height=case["height"],
                 generator=generator(), callback_on_step_end=keep, output_type="np").images[0]
    noise = torch.randn(latents[0].shape, generator=generator())
    tensors[f"{case['name']}.latents"] = torch.cat([noise * pipe.scheduler.init_noise_sigma] + latents)
    tensors[f"{case['name']}.image"] = torch.from_numpy((image * 255).round().astype("uint8")).contiguous()


@torch.no_grad()
def learned_words(name, pipe, tensors):
    """A word of three vectors, and one of one, learned as diffusers does."""
    encoders = [(pipe.text_encoder, pipe.tokenizer)] + ([(pipe.text_encoder_2, pipe.tokenizer_2)] if name == "sdxl" else [])
    for i, (text_encoder, tokenizer) in enumerate(encoders):
        for word, count in ("easy-negative", 3), ("<cat-toy>", 1):
            vectors = made_up(f"{word} {i}", [count, text_encoder.config.hidden_size])
            pipe.load_textual_inversion({word: vectors}, token=word, text_encoder=text_encoder, tokenizer=tokenizer)
    encoded = pipe.encode_prompt("a <cat-toy>, easy-negative fox", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    tensors[f"{name}.learned"] = encoded[0]
    if name == "sdxl":
        tensors[f"{name}.learned_pooled"] = encoded[2]


def runs(name):
    """Cases of a model: the scheduler, what its configuration has beside the model's own, and the request."""
    base = dict(guidance_scale=5., seed=7, width=72, height=64)
    if name == "lcm":
        yield LCMScheduler, {}, dict(base, **FOX, steps=4, guidance_scale=8.5)
        yield LCMScheduler, {}, dict(base, **OWL, steps=1, guidance_scale=1.)
    elif name in ("sd1", "sd2", "sdxl"):
        for prediction in "epsilon", "v_prediction":
            own = {"sd1": PNDMScheduler, "sd2": DDIMScheduler, "sdxl": EulerDiscreteScheduler}[name]
            for steps, words in (1, FOX), (2, OWL), (20, FOX):
                yield own, dict(prediction_type=prediction), dict(base, **words, steps=steps)
        if name == "sdxl":
            yield EulerAncestralDiscreteScheduler, dict(timestep_spacing="trailing"), dict(base, **OWL, steps=1, guidance_scale=0.)
            yield EulerAncestralDiscreteScheduler, dict(timestep_spacing="trailing"), dict(base, **FOX, steps=3, guidance_scale=0.)
        if name == "sd2":
            yield EulerDiscreteScheduler, dict(timestep_spacing="trailing"), dict(base, **OWL, steps=1, guidance_scale=0.)
            yield DDIMScheduler, dict(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True), dict(base, **OWL, steps=3)


def main():
    tensors, cases = {}, []
    shutil.rmtree(HERE / "families", ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        for name, pipe in make(pathlib.Path(work)):
            shapes = {part: fill(part, module) for part, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
            saved = pathlib.Path(work) / name
            pipe.save_pretrained(saved)
            for path in filter(kept, saved.rglob("*")):
                target = HERE / "families" / name / path.relative_to(saved)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
            lines = ",\n".join(f'"{part}": ' + "{\n" + ",\n".join(f"{json.dumps(key)}: {shape}" for key, shape in all.items()) + "\n}" for part, all in shapes.items())
            (HERE / "families" / name / "tensors.json").write_text("{\n" + lines + "\n}\n")
            pipe.set_progress_bar_config(disable=True)
            networks(name, pipe, tensors)
            owner, parts = OWNERS.get(name, (None, []))
            for part in parts:
                assert torch.equal(tensors.pop(f"{name}.{part}"), tensors[f"{owner}.{part}"])   # the same networks: kept once
            own = pipe.scheduler.config
            for scheduler, changes, request in runs(name):
                pipe.scheduler = scheduler.from_config(own, **changes)
                case = dict(name=f"{len(cases)}", model=name, scheduler=dict(pipe.scheduler.config, _class_name=scheduler.__name__), **request)
                case["scheduler"] = {key: value for key, value in case["scheduler"].items() if value is not None and key != "_use_default_values"}
                cases.append(case)
                picture(pipe, case, tensors)
                print(name, scheduler.__name__, changes, request["steps"], tensors[f"{case['name']}.latents"].abs().amax(dim=(1, 2, 3)).tolist(), tensors[f"{case['name']}.image"].float().std().item())
            if name in ("sd1", "sdxl"):
                learned_words(name, pipe, tensors)
    HERE.joinpath("families.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, HERE / "families.safetensors")


if __name__ == "__main__":
    main()
