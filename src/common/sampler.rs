//! Names of samplers and schedules, as people who come from diffusers, A1111 or stable-diffusion.cpp write them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// The solver that turns predictions of the network into the next latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Sampler {
    /// [DDIM](https://arxiv.org/abs/2010.02502) with eta 0, diffusers' `DDIMScheduler`.
    Ddim,
    /// Euler's method of [Karras et al.](https://arxiv.org/abs/2206.00364), diffusers' `EulerDiscreteScheduler`.
    Euler,
    /// Euler's method with fresh noise at each step, diffusers' `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// [DPM-Solver++](https://arxiv.org/abs/2211.01095), second order, multistep; diffusers' `DPMSolverMultistepScheduler`.
    Dpmpp2m,
}

impl Sampler {
    /// Every sampler, in the order in which they are offered.
    pub const ALL: [Self; 4] = [Self::Ddim, Self::Euler, Self::EulerAncestral, Self::Dpmpp2m];

    /// The name that the API shows, then the aliases that it understands.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Ddim => &["ddim", "DDIMScheduler"],
            Self::Euler => &["euler", "EulerDiscreteScheduler"],
            Self::EulerAncestral => &["euler_a", "euler_ancestral", "EulerAncestralDiscreteScheduler"],
            Self::Dpmpp2m => &["dpmpp_2m", "dpm++2m", "DPMSolverMultistepScheduler"],
        }
    }

    /// The name that the API shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.names()[0]
    }

    /// The schedules that it can be run with.
    #[must_use]
    pub fn schedules(self) -> &'static [Schedule] {
        match self {
            Self::Ddim | Self::EulerAncestral => &[Schedule::Default],
            Self::Euler | Self::Dpmpp2m => &Schedule::ALL,
        }
    }

    /// Makes sure that it can be run with `schedule`.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_schedule(self, schedule: Schedule) -> Result<(), InvalidValue> {
        if self.schedules().contains(&schedule) {
            return Ok(());
        }
        Err(InvalidValue::new("schedule", schedule, format!("{} with the sampler {self}", one_of(self.schedules()))))
    }

    /// The name that A1111 writes into its PNG files.
    #[must_use]
    pub fn a1111_name(self) -> &'static str {
        match self {
            Self::Ddim => "DDIM",
            Self::Euler => "Euler",
            Self::EulerAncestral => "Euler a",
            Self::Dpmpp2m => "DPM++ 2M",
        }
    }
}

impl From<Sampler> for &'static str {
    fn from(sampler: Sampler) -> Self {
        sampler.name()
    }
}

impl FromStr for Sampler {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        find(text, &Self::ALL, Self::names).ok_or_else(|| InvalidValue::new("sampler", format_args!("\"{text}\""), one_of(&Self::ALL)))
    }
}

impl TryFrom<String> for Sampler {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the noise levels of the steps are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Schedule {
    /// As the checkpoint's `scheduler_config.json` says (`timestep_spacing`).
    #[default]
    Default,
    /// The sigmas of [Karras et al.](https://arxiv.org/abs/2206.00364), equation 5, with rho 7.
    Karras,
}

impl Schedule {
    /// Every schedule, in the order in which they are offered.
    pub const ALL: [Self; 2] = [Self::Default, Self::Karras];

    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Default => &["default", "normal", "automatic", "discrete"],
            Self::Karras => &["karras"],
        }
    }

    /// The name that the API shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.names()[0]
    }
}

impl From<Schedule> for &'static str {
    fn from(schedule: Schedule) -> Self {
        schedule.name()
    }
}

impl FromStr for Schedule {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        find(text, &Self::ALL, Self::names).ok_or_else(|| InvalidValue::new("schedule", format_args!("\"{text}\""), one_of(&Self::ALL)))
    }
}

impl TryFrom<String> for Schedule {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        text.parse()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Finds `text` among the names of `all`, whatever its case, with blanks and hyphens read as underscores.
fn find<T: Copy>(text: &str, all: &[T], names: impl Fn(T) -> &'static [&'static str]) -> Option<T> {
    let plain = |name: &str| name.trim().to_lowercase().replace([' ', '-'], "_").replace("++_", "++");
    all.iter().copied().find(|&item| names(item).iter().any(|name| plain(name) == plain(text)))
}

fn one_of<T: fmt::Display>(all: &[T]) -> String {
    let names: Vec<String> = all.iter().map(ToString::to_string).collect();
    match names.as_slice() {
        [only] => only.clone(),
        _ => format!("one of {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_of_other_tools_are_understood() {
        for (alias, sampler) in [
            ("DDIM", Sampler::Ddim),
            ("Euler a", Sampler::EulerAncestral),
            ("euler_ancestral", Sampler::EulerAncestral),
            ("EulerAncestralDiscreteScheduler", Sampler::EulerAncestral),
            ("DPM++ 2M", Sampler::Dpmpp2m),
            ("dpm++2m", Sampler::Dpmpp2m),
            ("dpmpp-2m", Sampler::Dpmpp2m),
        ] {
            assert_eq!(alias.parse(), Ok(sampler), "{alias}");
        }
        assert_eq!("Karras".parse(), Ok(Schedule::Karras));
    }

    #[test]
    fn every_name_leads_back_to_its_sampler() {
        for sampler in Sampler::ALL {
            assert_eq!(sampler.to_string().parse(), Ok(sampler));
            assert_eq!(sampler.a1111_name().parse(), Ok(sampler));
        }
        for schedule in Schedule::ALL {
            assert_eq!(schedule.to_string().parse(), Ok(schedule));
        }
    }

    #[test]
    fn an_unknown_sampler_is_answered_with_the_known_ones() {
        let error = "plms2".parse::<Sampler>().unwrap_err();
        assert_eq!(error.to_string(), "must be one of ddim, euler, euler_a, dpmpp_2m, not \"plms2\"");
    }
}
