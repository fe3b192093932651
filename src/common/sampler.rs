//! Samplers and schedules. Their aliases and the parsing of names are in [`super::sampler_names`].

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{InvalidValue, invalid_value::one_of};

/// The solver, which turns the network's predictions into the next latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Sampler {
    /// [DDIM](https://arxiv.org/abs/2010.02502), diffusers' `DDIMScheduler`. Its `eta` is 0 unless the request says otherwise.
    Ddim,
    /// [DDPM](https://arxiv.org/abs/2006.11239), diffusers' `DDPMScheduler`.
    Ddpm,
    /// [PNDM](https://arxiv.org/abs/2202.09778), which A1111 calls PLMS; diffusers' `PNDMScheduler`.
    Pndm,
    /// Linear multistep, diffusers' `LMSDiscreteScheduler`.
    Lms,
    /// Heun's method of [Karras et al.](https://arxiv.org/abs/2206.00364), diffusers' `HeunDiscreteScheduler`.
    Heun,
    /// Euler's method of [Karras et al.](https://arxiv.org/abs/2206.00364), diffusers' `EulerDiscreteScheduler`.
    Euler,
    /// Euler's method with fresh noise at each step, diffusers' `EulerAncestralDiscreteScheduler`.
    EulerAncestral,
    /// [DPM-Solver-2](https://arxiv.org/abs/2206.00927), diffusers' `KDPM2DiscreteScheduler`.
    Dpm2,
    /// The same with fresh noise at each step, diffusers' `KDPM2AncestralDiscreteScheduler`.
    Dpm2Ancestral,
    /// [DPM-Solver++](https://arxiv.org/abs/2211.01095), second order, multistep; diffusers' `DPMSolverMultistepScheduler`.
    Dpmpp2m,
    /// The same with fresh noise at each step, diffusers' `algorithm_type="sde-dpmsolver++"`.
    Dpmpp2mSde,
    /// The same by Heun's formula, diffusers' `solver_type="heun"`.
    Dpmpp2mSdeHeun,
    /// [DPM-Solver++](https://arxiv.org/abs/2211.01095), third order, multistep, with fresh noise at each step; as k-diffusion's
    /// `sample_dpmpp_3m_sde`.
    Dpmpp3mSde,
    /// [DPM-Solver++](https://arxiv.org/abs/2211.01095), second order, single step, with fresh noise at each step; as k-diffusion's
    /// `sample_dpmpp_2s_ancestral`.
    Dpmpp2sAncestral,
    /// The SDE form of the single-step solver, diffusers' `DPMSolverSinglestepScheduler` with `algorithm_type="sde-dpmsolver++"`.
    DpmppSde,
    /// [UniPC](https://arxiv.org/abs/2302.04867), diffusers' `UniPCMultistepScheduler`.
    UniPc,
    /// [DEIS](https://arxiv.org/abs/2204.13902), diffusers' `DEISMultistepScheduler`.
    Deis,
    /// Heun's method with [restarts](https://arxiv.org/abs/2306.14878) at a higher noise level, as A1111's `restart_sampler`.
    Restart,
    /// [RES](https://arxiv.org/abs/2308.02157), second order, multistep; as `ComfyUI`'s `sample_res_multistep`.
    ResMultistep,
    /// [ER-SDE](https://arxiv.org/abs/2309.06169), third order, with fresh noise at each step; as `ComfyUI`'s `sample_er_sde`.
    ErSde,
    /// [iPNDM](https://arxiv.org/abs/2204.13902), fourth order, multistep; as `ComfyUI`'s `sample_ipndm`.
    Ipndm,
    /// [DDIM](https://arxiv.org/abs/2010.02502) with [CFG++](https://arxiv.org/abs/2406.08070), A1111's `ddim_cfgpp`.
    DdimCfgPp,
    /// Euler's method with [CFG++](https://arxiv.org/abs/2406.08070), as `ComfyUI`'s `sample_euler_cfg_pp`.
    EulerCfgPp,
    /// The same with fresh noise at each step, as `ComfyUI`'s `sample_euler_ancestral_cfg_pp`.
    EulerAncestralCfgPp,
    /// For [latent consistency models](https://arxiv.org/abs/2310.04378), diffusers' `LCMScheduler`.
    Lcm,
    /// For [trajectory consistency distillation](https://arxiv.org/abs/2402.19159), diffusers' `TCDScheduler`. Its `eta` is 0.3
    /// unless the request says otherwise.
    Tcd,
}

/// The share of a usual guidance scale that CFG++ has in its place: 0.6 of 7.5, as in the paper's table 1.
const CFG_PP_FACTOR: f64 = 1.0 / 12.5;

impl Sampler {
    /// Every sampler, in the order of the documentation.
    pub const ALL: [Self; 26] = [
        Self::Ddim,
        Self::Ddpm,
        Self::Pndm,
        Self::Lms,
        Self::Heun,
        Self::Euler,
        Self::EulerAncestral,
        Self::Dpm2,
        Self::Dpm2Ancestral,
        Self::Dpmpp2m,
        Self::Dpmpp2mSde,
        Self::Dpmpp2mSdeHeun,
        Self::Dpmpp3mSde,
        Self::Dpmpp2sAncestral,
        Self::DpmppSde,
        Self::UniPc,
        Self::Deis,
        Self::Restart,
        Self::ResMultistep,
        Self::ErSde,
        Self::Ipndm,
        Self::DdimCfgPp,
        Self::EulerCfgPp,
        Self::EulerAncestralCfgPp,
        Self::Lcm,
        Self::Tcd,
    ];

    /// The name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.names().0
    }

    /// The name in A1111's PNG files.
    #[must_use]
    pub fn a1111_name(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Ddim => ("ddim", "DDIM"),
            Self::Ddpm => ("ddpm", "DDPM"),
            Self::Pndm => ("pndm", "PLMS"),
            Self::Lms => ("lms", "LMS"),
            Self::Heun => ("heun", "Heun"),
            Self::Euler => ("euler", "Euler"),
            Self::EulerAncestral => ("euler_a", "Euler a"),
            Self::Dpm2 => ("dpm2", "DPM2"),
            Self::Dpm2Ancestral => ("dpm2_a", "DPM2 a"),
            Self::Dpmpp2m => ("dpmpp_2m", "DPM++ 2M"),
            Self::Dpmpp2mSde => ("dpmpp_2m_sde", "DPM++ 2M SDE"),
            Self::Dpmpp2mSdeHeun => ("dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun"),
            Self::Dpmpp3mSde => ("dpmpp_3m_sde", "DPM++ 3M SDE"),
            Self::Dpmpp2sAncestral => ("dpmpp_2s_a", "DPM++ 2S a"),
            Self::DpmppSde => ("dpmpp_sde", "DPM++ SDE"),
            Self::UniPc => ("unipc", "UniPC"),
            Self::Deis => ("deis", "DEIS"),
            Self::Restart => ("restart", "Restart"),
            Self::ResMultistep => ("res_multistep", "Res Multistep"),
            Self::ErSde => ("er_sde", "ER SDE"),
            Self::Ipndm => ("ipndm", "iPNDM"),
            Self::DdimCfgPp => ("ddim_cfg_pp", "DDIM CFG++"),
            Self::EulerCfgPp => ("euler_cfg_pp", "Euler CFG++"),
            Self::EulerAncestralCfgPp => ("euler_a_cfg_pp", "Euler a CFG++"),
            Self::Lcm => ("lcm", "LCM"),
            Self::Tcd => ("tcd", "TCD"),
        }
    }

    /// The schedules that the sampler works with.
    #[must_use]
    pub fn schedules(self) -> &'static [Schedule] {
        match self {
            // These count in whole training timesteps.
            Self::Ddim | Self::DdimCfgPp | Self::Ddpm | Self::Pndm => &[Schedule::Default, Schedule::Normal, Schedule::SgmUniform],
            Self::Lcm | Self::Tcd => &[Schedule::Default],
            _ => &Schedule::ALL,
        }
    }

    /// Whether the sampler is for models distilled to a few steps.
    #[must_use]
    pub fn is_distilled(self) -> bool {
        matches!(self, Self::Lcm | Self::Tcd)
    }

    /// Whether the sampler has an `eta`, the amount of fresh noise.
    #[must_use]
    pub fn has_eta(self) -> bool {
        matches!(self, Self::Ddim | Self::DdimCfgPp | Self::Tcd)
    }

    /// Whether the sampler looks at the negative prompt at every guidance scale.
    #[must_use]
    pub fn is_always_guided(self) -> bool {
        matches!(self, Self::DdimCfgPp | Self::EulerCfgPp | Self::EulerAncestralCfgPp)
    }

    /// What a request's guidance scale is multiplied by. CFG++ has scales from 0 to 1; A1111 counts them up to 12.5.
    #[must_use]
    pub fn guidance_factor(self) -> f64 {
        if self == Self::DdimCfgPp { CFG_PP_FACTOR } else { 1.0 }
    }

    /// What the usual guidance scale is multiplied by where a request leaves it out.
    #[must_use]
    pub fn usual_guidance_factor(self) -> f64 {
        if matches!(self, Self::EulerCfgPp | Self::EulerAncestralCfgPp) { CFG_PP_FACTOR } else { 1.0 }
    }

    /// Whether the sampler's class in diffusers can rescale the noise levels to zero terminal SNR.
    #[must_use]
    pub fn knows_zero_snr(self) -> bool {
        !matches!(
            self,
            Self::Pndm
                | Self::Lms
                | Self::Heun
                | Self::Dpm2
                | Self::Dpm2Ancestral
                | Self::Dpmpp3mSde
                | Self::Dpmpp2sAncestral
                | Self::DpmppSde
                | Self::Deis
                | Self::Restart
                | Self::ResMultistep
                | Self::ErSde
                | Self::Ipndm
        )
    }

    /// Checks that the sampler works with `schedule`.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_schedule(self, schedule: Schedule) -> Result<(), InvalidValue> {
        if self.schedules().contains(&schedule) {
            return Ok(());
        }
        Err(InvalidValue::new("schedule", schedule, format!("{} with the sampler {self}", one_of(self.schedules()))))
    }
}

impl From<Sampler> for &'static str {
    fn from(sampler: Sampler) -> Self {
        sampler.name()
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The spacing of the noise levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Schedule {
    /// As the checkpoint's `scheduler_config.json` says (`timestep_spacing`, `use_karras_sigmas` and their like).
    #[default]
    Default,
    /// As many timesteps as steps, evenly from the last to the first, whatever the checkpoint says; diffusers'
    /// `timestep_spacing="linspace"` with Euler.
    Normal,
    /// The sigmas of [Karras et al.](https://arxiv.org/abs/2206.00364), equation 5, with rho 7.
    Karras,
    /// Sigmas that fall exponentially.
    Exponential,
    /// Sigmas spaced by the quantiles of a [beta distribution](https://arxiv.org/abs/2407.12173).
    Beta,
    /// Timesteps counted evenly back from the last, diffusers' `timestep_spacing="trailing"`.
    SgmUniform,
    /// The same, rounded up, as `ComfyUI` has it.
    Simple,
    /// The sigmas of [Align Your Steps](https://arxiv.org/abs/2404.14507).
    AlignYourSteps,
    /// Sigmas whose arcus tangens falls evenly, after the same paper's theorem 3.1.
    KlOptimal,
    /// Timesteps counted evenly up from the second, as in DDIM's own program.
    DdimUniform,
}

impl Schedule {
    /// Every schedule, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Default,
        Self::Normal,
        Self::Karras,
        Self::Exponential,
        Self::Beta,
        Self::SgmUniform,
        Self::Simple,
        Self::AlignYourSteps,
        Self::KlOptimal,
        Self::DdimUniform,
    ];

    /// The name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.names().0
    }

    /// The name in A1111's PNG files. A1111 has none for the checkpoint's own schedule.
    #[must_use]
    pub fn a1111_name(self) -> &'static str {
        self.names().1
    }

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Default => ("default", "Default"),
            Self::Normal => ("normal", "Normal"),
            Self::Karras => ("karras", "Karras"),
            Self::Exponential => ("exponential", "Exponential"),
            Self::Beta => ("beta", "Beta"),
            Self::SgmUniform => ("sgm_uniform", "SGM Uniform"),
            Self::Simple => ("simple", "Simple"),
            Self::AlignYourSteps => ("ays", "Align Your Steps"),
            Self::KlOptimal => ("kl_optimal", "KL Optimal"),
            Self::DdimUniform => ("ddim_uniform", "DDIM"),
        }
    }
}

impl From<Schedule> for &'static str {
    fn from(schedule: Schedule) -> Self {
        schedule.name()
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
