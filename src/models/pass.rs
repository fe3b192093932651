//! What a forward pass brings to every layer beside the tensor that the layer works on.

use std::fmt;

use candle_core::{Error, Result, Tensor};

use super::{image_prompt::ImageContext, text_context::TextContext};
use crate::ops::Adapters;

/// Tells a network that nobody waits for its result any more. Layers ask between two long operations.
#[derive(Clone, Copy)]
pub struct Interrupt<'a>(Option<&'a (dyn Fn() -> bool + Sync)>);

impl<'a> Interrupt<'a> {
    /// The work goes on to its end.
    pub const NEVER: Self = Self(None);

    /// Asks `is_unwanted` a thousand times a second or so: it must be cheap.
    #[must_use]
    pub fn when(is_unwanted: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self(Some(is_unwanted))
    }

    /// Whether nobody waits for the result any more.
    #[must_use]
    pub fn is_asked(self) -> bool {
        self.0.is_some_and(|is_unwanted| is_unwanted())
    }

    /// # Errors
    /// When nobody waits for the result any more.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_asked() { Err(Error::msg("interrupted")) } else { Ok(()) }
    }
}

impl fmt::Debug for Interrupt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Interrupt::when(…)" } else { "Interrupt::NEVER" })
    }
}

/// A forward pass, as its layers see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass<'a> {
    /// The time embedding after its activation, `(batch, time_embed_dim)`, or of fewer samples that stand for the batch as in
    /// [`for_batch`](crate::ops::for_batch). Only a UNet has one.
    pub(super) temb: Option<&'a Tensor>,
    /// What cross-attention looks at. Only a UNet has it.
    pub(super) text: Option<&'a TextContext>,
    /// What cross-attention looks at beside the text.
    pub(super) images: &'a ImageContext,
    /// Those of each request in the batch.
    pub(super) adapters: &'a Adapters,
    pub(super) interrupt: Interrupt<'a>,
}

impl<'a> Pass<'a> {
    /// A pass through a network that looks at nothing but its input: a VAE, or a text encoder without adapters.
    pub(super) fn of_input(interrupt: Interrupt<'a>) -> Self {
        Self { temb: None, text: None, images: ImageContext::NONE, adapters: Adapters::NONE, interrupt }
    }

    /// # Errors
    /// When nobody waits for the result any more.
    pub(super) fn check(&self) -> Result<()> {
        self.interrupt.check()
    }
}
