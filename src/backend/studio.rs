//! What the engine drives: a pipeline that draws pictures, and enlarges those that clients bring.

use std::sync::Arc;

use image::RgbImage;

use super::{
    ChosenUpscale, Diffusion, Generation, GenerationError, GenerationRequest, InferencePipeline, Order, Pipeline, Prediction, StepKind,
};
use crate::{
    common::{InputImages, InvalidValue},
    models::{DenoiserContext, Interrupt},
};

/// A loaded model, and the worker's upscalers.
#[derive(Debug)]
pub struct Studio {
    pipeline: Arc<InferencePipeline>,
}

/// A picture under way.
#[derive(Debug)]
pub enum Work {
    /// One that is drawn.
    Diffusion(Box<Diffusion>),
    /// One of the client's, which takes no steps.
    Upscaling {
        /// The picture to begin with.
        images: Arc<InputImages>,
        /// How it is enlarged.
        upscale: ChosenUpscale,
        /// That of a step, though there is none.
        kind: StepKind,
    },
}

impl Studio {
    /// The studio of a pipeline.
    #[must_use]
    pub fn new(pipeline: Arc<InferencePipeline>) -> Self {
        Self { pipeline }
    }
}

impl Pipeline for Studio {
    type Generation = Work;

    fn begin(self: &Arc<Self>, request: &GenerationRequest, interrupt: Interrupt) -> Result<Work, GenerationError> {
        let Order { images, upscale, demand, .. } = &request.order;
        match upscale {
            Some(upscale) if !request.order.is_drawn() => {
                Ok(Work::Upscaling { images: Arc::clone(images), upscale: upscale.clone(), kind: demand.kind(0) })
            }
            _ => Ok(Work::Diffusion(Box::new(self.pipeline.begin(request, interrupt)?))),
        }
    }

    fn model_id(&self) -> &str {
        self.pipeline.model_id()
    }

    fn picture_work(&self) -> u64 {
        self.pipeline.picture_work()
    }
}

impl Work {
    /// Those that are drawn, which alone take steps.
    fn drawn<'a>(generations: &[&'a Self]) -> Vec<&'a Diffusion> {
        let drawn = generations.iter().filter_map(|work| if let Self::Diffusion(diffusion) = work { Some(&**diffusion) } else { None });
        drawn.collect()
    }
}

impl Generation for Work {
    type Context = DenoiserContext;
    type Output = Prediction;

    fn kind(&self) -> StepKind {
        match self {
            Self::Diffusion(diffusion) => diffusion.kind(),
            Self::Upscaling { kind, .. } => *kind,
        }
    }

    fn kinds_to_come(&self) -> Vec<StepKind> {
        if let Self::Diffusion(diffusion) = self { diffusion.kinds_to_come() } else { Vec::new() }
    }

    fn total_steps(&self) -> usize {
        if let Self::Diffusion(diffusion) = self { diffusion.total_steps() } else { 0 }
    }

    fn join(generations: &[&Self]) -> Result<DenoiserContext, GenerationError> {
        Diffusion::join(&Self::drawn(generations))
    }

    fn predict(generations: &[&Self], context: &DenoiserContext, interrupt: Interrupt) -> Result<Vec<Prediction>, GenerationError> {
        Diffusion::predict(&Self::drawn(generations), context, interrupt)
    }

    fn update(&mut self, output: Prediction) -> Result<(), GenerationError> {
        if let Self::Diffusion(diffusion) = self { diffusion.update(output) } else { Ok(()) }
    }

    fn prepare(&mut self, interrupt: Interrupt) -> Result<(), GenerationError> {
        if let Self::Diffusion(diffusion) = self { diffusion.prepare(interrupt) } else { Ok(()) }
    }

    fn preview(&self, interrupt: Interrupt) -> Result<RgbImage, GenerationError> {
        match self {
            Self::Diffusion(diffusion) => diffusion.preview(interrupt),
            Self::Upscaling { images, .. } => Ok(picture(images)?.clone()),
        }
    }

    fn finish(self, interrupt: Interrupt) -> Result<RgbImage, GenerationError> {
        match self {
            Self::Diffusion(diffusion) => diffusion.finish(interrupt),
            Self::Upscaling { images, upscale, .. } => upscale.enlarge(picture(&images)?, interrupt),
        }
    }

    fn warnings(&self) -> Vec<String> {
        if let Self::Diffusion(diffusion) = self { diffusion.warnings() } else { Vec::new() }
    }
}

/// The picture to enlarge.
fn picture(images: &InputImages) -> Result<&RgbImage, InvalidValue> {
    let missing = || InvalidValue::new("image", "none", "a picture to enlarge");
    images.init.as_ref().map(|init| &init.image).ok_or_else(missing)
}
