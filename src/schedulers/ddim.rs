//! [DDIM](https://arxiv.org/abs/2010.02502), equation 12. After diffusers' `scheduling_ddim.py`.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, TimestepSpacing, alphas::Alphas, sigmas};

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    by(Term::Output(0), config, request)
}

/// With the noise of the negative prompt alone: [CFG++](https://arxiv.org/abs/2406.08070), algorithm 2, as A1111's `ddim_cfgpp`.
pub(super) fn cfg_pp(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    by(Term::Unguided, config, request)
}

/// Steps whose noise is that of an output.
fn by(output_of_noise: Term, config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    let alphas = Alphas::new(config, true, true);
    let width = (config.num_train_timesteps / request.steps) as f64;
    let eta = request.eta.unwrap_or(0.0);
    let stage = |timestep: f64| {
        // As in diffusers, evenly spaced timesteps are rounded.
        let timestep = timestep.round_ties_even();
        let (from, to) = (alphas.at(timestep), alphas.at(timestep - width));
        let variance = (1.0 - to) / (1.0 - from) * (1.0 - from / to);
        let fresh = eta * variance.max(0.0).sqrt();
        let direction = (1.0 - to - fresh * fresh).max(0.0).sqrt();
        let (sample, output) = alphas.noise(timestep);
        let mut update = vec![(Term::Denoised(0), to.sqrt()), (Term::Sample(0), direction * sample), (output_of_noise, direction * output)];
        if eta > 0.0 {
            update.push((Term::Noise, fresh));
        }
        Stage { timestep, level: alphas.level(timestep), input_scale: 1.0, denoised: alphas.denoised(timestep), update }
    };
    let timesteps = sigmas::spaced(config, request.schedule, TimestepSpacing::Leading, request.steps);
    SamplingPlan { init_noise_sigma: 1.0, stages: timesteps.into_iter().skip(request.start).map(stage).collect() }
}
