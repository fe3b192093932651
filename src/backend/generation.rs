//! What the engine asks of a pipeline, and of a picture under way.

use std::sync::Arc;

use image::RgbImage;

use super::{GenerationError, GenerationRequest, StepKind};
use crate::models::Interrupt;

/// Begins generations. Tests have a pipeline that draws nothing.
pub trait Pipeline: Send + Sync + 'static {
    /// A generation under way.
    type Generation: Generation;

    /// All that comes before the first step: encodes the prompt, draws the noise.
    ///
    /// # Errors
    /// When the model fails, or the pass is interrupted.
    fn begin(self: &Arc<Self>, request: &GenerationRequest, interrupt: Interrupt) -> Result<Self::Generation, GenerationError>;

    /// Name of the model, for the picture's metadata.
    fn model_id(&self) -> &str;

    /// Pixels of all samples of one step, for a picture of the model's own size with guidance: the engine's measure of a pass.
    fn picture_work(&self) -> u64;
}

/// One picture under way. The engine moves it forward: it asks the network for a prediction, for one picture or for several, and passes the
/// prediction to each. Only [`update`](Generation::update) changes a generation, so a pass that failed for several can be repeated one by
/// one.
pub trait Generation {
    /// What the network makes of the conditions of some generations, for as long as they step together.
    type Context;

    /// The network's prediction for one generation.
    type Output;

    /// The kind of the next step. Generations whose next steps are of one kind go through the network together. Must not panic.
    fn kind(&self) -> StepKind;

    /// The kinds of all steps to come, as far as they can be foreseen. Must not panic.
    fn kinds_to_come(&self) -> Vec<StepKind>;

    /// Number of steps: evaluations of the network.
    fn total_steps(&self) -> usize;

    /// The context of the next step of these generations, and of the steps after it, as long as they are of the same size and number of
    /// samples.
    ///
    /// # Errors
    /// When the steps are of different kinds, or the model fails.
    fn join(generations: &[&Self]) -> Result<Self::Context, GenerationError>;

    /// The predictions for these generations, from one pass, given their [`join`](Self::join)ed context. The prediction for one does not
    /// depend on the others.
    ///
    /// # Errors
    /// When the model fails, or the pass is interrupted.
    fn predict(generations: &[&Self], context: &Self::Context, interrupt: Interrupt) -> Result<Vec<Self::Output>, GenerationError>;

    /// Denoises once, by a prediction. Called `total_steps` times.
    ///
    /// # Errors
    /// When the model fails.
    fn update(&mut self, output: Self::Output) -> Result<(), GenerationError>;

    /// What comes between two steps and takes longer than they do: once it is there, a picture may be enlarged and drawn again.
    ///
    /// # Errors
    /// When the model or an upscaler fails, or the work is interrupted.
    fn prepare(&mut self, interrupt: Interrupt) -> Result<(), GenerationError>;

    /// One step of this generation alone.
    ///
    /// # Errors
    /// When the model fails.
    fn step(&mut self) -> Result<(), GenerationError> {
        let outputs = Self::predict(&[self], &Self::join(&[self])?, Interrupt::NEVER)?;
        outputs.into_iter().try_for_each(|output| self.update(output))?;
        self.prepare(Interrupt::NEVER)
    }

    /// A rough picture of the current latents, cheap next to a step.
    ///
    /// # Errors
    /// When the model fails, or the pass is interrupted.
    fn preview(&self, interrupt: Interrupt) -> Result<RgbImage, GenerationError>;

    /// The picture, after the last step.
    ///
    /// # Errors
    /// When the model fails, the pass is interrupted, or the picture is black or not a picture.
    fn finish(self, interrupt: Interrupt) -> Result<RgbImage, GenerationError>;

    /// What the client should know, such as that a prompt was cut.
    fn warnings(&self) -> Vec<String>;
}
