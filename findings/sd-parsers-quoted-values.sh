#!/usr/bin/env bash
# A1111 puts a value of the infotext that has a comma, a colon or a line end in it into quotes, as a string of JSON (`quote` in its
# modules/infotext_utils.py), and its own reader takes such a string for one value. sd-parsers 0.6 does not: it cuts the value at the comma,
# leaves the quote in the model's name, and takes what follows for a setting of its own.
#
# Seen with sd-parsers 0.6 and Pillow 13.0.0 on Python 3.11:
#   models: ['"Colorful']
#   v1: pruned"
#
# So whoever writes such texts for both readers escapes commas and colons inside of the quotes as well (\u002c, \u003a).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check sd-parsers==0.6 pillow==13.0.0
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import io
from PIL import Image, PngImagePlugin
from sd_parsers import ParserManager

text = 'a fox\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 64x64, Model: "Colorful, v1: pruned", Version: v1.10.1'
chunks, file = PngImagePlugin.PngInfo(), io.BytesIO()
chunks.add_text("parameters", text)
Image.new("RGB", (64, 64)).save(file, "PNG", pnginfo=chunks)
file.seek(0)
read = ParserManager().parse(file)
print("models:", [model.name for model in read.models])
print("v1:", read.metadata.get("v1"))
PYTHON
)
printf '%s\n' "$seen"
[ "$seen" = $'models: [\'"Colorful\']\nv1: pruned"' ] || { echo "this has changed" >&2; exit 1; }
