//! The VAE in f32, beside one in 16 bits, for pictures on which that one overflows. SDXL's own VAE is known for it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Error, Result};

use super::ModelFiles;
use crate::{
    models::{AutoencoderKl, AutoencoderKlConfig, Tiling},
    ops::{WeightType, Weights},
};

/// A VAE that is read when it is first needed, and kept.
pub struct WideVae {
    read: Box<dyn Fn() -> Result<AutoencoderKl> + Send + Sync>,
    vae: Mutex<Option<Arc<AutoencoderKl>>>,
}

impl WideVae {
    /// The VAE of a model's files.
    #[must_use]
    pub fn new(files: ModelFiles, config: AutoencoderKlConfig, device: Device, tiling: Tiling) -> Self {
        let read = move || {
            let weights = files.weights("vae", DType::F32, &device).map_err(Error::wrap)?;
            Ok(AutoencoderKl::new(config.clone(), &Weights::new(weights.vb, WeightType::F32))?.with_tiling(tiling))
        };
        Self { read: Box::new(read), vae: Mutex::default() }
    }

    /// The network.
    ///
    /// # Errors
    /// When its files cannot be read any more, or there is no memory for it.
    pub fn get(&self) -> Result<Arc<AutoencoderKl>> {
        // A panic during the read leaves nothing half done.
        let mut vae = self.vae.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vae) = &*vae {
            return Ok(Arc::clone(vae));
        }
        Ok(Arc::clone(vae.insert(Arc::new((self.read)()?))))
    }
}

impl fmt::Debug for WideVae {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WideVae(…)")
    }
}
