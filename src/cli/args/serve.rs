//! The options of `serve`.

#![allow(clippy::doc_markdown, reason = "these comments are the help text")]

use std::{
    fs, io,
    net::{IpAddr, ToSocketAddrs},
    path::PathBuf,
};

use clap::{
    Args,
    builder::{BoolishValueParser, RangedU64ValueParser, TypedValueParser},
};

use super::{Failure, ModelArgs, RequestDefaultArgs};
use crate::{
    common::NamedLora,
    http::{self, Access, AllowedHosts, ApiKey},
};

/// How to serve.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Which model to serve.
    #[command(flatten)]
    pub model: ModelArgs,
    /// A LoRA of the folder of --loras that is merged into the model for all requests, with its scale, -20 to 20 [default: 1]; may be given
    /// several times
    #[arg(
        long,
        env = "SD_WORKER_LORA",
        value_delimiter = ',',
        value_name = "NAME[:SCALE]",
        requires = "loras",
        allow_hyphen_values = true
    )]
    pub lora: Vec<NamedLora>,
    /// The address to listen on, or a name of it such as localhost
    #[arg(long, env = "SD_WORKER_HOST", default_value = "127.0.0.1", value_parser = address)]
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
    /// Other names under which a worker on loopback without a key may be asked, such as that of a proxy on this machine [default: those of
    /// loopback alone]
    #[arg(long, env = "SD_WORKER_ALLOWED_HOST", value_delimiter = ',', value_name = "HOST")]
    pub allowed_host: Vec<String>,
    /// Listen on an address that others can reach, without any authentication
    #[arg(long, env = "SD_WORKER_INSECURE", value_parser = BoolishValueParser::new())]
    pub insecure: bool,
    /// How many pictures may wait or run before requests are refused with 429
    #[arg(long, env = "SD_WORKER_QUEUE_CAPACITY", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "PICTURES")]
    pub queue_capacity: u32,
    /// How many pictures may take their steps together: of one size, and fewer if they are larger than the model's own
    #[arg(long, env = "SD_WORKER_MAX_BATCH", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256), value_name = "PICTURES")]
    pub max_batch: u32,
    /// How long a client may be silent while it sends a request, or leave its answer unread, before it is disconnected
    #[arg(long, env = "SD_WORKER_CLIENT_TIMEOUT", default_value_t = 60, value_parser = seconds(1), value_name = "SECONDS")]
    pub client_timeout: u64,
    /// How many connections there may be at a time; when there are as many, those that are idle make room
    #[arg(long, env = "SD_WORKER_MAX_CONNECTIONS", default_value_t = 4096, value_parser = connections(), value_name = "CONNECTIONS")]
    pub max_connections: usize,
    /// How long the result of a job is kept
    #[arg(long, env = "SD_WORKER_KEEP_RESULTS", default_value_t = 600, value_parser = seconds(0), value_name = "SECONDS")]
    pub keep_results: u64,
    /// How many results of jobs are kept; the oldest go first
    #[arg(long, env = "SD_WORKER_MAX_RESULTS", default_value_t = 100, value_name = "JOBS")]
    pub max_results: usize,
    /// How many bytes the results of jobs have together; the oldest go first
    #[arg(long, env = "SD_WORKER_MAX_RESULT_BYTES", default_value_t = 256 << 20, value_name = "BYTES")]
    pub max_result_bytes: usize,
    /// The most work of one request: pictures x evaluations of the network x samples (2 in steps with guidance) x megapixels of 1024 x 1024
    #[arg(long, env = "SD_WORKER_MAX_WORK", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..), value_name = "MEGAPIXELS")]
    pub max_work: u64,
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
    /// What requests get that leave it out.
    #[command(flatten)]
    pub defaults: RequestDefaultArgs,
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
    /// Who may ask.
    ///
    /// # Errors
    /// When one of its settings can never do what it is for, or when others could reach the worker and no key is asked for.
    pub fn access(&self) -> Result<Access, Failure> {
        let refused = |option: &str, what: &str, text: &str| Failure::Configuration(format!("{option} must be {what}, not \"{text}\""));
        let api_key = self.key()?;
        let origin = |text: &String| {
            http::origin(text).ok_or_else(|| refused("--cors-origin", "an origin such as http://localhost:3000, without a path", text))
        };
        let cors_origins = self.cors_origin.iter().map(origin).collect::<Result<_, _>>()?;
        let hosts = AllowedHosts::new(&self.allowed_host);
        let hosts = hosts.map_err(|text| refused("--allowed-host", "a host such as worker.example.org", &text))?;
        // Where others reach the worker, or have a key, its name is theirs to choose.
        let allowed_hosts = (api_key.is_none() && self.host.is_loopback()).then_some(hosts);
        Ok(Access { api_key, cors_origins, allowed_hosts })
    }

    /// The key that clients must send, if any.
    fn key(&self) -> Result<Option<ApiKey>, Failure> {
        let text = match &self.api_key_file {
            Some(file) => Some(fs::read_to_string(file).map_err(|error| {
                let file = file.display();
                Failure::Configuration(format!("the API key cannot be read from {file}: {error}"))
            })?),
            None => self.api_key.clone(),
        };
        let key = text.as_deref().map(ApiKey::new).transpose();
        let key = key.map_err(|reason| Failure::Configuration(format!("the API key {reason}")))?;
        if key.is_none() && !self.host.is_loopback() && !self.insecure {
            let host = self.host;
            return Err(Failure::Configuration(format!(
                "{host} can be reached by others, and nothing would keep them out; give --api-key, or say --insecure if that is what you want"
            )));
        }
        Ok(key)
    }
}

impl OrchestratorArgs {
    /// The worker's name in reports.
    #[must_use]
    pub fn worker_id(&self) -> String {
        self.worker_id.clone().unwrap_or_else(|| format!("sd-worker-{}", std::process::id()))
    }
}

/// The address that `host` is or has the name of; of several, one of IPv4, which more clients try first.
fn address(host: &str) -> Result<IpAddr, String> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let no_address = |error: io::Error| format!("must be an address of this machine, or a name of one: {error}");
    let addresses: Vec<IpAddr> = (host, 0).to_socket_addrs().map_err(no_address)?.map(|address| address.ip()).collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| "must be an address of this machine, or a name of one".to_owned())
}

/// At least one, and no more than a semaphore can count.
fn connections() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u32).range(1..=1_000_000).map(|connections| connections as usize)
}

/// Seconds up to a day: no clock goes as far as a `u64`.
fn seconds(least: u64) -> RangedU64ValueParser {
    clap::value_parser!(u64).range(least..=86_400)
}
