//! The pictures of a request: one to begin with, and others to look at.

use image::{GrayImage, RgbImage};
use serde::Serialize;

/// The pictures of a request. Those to begin with and those of control networks have the size of the result.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct InputImages {
    /// The picture to begin with, if the generation does not begin with noise alone.
    pub init: Option<InputImage>,
    /// Those that control networks look at, in the order of the request.
    pub controls: Vec<RgbImage>,
    /// Those that the denoiser looks at beside the text, in the order of the request: squares of the size that the image encoder takes.
    pub references: Vec<RgbImage>,
}

/// A picture to begin with.
#[derive(Debug, Clone, PartialEq)]
pub struct InputImage {
    /// The picture.
    pub image: RgbImage,
    /// The part to repaint; without a mask, everything.
    pub mask: Option<Mask>,
}

/// A part of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// 255 where the picture is repainted, 0 where it is kept.
    pub pixels: GrayImage,
    /// How the mask marked the part.
    pub meaning: MaskMeaning,
    /// What is under it at the beginning, if not the picture.
    pub latents: Option<MaskLatents>,
    /// What the finished picture is laid into, if not the picture to begin with, pixel by pixel.
    pub canvas: Option<Canvas>,
}

impl Mask {
    /// A mask with the picture under it at the beginning.
    #[must_use]
    pub fn new(pixels: GrayImage, meaning: MaskMeaning) -> Self {
        Self { pixels, meaning, latents: None, canvas: None }
    }
}

/// Latents under a mask at the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaskLatents {
    /// Those that the noise is drawn from.
    Noise,
    /// Zeros.
    Zeros,
}

/// A picture that a finished one becomes a part of.
#[derive(Debug, Clone, PartialEq)]
pub struct Canvas {
    /// The picture.
    pub picture: RgbImage,
    /// How much of it the finished picture replaces, 0 to 255, of the same size.
    pub mask: GrayImage,
    /// Where the finished picture lies in it, and its size there.
    pub part: Part,
}

/// A part of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// From the left.
    pub x: u32,
    /// From above.
    pub y: u32,
    /// At least 1.
    pub width: u32,
    /// At least 1.
    pub height: u32,
}

/// How a mask marks the part to repaint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskMeaning {
    /// The part is transparent, as in `OpenAI`'s API.
    Transparent,
    /// The part is white, as in other tools.
    White,
    /// The part is opaque, as in A1111's API.
    Opaque,
}
