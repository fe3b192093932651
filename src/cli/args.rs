//! Arguments, each of which is valid by the time it has its type.

#![allow(clippy::doc_markdown, reason = "these comments are the help text")]

use std::{borrow::Cow, ffi::OsString, fs, net::IpAddr, path::PathBuf};

use axum::http::HeaderValue;
use clap::{
    Arg, Args, CommandFactory, Parser, Subcommand, ValueEnum,
    builder::{BoolishValueParser, RangedU64ValueParser},
};

use super::Failure;
use crate::{
    backend::{LoadError, LoadOptions, ModelFiles, Tiling},
    common::{self, GuidanceInterval, GuidanceScale, ImageSize, NegativePrompt, Prompt, Sampler, Schedule, Seed, Steps, Strength},
    device::{self, DeviceChoice},
    http::ApiKey,
    ops::Storage,
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
    /// Make one picture and write it to a file
    Generate(Box<GenerateArgs>),
    /// List models, or write the built-in one to a directory
    Models {
        /// What to do with them.
        #[command(subcommand)]
        command: ModelsCommand,
    },
    /// Compare the built-in model's numbers on a device with those of diffusers
    Selfcheck(SelfcheckArgs),
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
    /// A folder of learned words (textual inversion) as .safetensors files, which prompts name by their file names
    #[arg(long, env = "SD_WORKER_EMBEDDINGS", value_name = "DIR")]
    pub embeddings: Option<PathBuf>,
    /// Where to run it: auto, cpu, cuda, cuda:N, metal, or a number of whatever this binary is built for
    #[arg(long, env = "SD_WORKER_DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// How weights are kept: f32, f16, bf16 or q8_0; on a CPU, less takes less memory and about the same time
    #[arg(long, env = "SD_WORKER_DTYPE", default_value_t, value_name = "TYPE")]
    pub dtype: Storage,
    /// Threads that work on a CPU, 1 to 1024 [default: as many as the process may use]
    #[arg(long, env = "SD_WORKER_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    pub threads: Option<u16>,
    /// Whether the VAE works on large pictures strip by strip, for less memory and the same picture: auto does so where it would take
    /// more than 4 GiB
    #[arg(long, env = "SD_WORKER_VAE_TILING", value_enum, default_value_t, value_name = "auto|on|off", hide_possible_values = true)]
    pub vae_tiling: Tiling,
    /// Keep the layers of text encoders and the VAE's encoder in memory only while they work, and read them from their files again for
    /// every prompt that is not among the latest and every picture to begin with
    #[arg(long, env = "SD_WORKER_LOW_MEMORY", value_parser = BoolishValueParser::new())]
    pub low_memory: bool,
    /// The largest picture, in pixels
    #[arg(long, env = "SD_WORKER_MAX_PIXELS", default_value_t = 1024 * 1024, value_name = "PIXELS")]
    pub max_pixels: u64,
}

impl ModelArgs {
    /// The files of the model, downloaded where they must be.
    ///
    /// # Errors
    /// When there is no such model, or no such part of one.
    pub fn files(&self) -> Result<ModelFiles, LoadError> {
        let parts = [("vae", &self.vae), ("text_encoder", &self.text_encoder), ("text_encoder_2", &self.text_encoder_2)];
        let elsewhere: Vec<&str> = parts.iter().filter(|(_, path)| path.is_some()).map(|(part, _)| *part).collect();
        let mut files = ModelFiles::open_at(self.model_path.as_ref().unwrap_or(&self.model), self.revision.as_deref(), &elsewhere)?;
        // Where nobody says what they are called, files have a name of their own.
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

    /// How it is loaded.
    ///
    /// # Errors
    /// When the device is not there.
    pub fn options(&self) -> Result<LoadOptions, LoadError> {
        let Self { dtype: storage, max_pixels, vae_tiling, low_memory, .. } = *self;
        Ok(LoadOptions { device: self.device.open()?, storage, max_pixels, vae_tiling, low_memory })
    }

    /// Starts the threads, which can be done once.
    ///
    /// # Errors
    /// When the system refuses them.
    pub fn start_threads(&self) -> Result<(), Failure> {
        let refused = |error| Failure::Configuration(format!("the threads cannot be started: {error}"));
        device::start_threads(self.threads.map(usize::from)).map_err(refused)
    }
}

/// How to serve.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Which model to serve.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The address to listen on
    #[arg(long, env = "SD_WORKER_HOST", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The port to listen on; 0 picks a free one
    #[arg(long, env = "SD_WORKER_PORT", default_value_t = 8080)]
    pub port: u16,
    /// A key that clients must send as a bearer token; better given by the environment, where other users do not see it
    #[arg(long, env = "SD_WORKER_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// A file with that key
    #[arg(long, env = "SD_WORKER_API_KEY_FILE", value_name = "FILE", conflicts_with = "api_key")]
    pub api_key_file: Option<PathBuf>,
    /// Web pages that may ask from a browser, such as http://localhost:3000 [default: none]
    #[arg(long, env = "SD_WORKER_CORS_ORIGIN", value_delimiter = ',', value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,
    /// Listen on an address that others can reach, without any authentication
    #[arg(long, env = "SD_WORKER_INSECURE", value_parser = BoolishValueParser::new())]
    pub insecure: bool,
    /// How many pictures may wait or run before requests are refused with 429
    #[arg(long, env = "SD_WORKER_QUEUE_CAPACITY", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "PICTURES")]
    pub queue_capacity: u32,
    /// How many pictures of one size may take their steps together
    #[arg(long, env = "SD_WORKER_MAX_BATCH", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "PICTURES")]
    pub max_batch: u32,
    /// How long a client may be silent while it sends a request, or leave its answer unread, before it is disconnected
    #[arg(long, env = "SD_WORKER_CLIENT_TIMEOUT", default_value_t = 60, value_parser = seconds(1), value_name = "SECONDS")]
    pub client_timeout: u64,
    /// How long the result of a job is kept
    #[arg(long, env = "SD_WORKER_KEEP_RESULTS", default_value_t = 600, value_parser = seconds(0), value_name = "SECONDS")]
    pub keep_results: u64,
    /// How many results of jobs are kept; the oldest go first
    #[arg(long, env = "SD_WORKER_MAX_RESULTS", default_value_t = 100, value_name = "JOBS")]
    pub max_results: usize,
    /// How long requests may take to finish once the worker is asked to stop
    #[arg(long, env = "SD_WORKER_DRAIN_TIMEOUT", default_value_t = 20, value_parser = seconds(0), value_name = "SECONDS")]
    pub drain_timeout: u64,
    /// How long the engine may not move before /livez fails, 0 for ever
    #[arg(long, env = "SD_WORKER_WATCHDOG", default_value_t = 300, value_parser = seconds(0), value_name = "SECONDS")]
    pub watchdog: u64,
    /// Stop when stdin ends, as it does when the parent process does
    #[arg(long, env = "SD_WORKER_EXIT_ON_STDIN_EOF", value_parser = BoolishValueParser::new())]
    pub exit_on_stdin_eof: bool,
    /// Say how this binary was built, release or debug, and end
    #[arg(long)]
    pub build_info: bool,
    /// Whom to report to.
    #[command(flatten)]
    pub orchestrator: OrchestratorArgs,
}

/// Whom to report to.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Orchestrator")]
pub struct OrchestratorArgs {
    /// The worker's name in reports [default: sd-worker and the number of the process]
    #[arg(long, env = "SD_WORKER_ID", value_name = "ID")]
    pub worker_id: Option<String>,
    /// Where the worker posts that it is ready
    #[arg(long, env = "SD_WORKER_CALLBACK_URL", value_name = "URL")]
    pub callback_url: Option<String>,
    /// Whose /v1/worker-heartbeat the worker posts its state to
    #[arg(long, env = "SD_WORKER_QUEEN_URL", visible_alias = "hive-url", value_name = "URL")]
    pub queen_url: Option<String>,
    /// How often it does
    #[arg(long, env = "SD_WORKER_HEARTBEAT_INTERVAL", default_value_t = 30, value_parser = seconds(1), value_name = "SECONDS")]
    pub heartbeat_interval: u64,
}

impl ServeArgs {
    /// The key that clients must send, if any.
    ///
    /// # Errors
    /// When there is to be one and it is missing, or when others could reach the worker and none is asked for.
    pub fn key(&self) -> Result<Option<ApiKey>, Failure> {
        let text = match &self.api_key_file {
            Some(file) => Some(fs::read_to_string(file).map_err(|error| {
                let file = file.display();
                Failure::Configuration(format!("the API key cannot be read from {file}: {error}"))
            })?),
            None => self.api_key.clone(),
        };
        let key = text.as_deref().and_then(ApiKey::new);
        if text.is_some() && key.is_none() {
            return Err(Failure::Configuration("the API key is empty; leave it out if there is to be none".to_owned()));
        }
        if key.is_none() && !self.host.is_loopback() && !self.insecure {
            let host = self.host;
            return Err(Failure::Configuration(format!(
                "{host} can be reached by others, and nothing would keep them out; give --api-key, or say --insecure if that is what you want"
            )));
        }
        Ok(key)
    }

    /// The pages that may ask from a browser.
    ///
    /// # Errors
    /// When one is no origin.
    pub fn origins(&self) -> Result<Vec<HeaderValue>, Failure> {
        let origin = |text: &String| match HeaderValue::from_str(text) {
            Ok(value) if text.starts_with("http://") || text.starts_with("https://") => Ok(value),
            _ => Err(Failure::Configuration(format!("--cors-origin must be an origin such as http://localhost:3000, not {text}"))),
        };
        self.cors_origin.iter().map(origin).collect()
    }
}

impl OrchestratorArgs {
    /// The worker's name in reports.
    #[must_use]
    pub fn worker_id(&self) -> String {
        self.worker_id.clone().unwrap_or_else(|| format!("sd-worker-{}", std::process::id()))
    }
}

/// One picture.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// What the picture shows
    pub prompt: Prompt,
    /// The file to write: .png, .jpg or .webp
    #[arg(short, long, default_value = "out.png", value_name = "FILE")]
    pub output: PathBuf,
    /// What the picture does not show
    #[arg(long, default_value = "", value_name = "PROMPT")]
    pub negative_prompt: NegativePrompt,
    /// The same seed gives the same picture [default: random]
    #[arg(long)]
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
    /// The solver.
    #[arg(long, help = one_of("The solver", &Sampler::ALL.map(Sampler::name)))]
    pub sampler: Option<common::NamedSampler>,
    /// How noise levels are spaced.
    #[arg(long, help = one_of("How noise levels are spaced", &Schedule::ALL.map(Schedule::name)))]
    pub schedule: Option<common::NamedSchedule>,
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
    /// Also write the text embeddings and the latents after every step, for comparing with other implementations
    #[arg(long, value_name = "FILE.safetensors")]
    pub save_latents: Option<PathBuf>,
    /// Which model to use.
    #[command(flatten)]
    pub model: ModelArgs,
}

impl GenerateArgs {
    /// The size asked for; what is left out is the model's.
    ///
    /// # Errors
    /// When it is no valid size.
    pub fn size(&self, default: ImageSize) -> Result<ImageSize, crate::common::InvalidValue> {
        ImageSize::new(self.width.unwrap_or(default.width()), self.height.unwrap_or(default.height()))
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

/// Seconds up to a day: no clock goes as far as a `u64`.
fn seconds(least: u64) -> RangedU64ValueParser {
    clap::value_parser!(u64).range(least..=86_400)
}

/// The help of an option that takes one of these names.
fn one_of(what: &str, names: &[&str]) -> String {
    format!("{what}: {} [default: the model's]", names.join(", "))
}

/// Adds the command that is meant where none is given, `serve`, so that an orchestrator can start the worker with options alone.
pub fn with_command(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    if means_serve(&args) {
        args.insert(1.min(args.len()), "serve".into());
    }
    args
}

/// Whether what comes after the options that all commands have is an option, too, or nothing.
fn means_serve(args: &[OsString]) -> bool {
    let cli = Cli::command();
    let is_of_all = |word: &Cow<'_, str>| {
        let name = word.strip_prefix("--").and_then(|word| word.split('=').next());
        cli.get_arguments().filter_map(Arg::get_long).any(|long| name == Some(long))
    };
    let mut words = args.iter().skip(1).map(|arg| arg.to_string_lossy()).peekable();
    while let Some(option) = words.next_if(is_of_all) {
        if !option.contains('=') {
            words.next();
        }
    }
    words.next().is_none_or(|word| word.starts_with('-') && !matches!(&*word, "-h" | "--help" | "-V" | "--version"))
}

/// clap's message with its reason moved to the last line, where orchestrators look for it.
#[must_use]
pub fn reason_last(message: &str) -> String {
    let (reasons, rest): (Vec<&str>, Vec<&str>) = message.trim_end().split("\n\n").partition(|part| part.starts_with("error: "));
    let reason = reasons.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}\n\n{reason}", rest.join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(args: &str) -> String {
        let args = args.split(' ').map(OsString::from);
        with_command(args).iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_alone_mean_serve() {
        assert_eq!(completed("sd-worker"), "sd-worker serve");
        assert_eq!(completed("sd-worker --port 0"), "sd-worker serve --port 0");
        assert_eq!(completed("sd-worker --log-level warn --model models"), "sd-worker serve --log-level warn --model models");
        for same in [
            "sd-worker --log-level warn models list",
            "sd-worker --log-level=warn --log-format json models list",
            "sd-worker --help",
            "sd-worker -V",
            "sd-worker generate -o a.png",
            "sd-worker dance",
        ] {
            assert_eq!(completed(same), same);
        }
    }

    #[test]
    fn the_reason_of_a_usage_error_comes_last() {
        assert_eq!(reason_last("error: a\n  b\n\nUsage: x\n\nFor more\n"), "Usage: x\n\nFor more\n\nerror: a b");
    }
}
