//! Networks that enlarge pictures: ESRGAN and Real-ESRGAN. After `BasicSR`'s `rrdbnet_arch.py` and `srvgg_arch.py`, whose names they have, and
//! spandrel's `ESRGAN` and `Compact`, which read every layout of their files.

mod rrdb;
mod srvgg;
mod strips;

use candle_core::{Result, Tensor};
pub use rrdb::{RRDBNet, RRDBNetConfig};
pub use srvgg::{SRVGGNetCompact, SRVGGNetCompactConfig};
pub use strips::StripBytes;

use super::pass::Interrupt;
use crate::ops::Weights;

/// How a network is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpscalerConfig {
    /// ESRGAN, `BSRGAN`, Real-ESRGAN.
    Rrdb(RRDBNetConfig),
    /// Real-ESRGAN's small networks.
    Srvgg(SRVGGNetCompactConfig),
}

/// A network that enlarges pictures.
#[derive(Debug, Clone)]
pub enum Upscaler {
    /// Residual in residual dense blocks.
    Rrdb(Box<RRDBNet>),
    /// A plain stack of convolutions.
    Srvgg(SRVGGNetCompact),
}

impl UpscalerConfig {
    /// How many pixels each side has for one of the picture's.
    #[must_use]
    pub fn scale(&self) -> usize {
        match self {
            Self::Rrdb(config) => config.scale(),
            Self::Srvgg(config) => config.upscale,
        }
    }
}

impl Upscaler {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: &UpscalerConfig, vb: &Weights) -> Result<Self> {
        Ok(match config {
            UpscalerConfig::Rrdb(config) => Self::Rrdb(Box::new(RRDBNet::new(config, vb)?)),
            UpscalerConfig::Srvgg(config) => Self::Srvgg(SRVGGNetCompact::new(config, vb)?),
        })
    }

    /// A picture `(1, 3, height, width)` in [0, 1] to one of [`scale`](UpscalerConfig::scale) times its sides, about [0, 1]. `each` gets
    /// the result from top to bottom, some rows at a time.
    ///
    /// The network works in strips of rows, with all the rows around them that they depend on: the result is that of the whole picture at
    /// once, but for rounding.
    ///
    /// # Errors
    /// When the device fails, there is no memory, `each` fails, or the pass is interrupted.
    pub fn forward(
        &self,
        picture: &Tensor,
        strip: StripBytes,
        interrupt: Interrupt,
        mut each: impl FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Rrdb(network) => network.forward(picture, strip, interrupt, &mut each),
            Self::Srvgg(network) => network.forward(picture, strip, interrupt, &mut each),
        }
    }
}
