//! IP-Adapter files: a projection of a picture's embeddings to tokens, and what each cross-attention layer of a denoiser makes of the
//! tokens. With the names of the published files.

mod layers;
mod network;
mod preprocess;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Error};
pub use layers::CrossAttentionLayer;
pub(super) use network::ReferenceTokens;
pub use network::{IpAdapter, MAX_REFERENCES};
pub use preprocess::preprocess;
pub(super) use preprocess::reduce;

use super::{
    LoadError,
    model_files::{NO_PICKLES, PartWeights, TensorFiles, is_pickle},
};
use crate::{
    models::{ClipVisionConfig, ImageProjection, ImageProjectionConfig},
    ops::{WeightType, Weights},
};

/// What the tensors of a file belong to, for messages.
const OWNER: &str = "an IP-Adapter of this kind";

/// A file of an IP-Adapter. Its header and the shapes in it are checked; values are read when they are asked for. The file stays open.
#[derive(Debug, Clone)]
pub struct IpAdapterFile {
    path: PathBuf,
    files: Arc<TensorFiles>,
    projection: ImageProjectionConfig,
    /// Width of the queries of each cross-attention layer, in the order of their numbers.
    channels: Vec<usize>,
}

impl IpAdapterFile {
    /// Opens a `.safetensors` file and checks all of it but the values.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged or pickled, is of a kind that is not supported, lacks tensors, or has some whose shapes do
    /// not go together.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let path = path.to_owned();
        if is_pickle(&path) {
            return Err(LoadError::BadConfig { path, reason: NO_PICKLES.to_owned() });
        }
        let files = TensorFiles::open(std::slice::from_ref(&path)).map_err(|(path, error)| match error {
            Error::Io(source) => LoadError::Unreadable { path, source },
            source => LoadError::BadWeights { path, source },
        })?;
        let shapes = files.names().map(|name| {
            let shape = files.shape(&name).unwrap_or_default().to_vec();
            (name, shape)
        });
        let shapes: BTreeMap<String, Vec<usize>> = shapes.collect();
        let projection = ImageProjectionConfig::from_shapes(&shapes).map_err(LoadError::config(path.clone()))?;
        let channels = layers::channels(&shapes, projection.cross_attention_dim);
        let channels = channels.map_err(|reason| LoadError::BadConfig { path: path.clone(), reason })?;
        let file = Self { path, files, projection, channels };
        file.part(DType::F32, &Device::Cpu).check(|vb| ImageProjection::new(projection, vb))?;
        Ok(file)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kind of its projection, and the number and width of the tokens.
    #[must_use]
    pub fn projection(&self) -> &ImageProjectionConfig {
        &self.projection
    }

    /// Number of cross-attention layers of the denoiser that it is for.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.channels.len()
    }

    /// # Errors
    /// When the file is for another image encoder.
    pub fn check_encoder(&self, encoder: &ClipVisionConfig) -> Result<(), LoadError> {
        self.projection.check_encoder(encoder).map_err(LoadError::config(self.path.clone()))
    }

    /// # Errors
    /// When the file is for a denoiser of other cross-attention layers than these.
    pub fn check_denoiser(&self, layers: &[CrossAttentionLayer]) -> Result<(), LoadError> {
        let fits = layers::check(layers, &self.channels, self.projection.cross_attention_dim);
        fits.map_err(|reason| LoadError::BadConfig { path: self.path.clone(), reason })
    }

    /// Its tensors: `image_proj.…`, and `ip_adapter.N.to_k_ip.weight` and `….to_v_ip.weight` of each layer, `(channels,
    /// cross_attention_dim)`, where N is the layer's [`CrossAttentionLayer::number`].
    #[must_use]
    pub fn weights(&self, dtype: DType, device: &Device, weight_type: WeightType) -> Weights {
        Weights::new(self.part(dtype, device).vb, weight_type)
    }

    /// Reads the projection.
    ///
    /// # Errors
    /// When the file was changed, or has values that are not finite.
    pub fn load_projection(&self, dtype: DType, device: &Device, weight_type: WeightType) -> Result<ImageProjection, LoadError> {
        let new = |vb: &Weights| ImageProjection::new(self.projection, vb);
        new(&self.weights(dtype, device, weight_type)).map_err(|source| self.part(dtype, device).failure(source, new))
    }

    /// Number of elements of the largest tensor.
    fn largest(&self) -> usize {
        self.files.largest()
    }

    fn part(&self, dtype: DType, device: &Device) -> PartWeights {
        PartWeights::of_files(&self.path, &self.files, OWNER, dtype, device)
    }
}

#[cfg(test)]
mod tests;
