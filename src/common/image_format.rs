//! The output of a generation.

use serde::{Deserialize, Serialize};

use super::ImageSize;

/// File formats of the answer, named as in the `OpenAI` Images API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Lossless.
    #[default]
    Png,
    /// Small, lossy.
    Jpeg,
    /// Smaller still, lossy.
    Webp,
}

/// How a picture and its previews are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputConfig {
    /// File format of the picture and of its previews.
    pub format: ImageFormat,
    /// Quality of a JPEG or a WebP, 0 to 100.
    pub quality: u8,
    /// The number of previews, evenly spaced over the steps.
    pub previews: u8,
    /// The size to enlarge the picture to, if it differs from the size of drawing.
    pub enlarged_to: Option<ImageSize>,
}

impl OutputConfig {
    /// The size of the finished picture, given the size of drawing.
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
