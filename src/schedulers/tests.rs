//! The plans against diffusers' schedulers, on a toy network. The goldens are made by `tests/parity/make_scheduler_goldens.py`.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::common::{Seed, TorchRng};

#[derive(Deserialize)]
struct Case {
    sampler: Sampler,
    schedule: Schedule,
    steps: Steps,
    config: serde_json::Value,
    end: Vec<f64>,
}

/// Follows a plan with the toy network of the goldens.
fn run(plan: &SamplingPlan) -> Vec<f64> {
    let mut rng = TorchRng::new(Seed::from(7));
    let mut randn = || -> Vec<f64> { rng.randn(16).into_iter().map(f64::from).collect() };
    let mut x: Vec<f64> = randn().into_iter().map(|v| v * plan.init_noise_sigma).collect();
    let mut history: Vec<Vec<f64>> = Vec::new();
    for stage in &plan.stages {
        let network = |(i, v): (usize, &f64)| 0.3 * v * stage.input_scale + 0.1 * (stage.timestep / 100.0 + i as f64).cos();
        let output: Vec<f64> = x.iter().enumerate().map(network).collect();
        let clip = stage.denoised.clip.unwrap_or(f64::INFINITY);
        let denoised = |(x, o): (&f64, &f64)| (stage.denoised.sample * x + stage.denoised.output * o).clamp(-clip, clip);
        history.insert(0, x.iter().zip(&output).map(denoised).collect());
        let mut next = vec![0.0; x.len()];
        for (term, weight) in &stage.update {
            let values = match term {
                Term::Sample => x.clone(),
                Term::Output => output.clone(),
                Term::Denoised(age) => history[*age].clone(),
                Term::Noise => randn(),
            };
            next.iter_mut().zip(values).for_each(|(n, v)| *n += weight * v);
        }
        x = next;
    }
    x
}

#[test]
fn every_plan_ends_where_diffusers_does() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../../tests/parity/schedulers.json")).unwrap();
    assert!(cases.len() > 300);
    for case in cases {
        let config = SchedulerConfig::from_json(case.config.to_string().as_bytes()).unwrap();
        let plan = SamplingPlan::new(&config, case.sampler, case.schedule, case.steps).unwrap();
        let ours = run(&plan);
        // diffusers computes its tables in f32; where nothing but noise is left at the start, sigma is 4096.
        let limit = 1e-3 * case.end.iter().map(|v| v.abs()).fold(0.1, f64::max);
        for (a, b) in ours.iter().zip(&case.end) {
            assert!(
                (a - b).abs() < limit,
                "{} {} {} {}: {ours:?} is not {:?}",
                case.sampler,
                case.schedule,
                case.steps,
                case.config,
                case.end
            );
        }
    }
}

fn any_config() -> impl Strategy<Value = SchedulerConfig> {
    let spacing = prop_oneof![Just(TimestepSpacing::Leading), Just(TimestepSpacing::Trailing), Just(TimestepSpacing::Linspace)];
    let prediction = prop_oneof![Just(PredictionType::Epsilon), Just(PredictionType::VPrediction)];
    (spacing, prediction, any::<bool>(), 0usize..2, 1usize..1200).prop_map(|(spacing, prediction_type, zero_snr, steps_offset, train)| {
        SchedulerConfig {
            timestep_spacing: Some(spacing),
            prediction_type,
            // With nothing but noise left, there is no picture for epsilon prediction to find.
            rescale_betas_zero_snr: zero_snr && prediction_type == PredictionType::VPrediction,
            steps_offset,
            num_train_timesteps: train,
            beta_schedule: BetaSchedule::ScaledLinear,
            clip_sample: false,
            ..SchedulerConfig::default()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_has_the_steps_asked_for_and_finite_numbers(
        config in any_config(),
        sampler in prop::sample::select(&Sampler::ALL[..]),
        schedule in prop::sample::select(&Schedule::ALL[..]),
        steps in 1i64..=1000,
    ) {
        let steps = Steps::try_from(steps).unwrap();
        let Ok(plan) = SamplingPlan::new(&config, sampler, schedule, steps) else {
            prop_assert!(steps.get() > config.num_train_timesteps || sampler.check_schedule(schedule).is_err());
            return Ok(());
        };
        prop_assert_eq!(plan.stages.len(), steps.get());
        prop_assert!(plan.init_noise_sigma.is_finite());
        for (i, stage) in plan.stages.iter().enumerate() {
            prop_assert!((0.0..config.num_train_timesteps as f64).contains(&stage.timestep), "timestep {}", stage.timestep);
            prop_assert!(stage.update.iter().all(|(_, weight)| weight.is_finite()), "step {i}: {stage:?}");
            prop_assert!(stage.update.iter().all(|(term, _)| !matches!(term, Term::Denoised(age) if *age > i)), "step {i} looks back too far");
        }
        prop_assert!(plan.stages.windows(2).all(|pair| pair[0].timestep >= pair[1].timestep));
    }
}

#[test]
fn a_schedule_that_the_sampler_does_not_have_is_refused() {
    let error = SamplingPlan::new(&SchedulerConfig::default(), Sampler::Ddim, Schedule::Karras, Steps::try_from(5).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "must be default with the sampler ddim, not karras");
}

#[test]
fn impossible_configurations_are_refused() {
    for json in [
        r#"{"num_train_timesteps":0}"#,
        r#"{"beta_end":2}"#,
        r#"{"beta_start":0}"#,
        r#"{"trained_betas":[0.1]}"#,
        r#"{"thresholding":true}"#,
        r#"{"prediction_type":"flow"}"#,
        "[",
    ] {
        assert!(SchedulerConfig::from_json(json.as_bytes()).is_err(), "{json}");
    }
}

#[test]
fn a_noise_level_that_rises_at_first_is_no_square_root_of_a_negative_number() {
    let config = SchedulerConfig {
        num_train_timesteps: 1040,
        beta_schedule: BetaSchedule::ScaledLinear,
        prediction_type: PredictionType::VPrediction,
        timestep_spacing: Some(TimestepSpacing::Trailing),
        rescale_betas_zero_snr: true,
        ..SchedulerConfig::default()
    };
    let plan = SamplingPlan::new(&config, Sampler::EulerAncestral, Schedule::Default, Steps::try_from(694).unwrap()).unwrap();
    assert!(plan.stages[0].update.iter().all(|(_, weight)| weight.is_finite()));
}
