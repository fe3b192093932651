"""Merges a LoRA into diffusers' small models by the formula, weight + alpha / rank * up @ down, and writes the pictures that they then make:
tests/parity/loras.{json,safetensors}. diffusers' own loader is not used: it takes one alpha for all attention layers of a file.

  pip install torch diffusers transformers accelerate && python tests/parity/make_lora_goldens.py

The LoRA's numbers follow from its tensors' names by made_up(), here and in tests/it/loras.rs: it changes every linear layer and every
convolution of the UNet, and every linear layer in the text encoders' layers, with ranks and alphas that differ from layer to layer.
"""
import json, pathlib, tempfile

import torch
from safetensors.torch import save_file

from make_family_goldens import FOX, fill, made_up, make, picture

HERE = pathlib.Path(__file__).parent
SCALE, TEXT_SCALE = 0.75, -0.5


def changes(key, shape):
    """What the LoRA adds to a weight."""
    rank = 1 + len(key) % 3
    alpha = (None, .5, .75, 1.)[len(key) % 4]
    down, up = made_up(f"{key}.down", [rank, *shape[1:]]), made_up(f"{key}.up", [shape[0], rank])
    product = (up.double() @ down.double().flatten(1)).reshape(shape)
    # Without an alpha, the factor is 1: smaller numbers keep the picture in range.
    return product * (alpha / rank if alpha else 1) * .2


@torch.no_grad()
def merge(pipe):
    count = 0
    for part in "unet", "text_encoder", "text_encoder_2":
        for name, module in getattr(pipe, part, torch.nn.Module()).named_modules():
            is_layer = isinstance(module, torch.nn.Linear) or part == "unet" and isinstance(module, torch.nn.Conv2d)
            if is_layer and (part == "unet" or ".layers." in f".{name}"):
                key = f"{part}/{name.removeprefix('text_model.')}"
                # 1 x 1 convolutions are linear layers.
                shape = [*module.weight.shape[:2], *(side for side in module.weight.shape[2:] if side > 1)]
                change = changes(key, shape).reshape(module.weight.shape) * (SCALE if part == "unet" else TEXT_SCALE)
                module.weight.copy_(module.weight.double() + change)
                count += 1
    return count


def main():
    tensors, cases = {}, []
    with tempfile.TemporaryDirectory() as work:
        for name, pipe in make(pathlib.Path(work)):
            if name not in ("sd1", "sd2", "sdxl"):
                continue
            for part, module in pipe.components.items():
                if isinstance(module, torch.nn.Module):
                    fill(part, module)
            pipe.set_progress_bar_config(disable=True)
            count = merge(pipe)
            case = dict(name=name, modules=count, scale=SCALE, text_scale=TEXT_SCALE, **FOX, steps=4, guidance_scale=5., seed=7, width=72, height=64)
            picture(pipe, case, tensors)
            cases.append(case)
            print(name, count, tensors[f"{name}.latents"].abs().amax(dim=(1, 2, 3)).tolist(), tensors[f"{name}.image"].float().std().item())
    HERE.joinpath("loras.json").write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, HERE / "loras.safetensors")


if __name__ == "__main__":
    main()
