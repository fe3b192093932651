//! The options of `generate`.

#![allow(clippy::doc_markdown, reason = "these comments are the help text")]

use std::path::PathBuf;

use clap::Args;

use super::{ModelArgs, one_of};
use crate::{
    backend::{ParsedPrompt, Settings},
    common::{
        ClipSkip, ControlFile, Decoder, Eta, FeatureCache, GuidanceInterval, GuidanceScale, ImageSize, InvalidValue, NamedLora,
        NamedSampler, NamedSchedule, NegativePrompt, OutputConfig, Prompt, ReferenceFile, Sampler, SamplingOptions, Schedule, Seed, Steps,
        Strength, UpscaleSettings,
    },
};

/// Pictures of one prompt.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What the picture shows
    pub prompt: Prompt,
    /// The file to write, .png, .jpg or .webp, in place of what is there; - is stdout, as PNG [default: out.png, or the first of out-1.png,
    /// out-2.png, … that is not there yet]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How many pictures, 1 to 10; their seeds follow each other, and so do the numbers in the names of their files
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=10), value_name = "PICTURES")]
    pub count: u8,
    /// What the picture does not show
    #[arg(long, default_value = "", value_name = "PROMPT")]
    pub negative_prompt: NegativePrompt,
    /// A LoRA of the folder of --loras by its name, with its scale, -20 to 20 [default: 1]; may be given several times
    #[arg(long, value_name = "NAME[:SCALE]", allow_hyphen_values = true)]
    pub lora: Vec<NamedLora>,
    /// The same seed gives the same picture; -1 is a random one [default: random]
    #[arg(long, allow_negative_numbers = true, value_parser = seed)]
    pub seed: Option<Seed>,
    /// Denoising steps, 1 to 1000 [default: the model's]
    #[arg(long)]
    pub steps: Option<Steps>,
    /// How strongly the picture follows the prompt, 0 to 50 [default: the model's]
    #[arg(long, value_name = "SCALE")]
    pub guidance_scale: Option<GuidanceScale>,
    /// The shares of the steps after which guidance begins and ends, such as 0.2,0.8 [default: all steps]
    #[arg(long, value_name = "START,STOP")]
    pub guidance_interval: Option<GuidanceInterval>,
    /// Reuse features between steps: faster, and another picture. With deep,interval=3, every third step is full; with deep,threshold=0.1,
    /// those before which the latents have changed by more than this share since the latest full one. Then ,start=0.2 and ,end=0.8 as
    /// shares of the steps: all outside are full [default: all steps are full]
    #[arg(long, value_name = "KIND,OPTION…")]
    pub cache: Option<FeatureCache>,
    /// The solver.
    #[arg(long, help = one_of("The solver", &Sampler::ALL.map(Sampler::name)))]
    pub sampler: Option<NamedSampler>,
    /// How noise levels are spaced.
    #[arg(long, help = one_of("How noise levels are spaced", &Schedule::ALL.map(Schedule::name)))]
    pub schedule: Option<NamedSchedule>,
    /// How much fresh noise the samplers ddim, ddim_cfg_pp and tcd add, 0 to 1 [default: 0; tcd: 0.3]
    #[arg(long)]
    pub eta: Option<Eta>,
    /// Which of the text encoder's layers is the last one, counted from its end, 1 to 12; 1 skips nothing [default: the model's]
    #[arg(long, value_name = "LAYER")]
    pub clip_skip: Option<ClipSkip>,
    /// What turns latents into pixels: full, the model's VAE, or tiny, that of --tiny-vae
    #[arg(long, default_value_t)]
    pub decoder: Decoder,
    /// Enlarge the picture with a network of --upscaler, crisp (the built-in model's), Lanczos or Nearest, and how much, 1 to 8 [default:
    /// as much as the network does, or 2]; with a strength, also with Latent, and draw it again in so many steps [default: as many as the first time]
    #[arg(long, value_name = "NAME[,scale=SCALE][,strength=STRENGTH][,steps=STEPS]")]
    pub upscale: Option<UpscaleSettings>,
    /// Width and height in pixels, multiples of 8, such as 512x768 [default: those of the picture to begin with, or the model's]
    #[arg(long, value_name = "WIDTHxHEIGHT", conflicts_with_all = ["width", "height"])]
    pub size: Option<ImageSize>,
    /// Width in pixels, a multiple of 8 [default: that of the picture to begin with, or the model's]
    #[arg(long, value_name = "PIXELS")]
    pub width: Option<u32>,
    /// Height in pixels, a multiple of 8 [default: that of the picture to begin with, or the model's]
    #[arg(long, value_name = "PIXELS")]
    pub height: Option<u32>,
    /// A picture to begin with: .png, .jpg or .webp
    #[arg(long, value_name = "FILE")]
    pub init_image: Option<PathBuf>,
    /// How far it is changed, 0 to 1 [default: 0.8, with a mask 1]
    #[arg(long, requires = "init_image")]
    pub strength: Option<Strength>,
    /// What of it is painted anew: white, or transparent if there is anything transparent; the rest is kept
    #[arg(long, value_name = "FILE", requires = "init_image")]
    pub mask: Option<PathBuf>,
    /// A picture for a network of --controlnet, with how it is used: NAME=FILE, then ,scale=0.8 ,start=0 ,end=0.5 ,guess
    /// ,preprocess=canny (or invert, tile) and, for networks that know several kinds, ,type=depth in any order; may be given several times
    #[arg(long, value_name = "NAME=FILE[,OPTION]…")]
    pub control: Vec<ControlFile>,
    /// A picture that the model looks at beside the prompt, with --ip-adapter: FILE, or FILE,scale=0.6; may be given several times
    #[arg(long, value_name = "FILE[,scale=SCALE]")]
    pub reference: Vec<ReferenceFile>,
    /// Also write the text embeddings and the latents after every step, for comparing with other implementations
    #[arg(long, value_name = "FILE.safetensors")]
    pub save_latents: Option<PathBuf>,
    /// Which model to use.
    #[command(flatten)]
    pub model: ModelArgs,
}

impl GenerateArgs {
    /// The settings of the pictures; `default_size` is their size where none is given.
    ///
    /// # Errors
    /// When width and height are no valid size.
    pub(in crate::cli) fn settings(&self, default_size: ImageSize) -> Result<Settings, InvalidValue> {
        let size = self.size.unwrap_or(default_size);
        Ok(Settings {
            prompt: ParsedPrompt::positive(self.prompt.as_str())?,
            negative_prompt: Some(self.negative_prompt.clone()),
            size: ImageSize::new(self.width.unwrap_or(size.width()), self.height.unwrap_or(size.height()))?,
            steps: self.steps,
            default_steps: None,
            guidance_scale: self.guidance_scale,
            default_guidance_scale: None,
            seed: self.seed,
            sampler: self.sampler,
            schedule: self.schedule,
            options: SamplingOptions {
                eta: self.eta,
                guidance_interval: self.guidance_interval,
                clip_skip: self.clip_skip,
                strength: self.strength,
                cache: self.cache,
                ..SamplingOptions::default()
            },
            input: None,
            controls: self.control.iter().map(|control| control.settings.clone()).collect(),
            references: self.reference.iter().map(|reference| reference.scale).collect(),
            decoder: self.decoder,
            upscale: self.upscale.clone(),
            output: OutputConfig::default(),
        })
    }
}

/// A seed as other tools have it.
fn seed(text: &str) -> Result<Seed, InvalidValue> {
    if text == "-1" { Ok(Seed::random()) } else { text.parse() }
}
