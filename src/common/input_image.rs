//! What a generation begins with, where it is not noise alone.

use image::{GrayImage, RgbImage};
use serde::Serialize;

/// A picture to begin with, as large as the one that comes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct InputImage {
    /// The picture.
    pub image: RgbImage,
    /// What of it is painted anew; without one, all of it.
    pub mask: Option<Mask>,
}

/// A part of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// 255 where the picture is painted anew, 0 where it is kept.
    pub pixels: GrayImage,
    /// How the mask said so.
    pub meaning: MaskMeaning,
}

/// What of a mask stands for the part to be painted anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskMeaning {
    /// Where it is transparent, as in `OpenAI`'s API.
    Transparent,
    /// Where it is white, as in other tools.
    White,
}
