#!/usr/bin/env bash
# In torch's interpolate, antialias=True changes what bicubic makes of an enlarged picture, where there is nothing to alias: the cubic's slope
# is -0.75 without it and -0.5 with it, as in Pillow. Bilinear is the same with and without, away from the edges. The documentation of antialias
# speaks of downsampling alone.
#
# Seen with torch 2.15.0, on one point of seven that becomes two of fourteen:
#   bicubic: 0.8789 0.2617 -0.1055 -0.0352
#   bicubic, antialias: 0.8672 0.2266 -0.0703 -0.0234
#   bilinear: 0.7500 0.2500 0.0000 0.0000
#   bilinear, antialias: 0.7500 0.2500 0.0000 0.0000
#
# So "Latent (bicubic)" and "Latent (bicubic antialiased)" of A1111's hires fix, which enlarges, are two filters, and "Latent" and "Latent
# (antialiased)" one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.15.0 numpy
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch

point = torch.zeros(1, 1, 1, 7)
point[..., 3] = 1
for mode in "bicubic", "bilinear":
    for antialias in False, True:
        made = torch.nn.functional.interpolate(point, size=(1, 14), mode=mode, antialias=antialias).flatten().tolist()
        print(f"{mode}{', antialias' if antialias else ''}: {' '.join(f'{value:.4f}' for value in made[7:11])}")
PYTHON
)
echo "$seen"
[ "$seen" = "bicubic: 0.8789 0.2617 -0.1055 -0.0352
bicubic, antialias: 0.8672 0.2266 -0.0703 -0.0234
bilinear: 0.7500 0.2500 0.0000 0.0000
bilinear, antialias: 0.7500 0.2500 0.0000 0.0000" ] || { echo "it does something else now"; exit 1; }
