//! The autoencoder between pixels and latents: [Kingma & Welling](https://arxiv.org/abs/1312.6114), with the architecture of
//! [Rombach et al.](https://arxiv.org/abs/2112.10752). After diffusers' `autoencoder_kl.py` and `vae.py`.

mod strips;
mod tiny;

use candle_core::{DType, Result, Tensor};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::{
    ConfigError,
    attention::Attention,
    pass::{Interrupt, Pass},
    resnet::{Downsample2D, ResnetBlock2D, ResnetConfig, Upsample2D},
};
use crate::ops::{Conv2d, Conv2dConfig, GroupNorm, OnDemand, Weights, to_image, to_sequence};
use strips::{StripLayer, StripLimits};
pub use tiny::{AutoencoderTiny, AutoencoderTinyConfig};

const NORM_EPS: f64 = 1e-6;
/// Logarithms of variances are clamped to this range.
const LOG_VARIANCES: (f64, f64) = (-30.0, 20.0);

/// `vae/config.json`. What it leaves out, or has as null, is as in diffusers' `AutoencoderKL`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    /// Channels of the image.
    pub in_channels: usize,
    /// Channels of the decoded image.
    pub out_channels: usize,
    /// Channels of each level, the finest first. Each level after the first halves the resolution.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks to a level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Latents are multiplied by this, so that the denoiser sees a variance of about 1.
    pub scaling_factor: f64,
    /// Subtracted from the latents before that. Stable Diffusion has none.
    pub shift_factor: Option<f64>,
    /// A mean for each channel. Stable Diffusion has none, and a file with one is refused.
    latents_mean: Option<IgnoredAny>,
    /// Whether there is attention at the coarsest level.
    pub mid_block_add_attention: bool,
    /// Whether a 1 x 1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1 x 1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
        }
    }
}

impl AutoencoderKlConfig {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// When it is no valid JSON, or describes no network.
    pub fn from_json(json: &[u8]) -> std::result::Result<Self, ConfigError> {
        let config: Self = ConfigError::read(Value::Object(ConfigError::read_fields(json, &[])?))?;
        ConfigError::unless((1..=6).contains(&config.block_out_channels.len()), || {
            "block_out_channels must have 1 to 6 entries".to_owned()
        })?;
        ConfigError::unless(config.in_channels == 3 && config.out_channels == 3, || {
            "only pictures of 3 channels are supported".to_owned()
        })?;
        ConfigError::unless(config.latents_mean.is_none(), || "latents_mean is not supported".to_owned())?;
        ConfigError::unless(config.latent_channels > 0, || "latent_channels must not be 0".to_owned())?;
        ConfigError::unless(config.scaling_factor.is_normal(), || format!("scaling_factor must not be {}", config.scaling_factor))?;
        Ok(config)
    }

    /// Pixels for each latent along each side.
    #[must_use]
    pub fn scale_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    fn resnet(&self) -> ResnetConfig {
        ResnetConfig { norm_num_groups: self.norm_num_groups, norm_eps: NORM_EPS, time_embed_dim: None }
    }

    fn coarsest(&self) -> usize {
        self.block_out_channels.last().copied().unwrap_or_default()
    }
}

/// The distribution of a picture's latents: diffusers' `DiagonalGaussianDistribution`, at the denoiser's scale. Both tensors are
/// `(batch, latent_channels, height / scale_factor, width / scale_factor)` in f32.
#[derive(Debug, Clone)]
pub struct LatentDistribution {
    /// The mean of each latent.
    pub mean: Tensor,
    /// The standard deviation of each latent.
    pub deviation: Tensor,
}

impl LatentDistribution {
    /// Whether all of it is finite.
    ///
    /// # Errors
    /// When the device fails.
    pub fn is_finite(&self) -> Result<bool> {
        // One NaN or infinity makes the sum NaN or infinite.
        Ok((self.mean.sum_all()? + self.deviation.sum_all()?)?.to_scalar::<f32>()?.is_finite())
    }

    /// Latents drawn with `noise`, which has standard deviation 1 and their shape.
    ///
    /// # Errors
    /// When the shape of `noise` is another.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        &self.mean + (&self.deviation * noise)?
    }
}

/// Whether large pictures go through the VAE strip by strip, in less memory and more time. The pixels differ by less than 1e-4 of their
/// range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tiling {
    /// Pictures that would take more than 4 GiB as a whole.
    #[default]
    Auto,
    /// All pictures.
    On,
    /// No picture.
    Off,
}

/// `AutoencoderKL`.
#[derive(Debug, Clone)]
pub struct AutoencoderKl {
    encoder: OnDemand<Encoder>,
    quant_conv: Option<Conv2d>,
    decoder: Decoder,
    post_quant_conv: Option<Conv2d>,
    config: AutoencoderKlConfig,
    tiling: Tiling,
}

impl AutoencoderKl {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: AutoencoderKlConfig, vb: &Weights) -> Result<Self> {
        let pointwise = |wanted: bool, channels: usize, name: &str| {
            wanted.then(|| Conv2d::new(channels, channels, Conv2dConfig::POINTWISE, &vb.pp(name))).transpose()
        };
        let of_encoder = config.clone();
        Ok(Self {
            encoder: OnDemand::new(vb.pp("encoder"), move |vb| Encoder::new(&of_encoder, vb))?,
            quant_conv: pointwise(config.use_quant_conv, 2 * config.latent_channels, "quant_conv")?,
            decoder: Decoder::new(&config, &vb.pp("decoder"))?,
            post_quant_conv: pointwise(config.use_post_quant_conv, config.latent_channels, "post_quant_conv")?,
            config,
            tiling: Tiling::default(),
        })
    }

    /// The same VAE with another tiling.
    #[must_use]
    pub fn with_tiling(self, tiling: Tiling) -> Self {
        Self { tiling, ..self }
    }

    /// The configuration that it was built from.
    #[must_use]
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// A picture `(batch, 3, height, width)` in [-1, 1] to the distribution of its latents.
    ///
    /// # Errors
    /// When the device fails, or the pass is interrupted.
    pub fn encode(&self, x: &Tensor, interrupt: Interrupt) -> Result<LatentDistribution> {
        let pass = &Pass::of_input(interrupt);
        let mut moments = self.encoder.with(|encoder| encoder.forward(x, self.tiling, pass))?;
        if let Some(conv) = &self.quant_conv {
            moments = conv.forward(&moments)?;
        }
        let moments = moments.to_dtype(DType::F32)?;
        let channels = self.config.latent_channels;
        let mean = ((moments.narrow(1, 0, channels)? - self.config.shift_factor.unwrap_or(0.0))? * self.config.scaling_factor)?;
        let (least, most) = LOG_VARIANCES;
        let deviation = ((moments.narrow(1, channels, channels)?.clamp(least, most)? * 0.5)?.exp()? * self.config.scaling_factor)?;
        Ok(LatentDistribution { mean, deviation })
    }

    /// Latents at the denoiser's scale to a picture `(batch, 3, height, width)`, about [-1, 1].
    ///
    /// # Errors
    /// When the device fails, or the pass is interrupted.
    pub fn decode(&self, latents: &Tensor, interrupt: Interrupt) -> Result<Tensor> {
        let mut z = ((latents / self.config.scaling_factor)? + self.config.shift_factor.unwrap_or(0.0))?;
        if let Some(conv) = &self.post_quant_conv {
            z = conv.forward(&z)?;
        }
        self.decoder.forward(&z, self.tiling, &Pass::of_input(interrupt))
    }
}

#[derive(Debug, Clone)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownEncoderBlock2D>,
    mid_block: UNetMidBlock2D,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(config: &AutoencoderKlConfig, vb: &Weights) -> Result<Self> {
        let channels = &config.block_out_channels;
        let down_block = |i: usize| {
            let is_last = i == channels.len() - 1;
            DownEncoderBlock2D::new(channels[i.saturating_sub(1)], channels[i], is_last, config, &vb.pp("down_blocks").pp(i))
        };
        Ok(Self {
            conv_in: Conv2d::new(config.in_channels, channels[0], Conv2dConfig::SAME_3X3, &vb.pp("conv_in"))?,
            down_blocks: (0..channels.len()).map(down_block).collect::<Result<_>>()?,
            mid_block: UNetMidBlock2D::new(config, &vb.pp("mid_block"))?,
            conv_norm_out: GroupNorm::new(config.norm_num_groups, config.coarsest(), NORM_EPS, &vb.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(config.coarsest(), 2 * config.latent_channels, Conv2dConfig::SAME_3X3, &vb.pp("conv_out"))?,
        })
    }

    fn forward(&self, x: &Tensor, tiling: Tiling, pass: &Pass) -> Result<Tensor> {
        let x = self.mid_block.forward(&forward(x.clone(), self.layers(), tiling, pass)?, pass)?;
        strips::forward_whole(x, &[StripLayer::NormedConv(self.conv_norm_out.clone(), &self.conv_out)], pass)
    }

    /// The layers from the picture to the middle block.
    fn layers(&self) -> Vec<StripLayer<'_>> {
        let down_blocks = self.down_blocks.iter().flat_map(DownEncoderBlock2D::layers);
        [StripLayer::Conv(&self.conv_in)].into_iter().chain(down_blocks).collect()
    }
}

#[derive(Debug, Clone)]
struct DownEncoderBlock2D {
    resnets: Vec<ResnetBlock2D>,
    downsampler: Option<Downsample2D>,
}

impl DownEncoderBlock2D {
    fn new(in_channels: usize, out_channels: usize, is_last: bool, config: &AutoencoderKlConfig, vb: &Weights) -> Result<Self> {
        let resnet = |i: usize| {
            let from = if i == 0 { in_channels } else { out_channels };
            ResnetBlock2D::new(from, out_channels, config.resnet(), &vb.pp("resnets").pp(i))
        };
        let downsampler = (!is_last).then(|| Downsample2D::new(out_channels, 0, &vb.pp("downsamplers.0")));
        Ok(Self { resnets: (0..config.layers_per_block).map(resnet).collect::<Result<_>>()?, downsampler: downsampler.transpose()? })
    }

    fn layers(&self) -> impl Iterator<Item = StripLayer<'_>> {
        self.resnets.iter().map(StripLayer::resnet).chain(self.downsampler.as_ref().map(StripLayer::Down))
    }
}

#[derive(Debug, Clone)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: UNetMidBlock2D,
    up_blocks: Vec<UpDecoderBlock2D>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(config: &AutoencoderKlConfig, vb: &Weights) -> Result<Self> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let finest = config.block_out_channels[0];
        let up_block = |i: usize| {
            let is_last = i == channels.len() - 1;
            UpDecoderBlock2D::new(channels[i.saturating_sub(1)], channels[i], is_last, config, &vb.pp("up_blocks").pp(i))
        };
        Ok(Self {
            conv_in: Conv2d::new(config.latent_channels, config.coarsest(), Conv2dConfig::SAME_3X3, &vb.pp("conv_in"))?,
            mid_block: UNetMidBlock2D::new(config, &vb.pp("mid_block"))?,
            up_blocks: (0..channels.len()).map(up_block).collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::new(config.norm_num_groups, finest, NORM_EPS, &vb.pp("conv_norm_out"))?,
            conv_out: Conv2d::new(finest, config.out_channels, Conv2dConfig::SAME_3X3, &vb.pp("conv_out"))?,
        })
    }

    fn forward(&self, z: &Tensor, tiling: Tiling, pass: &Pass) -> Result<Tensor> {
        forward(self.mid_block.forward(&self.conv_in.forward(z)?, pass)?, self.layers(), tiling, pass)
    }

    /// The layers from the middle block to the picture.
    fn layers(&self) -> Vec<StripLayer<'_>> {
        let out = StripLayer::NormedConv(self.conv_norm_out.clone(), &self.conv_out);
        self.up_blocks.iter().flat_map(UpDecoderBlock2D::layers).chain([out]).collect()
    }
}

#[derive(Debug, Clone)]
struct UpDecoderBlock2D {
    resnets: Vec<ResnetBlock2D>,
    upsampler: Option<Upsample2D>,
}

impl UpDecoderBlock2D {
    fn new(in_channels: usize, out_channels: usize, is_last: bool, config: &AutoencoderKlConfig, vb: &Weights) -> Result<Self> {
        let resnet = |i: usize| {
            let from = if i == 0 { in_channels } else { out_channels };
            ResnetBlock2D::new(from, out_channels, config.resnet(), &vb.pp("resnets").pp(i))
        };
        let upsampler = (!is_last).then(|| Upsample2D::doubling(out_channels, &vb.pp("upsamplers.0")));
        Ok(Self { resnets: (0..=config.layers_per_block).map(resnet).collect::<Result<_>>()?, upsampler: upsampler.transpose()? })
    }

    fn layers(&self) -> impl Iterator<Item = StripLayer<'_>> {
        self.resnets.iter().map(StripLayer::resnet).chain(self.upsampler.as_ref().map(StripLayer::Up))
    }
}

/// Images `(batch, channels, height, width)` through the layers of an encoder or a decoder.
fn forward(x: Tensor, layers: Vec<StripLayer>, tiling: Tiling, pass: &Pass) -> Result<Tensor> {
    let Some(limits) = StripLimits::of(tiling, strips::bytes_whole(&x, &layers)?) else {
        return strips::forward_whole(x, &layers, pass);
    };
    let batch = x.dim(0)?;
    if batch == 1 {
        return strips::forward_in_strips(x, layers, limits, pass);
    }
    let sample = |i| strips::forward_in_strips(x.narrow(0, i, 1)?, layers.clone(), limits, pass);
    Tensor::cat(&(0..batch).map(sample).collect::<Result<Vec<_>>>()?, 0)
}

/// Two residual blocks around an attention of one head.
#[derive(Debug, Clone)]
struct UNetMidBlock2D {
    resnets: [ResnetBlock2D; 2],
    attention: Option<(GroupNorm, Attention)>,
}

impl UNetMidBlock2D {
    fn new(config: &AutoencoderKlConfig, vb: &Weights) -> Result<Self> {
        let channels = config.coarsest();
        let resnet = |i: usize| ResnetBlock2D::new(channels, channels, config.resnet(), &vb.pp("resnets").pp(i));
        let attention = |vb: Weights| -> Result<_> {
            Ok((GroupNorm::new(config.norm_num_groups, channels, NORM_EPS, &vb.pp("group_norm"))?, Attention::for_vae(channels, &vb)?))
        };
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            attention: config.mid_block_add_attention.then(|| attention(vb.pp("attentions.0"))).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let mut x = self.resnets[0].forward(x, pass)?;
        if let Some((norm, attention)) = &self.attention {
            let sequence = to_sequence(&norm.forward(&x)?)?;
            x = to_image(&attention.forward_self(&sequence, &to_sequence(&x)?, pass)?, &x)?;
        }
        self.resnets[1].forward(&x, pass)
    }
}
