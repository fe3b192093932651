//! The table of solvers. A new sampler is a variant of [`Sampler`], a line here, and a file beside this one.

use super::{
    PlanRequest, SamplingPlan, SchedulerConfig, cfg_pp, ddim, ddpm, deis, dpmpp_3m_sde, dpmpp_multistep, dpmpp_sde, er_sde, euler,
    euler_ancestral, ipndm, lcm, lms, pndm, res_multistep, restart, tcd, two_evaluations, unipc,
};
use crate::common::{Eta, InvalidValue, Sampler, Schedule, Steps};

impl SamplingPlan {
    /// The plan of `steps` steps for a checkpoint, without the first `start` of them. Some samplers evaluate the network more than once
    /// in a step.
    ///
    /// # Errors
    /// When the sampler has no such schedule, when there are more steps than the checkpoint has timesteps, or when the sampler cannot
    /// begin with nothing but noise, as a checkpoint with `rescale_betas_zero_snr` asks it to.
    pub fn new(
        config: &SchedulerConfig,
        sampler: Sampler,
        schedule: Schedule,
        steps: Steps,
        start: usize,
        eta: Option<Eta>,
    ) -> Result<Self, InvalidValue> {
        let most = config.most_steps(sampler);
        if steps.get() > most {
            return Err(InvalidValue::new("steps", steps, format!("a whole number from 1 to {most} for this model with {sampler}")));
        }
        sampler.check_schedule(schedule)?;
        let schedule = if schedule == Schedule::Default { config.own_schedule(sampler) } else { schedule };
        let request = PlanRequest { schedule, steps: steps.get(), start, eta: eta.map(Eta::get) };
        // As in diffusers, whose other scheduler classes have no such field.
        let rescale_betas_zero_snr = config.rescale_betas_zero_snr && sampler.knows_zero_snr();
        let config = &SchedulerConfig { rescale_betas_zero_snr, ..config.clone() };
        let plan = solver(sampler)(config, request);
        if plan.is_finite() {
            return Ok(plan);
        }
        Err(InvalidValue::new("sampler", sampler, "one that can begin with nothing but noise (zero terminal SNR), such as euler"))
    }
}

fn solver(sampler: Sampler) -> fn(&SchedulerConfig, PlanRequest) -> SamplingPlan {
    match sampler {
        Sampler::Ddim => ddim::plan,
        Sampler::Ddpm => ddpm::plan,
        Sampler::Pndm => pndm::plan,
        Sampler::Lms => lms::plan,
        Sampler::Heun => two_evaluations::heun,
        Sampler::Euler => euler::plan,
        Sampler::EulerAncestral => euler_ancestral::plan,
        Sampler::Dpm2 => two_evaluations::dpm2,
        Sampler::Dpm2Ancestral => two_evaluations::dpm2_ancestral,
        Sampler::Dpmpp2m => dpmpp_multistep::ode,
        Sampler::Dpmpp2mSde => dpmpp_multistep::sde,
        Sampler::Dpmpp2mSdeHeun => dpmpp_multistep::sde_heun,
        Sampler::Dpmpp3mSde => dpmpp_3m_sde::plan,
        Sampler::Dpmpp2sAncestral => two_evaluations::dpmpp_2s_ancestral,
        Sampler::DpmppSde => dpmpp_sde::plan,
        Sampler::UniPc => unipc::plan,
        Sampler::Deis => deis::plan,
        Sampler::Restart => restart::plan,
        Sampler::ResMultistep => res_multistep::plan,
        Sampler::ErSde => er_sde::plan,
        Sampler::Ipndm => ipndm::plan,
        Sampler::DdimCfgPp => ddim::cfg_pp,
        Sampler::EulerCfgPp => cfg_pp::euler,
        Sampler::EulerAncestralCfgPp => cfg_pp::euler_ancestral,
        Sampler::Lcm => lcm::plan,
        Sampler::Tcd => tcd::plan,
    }
}
