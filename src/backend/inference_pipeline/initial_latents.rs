//! The latents that a generation begins with: noise, or a picture with noise. After diffusers' `pipeline_stable_diffusion.py`,
//! `pipeline_stable_diffusion_img2img.py` and `pipeline_stable_diffusion_inpaint.py`, which draw random numbers in the same order.

use std::borrow::Cow;

use candle_core::{DType, Tensor};
use image::RgbImage;
use tracing::warn;

use super::{InferencePipeline, Networks};
use crate::{
    backend::{GenerationError, Order, image_utils},
    common::{ImageSize, InputImage, Mask, MaskLatents, ModelVariant, TorchRng},
    models::Interrupt,
    schedulers::Level,
};

/// `(1, channels, height, width)` of latents.
type LatentShape = (usize, usize, usize, usize);

/// What a generation begins with.
#[derive(Debug)]
pub(super) enum Start {
    /// The picture to begin with of its order, or noise.
    Order,
    /// A picture.
    Picture(RgbImage),
    /// Latents `(1, channels, height / 8, width / 8)` of a picture.
    Latents(Tensor),
}

/// The tensors that a generation begins with.
#[derive(Debug)]
pub(super) struct InitialLatents {
    /// `(1, channels, height / 8, width / 8)` in f32, at the sampler's own scale.
    pub(super) latents: Tensor,
    /// The part of a picture that a mask keeps, if the denoiser does not look at the mask.
    pub(super) kept: Option<KeptLatents>,
    /// What the denoiser of an inpainting model looks at beside the latents, `(1, 1 + channels, height / 8, width / 8)` in f32: the mask,
    /// and the latents of the picture outside of it.
    pub(super) condition: Option<Tensor>,
}

/// A part of a picture that is kept.
#[derive(Debug)]
pub(super) struct KeptLatents {
    picture: Tensor,
    noise: Tensor,
    /// `(1, 1, height / 8, width / 8)`: 1 where the picture is repainted, 0 where it is kept.
    mask: Tensor,
}

impl KeptLatents {
    /// Lays the kept part over `latents`, at their noise level; without noise after the last step.
    pub(super) fn lay_over(&self, latents: &Tensor, level: Option<Level>) -> Result<Tensor, GenerationError> {
        let kept = match level {
            Some(level) => add_noise(&self.picture, &self.noise, level)?,
            None => self.picture.clone(),
        };
        laid_over(&kept, latents, &self.mask)
    }
}

/// The part of `kept` that a mask `(1, 1, height / 8, width / 8)` keeps, over `latents`.
fn laid_over(kept: &Tensor, latents: &Tensor, mask: &Tensor) -> Result<Tensor, GenerationError> {
    Ok((kept.broadcast_mul(&mask.affine(-1.0, 1.0)?)? + latents.broadcast_mul(mask)?)?)
}

impl InferencePipeline {
    /// Whether the denoiser looks at a mask and at the picture outside of it, beside the latents.
    fn is_inpainting(&self) -> bool {
        self.info.variant == ModelVariant::Inpainting
    }

    /// The tensors that a generation begins with. Without a mask, an inpainting model repaints all of the picture.
    pub(super) fn initial_latents(
        &self,
        start: Start,
        order: &Order,
        rng: &mut TorchRng,
        interrupt: Interrupt,
    ) -> Result<InitialLatents, GenerationError> {
        let shape = self.latent_shape(order.config.size);
        let (latents, input) = match start {
            Start::Order => (None, order.images.init.as_ref().map(|input| image_utils::at_size(input, order.config.size))),
            Start::Picture(image) => (None, Some(Cow::Owned(InputImage { image, mask: None }))),
            Start::Latents(latents) => (Some(latents), None),
        };
        let input = input.as_deref();
        let mask = input.and_then(|input| input.mask.as_ref());
        // With a mask, full strength keeps nothing of the picture under the mask. Without one, diffusers keeps a little.
        let is_noise_alone = mask.is_some() && order.config.options.strength.is_none_or(|strength| strength.get() >= 1.0);

        let picture = match input {
            Some(input) if !(self.is_inpainting() && is_noise_alone) => {
                Some(self.encode(&image_utils::to_tensor(&input.image, &self.device)?, rng, interrupt)?)
            }
            _ => latents,
        };
        let noise = self.randn(rng, shape)?;
        let picture = match (picture, mask.and_then(|mask| Some((mask, mask.latents?)))) {
            (Some(picture), Some((mask, latents))) => {
                let under = if latents == MaskLatents::Noise { noise.clone() } else { noise.zeros_like()? };
                Some(laid_over(&picture, &under, &self.latent_mask(mask, shape)?)?)
            }
            (picture, _) => picture,
        };
        let latents = match (&picture, order.demand.plan.stages.first()) {
            (Some(picture), Some(first)) if !is_noise_alone => add_noise(picture, &noise, first.level)?,
            _ => (&noise * order.demand.plan.init_noise_sigma)?,
        };
        if self.is_inpainting() {
            let condition = Some(self.condition(input, shape, rng, interrupt)?);
            return Ok(InitialLatents { latents, kept: None, condition });
        }
        let Some((picture, mask)) = picture.zip(mask) else {
            return Ok(InitialLatents { latents, kept: None, condition: None });
        };
        // diffusers also encodes the picture outside of the mask, which has no use here, but advances the random numbers.
        self.randn(rng, shape)?;
        let kept = Some(KeptLatents { picture, noise, mask: self.latent_mask(mask, shape)? });
        Ok(InitialLatents { latents, kept, condition: None })
    }

    fn latent_shape(&self, size: ImageSize) -> LatentShape {
        let vae = self.networks.vae.config();
        let scale = vae.scale_factor();
        (1, vae.latent_channels, size.height() as usize / scale, size.width() as usize / scale)
    }

    /// Mask and masked latents for the denoiser of an inpainting model. Without a mask, the masked picture is gray.
    fn condition(
        &self,
        input: Option<&InputImage>,
        shape: LatentShape,
        rng: &mut TorchRng,
        interrupt: Interrupt,
    ) -> Result<Tensor, GenerationError> {
        let (_, _, height, width) = shape;
        let (mask, rest) = if let Some(InputImage { image, mask: Some(mask) }) = input {
            let rest = image_utils::mask_to_tensor(&mask.pixels, 1, &self.device)?.affine(-1.0, 1.0)?;
            (self.latent_mask(mask, shape)?, image_utils::to_tensor(image, &self.device)?.broadcast_mul(&rest)?)
        } else {
            let scale = self.networks.vae.config().scale_factor();
            let gray = Tensor::zeros((1, 3, height * scale, width * scale), DType::F32, &self.device)?;
            (Tensor::ones((1, 1, height, width), DType::F32, &self.device)?, gray)
        };
        Ok(Tensor::cat(&[mask, self.encode(&rest, rng, interrupt)?], 1)?)
    }

    /// A picture `(1, 3, height, width)` in [-1, 1] to latents, f32.
    fn encode(&self, picture: &Tensor, rng: &mut TorchRng, interrupt: Interrupt) -> Result<Tensor, GenerationError> {
        let Networks { vae, wide_vae, .. } = &self.networks;
        let mut latents = vae.encode(&picture.to_dtype(self.dtype)?, interrupt)?;
        if let (false, Some(wide)) = (latents.is_finite()?, wide_vae) {
            warn!("a picture is encoded again in f32: its numbers overflowed in {}", self.info.dtype);
            latents = wide.get()?.encode(picture, interrupt)?;
        }
        Ok(latents.sample(&self.randn(rng, latents.mean.dims4()?)?)?)
    }

    /// The mask at the size of the latents: each latent follows its first pixel.
    fn latent_mask(&self, mask: &Mask, (_, _, height, width): LatentShape) -> Result<Tensor, GenerationError> {
        let scale = self.networks.vae.config().scale_factor();
        Ok(image_utils::mask_to_tensor(&mask.pixels, scale, &self.device)?.reshape((1, 1, height, width))?)
    }

    /// Standard normal noise, drawn on the host in f32: a seed gives the same noise on every device.
    pub(super) fn randn(&self, rng: &mut TorchRng, shape: LatentShape) -> Result<Tensor, GenerationError> {
        let (batch, channels, height, width) = shape;
        let values = rng.randn(batch * channels * height * width);
        Ok(Tensor::from_vec(values, shape, &self.device)?)
    }
}

/// A picture at a noise level.
fn add_noise(picture: &Tensor, noise: &Tensor, level: Level) -> Result<Tensor, GenerationError> {
    Ok(((picture * level.alpha)? + (noise * level.sigma)?)?)
}
