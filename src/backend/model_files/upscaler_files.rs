//! The file of a network that enlarges pictures, in any of the layouts in which they are published. What the network is follows from the names
//! and shapes of its tensors, as in spandrel's `ESRGAN` and `Compact`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device};

use super::{
    NO_PICKLES, PartWeights, is_pickle,
    tensor_files::{Locate, TensorFiles},
};
use crate::{
    backend::LoadError,
    models::{RRDBNetConfig, SRVGGNetCompactConfig, UpscalerConfig},
};

/// A network that enlarges pictures, as a file.
#[derive(Debug)]
pub(in crate::backend) struct UpscalerFile {
    path: PathBuf,
    files: Arc<TensorFiles>,
    /// What all names begin with.
    prefix: &'static str,
    names: Names,
}

/// The naming of the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// `RRDBNet` as in `BasicSR`, of Real-ESRGAN.
    BasicSr,
    /// `RRDBNet` of `BSRGAN` and `RealSR`.
    RealSr,
    /// `RRDBNet` with numbered layers, as ESRGAN was first published.
    Numbered,
    /// `SRVGGNetCompact` as in `BasicSR`.
    Compact,
}

/// What training scripts put before all names.
const PREFIXES: [&str; 5] = ["", "module.", "netG.", "params_ema.", "params."];
/// More layers than any network has.
const MAX_LAYERS: usize = 1000;
/// Channels of pictures.
const CHANNELS: usize = 3;

impl Names {
    const ALL: [Self; 4] = [Self::BasicSr, Self::RealSr, Self::Numbered, Self::Compact];

    /// The tensors that tell.
    fn signs(self) -> [&'static str; 2] {
        match self {
            Self::BasicSr => ["conv_first.weight", "body.0.rdb1.conv1.weight"],
            Self::RealSr => ["conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight"],
            Self::Numbered => ["model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"],
            Self::Compact => ["body.0.weight", "body.1.weight"],
        }
    }

    /// How the names of a network's blocks or layers begin, before their numbers.
    fn layers(self) -> &'static str {
        match self {
            Self::BasicSr | Self::Compact => "body.",
            Self::RealSr => "RRDB_trunk.",
            Self::Numbered => "model.1.sub.",
        }
    }
}

impl UpscalerFile {
    /// Opens a file.
    ///
    /// # Errors
    /// When there is none, or its tensors are those of no such network.
    pub(in crate::backend) fn open(path: &Path) -> Result<Self, LoadError> {
        if !path.is_file() {
            return Err(LoadError::NotFound(format!("there is no upscaler {}: a .safetensors file", path.display())));
        }
        if is_pickle(path) {
            return Err(LoadError::BadConfig { path: path.to_owned(), reason: NO_PICKLES.to_owned() });
        }
        let files = TensorFiles::open(&[path.to_owned()]).map_err(|(path, source)| LoadError::BadWeights { path, source })?;
        Self::new(path, files)
    }

    /// A file in memory, which messages call by this path.
    ///
    /// # Errors
    /// As [`UpscalerFile::open`].
    pub(in crate::backend) fn embedded(path: &Path, bytes: &'static [u8]) -> Result<Self, LoadError> {
        let files = TensorFiles::from_slice(bytes).map_err(|source| LoadError::BadWeights { path: path.to_owned(), source })?;
        Self::new(path, files)
    }

    fn new(path: &Path, files: Arc<TensorFiles>) -> Result<Self, LoadError> {
        let has = |prefix: &str, name: &str| files.shape(&format!("{prefix}{name}")).is_some();
        let found = PREFIXES.into_iter().find_map(|prefix| {
            let is = |names: &Names| names.signs().into_iter().all(|name| has(prefix, name));
            Names::ALL.into_iter().find(is).map(|names| (prefix, names))
        });
        if let Some((prefix, names)) = found {
            return Ok(Self { path: path.to_owned(), files, prefix, names });
        }
        let mut first: Vec<String> = files.names().collect();
        first.sort();
        first.truncate(3);
        let first = first.join(", ");
        let reason = format!("this is no ESRGAN, Real-ESRGAN or compact Real-ESRGAN network: its tensors are {first}, …");
        Err(LoadError::BadConfig { path: path.to_owned(), reason })
    }

    /// The file.
    pub(in crate::backend) fn path(&self) -> &Path {
        &self.path
    }

    /// How the network is built.
    ///
    /// # Errors
    /// When that cannot be, or is not supported.
    pub(in crate::backend) fn config(&self) -> Result<UpscalerConfig, LoadError> {
        let config = if self.names == Names::Compact { self.compact_config() } else { self.rrdb_config() };
        config.map_err(|reason| LoadError::BadConfig { path: self.path.clone(), reason })
    }

    fn rrdb_config(&self) -> Result<UpscalerConfig, String> {
        let numbers = self.numbers(self.names.layers())?;
        let last = numbers.last().copied().unwrap_or_default();
        // The convolution after the blocks has the number after theirs.
        let num_block = if self.names == Names::Numbered { last } else { last + 1 };
        let num_up = match self.names {
            Names::Numbered => self.numbers("model.")?.last().copied().unwrap_or_default().saturating_sub(4) / 3,
            Names::RealSr => (1..MAX_LAYERS).take_while(|i| self.side(&format!("upconv{i}.weight"), 0).is_some()).count(),
            _ => (1..MAX_LAYERS).take_while(|i| self.side(&format!("conv_up{i}.weight"), 0).is_some()).count(),
        };
        if num_up > 3 {
            return Err(format!("a network that enlarges {num_up} times to twice the size is not supported, at most 3 times"));
        }
        let locate = |name: &str| renamed(self.names, name, num_block, num_up).unwrap_or_else(|| name.to_owned());
        let side = |name: &str, dim: usize| self.side(&locate(name), dim).unwrap_or_default();
        check_pictures(side("conv_last.weight", 0))?;
        let inputs = side("conv_first.weight", 1);
        let unshuffle = [1, 2, 4].into_iter().find(|side| inputs == CHANNELS * side * side);
        let unshuffle = unshuffle.ok_or_else(|| {
            format!("its first convolution takes {inputs} channels; only pictures of 3 channels are supported: 3, 12 or 48")
        })?;
        if !(1usize << num_up).is_multiple_of(unshuffle) {
            return Err(format!("it makes a picture smaller: by {unshuffle}, and then larger by {}", 1 << num_up));
        }
        Ok(UpscalerConfig::Rrdb(RRDBNetConfig {
            num_feat: side("conv_first.weight", 0),
            num_block,
            num_grow_ch: side("body.0.rdb1.conv1.weight", 0),
            num_up,
            unshuffle,
            plus: self.side(&locate("body.0.rdb1.conv1x1.weight"), 0).is_some(),
        }))
    }

    fn compact_config(&self) -> Result<UpscalerConfig, String> {
        let last = self.numbers(self.names.layers())?.last().copied().unwrap_or_default();
        if last < 2 || !last.is_multiple_of(2) {
            return Err(format!("its last layer, a convolution, has the number {last}, which should be even"));
        }
        check_pictures(self.side("body.0.weight", 1).unwrap_or_default())?;
        let outputs = self.side(&format!("body.{last}.weight"), 0).unwrap_or_default();
        let upscale = (1..=8).find(|scale| outputs == CHANNELS * scale * scale);
        let upscale = upscale
            .ok_or_else(|| format!("its last convolution gives {outputs} channels, which should be 3 times a square, at most 192"))?;
        Ok(UpscalerConfig::Srvgg(SRVGGNetCompactConfig {
            num_feat: self.side("body.0.weight", 0).unwrap_or_default(),
            num_conv: (last - 2) / 2,
            upscale,
        }))
    }

    /// The numbers that follow what names begin with, in order, each once.
    fn numbers(&self, start: &str) -> Result<Vec<usize>, String> {
        let start = format!("{}{start}", self.prefix);
        let number = |name: String| name.strip_prefix(&start)?.split('.').next()?.parse::<usize>().ok();
        let mut numbers: Vec<usize> = self.files.names().filter_map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        match numbers.last() {
            Some(last) if *last > MAX_LAYERS => Err(format!("it has a layer {start}{last}; at most {MAX_LAYERS} are supported")),
            _ => Ok(numbers),
        }
    }

    /// A side of the tensor of this name in the file, without the prefix.
    fn side(&self, name: &str, dim: usize) -> Option<usize> {
        self.files.shape(&format!("{}{name}", self.prefix))?.get(dim).copied()
    }

    /// The weights of the network of [`UpscalerFile::config`].
    pub(in crate::backend) fn weights(&self, config: &UpscalerConfig, dtype: DType, device: &Device) -> PartWeights {
        let (names, prefix) = (self.names, self.prefix);
        let (num_block, num_up) = match config {
            UpscalerConfig::Rrdb(config) => (config.num_block, config.num_up),
            UpscalerConfig::Srvgg(_) => (0, 0),
        };
        let locate: Locate = Arc::new(move |name| {
            let renamed = renamed(names, name, num_block, num_up);
            format!("{prefix}{}", renamed.as_deref().unwrap_or(name)).into()
        });
        let vb = self.files.reader(dtype, device, Arc::clone(&locate));
        PartWeights { path: self.path.clone(), vb, files: Arc::clone(&self.files), locate, owner: "its layout", needless: Vec::new() }
    }
}

/// Only pictures in colour, without transparency.
fn check_pictures(channels: usize) -> Result<(), String> {
    if channels == CHANNELS { Ok(()) } else { Err(format!("only networks for pictures of 3 channels are supported, not of {channels}")) }
}

/// The name in a layout of a tensor of [`RRDBNet`](crate::models::RRDBNet), if it is another.
fn renamed(names: Names, name: &str, num_block: usize, num_up: usize) -> Option<String> {
    let (layer, kind) = name.rsplit_once('.')?;
    let block = layer.strip_prefix("body.").and_then(|block| {
        let (number, rest) = block.split_once(".rdb")?;
        let (dense, conv) = rest.split_once('.')?;
        Some((number, dense, conv))
    });
    let up = layer.strip_prefix("conv_up").and_then(|number| number.parse::<usize>().ok());
    let other = match (names, layer, block, up) {
        (Names::RealSr, _, Some((number, dense, conv)), _) => format!("RRDB_trunk.{number}.RDB{dense}.{conv}"),
        (Names::RealSr, _, _, Some(number)) => format!("upconv{number}"),
        (Names::RealSr, "conv_body", ..) => "trunk_conv".to_owned(),
        (Names::RealSr, "conv_hr", ..) => "HRconv".to_owned(),
        // It stands alone, the others in a sequence with their activations.
        (Names::Numbered, _, Some((number, dense, conv @ "conv1x1")), _) => format!("model.1.sub.{number}.RDB{dense}.{conv}"),
        (Names::Numbered, _, Some((number, dense, conv)), _) => format!("model.1.sub.{number}.RDB{dense}.{conv}.0"),
        // Enlarging and activations have numbers of their own.
        (Names::Numbered, _, _, Some(number)) => format!("model.{}", 3 * number),
        (Names::Numbered, "conv_first", ..) => "model.0".to_owned(),
        (Names::Numbered, "conv_body", ..) => format!("model.1.sub.{num_block}"),
        (Names::Numbered, "conv_hr", ..) => format!("model.{}", 3 * num_up + 2),
        (Names::Numbered, "conv_last", ..) => format!("model.{}", 3 * num_up + 4),
        _ => return None,
    };
    Some(format!("{other}.{kind}"))
}
