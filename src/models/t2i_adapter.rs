//! `T2IAdapter`: a small network that looks at a picture once, and whose features are added on a UNet's way down
//! ([Mou et al.](https://arxiv.org/abs/2302.08453)). After diffusers' `adapter.py`.

use candle_core::{Result, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::{ConfigError, UNet2DConditionConfig, pass::Interrupt, residuals::Residuals};
use crate::ops::{Added, Conv2d, Conv2dConfig, Weights, half_image, relu_image};

/// `config.json` of a `T2IAdapter`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct T2IAdapterConfig {
    /// How its blocks are built.
    pub adapter_type: T2IAdapterType,
    /// Channels of the picture: 3, or 1 of a grey one.
    pub in_channels: usize,
    /// Channels of each level, the finest first.
    pub channels: Vec<usize>,
    /// Residual blocks at each level.
    pub num_res_blocks: usize,
    /// The side of the squares of pixels that become one.
    pub downscale_factor: usize,
}

/// How the blocks of an adapter are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum T2IAdapterType {
    /// Of Stable Diffusion 1: half the resolution from level to level.
    FullAdapter,
    /// Of SDXL: half the resolution at the third level alone.
    FullAdapterXl,
    /// Narrow blocks, and one level more than `channels` has entries.
    LightAdapter,
}

impl Default for T2IAdapterConfig {
    fn default() -> Self {
        Self {
            adapter_type: T2IAdapterType::FullAdapter,
            in_channels: 3,
            channels: vec![320, 640, 1280, 1280],
            num_res_blocks: 2,
            downscale_factor: 8,
        }
    }
}

/// More channels than any network has.
const MAX_CHANNELS: usize = 1 << 16;
/// The pixels of a picture along each side of a latent.
const LATENT: usize = 8;

/// One level: its input's channels, its output's, and whether it halves the resolution.
type Level = (usize, usize, bool);

impl T2IAdapterConfig {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// When it is no valid JSON, or describes a network that cannot be.
    pub fn from_json(json: &[u8]) -> std::result::Result<Self, ConfigError> {
        let config: Self = ConfigError::read(Value::Object(ConfigError::read_fields(json, &[])?))?;
        let Self { in_channels, channels, num_res_blocks, downscale_factor, .. } = &config;
        ConfigError::unless(
            (1..=8).contains(&channels.len()) && channels.iter().all(|channels| (4..=MAX_CHANNELS).contains(channels)),
            || format!("channels must be 1 to 8 numbers from 4 to {MAX_CHANNELS}, not {channels:?}"),
        )?;
        ConfigError::unless([1, 3].contains(in_channels), || format!("in_channels must be 1 or 3, not {in_channels}"))?;
        ConfigError::unless((1..=16).contains(num_res_blocks), || format!("num_res_blocks must be 1 to 16, not {num_res_blocks}"))?;
        ConfigError::unless([8, 16].contains(downscale_factor), || format!("downscale_factor must be 8 or 16, not {downscale_factor}"))?;
        Ok(config)
    }

    fn levels(&self) -> Vec<Level> {
        let channels = &self.channels;
        let from = |i: usize| channels[i.saturating_sub(1)];
        match self.adapter_type {
            T2IAdapterType::FullAdapter => (0..channels.len()).map(|i| (from(i), channels[i], i > 0)).collect(),
            T2IAdapterType::FullAdapterXl => (0..channels.len()).map(|i| (from(i), channels[i], i == 2)).collect(),
            T2IAdapterType::LightAdapter => {
                let last = channels[channels.len() - 1];
                let pixels = self.in_channels * self.downscale_factor.pow(2);
                let first = (0..channels.len()).map(|i| (if i == 0 { pixels } else { from(i) }, channels[i], i > 0));
                first.chain(std::iter::once((last, last, true))).collect()
            }
        }
    }

    /// Whether the features can be added on the way down of this UNet, whose latents have an eighth of a picture's side.
    ///
    /// # Errors
    /// Says what differs.
    pub fn check_fits(&self, unet: &UNet2DConditionConfig) -> std::result::Result<(), String> {
        let (own, levels) = (self.levels(), &unet.block_out_channels);
        let fits = own.len() >= levels.len() && own.iter().zip(levels).all(|((_, own, _), channels)| own == channels);
        if !fits {
            return Err(format!("its levels have {:?} channels, the model's {levels:?}", self.channels));
        }
        let mut side = self.downscale_factor;
        for (level, (_, _, halves)) in own.iter().take(levels.len()).enumerate() {
            side *= if *halves { 2 } else { 1 };
            // Without attention, a level is added to after its resolution is halved.
            let is_halved = unet.down_depth(level, 0).is_none() && level + 1 < levels.len();
            let expected = LATENT << (level + usize::from(is_halved));
            if side != expected {
                return Err(format!(
                    "at level {level} a pixel of it stands for {side} of the picture, and one of the model for {expected}"
                ));
            }
        }
        Ok(())
    }
}

/// `T2IAdapter`.
#[derive(Debug, Clone)]
pub struct T2IAdapter {
    conv_in: Option<Conv2d>,
    blocks: Vec<Block>,
    config: T2IAdapterConfig,
}

impl T2IAdapter {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: T2IAdapterConfig, vb: &Weights) -> Result<Self> {
        let (vb, pixels) = (vb.pp("adapter"), config.in_channels * config.downscale_factor.pow(2));
        let is_light = config.adapter_type == T2IAdapterType::LightAdapter;
        let conv_in = (!is_light).then(|| Conv2d::new(pixels, config.channels[0], Conv2dConfig::SAME_3X3, &vb.pp("conv_in")));
        let levels = config.levels().into_iter().enumerate();
        let blocks = levels.map(|(i, level)| Block::new(&config, level, &vb.pp("body").pp(i)));
        Ok(Self { conv_in: conv_in.transpose()?, blocks: blocks.collect::<Result<_>>()?, config })
    }

    /// The configuration that it was built from.
    #[must_use]
    pub fn config(&self) -> &T2IAdapterConfig {
        &self.config
    }

    /// A picture `(1, 3, height, width)` in [0, 1] to what is added inside of the UNet in every step, not scaled.
    ///
    /// # Errors
    /// When its sides are no multiples of `downscale_factor`, the device fails, or the pass is interrupted.
    pub fn forward(&self, picture: &Tensor, interrupt: Interrupt) -> Result<Residuals> {
        let picture = if self.config.in_channels == 1 { grey(picture)? } else { picture.clone() };
        let mut x = pixel_unshuffle(&picture, self.config.downscale_factor)?;
        if let Some(conv_in) = &self.conv_in {
            x = conv_in.forward(&x)?;
        }
        let mut features = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            interrupt.check()?;
            x = block.forward(&x)?;
            features.push(x.clone());
        }
        Ok(Residuals::within(features))
    }
}

/// `AdapterBlock` and `LightAdapterBlock`.
#[derive(Debug, Clone)]
struct Block {
    halves: bool,
    in_conv: Option<Conv2d>,
    /// Two convolutions each, with an activation between them.
    resnets: Vec<[Conv2d; 2]>,
    out_conv: Option<Conv2d>,
}

impl Block {
    fn new(config: &T2IAdapterConfig, (from, to, halves): Level, vb: &Weights) -> Result<Self> {
        let is_light = config.adapter_type == T2IAdapterType::LightAdapter;
        let (width, second) = if is_light { (to / 4, Conv2dConfig::SAME_3X3) } else { (to, Conv2dConfig::POINTWISE) };
        let resnet = |i: usize| {
            let vb = vb.pp("resnets").pp(i);
            Ok([Conv2d::new(width, width, Conv2dConfig::SAME_3X3, &vb.pp("block1"))?, Conv2d::new(width, width, second, &vb.pp("block2"))?])
        };
        let pointwise = |from: usize, to: usize, name: &str| Conv2d::new(from, to, Conv2dConfig::POINTWISE, &vb.pp(name));
        Ok(Self {
            halves,
            in_conv: (is_light || from != to).then(|| pointwise(from, width, "in_conv")).transpose()?,
            resnets: (0..config.num_res_blocks).map(resnet).collect::<Result<_>>()?,
            out_conv: is_light.then(|| pointwise(width, to, "out_conv")).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = if self.halves { half_image(x)? } else { x.clone() };
        if let Some(in_conv) = &self.in_conv {
            x = in_conv.forward(&x)?;
        }
        for [block1, block2] in &self.resnets {
            x = block2.forward_add(&relu_image(&block1.forward(&x)?)?, Added { sample_bias: None, residual: Some(&x) })?;
        }
        self.out_conv.as_ref().map_or(Ok(x.clone()), |out_conv| out_conv.forward(&x))
    }
}

/// The brightness of a picture, `(1, 1, height, width)`, as Pillow's `convert("L")` has it.
fn grey(picture: &Tensor) -> Result<Tensor> {
    let weights = Tensor::new(&[0.299_f32, 0.587, 0.114], picture.device())?.reshape((1, 3, 1, 1))?.to_dtype(picture.dtype())?;
    picture.broadcast_mul(&weights)?.sum_keepdim(1)
}

/// `PixelUnshuffle`: squares of `side` x `side` pixels to one pixel each, `(batch, channels * side * side, height / side, width / side)`.
fn pixel_unshuffle(picture: &Tensor, side: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = picture.dims4()?;
    if !height.is_multiple_of(side) || !width.is_multiple_of(side) {
        candle_core::bail!("a picture of {width}x{height} has no squares of {side}x{side}");
    }
    let squares = picture.contiguous()?.reshape(&[batch, channels, height / side, side, width / side, side][..])?;
    squares.permute([0, 1, 3, 5, 2, 4])?.reshape((batch, channels * side * side, height / side, width / side))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_of_diffusers() {
        let read = |json: &str| T2IAdapterConfig::from_json(json.as_bytes()).unwrap();
        assert_eq!(read("{}").levels(), [(320, 320, false), (320, 640, true), (640, 1280, true), (1280, 1280, true)]);
        let xl = read(r#"{"adapter_type":"full_adapter_xl","downscale_factor":16}"#);
        assert_eq!(xl.levels(), [(320, 320, false), (320, 640, false), (640, 1280, true), (1280, 1280, false)]);
        let light = read(r#"{"adapter_type":"light_adapter","channels":[320,640,1280],"num_res_blocks":4}"#);
        assert_eq!(light.levels(), [(192, 320, false), (320, 640, true), (640, 1280, true), (1280, 1280, true)]);
        light.check_fits(&UNet2DConditionConfig::default()).unwrap();
        for (json, reason) in [
            (r#"{"channels":[]}"#, "1 to 8 numbers"),
            (r#"{"channels":[320,1000000000000]}"#, "1 to 8 numbers from 4 to 65536"),
            (r#"{"in_channels":2}"#, "in_channels must be 1 or 3, not 2"),
            (r#"{"downscale_factor":0}"#, "downscale_factor must be 8 or 16, not 0"),
            (r#"{"num_res_blocks":0}"#, "num_res_blocks must be 1 to 16"),
            (r#"{"adapter_type":"heavy_adapter"}"#, "unknown variant `heavy_adapter`"),
        ] {
            let error = T2IAdapterConfig::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }
}
