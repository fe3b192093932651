//! [UniPC](https://arxiv.org/abs/2302.04867), second order, with B2(h) and prediction of x0. After diffusers'
//! `scheduling_unipc_multistep.py` with its default settings.
//!
//! Each step begins by correcting the one before it with the x0 at that step's end. The prediction and the correction of a step differ in
//! their weights of x0 only, so the correction is a sum of those.

use std::iter;

use super::{Level, PlanRequest, SamplingPlan, SchedulerConfig, Stage, Term, levels::LevelSchedule};

pub(super) fn plan(config: &SchedulerConfig, request: PlanRequest) -> SamplingPlan {
    let steps = request.steps;
    let run = LevelSchedule::new(config, request.schedule, steps, config.final_sigmas_type);
    let step = |i: usize| {
        let is_last = i + 1 == steps && (config.lower_order_final.unwrap_or(true) || run.levels[i + 1].sigma == 0.0);
        let before = (i > request.start && !is_last).then(|| run.levels[i - 1]);
        Step::new(before, run.levels[i], run.levels[i + 1])
    };
    let stage = |i: usize| {
        let step_now = step(i);
        let mut update = if i > request.start {
            // The step itself is corrected, without a mask that was laid over its end.
            let step_before = step(i - 1);
            let corrected = iter::once((Term::Unmasked, 1.0)).chain(step_before.correction());
            corrected.map(|(term, weight)| (term, weight * step_now.kept)).collect()
        } else {
            vec![(Term::Sample(0), step_now.kept)]
        };
        update.extend(step_now.prediction());
        let level = run.levels[i];
        Stage { timestep: run.timesteps[i], level, input_scale: 1.0, denoised: level.denoised(config.prediction_type), update }
    };
    SamplingPlan { init_noise_sigma: 1.0, stages: (request.start..steps).map(stage).collect() }
}

/// A step of the solver.
struct Step {
    /// The weight of the latents.
    kept: f64,
    /// The weight of a constant x0.
    gained: f64,
    /// Negative length of the step in lambda.
    hh: f64,
    /// The length of the step before it, as a negative share of this one's, if the step is of second order.
    r: Option<f64>,
}

impl Step {
    fn new(before: Option<Level>, from: Level, to: Level) -> Self {
        let h = to.lambda() - from.lambda();
        // Runs of many steps visit a timestep twice: there is no slope between a level and itself.
        let r = before.map(|before| (before.lambda() - from.lambda()) / h).filter(|r| r.is_finite() && *r != 0.0);
        Self { kept: to.sigma / from.sigma, gained: -to.alpha * (-h).exp_m1(), hh: -h, r }
    }

    /// x0 of this stage and of the one before it.
    fn prediction(&self) -> Vec<(Term, f64)> {
        let Some(r) = self.r else { return vec![(Term::Denoised(0), self.gained)] };
        let slope = 0.5 * self.gained / r;
        vec![(Term::Denoised(0), self.gained - slope), (Term::Denoised(1), slope)]
    }

    /// The correction at its end, when the x0 there is known. That x0 has age 0; those of the prediction are one stage older.
    fn correction(&self) -> impl Iterator<Item = (Term, f64)> {
        let (older, newest) = self.r.map_or((0.0, 0.5), |r| {
            // Equation 9 of the paper: the weights that are exact for polynomials of first degree.
            let phi_1 = self.hh.exp_m1();
            let phi_2 = phi_1 / self.hh - 1.0;
            let phi_3 = phi_2 / self.hh - 0.5;
            let (b_1, b_2) = (phi_2 / phi_1, 2.0 * phi_3 / phi_1);
            let older = (b_1 - b_2) / (1.0 - r);
            ((older - 0.5) / r, b_1 - older)
        });
        let is_step = self.hh != 0.0 && older.is_finite() && newest.is_finite();
        let (older, newest) = if is_step { (older * self.gained, newest * self.gained) } else { (0.0, 0.0) };
        [(Term::Denoised(0), newest), (Term::Denoised(1), -newest - older), (Term::Denoised(2), older)]
            .into_iter()
            .filter(|(_, w)| *w != 0.0)
    }
}
