//! The tiny autoencoder's decoder: [TAESD](https://github.com/madebyollin/taesd), convolutions and ReLU alone, which decodes the latents of
//! the large autoencoder roughly and in a fraction of its time. After diffusers' `autoencoder_tiny.py`, `vae.py` (`DecoderTiny`) and
//! `unet_2d_blocks.py` (`AutoencoderTinyBlock`).

use candle_core::{Result, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::{AutoencoderKlConfig, Tiling, forward, strips::StripLayer};
use crate::{
    models::{
        ConfigError,
        pass::{Interrupt, Pass},
        resnet::Upsample2D,
    },
    ops::{Activation, Added, Conv2d, Conv2dConfig, Weights, affine_image},
};

/// Latents are bent into the range from minus to plus this by tanh.
const LATENT_BOUND: f64 = 3.0;
/// More residual blocks than any stage has.
const MAX_BLOCKS: usize = 64;

/// `config.json`. What it leaves out, or has as null, is as in diffusers' `AutoencoderTiny`. The encoder's settings are not read.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct AutoencoderTinyConfig {
    /// Channels of the decoded image.
    out_channels: usize,
    /// Channels of each stage, the coarsest first. They are all the same: a stage takes what the one before gives.
    decoder_block_out_channels: Vec<usize>,
    /// Residual blocks of each stage. Each stage after the first has twice the resolution.
    num_decoder_blocks: Vec<usize>,
    act_fn: Activation,
    /// How images are enlarged.
    upsample_fn: String,
    upsampling_scaling_factor: usize,
    /// Channels of the latents.
    latent_channels: usize,
    /// Latents at the denoiser's scale are divided by this.
    scaling_factor: f64,
    /// Diffusers' pipelines of Stable Diffusion do not look at it.
    shift_factor: f64,
}

impl Default for AutoencoderTinyConfig {
    fn default() -> Self {
        Self {
            out_channels: 3,
            decoder_block_out_channels: vec![64; 4],
            num_decoder_blocks: vec![3, 3, 3, 1],
            act_fn: Activation::Relu,
            upsample_fn: "nearest".to_owned(),
            upsampling_scaling_factor: 2,
            latent_channels: 4,
            scaling_factor: 1.0,
            shift_factor: 0.0,
        }
    }
}

impl AutoencoderTinyConfig {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// When it is no valid JSON, describes no network, or one that is not supported.
    pub fn from_json(json: &[u8]) -> std::result::Result<Self, ConfigError> {
        let config: Self = ConfigError::read(Value::Object(ConfigError::read_fields(json, &[])?))?;
        let Self { decoder_block_out_channels: channels, num_decoder_blocks: blocks, .. } = &config;
        ConfigError::unless(config.out_channels == 3, || "only pictures of 3 channels are supported".to_owned())?;
        ConfigError::unless((1..=6).contains(&channels.len()), || "decoder_block_out_channels must have 1 to 6 entries".to_owned())?;
        ConfigError::unless_one_each("num_decoder_blocks", blocks, channels.len(), "entries in decoder_block_out_channels")?;
        ConfigError::unless(channels[0] > 0 && channels.iter().all(|other| *other == channels[0]), || {
            format!("decoder_block_out_channels must all be the same and not 0, not {channels:?}")
        })?;
        ConfigError::unless(blocks.iter().all(|blocks| *blocks <= MAX_BLOCKS), || {
            format!("num_decoder_blocks must be at most {MAX_BLOCKS} each, not {blocks:?}")
        })?;
        ConfigError::unless(config.act_fn == Activation::Relu, || format!("act_fn must be relu, not {:?}", config.act_fn))?;
        ConfigError::unless(config.upsample_fn == "nearest", || format!("upsample_fn must be nearest, not {}", config.upsample_fn))?;
        ConfigError::unless(config.upsampling_scaling_factor == 2, || {
            format!("upsampling_scaling_factor must be 2, not {}", config.upsampling_scaling_factor)
        })?;
        ConfigError::unless(config.scaling_factor.is_normal(), || format!("scaling_factor must not be {}", config.scaling_factor))?;
        ConfigError::unless(config.shift_factor.abs() < f64::MIN_POSITIVE, || {
            format!("a shift_factor of {} is not supported", config.shift_factor)
        })?;
        Ok(config)
    }

    /// # Errors
    /// When the latents of a model with this autoencoder are others than those that the tiny one decodes.
    pub fn check_fits(&self, vae: &AutoencoderKlConfig) -> std::result::Result<(), ConfigError> {
        ConfigError::unless(self.latent_channels == vae.latent_channels, || {
            format!("it decodes latents of {} channels, but the model's have {}", self.latent_channels, vae.latent_channels)
        })?;
        let scale_factor = 1 << (self.decoder_block_out_channels.len() - 1);
        ConfigError::unless(scale_factor == vae.scale_factor(), || {
            format!("it makes {scale_factor} pixels of a latent along each side, but the model's VAE makes {}", vae.scale_factor())
        })
    }
}

/// The decoder of `AutoencoderTiny`.
#[derive(Debug, Clone)]
pub struct AutoencoderTiny {
    decoder: DecoderTiny,
    scaling_factor: f64,
    tiling: Tiling,
}

impl AutoencoderTiny {
    /// Reads the decoder's weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: &AutoencoderTinyConfig, vb: &Weights) -> Result<Self> {
        let decoder = DecoderTiny::new(config, &vb.pp("decoder.layers"))?;
        Ok(Self { decoder, scaling_factor: config.scaling_factor, tiling: Tiling::default() })
    }

    /// The same with another tiling.
    #[must_use]
    pub fn with_tiling(self, tiling: Tiling) -> Self {
        Self { tiling, ..self }
    }

    /// Latents at the denoiser's scale to a picture `(batch, 3, height, width)`, about [-1, 1].
    ///
    /// # Errors
    /// When the device fails, or the pass is interrupted.
    pub fn decode(&self, latents: &Tensor, interrupt: Interrupt) -> Result<Tensor> {
        let bent = ((latents / (self.scaling_factor * LATENT_BOUND))?.tanh()? * LATENT_BOUND)?;
        // tanh makes numbers of infinities: adding 0 for each number, and NaN for each infinity, keeps the error visible.
        let z = (bent + (latents * 0.0)?)?;
        let picture = forward(z, self.decoder.layers(), self.tiling, &Pass::of_input(interrupt))?;
        affine_image(&picture, 2.0, -1.0)
    }
}

/// Latents to a picture in [0, 1].
#[derive(Debug, Clone)]
struct DecoderTiny {
    conv_in: Conv2d,
    stages: Vec<Stage>,
    conv_out: Conv2d,
}

/// What is done at one resolution. The layers of all stages are numbered together, activations and enlargements among them.
#[derive(Debug, Clone)]
struct Stage {
    blocks: Vec<AutoencoderTinyBlock>,
    /// To the next stage.
    upsampler: Option<Upsample2D>,
}

impl DecoderTiny {
    fn new(config: &AutoencoderTinyConfig, vb: &Weights) -> Result<Self> {
        let channels = config.decoder_block_out_channels[0];
        let conv_in = Conv2d::new(config.latent_channels, channels, Conv2dConfig::SAME_3X3, &vb.pp(0))?;
        let (mut stages, mut next) = (Vec::new(), 2);
        for (blocks, stage) in config.num_decoder_blocks.iter().zip(1..) {
            let block = |i| AutoencoderTinyBlock::new(channels, &vb.pp(next + i));
            let blocks = (0..*blocks).map(block).collect::<Result<Vec<_>>>()?;
            next += blocks.len();
            let upsampler = (stage < config.num_decoder_blocks.len()).then(|| {
                // Enlarging has a number of its own.
                next += 2;
                Conv2d::doubling_without_bias(channels, channels, &vb.pp(next - 1))
            });
            stages.push(Stage { blocks, upsampler: upsampler.transpose()?.map(Upsample2D::of) });
        }
        Ok(Self { conv_in, stages, conv_out: Conv2d::new(channels, config.out_channels, Conv2dConfig::SAME_3X3, &vb.pp(next))? })
    }

    fn layers(&self) -> Vec<StripLayer<'_>> {
        let stages = self.stages.iter().flat_map(Stage::layers);
        [StripLayer::ConvRelu(&self.conv_in)].into_iter().chain(stages).chain([StripLayer::Conv(&self.conv_out)]).collect()
    }
}

impl Stage {
    fn layers(&self) -> impl Iterator<Item = StripLayer<'_>> {
        self.blocks.iter().map(StripLayer::Tiny).chain(self.upsampler.as_ref().map(StripLayer::Up))
    }
}

/// `AutoencoderTinyBlock` of as many channels in as out: three convolutions beside a shortcut.
#[derive(Debug, Clone)]
pub(super) struct AutoencoderTinyBlock {
    convs: [Conv2d; 3],
}

impl AutoencoderTinyBlock {
    /// Rows above and below a pixel that its result depends on.
    pub(super) const SEEN: usize = 3;

    fn new(channels: usize, vb: &Weights) -> Result<Self> {
        let conv = |number: usize| Conv2d::new(channels, channels, Conv2dConfig::SAME_3X3, &vb.pp("conv").pp(number));
        // Activations are between them.
        Ok(Self { convs: [conv(0)?, conv(2)?, conv(4)?] })
    }

    /// `(batch, channels, height, width)` to the same shape.
    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let [first, second, third] = &self.convs;
        let hidden = first.forward_relu(x, Added::default())?;
        pass.check()?;
        // `hidden` is nobody else's.
        let hidden = second.forward_relu_in_place(hidden, Added::default())?;
        pass.check()?;
        third.forward_relu_in_place(hidden, Added { residual: Some(x), ..Added::default() })
    }
}

#[cfg(test)]
mod tests;
