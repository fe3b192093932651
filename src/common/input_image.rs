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
}

/// How a mask marks the part to repaint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskMeaning {
    /// The part is transparent, as in `OpenAI`'s API.
    Transparent,
    /// The part is white, as in other tools.
    White,
}
