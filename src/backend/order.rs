//! What is asked of a model, checked against it. Every way in, the server's and the command line's, makes its orders here.

mod redraw;

use std::sync::Arc;

use image::RgbImage;
pub use redraw::{Enlarger, Redraw};

use super::{AdapterLibrary, ChosenAdapter, ChosenControl, ChosenUpscale, Demand, ModelDefaults, ModelInfo, ParsedPrompt};
use crate::common::{
    ControlScale, ControlSettings, Decoder, GuidanceScale, ImageSize, InputImage, InputImages, InvalidValue, NamedLora, NamedSampler,
    NamedSchedule, NegativePrompt, OutputConfig, RedrawSettings, SamplingConfig, SamplingOptions, Schedule, Seed, Steps, UpscaleScale,
    UpscaleSettings,
};

/// The settings of a request, which may leave most of them out.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the pictures show.
    pub prompt: ParsedPrompt,
    /// What they do not show.
    pub negative_prompt: Option<NegativePrompt>,
    /// The size of the pictures.
    pub size: ImageSize,
    /// Denoising steps.
    pub steps: Option<Steps>,
    /// Steps where they are left out, if not the model's own.
    pub default_steps: Option<Steps>,
    /// How strongly the pictures follow the prompt.
    pub guidance_scale: Option<GuidanceScale>,
    /// The same where it is left out, if not the model's own.
    pub default_guidance_scale: Option<GuidanceScale>,
    /// Seed of the first picture.
    pub seed: Option<Seed>,
    /// The solver.
    pub sampler: Option<NamedSampler>,
    /// How noise levels are spaced.
    pub schedule: Option<NamedSchedule>,
    /// What few requests ask for.
    pub options: SamplingOptions,
    /// The input picture, if there is one.
    pub input: Option<InputKind>,
    /// The control networks, each with a picture of its own.
    pub controls: Vec<ControlSettings>,
    /// How strongly each picture counts that the denoiser looks at beside the text.
    pub references: Vec<ControlScale>,
    /// What turns latents into pictures.
    pub decoder: Decoder,
    /// How the pictures are enlarged, if they are, and whether they are drawn again after that.
    pub upscale: Option<UpscaleSettings>,
    /// How the pictures are written. `enlarged_to` follows from the size.
    pub output: OutputConfig,
}

/// What is known of an input picture before it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputKind {
    /// Whether a mask marks a part of it.
    pub has_mask: bool,
}

/// The adapters of an order.
#[derive(Debug, Default)]
pub struct OrderAdapters {
    /// All of them, each once.
    pub chosen: Vec<ChosenAdapter>,
    /// Those that the prompt does not name.
    pub listed: Vec<NamedLora>,
    /// What of them has no effect.
    pub warnings: Vec<String>,
}

/// One picture, or several that differ in their seed alone.
#[derive(Debug, Clone)]
pub struct Order {
    /// What the picture shows.
    pub prompt: ParsedPrompt,
    /// What it does not show.
    pub negative_prompt: ParsedPrompt,
    /// What changes the model for it.
    pub adapters: Arc<OrderAdapters>,
    /// The control networks that guide it.
    pub controls: Arc<[ChosenControl]>,
    /// How strongly each picture counts that the denoiser looks at beside the text.
    pub references: Arc<[ControlScale]>,
    /// The pictures that it begins with and that networks look at.
    pub images: Arc<InputImages>,
    /// How it is sampled.
    pub config: SamplingConfig,
    /// What turns its latents into pixels.
    pub decoder: Decoder,
    /// How the finished picture is enlarged, if it is.
    pub upscale: Option<ChosenUpscale>,
    /// How the picture is enlarged and drawn again, if it is.
    pub redraw: Option<Arc<Redraw>>,
    /// How it is written.
    pub output: OutputConfig,
    /// The work on it. The pictures of one order share it.
    pub demand: Arc<Demand>,
}

impl OrderAdapters {
    /// The adapters that the prompt names, and those that a request lists. Reads the files that no request had before. Where the worker has no
    /// adapters at all, those of a prompt are left out, with a warning for each: prompts are passed around with the names in them.
    ///
    /// # Errors
    /// As [`AdapterLibrary::choose`], and when a request lists one and the worker has none.
    pub fn choose(library: Option<&AdapterLibrary>, prompt: &ParsedPrompt, listed: Vec<NamedLora>) -> Result<Self, InvalidValue> {
        const NONE: &str = "this worker was started without --loras DIR";
        let Some(library) = library else {
            if let Some(first) = listed.first() {
                return Err(InvalidValue::new("loras", format_args!("\"{}\"", first.name), format!("left out: {NONE}")));
            }
            let left_out = prompt.loras().iter().map(|lora| format!("LoRA \"{}\" was left out: {NONE}", lora.name));
            return Ok(Self { warnings: left_out.collect(), ..Self::default() });
        };
        let chosen = library.choose(prompt.loras(), &listed)?;
        let warnings = chosen.iter().flat_map(ChosenAdapter::warnings).collect();
        Ok(Self { chosen, listed, warnings })
    }

    /// The memory that they take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let listed: usize = self.listed.iter().map(|lora| size_of_val(lora) + lora.name.len()).sum();
        size_of_val(&*self.chosen) + listed + self.warnings.iter().map(String::len).sum::<usize>()
    }

    /// Fills in what the settings leave out with what an adapter for few steps was made for, and says so.
    fn fill_in(&mut self, settings: &mut Settings) {
        let Some((name, few)) = self.chosen.iter().find_map(|adapter| Some((adapter.name(), adapter.few_steps()?))) else { return };
        let mut filled = Vec::new();
        if settings.sampler.is_none() {
            filled.push(format!("sampler {}", few.sampler.name()));
            settings.sampler = Some(few.sampler.into());
            if settings.schedule.is_none() && few.schedule != Schedule::Default {
                filled.push(format!("schedule {}", few.schedule.name()));
                settings.schedule = Some(NamedSchedule::Named(few.schedule));
            }
        }
        if let (None, Some(steps)) = (settings.steps, few.steps) {
            filled.push(format!("{steps} steps"));
            settings.default_steps = Some(steps);
        }
        if let (None, Some(scale)) = (settings.guidance_scale, few.guidance_scale) {
            filled.push(format!("guidance_scale {scale}"));
            settings.default_guidance_scale = Some(scale);
        }
        if !filled.is_empty() {
            self.warnings.push(format!("LoRA \"{name}\" is for few steps: {} in place of the model's own", filled.join(", ")));
        }
    }
}

impl Order {
    /// Fills in what the settings leave out, and checks them against the model before anything is spent. Also returns the names, in the
    /// API's words, of settings that have no effect.
    ///
    /// # Errors
    /// Names the setting that the model cannot follow.
    pub fn new(mut settings: Settings, mut adapters: OrderAdapters, info: &ModelInfo) -> Result<(Self, Vec<&'static str>), InvalidValue> {
        let (asked, given, has_input) = (settings.size, settings.options, settings.input.is_some());
        info.check_size(asked)?;
        settings.default_steps = info.requests.steps.or(settings.default_steps);
        settings.default_guidance_scale = info.requests.guidance_scale.or(settings.default_guidance_scale);
        adapters.fill_in(&mut settings);
        let (sampler, schedule) = info.sampler(settings.sampler, settings.schedule)?;
        let usual = settings.default_guidance_scale.unwrap_or(info.defaults.guidance_scale);
        let edit = settings.input.map(|input| (given.strength, input.has_mask));
        let (steps, strength) = info.steps(sampler, settings.steps, settings.default_steps.unwrap_or(info.defaults.steps), edit);
        let config = SamplingConfig {
            // What is drawn after a picture has its proportions.
            size: info.drawing_size(asked, has_input || !settings.controls.is_empty()),
            steps,
            guidance_scale: settings.guidance_scale.unwrap_or_else(|| usual.times(sampler.usual_guidance_factor())),
            seed: settings.seed.unwrap_or_else(Seed::random),
            sampler,
            schedule,
            options: SamplingOptions { clip_skip: given.clip_skip.filter(|_| info.has_clip_skip()), strength, ..given },
        };
        let asks_for_negative = settings.negative_prompt.as_ref().is_some_and(|prompt| !prompt.as_str().is_empty());
        let negative_prompt = settings.negative_prompt.or_else(|| info.requests.negative_prompt.clone()).unwrap_or_default();
        let controls = info.choose_controls(settings.controls, config.size)?;
        info.check_references(&settings.references)?;
        info.check_decoder(settings.decoder)?;
        let (upscale, redraw) = match settings.upscale {
            Some(UpscaleSettings { redraw: Some(_), .. }) if settings.input.is_some_and(|input| input.has_mask) => {
                return Err(InvalidValue::new(
                    "upscale",
                    "a strength with a mask",
                    "without a strength: what a mask keeps is not drawn again",
                ));
            }
            Some(UpscaleSettings { name, scale, redraw: Some(redraw) }) => (None, Some((name, scale, redraw))),
            Some(upscale) => (Some(info.upscalers.choose_named(&upscale, (asked.width(), asked.height()))?), None),
            None => (None, None),
        };
        let order = Self::of_parsed(settings.prompt, negative_prompt.as_str(), config, controls, info)?;
        let without_effect = [
            ("clip_skip", given.clip_skip.is_some() && !info.has_clip_skip()),
            ("negative_prompt", !order.demand.is_guided() && asks_for_negative),
            ("strength", given.strength.is_some() && !has_input),
            ("cache", given.cache.is_some_and(|cache| !cache.may_skip_any(order.demand.steps()))),
        ];
        let without_effect = without_effect.into_iter().filter(|(_, is_without)| *is_without).map(|(name, _)| name);
        let without_effect = without_effect.chain(config.options_without_effect(order.demand.is_guided())).collect();
        let output = OutputConfig { enlarged_to: Some(asked).filter(|asked| *asked != config.size), ..settings.output };
        let (adapters, references, decoder) = (Arc::new(adapters), settings.references.into(), settings.decoder);
        let order = Self { adapters, references, decoder, upscale, output, ..order };
        let order = match redraw {
            Some((name, scale, settings)) => order.drawn_again(&name, scale, &settings, info)?,
            None => order,
        };
        Ok((order, without_effect))
    }

    /// The same order for pictures that are drawn again, enlarged.
    fn drawn_again(
        self,
        enlarger: &str,
        scale: Option<UpscaleScale>,
        settings: &RedrawSettings,
        info: &ModelInfo,
    ) -> Result<Self, InvalidValue> {
        let redraw = Redraw::new(&self, enlarger, scale, settings, info)?;
        let demand = Demand { again: Some(Arc::clone(&redraw.order.demand)), ..(*self.demand).clone() };
        Ok(Self { redraw: Some(Arc::new(redraw)), demand: Arc::new(demand), ..self })
    }

    /// An order to enlarge a picture of the client's. It has no steps, and nothing of it but `images`, `upscale` and `output` has a meaning.
    #[must_use]
    pub fn upscaling(picture: RgbImage, upscale: ChosenUpscale, output: OutputConfig, info: &ModelInfo) -> Self {
        let ModelDefaults { size, steps, guidance_scale, sampler, schedule, .. } = info.defaults;
        let config = SamplingConfig { size, steps, guidance_scale, seed: 0.into(), sampler, schedule, options: SamplingOptions::default() };
        let init = Some(InputImage { image: picture, mask: None });
        Self {
            prompt: ParsedPrompt::negative(""),
            negative_prompt: ParsedPrompt::negative(""),
            adapters: Arc::default(),
            controls: Arc::default(),
            references: Arc::default(),
            images: Arc::new(InputImages { init, ..InputImages::default() }),
            config,
            decoder: Decoder::default(),
            upscale: Some(upscale),
            redraw: None,
            output,
            demand: Arc::new(Demand::without_steps(size)),
        }
    }

    /// Whether a picture is drawn; otherwise, one of the client's is enlarged.
    #[must_use]
    pub fn is_drawn(&self) -> bool {
        self.demand.steps() > 0
    }

    /// The order of a request that leaves out everything.
    ///
    /// # Errors
    /// Names the default that the model cannot follow.
    pub fn bare(info: &ModelInfo) -> Result<Self, InvalidValue> {
        info.requests.check()?;
        let settings = Settings {
            prompt: ParsedPrompt::positive("")?,
            negative_prompt: None,
            size: info.default_size(None),
            steps: None,
            default_steps: None,
            guidance_scale: None,
            default_guidance_scale: None,
            seed: None,
            sampler: None,
            schedule: None,
            options: SamplingOptions::default(),
            input: None,
            controls: Vec::new(),
            references: Vec::new(),
            upscale: None,
            decoder: Decoder::default(),
            output: OutputConfig::default(),
        };
        Self::new(settings, OrderAdapters::default(), info).map(|(order, _)| order)
    }

    /// An order whose settings are all known: a PNG file from noise alone, without adapters.
    ///
    /// # Errors
    /// Names the setting that the model cannot follow.
    pub fn of(prompt: &str, negative_prompt: &str, config: SamplingConfig, info: &ModelInfo) -> Result<Self, InvalidValue> {
        Self::of_parsed(ParsedPrompt::positive(prompt)?, negative_prompt, config, Vec::new(), info)
    }

    fn of_parsed(
        prompt: ParsedPrompt,
        negative_prompt: &str,
        config: SamplingConfig,
        controls: Vec<ChosenControl>,
        info: &ModelInfo,
    ) -> Result<Self, InvalidValue> {
        let plan = info.plan(&config)?;
        // Several parts lead away from the negative prompt side by side, whatever the scale.
        let is_guided = info.is_guided(config.guidance_scale, config.sampler);
        let part_weights = Some(prompt.part_weights()).filter(|parts| is_guided || parts.len() > 1);
        let demand = Demand {
            plan,
            part_weights: part_weights.unwrap_or_default(),
            guidance_interval: config.options.guidance_interval.filter(|interval| !interval.is_all()),
            size: config.size,
            controls: controls.iter().filter(|control| control.works_in_every_step()).map(|control| control.settings.window).collect(),
            again: None,
        };
        Ok(Self {
            prompt,
            negative_prompt: ParsedPrompt::negative(negative_prompt),
            adapters: Arc::default(),
            controls: controls.into(),
            references: Arc::default(),
            images: Arc::default(),
            config,
            decoder: Decoder::default(),
            upscale: None,
            redraw: None,
            output: OutputConfig::default(),
            demand: Arc::new(demand),
        })
    }

    /// The size of the pictures before they are upscaled.
    #[must_use]
    pub fn size(&self) -> ImageSize {
        self.output.size(self.config.size)
    }

    /// Width and height of the finished pictures.
    #[must_use]
    pub fn finished_size(&self) -> (u32, u32) {
        let size = self.redraw.as_ref().map_or(self.size(), |redraw| redraw.order.config.size);
        self.upscale.as_ref().map_or((size.width(), size.height()), |upscale| upscale.size)
    }

    /// The memory that it takes without its pictures, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let controls = size_of_val(&*self.controls) + self.controls.iter().map(|control| control.settings.name.len()).sum::<usize>();
        // What both drawings share counts twice.
        let redraw = self.redraw.as_ref().map_or(0, |redraw| size_of_val(&**redraw) + redraw.order.bytes());
        self.prompt.bytes() + self.negative_prompt.bytes() + self.adapters.bytes() + controls + self.demand.bytes() + redraw
    }

    /// The order of the `index`th of its pictures, counted from 0.
    #[must_use]
    pub fn picture(&self, index: u32) -> Self {
        let config = SamplingConfig { seed: self.config.seed.offset(index.into()), ..self.config };
        let redraw = self.redraw.as_ref().map(|redraw| Arc::new(redraw.picture(index)));
        Self { config, redraw, ..self.clone() }
    }

    /// Whether both are pictures of one order.
    #[must_use]
    pub fn is_of_same_order(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.demand, &other.demand)
    }
}

#[cfg(test)]
impl Order {
    /// An order for a picture of 64 x 64 in `steps` steps, without guidance.
    pub(crate) fn plain(prompt: &str, steps: i64) -> Self {
        use crate::common::{Sampler, Schedule};

        let size = ImageSize::new(64, 64).unwrap();
        let config = SamplingConfig {
            size,
            steps: steps.try_into().unwrap(),
            guidance_scale: 1.0.try_into().unwrap(),
            seed: 0.into(),
            sampler: Sampler::Euler,
            schedule: Schedule::Default,
            options: SamplingOptions::default(),
        };
        Self {
            prompt: ParsedPrompt::positive(prompt).unwrap(),
            negative_prompt: ParsedPrompt::negative(""),
            adapters: Arc::default(),
            controls: Arc::default(),
            references: Arc::default(),
            images: Arc::default(),
            config,
            decoder: Decoder::default(),
            upscale: None,
            redraw: None,
            output: OutputConfig::default(),
            demand: Arc::new(Demand::plain(size, steps, false)),
        }
    }
}
