//! Stable Diffusion, stage by stage. After diffusers' `pipeline_stable_diffusion.py`.

mod conditioning;
mod initial_latents;
mod kept_features;
mod prediction;
mod redrawing;

use std::{collections::VecDeque, sync::Arc};

use candle_core::{DType, Device, Tensor};
use conditioning::Conditioning;
use image::RgbImage;
use initial_latents::{InitialLatents, KeptLatents, Start};
use kept_features::KeptFeatures;
pub use prediction::Prediction;
use tracing::{debug_span, warn};

use super::{
    ChosenUpscale, Demand, Generation, GenerationError, GenerationRequest, LatentPreview, ModelInfo, Order, Pipeline, PromptEncoder,
    Redraw, StepKind, WideVae, controls::ActiveControl, image_utils,
};
use crate::{
    common::{
        Decoder, GuidanceRescale, ImageSize, InputImage, InputImages, SamplingConfig, SamplingOptions, Schedule, Seed, Steps, TorchRng,
    },
    models::{AutoencoderKl, AutoencoderTiny, Denoiser, DenoiserContext, Interrupt, Residuals},
    schedulers::{Stage, Term},
};

/// The networks that draw.
#[derive(Debug)]
pub struct Networks {
    /// Noisy latents to a prediction of their noise.
    pub denoiser: Denoiser,
    /// Latents to pixels, and back.
    pub vae: AutoencoderKl,
    /// The same VAE in f32, for models that work in 16 bits, where its numbers may overflow.
    pub wide_vae: Option<WideVae>,
    /// Latents to rough pixels, for previews and for requests that ask for it.
    pub tiny_vae: Option<AutoencoderTiny>,
}

/// A loaded model. Every generation shares it. Nothing in it changes after loading but the cache of prompts.
#[derive(Debug)]
pub struct InferencePipeline {
    info: Arc<ModelInfo>,
    prompt_encoder: PromptEncoder,
    networks: Networks,
    preview: LatentPreview,
    device: Device,
    dtype: DType,
}

/// One picture under way: everything that changes from step to step.
#[derive(Debug)]
pub struct Diffusion {
    pipeline: Arc<InferencePipeline>,
    demand: Arc<Demand>,
    guidance_scale: f64,
    guidance_rescale: Option<GuidanceRescale>,
    /// `(1, tokens, hidden)`, or with guidance `(1 + parts, tokens, hidden)`, the negative prompt's first.
    text_embeddings: Tensor,
    /// What the denoiser makes of them and of the other conditions.
    context: DenoiserContext,
    /// The same of the prompt alone, if there are steps outside of the guidance interval.
    unguided: Option<DenoiserContext>,
    /// `(1, channels, height / 8, width / 8)` in f32, whatever the networks' type, at the sampler's own scale.
    latents: Tensor,
    /// The same before a mask was laid over them.
    unmasked: Tensor,
    /// The part of the input picture that a mask keeps, if the denoiser does not look at the mask.
    kept: Option<KeptLatents>,
    /// What the denoiser of an inpainting model looks at beside the latents.
    condition: Option<Tensor>,
    controls: Vec<ActiveControl>,
    /// The pictures of the request. The part of the first one that a mask keeps is laid over the finished picture.
    images: Arc<InputImages>,
    decoder: Decoder,
    enlarged_to: Option<ImageSize>,
    upscale: Option<ChosenUpscale>,
    /// How the picture is drawn again after the last step, if it is.
    redraw: Option<Arc<Redraw>>,
    /// The features that later steps reuse, if the request asks for it.
    kept_features: Option<KeptFeatures>,
    /// The latest stages, the newest first.
    past: VecDeque<Moment>,
    rng: TorchRng,
    steps_done: usize,
    /// With those of the picture that is drawn again, or is.
    total_steps: usize,
    warnings: Vec<String>,
}

/// The tensors of a stage that later stages look back at, each `(1, channels, height / 8, width / 8)`.
#[derive(Debug)]
struct Moment {
    sample: Tensor,
    output: Tensor,
    denoised: Tensor,
}

impl Pipeline for InferencePipeline {
    type Generation = Diffusion;

    fn begin(self: &Arc<Self>, request: &GenerationRequest, interrupt: Interrupt) -> Result<Diffusion, GenerationError> {
        self.begin_at(Start::Order, &request.order, interrupt)
    }

    fn model_id(&self) -> &str {
        &self.info.id
    }

    fn picture_work(&self) -> u64 {
        StepKind { size: self.info.defaults.size, samples: 2, is_shallow: false }.work()
    }
}

impl Generation for Diffusion {
    type Context = DenoiserContext;
    type Output = Prediction;

    fn kind(&self) -> StepKind {
        let is_shallow = self.kept_features.as_ref().is_some_and(KeptFeatures::next_is_shallow);
        StepKind { is_shallow, ..self.demand.kind(self.steps_done) }
    }

    fn kinds_to_come(&self) -> Vec<StepKind> {
        let again = self.demand.again.iter().flat_map(|again| (0..again.steps()).map(|step| again.kind(step)));
        self.expected_kinds().into_iter().chain(again).collect()
    }

    fn total_steps(&self) -> usize {
        self.total_steps
    }

    fn join(generations: &[&Self]) -> Result<DenoiserContext, GenerationError> {
        let contexts: Vec<&DenoiserContext> = generations.iter().map(|generation| generation.current_context()).collect();
        Ok(DenoiserContext::join(&contexts)?)
    }

    // 4. Denoise: one pass for all,
    fn predict(generations: &[&Self], context: &DenoiserContext, interrupt: Interrupt) -> Result<Vec<Prediction>, GenerationError> {
        Self::predictions(generations, context, interrupt)
    }

    // and a step for each.
    fn update(&mut self, Prediction { output, features }: Prediction) -> Result<(), GenerationError> {
        let stage = self.stage().clone();
        self.keep(features)?;
        let unguided = if self.demand.is_guided() { output.narrow(0, 0, 1)? } else { output.clone() };
        let output = self.guide(output)?;
        self.unmasked = self.next_latents(&stage, output, &unguided)?;
        self.steps_done += 1;
        let next_level = self.demand.plan.stages.get(self.steps_done).map(|stage| stage.level);
        self.latents = match &self.kept {
            Some(kept) => kept.lay_over(&self.unmasked, next_level)?,
            None => self.unmasked.clone(),
        };
        self.note_next()
    }

    fn prepare(&mut self, interrupt: Interrupt) -> Result<(), GenerationError> {
        match self.redraw.take_if(|_| self.steps_done == self.demand.steps()) {
            Some(redraw) => self.draw_again(&redraw, interrupt),
            None => Ok(()),
        }
    }

    fn preview(&self, interrupt: Interrupt) -> Result<RgbImage, GenerationError> {
        let picture = self.past.front().map_or(&self.latents, |moment| &moment.denoised);
        let picture = self.kept.as_ref().map_or_else(|| Ok(picture.clone()), |kept| kept.lay_over(picture, None))?;
        match &self.pipeline.networks.tiny_vae {
            Some(vae) => image_utils::to_rough_rgb(&vae.decode(&picture.to_dtype(self.pipeline.dtype)?, interrupt)?),
            None => Ok(self.pipeline.preview.render(&picture)?),
        }
    }

    // 5. Decode.
    fn finish(self, interrupt: Interrupt) -> Result<RgbImage, GenerationError> {
        let picture = self.picture(interrupt)?;

        // 6. Upscale.
        let Some(upscale) = &self.upscale else { return Ok(picture) };
        let _span = debug_span!("upscale").entered();
        upscale.enlarge(&picture, interrupt)
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }
}

impl Diffusion {
    /// The picture of the latents, before it is upscaled.
    fn picture(&self, interrupt: Interrupt) -> Result<RgbImage, GenerationError> {
        let _span = debug_span!("vae_decode").entered();
        let mut picture = self.pipeline.decode(&self.latents, self.decoder, interrupt)?;
        if let Some(size) = self.enlarged_to {
            // An input picture was cut to the proportions of the size; without one, nothing that was drawn is cut off.
            let follows_picture = self.images.init.is_some() || !self.images.controls.is_empty();
            let whole = if follows_picture { picture } else { image_utils::extend(&picture, size) };
            picture = image_utils::cut(&whole, whole.dimensions(), size);
        }
        // Latents lose detail: the part that a mask keeps is copied pixel by pixel.
        if let Some(InputImage { image, mask: Some(mask) }) = &self.images.init {
            match &mask.canvas {
                Some(canvas) => picture = image_utils::lay_into(&picture, canvas),
                None => image_utils::lay_over(&mut picture, image, mask),
            }
        }
        Ok(picture)
    }

    /// The latents as they are now, `(1, channels, height / 8, width / 8)` in f32.
    #[must_use]
    pub fn latents(&self) -> &Tensor {
        &self.latents
    }

    /// Embeddings of the prompt, and before it of the negative prompt if there is guidance.
    #[must_use]
    pub fn text_embeddings(&self) -> &Tensor {
        &self.text_embeddings
    }

    /// The stage of the next step.
    fn stage(&self) -> &Stage {
        &self.demand.plan.stages[self.steps_done]
    }

    /// The context of the next step.
    fn current_context(&self) -> &DenoiserContext {
        let is_in_interval = self.demand.is_in_interval(self.steps_done);
        self.unguided.as_ref().filter(|_| !is_in_interval).unwrap_or(&self.context)
    }

    /// The denoiser's input, `(1, in_channels, height / 8, width / 8)`.
    fn model_input(&self) -> Result<Tensor, GenerationError> {
        let mut input = self.scaled_latents()?;
        if let Some(condition) = &self.condition {
            input = Tensor::cat(&[&input, &condition.to_dtype(self.pipeline.dtype)?], 1)?;
        }
        Ok(input)
    }

    /// The latents at the scale of networks, `(1, channels, height / 8, width / 8)`.
    fn scaled_latents(&self) -> Result<Tensor, GenerationError> {
        Ok((&self.latents * self.stage().input_scale)?.to_dtype(self.pipeline.dtype)?)
    }

    /// What the control networks add inside of the denoiser in the next step.
    fn residuals(&self, interrupt: Interrupt) -> Result<Residuals, GenerationError> {
        let latents = self.scaled_latents()?;
        let each = self.controls.iter().map(|control| control.residuals(self.steps_done, &self.demand, &latents, interrupt));
        each.into_iter().try_fold(Residuals::default(), |sum, residuals| Ok(sum.plus(residuals?)?))
    }

    /// Classifier-free guidance ([Ho & Salimans](https://arxiv.org/abs/2207.12598)): the predictions for all samples, f32, to one. Parts of
    /// a prompt guide side by side ([Liu et al.](https://arxiv.org/abs/2206.01714)).
    fn guide(&self, output: Tensor) -> Result<Tensor, GenerationError> {
        if !self.demand.is_guided() || output.dim(0)? == 1 {
            return Ok(output);
        }
        let guidance_scale = if self.demand.is_in_interval(self.steps_done) { self.guidance_scale } else { 1.0 };
        let negative = output.narrow(0, 0, 1)?;
        let mut direction = negative.zeros_like()?;
        for (i, weight) in self.demand.part_weights.iter().enumerate() {
            direction = (direction + ((output.narrow(0, 1 + i, 1)? - &negative)? * *weight)?)?;
        }
        let guided = (&negative + (&direction * guidance_scale)?)?;
        Ok(match self.guidance_rescale {
            Some(share) => rescale_noise_cfg(&guided, &(negative + direction)?, share)?,
            None => guided,
        })
    }

    /// The latents after this stage, by the plan. `unguided` is the network's output for the negative prompt.
    fn next_latents(&mut self, stage: &Stage, output: Tensor, unguided: &Tensor) -> Result<Tensor, GenerationError> {
        let mut denoised = ((&self.latents * stage.denoised.sample)? + (&output * stage.denoised.output)?)?;
        if let Some(clip) = stage.denoised.clip {
            denoised = denoised.clamp(-clip, clip)?;
        }
        self.past.push_front(Moment { sample: self.latents.clone(), output, denoised });
        self.past.truncate(self.demand.plan.history() + 1);

        let mut next = self.latents.zeros_like()?;
        for (term, weight) in &stage.update {
            let value = match *term {
                Term::Sample(age) => self.past[age].sample.clone(),
                Term::Output(age) => self.past[age].output.clone(),
                Term::Denoised(age) => self.past[age].denoised.clone(),
                Term::Unguided => unguided.clone(),
                Term::Unmasked => self.unmasked.clone(),
                Term::Noise => self.pipeline.randn(&mut self.rng, self.latents.dims4()?)?,
            };
            next = (next + (value * *weight)?)?;
        }
        Ok(next)
    }
}

/// Restores a share of the standard deviation that the prediction had without guidance: diffusers' `rescale_noise_cfg`.
fn rescale_noise_cfg(guided: &Tensor, positive: &Tensor, share: GuidanceRescale) -> Result<Tensor, GenerationError> {
    // All of it on the device: a number that goes to the host stalls every step.
    let deviation = |x: &Tensor| x.flatten_all()?.var(0)?.sqrt();
    let factor = (deviation(positive)? / deviation(guided)?)?;
    // The deviation of a constant is 0, and the quotient of two of them not finite.
    let factor = factor.le(f32::MAX)?.where_cond(&factor, &factor.ones_like()?)?;
    Ok(guided.broadcast_mul(&factor.affine(share.get(), 1.0 - share.get())?)?)
}

impl InferencePipeline {
    /// A pipeline of the parts that [`load`](super::load) makes.
    #[must_use]
    pub fn new(
        info: ModelInfo,
        prompt_encoder: PromptEncoder,
        networks: Networks,
        preview: LatentPreview,
        device: Device,
        dtype: DType,
    ) -> Self {
        Self { info: Arc::new(info), prompt_encoder, networks, preview, device, dtype }
    }

    /// The model's name, limits and defaults.
    #[must_use]
    pub fn info(&self) -> &Arc<ModelInfo> {
        &self.info
    }

    /// The text encoders.
    #[must_use]
    pub fn prompt_encoder(&self) -> &PromptEncoder {
        &self.prompt_encoder
    }

    /// The networks, for benches that time them one by one.
    #[must_use]
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// The type that the networks work in.
    #[cfg(feature = "builtin-model")]
    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the networks work.
    #[cfg(feature = "builtin-model")]
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// All that comes before the first step.
    fn begin_at(self: &Arc<Self>, start: Start, order: &Order, interrupt: Interrupt) -> Result<Diffusion, GenerationError> {
        // 1. Inputs were checked, and timesteps prepared, when the order was made.
        let Order { config, demand, .. } = order;

        // 2. Encode the prompt.
        let span = debug_span!("text_encode").entered();
        let Conditioning { text_embeddings, context, unguided, controls, warnings } = self.conditioning(order, interrupt)?;
        drop(span);

        // 3. Prepare latents.
        let mut rng = TorchRng::new(config.seed);
        let InitialLatents { latents, kept, condition } = self.initial_latents(start, order, &mut rng, interrupt)?;

        Ok(Diffusion {
            pipeline: Arc::clone(self),
            demand: Arc::clone(demand),
            // A distilled network looks at the scale itself. Parts of a prompt are still weighed against each other.
            guidance_scale: if self.info.embeds_guidance { 1.0 } else { config.guidance_scale.get() * config.sampler.guidance_factor() },
            guidance_rescale: config.options.guidance_rescale,
            text_embeddings,
            context,
            unguided,
            unmasked: latents.clone(),
            latents,
            kept,
            condition,
            controls,
            images: Arc::clone(&order.images),
            decoder: order.decoder,
            enlarged_to: order.output.enlarged_to,
            upscale: order.upscale.clone(),
            redraw: order.redraw.clone(),
            kept_features: config.options.cache.map(KeptFeatures::new),
            past: VecDeque::new(),
            rng,
            steps_done: 0,
            total_steps: demand.all_steps(),
            warnings,
        })
    }

    /// The picture of latents in f32.
    fn decode(&self, latents: &Tensor, decoder: Decoder, interrupt: Interrupt) -> Result<RgbImage, GenerationError> {
        let Networks { vae, wide_vae, tiny_vae, .. } = &self.networks;
        let narrow = latents.to_dtype(self.dtype)?;
        if let (Decoder::Tiny, Some(vae)) = (decoder, tiny_vae) {
            return image_utils::to_rgb(&vae.decode(&narrow, interrupt)?);
        }
        let decoded = image_utils::to_rgb(&vae.decode(&narrow, interrupt)?);
        match (decoded, wide_vae) {
            (Err(GenerationError::NotANumber | GenerationError::AllBlack | GenerationError::OneColor(_)), Some(wide)) => {
                warn!("the picture is decoded again in f32: its numbers overflowed in {}", self.info.dtype);
                image_utils::to_rgb(&wide.get()?.decode(latents, interrupt)?)
            }
            (decoded, _) => decoded,
        }
    }

    /// Draws the smallest picture in one step, to find out whether the model works on this device.
    ///
    /// # Errors
    /// When it does not.
    pub fn self_test(self: &Arc<Self>) -> Result<(), GenerationError> {
        let side = ImageSize::MIN_SIDE.next_multiple_of(self.info.size_multiple);
        let config = SamplingConfig {
            size: ImageSize::new(side, side)?,
            steps: Steps::try_from(1)?,
            guidance_scale: self.info.defaults.guidance_scale,
            seed: Seed::from(0),
            sampler: self.info.defaults.sampler,
            schedule: Schedule::Default,
            options: SamplingOptions::default(),
        };
        let request = GenerationRequest::unheard(Order::of("a", "", config, &self.info)?);
        let mut generation = self.begin(&request, Interrupt::NEVER)?;
        generation.step()?;
        if self.networks.tiny_vae.is_some() {
            self.decode(&generation.latents, Decoder::Tiny, Interrupt::NEVER)?;
        }
        generation.finish(Interrupt::NEVER).map(drop)
    }
}
