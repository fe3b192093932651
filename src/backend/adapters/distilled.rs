//! The settings of adapters that make a model draw in few steps. Their files do not state them: the names tell.

use std::fmt;

use crate::common::{GuidanceScale, Sampler, Schedule, Steps};

/// The settings that an adapter was made for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FewSteps {
    /// The solver.
    pub sampler: Sampler,
    /// How noise levels are spaced.
    pub schedule: Schedule,
    /// None where it is made for the model's own guidance.
    pub guidance_scale: Option<GuidanceScale>,
    /// Denoising steps.
    pub steps: Option<Steps>,
}

impl FewSteps {
    /// The settings of a file of this name, if it is one of those that people use:
    /// [LCM](https://huggingface.co/latent-consistency/lcm-lora-sdv1-5), [TCD](https://huggingface.co/h1t/TCD-SDXL-LoRA),
    /// [SDXL-Lightning](https://huggingface.co/ByteDance/SDXL-Lightning), [Hyper-SD](https://huggingface.co/ByteDance/Hyper-SD),
    /// [DMD2](https://huggingface.co/tianweiy/DMD2), Turbo.
    pub(in crate::backend) fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let has = |wanted: &str| words.contains(&wanted);
        let joined = words.join("_");
        let steps = steps_in(&joined);
        let of = |sampler, schedule, usual: i64| {
            let steps = Steps::try_from(steps.unwrap_or(usual)).ok();
            Some(Self { sampler, schedule, guidance_scale: GuidanceScale::try_from(1.0).ok(), steps })
        };
        // Lightning and turbo are also things to draw.
        match () {
            () if has("lcm") => of(Sampler::Lcm, Schedule::Default, 4),
            () if has("tcd") => of(Sampler::Tcd, Schedule::Default, 4),
            () if has("dmd2") => of(Sampler::Lcm, Schedule::Default, 4),
            () if has("lightning") && steps.is_some() => of(Sampler::Euler, Schedule::SgmUniform, 4),
            () if joined.contains("hyper_sd") && steps == Some(1) => of(Sampler::Tcd, Schedule::Default, 1),
            () if joined.contains("hyper_sd") => {
                let settings = of(Sampler::Ddim, Schedule::SgmUniform, 8)?;
                Some(if has("cfg") { Self { guidance_scale: None, ..settings } } else { settings })
            }
            () if ["sd_xl_turbo", "sdxl_turbo", "sd_turbo"].iter().any(|turbo| joined.contains(turbo)) => {
                of(Sampler::EulerAncestral, Schedule::SgmUniform, 4)
            }
            () => None,
        }
    }
}

impl fmt::Display for FewSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sampler, schedule, guidance_scale, steps } = self;
        write!(f, "sampler {}, schedule {}", sampler.name(), schedule.name())?;
        steps.map_or(Ok(()), |steps| write!(f, ", {steps} steps"))?;
        guidance_scale.map_or(Ok(()), |scale| write!(f, ", guidance_scale {scale}"))
    }
}

/// The number before `step` or `steps`.
fn steps_in(joined: &str) -> Option<i64> {
    let before = joined[..joined.find("step")?].trim_end_matches('_');
    let digits = before.len() - before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    before[before.len() - digits..].parse().ok().filter(|steps| (1..=64).contains(steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_for_few_steps_are_known_by_their_names() {
        for (name, sampler, schedule, is_guided, steps) in [
            ("lcm-lora-sdv1-5", Sampler::Lcm, Schedule::Default, false, 4),
            ("LCM_LoRA_Weights_SD15", Sampler::Lcm, Schedule::Default, false, 4),
            ("TCD-SDXL-LoRA", Sampler::Tcd, Schedule::Default, false, 4),
            ("sdxl_lightning_8step_lora", Sampler::Euler, Schedule::SgmUniform, false, 8),
            ("Hyper-SD15-1step-lora", Sampler::Tcd, Schedule::Default, false, 1),
            ("Hyper-SDXL-8steps-lora", Sampler::Ddim, Schedule::SgmUniform, false, 8),
            ("Hyper-SDXL-12steps-CFG-lora", Sampler::Ddim, Schedule::SgmUniform, true, 12),
            ("dmd2_sdxl_4step_lora_fp16", Sampler::Lcm, Schedule::Default, false, 4),
            ("sd_xl_turbo_lora_v1-64dim", Sampler::EulerAncestral, Schedule::SgmUniform, false, 4),
        ] {
            let found = FewSteps::of_name(name).unwrap();
            assert_eq!((found.sampler, found.schedule, found.guidance_scale.is_none()), (sampler, schedule, is_guided), "{name}");
            assert_eq!(found.steps.unwrap().get(), steps, "{name}");
        }
        for name in [
            "lightning",
            "blue_lightning_v2",
            "lcmix",
            "hypersexy",
            "turbo_car",
            "steps",
            "0step_lightning",
            "",
            "ä 99999999999999999999steps lightning",
        ] {
            assert_eq!(FewSteps::of_name(name), None, "{name}");
        }
    }
}
