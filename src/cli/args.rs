//! The arguments. Each is valid once it has its type.

#![allow(clippy::doc_markdown, reason = "these comments are the help text")]

mod generate;
mod request_defaults;
mod serve;

use std::path::PathBuf;

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{BoolishValueParser, PossibleValuesParser, TypedValueParser},
};
use clap_complete::Shell;
pub use generate::GenerateArgs;
pub use request_defaults::RequestDefaultArgs;
pub use serve::{OrchestratorArgs, ServeArgs};

use super::Failure;
use crate::{
    backend::{LoadError, LoadOptions, ModelFiles, Tiling},
    common::NamedPath,
    device::{self, DeviceChoice},
    ops::{self, ComputeType, WeightType},
};

/// Stable Diffusion over HTTP: one process, one model, one device.
#[derive(Debug, Parser)]
#[command(
    name = "sd-worker",
    version,
    after_help = "Without a command, sd-worker serves, and takes the options of serve. Try:\n  sd-worker generate \"a fox on a blue background\" -o fox.png"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What is logged.
    #[command(flatten)]
    pub logs: LogArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer HTTP requests (the default)
    Serve(Box<ServeArgs>),
    /// Make pictures and write them to files
    Generate(Box<GenerateArgs>),
    /// List models, or write the built-in one to a directory
    Models {
        /// What to do with them.
        #[command(subcommand)]
        command: ModelsCommand,
    },
    /// Compare the built-in model's numbers on a device with those of diffusers
    Selfcheck(SelfcheckArgs),
    /// Print a script with which a shell completes commands and options
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    Man {
        /// Write it there, and the page of each command [default: print it]
        directory: Option<PathBuf>,
    },
}

/// What is logged, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// What to log: error, warn, info, debug, trace, or filters such as sd_worker=debug
    #[arg(long, global = true, env = "SD_WORKER_LOG", default_value = "info", value_name = "FILTER")]
    pub log_level: String,
    /// How to log
    #[arg(long, global = true, env = "SD_WORKER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Where spans are sent to with OpenTelemetry's protocol over HTTP, such as http://localhost:4318; for this, build with --features otlp
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Which model, and where it runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// The model: "builtin", a directory in the layout of diffusers, a .safetensors file, or a repository such as owner/name
    #[arg(long, env = "SD_WORKER_MODEL", default_value = "builtin")]
    pub model: String,
    /// The model's files, where --model is only its name
    #[arg(long, env = "SD_WORKER_MODEL_PATH", value_name = "PATH")]
    pub model_path: Option<String>,
    /// The revision of a repository: a branch, a tag or a commit [default: main]
    #[arg(long, env = "SD_WORKER_REVISION", value_name = "REVISION")]
    pub revision: Option<String>,
    /// Another VAE than the model's own: a directory or a .safetensors file
    #[arg(long, env = "SD_WORKER_VAE", value_name = "PATH")]
    pub vae: Option<PathBuf>,
    /// Another text encoder (SDXL: the first one): a directory or a .safetensors file
    #[arg(long, env = "SD_WORKER_TEXT_ENCODER", value_name = "PATH")]
    pub text_encoder: Option<PathBuf>,
    /// Another second text encoder, of SDXL: a directory or a .safetensors file
    #[arg(long, env = "SD_WORKER_TEXT_ENCODER_2", value_name = "PATH")]
    pub text_encoder_2: Option<PathBuf>,
    /// A folder of textual-inversion embeddings (.safetensors), which prompts call by their file names
    #[arg(long, env = "SD_WORKER_EMBEDDINGS", value_name = "DIR")]
    pub embeddings: Option<PathBuf>,
    /// A folder of LoRAs (.safetensors), which requests and prompts call by their file names; files may come and go while it runs. "builtin"
    /// has those for the built-in model: ink
    #[arg(long, env = "SD_WORKER_LORAS", value_name = "DIR")]
    pub loras: Option<PathBuf>,
    /// A ControlNet or a T2I-Adapter by the name that requests call it: a directory in the layout of diffusers, or a .safetensors file; may be
    /// given several times, or with commas between them. Each is read when it is first asked for
    #[arg(long, env = "SD_WORKER_CONTROLNET", value_delimiter = ',', value_name = "NAME=PATH")]
    pub controlnet: Vec<NamedPath>,
    /// How many bytes of ControlNets stay loaded; those that were not asked for longest go first, and the latest one stays in any case
    #[arg(long, env = "SD_WORKER_MAX_CONTROLNET_BYTES", default_value_t = LoadOptions::MAX_CONTROL_BYTES, value_name = "BYTES")]
    pub max_controlnet_bytes: usize,
    /// An IP-Adapter (.safetensors), with which requests may bring pictures as a prompt; it is read when one first does
    #[arg(long, env = "SD_WORKER_IP_ADAPTER", value_name = "FILE")]
    pub ip_adapter: Option<PathBuf>,
    /// The folder of the image encoder of --ip-adapter, a CLIPVisionModelWithProjection [default: image_encoder beside the file]
    #[arg(long, env = "SD_WORKER_IMAGE_ENCODER", value_name = "DIR", requires = "ip_adapter")]
    pub image_encoder: Option<PathBuf>,
    /// A tiny autoencoder (TAESD), with whose decoder requests may have their pictures in a fraction of the time, and which draws previews: a
    /// directory or a .safetensors file
    #[arg(long, env = "SD_WORKER_TINY_VAE", value_name = "PATH")]
    pub tiny_vae: Option<PathBuf>,
    /// A network that enlarges pictures, by the name that requests call it: an ESRGAN or Real-ESRGAN (.safetensors); may be given several
    /// times, or with commas between them. Each is read when it is first asked for
    #[arg(long, env = "SD_WORKER_UPSCALER", value_delimiter = ',', value_name = "NAME=PATH")]
    pub upscaler: Vec<NamedPath>,
    /// Where to run it: auto, cpu, cuda, cuda:N, metal, or a number of whatever this binary is built for
    #[arg(long, env = "SD_WORKER_DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// How weights are kept: f32, f16, bf16 or q8_0; on a CPU, less takes less memory and about the same time
    #[arg(long, env = "SD_WORKER_DTYPE", default_value_t, value_name = "TYPE")]
    pub dtype: WeightType,
    /// The type in which a CPU multiplies the matrices of the denoiser and of ControlNets: f32; bf16, faster on processors with AVX-512-BF16,
    /// with slightly other pictures; int8, faster still on those with AVX-512-VNNI or AVX-VNNI, with pictures that differ a little more; or
    /// auto, the fastest that this processor has
    #[arg(long, env = "SD_WORKER_COMPUTE", default_value = "f32", value_name = "TYPE", value_parser = compute_type)]
    pub compute: ComputeType,
    /// Threads that work on a CPU, 1 to 1024, and at most 8 for each CPU that the process may use [default: one for each]
    #[arg(long, env = "SD_WORKER_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    pub threads: Option<u16>,
    /// Whether the VAE works on large pictures strip by strip, for less memory and the same picture: auto does so where it would take
    /// more than 4 GiB
    #[arg(long, env = "SD_WORKER_VAE_TILING", value_parser = tiling(), default_value = "auto", value_name = "auto|on|off", hide_possible_values = true)]
    pub vae_tiling: Tiling,
    /// Keep the layers of text encoders and the VAE's encoder in memory only while they work, and read them from their files again for
    /// every prompt that is not among the latest and every picture to begin with
    #[arg(long, env = "SD_WORKER_LOW_MEMORY", value_parser = BoolishValueParser::new())]
    pub low_memory: bool,
    /// The largest picture, in pixels
    #[arg(long, env = "SD_WORKER_MAX_PIXELS", default_value_t = LoadOptions::MAX_PIXELS, value_name = "PIXELS")]
    pub max_pixels: u64,
}

impl ModelArgs {
    /// Opens the model's files, and downloads what is missing.
    ///
    /// # Errors
    /// When the model does not exist, or a named part does not.
    pub fn files(&self) -> Result<ModelFiles, LoadError> {
        let parts = [("vae", &self.vae), ("text_encoder", &self.text_encoder), ("text_encoder_2", &self.text_encoder_2)];
        let elsewhere: Vec<&str> = parts.iter().filter(|(_, path)| path.is_some()).map(|(part, _)| *part).collect();
        let mut files = ModelFiles::open_at(self.model_path.as_ref().unwrap_or(&self.model), self.revision.as_deref(), &elsewhere)?;
        // Files without a name of their own take the name of their directory.
        if self.model_path.is_some() && self.model != "builtin" {
            files = files.with_id(&self.model);
        }
        for (part, path) in parts {
            if let Some(path) = path {
                files = files.with_part(part, path)?;
            }
        }
        match &self.embeddings {
            Some(folder) => files.with_embeddings(folder),
            None => Ok(files),
        }
    }

    /// How to load the model.
    ///
    /// # Errors
    /// When the device does not exist.
    pub fn options(&self) -> Result<LoadOptions, LoadError> {
        let Self { dtype: weight_type, compute, max_pixels, vae_tiling, low_memory, .. } = *self;
        Ok(LoadOptions {
            device: self.device.open()?,
            weight_type,
            compute,
            max_pixels,
            vae_tiling,
            low_memory,
            adapters: self.loras.clone(),
            controls: self.controlnet.clone(),
            max_control_bytes: self.max_controlnet_bytes,
            ip_adapter: self.ip_adapter.clone(),
            image_encoder: self.image_encoder.clone(),
            tiny_vae: self.tiny_vae.clone(),
            upscalers: self.upscaler.clone(),
            ..LoadOptions::default()
        })
    }

    /// Starts the compute threads. This works once per process.
    ///
    /// # Errors
    /// When the system refuses them.
    pub fn start_threads(&self) -> Result<(), Failure> {
        device::start_threads(self.threads.map(usize::from)).map_err(Failure::Threads)
    }
}

/// What to compare.
#[derive(Debug, Args)]
pub struct SelfcheckArgs {
    /// The device: auto, cpu, cuda, cuda:N, metal, or a number of whatever this binary is built for
    #[arg(long, env = "SD_WORKER_DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
}

/// What to do with models.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// List the models that are there without a download
    List,
    /// Write a model as a directory that diffusers can load
    Export {
        /// The model
        #[arg(value_parser = ["builtin"])]
        model: String,
        /// The directory to write; it must be new or empty
        directory: PathBuf,
    },
}

/// A type, or the fastest one.
fn compute_type(name: &str) -> Result<ComputeType, String> {
    if name.eq_ignore_ascii_case("auto") {
        return Ok(ops::fastest_compute_type());
    }
    name.parse().map_err(|error| format!("{error}, nor auto"))
}

fn tiling() -> impl TypedValueParser<Value = Tiling> {
    PossibleValuesParser::new(["auto", "on", "off"]).map(|name| match name.as_str() {
        "on" => Tiling::On,
        "off" => Tiling::Off,
        _ => Tiling::Auto,
    })
}

/// The help of an option that takes one of several names.
fn one_of(what: &str, names: &[&str]) -> String {
    format!("{what}: {} [default: the model's]", names.join(", "))
}
