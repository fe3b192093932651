"""Runs small AutoencoderTiny models of diffusers and writes what they compute: tests/parity/tiny_vaes/ and tests/parity/tiny_vaes.safetensors.

  pip install torch diffusers transformers accelerate && python tests/parity/make_tiny_vae_goldens.py

As with the models, the networks' numbers follow from their tensors' names, made_up("<network>/<name>", shape), and what is kept of them are
their configurations and the names and shapes of their tensors.

"<network>.square" and ".wide" are its pictures of 2 * made_up("latents", [1, 4, 8, 8]) and [2, 4, 5, 11], divided by its scaling_factor as
pipelines do it; "<network>.latents" and ".image" are the last latents and the picture, as the pipeline returns it, of the model sd1 of
make_family_goldens.py with that network as its VAE, for REQUEST, with EulerDiscreteScheduler and a prediction of velocity.
"""
import json, pathlib, shutil, tempfile

import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from make_family_goldens import fill, made_up, make

HERE = pathlib.Path(__file__).parent
REQUEST = dict(prompt="a fox on a blue background", guidance_scale=5., num_inference_steps=4, width=72, height=64)
SEED = 7
NETWORKS = {
    "tiny-vae": dict(encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(2, 1, 1, 1)),
    "tiny-vae-scaled": dict(encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1, 0, 2, 1), scaling_factor=.5),
}


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    tensors = {}
    shutil.rmtree(HERE / "tiny_vaes", ignore_errors=True)
    with tempfile.TemporaryDirectory() as work:
        pipe = next(pipe for name, pipe in make(pathlib.Path(work)) if name == "sd1")
        for part, module in pipe.components.items():
            if isinstance(module, torch.nn.Module):
                fill(part, module)
        own = {key: value for key, value in pipe.scheduler.config.items() if key != "_use_default_values"}  # as if read from a file
        scheduler = EulerDiscreteScheduler.from_config(own, prediction_type="v_prediction")
        parts = {part: module for part, module in pipe.components.items() if part not in ("vae", "scheduler")}
        for name, config in NETWORKS.items():
            vae, folder = AutoencoderTiny(**config).eval(), HERE / "tiny_vaes" / name
            shapes = fill(name, vae)
            vae.save_pretrained(pathlib.Path(work) / name)
            folder.mkdir(parents=True)
            shutil.copy(pathlib.Path(work) / name / "config.json", folder)
            (folder / "tensors.json").write_text("{\n" + ",\n".join(f"{json.dumps(key)}: {shape}" for key, shape in shapes.items()) + "\n}\n")
            for shape, size in ("square", [1, 4, 8, 8]), ("wide", [2, 4, 5, 11]):
                tensors[f"{name}.{shape}"] = vae.decode(2 * made_up("latents", size) / vae.config.scaling_factor).sample
            tiny = StableDiffusionPipeline(**parts, vae=vae, scheduler=scheduler, requires_safety_checker=False)
            tiny.set_progress_bar_config(disable=True)
            draw = lambda kind: tiny(**REQUEST, generator=torch.Generator("cpu").manual_seed(SEED), output_type=kind).images[0]
            tensors[f"{name}.latents"] = draw("latent")[None]
            tensors[f"{name}.image"] = torch.from_numpy((draw("np") * 255).round().astype("uint8"))
            for key in "square", "wide", "latents", "image":
                values = tensors[f"{name}.{key}"].float()
                print(name, key, list(values.shape), "mean", round(values.mean().item(), 2), "deviation", round(values.std().item(), 2), "largest", round(values.abs().max().item(), 2))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, HERE / "tiny_vaes.safetensors")


if __name__ == "__main__":
    main()
