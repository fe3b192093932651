//! The upscalers that a worker offers. Each network is read when it is first asked for, and stays loaded.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device};
use image::{RgbImage, imageops::FilterType};
use tracing::{info, warn};

use super::enlarge::{enlarge, resize};
use crate::{
    backend::{GenerationError, LatentFilter, LoadError, model_files::UpscalerFile},
    common::{ImageSize, InvalidValue, NamedPath, UpscaleScale, UpscaleSettings, error_chain},
    models::{Interrupt, Upscaler, UpscalerConfig},
    ops::{self, WeightType, Weights},
};

/// The upscalers of a worker.
#[derive(Debug, Default)]
pub struct UpscalerLibrary {
    /// Those of files first.
    entries: Vec<Arc<UpscalerEntry>>,
    /// How many of them are networks of files.
    of_files: usize,
    /// The most pixels of a picture that a network enlarges.
    max_pixels: u64,
}

/// A network under its name.
#[derive(Debug)]
pub struct UpscalerEntry {
    name: String,
    file: UpscalerFile,
    config: UpscalerConfig,
    device: Device,
    loaded: Mutex<Option<Arc<Upscaler>>>,
}

/// An upscaler of a request.
#[derive(Debug, Clone)]
pub enum ChosenUpscaler {
    /// A network, and then Lanczos where another size is asked for than it makes.
    Network(Arc<UpscalerEntry>),
    /// The filter of three lobes.
    Lanczos,
    /// Nearest neighbours.
    Nearest,
}

/// How a picture of a request is enlarged.
#[derive(Debug, Clone)]
pub struct ChosenUpscale {
    /// What enlarges it.
    pub upscaler: ChosenUpscaler,
    /// How much each side is.
    pub scale: UpscaleScale,
    /// Width and height of the result.
    pub size: (u32, u32),
}

/// The scale of filters where none is given.
const FILTER_SCALE: f64 = 2.0;
/// The most pixels that a network makes of a picture, before these are scaled to the size that is asked for.
const MAX_MADE: u64 = 1 << 26;

impl UpscalerEntry {
    /// Looks for all tensors of a file, without reading them.
    fn new(name: &str, file: UpscalerFile, device: &Device) -> Result<Self, LoadError> {
        let config = file.config()?;
        file.weights(&config, DType::F32, &Device::Cpu).check(|vb| Upscaler::new(&config, vb))?;
        Ok(Self { name: name.to_owned(), file, config, device: device.clone(), loaded: Mutex::default() })
    }

    /// What requests call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many pixels each side of its result has for one of the picture's.
    #[must_use]
    pub fn scale(&self) -> usize {
        self.config.scale()
    }

    /// The network, read if it is not loaded.
    ///
    /// # Errors
    /// When its file cannot be read, or there is no memory for it.
    pub fn network(&self) -> Result<Arc<Upscaler>, GenerationError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = &*loaded {
            return Ok(Arc::clone(network));
        }
        let started = std::time::Instant::now();
        let weights = self.file.weights(&self.config, DType::F32, &self.device);
        let build = |vb: &Weights| Upscaler::new(&self.config, vb);
        // candle ends the process where it gets no memory: a tensor as it is stored, and in the network's type.
        let room = (weights.largest() as u64).saturating_mul(2 * size_of::<f32>() as u64);
        let network = ops::with_room(room, || build(&Weights::new(weights.vb.clone(), WeightType::F32)))?;
        let network = network.map_err(|source| match GenerationError::from(source) {
            GenerationError::Model(source) => GenerationError::Upscaler(error_chain(&weights.failure(source, build))),
            other => other,
        })?;
        if let Some(warning) = weights.unread_warning() {
            warn!("{warning}");
        }
        info!(name = self.name, path = %self.file.path().display(), load_ms = started.elapsed().as_millis(), "upscaler loaded");
        Ok(Arc::clone(loaded.insert(Arc::new(network))))
    }
}

impl UpscalerLibrary {
    /// The names of the filters, which are always there.
    pub const FILTERS: [&str; 2] = ["Lanczos", "Nearest"];

    /// The networks of these files, on this device. They enlarge pictures of at most `max_pixels` pixels.
    ///
    /// # Errors
    /// When a file is no such network, or two have one name.
    pub fn open(networks: &[NamedPath], device: &Device, max_pixels: u64) -> Result<Self, LoadError> {
        let mut entries: Vec<Arc<UpscalerEntry>> = Vec::new();
        for network in networks {
            let is_filter = filter(&network.name).is_some();
            if is_filter || entries.iter().any(|entry| entry.name == network.name) {
                let why = if is_filter { "is always there, without a network" } else { "is given twice" };
                return Err(LoadError::Unsupported(format!("--upscaler {} {why}; each needs a name of its own", network.name)));
            }
            entries.push(Arc::new(UpscalerEntry::new(&network.name, UpscalerFile::open(&network.path)?, device)?));
        }
        Ok(Self { of_files: entries.len(), entries, max_pixels })
    }

    /// The same with networks in the binary, each under its file's name where no other has it. They enlarge what asks for them by name.
    ///
    /// # Errors
    /// When one is no such network.
    pub fn with_embedded(mut self, files: &[(&str, &'static [u8])], device: &Device) -> Result<Self, LoadError> {
        for (path, bytes) in files {
            let path = Path::new("builtin").join(path);
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            if let Some(other) = self.entries.iter().find(|entry| entry.name == name) {
                warn!("{}: left out, since {} has the same name", path.display(), other.file.path().display());
            } else {
                self.entries.push(Arc::new(UpscalerEntry::new(&name, UpscalerFile::embedded(&path, bytes)?, device)?));
            }
        }
        Ok(self)
    }

    /// The networks.
    pub fn entries(&self) -> impl Iterator<Item = &UpscalerEntry> {
        self.entries.iter().map(|entry| &**entry)
    }

    /// The names of all upscalers, each with its own scale if it is a network.
    pub fn names(&self) -> impl Iterator<Item = (&str, Option<usize>)> {
        self.entries().map(|entry| (entry.name(), Some(entry.scale()))).chain(Self::FILTERS.map(|name| (name, None)))
    }

    /// The upscaler of this name; the first network of a file, or without one Lanczos, where none is given.
    ///
    /// # Errors
    /// When there is none of the name; `param` is where it was given.
    pub fn find(&self, param: &'static str, name: Option<&str>) -> Result<ChosenUpscaler, InvalidValue> {
        match name {
            Some(name) => self.find_or(param, name, &[]),
            None => Ok(self.entries[..self.of_files].first().map_or(ChosenUpscaler::Lanczos, ChosenUpscaler::network)),
        }
    }

    /// The upscaler of this name, where `others` are not upscalers and may be asked for all the same.
    ///
    /// # Errors
    /// As [`UpscalerLibrary::find`].
    pub(in crate::backend) fn find_or(&self, param: &'static str, name: &str, others: &[&str]) -> Result<ChosenUpscaler, InvalidValue> {
        let found = self.entries.iter().find(|entry| entry.name == name).map(ChosenUpscaler::network);
        found.or_else(|| filter(name)).ok_or_else(|| {
            let names = self.names().map(|(name, _)| name).chain(others.iter().copied());
            let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
            InvalidValue::new(param, format_args!("\"{name}\""), format!("one of {}", names.join(", ")))
        })
    }

    /// How a picture of this size is enlarged by `scale`, or by the upscaler's own scale.
    ///
    /// # Errors
    /// When the picture or the result is too large; `param` is where the scale was given.
    pub fn choose(
        &self,
        param: &'static str,
        upscaler: ChosenUpscaler,
        scale: Option<UpscaleScale>,
        (width, height): (u32, u32),
    ) -> Result<ChosenUpscale, InvalidValue> {
        let scale = scale.map_or_else(|| upscaler.own_scale().try_into(), Ok)?;
        let side = |side: u32| (f64::from(side) * scale.get()).round().max(1.0) as u32;
        let size = (side(width), side(height));
        let result = format_args!("{width}x{height} to {}x{}", size.0, size.1).to_string();
        if size.0.max(size.1) > ImageSize::MAX_SIDE {
            let allowed = format!("such that no side of the result has more than {} pixels", ImageSize::MAX_SIDE);
            return Err(InvalidValue::new(param, result, allowed));
        }
        if let ChosenUpscaler::Network(entry) = &upscaler {
            let pixels = u64::from(width) * u64::from(height);
            let made = pixels * (entry.scale() as u64).pow(2);
            if pixels > self.max_pixels || made > MAX_MADE {
                let most = self.max_pixels.min(MAX_MADE / (entry.scale() as u64).pow(2));
                let allowed = format!("for a picture of at most {most} pixels with \"{}\" (see --max-pixels)", entry.name);
                return Err(InvalidValue::new(param, result, allowed));
            }
        }
        Ok(ChosenUpscale { upscaler, scale, size })
    }

    /// How a picture of this size is enlarged as `settings` say.
    ///
    /// # Errors
    /// As [`UpscalerLibrary::find`] and [`UpscalerLibrary::choose`].
    pub fn choose_named(&self, settings: &UpscaleSettings, size: (u32, u32)) -> Result<ChosenUpscale, InvalidValue> {
        if LatentFilter::named(&settings.name).is_some() {
            let name = format_args!("\"{}\" without a strength", settings.name);
            return Err(InvalidValue::new("upscale", name, "with a strength, such as 0.7: enlarged latents are drawn again"));
        }
        self.choose("upscale", self.find("upscale", Some(&settings.name))?, settings.scale, size)
    }
}

/// The filter of this name, in any case.
fn filter(name: &str) -> Option<ChosenUpscaler> {
    let is = |filter: &str| name.eq_ignore_ascii_case(filter);
    if is("Lanczos") { Some(ChosenUpscaler::Lanczos) } else { is("Nearest").then_some(ChosenUpscaler::Nearest) }
}

impl ChosenUpscaler {
    fn network(entry: &Arc<UpscalerEntry>) -> Self {
        Self::Network(Arc::clone(entry))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        let [lanczos, nearest] = UpscalerLibrary::FILTERS;
        match self {
            Self::Network(entry) => entry.name(),
            Self::Lanczos => lanczos,
            Self::Nearest => nearest,
        }
    }

    /// Its scale where none is given.
    pub(in crate::backend) fn own_scale(&self) -> f64 {
        match self {
            Self::Network(entry) => entry.scale() as f64,
            Self::Lanczos | Self::Nearest => FILTER_SCALE,
        }
    }

    /// The picture at another size. A network makes it as large as it does, and Lanczos does the rest.
    ///
    /// # Errors
    /// When the network cannot be read, its numbers are none, there is no memory, or the pass is interrupted.
    pub fn enlarge(&self, picture: &RgbImage, size: (u32, u32), interrupt: Interrupt) -> Result<RgbImage, GenerationError> {
        match self {
            Self::Network(entry) => {
                let network = entry.network()?;
                let made = enlarge(&network, entry.scale(), picture, &entry.device, interrupt)?;
                let made =
                    made.ok_or_else(|| GenerationError::Upscaler(format!("\"{}\" made values that are not numbers (NaN)", entry.name)))?;
                if made.dimensions() == size { Ok(made) } else { resize(&made, size, FilterType::Lanczos3) }
            }
            Self::Lanczos => resize(picture, size, FilterType::Lanczos3),
            Self::Nearest => resize(picture, size, FilterType::Nearest),
        }
    }
}

impl ChosenUpscale {
    /// The enlarged picture.
    ///
    /// # Errors
    /// As [`ChosenUpscaler::enlarge`].
    pub fn enlarge(&self, picture: &RgbImage, interrupt: Interrupt) -> Result<RgbImage, GenerationError> {
        self.upscaler.enlarge(picture, self.size, interrupt)
    }
}

impl fmt::Display for ChosenUpscale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{} by {}", self.size.0, self.size.1, self.upscaler.name())
    }
}
