//! The IP-Adapter of a worker, with its image encoder. Both are read when a request first brings a picture.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Instant,
};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use tracing::info;

use super::{CrossAttentionLayer, IpAdapterFile, preprocess};
use crate::{
    backend::{GenerationError, LoadError, ModelFiles},
    common::{ControlScale, InputImages},
    models::{ClipVisionConfig, ClipVisionModel, Denoiser, ImageAttention, ImageAttentionLayer, ImageProjection, ImagePrompt, Interrupt},
    ops::{self, LayerNames, WeightType, Weights},
};

/// The folder of the image encoder, beside the files that it is for.
const ENCODER: &str = "image_encoder";
/// The most pictures of one request: each costs time in every step.
pub const MAX_REFERENCES: usize = 8;

/// An IP-Adapter and its image encoder.
#[derive(Debug)]
pub struct IpAdapter {
    file: IpAdapterFile,
    encoder_files: ModelFiles,
    encoder: ClipVisionConfig,
    layers: Vec<ImageAttentionLayer>,
    dtype: DType,
    weight_type: WeightType,
    device: Device,
    low_memory: bool,
    loaded: Mutex<Option<Arc<Loaded>>>,
    /// The pictures of the latest order and their tokens: an order for several pictures encodes them once.
    latest: Mutex<Option<(Weak<InputImages>, Vec<Tensor>)>>,
}

/// The networks.
#[derive(Debug)]
struct Loaded {
    encoder: ClipVisionModel,
    projection: ImageProjection,
    attention: ImageAttention,
    /// The tokens of no picture, `(1, tokens, cross_attention_dim)`.
    unconditional: Tensor,
}

/// What a denoiser's layers look at for a request's pictures. By default, there are none.
#[derive(Debug, Default)]
pub(in crate::backend) struct ReferenceTokens {
    /// Of each picture, `(1, tokens, cross_attention_dim)`.
    pictures: Vec<Tensor>,
    networks: Option<Arc<Loaded>>,
}

impl ReferenceTokens {
    /// The tokens of each picture for all samples, `(negatives + parts, tokens, cross_attention_dim)`, and for those of the prompt. The negative
    /// ones look at no picture.
    pub(in crate::backend) fn for_samples(&self, negatives: usize, parts: usize) -> Result<[Vec<Tensor>; 2], GenerationError> {
        let Some(networks) = &self.networks else { return Ok([Vec::new(), Vec::new()]) };
        let of_samples = |negatives: usize| {
            let of_picture = |picture: &Tensor| {
                let samples = [vec![&networks.unconditional; negatives], vec![picture; parts]].concat();
                Ok(Tensor::cat(&samples, 0)?)
            };
            self.pictures.iter().map(of_picture).collect::<Result<Vec<_>, GenerationError>>()
        };
        Ok([of_samples(negatives)?, of_samples(0)?])
    }

    /// The conditions for the denoiser, of tokens for its samples.
    pub(in crate::backend) fn prompts<'a>(&'a self, tokens: &'a [Tensor], scales: &[ControlScale]) -> Vec<ImagePrompt<'a>> {
        let Some(networks) = &self.networks else { return Vec::new() };
        // Without a picture, not a bit of the result changes.
        let counts = tokens.iter().zip(scales).filter(|(_, scale)| scale.get() != 0.0);
        counts.map(|(tokens, scale)| ImagePrompt { tokens, scale: scale.get(), attention: &networks.attention }).collect()
    }
}

impl IpAdapter {
    /// Opens the files and checks them against each other and the denoiser. `encoder` is the folder of the image encoder; without it, it is
    /// `image_encoder` beside the file.
    ///
    /// # Errors
    /// When a file is missing or damaged, or they do not go together.
    pub(in crate::backend) fn open(
        file: &Path,
        encoder: Option<&Path>,
        denoiser: &Denoiser,
        (dtype, weight_type, device): (DType, WeightType, &Device),
        low_memory: bool,
    ) -> Result<Self, LoadError> {
        let beside = file.parent().unwrap_or(Path::new("")).join(ENCODER);
        if encoder.is_none() && !beside.is_dir() {
            let help = "give the folder of its image encoder with --image-encoder";
            return Err(LoadError::NotFound(format!("there is no {} beside --ip-adapter {}; {help}", beside.display(), file.display())));
        }
        let file = IpAdapterFile::open(file)?;
        let names = denoiser.layer_names();
        let layers = CrossAttentionLayer::all(names);
        file.check_denoiser(&layers)?;
        let encoder_files = ModelFiles::of_part(encoder.unwrap_or(&beside));
        let name = format!("{ENCODER}/config.json");
        let encoder = ClipVisionConfig::from_json(&encoder_files.read(&name)?).map_err(LoadError::config(encoder_files.path(&name)))?;
        file.check_encoder(&encoder)?;
        // What is missing is found before a request brings a picture.
        encoder_files.weights(ENCODER, dtype, device)?.check(|vb| ClipVisionModel::new(encoder.clone(), vb))?;
        let layers = indexed(&layers, names);
        Ok(Self {
            file,
            encoder_files,
            encoder,
            layers,
            dtype,
            weight_type,
            device: device.clone(),
            low_memory,
            loaded: Mutex::default(),
            latest: Mutex::default(),
        })
    }

    /// The side of the pictures that the encoder looks at.
    #[must_use]
    pub fn side(&self) -> u32 {
        self.encoder.image_size as u32
    }

    /// The tokens of an order's pictures.
    ///
    /// # Errors
    /// When the networks cannot be read or fail, or the pass is interrupted.
    pub(in crate::backend) fn tokens(&self, images: &Arc<InputImages>, interrupt: Interrupt) -> Result<ReferenceTokens, GenerationError> {
        let loaded = self.loaded(interrupt)?;
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let pictures = match &*latest {
            Some((of, tokens)) if std::ptr::eq(of.as_ptr(), Arc::as_ptr(images)) => tokens.clone(),
            _ => {
                let encode = |picture: &RgbImage| -> Result<Tensor, GenerationError> {
                    let pixels = preprocess(picture, self.encoder.image_size, &self.device)?.to_dtype(self.dtype)?;
                    Ok(loaded.projection.forward(&loaded.encoder.forward(&pixels, interrupt)?, interrupt)?)
                };
                images.references.iter().map(encode).collect::<Result<Vec<_>, _>>()?
            }
        };
        // The pictures themselves are not kept; while something points to them, no others are at their address.
        *latest = Some((Arc::downgrade(images), pictures.clone()));
        Ok(ReferenceTokens { pictures, networks: Some(loaded) })
    }

    fn loaded(&self, interrupt: Interrupt) -> Result<Arc<Loaded>, GenerationError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*loaded {
            return Ok(Arc::clone(loaded));
        }
        Ok(Arc::clone(loaded.insert(Arc::new(self.load(interrupt)?))))
    }

    fn load(&self, interrupt: Interrupt) -> Result<Loaded, GenerationError> {
        let (started, failed) = (Instant::now(), |error: LoadError| GenerationError::Control(Box::new(error)));
        let weights = self.encoder_files.weights(ENCODER, self.dtype, &self.device).map_err(failed)?;
        let new = |vb: &Weights| ClipVisionModel::new(self.encoder.clone(), vb);
        let vb = Weights::new(weights.vb.clone(), self.weight_type).freed_after_use(self.low_memory);
        // candle ends the process where it gets no memory: the largest tensor as it is stored, and in the networks' type.
        let largest = weights.largest().max(self.file.largest()) as u64;
        let load = || -> Result<Loaded, GenerationError> {
            let encoder = new(&vb).map_err(|source| failed(weights.failure(source, new)))?;
            let projection = self.file.load_projection(self.dtype, &self.device, self.weight_type).map_err(failed)?;
            let of_file = self.file.weights(self.dtype, &self.device, self.weight_type);
            let attention = ImageAttention::new(&self.layers, self.file.projection().cross_attention_dim, &of_file)?;
            let unconditional = projection.unconditional(&encoder, interrupt)?;
            Ok(Loaded { encoder, projection, attention, unconditional })
        };
        let loaded = ops::with_room(2 * size_of::<f32>() as u64 * largest, load)??;
        info!(load_ms = started.elapsed().as_millis(), "image encoder and IP-Adapter loaded");
        Ok(loaded)
    }
}

/// The layers by the numbers that the denoiser gave them.
fn indexed(layers: &[CrossAttentionLayer], names: &LayerNames) -> Vec<ImageAttentionLayer> {
    let index = |layer: &CrossAttentionLayer| {
        Some(ImageAttentionLayer { index: names.get(&layer.name)?, number: layer.number, channels: layer.channels })
    };
    layers.iter().filter_map(index).collect()
}
