//! The options of `serve` that say what requests get that leave it out.

#![allow(clippy::doc_markdown, reason = "these comments are the help text")]

use clap::Args;

use crate::{
    backend::RequestDefaults,
    common::{GuidanceScale, ImageSize, NamedSampler, NamedSchedule, NegativePrompt, Steps},
};

/// What requests get that leave it out.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Defaults of requests")]
pub struct RequestDefaultArgs {
    /// Denoising steps of requests that leave them out [default: the model's own]
    #[arg(long, env = "SD_WORKER_STEPS", value_name = "STEPS")]
    pub steps: Option<Steps>,
    /// How strongly pictures follow the prompt where the request does not say [default: the model's own]
    #[arg(long, env = "SD_WORKER_GUIDANCE_SCALE", visible_alias = "cfg-scale", value_name = "SCALE")]
    pub guidance_scale: Option<GuidanceScale>,
    /// The sampler of requests that name none [default: the model's own]
    #[arg(long, env = "SD_WORKER_SAMPLER", value_name = "SAMPLER")]
    pub sampler: Option<NamedSampler>,
    /// The schedule of requests that name none, if their sampler can have it [default: the model's own]
    #[arg(long, env = "SD_WORKER_SCHEDULE", value_name = "SCHEDULE")]
    pub schedule: Option<NamedSchedule>,
    /// The size of pictures where the request does not say, such as 768x512 [default: the model's own]
    #[arg(long, env = "SD_WORKER_SIZE", value_name = "WIDTHxHEIGHT")]
    pub size: Option<ImageSize>,
    /// What pictures do not show where the request does not say
    #[arg(long, env = "SD_WORKER_NEGATIVE_PROMPT", value_name = "TEXT")]
    pub negative_prompt: Option<NegativePrompt>,
}

impl From<RequestDefaultArgs> for RequestDefaults {
    fn from(args: RequestDefaultArgs) -> Self {
        let RequestDefaultArgs { steps, guidance_scale, sampler, schedule, size, negative_prompt } = args;
        Self { steps, guidance_scale, sampler, schedule, size, negative_prompt }
    }
}
