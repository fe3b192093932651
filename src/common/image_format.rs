//! How a finished picture is written.

use serde::{Deserialize, Serialize};

use super::ImageSize;

/// File formats of the answer, named as in the `OpenAI` Images API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Lossless, carries the parameters of the generation.
    #[default]
    Png,
    /// Small, lossy.
    Jpeg,
    /// Lossless here: `output_compression` has no effect on it.
    Webp,
}

/// What is made of the pictures on their way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputConfig {
    /// File format of the picture and of its previews.
    pub format: ImageFormat,
    /// JPEG quality, 0 to 100.
    pub quality: u8,
    /// How many previews are sent on the way, evenly spaced over the steps.
    pub previews: u8,
    /// What the picture is enlarged to, if it is not left at the size at which it is drawn.
    pub enlarged_to: Option<ImageSize>,
}

impl OutputConfig {
    /// The size of a picture that is drawn at this one.
    #[must_use]
    pub fn size(&self, drawn: ImageSize) -> ImageSize {
        self.enlarged_to.unwrap_or(drawn)
    }
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self { format: ImageFormat::Png, quality: 90, previews: 0, enlarged_to: None }
    }
}
