use std::collections::HashMap;

use super::*;

fn parse(name: &str) -> (Sampler, Option<Schedule>) {
    let NamedSampler { sampler, schedule } = name.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
    (sampler, schedule)
}

#[test]
fn every_name_leads_back_and_means_one_thing() {
    let mut seen = HashMap::new();
    for sampler in Sampler::ALL {
        assert_eq!(sampler.to_string().parse(), Ok(sampler));
        assert_eq!(sampler.a1111_name().parse(), Ok(sampler));
        for name in [sampler.name(), sampler.a1111_name()] {
            assert!(seen.insert(plain(name), (sampler, None)).is_none_or(|other| other == (sampler, None)), "{name}");
        }
    }
    for (name, _, sampler, schedule) in SAMPLERS {
        assert_eq!(parse(name), (sampler, schedule));
        assert_eq!(seen.insert(plain(name), (sampler, schedule)).unwrap_or((sampler, schedule)), (sampler, schedule), "{name}");
    }
    for schedule in Schedule::ALL {
        assert_eq!(schedule.to_string().parse(), Ok(schedule));
        assert_eq!(schedule.a1111_name().parse(), Ok(schedule));
    }
    for (name, _, schedule) in SCHEDULES {
        assert_eq!(name.parse(), Ok(schedule), "{name}");
    }
}

/// Names with a schedule in them, of A1111 before 1.9 (`modules/sd_samplers_kdiffusion.py` of 1.8) and of `ComfyUI`.
#[test]
fn names_with_a_schedule_are_taken_apart() {
    for (name, sampler, schedule) in [
        ("DPM++ 2M Karras", Sampler::Dpmpp2m, Some(Schedule::Karras)),
        ("DPM++ 2M SDE Karras", Sampler::Dpmpp2mSde, Some(Schedule::Karras)),
        ("DPM++ 2M SDE Exponential", Sampler::Dpmpp2mSde, Some(Schedule::Exponential)),
        ("DPM++ SDE Karras", Sampler::DpmppSde, Some(Schedule::Karras)),
        ("DPM++ 2S a Karras", Sampler::Dpmpp2sAncestral, Some(Schedule::Karras)),
        ("DPM2 a Karras", Sampler::Dpm2Ancestral, Some(Schedule::Karras)),
        ("LMS Karras", Sampler::Lms, Some(Schedule::Karras)),
        ("k_dpmpp_2m_ka", Sampler::Dpmpp2m, Some(Schedule::Karras)),
        ("k_dpm_2_a_ka", Sampler::Dpm2Ancestral, Some(Schedule::Karras)),
        ("Euler SGM Uniform", Sampler::Euler, Some(Schedule::SgmUniform)),
        ("euler_karras", Sampler::Euler, Some(Schedule::Karras)),
        ("ddim_trailing", Sampler::Ddim, Some(Schedule::SgmUniform)),
        ("dpmpp_2m_sde_gpu", Sampler::Dpmpp2mSde, None),
        ("dpmpp_sde_gpu", Sampler::DpmppSde, None),
        ("uni_pc_bh2", Sampler::UniPc, None),
        ("dpm++2m", Sampler::Dpmpp2m, None),
        ("dpmpp-2m", Sampler::Dpmpp2m, None),
        ("dpm++_sde", Sampler::DpmppSde, None),
    ] {
        assert_eq!(parse(name), (sampler, schedule), "{name}");
    }
    for name in
        ["", "Karras", "_karras", "plms2", "DPM++ 4M SDE", "DPM++ 2M Karras Karras", "ddim_trailing_karras", "DPMSolverSinglestepScheduler"]
    {
        assert!(name.parse::<NamedSampler>().is_err(), "{name}");
    }
    // A class of diffusers is no name with a schedule in it.
    assert!("DPM++ 2M Karras".parse::<Sampler>().is_err());
}

#[test]
fn a_name_and_the_field_beside_it_agree() {
    let [karras, beta, automatic] = ["karras", "beta", "Automatic"].map(|name| Some(name.parse::<NamedSchedule>().unwrap()));
    let named: NamedSampler = "DPM++ 2M Karras".parse().unwrap();
    for schedule in [None, karras, automatic] {
        assert_eq!(named.schedule(schedule), Ok(Some(Schedule::Karras)));
    }
    let error = named.schedule(beta).unwrap_err();
    assert_eq!(
        (error.name, error.to_string().as_str()),
        ("schedule", "must be karras, as the name of the sampler says, or left out, not beta")
    );
    let plain = NamedSampler::from(Sampler::Euler);
    assert_eq!(
        [None, beta, automatic].map(|schedule| plain.schedule(schedule).unwrap()),
        [None, Some(Schedule::Beta), Some(Schedule::Normal)]
    );
}

/// With each sampler, the schedule that A1111's word means is one that the sampler has.
#[test]
fn automatic_is_a_schedule_of_the_sampler() {
    for sampler in Sampler::ALL {
        sampler.check_schedule(NamedSchedule::Automatic.of(sampler)).unwrap();
    }
}

#[test]
fn an_unknown_sampler_is_answered_with_the_known_ones() {
    let error = "plms2".parse::<Sampler>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "must be one of ddim, ddpm, pndm, lms, heun, euler, euler_a, dpm2, dpm2_a, dpmpp_2m, dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m_sde, dpmpp_2s_a, dpmpp_sde, unipc, deis, restart, res_multistep, er_sde, ipndm, ddim_cfg_pp, euler_cfg_pp, euler_a_cfg_pp, \
         lcm, tcd, not \"plms2\""
    );
}
