//! Samplers as tables: everything a solver does that does not depend on the picture, worked out in `f64` before the first step.
//!
//! Every solver here moves the latents to a weighted sum of tensors that are known by then: the latents themselves, the network's
//! predictions, and fresh noise. So a sampler is not an object with state beside the generation, but a function from a checkpoint's
//! `scheduler_config.json` and a number of steps to an immutable [`SamplingPlan`]. Requests share no state through it, and tests read
//! it like a table.

mod alphas;
mod beta_quantile;
mod cfg_pp;
mod ddim;
mod ddpm;
mod deis;
mod dpmpp_3m_sde;
mod dpmpp_multistep;
mod dpmpp_sde;
mod er_sde;
mod euler;
mod euler_ancestral;
mod ipndm;
mod lcm;
mod levels;
mod lms;
mod multistep;
mod plan;
mod pndm;
mod res_multistep;
mod restart;
mod scheduler_config;
mod sigmas;
mod solver;
mod tcd;
mod two_evaluations;
mod unipc;

use plan::PlanRequest;
pub use plan::{Denoised, Level, SamplingPlan, Stage, Term};
pub use scheduler_config::{BetaSchedule, PredictionType, SchedulerConfig, TimestepSpacing};

#[cfg(test)]
mod tests;
