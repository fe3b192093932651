//! Pictures that a pipeline is asked for without a server.

use std::sync::Arc;

use image::RgbImage;
use sd_worker::{
    backend::{Diffusion, GenerationRequest, InferencePipeline, Interrupt, Order, ParsedPrompt, Pipeline},
    common::{ControlScale, ControlSettings, InputImage, InputImages, SamplingConfig},
};

/// What a test asks for, and may change before it does.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) prompt: String,
    pub(crate) negative_prompt: String,
    pub(crate) input: Option<InputImage>,
    pub(crate) controls: Vec<(ControlSettings, RgbImage)>,
    pub(crate) references: Vec<(ControlScale, RgbImage)>,
    pub(crate) config: SamplingConfig,
}

impl Asked {
    pub(crate) fn request(&self, pipeline: &InferencePipeline) -> GenerationRequest {
        let order = Order::of(&self.prompt, &self.negative_prompt, self.config, pipeline.info()).unwrap();
        let (settings, pictures) = self.controls.iter().cloned().unzip();
        let (scales, references): (Vec<ControlScale>, _) = self.references.iter().cloned().unzip();
        let images = InputImages { init: self.input.clone(), controls: pictures, references };
        let controls = pipeline.info().choose_controls(settings, self.config.size).unwrap();
        GenerationRequest::unheard(Order { controls: controls.into(), references: scales.into(), images: Arc::new(images), ..order })
    }

    pub(crate) fn begin(&self, pipeline: &Arc<InferencePipeline>) -> Diffusion {
        pipeline.begin(&self.request(pipeline), Interrupt::NEVER).unwrap()
    }
}

pub(crate) fn positive(text: &str) -> ParsedPrompt {
    ParsedPrompt::positive(text).unwrap()
}
