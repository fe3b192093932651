//! What one picture asks of the engine, worked out once, when its request is checked.

use std::sync::Arc;

use crate::{
    common::{ControlWindow, GuidanceInterval, ImageSize},
    schedulers::SamplingPlan,
};

/// The work on one picture: admission, batches and progress all count by it.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// The evaluations of the network, and where the latents move after each.
    pub plan: SamplingPlan,
    /// With guidance, how strongly each part of the prompt leads away from the negative prompt; empty without guidance.
    pub part_weights: Vec<f64>,
    /// The steps with guidance, if not all.
    pub guidance_interval: Option<GuidanceInterval>,
    /// The size at which the picture is drawn.
    pub size: ImageSize,
    /// The steps in which each control network counts.
    pub controls: Vec<ControlWindow>,
    /// The work of drawing it again, at another size, after these steps.
    pub again: Option<Arc<Demand>>,
}

/// The kind of a step. Steps of one kind can share a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepKind {
    /// The size of the picture.
    pub size: ImageSize,
    /// How many samples the network is evaluated for: the parts of the prompt and, with guidance, the negative prompt.
    pub samples: usize,
    /// Whether it reuses the features of an earlier step.
    pub is_shallow: bool,
}

/// The cost of a ControlNet, which has the first half of a UNet, as a share of a step: 2 of 5.
const CONTROL_COST: (u64, u64) = (2, 5);

impl StepKind {
    /// A full step of the same size and number of samples. It has the same context.
    #[must_use]
    pub fn full(self) -> Self {
        Self { is_shallow: false, ..self }
    }

    /// Pixels of all samples. A shallow step counts as a full one.
    #[must_use]
    pub fn work(self) -> u64 {
        self.size.pixels() * self.samples as u64
    }
}

impl Demand {
    /// That of a picture that is not drawn.
    #[must_use]
    pub fn without_steps(size: ImageSize) -> Self {
        let plan = SamplingPlan { init_noise_sigma: 1.0, stages: Vec::new() };
        Self { plan, part_weights: Vec::new(), guidance_interval: None, size, controls: Vec::new(), again: None }
    }

    /// Number of steps, evaluations of the network, before the picture is drawn again.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.plan.stages.len()
    }

    /// Number of all steps.
    #[must_use]
    pub fn all_steps(&self) -> usize {
        self.steps() + self.again.as_ref().map_or(0, |again| again.all_steps())
    }

    /// Whether the network is evaluated for the negative prompt, in any step.
    #[must_use]
    pub fn is_guided(&self) -> bool {
        !self.part_weights.is_empty()
    }

    /// Whether step `step`, counted from 0, is inside of the guidance interval.
    #[must_use]
    pub fn is_in_interval(&self, step: usize) -> bool {
        self.guidance_interval.is_none_or(|interval| interval.contains(step, self.steps()))
    }

    /// Whether steps outside of the guidance interval need the prompt alone. At scale 1, the prediction for a single part of weight 1 is
    /// the result of guidance; several parts are still weighed against each other.
    #[must_use]
    pub fn has_steps_of_prompt_alone(&self) -> bool {
        self.guidance_interval.is_some() && self.part_weights == [1.0]
    }

    /// The kind of step `step` of all, counted from 0, if it is full.
    #[must_use]
    pub fn kind(&self, step: usize) -> StepKind {
        if let (Some(again), Some(step)) = (&self.again, step.checked_sub(self.steps())) {
            return again.kind(step);
        }
        let is_alone = !self.is_guided() || (self.has_steps_of_prompt_alone() && !self.is_in_interval(step));
        StepKind { size: self.size, samples: if is_alone { 1 } else { 1 + self.part_weights.len() }, is_shallow: false }
    }

    /// Pixels of all samples in all steps, with those of control networks by their share of the cost.
    #[must_use]
    pub fn work(&self) -> u64 {
        let controls = |step: usize| self.controls.iter().filter(|window| window.contains(step, self.steps())).count() as u64;
        let (share, whole) = CONTROL_COST;
        let own = (0..self.steps()).map(|step| self.kind(step).work() * (whole + share * controls(step))).sum::<u64>() / whole;
        own + self.again.as_ref().map_or(0, |again| again.work())
    }

    /// The memory that it takes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let stages: usize = self.plan.stages.iter().map(|stage| size_of_val(stage) + size_of_val(&*stage.update)).sum();
        stages + size_of_val(&*self.controls) + self.again.as_ref().map_or(0, |again| again.bytes())
    }

    /// Pixels of all samples in the largest step.
    #[must_use]
    pub fn peak(&self) -> u64 {
        (0..self.all_steps()).map(|step| self.kind(step).work()).max().unwrap_or_default()
    }
}

#[cfg(test)]
impl Demand {
    /// A picture of `steps` steps of Euler, with guidance or without.
    pub(crate) fn plain(size: ImageSize, steps: i64, is_guided: bool) -> Self {
        use crate::{
            common::{Sampler, Schedule},
            schedulers::SchedulerConfig,
        };

        let (config, steps) = (SchedulerConfig::default(), steps.try_into().unwrap());
        let plan = SamplingPlan::new(&config, Sampler::Euler, Schedule::Default, steps, 0, None).unwrap();
        let part_weights = if is_guided { vec![1.0] } else { Vec::new() };
        Self { plan, part_weights, guidance_interval: None, size, controls: Vec::new(), again: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_outside_of_the_interval_need_the_prompt_alone() {
        let size = ImageSize::new(64, 128).unwrap();
        let samples = |demand: &Demand| (0..demand.steps()).map(|step| demand.kind(step).samples).collect::<Vec<_>>();
        let plain = |is_guided| Demand::plain(size, 4, is_guided);
        assert_eq!(samples(&plain(false)), [1; 4]);
        assert_eq!(samples(&plain(true)), [2; 4]);
        let interval = Some("0.25,0.75".parse().unwrap());
        let within = Demand { guidance_interval: interval, ..plain(true) };
        assert_eq!(samples(&within), [1, 2, 2, 1]);
        assert_eq!((within.work(), within.peak()), (6 * size.pixels(), 2 * size.pixels()));
        assert!(within.bytes() >= 4 * size_of_val(&within.plan.stages[0]));
        let controls = vec![ControlWindow::ALL, ControlWindow::new(0.0, 0.5).unwrap()];
        let controlled = Demand { controls, ..plain(true) };
        assert_eq!(controlled.work(), 8 * size.pixels() * 8 / 5, "one in all steps, and one in half of them");
        for part_weights in [vec![1.0, 0.5], vec![0.5]] {
            let weighed = Demand { part_weights, guidance_interval: interval, ..plain(true) };
            assert_eq!(samples(&weighed), [1 + weighed.part_weights.len(); 4], "parts are weighed against each other in every step");
        }
        assert_eq!(samples(&Demand { guidance_interval: interval, ..plain(false) }), [1; 4]);
    }

    #[test]
    fn drawing_again_adds_its_steps_at_its_size() {
        let size = |side| ImageSize::new(side, side).unwrap();
        let again = Demand::plain(size(128), 3, true);
        let first = Demand::plain(size(64), 2, false);
        let both = Demand { again: Some(Arc::new(again.clone())), ..first.clone() };
        assert_eq!((both.steps(), both.all_steps()), (2, 5));
        assert_eq!([1, 2, 4].map(|step| both.kind(step)), [first.kind(0), again.kind(0), again.kind(2)]);
        assert_eq!((both.work(), both.peak()), (first.work() + again.work(), again.peak()));
        assert_eq!(both.bytes(), first.bytes() + again.bytes());
    }
}
