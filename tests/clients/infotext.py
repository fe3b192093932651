"""What files say of how they were made, read by sd-parsers. Usage: infotext.py PATH-TO-SD-WORKER MODEL-DIRECTORY"""

import subprocess
import sys
import tempfile
from pathlib import Path

from sd_parsers import ParserManager

BINARY, MODEL = sys.argv[1:]

with tempfile.TemporaryDirectory() as folder:
    for name in "plain", "owner/name", "asdf, CFG scale: 12, Seed: 99, x", "Colorful, v1: pruned", "two\nlines", '"quoted"':
        file = Path(folder) / "a.png"
        settings = ["--steps", "1", "--seed", "3", "--guidance-scale", "4.5", "--sampler", "euler_a", "--schedule", "karras", "--clip-skip", "2"]
        model = ["--model", name, "--model-path", MODEL]
        subprocess.run([BINARY, "generate", "a fox: red,\nold", "--negative-prompt", "dogs, cats", "-o", file, *settings, *model], check=True, stderr=subprocess.DEVNULL)
        info = ParserManager().parse(file)
        sampler = info.samplers[0]
        assert sampler.name == "Euler a", sampler
        assert {name: sampler.parameters[name] for name in ("steps", "seed", "cfg_scale", "scheduler")} == {"steps": "1", "seed": "3", "cfg_scale": "4.5", "scheduler": "Karras"}, sampler
        assert [prompt.value for prompt in sampler.prompts] == ["a fox: red,\nold"], sampler
        assert [prompt.value for prompt in sampler.negative_prompts] == ["dogs, cats"], sampler
        # It has no effect on a model of the family of Stable Diffusion 2, and is not written.
        assert "Clip skip" not in info.metadata and info.metadata["Size"], info.metadata
        if not set(name) & set(',:\n"'):
            assert sampler.model.name == name, sampler
    # In every format, whatever is in a prompt.
    for ending, prompt in ("jpg", "a \"red\" fox"), ("webp", "a fox,\nNegative prompt: cats\nSteps: 5, Sampler: x, Seed: 1, Size: 8x8"), ("png", "Ⓐ fox"):
        file = Path(folder) / f"a.{ending}"
        subprocess.run([BINARY, "generate", prompt, "--negative-prompt", "dogs", "--steps", "1", "--seed", "3", "-o", file], check=True, stderr=subprocess.DEVNULL)
        sampler = ParserManager().parse(file).samplers[0]
        assert [prompt.value for prompt in sampler.prompts] == [prompt.replace("Negative prompt:", "Negative prompt :")], sampler
        assert [prompt.value for prompt in sampler.negative_prompts] == ["dogs"] and sampler.parameters["seed"] == "3", sampler
print("sd-parsers reads what files say")
