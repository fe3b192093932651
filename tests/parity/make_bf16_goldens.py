"""How far diffusers in bf16 is from diffusers in f32, on the small models of every family: tests/parity/bf16.json.

  pip install torch diffusers transformers accelerate && python tests/parity/make_bf16_goldens.py

After make_family_goldens.py, whose models, requests and f32 results it takes. Errors are relative to the largest number.
"""
import json, pathlib, tempfile

import torch
from safetensors.torch import load_file

import make_family_goldens as families

HERE = pathlib.Path(__file__).parent


def error(x, right): return ((x.float() - right).abs().max() / right.abs().max()).item()


@torch.no_grad()
def main():
    right, cases, errors = load_file(HERE / "families.safetensors"), json.loads((HERE / "families.json").read_text()), {"unet": {}, "latents": {}}
    with tempfile.TemporaryDirectory() as work:
        for name, pipe in families.make(pathlib.Path(work)):
            modules = {part: module for part, module in pipe.components.items() if isinstance(module, torch.nn.Module)}
            for part, module in modules.items(): families.fill(part, module)
            embeddings, _, extra = families.conditions(pipe, families.OWL, 64, 72)
            pipe.to(torch.bfloat16); pipe.set_progress_bar_config(disable=True); low = lambda x: x.bfloat16() if torch.is_tensor(x) else {k: low(v) for k, v in x.items()}
            sample = 2 * families.made_up("latents", [1, pipe.unet.config.in_channels, 8, 9])
            errors["unet"][name] = error(pipe.unet(low(torch.cat([sample] * 2)), 801, low(embeddings), **low(extra)).sample, right[f"{name}.unet"])
            own = pipe.scheduler.config
            for (scheduler, changes, request), case in zip(families.runs(name), [case for case in cases if case["model"] == name], strict=True):
                pipe.scheduler, found = scheduler.from_config(own, **changes), {}
                families.picture(pipe, case, found)
                errors["latents"][case["name"]] = error(found[f"{case['name']}.latents"][-1], right[f"{case['name']}.latents"][-1])
            print(name, errors["unet"][name])
    (HERE / "bf16.json").write_text(json.dumps(errors, indent=1) + "\n")


if __name__ == "__main__":
    main()
