//! The control networks that a worker offers. Each is read when a request first asks for it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device};
use tracing::{info, warn};

use crate::{
    backend::{
        GenerationError, LoadError,
        model_files::{ControlFiles, ControlNetworkKind},
    },
    common::{ControlKind, ControlSettings, InvalidValue, NamedPath},
    models::{ControlNetConfig, ControlNetModel, DenoiserConfig, T2IAdapter, T2IAdapterConfig},
    ops::{self, WeightType, Weights},
};

/// The most control networks of one request: each costs time in every step.
pub const MAX_CONTROLS: usize = 8;

/// The control networks of a worker.
#[derive(Debug)]
pub struct ControlLibrary {
    entries: Vec<Arc<ControlEntry>>,
    /// Networks keep their weights and compute as one of these would.
    like: Weights,
    /// The most bytes of networks that stay loaded. The latest one stays in any case.
    most_bytes: usize,
    /// The latest first.
    loaded: Mutex<VecDeque<(Arc<ControlEntry>, ControlNetwork)>>,
}

/// A control network under its name.
#[derive(Debug)]
pub struct ControlEntry {
    name: String,
    files: ControlFiles,
    config: Config,
}

/// A control network's configuration.
#[derive(Debug, Clone)]
enum Config {
    ControlNet(Box<ControlNetConfig>),
    T2IAdapter(T2IAdapterConfig),
}

impl Config {
    fn build(&self, vb: &Weights) -> candle_core::Result<ControlNetwork> {
        Ok(match self {
            Self::ControlNet(config) => ControlNetwork::ControlNet(Arc::new(ControlNetModel::new((**config).clone(), vb)?)),
            Self::T2IAdapter(config) => ControlNetwork::T2IAdapter(Arc::new(T2IAdapter::new(config.clone(), vb)?)),
        })
    }
}

/// A control network. Clones share it.
#[derive(Debug, Clone)]
pub enum ControlNetwork {
    /// Looks at latents, text and picture in every step.
    ControlNet(Arc<ControlNetModel>),
    /// Looks at the picture once.
    T2IAdapter(Arc<T2IAdapter>),
}

/// A control network of a request.
#[derive(Debug, Clone)]
pub struct ChosenControl {
    entry: Arc<ControlEntry>,
    /// How it is used.
    pub settings: ControlSettings,
}

impl ControlEntry {
    /// Opens the files of a network and checks their configuration against the denoiser, whose `config.json` is `json`.
    fn open(NamedPath { name, path }: &NamedPath, json: &[u8], denoiser: &DenoiserConfig) -> Result<Self, LoadError> {
        let files = ControlFiles::open(path)?;
        let DenoiserConfig::UNet(unet) = denoiser;
        let bad = |reason: String| LoadError::BadConfig { path: files.config_path().to_owned(), reason };
        let read = || -> Result<Config, String> {
            let config = files.config(json);
            Ok(match files.kind() {
                ControlNetworkKind::ControlNet => {
                    let config = ControlNetConfig::from_json(&config).map_err(|error| error.to_string())?;
                    config.check_fits(unet).map_err(|why| format!("this ControlNet does not fit the model: {why}"))?;
                    Config::ControlNet(Box::new(config))
                }
                ControlNetworkKind::T2IAdapter => {
                    let config = T2IAdapterConfig::from_json(&config).map_err(|error| error.to_string())?;
                    config.check_fits(unet).map_err(|why| format!("this T2I-Adapter does not fit the model: {why}"))?;
                    Config::T2IAdapter(config)
                }
            })
        };
        let config = read().map_err(bad)?;
        // What is missing is found before a request asks for it.
        files.weights(DType::F32, &Device::Cpu).check(|vb| config.build(vb))?;
        Ok(Self { name: name.clone(), files, config })
    }

    /// What requests call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `controlnet` or `t2i_adapter`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.config {
            Config::ControlNet(_) => "controlnet",
            Config::T2IAdapter(_) => "t2i_adapter",
        }
    }

    /// Sides of pictures must be multiples of this.
    fn size_multiple(&self) -> u32 {
        match &self.config {
            Config::ControlNet(_) => 1,
            Config::T2IAdapter(config) => config.downscale_factor as u32,
        }
    }

    /// The kinds of pictures that it knows, if it is a union of several.
    #[must_use]
    pub fn kinds(&self) -> &'static [ControlKind] {
        let count = match &self.config {
            Config::ControlNet(config) => config.union.map_or(0, |union| union.num_control_type),
            Config::T2IAdapter(_) => 0,
        };
        &ControlKind::ALL[..count.min(ControlKind::ALL.len())]
    }

    /// The kind of a picture for this network, if it knows several.
    fn kind_of(&self, settings: &ControlSettings) -> Result<Option<ControlKind>, InvalidValue> {
        let known = self.kinds();
        if known.is_empty() {
            let Some(kind) = settings.kind else { return Ok(None) };
            let allowed = format!("left out for \"{}\", which knows one kind of picture", self.name);
            return Err(InvalidValue::new("control", format_args!("of the type {}", kind.name()), allowed));
        }
        match settings.kind.or(settings.preprocess.kind()) {
            Some(kind) if known.contains(&kind) => Ok(Some(kind)),
            other => {
                let names: Vec<&str> = known.iter().map(|kind| kind.name()).collect();
                let found = other.map_or("left out", ControlKind::name);
                Err(InvalidValue::new("control", found, format!("given with a type for \"{}\": one of {}", self.name, names.join(", "))))
            }
        }
    }

    /// About the memory that its weights take.
    fn bytes(&self, weight_type: WeightType) -> usize {
        self.files.elements().saturating_mul(if weight_type == WeightType::F32 { 4 } else { 2 })
    }
}

impl ChosenControl {
    /// The network's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Whether the network works in every step, as a ControlNet does.
    #[must_use]
    pub fn works_in_every_step(&self) -> bool {
        matches!(self.entry.config, Config::ControlNet(_))
    }
}

impl ControlLibrary {
    /// The networks of these files for a model whose denoiser's `config.json` is `json` and whose weights are `like` these.
    ///
    /// # Errors
    /// When a file is no such network or does not fit the model, or two have one name.
    pub(in crate::backend) fn open(
        networks: &[NamedPath],
        json: &[u8],
        denoiser: &DenoiserConfig,
        like: Weights,
        most_bytes: usize,
    ) -> Result<Self, LoadError> {
        let mut entries: Vec<Arc<ControlEntry>> = Vec::new();
        for network in networks {
            if entries.iter().any(|entry| entry.name == network.name) {
                return Err(LoadError::Unsupported(format!("--controlnet {0} is given twice; each needs a name of its own", network.name)));
            }
            entries.push(Arc::new(ControlEntry::open(network, json, denoiser)?));
        }
        Ok(Self { entries, like, most_bytes, loaded: Mutex::default() })
    }

    /// All of them.
    pub fn entries(&self) -> impl Iterator<Item = &ControlEntry> {
        self.entries.iter().map(|entry| &**entry)
    }

    /// The networks that a request asks for, for a picture of these sides.
    ///
    /// # Errors
    /// When there is none of a name, the picture's sides do not fit it, or there are too many.
    pub fn choose(&self, asked: Vec<ControlSettings>, (width, height): (u32, u32)) -> Result<Vec<ChosenControl>, InvalidValue> {
        if asked.len() > MAX_CONTROLS {
            return Err(InvalidValue::new("control", asked.len(), format!("at most {MAX_CONTROLS} of them")));
        }
        let choose = |settings: ControlSettings| {
            let Some(entry) = self.entries.iter().find(|entry| entry.name == settings.name) else {
                let names: Vec<String> = self.entries().map(|entry| format!("\"{}\"", entry.name)).collect();
                let allowed = format!("one of {}", names.join(", "));
                return Err(InvalidValue::new("control", format_args!("\"{}\"", settings.name), allowed));
            };
            let multiple = entry.size_multiple();
            if !width.is_multiple_of(multiple) || !height.is_multiple_of(multiple) {
                let allowed = format!("multiples of {multiple} with \"{}\"", entry.name);
                return Err(InvalidValue::new("size", format_args!("{width}x{height}"), allowed));
            }
            let kind = entry.kind_of(&settings)?;
            Ok(ChosenControl { entry: Arc::clone(entry), settings: ControlSettings { kind, ..settings } })
        };
        asked.into_iter().map(choose).collect()
    }

    /// A network of a request, read if it is not loaded. Those that were not asked for longest go first where there is no room for it, but for
    /// those of the request itself.
    ///
    /// # Errors
    /// When its files cannot be read, or there is no memory for it.
    pub(super) fn get(&self, control: &ChosenControl, of_request: &[ChosenControl]) -> Result<ControlNetwork, GenerationError> {
        let entry = &control.entry;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = loaded.iter().position(|(other, _)| Arc::ptr_eq(other, entry))
            && let Some(found) = loaded.remove(place)
        {
            let network = found.1.clone();
            loaded.push_front(found);
            return Ok(network);
        }
        let mut bytes = entry.bytes(self.like.weight_type());
        loaded.retain(|(other, _)| {
            bytes = bytes.saturating_add(other.bytes(self.like.weight_type()));
            bytes <= self.most_bytes || of_request.iter().any(|control| Arc::ptr_eq(&control.entry, other))
        });
        let network = self.load(entry)?;
        loaded.push_front((Arc::clone(entry), network.clone()));
        Ok(network)
    }

    fn load(&self, entry: &ControlEntry) -> Result<ControlNetwork, GenerationError> {
        let started = std::time::Instant::now();
        let weights = entry.files.weights(self.like.dtype(), self.like.device());
        let build = |vb: &Weights| entry.config.build(vb);
        // candle ends the process where it gets no memory: a tensor as it is stored, and in the network's type.
        let room = (weights.largest() as u64).saturating_mul(2 * size_of::<f32>() as u64);
        let network = ops::with_room(room, || build(&self.like.of(weights.vb.clone())))?;
        let network = network.map_err(|source| match GenerationError::from(source) {
            GenerationError::Model(source) => GenerationError::Control(Box::new(weights.failure(source, build))),
            other => other,
        })?;
        if let Some(warning) = weights.unread_warning() {
            warn!("{warning}");
        }
        info!(name = entry.name, load_ms = started.elapsed().as_millis(), "control network loaded");
        Ok(network)
    }
}
