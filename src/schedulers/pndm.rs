//! [PNDM](https://arxiv.org/abs/2202.09778), the pseudo linear multistep method, which A1111 calls PLMS. After diffusers'
//! `scheduling_pndm.py` with `skip_prk_steps`, as every Stable Diffusion checkpoint has it.
//!
//! The second timestep is visited twice, so `n` steps are `n + 1` evaluations: a first try of the step to it, then the step itself
//! with the mean of the predictions at both of its ends.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, TimestepSpacing, alphas::Alphas, sigmas};

/// Weights of the latest outputs, the newest first, for each number of outputs.
const ADAMS_BASHFORTH: [&[f64]; 4] =
    [&[1.0], &[3.0 / 2.0, -1.0 / 2.0], &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0], &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0]];

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    // x0 serves previews alone.
    let config = &SchedulerConfig { clip_sample: Some(false), ..config.clone() };
    let alphas = Alphas::new(config, false, false);
    let width = (config.num_train_timesteps / request.steps) as f64;
    let mut timesteps: Vec<f64> =
        sigmas::spaced(config, request.schedule, TimestepSpacing::Leading, request.steps).into_iter().map(f64::round_ties_even).collect();
    if let Some(second) = timesteps.get(1).copied() {
        timesteps.insert(1, second);
    }
    let stage = |(i, &timestep): (usize, &f64)| {
        let update = if i == 1 {
            // From the beginning of the first step again.
            transfer(&alphas, timestep + width, timestep, 1, &[(0, 0.5), (1, 0.5)])
        } else {
            // The output of the second evaluation is not used again.
            let ages = (0..=i).filter(|age| i - age != 1);
            let weights = ADAMS_BASHFORTH[ages.clone().count().min(ADAMS_BASHFORTH.len()) - 1];
            let outputs: Vec<(usize, f64)> = ages.zip(weights.iter().copied()).collect();
            transfer(&alphas, timestep, timestep - width, 0, &outputs)
        };
        Stage { timestep, level: alphas.level(timestep), input_scale: 1.0, denoised: alphas.denoised(timestep), update }
    };
    SamplingPlan { init_noise_sigma: 1.0, stages: timesteps.iter().skip(request.start).enumerate().map(stage).collect() }
}

/// Equation 9 of the paper: the latents of `age` stages ago from one timestep to another, along a sum of outputs.
fn transfer(alphas: &Alphas, from: f64, to: f64, age: usize, outputs: &[(usize, f64)]) -> Vec<(Term, f64)> {
    let (a, b) = (alphas.at(from), alphas.at(to));
    let weight = -(b - a) / (a * (1.0 - b).sqrt() + (a * (1.0 - a) * b).sqrt());
    let (sample, output) = alphas.noise(from);
    let mut update = vec![(Term::Sample(age), (b / a).sqrt() + weight * sample)];
    update.extend(outputs.iter().map(|(age, share)| (Term::Output(*age), weight * output * share)));
    update
}
