//! From the first drawing of a picture to the second, at another size.

use std::sync::Arc;

use tracing::debug_span;

use super::{Diffusion, initial_latents::Start};
use crate::{
    backend::{Enlarger, GenerationError, Order, Redraw, image_utils},
    models::Interrupt,
};

impl Diffusion {
    /// Enlarges what was drawn and begins to draw it again. The steps go on being counted.
    pub(super) fn draw_again(&mut self, redraw: &Redraw, interrupt: Interrupt) -> Result<(), GenerationError> {
        let order = Order { images: Arc::clone(&self.images), ..redraw.order.clone() };
        let size = order.config.size;
        let start = match &redraw.enlarger {
            Enlarger::Latents(filter) => {
                let scale = self.pipeline.networks.vae.config().scale_factor();
                Start::Latents(filter.resize(&self.latents, (size.height() as usize / scale, size.width() as usize / scale))?)
            }
            Enlarger::Pixels(upscale) => {
                let picture = self.picture(interrupt)?;
                let _span = debug_span!("upscale").entered();
                let picture = upscale.enlarge(&picture, interrupt)?;
                Start::Picture(image_utils::cut(&picture, picture.dimensions(), size))
            }
        };
        // Of the second drawing's own warnings, the first has had those of the prompt; what a model draws at a size follows the enlarged picture.
        let (total_steps, mut warnings) = (self.total_steps, std::mem::take(&mut self.warnings));
        warnings.extend(self.pipeline.info.redraw_warning(size));
        *self = Self { total_steps, warnings, ..self.pipeline.clone().begin_at(start, &order, interrupt)? };
        Ok(())
    }
}
