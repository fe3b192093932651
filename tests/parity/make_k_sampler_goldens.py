"""Runs samplers that diffusers lacks on a toy network and writes where they end: tests/parity/k_samplers.json.

  pip install torch diffusers scipy && pip install --no-deps k-diffusion && python tests/parity/make_k_sampler_goldens.py

DPM++ 3M SDE is k-diffusion's, DPM++ 2M SDE Heun diffusers'. The others are in no package: they are written here by their papers' formulas,
in the form that A1111 (restart) and ComfyUI give them. Two schedules that diffusers lacks are tried with Euler's method and DPM++ 2M.
"""
import json, math, pathlib, warnings

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

import make_scheduler_goldens as goldens

STEPS = 1, 2, 3, 7, 19, 20, 28, 40
CONFIGS = [goldens.BASE | variant for variant in (
    dict(prediction_type="epsilon", timestep_spacing="leading"), dict(prediction_type="v_prediction", timestep_spacing="trailing"),
    dict(prediction_type="epsilon", timestep_spacing="linspace", beta_schedule="linear"))]


def derivative(x, sigma, x0):
    return (x - x0) / sigma


def res_multistep(model, x, sigmas, noise):
    """A second order exponential integrator in t = -log(sigma): arXiv 2308.02157, section 4, with the last x0 as the other node."""
    before = None
    for i, (sigma, to) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        x0 = model(x, sigma)
        if to == 0 or before is None:
            x = x + derivative(x, sigma, x0) * (to - sigma)
        else:
            h, node = math.log(sigma / to), math.log(sigma / sigmas[i - 1])
            phi1 = -math.expm1(-h) / h
            phi2 = (1 - phi1) / h
            c2 = node / h
            x = math.exp(-h) * x + h * ((phi1 - phi2 / c2) * x0 + phi2 / c2 * before)
        before = x0
    return x


def ipndm(model, x, sigmas, noise):
    """Adams and Bashforth: arXiv 2204.13902, equation 22."""
    slopes = []
    for sigma, to in zip(sigmas[:-1], sigmas[1:]):
        x0 = model(x, sigma)
        slopes = [derivative(x, sigma, x0)] + slopes[:3]
        weights = {1: (1,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -4 / 3, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -3 / 8)}[len(slopes)]
        x = x0 if to == 0 else x + (to - sigma) * sum(weight * slope for weight, slope in zip(weights, slopes))
    return x


def er_sde(model, x, sigmas, noise):
    """arXiv 2309.06169, algorithm 3, with the variance exploding and integrals as sums of 200 rectangles."""
    phi = lambda s: s * (math.exp(s**0.3) + 10)
    x0s = []
    for i, (sigma, to) in enumerate(zip(sigmas[:-1], sigmas[1:])):
        x0s = [model(x, sigma)] + x0s
        if to == 0:
            x = x0s[0]
            continue
        ratio = phi(to) / phi(sigma)
        points = [to + k * (sigma - to) / 200 for k in range(200)]
        zeroth = sum(1 / phi(s) for s in points) * (sigma - to) / 200
        first = sum((s - sigma) / phi(s) for s in points) * (sigma - to) / 200
        result = ratio * x + (1 - ratio) * x0s[0]
        if i >= 1:
            slope = (x0s[0] - x0s[1]) / (sigma - sigmas[i - 1])
            result = result + (to - sigma + zeroth * phi(to)) * slope
        if i >= 2:
            slope_before = (x0s[1] - x0s[2]) / (sigmas[i - 1] - sigmas[i - 2])
            bend = (slope - slope_before) / ((sigma - sigmas[i - 2]) / 2)
            result = result + ((to - sigma) ** 2 / 2 + first * phi(to)) * bend
        x = result + noise() * math.sqrt(max(to**2 - sigma**2 * ratio**2, 0))
    return x


def karras(low, high, n):
    return [(high ** (1 / 7) + k / max(n - 1, 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for k in range(n)]


def restart(model, x, sigmas, noise):
    """arXiv 2306.14878, algorithm 1, with A1111's choice of when and how often."""
    steps, plan = len(sigmas) - 1, []
    if steps >= 20:
        again, times = (steps // 4, 2) if steps >= 36 else (9, 1)
        sigmas = karras(sigmas[-2], sigmas[0], steps - again * times) + [0.0]
        low, high = (min(range(len(sigmas)), key=lambda k: abs(sigmas[k] - wanted)) for wanted in (0.1, 2.0))
        for k in range(len(sigmas) - 1):
            plan.append((sigmas[k], sigmas[k + 1]))
            if k + 1 == low and high < low:
                back = karras(sigmas[low], sigmas[high], again + 1)
                plan += list(zip(back[:-1], back[1:])) * times
    else:
        plan = list(zip(sigmas[:-1], sigmas[1:]))
    last = None
    for sigma, to in plan:
        if last is not None and sigma > last:
            x = x + noise() * math.sqrt(sigma**2 - last**2)
        slope = derivative(x, sigma, model(x, sigma))
        there = x + slope * (to - sigma)
        x = there if to == 0 else x + (slope + derivative(there, to, model(there, to))) / 2 * (to - sigma)
        last = to
    return x


def dpmpp_3m_sde(model, x, sigmas, noise):
    sampling = goldens.k_diffusion_sampling()
    if len(sigmas) == 2:
        return model(x, sigmas[0])  # of one step, version 0.1.1.post1 makes an UnboundLocalError
    return sampling.sample_dpmpp_3m_sde(lambda x, sigma: model(x, sigma.item()), x, torch.tensor(sigmas, dtype=torch.float64), extra_args={},
                                        disable=True, noise_sampler=lambda *_: noise())


def negative(x, t):
    """The toy network's output for the negative prompt."""
    return .2 * x - .1 * torch.sin(torch.as_tensor(t).float() / 50 + torch.arange(16))


def euler_cfg_pp(model, x, sigmas, noise):
    """arXiv 2406.08070, algorithm 2, with the variance exploding."""
    for sigma, to in zip(sigmas[:-1], sigmas[1:]):
        x = model(x, sigma) + derivative(x, sigma, model.negative(x, sigma)) * to
    return x


def euler_a_cfg_pp(model, x, sigmas, noise):
    for sigma, to in zip(sigmas[:-1], sigmas[1:]):
        up = to and (to**2 * (sigma**2 - to**2) / sigma**2) ** .5
        x = model(x, sigma) + derivative(x, sigma, model.negative(x, sigma)) * (to**2 - up**2) ** .5 + (noise() * up if up else 0)
    return x


def ddim_cfg_pp(config, steps, eta):
    """The same in DDIM's own form, on diffusers' timesteps and alphas."""
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(7)
    draw = lambda: torch.randn((1, 16), generator=generator).double()
    x = draw()
    for t in scheduler.timesteps.tolist():
        to = t - 1000 // steps
        a, a_to = float(scheduler.alphas_cumprod[t]), float(scheduler.alphas_cumprod[to] if to >= 0 else scheduler.final_alpha_cumprod)
        out, left = goldens.network(x, t), negative(x, t)
        is_v = config["prediction_type"] == "v_prediction"
        x0 = a**.5 * x - (1 - a) ** .5 * out if is_v else (x - (1 - a) ** .5 * out) / a**.5
        left = a**.5 * left + (1 - a) ** .5 * x if is_v else left
        fresh = eta * float(scheduler._get_variance(t, to)) ** .5
        x = a_to**.5 * x0 + max(1 - a_to - fresh**2, 0) ** .5 * left + (fresh * draw() if eta else 0)
    return x


def scheduler_of(schedule, steps, config, cls=EulerDiscreteScheduler, **extra):
    """diffusers' scheduler with the noise levels of a schedule."""
    extra |= {f"use_{schedule}_sigmas": True} if schedule in ("karras", "exponential") else {}
    extra |= dict(timestep_spacing="leading") if schedule == "ddim_uniform" else {}
    extra |= dict(use_exponential_sigmas=True) if schedule == "kl_optimal" else {}
    scheduler = cls.from_config(config | extra)
    if schedule == "kl_optimal":
        curve = lambda sigmas, n: np.tan(np.linspace(math.atan(max(sigmas)), math.atan(min(sigmas)), n))
        scheduler._convert_to_exponential = lambda in_sigmas, num_inference_steps: curve([float(s) for s in in_sigmas], num_inference_steps)
    if schedule == "ddim_uniform":
        scheduler.set_timesteps(timesteps=[1 + k * (1000 // steps) for k in reversed(range(steps))])
    else:
        scheduler.set_timesteps(steps)
    return scheduler


def run(sampler, scheduler, start=None):
    """The same as in make_scheduler_goldens.py, for a function of a model that says x0."""
    generator = torch.Generator("cpu").manual_seed(7)
    draw = lambda: torch.randn((1, 16), generator=generator).double()
    sigmas, noise = [float(s) for s in scheduler.sigmas], draw()
    log_sigmas = np.log(np.array(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** .5))
    is_v = scheduler.config.prediction_type == "v_prediction"

    def model(x, sigma, network=goldens.network):
        out = network(x / (sigma**2 + 1) ** .5, scheduler._sigma_to_t(np.array([sigma]), log_sigmas).item())
        return -out * sigma / (sigma**2 + 1) ** .5 + x / (sigma**2 + 1) if is_v else x - sigma * out
    model.negative = lambda x, sigma: model(x, sigma, negative)
    x = noise * float(scheduler.init_noise_sigma) if start is None else goldens.PICTURE + noise * sigmas[start]
    return sampler(model, x, sigmas[start or 0:], draw)


def main():
    warnings.filterwarnings("ignore")
    cases, heun = [], dict(algorithm_type="sde-dpmsolver++", solver_type="heun")
    own = dict(dpmpp_3m_sde=dpmpp_3m_sde, restart=restart, res_multistep=res_multistep, er_sde=er_sde, ipndm=ipndm, euler_cfg_pp=euler_cfg_pp,
               euler_a_cfg_pp=euler_a_cfg_pp)

    def add(i, sampler, schedule, steps, end, **more):
        cases.append(dict(config=i, sampler=sampler, schedule=schedule, steps=steps, end=[float(f"{v:.6g}") for v in end[0, :4]], **more))
    for i, config in enumerate(CONFIGS):
        for schedule in "default", "karras", "exponential", "kl_optimal", "ddim_uniform":
            if schedule == "ddim_uniform" and i == 2:
                continue  # Euler's class would not start where it is told
            for steps in STEPS:
                for name, sampler in own.items():
                    add(i, name, schedule, steps, run(sampler, scheduler_of(schedule, steps, config)))
                if schedule in ("kl_optimal", "ddim_uniform"):
                    add(i, "euler", schedule, steps, goldens.run("euler", scheduler_of(schedule, steps, config), None))
                if schedule in ("default", "karras", "exponential"):
                    add(i, "dpmpp_2m_sde_heun", schedule, steps, goldens.run("dpmpp_2m_sde_heun", scheduler_of(schedule, steps, config, DPMSolverMultistepScheduler, **heun), None))
        for steps in STEPS if i < 2 else ():  # DDIM knows no linspace here
            for eta in 0, 0.5, 1:
                add(i, "ddim_cfg_pp", "default", steps, ddim_cfg_pp(config, steps, eta), eta=eta)
        for steps, start in (1, 0), (5, 1), (5, 4), (20, 3), (28, 5), (50, 2):
            for name, sampler in own.items():
                add(i, name, "default", steps, run(sampler, scheduler_of("default", steps, config), start), start=start)
            add(i, "dpmpp_2m_sde_heun", "default", steps, goldens.run("dpmpp_2m_sde_heun", scheduler_of("default", steps, config, DPMSolverMultistepScheduler, **heun), None, start), start=start)
    path = pathlib.Path(__file__).with_name("k_samplers.json")
    lines = lambda rows: "[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]"
    path.write_text(f'{{"configs":{lines(CONFIGS)},\n"cases":{lines(cases)}}}\n')
    print(len(cases), "cases,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
