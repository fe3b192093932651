"""Scales pictures as transformers' CLIPImageProcessor does, with Pillow: tests/parity/references.safetensors.

  pip install torch transformers pillow && python tests/parity/make_reference_goldens.py

The pictures are tests/parity/picture.png and noise, made_up("reference", [height, width, 3]), of which every colour is 0 or 255: the hardest
edges there are. What is kept are the colours, from 0 to 255, that are normed afterwards: "<picture>.<side>", (side, side, 3).
"""
import pathlib

import numpy, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor

from make_family_goldens import made_up

HERE = pathlib.Path(__file__).parent


def main():
    noise = Image.fromarray(((made_up("reference", [50, 131, 3]).numpy() > 0) * 255).astype("uint8"))
    tensors = {}
    for name, picture in ("picture", Image.open(HERE / "picture.png").convert("RGB")), ("noise", noise):
        for side in 24, 56, 100:
            scale = CLIPImageProcessor(size=side, crop_size=side, do_normalize=False, do_rescale=False)
            tensors[f"{name}.{side}"] = torch.from_numpy(numpy.array(scale(picture).pixel_values[0])).permute(1, 2, 0).to(torch.uint8)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, HERE / "references.safetensors")


if __name__ == "__main__":
    main()
