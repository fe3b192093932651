#!/usr/bin/env bash
# k-diffusion's sample_dpmpp_2m_sde and sample_dpmpp_3m_sde fail on a run of one step, from a noise level to none: after the step to no noise
# they keep the length of the step, which they work out for the other steps alone. Of two steps and more, the last one keeps that of the
# step before it, and nobody sees it. sample_dpmpp_2m, without noise, takes a single step. Who lets users ask for one step has to take the
# estimate of the picture there, as the step to no noise does.
#
# Seen with k-diffusion 0.1.1.post1 and torch 2.15.0:
#   sample_dpmpp_3m_sde, 2 steps: done
#   sample_dpmpp_3m_sde, 1 step: UnboundLocalError: cannot access local variable 'h' where it is not associated with a value
#   sample_dpmpp_2m_sde, 1 step: UnboundLocalError: cannot access local variable 'h' where it is not associated with a value
#   sample_dpmpp_2m, 1 step: done
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.15.0 numpy scipy tqdm
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps k-diffusion==0.1.1.post1 torchdiffeq==0.2.5
seen=$("$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import importlib.util, pathlib, sys, types

import torch

# sampling.py alone, without what the rest of the package needs.
folder = pathlib.Path(importlib.util.find_spec("k_diffusion").origin).parent
for name in "torchsde", "k_diffusion", "k_diffusion.utils":
    sys.modules[name] = types.ModuleType(name)
sys.modules["k_diffusion"].__path__ = [str(folder)]
sys.modules["k_diffusion"].utils = sys.modules["k_diffusion.utils"]
sys.modules["k_diffusion.utils"].append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
sampling = importlib.import_module("k_diffusion.sampling")

for name, sigmas in [("sample_dpmpp_3m_sde", [10.0, 1.0, 0.0])] + [(f"sample_dpmpp_{kind}", [10.0, 0.0]) for kind in ("3m_sde", "2m_sde", "2m")]:
    steps = len(sigmas) - 1
    said = f"{name}, {steps} step{'s' if steps > 1 else ''}:"
    try:
        noise = dict(noise_sampler=lambda *_: torch.ones(1, 4)) if "sde" in name else {}
        getattr(sampling, name)(lambda x, sigma: x * 0, torch.ones(1, 4), torch.tensor(sigmas), disable=True, **noise)
        print(said, "done")
    except Exception as error:
        print(said, f"{type(error).__name__}: {error}".replace("referenced before assignment", "").strip())
PYTHON
)
echo "$seen"
for line in 'sample_dpmpp_3m_sde, 2 steps: done' 'sample_dpmpp_3m_sde, 1 step: UnboundLocalError' 'sample_dpmpp_2m_sde, 1 step: UnboundLocalError' \
    'sample_dpmpp_2m, 1 step: done'; do
    grep -q "^$line" <<<"$seen" || { echo "this has changed: $line" >&2; exit 1; }
done
