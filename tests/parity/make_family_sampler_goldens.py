"""Runs diffusers with every sampler on the models of make_family_goldens.py and writes where the latents end:
tests/parity/family_samplers.{json,safetensors}.

  pip install torch diffusers transformers accelerate scipy && pip install --no-deps k-diffusion && python tests/parity/make_family_sampler_goldens.py

Each sampler is made from the model's own scheduler_config.json, as for a request that names it. The pipelines of diffusers run all of them
but DPM++ 2S a, which is k-diffusion's, with diffusers' networks. Models without distillation have 17 samplers x 2 predictions x 1, 2 and 20
steps, and further schedules; those that embed the guidance scale have the samplers that they were distilled for.
"""
import itertools, json, pathlib, tempfile, warnings

import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers import AysSchedules
from make_family_goldens import HERE, OWL, conditions, fill, make
from make_scheduler_goldens import AYS, CLASSES, run, scheduler_of
from safetensors.torch import save_file

REQUEST = dict(OWL, guidance_scale=5., seed=7, width=64, height=64)
SCHEDULES = "karras", "exponential", "beta", "sgm_uniform", "simple", "ays"
AYS_XL = AysSchedules["StableDiffusionXLSigmas"][:-1] + AYS[-1:]  # NVIDIA's howto ends where the noise of the last step is, and not with none


def cases():
    """Model, what it predicts, sampler, schedule and steps."""
    for model, prediction in itertools.product(("sd1", "sd2", "sdxl", "lcm"), ("epsilon", "v_prediction")):
        for sampler, steps in itertools.product(("lcm", "tcd") if model == "lcm" else CLASSES, (1, 2, 20)):
            yield dict(model=model, prediction_type=prediction, sampler=sampler, schedule="default", steps=steps)
    for model, sampler, schedule in itertools.product(("sd2", "sdxl"), ("euler", "dpmpp_2m"), SCHEDULES):
        yield dict(model=model, prediction_type="epsilon", sampler=sampler, schedule=schedule, steps=12)


@torch.no_grad()
def latents(pipe, case):
    config = json.loads((HERE / "families" / case["model"] / "scheduler/scheduler_config.json").read_text())
    config |= dict(prediction_type=case["prediction_type"], clip_sample=False)  # which all models on the hub have
    scheduler = scheduler_of(case["sampler"], case["schedule"], case["steps"], config, AYS_XL if case["model"] == "sdxl" else AYS)
    if case["sampler"] == "dpmpp_2s_a":
        embeddings, _, extra = conditions(pipe, OWL, REQUEST["height"], REQUEST["width"])

        def network(x, t):
            negative, positive = pipe.unet(torch.cat([x.float()] * 2), t, embeddings, **extra).sample.chunk(2)
            return (negative + REQUEST["guidance_scale"] * (positive - negative)).double()
        return run(case["sampler"], scheduler, None, network=network, shape=(1, 4, 8, 8)).float()
    scheduler.set_timesteps = lambda *_, **__: None  # they are set
    pipe.scheduler = scheduler
    request = {key: value for key, value in REQUEST.items() if key != "seed"}
    eta = .3 if case["sampler"] == "tcd" else 0.  # ours has its own where a request does not say
    return pipe(**request, num_inference_steps=case["steps"], eta=eta, generator=torch.Generator("cpu").manual_seed(REQUEST["seed"]), output_type="latent").images


def main():
    warnings.filterwarnings("ignore")
    pipes, kept, ends = dict(make(pathlib.Path(tempfile.mkdtemp()))), [], []
    for pipe in pipes.values():
        for part, module in pipe.components.items():
            if isinstance(module, torch.nn.Module):
                fill(part, module)
    pipes["lcm"] = StableDiffusionPipeline.from_pipe(pipes["lcm"])  # whose own pipeline has no eta
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    for case in cases():
        end = latents(pipes[case["model"]], case)
        print(*case.values(), end.abs().max().item(), flush=True)
        if not torch.isfinite(end).all():
            print("not finite:", case)
            continue
        kept.append(case)
        ends.append(end)
    lines = ",\n".join(json.dumps(case) for case in kept)
    HERE.joinpath("family_samplers.json").write_text(f'{{"request": {json.dumps(REQUEST)},\n"cases": [\n{lines}\n]}}\n')
    save_file(dict(latents=torch.cat(ends)), HERE / "family_samplers.safetensors")
    print(len(kept), "cases")


if __name__ == "__main__":
    main()
