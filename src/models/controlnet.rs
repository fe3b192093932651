//! `ControlNet`: a copy of a UNet's first half that looks at a picture, and whose outputs are added to those of the UNet itself
//! ([Zhang et al.](https://arxiv.org/abs/2302.05543)). After diffusers' `controlnet.py`.

mod config;
mod union;

use candle_core::{Result, Tensor};
pub use config::ControlNetConfig;
use union::Union;
pub use union::{Hint, UnionConfig};

use super::{
    conditions::Conditions,
    pass::Interrupt,
    residuals::Residuals,
    unet::{Encoded, Encoder, UNetContext},
};
use crate::ops::{Conv2d, Conv2dConfig, Weights, silu_image};

/// `ControlNetModel`.
#[derive(Debug, Clone)]
pub struct ControlNetModel {
    encoder: Encoder,
    hint: ConditioningEmbedding,
    /// After each layer on the way down, 1 x 1.
    down_outputs: Vec<Conv2d>,
    mid_output: Conv2d,
    /// In networks that know several kinds of pictures.
    union: Option<Union>,
    config: ControlNetConfig,
}

impl ControlNetModel {
    /// Reads the weights.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: ControlNetConfig, vb: &Weights) -> Result<Self> {
        let pointwise = |channels: usize, vb: &Weights| Conv2d::new(channels, channels, Conv2dConfig::POINTWISE, vb);
        let outputs = config.skip_channels().into_iter().enumerate();
        let outputs = outputs.map(|(i, channels)| pointwise(channels, &vb.pp("controlnet_down_blocks").pp(i)));
        let unet = &config.unet;
        let coarsest = unet.block_out_channels[unet.block_out_channels.len() - 1];
        Ok(Self {
            encoder: Encoder::new(unet, vb)?,
            hint: ConditioningEmbedding::new(&config, &vb.pp("controlnet_cond_embedding"))?,
            down_outputs: outputs.collect::<Result<_>>()?,
            mid_output: pointwise(coarsest, &vb.pp("controlnet_mid_block"))?,
            union: config.union.map(|union| Union::new(union, unet, vb)).transpose()?,
            config,
        })
    }

    /// The configuration that it was built from.
    #[must_use]
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// What the network makes of the conditions of one generation, once for all steps. Adapters of the denoiser and pictures that the denoiser
    /// looks at are not for it.
    ///
    /// # Errors
    /// When a tensor has another width, the pooled text is missing, or the device fails.
    pub fn context(&self, conditions: &Conditions) -> Result<UNetContext> {
        self.encoder.context(&Conditions { images: &[], adapters: None, ..*conditions }, std::iter::empty())
    }

    /// A picture `(1, 3, height, width)` in [0, 1] to what is added to the first layer, `(1, channels, height / 8, width / 8)`, once for all
    /// steps.
    ///
    /// # Errors
    /// When the device fails, or the pass is interrupted.
    pub fn embed(&self, picture: &Tensor, interrupt: Interrupt) -> Result<Tensor> {
        let picture = if self.config.is_bgr() { picture.flip(&[1])? } else { picture.clone() };
        self.hint.forward(&picture, interrupt)
    }

    /// Noisy latents `(samples, in_channels, height, width)` of one generation, with its pictures, to what is added inside of the UNet. A
    /// network that knows several kinds may have several pictures, and scales those; else the result is not scaled. The latents may be of one
    /// sample for several of the text, as in [`UNet2DConditionModel::forward_keeping`](super::UNet2DConditionModel::forward_keeping).
    ///
    /// # Errors
    /// When a shape does not fit, the device fails, or the pass is interrupted.
    pub fn forward(
        &self,
        latents: &Tensor,
        timestep: f64,
        hints: &[Hint],
        context: &UNetContext,
        interrupt: Interrupt,
    ) -> Result<Residuals> {
        let of_kinds: UNetContext;
        let context = match &self.union {
            Some(union) => {
                of_kinds = context.with_added(&union.embed_kinds(hints)?)?;
                &of_kinds
            }
            None => context,
        };
        let temb = self.encoder.time_embedding(latents, &[timestep], context)?;
        let pass = &context.pass(&temb, interrupt);
        let hint = match (&self.union, hints) {
            (Some(union), _) => union.join(hints)?,
            (None, [only]) => only.embedding.clone(),
            (None, _) => candle_core::bail!("a ControlNet of one kind sees one picture, not {}", hints.len()),
        };
        let Encoded { middle, skips } = self.encoder.forward(latents, Some(&hint), Residuals::NONE, pass)?;
        let mut outputs = self.down_outputs.iter().zip(&skips).map(|(conv, skip)| conv.forward(skip)).collect::<Result<Vec<_>>>()?;
        outputs.push(self.mid_output.forward(&middle)?);
        let residuals = Residuals::after(outputs);
        if self.config.pools() { residuals.pooled() } else { Ok(residuals) }
    }
}

/// `ControlNetConditioningEmbedding`: a picture to the resolution of latents.
#[derive(Debug, Clone)]
struct ConditioningEmbedding {
    /// With an activation after each but the last.
    convs: Vec<Conv2d>,
}

impl ConditioningEmbedding {
    fn new(config: &ControlNetConfig, vb: &Weights) -> Result<Self> {
        const HALVING: Conv2dConfig = Conv2dConfig { kernel: 3, stride: 2, padding: 1 };
        let channels = &config.conditioning_embedding_out_channels;
        let mut convs = vec![Conv2d::new(config.conditioning_channels, channels[0], Conv2dConfig::SAME_3X3, &vb.pp("conv_in"))?];
        for (i, [from, to]) in channels.array_windows().enumerate() {
            let vb = vb.pp("blocks");
            convs.push(Conv2d::new(*from, *from, Conv2dConfig::SAME_3X3, &vb.pp(2 * i))?);
            convs.push(Conv2d::new(*from, *to, HALVING, &vb.pp(2 * i + 1))?);
        }
        let (last, finest) = (channels[channels.len() - 1], config.unet.block_out_channels[0]);
        convs.push(Conv2d::new(last, finest, Conv2dConfig::SAME_3X3, &vb.pp("conv_out"))?);
        Ok(Self { convs })
    }

    fn forward(&self, picture: &Tensor, interrupt: Interrupt) -> Result<Tensor> {
        let mut x = picture.clone();
        for (i, conv) in self.convs.iter().enumerate() {
            interrupt.check()?;
            x = conv.forward(&x)?;
            if i + 1 < self.convs.len() {
                x = silu_image(&x)?;
            }
        }
        Ok(x)
    }
}
