#!/bin/bash
# Trains whatever stage is due; each resumes from its checkpoint and ends at once when it is done.
here="$(cd "$(dirname "$0")" && pwd)"; cd "$here"; . ./env.sh; python="${PYTHON:-python3}"
"$python" "$here/train.py" vae --steps 3000 >> vae.log 2>&1 || exit 1
"$python" "$here/train.py" unet --steps 200000 >> unet.log 2>&1
