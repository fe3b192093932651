"""Runs small ESRGAN and Real-ESRGAN networks of every published layout in spandrel and writes what they compute: tests/parity/upscalers.json and
tests/parity/upscalers.safetensors.

  pip install torch diffusers transformers accelerate spandrel && python tests/parity/make_upscaler_goldens.py

The networks' numbers follow from their tensors' names, made_up("<network>/<name>", shape), but for the slopes of PReLU, which are less by 0.8.
What is kept of the networks are the names and shapes of their tensors, with their scale; "<network>" is what they make of
control_picture("upscaler", 9, 7), or of 5 x 5 pixels at a scale of 8, as floats that are not clamped. "crisp" is what the binary's own network
makes of it.
"""
import json, pathlib

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from spandrel import ModelLoader

from make_control_goldens import control_picture
from make_family_goldens import made_up

HERE = pathlib.Path(__file__).parent
GROWN = 32  # spandrel knows no others


def conv(tensors, name, inputs, outputs, kernel=3, bias=True):
    tensors[f"{name}.weight"] = [outputs, inputs, kernel, kernel]
    if bias:
        tensors[f"{name}.bias"] = [outputs]


def rrdb(layout, features, blocks, ups, inputs=3, plus=False):
    first, block, trunk, up, hr, last = {
        "basicsr": ("conv_first", "body.{}.rdb{}.{}", "conv_body", "conv_up{}", "conv_hr", "conv_last"),
        "realsr": ("conv_first", "RRDB_trunk.{}.RDB{}.{}", "trunk_conv", "upconv{}", "HRconv", "conv_last"),
        "numbered": ("model.0", "model.1.sub.{}.RDB{}.{}.0", f"model.1.sub.{blocks}", None, f"model.{3 * ups + 2}", f"model.{3 * ups + 4}"),
    }[layout]
    tensors = {}
    conv(tensors, first, inputs, features)
    for i in range(blocks):
        for dense in 1, 2, 3:
            if plus:
                conv(tensors, f"model.1.sub.{i}.RDB{dense}.conv1x1", features, GROWN, 1, False)
            for number in range(1, 6):
                conv(tensors, block.format(i, dense, f"conv{number}"), features + (number - 1) * GROWN, features if number == 5 else GROWN)
    conv(tensors, trunk, features, features)
    for i in range(1, ups + 1):
        conv(tensors, up.format(i) if up else f"model.{3 * i}", features, features)
    conv(tensors, hr, features, features)
    conv(tensors, last, features, 3)
    return tensors


def compact(features, convs, scale):
    tensors = {}
    for i in range(convs + 1):
        conv(tensors, f"body.{2 * i}", features if i else 3, features)
        tensors[f"body.{2 * i + 1}.weight"] = [features]
    conv(tensors, f"body.{2 * convs + 2}", features, 3 * scale * scale)
    return tensors


NETWORKS = {
    "esrgan-x4": rrdb("numbered", 16, 2, 2),
    "esrgan-x2": rrdb("numbered", 16, 1, 1),
    "esrgan-x1": rrdb("numbered", 16, 1, 0),
    "esrgan-x8": rrdb("numbered", 8, 1, 3),
    "esrgan-plus-x4": rrdb("numbered", 16, 1, 2, plus=True),
    "bsrgan-x4": rrdb("realsr", 16, 1, 2),
    "bsrgan-x2": rrdb("realsr", 24, 1, 1),
    "real-esrgan-x4": rrdb("basicsr", 16, 2, 2),
    "real-esrgan-x2": rrdb("basicsr", 16, 1, 2, inputs=12),
    "real-esrgan-x1": rrdb("basicsr", 16, 1, 2, inputs=48),
    "compact-x4": compact(16, 3, 4),
    "compact-x2": compact(24, 2, 2),
    "compact-x1": compact(16, 1, 1),
}


@torch.no_grad()
def enlarged(name, state):
    """What spandrel makes of the picture, and the network's scale."""
    network = ModelLoader().load_from_state_dict(dict(state))
    size = (5, 5) if network.scale == 8 else (9, 7)
    values = torch.from_numpy(np.array(control_picture("upscaler", *size))).float().permute(2, 0, 1)[None] / 255
    result = []
    # Its call pads the picture first, and clamps the numbers afterwards.
    network._call_fn = lambda model, image: result.append(model(image)) or result[0].clone()
    network(values)
    made = result[0][..., :size[1] * network.scale, :size[0] * network.scale].clone()
    print(name, network.architecture.id, network.scale, list(made.shape), "mean", round(made.mean().item(), 2), "deviation", round(made.std().item(), 2))
    return made, network.scale


def main():
    torch.set_num_threads(1)
    tensors, kept = {}, {}
    for name, shapes in NETWORKS.items():
        is_slope = lambda tensor, shape: len(shape) == 1 and tensor.endswith("weight")
        state = {tensor: made_up(f"{name}/{tensor}", shape) - (.8 if is_slope(tensor, shape) else 0) for tensor, shape in shapes.items()}
        tensors[name], scale = enlarged(name, state)
        kept[name] = {"scale": scale, "tensors": shapes}
    state = load_file(HERE.parent.parent / "src/builtin_model/model/upscalers/crisp.safetensors")
    tensors["crisp"], _ = enlarged("crisp", {name: tensor.float() for name, tensor in state.items()})
    lines = lambda shapes: ",\n".join(f"{json.dumps(tensor)}: {shape}" for tensor, shape in shapes.items())
    entry = lambda name: f'"{name}": {{"scale": {kept[name]["scale"]}, "tensors": {{\n{lines(kept[name]["tensors"])}\n}}}}'
    (HERE / "upscalers.json").write_text("{\n" + ",\n".join(map(entry, kept)) + "\n}\n")
    save_file(tensors, HERE / "upscalers.safetensors")


if __name__ == "__main__":
    main()
