//! How a picture to begin with, and its mask, are brought to the size of the result. The words are A1111's.

/// How a picture to begin with is used. By default, as `OpenAI`'s API and diffusers use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fitting {
    /// What happens to a picture of other proportions.
    pub resize: Resize,
    /// What the mask means.
    pub mask: MaskRules,
}

/// What happens to a picture whose proportions are not those of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resize {
    /// What exceeds them is cut off evenly on both sides.
    #[default]
    Crop,
    /// It is stretched.
    Stretch,
    /// It is shown whole, and what it leaves is filled with its edges.
    Fill,
}

/// What a mask means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MaskRules {
    /// Whether the opaque part of a mask with transparency is repainted, and not the transparent one.
    pub opaque_is_new: bool,
    /// Whether the other part is repainted.
    pub is_inverted: bool,
    /// The standard deviation of its blur, in pixels.
    pub blur: u8,
    /// What is under the mask at the beginning.
    pub fill: MaskFill,
    /// Whether the part around the mask alone is drawn, at the size of the result, with so many pixels around it. The result has the size of
    /// the picture to begin with.
    pub margin: Option<u32>,
}

/// What is under the mask at the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaskFill {
    /// The picture.
    #[default]
    Original,
    /// The colours around the mask.
    Surroundings,
    /// Noise.
    Noise,
    /// Latents that are zero.
    Nothing,
}
