//! `override_settings`: options of A1111 for one request.

use std::collections::BTreeMap;

use serde_json::Value;

use super::models;
use crate::{
    backend::ModelInfo,
    common::{ClipSkip, ImageFormat},
    http::api_error::{self, ApiError},
};

/// The options that count here.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) clip_skip: Option<ClipSkip>,
    pub(super) format: Option<ImageFormat>,
}

impl Overrides {
    /// Reads the options that count, and adds the names of others to `ignored`: another checkpoint than the loaded one, too.
    ///
    /// # Errors
    /// When the value of one that counts is wrong.
    pub(super) fn read(options: &BTreeMap<String, Value>, info: &ModelInfo, ignored: &mut Vec<String>) -> Result<Self, ApiError> {
        let mut read = Self::default();
        for (name, value) in options.iter().filter(|(_, value)| !value.is_null()) {
            let wrong = |reason: &str| ApiError::invalid_param(name, reason);
            match (name.as_str(), value) {
                ("CLIP_stop_at_last_layers", _) => {
                    let layers = value.as_i64().ok_or_else(|| wrong("must be a whole number"))?;
                    read.clip_skip = Some(ClipSkip::try_from(layers)?);
                }
                ("samples_format", Value::String(format)) => {
                    read.format = Some(match format.to_ascii_lowercase().as_str() {
                        "png" => ImageFormat::Png,
                        "jpg" | "jpeg" => ImageFormat::Jpeg,
                        "webp" => ImageFormat::Webp,
                        _ => return Err(wrong("must be png, jpg or webp")),
                    });
                }
                ("sd_model_checkpoint", Value::String(title)) if models::is_loaded(title, info) => {}
                // A1111's words for the checkpoint's own.
                ("sd_vae", Value::String(vae)) if ["", "Automatic", "None"].contains(&vae.as_str()) => {}
                _ => ignored.push(format!("override_settings.{}", api_error::clip(name))),
            }
        }
        Ok(read)
    }
}
