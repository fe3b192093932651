//! Aliases of samplers and schedules from other tools, with their sources. A name means the same here as there.

use std::{fmt, str::FromStr};

use serde::Deserialize;

use super::{InvalidValue, Sampler, Schedule, invalid_value::one_of};

/// `SchedulerMixin`s of diffusers 0.42.
const DIFFUSERS: &str = "diffusers";
/// `modules/sd_samplers_kdiffusion.py`, `modules/sd_samplers_timesteps.py` and `modules/sd_schedulers.py` of A1111 1.10.
const A1111: &str = "A1111";
/// `KSampler.SAMPLERS` and `KSampler.SCHEDULERS` in `comfy/samplers.py`. A `_gpu` sampler differs only in the device that draws its noise.
const COMFY: &str = "ComfyUI";
/// `sample_method_to_str` and `scheduler_to_str` in stable-diffusion.cpp.
const SD_CPP: &str = "stable-diffusion.cpp";

/// Aliases of samplers besides the API's names and A1111's. A few include a schedule.
const SAMPLERS: [(&str, &str, Sampler, Option<Schedule>); 44] = [
    ("DDIMScheduler", DIFFUSERS, Sampler::Ddim, None),
    ("ddim_trailing", SD_CPP, Sampler::Ddim, Some(Schedule::SgmUniform)),
    ("DDPMScheduler", DIFFUSERS, Sampler::Ddpm, None),
    ("PNDMScheduler", DIFFUSERS, Sampler::Pndm, None),
    ("LMSDiscreteScheduler", DIFFUSERS, Sampler::Lms, None),
    ("k_lms", A1111, Sampler::Lms, None),
    ("HeunDiscreteScheduler", DIFFUSERS, Sampler::Heun, None),
    ("k_heun", A1111, Sampler::Heun, None),
    ("EulerDiscreteScheduler", DIFFUSERS, Sampler::Euler, None),
    ("k_euler", A1111, Sampler::Euler, None),
    ("EulerAncestralDiscreteScheduler", DIFFUSERS, Sampler::EulerAncestral, None),
    ("k_euler_a", A1111, Sampler::EulerAncestral, None),
    ("k_euler_ancestral", A1111, Sampler::EulerAncestral, None),
    ("euler_ancestral", COMFY, Sampler::EulerAncestral, None),
    ("KDPM2DiscreteScheduler", DIFFUSERS, Sampler::Dpm2, None),
    ("k_dpm_2", A1111, Sampler::Dpm2, None),
    ("dpm_2", COMFY, Sampler::Dpm2, None),
    ("KDPM2AncestralDiscreteScheduler", DIFFUSERS, Sampler::Dpm2Ancestral, None),
    ("k_dpm_2_a", A1111, Sampler::Dpm2Ancestral, None),
    ("dpm_2_ancestral", COMFY, Sampler::Dpm2Ancestral, None),
    ("DPMSolverMultistepScheduler", DIFFUSERS, Sampler::Dpmpp2m, None),
    ("k_dpmpp_2m", A1111, Sampler::Dpmpp2m, None),
    ("dpm++2m", SD_CPP, Sampler::Dpmpp2m, None),
    ("k_dpmpp_2m_sde", A1111, Sampler::Dpmpp2mSde, None),
    ("dpmpp_2m_sde_gpu", COMFY, Sampler::Dpmpp2mSde, None),
    ("dpm++2m_sde", SD_CPP, Sampler::Dpmpp2mSde, None),
    ("k_dpmpp_2m_sde_heun", A1111, Sampler::Dpmpp2mSdeHeun, None),
    ("dpmpp_2m_sde_heun_gpu", COMFY, Sampler::Dpmpp2mSdeHeun, None),
    ("k_dpmpp_3m_sde", A1111, Sampler::Dpmpp3mSde, None),
    ("dpmpp_3m_sde_gpu", COMFY, Sampler::Dpmpp3mSde, None),
    ("k_dpmpp_2s_a", A1111, Sampler::Dpmpp2sAncestral, None),
    ("dpmpp_2s_ancestral", COMFY, Sampler::Dpmpp2sAncestral, None),
    ("dpm++2s_a", SD_CPP, Sampler::Dpmpp2sAncestral, None),
    ("DPMSolverSDEScheduler", DIFFUSERS, Sampler::DpmppSde, None),
    ("k_dpmpp_sde", A1111, Sampler::DpmppSde, None),
    ("dpmpp_sde_gpu", COMFY, Sampler::DpmppSde, None),
    ("UniPCMultistepScheduler", DIFFUSERS, Sampler::UniPc, None),
    // Its solver is diffusers' default, B2(h); under `uni_pc` there and `UniPC` in A1111 it is B1(h), of the same order.
    ("uni_pc_bh2", COMFY, Sampler::UniPc, None),
    ("uni_pc", COMFY, Sampler::UniPc, None),
    ("DEISMultistepScheduler", DIFFUSERS, Sampler::Deis, None),
    ("ddim_cfgpp", A1111, Sampler::DdimCfgPp, None),
    ("euler_ancestral_cfg_pp", COMFY, Sampler::EulerAncestralCfgPp, None),
    ("LCMScheduler", DIFFUSERS, Sampler::Lcm, None),
    ("TCDScheduler", DIFFUSERS, Sampler::Tcd, None),
];

/// Aliases of schedules besides the API's names and A1111's.
const SCHEDULES: [(&str, &str, Schedule); 7] = [
    ("Uniform", A1111, Schedule::Normal),
    ("discrete", SD_CPP, Schedule::Normal),
    ("trailing", DIFFUSERS, Schedule::SgmUniform),
    ("SGMUniform", A1111, Schedule::SgmUniform),
    ("align_your_steps", A1111, Schedule::AlignYourSteps),
    // With its default rho of 1, it is that.
    ("Polyexponential", A1111, Schedule::Exponential),
    ("Turbo", A1111, Schedule::SgmUniform),
];

/// The end of A1111's short sampler names that include Karras sigmas, such as `k_dpmpp_2m_ka`.
const SHORT_KARRAS: &str = "_ka";

/// A sampler, and the schedule that its name includes: until version 1.9 of A1111, `DPM++ 2M Karras` was one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NamedSampler {
    /// The sampler.
    pub sampler: Sampler,
    /// The schedule, if the name includes one.
    pub schedule: Option<Schedule>,
}

/// A schedule, or A1111's `Automatic`, which depends on the sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum NamedSchedule {
    /// A schedule.
    Named(Schedule),
    /// The `scheduler` option of the sampler in `modules/sd_samplers_kdiffusion.py`, or evenly spaced timesteps if it has none. For
    /// samplers of `modules/sd_samplers_timesteps.py`, and for those that A1111 lacks, the checkpoint's own schedule.
    Automatic,
}

impl NamedSchedule {
    /// The schedule for a sampler.
    #[must_use]
    pub fn of(self, sampler: Sampler) -> Schedule {
        match (self, sampler) {
            (Self::Named(schedule), _) => schedule,
            (
                Self::Automatic,
                Sampler::Dpm2
                | Sampler::Dpm2Ancestral
                | Sampler::Dpmpp2m
                | Sampler::Dpmpp2sAncestral
                | Sampler::DpmppSde
                | Sampler::Restart,
            ) => Schedule::Karras,
            (Self::Automatic, Sampler::Dpmpp2mSde | Sampler::Dpmpp2mSdeHeun | Sampler::Dpmpp3mSde) => Schedule::Exponential,
            (Self::Automatic, Sampler::Euler | Sampler::EulerAncestral | Sampler::Lms | Sampler::Heun) => Schedule::Normal,
            (
                Self::Automatic,
                Sampler::Ddim
                | Sampler::DdimCfgPp
                | Sampler::EulerCfgPp
                | Sampler::EulerAncestralCfgPp
                | Sampler::Ddpm
                | Sampler::Pndm
                | Sampler::UniPc
                | Sampler::Deis
                | Sampler::ResMultistep
                | Sampler::ErSde
                | Sampler::Ipndm
                | Sampler::Lcm
                | Sampler::Tcd,
            ) => Schedule::Default,
        }
    }
}

impl NamedSampler {
    /// The schedule that the sampler's name includes or that is given beside it, if there is one.
    ///
    /// # Errors
    /// When the two differ.
    pub fn schedule(self, schedule: Option<NamedSchedule>) -> Result<Option<Schedule>, InvalidValue> {
        let beside = schedule.map(|schedule| schedule.of(self.sampler));
        match (self.schedule, schedule, beside) {
            // In A1111, too, a schedule in the name takes precedence over `Automatic`.
            (Some(named), Some(NamedSchedule::Automatic), _) => Ok(Some(named)),
            (Some(named), _, Some(beside)) if named != beside => {
                Err(InvalidValue::new("schedule", beside, format!("{named}, as the name of the sampler says, or left out")))
            }
            (named, _, beside) => Ok(named.or(beside)),
        }
    }
}

impl From<Sampler> for NamedSampler {
    fn from(sampler: Sampler) -> Self {
        Self { sampler, schedule: None }
    }
}

impl FromStr for Sampler {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let named: NamedSampler = text.parse()?;
        if named.schedule.is_none() { Ok(named.sampler) } else { Err(unknown("sampler", text, &Self::ALL)) }
    }
}

impl TryFrom<String> for Sampler {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl FromStr for Schedule {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        schedule(text).ok_or_else(|| unknown("schedule", text, &Self::ALL))
    }
}

impl TryFrom<String> for Schedule {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl FromStr for NamedSampler {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let wanted = plain(text);
        let ends = schedule_names().map(|(name, schedule)| (format!("_{}", plain(name)), schedule));
        let ends = ends.chain([(SHORT_KARRAS.to_owned(), Schedule::Karras)]);
        let in_two = |(end, schedule): (String, Schedule)| {
            let named = sampler(wanted.strip_suffix(&end)?)?;
            named.schedule.is_none().then_some(Self { schedule: Some(schedule), ..named })
        };
        sampler(&wanted).or_else(|| ends.into_iter().find_map(in_two)).ok_or_else(|| unknown("sampler", text, &Sampler::ALL))
    }
}

impl FromStr for NamedSchedule {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if plain(text) == "automatic" { Ok(Self::Automatic) } else { text.parse().map(Self::Named) }
    }
}

impl TryFrom<String> for NamedSampler {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl TryFrom<String> for NamedSchedule {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

/// The sampler of a [`plain`] name.
fn sampler(name: &str) -> Option<NamedSampler> {
    let own = Sampler::ALL.into_iter().flat_map(|sampler| [sampler.name(), sampler.a1111_name()].map(|name| (name, sampler.into())));
    let others = SAMPLERS.into_iter().map(|(name, _, sampler, schedule)| (name, NamedSampler { sampler, schedule }));
    own.chain(others).find(|(other, _)| plain(other) == name).map(|(_, named)| named)
}

/// The schedule of a name.
fn schedule(name: &str) -> Option<Schedule> {
    schedule_names().find(|(other, _)| plain(other) == plain(name)).map(|(_, schedule)| schedule)
}

fn schedule_names() -> impl Iterator<Item = (&'static str, Schedule)> {
    let own = Schedule::ALL.into_iter().flat_map(|schedule| [schedule.name(), schedule.a1111_name()].map(|name| (name, schedule)));
    own.chain(SCHEDULES.into_iter().map(|(name, _, schedule)| (name, schedule)))
}

/// A name in lower case, with underscores for blanks and hyphens, and `pp` for `++`.
fn plain(name: &str) -> String {
    name.trim().to_lowercase().replace([' ', '-'], "_").replace("++_", "++").replace("++", "pp_")
}

fn unknown<T: fmt::Display>(name: &'static str, text: &str, all: &[T]) -> InvalidValue {
    InvalidValue::new(name, format_args!("\"{text}\""), one_of(all))
}

#[cfg(test)]
mod tests;
