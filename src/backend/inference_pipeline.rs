//! Stable Diffusion, stage by stage. After diffusers' `pipeline_stable_diffusion.py`.

mod initial_latents;

use std::{collections::VecDeque, sync::Arc};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use initial_latents::{InitialLatents, KeptLatents};
use tracing::{debug_span, warn};

use super::{
    EncodedPrompts, Generation, GenerationError, GenerationRequest, LatentPreview, ModelInfo, Pipeline, PromptEncoder, PromptText, WideVae,
    image_utils,
};
use crate::{
    common::{
        GuidanceInterval, GuidanceRescale, ImageSize, InputImage, Prompt, RequestId, SamplingConfig, SamplingOptions, Schedule, Seed,
        Steps, TorchRng,
    },
    models::{AutoencoderKl, Conditions, Interrupt, UNet2DConditionModel, UNetContext},
    schedulers::{SamplingPlan, Stage, Term},
};

/// The networks that pictures go through.
#[derive(Debug)]
pub struct Networks {
    /// Noisy latents to less noisy ones.
    pub unet: UNet2DConditionModel,
    /// Latents to pixels.
    pub vae: AutoencoderKl,
    /// The same in f32, where the other has less room for its numbers.
    pub wide_vae: Option<WideVae>,
}

/// A loaded model. Nothing in it changes after loading but the prompts that are kept, so every generation shares it.
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
    plan: SamplingPlan,
    guidance_scale: f64,
    guidance_rescale: Option<GuidanceRescale>,
    /// The steps with guidance, if not all.
    guidance_interval: Option<GuidanceInterval>,
    /// How strongly each part of the prompt guides; none without guidance.
    part_weights: Vec<f64>,
    /// `(1, tokens, hidden)`, or with guidance `(1 + parts, tokens, hidden)`, the negative prompt's first.
    text_embeddings: Tensor,
    /// What the UNet makes of them, and of what else it is told.
    context: UNetContext,
    /// The same of the prompt alone, for steps without guidance.
    unguided: Option<UNetContext>,
    /// `(1, channels, height / 8, width / 8)` in f32, whatever the networks' type, at the sampler's own scale.
    latents: Tensor,
    /// The same before a mask was laid over them.
    unmasked: Tensor,
    /// What a mask keeps of the picture that it began with, if the UNet does not see to that.
    kept: Option<KeptLatents>,
    /// What an inpainting model's UNet looks at beside the latents.
    condition: Option<Tensor>,
    /// What the finished picture is laid under, at the size that it is enlarged to, if a mask keeps a part of it.
    input: Option<Arc<InputImage>>,
    enlarged_to: Option<ImageSize>,
    /// The latest stages, the newest first.
    past: VecDeque<Moment>,
    rng: TorchRng,
    steps_done: usize,
    warnings: Vec<String>,
}

/// What there was in a stage, each `(1, channels, height / 8, width / 8)`, for later ones to look back at.
#[derive(Debug)]
struct Moment {
    sample: Tensor,
    output: Tensor,
    denoised: Tensor,
}

impl Pipeline for InferencePipeline {
    type Generation = Diffusion;
    /// The size, how many samples there are to a picture, and who must be alone: the samples of some are not as many in every step.
    type Shape = (ImageSize, usize, Option<RequestId>);

    fn shape(&self, request: &GenerationRequest) -> Self::Shape {
        let parts = PromptText::Positive(request.prompt.as_str()).parts();
        // What guides side by side leads away from the negative prompt, whatever the scale.
        let is_guided = self.info.is_guided(request.config.guidance_scale) || parts > 1;
        let alone = request.config.options.guidance_interval.filter(|interval| !interval.is_all() && is_guided);
        (request.config.size, parts + usize::from(is_guided), alone.map(|_| request.request_id.clone()))
    }

    fn begin(self: &Arc<Self>, request: &GenerationRequest, interrupt: Interrupt) -> Result<Diffusion, GenerationError> {
        // 1. Check inputs, whose types leave only what this model decides, and prepare timesteps.
        let config = request.config;
        let plan = self.info.plan(&config)?;

        // 2. Encode the prompt, for both sides of guidance.
        let span = debug_span!("text_encode").entered();
        let options = config.options;
        let prompts = [PromptText::Negative(request.negative_prompt.as_str()), PromptText::Positive(request.prompt.as_str())];
        let is_guided = self.shape(request).1 > 1;
        let prompts = if is_guided { &prompts[..] } else { &prompts[1..] };
        let encoded = self.prompt_encoder.encode(prompts, options.clip_skip.filter(|_| self.info.has_clip_skip()), interrupt)?;
        let part_weights = if is_guided { encoded.weights[1..].to_vec() } else { Vec::new() };
        let conditions = Conditions {
            text: &encoded.embeddings,
            pooled: encoded.pooled.as_ref(),
            size: (config.size.height() as usize, config.size.width() as usize),
            guidance_scale: config.guidance_scale.get(),
        };
        let context = self.networks.unet.context(&conditions)?;
        let guidance_interval = options.guidance_interval.filter(|interval| !interval.is_all());
        // At scale 1, one whole prompt leads where it would alone.
        let is_alone = guidance_interval.is_some() && part_weights == [1.0];
        let unguided = is_alone.then(|| {
            let of_prompt = |x: &Tensor| x.narrow(0, 1, 1);
            let (text, pooled) = (of_prompt(&encoded.embeddings)?, encoded.pooled.as_ref().map(of_prompt).transpose()?);
            self.networks.unet.context(&Conditions { text: &text, pooled: pooled.as_ref(), ..conditions })
        });
        let unguided = unguided.transpose()?;
        let EncodedPrompts { embeddings: text_embeddings, mut warnings, .. } = encoded;
        let enlarged_to = request.output.enlarged_to;
        warnings.extend(self.info.size_warning(config.size, enlarged_to));
        drop(span);

        // 3. Prepare latents.
        let mut rng = TorchRng::new(config.seed);
        let InitialLatents { latents, kept, condition } = self.initial_latents(request, &plan, &mut rng, interrupt)?;

        let pipeline = Arc::clone(self);
        // Where the network knows the scale, parts of a prompt are still weighed against each other.
        let guidance_scale = if self.info.embeds_guidance { 1.0 } else { config.guidance_scale.get() };
        Ok(Diffusion {
            pipeline,
            plan,
            guidance_scale,
            guidance_rescale: options.guidance_rescale,
            guidance_interval,
            part_weights,
            text_embeddings,
            context,
            unguided,
            unmasked: latents.clone(),
            latents,
            kept,
            condition,
            input: request.input.clone(),
            enlarged_to,
            past: VecDeque::new(),
            rng,
            steps_done: 0,
            warnings,
        })
    }

    fn model_id(&self) -> &str {
        &self.info.id
    }
}

impl Generation for Diffusion {
    type Context = UNetContext;
    /// For each sample, `(samples, channels, height / 8, width / 8)` in f32.
    type Output = Tensor;

    fn total_steps(&self) -> usize {
        self.plan.stages.len()
    }

    fn join(generations: &[&Self]) -> Result<UNetContext, GenerationError> {
        let contexts: Vec<&UNetContext> = generations.iter().map(|generation| &generation.context).collect();
        Ok(UNetContext::join(&contexts)?)
    }

    // 4. Denoise: what the network says of all,
    fn predict(generations: &[&Self], context: &UNetContext, interrupt: Interrupt) -> Result<Vec<Tensor>, GenerationError> {
        let Some(pipeline) = generations.first().map(|first| &first.pipeline) else { return Ok(Vec::new()) };
        let inputs = generations.iter().map(|generation| generation.model_input()).collect::<Result<Vec<_>, _>>()?;
        let context = match generations {
            [alone] if !alone.is_guided() => alone.unguided.as_ref().unwrap_or(context),
            _ => context,
        };
        let timesteps: Vec<f64> = generations.iter().map(|generation| generation.stage().timestep).collect();
        let output = pipeline.networks.unet.forward(&Tensor::cat(&inputs, 0)?, &timesteps, context, interrupt)?;
        Ok(output.to_dtype(DType::F32)?.chunk(generations.len(), 0)?)
    }

    // and what follows from it for each.
    fn update(&mut self, output: Tensor) -> Result<(), GenerationError> {
        let stage = self.stage().clone();
        let output = self.guide(output)?;
        self.unmasked = self.next_latents(&stage, output)?;
        self.steps_done += 1;
        let next_level = self.plan.stages.get(self.steps_done).map(|stage| stage.level);
        self.latents = match &self.kept {
            Some(kept) => kept.lay_over(&self.unmasked, next_level)?,
            None => self.unmasked.clone(),
        };
        Ok(())
    }

    fn preview(&self) -> Result<RgbImage, GenerationError> {
        let picture = self.past.front().map_or(&self.latents, |moment| &moment.denoised);
        let picture = self.kept.as_ref().map_or_else(|| Ok(picture.clone()), |kept| kept.lay_over(picture, None))?;
        Ok(self.pipeline.preview.render(&picture)?)
    }

    // 5. Decode.
    fn finish(self, interrupt: Interrupt) -> Result<RgbImage, GenerationError> {
        let _span = debug_span!("vae_decode").entered();
        let mut picture = self.pipeline.decode(&self.latents, interrupt)?;
        if let Some(size) = self.enlarged_to {
            // A picture to begin with has been cut to the proportions; where there is none, all that was drawn is kept.
            let whole = if self.input.is_some() { picture } else { image_utils::extend(&picture, size) };
            picture = image_utils::cut(&whole, whole.dimensions(), size);
        }
        // What is kept is kept to the pixel: latents do not hold every detail.
        if let Some(InputImage { image, mask: Some(mask) }) = self.input.as_deref() {
            image_utils::lay_over(&mut picture, image, mask);
        }
        Ok(picture)
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }
}

impl Diffusion {
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

    /// The next one.
    fn stage(&self) -> &Stage {
        &self.plan.stages[self.steps_done]
    }

    /// What the network looks at, `(1, in_channels, height / 8, width / 8)`.
    fn model_input(&self) -> Result<Tensor, GenerationError> {
        let mut input = (&self.latents * self.stage().input_scale)?;
        if let Some(condition) = &self.condition {
            input = Tensor::cat(&[&input, condition], 1)?;
        }
        Ok(input.to_dtype(self.pipeline.dtype)?)
    }

    /// Whether the next step is one with guidance, if any is.
    fn is_guided(&self) -> bool {
        self.guidance_interval.is_none_or(|interval| interval.contains(self.steps_done, self.total_steps()))
    }

    /// Classifier-free guidance: of an output for each sample, f32, one.
    fn guide(&self, output: Tensor) -> Result<Tensor, GenerationError> {
        if self.part_weights.is_empty() || output.dim(0)? == 1 {
            return Ok(output);
        }
        let guidance_scale = if self.is_guided() { self.guidance_scale } else { 1.0 };
        let negative = output.narrow(0, 0, 1)?;
        let mut direction = negative.zeros_like()?;
        for (i, weight) in self.part_weights.iter().enumerate() {
            direction = (direction + ((output.narrow(0, 1 + i, 1)? - &negative)? * *weight)?)?;
        }
        let guided = (&negative + (&direction * guidance_scale)?)?;
        Ok(match self.guidance_rescale {
            Some(share) => rescale_noise_cfg(&guided, &(negative + direction)?, share)?,
            None => guided,
        })
    }

    /// Where the plan moves the latents.
    fn next_latents(&mut self, stage: &Stage, output: Tensor) -> Result<Tensor, GenerationError> {
        let mut denoised = ((&self.latents * stage.denoised.sample)? + (&output * stage.denoised.output)?)?;
        if let Some(clip) = stage.denoised.clip {
            denoised = denoised.clamp(-clip, clip)?;
        }
        self.past.push_front(Moment { sample: self.latents.clone(), output, denoised });
        self.past.truncate(self.plan.history() + 1);

        let mut next = self.latents.zeros_like()?;
        for (term, weight) in &stage.update {
            let value = match *term {
                Term::Sample(age) => self.past[age].sample.clone(),
                Term::Output(age) => self.past[age].output.clone(),
                Term::Denoised(age) => self.past[age].denoised.clone(),
                Term::Unmasked => self.unmasked.clone(),
                Term::Noise => self.pipeline.randn(&mut self.rng, self.latents.dims4()?)?,
            };
            next = (next + (value * *weight)?)?;
        }
        Ok(next)
    }
}

/// Gives what guidance made of the output back some of the standard deviation that it had without. As diffusers'
/// `rescale_noise_cfg`.
fn rescale_noise_cfg(guided: &Tensor, positive: &Tensor, share: GuidanceRescale) -> Result<Tensor, GenerationError> {
    // All of it on the device: a number that came back to the host would be waited for in every step.
    let deviation = |x: &Tensor| x.flatten_all()?.var(0)?.sqrt();
    let factor = (deviation(positive)? / deviation(guided)?)?;
    // Two constant outputs have no deviation, and what comes of them is not finite.
    let factor = factor.le(f32::MAX)?.where_cond(&factor, &factor.ones_like()?)?;
    Ok(guided.broadcast_mul(&factor.affine(share.get(), 1.0 - share.get())?)?)
}

impl InferencePipeline {
    /// Puts the parts of a model together. [`load`](super::load) makes them.
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

    /// What the world may know of the model.
    #[must_use]
    pub fn info(&self) -> &Arc<ModelInfo> {
        &self.info
    }

    /// Prompts to embeddings.
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
    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the networks work.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The picture of latents in f32.
    fn decode(&self, latents: &Tensor, interrupt: Interrupt) -> Result<RgbImage, GenerationError> {
        let Networks { vae, wide_vae, .. } = &self.networks;
        let decoded = image_utils::to_rgb(&vae.decode(&latents.to_dtype(self.dtype)?, interrupt)?);
        match (decoded, wide_vae) {
            (Err(GenerationError::NotANumber | GenerationError::AllBlack | GenerationError::OneColor(_)), Some(wide)) => {
                warn!("the picture is decoded again in f32: its numbers overflowed in {}", self.info.dtype);
                image_utils::to_rgb(&wide.get()?.decode(latents, interrupt)?)
            }
            (decoded, _) => decoded,
        }
    }

    /// Makes a picture as small and as short as can be, to find out whether the model works on this device.
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
        let request = GenerationRequest::unheard(Prompt::try_from("a".to_owned())?, config);
        let mut generation = self.begin(&request, Interrupt::NEVER)?;
        generation.step()?;
        generation.finish(Interrupt::NEVER).map(drop)
    }
}
