//! What the engine asks of a pipeline, and of a picture under way.

use std::sync::Arc;

use image::RgbImage;

use super::{GenerationError, GenerationRequest};
use crate::models::Interrupt;

/// What the engine needs of a pipeline: to begin a generation. Tests have one that makes no pictures.
pub trait Pipeline: Send + Sync + 'static {
    /// A generation under way.
    type Generation: Generation;

    /// What generations have in common that can go through the network together.
    type Shape: PartialEq;

    /// The shape of a request's generation. Asked while others run, so it must be cheap.
    fn shape(&self, request: &GenerationRequest) -> Self::Shape;

    /// Does what comes before the first step: encodes the prompt, draws the noise.
    ///
    /// # Errors
    /// When the request asks for what the model cannot do, or the model fails.
    fn begin(self: &Arc<Self>, request: &GenerationRequest, interrupt: Interrupt) -> Result<Self::Generation, GenerationError>;

    /// Name of the model, for the picture's metadata.
    fn model_id(&self) -> &str;
}

/// One picture under way. Its owner moves it forward: asks the network about it, alone or with others of its shape, and tells it the
/// answer. Only the answer changes it, so that what went wrong for several can be asked again one by one.
pub trait Generation {
    /// What the network looks at in every step of the same generations.
    type Context;

    /// What the network says of one.
    type Output;

    /// Steps in all: evaluations of the network.
    fn total_steps(&self) -> usize;

    /// What the network looks at in every step of these generations.
    ///
    /// # Errors
    /// When they are not of one shape, or the model fails.
    fn join(generations: &[&Self]) -> Result<Self::Context, GenerationError>;

    /// What the network says of each of these generations, in one pass, given what [`join`](Self::join) made of the same. What it says
    /// of one does not depend on the others.
    ///
    /// # Errors
    /// When the model fails.
    fn predict(generations: &[&Self], context: &Self::Context, interrupt: Interrupt) -> Result<Vec<Self::Output>, GenerationError>;

    /// Denoises once, by what the network said. Called `total_steps` times.
    ///
    /// # Errors
    /// When the model fails.
    fn update(&mut self, output: Self::Output) -> Result<(), GenerationError>;

    /// A whole step, alone.
    ///
    /// # Errors
    /// When the model fails.
    fn step(&mut self) -> Result<(), GenerationError> {
        let outputs = Self::predict(&[self], &Self::join(&[self])?, Interrupt::NEVER)?;
        outputs.into_iter().try_for_each(|output| self.update(output))
    }

    /// A rough picture of the current state, cheap next to a step.
    ///
    /// # Errors
    /// When the model fails.
    fn preview(&self) -> Result<RgbImage, GenerationError>;

    /// The picture, after the last step.
    ///
    /// # Errors
    /// When the model fails, or the picture is black or not a picture.
    fn finish(self, interrupt: Interrupt) -> Result<RgbImage, GenerationError>;

    /// What the client should know, such as a prompt that was cut.
    fn warnings(&self) -> Vec<String>;
}
