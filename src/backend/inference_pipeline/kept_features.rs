//! The features that a picture keeps between steps, and which of its steps are full.

use candle_core::{DType, Tensor};

use crate::{
    backend::{GenerationError, StepKind},
    common::{FeatureCache, Refresh},
    models::Features,
};

/// The cache of features of one picture. Whether its next step is shallow follows from the picture alone.
#[derive(Debug)]
pub(super) struct KeptFeatures {
    cache: FeatureCache,
    latest: Option<FullStep>,
    next_is_shallow: bool,
    /// How many steps were between the latest two full ones, or 1.
    spacing: usize,
}

/// The latest full step.
#[derive(Debug)]
struct FullStep {
    step: usize,
    /// Which pictures of control networks counted.
    controls: Vec<bool>,
    /// The latents as the network saw them.
    latents: Tensor,
    features: Features,
}

/// The step that comes next.
#[derive(Debug)]
pub(super) struct NextStep<'a> {
    /// Counted from 0.
    pub(super) step: usize,
    /// The number of all steps.
    pub(super) steps: usize,
    pub(super) samples: usize,
    /// Which pictures of control networks count.
    pub(super) controls: Vec<bool>,
    /// The latents as the network will see them.
    pub(super) latents: &'a Tensor,
}

impl KeptFeatures {
    pub(super) fn new(cache: FeatureCache) -> Self {
        Self { cache, latest: None, next_is_shallow: false, spacing: 1 }
    }

    /// Whether the next step is shallow.
    pub(super) fn next_is_shallow(&self) -> bool {
        self.next_is_shallow
    }

    /// The features of the latest full step.
    pub(super) fn features(&self) -> Option<&Features> {
        self.latest.as_ref().map(|latest| &latest.features)
    }

    /// Keeps the features of a full step in place of those of the one before it.
    pub(super) fn keep(&mut self, step: usize, controls: Vec<bool>, latents: Tensor, features: Features) {
        self.spacing = self.latest.as_ref().map_or(1, |latest| step - latest.step);
        self.latest = Some(FullStep { step, controls, latents, features });
    }

    /// Decides whether the next step is shallow. It is full where its number of samples is another, or other pictures of control networks
    /// count.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn prepare(&mut self, next: &NextStep) -> Result<(), GenerationError> {
        let is_usable = |latest: &&FullStep| latest.features.samples() == next.samples && latest.controls == next.controls;
        let usable = self.latest.as_ref().filter(is_usable);
        self.next_is_shallow = match usable.filter(|_| self.cache.may_skip(next.step, next.steps)) {
            None => false,
            Some(latest) => match self.cache.refresh() {
                Refresh::Interval(steps) => next.step - latest.step < steps,
                Refresh::Threshold(share) => change(&latest.latents, next.latents)? <= share,
            },
        };
        Ok(())
    }

    /// The kinds that are expected of the steps from `step` on, given those of full ones. Where the latents decide, full steps are expected
    /// to be as far apart as they were.
    pub(super) fn expected_kinds(&self, step: usize, full: Vec<StepKind>) -> Vec<StepKind> {
        let mut latest = self.latest.as_ref().map(|latest| (latest.step, latest.features.samples()));
        let spacing = match self.cache.refresh() {
            Refresh::Interval(steps) => steps,
            Refresh::Threshold(_) => latest.map_or(1, |(full, _)| self.spacing.max(step - full)),
        };
        let (first, steps) = (step, step + full.len());
        let kinds = (first..).zip(full).map(|(step, kind)| {
            let is_near = latest.is_some_and(|(full, samples)| samples == kind.samples && step - full < spacing);
            let is_shallow = if step == first { self.next_is_shallow } else { is_near && self.cache.may_skip(step, steps) };
            if !is_shallow {
                latest = Some((step, kind.samples));
            }
            StepKind { is_shallow, ..kind }
        });
        kinds.collect()
    }
}

/// How much latents have changed: the sum of the absolute differences, as a share of the sum of the absolute numbers before.
fn change(before: &Tensor, now: &Tensor) -> Result<f64, GenerationError> {
    let numbers = |latents: &Tensor| latents.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (before, now) = (numbers(before)?, numbers(now)?);
    let moved: f64 = before.iter().zip(&now).map(|(before, now)| f64::from((now - before).abs())).sum();
    let size: f64 = before.iter().map(|number| f64::from(number.abs())).sum();
    Ok(moved / size)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::Residuals;

    fn latents(number: f32) -> Tensor {
        Tensor::full(number, (1, 4, 8, 8), &Device::Cpu).unwrap()
    }

    /// The steps that are full, of a picture whose latents are `numbers`, and whose steps have so many `samples`.
    fn full_steps(cache: &str, numbers: &[f32], samples: &[usize]) -> Vec<usize> {
        full_steps_with(cache, numbers, samples, |_| Vec::new())
    }

    /// The same with control networks that count by step.
    fn full_steps_with(cache: &str, numbers: &[f32], samples: &[usize], controls: impl Fn(usize) -> Vec<bool>) -> Vec<usize> {
        let mut kept = KeptFeatures::new(cache.parse().unwrap());
        let mut full = Vec::new();
        for step in 0..numbers.len() {
            if !kept.next_is_shallow() {
                full.push(step);
                let deep = Tensor::zeros((samples[step], 32, 8, 8), DType::F32, &Device::Cpu).unwrap();
                kept.keep(step, controls(step), latents(numbers[step]), Features::of_generation(&deep, 0, 1, Residuals::NONE).unwrap());
            }
            if step + 1 < numbers.len() {
                let (samples, latents) = (samples[step + 1], &latents(numbers[step + 1]));
                let (step, steps) = (step + 1, numbers.len());
                kept.prepare(&NextStep { step, steps, samples, controls: controls(step), latents }).unwrap();
            }
        }
        full
    }

    #[test]
    fn full_steps_are_an_interval_apart() {
        let full = |cache| full_steps(cache, &[1.0; 10], &[2; 10]);
        assert_eq!(full("deep,interval=2"), [0, 2, 4, 6, 8]);
        assert_eq!(full("deep,interval=3"), [0, 3, 6, 9]);
        assert_eq!(full("deep,interval=3,start=0.4"), [0, 1, 2, 3, 6, 9]);
        assert_eq!(full("deep,interval=3,end=0.5"), [0, 3, 5, 6, 7, 8, 9]);
        // Another number of samples needs other features.
        assert_eq!(full_steps("deep,interval=3", &[1.0; 8], &[1, 1, 2, 2, 2, 2, 1, 1]), [0, 2, 5, 6]);
    }

    #[test]
    fn the_kinds_of_steps_to_come_are_foreseen() {
        let expected = |cache: &str, full_steps: &[usize], step: usize, samples: &[usize]| {
            let mut kept = KeptFeatures::new(cache.parse().unwrap());
            for step in full_steps {
                let deep = Tensor::zeros((2, 32, 8, 8), DType::F32, &Device::Cpu).unwrap();
                kept.keep(*step, Vec::new(), latents(1.0), Features::of_generation(&deep, 0, 1, Residuals::NONE).unwrap());
            }
            let steps = step + samples.len();
            kept.prepare(&NextStep { step, steps, samples: samples[0], controls: Vec::new(), latents: &latents(1.0) }).unwrap();
            let size = crate::common::ImageSize::new(64, 64).unwrap();
            let full = samples.iter().map(|samples| StepKind { size, samples: *samples, is_shallow: false }).collect();
            let is_full = |(i, kind): (usize, StepKind)| (!kind.is_shallow).then_some(step + i);
            kept.expected_kinds(step, full).into_iter().enumerate().filter_map(is_full).collect::<Vec<_>>()
        };
        assert_eq!(expected("deep,interval=3", &[0], 1, &[2; 9]), [3, 6, 9]);
        assert_eq!(expected("deep,interval=3", &[0, 3], 5, &[2; 5]), [6, 9]);
        assert_eq!(expected("deep,interval=3,end=0.5", &[0], 1, &[2; 9]), [3, 5, 6, 7, 8, 9]);
        assert_eq!(expected("deep,interval=3", &[0], 1, &[2, 2, 1, 1, 1, 1, 2]), [3, 6, 7]);
        assert_eq!(expected("deep,threshold=0.1", &[0, 4], 5, &[2; 7]), [8], "as far apart as the latest");
        assert_eq!(expected("deep,threshold=0.1", &[0], 3, &[2; 7]), [4, 7], "as far as there was none");
    }

    #[test]
    fn a_step_is_full_where_a_control_network_begins_or_ends() {
        let full = full_steps_with("deep,interval=20", &[1.0; 10], &[2; 10], |step| vec![(3..7).contains(&step), true]);
        assert_eq!(full, [0, 3, 7]);
    }

    #[test]
    fn a_step_is_full_where_the_latents_have_changed_by_more_than_the_threshold() {
        let numbers = [1.0, 1.04, 1.08, 1.12, 1.16, 1.3, 1.31, f32::NAN, 1.0];
        let full = |cache| full_steps(cache, &numbers, &[1; 9]);
        assert_eq!(full("deep,threshold=0.1"), [0, 3, 5, 7, 8]);
        assert_eq!(full("deep,threshold=0"), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(full("deep,threshold=1"), [0, 7, 8], "what is no number is never near");
        assert_eq!(full_steps("deep,threshold=0", &[1.0; 3], &[1; 3]), [0]);
    }
}
