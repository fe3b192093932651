//! [Restart sampling](https://arxiv.org/abs/2306.14878): Heun's method that goes back up to a higher noise level with fresh noise, and
//! down again. After A1111's `restart_sampler`: runs of 20 steps and more have Karras sigmas and one restart, those of 36 and more two.

use super::{PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, scheduler_config::FinalSigmas, sigmas, two_evaluations::heun_step};

/// The noise levels between which a run is repeated, approximately.
const BETWEEN: (f64, f64) = (0.1, 2.0);

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    let run = sigmas::SigmaSchedule::new(config, request.schedule, request.steps, FinalSigmas::Zero);
    let table = sigmas::SigmaTable::new(config);
    let mut stages: Vec<Stage> = Vec::new();
    let mut last = f64::INFINITY;
    for (from, to) in way(&run.sigmas[request.start..]) {
        if from > last
            && let Some(stage) = stages.last_mut()
        {
            stage.update.push((Term::Noise, (from * from - last * last).sqrt()));
        }
        let timestep = |sigma| table.timestep_of(sigma);
        stages.extend(heun_step(config, from, to, timestep));
        last = to;
    }
    SamplingPlan { init_noise_sigma: run.init_noise_sigma, stages }
}

/// The steps, each from a noise level to another.
fn way(sigmas: &[f64]) -> Vec<(f64, f64)> {
    let steps = sigmas.len() - 1;
    let (again, times) = match steps {
        0..20 => (0, 0),
        20..36 => (9, 1),
        _ => (steps / 4, 2),
    };
    if times == 0 {
        return pairs(sigmas);
    }
    let mut down = sigmas::karras(sigmas[0], sigmas[steps - 1], steps - again * times);
    down.push(0.0);
    let nearest = |wanted: f64| (0..down.len()).min_by(|a, b| (down[*a] - wanted).abs().total_cmp(&(down[*b] - wanted).abs())).unwrap_or(0);
    let (low, high) = (nearest(BETWEEN.0), nearest(BETWEEN.1));
    let mut way = pairs(&down[..=low]);
    if high < low {
        let mut levels = sigmas::karras(down[high], down[low], again + 1);
        // Rounding leaves something of no noise at all.
        levels[again] = down[low];
        let repeated = pairs(&levels);
        (0..times).for_each(|_| way.extend(&repeated));
    }
    way.extend(pairs(&down[low..]));
    way
}

fn pairs(sigmas: &[f64]) -> Vec<(f64, f64)> {
    sigmas.array_windows().map(|[from, to]| (*from, *to)).collect()
}
