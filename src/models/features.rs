//! What a full pass through a UNet leaves for shallow ones: [Ma et al.](https://arxiv.org/abs/2312.00858).

use candle_core::{Result, Tensor};

use super::residuals::Residuals;
use crate::ops::{join_images, separate_samples};

/// The features of one generation, or of several.
#[derive(Debug, Clone)]
pub struct Features {
    /// What enters the last layer on the way up, `(samples, channels, height, width)`.
    deep: Tensor,
    /// What control networks add to the output of the first layer, or nothing.
    residuals: Residuals,
}

impl Features {
    /// Those of generation `index` of `generations`, of all their `deep` features. `residuals` are its own.
    ///
    /// # Errors
    /// When the generations have different numbers of samples, or the device fails.
    pub fn of_generation(deep: &Tensor, index: usize, generations: usize, residuals: &Residuals) -> Result<Self> {
        let samples = deep.dim(0)? / generations.max(1);
        Ok(Self { deep: separate_samples(deep, index * samples, samples)?, residuals: residuals.of_first_layer() })
    }

    /// Those of several generations, one after the other.
    ///
    /// # Errors
    /// When there are none, the shapes differ, or the device fails.
    pub fn join(all: &[&Self]) -> Result<Self> {
        let Some(first) = all.first() else { candle_core::bail!("there are no features to join") };
        let residuals: Vec<Residuals> = all.iter().map(|one| one.residuals.clone()).collect();
        let deep: Vec<&Tensor> = all.iter().map(|one| &one.deep).collect();
        let deep = if let [only] = *deep { only.clone() } else { join_images(&deep)? };
        Ok(Self { deep, residuals: Residuals::join(&residuals, first.samples())? })
    }

    /// Number of samples.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.deep.dims().first().copied().unwrap_or_default()
    }

    pub(super) fn deep(&self) -> &Tensor {
        &self.deep
    }

    /// The first layer's output with what control networks add to it.
    pub(super) fn guided(&self, first: &Tensor) -> Result<Tensor> {
        self.residuals.add_to_first(first)
    }
}
