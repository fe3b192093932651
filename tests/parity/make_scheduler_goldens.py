"""Runs diffusers' schedulers on a toy network and writes where they end: tests/parity/schedulers.json.

  pip install torch diffusers && python tests/parity/make_scheduler_goldens.py

The toy network says 0.3 * x + 0.1 * cos(t / 100 + i) of element i, so that an error in any timestep or scale shows.
"""
import itertools, json, math, pathlib, warnings

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

CLASSES = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "euler_a": EulerAncestralDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
BASE = dict(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def run(scheduler, steps):
    generator = torch.Generator("cpu").manual_seed(7)
    scheduler.set_timesteps(steps)
    if len(scheduler.timesteps) != steps:
        return None  # numpy.arange rounded its way to one timestep too many
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    x = torch.randn(16, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        out = .3 * seen + .1 * torch.cos(t.float() / 100 + torch.arange(16))
        kw = {} if isinstance(scheduler, DPMSolverMultistepScheduler | DDIMScheduler | EulerDiscreteScheduler) else dict(generator=generator)
        x = scheduler.step(out, t, x, **kw).prev_sample
    return x


def main():
    warnings.filterwarnings("ignore")
    cases = []
    variants = [dict(prediction_type=p, timestep_spacing=s, rescale_betas_zero_snr=z) for p, s, z in itertools.product(
        ("epsilon", "v_prediction"), ("leading", "trailing", "linspace"), (False, True))]
    variants += [dict(prediction_type="epsilon"), dict(prediction_type="epsilon", beta_schedule="linear", clip_sample=True, set_alpha_to_one=True),
                 dict(prediction_type="epsilon", beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"),
                 dict(prediction_type="epsilon", final_sigmas_type="sigma_min", timestep_spacing="leading"), dict(prediction_type="epsilon", num_train_timesteps=500)]
    for variant, (name, cls), karras, steps in itertools.product(variants, CLASSES.items(), (False, True), (1, 2, 3, 7, 20, 28)):
        if karras and name not in ("euler", "dpmpp_2m"):
            continue
        config = BASE | variant
        x = run(cls.from_config(config | (dict(use_karras_sigmas=True) if karras else {})), steps)
        if x is None or not torch.isfinite(x).all():
            continue  # epsilon prediction has no picture to find where nothing but noise is left
        cases.append(dict(sampler=name, schedule="karras" if karras else "default", steps=steps, config=config, end=[float(f"{v:.6g}") for v in x[:4]]))
    path = pathlib.Path(__file__).with_name("schedulers.json")
    path.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    print(len(cases), "cases,", path.stat().st_size, "bytes")


main()
