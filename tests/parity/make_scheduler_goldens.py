"""Runs the schedulers of diffusers on a toy network and writes where they end: tests/parity/schedulers.json.

  pip install torch diffusers scipy && pip install --no-deps k-diffusion && python tests/parity/make_scheduler_goldens.py

The toy network says 0.3 * x + 0.1 * cos(t / 100 + i) of element i, so that an error in any timestep or scale shows. DPM++ 2S a, which
diffusers does not have, is k-diffusion's. Runs with a "start" begin with a picture, as in image-to-image; those with "blend" are mixed
with it in halves after every evaluation, as in inpainting.
"""
import functools, importlib.util, inspect, itertools, json, math, pathlib, sys, types, warnings

import numpy as np
import torch
from diffusers import (DDIMScheduler, DDPMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler,
                       EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler,
                       KDPM2DiscreteScheduler, LCMScheduler, LMSDiscreteScheduler, PNDMScheduler, TCDScheduler, UniPCMultistepScheduler)

SDE = dict(algorithm_type="sde-dpmsolver++")
CLASSES = {
    "ddim": (DDIMScheduler, {}), "ddpm": (DDPMScheduler, {}), "pndm": (PNDMScheduler, dict(skip_prk_steps=True)), "lms": (LMSDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}), "euler": (EulerDiscreteScheduler, {}), "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "dpm2": (KDPM2DiscreteScheduler, {}), "dpm2_a": (KDPM2AncestralDiscreteScheduler, {}), "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, SDE), "dpmpp_2s_a": (EulerDiscreteScheduler, {}), "dpmpp_sde": (DPMSolverSinglestepScheduler, SDE),
    "unipc": (UniPCMultistepScheduler, {}), "deis": (DEISMultistepScheduler, {}), "lcm": (LCMScheduler, {}), "tcd": (TCDScheduler, {}),
}
WITHOUT_CURVES = "ddim", "ddpm", "pndm", "lcm", "tcd"
BASE = dict(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
AYS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]  # NVIDIA's howto


@functools.cache
def k_diffusion_sampling():
    """k_diffusion/sampling.py alone, without what the rest of the package needs."""
    folder = pathlib.Path(importlib.util.find_spec("k_diffusion").origin).parent
    for name in "torchsde", "torchdiffeq", "k_diffusion", "k_diffusion.utils":
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchdiffeq"].odeint = None
    sys.modules["k_diffusion"].__path__ = [str(folder)]
    sys.modules["k_diffusion"].utils = sys.modules["k_diffusion.utils"]
    sys.modules["k_diffusion.utils"].append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    return importlib.import_module("k_diffusion.sampling")


def network(x, t):
    return .3 * x + .1 * torch.cos(torch.as_tensor(t).float() / 100 + torch.arange(16))


def align_your_steps(n, levels):
    """NVIDIA's howto: interpolated in the logarithm; the last one gives way to no noise at all."""
    return np.exp(np.interp(np.linspace(0, 10, n + 1), np.arange(11), np.log(levels)))[:-1]


def scheduler_of(name, schedule, steps, config, ays=AYS):
    """diffusers' scheduler with its timesteps set."""
    cls, extra = CLASSES[name]
    extra = dict(extra)
    if name == "euler_a" and schedule not in ("default", "sgm_uniform"):
        scheduler = cls.from_config(config)
        scheduler.set_timesteps(steps)
        like = scheduler_of("euler", schedule, steps, config, ays)
        scheduler.sigmas, scheduler.timesteps = like.sigmas, like.timesteps
        return scheduler
    if schedule in ("karras", "exponential", "beta"):
        extra[f"use_{schedule}_sigmas"] = True
    if schedule == "ays":
        extra["use_exponential_sigmas"] = True
    if schedule in ("sgm_uniform", "simple"):
        extra["timestep_spacing"] = "trailing"
    scheduler = cls.from_config(config | extra)
    if schedule == "ays":
        scheduler._convert_to_exponential = lambda in_sigmas, num_inference_steps: align_your_steps(steps, ays)
    if schedule == "simple":
        scheduler.set_timesteps(timesteps=[999 - i * 1000 // steps for i in range(steps)])
    else:
        scheduler.set_timesteps(steps)
    return scheduler


PICTURE = torch.arange(16.)[None] / 10 - .8


def run(name, scheduler, eta, start=None, blend=False, network=network, shape=(1, 16)):
    generator = torch.Generator("cpu").manual_seed(7)
    noise = torch.randn(shape, generator=generator)
    first = (start or 0) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps[first:]
    x = noise * scheduler.init_noise_sigma if start is None else scheduler.add_noise(PICTURE, noise, timesteps[:1])
    if name == "dpmpp_2s_a":
        log_sigmas = np.log(np.array(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** .5))

        def model(x, sigma):
            out = network(x / (sigma**2 + 1) ** .5, scheduler._sigma_to_t(sigma.numpy(), log_sigmas).item())
            v = scheduler.config.prediction_type == "v_prediction"
            return -out * sigma / (sigma**2 + 1) ** .5 + x / (sigma**2 + 1) if v else x - sigma * out
        # In f64: the way down is a small difference of large numbers.
        return k_diffusion_sampling().sample_dpmpp_2s_ancestral(model, x.double(), scheduler.sigmas[first:].double(), extra_args={}, disable=True,
                                           noise_sampler=lambda *_: torch.randn(shape, generator=generator))
    takes = inspect.signature(scheduler.step).parameters
    kw = {} if "generator" not in takes else dict(generator=generator)
    if eta is not None:
        kw["eta"] = eta
    for i, t in enumerate(timesteps):
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, **kw).prev_sample
        if blend:
            x = (x + (scheduler.add_noise(PICTURE, noise, timesteps[i + 1:i + 2]) if i + 1 < len(timesteps) else PICTURE)) / 2
    return x


def begun(configs):
    """Runs that begin with a picture."""
    cases = []
    for i, name, (steps, start) in itertools.product((0, 4, 7), CLASSES, ((1, 0), (5, 1), (5, 4), (20, 3), (28, 10))):
        schedules = ["default"] + (["karras"] if name not in WITHOUT_CURVES and i == 0 else [])
        for schedule, blend in itertools.product(schedules, (False, True)):
            if name == "dpmpp_2s_a" and (blend or i == 7):
                continue  # see main; k-diffusion knows no masks
            if name == "deis" and steps == 1 and schedule != "default":
                continue  # see main
            x = run(name, scheduler_of(name, schedule, steps, configs[i]), None, start, blend)
            if torch.isfinite(x).all():
                cases.append(dict(config=i, sampler=name, schedule=schedule, steps=steps, end=[float(f"{v:.6g}") for v in x[0, :4]], start=start, blend=blend))
    return cases


def main():
    warnings.filterwarnings("ignore")
    variants = [dict(prediction_type=p, timestep_spacing=s, rescale_betas_zero_snr=z) for p, s, z in itertools.product(
        ("epsilon", "v_prediction"), ("leading", "trailing", "linspace"), (False, True))]
    curved = range(0, len(variants), 2)  # those without zero terminal SNR
    variants += [dict(prediction_type="epsilon"), dict(prediction_type="epsilon", beta_schedule="linear", clip_sample=True, set_alpha_to_one=True),
                 dict(prediction_type="epsilon", beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"),
                 dict(prediction_type="epsilon", final_sigmas_type="sigma_min", timestep_spacing="leading"), dict(prediction_type="epsilon", num_train_timesteps=500),
                 dict(prediction_type="v_prediction", use_karras_sigmas=True)]
    configs, cases = [BASE | v for v in variants], []
    # At 18, 35 and 48 steps there are timesteps that lie on a half, and round as the reference's sums do.
    of_all, of_few = itertools.product(range(len(configs)), CLASSES, (1, 2, 3, 7, 20, 28)), itertools.product((6, 8, 17), CLASSES, (18, 35, 48))
    for i, name, steps in itertools.chain(of_all, of_few):
        config, schedules = configs[i], ["default"]
        if name not in WITHOUT_CURVES:
            schedules += ["karras"] if name in ("euler", "dpmpp_2m") or i in curved else []
            schedules += ["exponential", "beta", "ays", "sgm_uniform"] if i in curved else []
        schedules += ["simple"] if name in ("euler", "dpmpp_2m") and i in curved else []
        schedules += ["sgm_uniform"] if name in ("ddim", "ddpm", "pndm") and i in curved else []
        etas = [None] + ([0.5, 1.0] if name == "ddim" else [0.0, 0.8] if name == "tcd" else [])
        for schedule, eta in itertools.product(schedules, etas):
            if name == "dpmpp_sde" and schedule == "sgm_uniform" or name == "dpmpp_2s_a" and (config.get("rescale_betas_zero_snr") or "final_sigmas_type" in config):
                continue  # the class has no such setting; Euler's noise levels are not those of the sampler
            if name == "deis" and (schedule == "ays" or steps == 1 and (schedule != "default" or config.get("use_karras_sigmas"))):
                continue  # the class ends where the curve does, not at the lowest noise level there is
            if name == "dpm2_a" and config["beta_schedule"] == "squaredcos_cap_v2":
                continue  # in f32, its way down from such noise levels is anywhere
            if name == "heun" and config.get("clip_sample"):
                continue  # clamping is for models that work on pixels
            scheduler = scheduler_of(name, schedule, steps, config)
            if name in ("ddim", "euler", "dpmpp_2m") and len(scheduler.timesteps) != steps:
                continue  # numpy.arange rounded its way to one timestep too many
            x = run(name, scheduler, eta)
            if not torch.isfinite(x).all():
                continue  # epsilon prediction has no picture to find where nothing but noise is left
            case = dict(config=i, sampler=name, schedule=schedule, steps=steps, end=[float(f"{v:.6g}") for v in x[0, :4]])
            cases.append(case | ({} if eta is None else dict(eta=eta)))
    cases += begun(configs)
    path = pathlib.Path(__file__).with_name("schedulers.json")
    lines = lambda rows: "[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]"
    path.write_text(f'{{"configs":{lines(configs)},\n"cases":{lines(cases)}}}\n')
    print(len(cases), "cases,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
