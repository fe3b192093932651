//! The plans against diffusers' schedulers, k-diffusion's and papers' formulas, on a toy network. The goldens are made by
//! `tests/parity/make_scheduler_goldens.py` and `make_k_sampler_goldens.py`.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::common::{Eta, Sampler, Schedule, Seed, Steps, TorchRng};

#[derive(Deserialize)]
struct Goldens {
    configs: Vec<serde_json::Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    /// Which of the configurations.
    config: usize,
    sampler: Sampler,
    schedule: Schedule,
    steps: Steps,
    #[serde(default)]
    eta: Option<Eta>,
    end: Vec<f64>,
    /// The first step, of a run that begins with a picture.
    start: Option<usize>,
    /// Whether it is mixed with the picture after every evaluation.
    #[serde(default)]
    blend: bool,
}

/// Follows a plan with the toy network and the picture of the goldens.
fn run(plan: &SamplingPlan, begins_with_picture: bool, blend: bool) -> Vec<f64> {
    let mut rng = TorchRng::new(Seed::from(7));
    let mut randn = || -> Vec<f64> { rng.randn(16).into_iter().map(f64::from).collect() };
    let noise = randn();
    let clean = Level { alpha: 1.0, sigma: 0.0 };
    let picture = |level: Level| -> Vec<f64> {
        noise.iter().enumerate().map(|(i, n)| level.alpha * (i as f64 / 10.0 - 0.8) + level.sigma * n).collect()
    };
    let mut x: Vec<f64> =
        if begins_with_picture { picture(plan.stages[0].level) } else { noise.iter().map(|v| v * plan.init_noise_sigma).collect() };
    let mut unmasked = x.clone();
    let mut past: Vec<[Vec<f64>; 3]> = Vec::new();
    for (i, stage) in plan.stages.iter().enumerate() {
        let network = |(i, v): (usize, &f64)| 0.3 * v * stage.input_scale + 0.1 * (stage.timestep / 100.0 + i as f64).cos();
        let output: Vec<f64> = x.iter().enumerate().map(network).collect();
        let unguided = |(i, v): (usize, &f64)| 0.2 * v * stage.input_scale - 0.1 * (stage.timestep / 50.0 + i as f64).sin();
        let unguided: Vec<f64> = x.iter().enumerate().map(unguided).collect();
        let clip = stage.denoised.clip.unwrap_or(f64::INFINITY);
        let denoised = |(x, o): (&f64, &f64)| (stage.denoised.sample * x + stage.denoised.output * o).clamp(-clip, clip);
        let denoised = x.iter().zip(&output).map(denoised).collect();
        past.insert(0, [x.clone(), output, denoised]);
        let mut next = vec![0.0; x.len()];
        for (term, weight) in &stage.update {
            let values = match term {
                Term::Sample(age) => past[*age][0].clone(),
                Term::Output(age) => past[*age][1].clone(),
                Term::Denoised(age) => past[*age][2].clone(),
                Term::Unguided => unguided.clone(),
                Term::Unmasked => unmasked.clone(),
                Term::Noise => randn(),
            };
            next.iter_mut().zip(values).for_each(|(n, v)| *n += weight * v);
        }
        unmasked.clone_from(&next);
        x = next;
        if blend {
            let next = picture(plan.stages.get(i + 1).map_or(clean, |stage| stage.level));
            x.iter_mut().zip(next).for_each(|(x, p)| *x = f64::midpoint(*x, p));
        }
    }
    x
}

#[test]
fn every_plan_ends_where_diffusers_does() {
    check_ends(include_str!("../../tests/parity/schedulers.json"), 5000);
}

#[test]
fn every_plan_of_other_programs_ends_where_theirs_does() {
    check_ends(include_str!("../../tests/parity/k_samplers.json"), 700);
}

/// Compares the ends of runs, more than `least`.
fn check_ends(goldens: &str, least: usize) {
    let goldens: Goldens = serde_json::from_str(goldens).unwrap();
    let configs: Vec<SchedulerConfig> =
        goldens.configs.iter().map(|config| SchedulerConfig::from_json(config.to_string().as_bytes()).unwrap()).collect();
    assert!(goldens.cases.len() > least);
    let mut worst = vec![0.0_f64; Sampler::ALL.len()];
    let mut wrong = Vec::new();
    for Case { config, sampler, schedule, steps, eta, end, start, blend } in goldens.cases {
        let plan = SamplingPlan::new(&configs[config], sampler, schedule, steps, start.unwrap_or(0), eta).unwrap();
        let ours = run(&plan, start.is_some(), blend);
        let largest = end.iter().map(|v| v.abs()).fold(0.1, f64::max);
        let error = ours.iter().zip(&end).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest;
        let place = Sampler::ALL.iter().position(|other| *other == sampler).unwrap();
        worst[place] = worst[place].max(error);
        // diffusers computes its tables in f32; where nothing but noise is left at the start, sigma is 4096.
        let limit = if configs[config].rescale_betas_zero_snr { 1e-3 } else { 5e-5 };
        if error.is_nan() || error >= limit {
            wrong.push(format!(
                "{sampler} {schedule} {steps} from {start:?} {blend} {eta:?} {}: {error:.1e}, {ours:?} is not {end:?}",
                goldens.configs[config]
            ));
        }
    }
    for (sampler, error) in Sampler::ALL.iter().zip(worst) {
        println!("{sampler}: largest error {error:.1e}");
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
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
            clip_sample: Some(false),
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
        left_out in 0.0..1.0,
    ) {
        let steps = Steps::try_from(steps).unwrap();
        let start = (left_out * steps.get() as f64) as usize;
        let Ok(plan) = SamplingPlan::new(&config, sampler, schedule, steps, start, None) else {
            let is_too_many = steps.get() > config.num_train_timesteps || (sampler.is_distilled() && steps.get() > 50);
            prop_assert!(is_too_many || sampler.check_schedule(schedule).is_err());
            return Ok(());
        };
        // Of as many steps and more, some are taken again.
        let restarts = sampler == Sampler::Restart && steps.get() - start >= 20;
        let evaluations = match sampler {
            Sampler::Restart if restarts => plan.stages.len(),
            Sampler::Restart | Sampler::Heun | Sampler::Dpm2 | Sampler::Dpm2Ancestral | Sampler::Dpmpp2sAncestral => 2 * (steps.get() - start) - 1,
            Sampler::Pndm if steps.get() > 1 => steps.get() - start + 1,
            _ => steps.get() - start,
        };
        prop_assert_eq!(plan.stages.len(), evaluations);
        prop_assert!(plan.init_noise_sigma.is_finite());
        for (i, stage) in plan.stages.iter().enumerate() {
            prop_assert!((0.0..config.num_train_timesteps as f64).contains(&stage.timestep), "timestep {}", stage.timestep);
            prop_assert!(stage.update.iter().all(|(_, weight)| weight.is_finite()), "step {i}: {stage:?}");
            let is_known = |term: &Term| match term {
                Term::Sample(age) | Term::Output(age) | Term::Denoised(age) => *age <= i,
                Term::Unmasked => i > 0,
                Term::Unguided | Term::Noise => true,
            };
            prop_assert!(stage.update.iter().all(|(term, _)| is_known(term)), "step {i} looks back too far");
        }
        prop_assert!(restarts || plan.stages.windows(2).all(|pair| pair[0].timestep + 1.0 > pair[1].timestep));
    }
}

#[test]
fn a_schedule_that_the_sampler_does_not_have_is_refused() {
    let error =
        SamplingPlan::new(&SchedulerConfig::default(), Sampler::Ddim, Schedule::Karras, Steps::try_from(5).unwrap(), 0, None).unwrap_err();
    assert_eq!(error.to_string(), "must be one of default, normal, sgm_uniform with the sampler ddim, not karras");
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
        r#"{"lambda_min_clipped":-5.1}"#,
        r#"{"sigma_max":-Infinity}"#,
        "[",
    ] {
        assert!(SchedulerConfig::from_json(json.as_bytes()).is_err(), "{json}");
    }
}

#[test]
fn schedulers_of_other_models_are_refused_by_name() {
    for class in ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"] {
        let json = format!(r#"{{"_class_name":"{class}","sigma_max":80.0}}"#);
        let error = SchedulerConfig::from_json(json.as_bytes()).unwrap_err();
        assert!(error.starts_with(&format!("{class} is for models of another kind")), "{error}");
    }
}

/// As `DPMSolverMultistepScheduler().save_pretrained` writes it, with what older versions left empty.
#[test]
fn a_configuration_that_python_wrote_is_read() {
    for no_limit in ["-Infinity", "\"-Infinity\"", "null"] {
        let json = format!(
            r#"{{"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "lambda_min_clipped": {no_limit},
               "final_sigmas_type": "zero", "sigma_min": null, "solver_order": 2, "use_beta_sigmas": false, "use_karras_sigmas": null,
               "trained_betas": null, "variance_type": null}}"#
        );
        let config = SchedulerConfig::from_json(json.as_bytes()).unwrap();
        assert_eq!((config.own_sampler(), config.use_karras_sigmas), (Some(Sampler::Dpmpp2m), false));
    }
    assert!(SchedulerConfig::from_json(br#"{"algorithm_type": null}"#).is_ok());
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
    let plan = SamplingPlan::new(&config, Sampler::EulerAncestral, Schedule::Default, Steps::try_from(694).unwrap(), 0, None).unwrap();
    assert!(plan.stages[0].update.iter().all(|(_, weight)| weight.is_finite()));
}

#[test]
fn a_checkpoint_s_own_sampler_and_schedule_are_those_of_its_class() {
    for (json, sampler, schedule) in [
        (r#"{"_class_name":"PNDMScheduler","skip_prk_steps":true}"#, Some(Sampler::Pndm), Schedule::Default),
        (r#"{"_class_name":"DPMSolverMultistepScheduler","use_karras_sigmas":true}"#, Some(Sampler::Dpmpp2m), Schedule::Karras),
        (
            r#"{"_class_name":"DPMSolverMultistepScheduler","algorithm_type":"sde-dpmsolver++","use_exponential_sigmas":true}"#,
            Some(Sampler::Dpmpp2mSde),
            Schedule::Exponential,
        ),
        (r#"{"_class_name":"UniPCMultistepScheduler","solver_type":"bh2","use_beta_sigmas":true}"#, Some(Sampler::UniPc), Schedule::Beta),
        (r#"{"_class_name":"LCMScheduler"}"#, Some(Sampler::Lcm), Schedule::Default),
        (r#"{"_class_name":"EulerAncestralDiscreteScheduler","use_karras_sigmas":true}"#, Some(Sampler::EulerAncestral), Schedule::Default),
        (
            r#"{"_class_name":"DPMSolverSinglestepScheduler","algorithm_type":"sde-dpmsolver++"}"#,
            Some(Sampler::DpmppSde),
            Schedule::Default,
        ),
        (r#"{"_class_name":"DPMSolverSinglestepScheduler","algorithm_type":"dpmsolver++"}"#, None, Schedule::Default),
        (r#"{"_class_name":"CogVideoXDDIMScheduler"}"#, None, Schedule::Default),
    ] {
        let config = SchedulerConfig::from_json(json.as_bytes()).unwrap();
        let own = config.own_sampler();
        assert_eq!((own, config.own_schedule(own.unwrap_or(Sampler::Euler))), (sampler, schedule), "{json}");
    }
}

#[test]
fn where_nothing_but_noise_is_left_the_picture_cannot_be_told_from_the_noise_that_is_predicted() {
    let config = SchedulerConfig { rescale_betas_zero_snr: true, timestep_spacing: Some(TimestepSpacing::Trailing), ..Default::default() };
    let error = SamplingPlan::new(&config, Sampler::Ddim, Schedule::Default, Steps::try_from(5).unwrap(), 0, None).unwrap_err();
    assert!(error.to_string().contains("zero terminal SNR"), "{error}");
}

/// Where a schedule ends high above 0.1, a restart ends without noise. What rounding makes of none is no level to look at.
#[test]
fn a_restart_ends_at_a_level_of_the_run() {
    for spacing in [TimestepSpacing::Trailing, TimestepSpacing::Leading] {
        let config = SchedulerConfig {
            timestep_spacing: Some(spacing),
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            ..SchedulerConfig::default()
        };
        for (schedule, steps) in
            [Schedule::Default, Schedule::Simple, Schedule::SgmUniform].into_iter().flat_map(|s| (20..60).map(move |n| (s, n)))
        {
            let plan = SamplingPlan::new(&config, Sampler::Restart, schedule, Steps::try_from(steps).unwrap(), 0, None).unwrap();
            let least = plan.stages.iter().map(|stage| stage.level.sigma).fold(f64::INFINITY, f64::min);
            assert!(least > 1e-12, "{schedule} {steps}: {least:e}");
        }
    }
}

#[test]
fn a_distilled_model_has_no_more_steps_than_its_teacher() {
    let config = SchedulerConfig { original_inference_steps: 8, ..SchedulerConfig::default() };
    let error = SamplingPlan::new(&config, Sampler::Lcm, Schedule::Default, Steps::try_from(9).unwrap(), 0, None).unwrap_err();
    assert_eq!(error.to_string(), "must be a whole number from 1 to 8 for this model with lcm, not 9");
}

/// `normal` of `ComfyUI` is evenly spaced whatever the checkpoint says, from the last timestep to the first: in Stable Diffusion 1, noise
/// begins at a standard deviation of 14.6146.
#[test]
fn normal_is_evenly_spaced_from_the_last_timestep_to_the_first() {
    let of = |spacing| SchedulerConfig {
        timestep_spacing: Some(spacing),
        beta_start: 0.00085,
        beta_end: 0.012,
        beta_schedule: BetaSchedule::ScaledLinear,
        steps_offset: 1,
        ..SchedulerConfig::default()
    };
    for sampler in Sampler::ALL.into_iter().filter(|sampler| sampler.schedules().contains(&Schedule::Normal)) {
        for steps in [1i64, 4, 20] {
            let plan = |config: &SchedulerConfig, schedule| {
                SamplingPlan::new(config, sampler, schedule, Steps::try_from(steps).unwrap(), 0, None).unwrap()
            };
            let normal = plan(&of(TimestepSpacing::Leading), Schedule::Normal);
            assert_eq!(normal, plan(&of(TimestepSpacing::Trailing), Schedule::Normal), "{sampler}");
            let timesteps: Vec<f64> = normal.stages.iter().map(|stage| stage.timestep).collect();
            assert_eq!(timesteps.first(), Some(&999.0), "{sampler}: {timesteps:?}");
            let is_of_karras = [Sampler::Euler, Sampler::EulerAncestral, Sampler::Heun, Sampler::Lms].contains(&sampler);
            if is_of_karras && steps > 1 {
                assert!((normal.init_noise_sigma - 14.6146).abs() < 1e-3, "{sampler}: {}", normal.init_noise_sigma);
                assert_eq!(normal, plan(&of(TimestepSpacing::Linspace), Schedule::Default), "{sampler}");
            }
        }
    }
}
