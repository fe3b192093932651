use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_size_that_parses_is_valid_and_prints_as_it_was_written(width in 0u32..5000, height in 0u32..5000) {
        let text = format!("{width}x{height}");
        match text.parse::<ImageSize>() {
            Ok(size) => {
                prop_assert_eq!(size.to_string(), text);
                prop_assert!(width % 8 == 0 && height % 8 == 0 && width.min(height) >= 64 && width.max(height) <= 4096);
            }
            Err(error) => {
                prop_assert!(error.to_string().contains(&text));
                prop_assert!(width % 8 != 0 || height % 8 != 0 || width.min(height) < 64 || width.max(height) > 4096);
            }
        }
    }

    #[test]
    fn no_text_panics(text in ".*") {
        let _ = (text.parse::<ImageSize>().is_ok(), text.parse::<Steps>().is_ok(), text.parse::<GuidanceScale>().is_ok(), text.parse::<Seed>().is_ok());
    }

    #[test]
    fn steps_are_valid_exactly_from_1_to_1000(steps in any::<i64>()) {
        prop_assert_eq!(Steps::try_from(steps).is_ok(), (1..=1000).contains(&steps));
    }
}

#[test]
fn guidance_refuses_what_is_no_number() {
    for scale in [f64::NAN, f64::INFINITY, -0.1, 50.1] {
        assert!(GuidanceScale::try_from(scale).is_err(), "{scale}");
    }
    assert!("NaN".parse::<GuidanceScale>().is_err());
    assert!(!GuidanceScale::try_from(1.0).unwrap().is_guided());
    assert!(GuidanceScale::try_from(1.01).unwrap().is_guided());
}

#[test]
fn an_error_names_the_value_and_the_range() {
    let error = Steps::try_from(0).unwrap_err();
    assert_eq!((error.name, error.to_string().as_str()), ("steps", "must be a whole number from 1 to 1000, not 0"));
}

#[test]
fn guidance_far_above_those_of_cfg_pp_is_told() {
    let warning = |sampler, scale: f64| {
        let size = ImageSize::new(64, 64).unwrap();
        let (steps, guidance_scale) = (Steps::try_from(4).unwrap(), scale.try_into().unwrap());
        let options = SamplingOptions::default();
        SamplingConfig { size, steps, guidance_scale, seed: 0.into(), sampler, schedule: Schedule::Default, options }.guidance_warning()
    };
    assert_eq!(warning(Sampler::EulerCfgPp, 7.5).unwrap(), "euler_cfg_pp is made for guidance scales up to 1, not 7.5");
    assert_eq!(warning(Sampler::DdimCfgPp, 30.0).unwrap(), "ddim_cfg_pp is made for guidance scales up to 12.5, not 30");
    for (sampler, scale) in [(Sampler::EulerCfgPp, 1.5), (Sampler::DdimCfgPp, 7.5), (Sampler::Euler, 50.0)] {
        assert_eq!(warning(sampler, scale), None);
    }
}
