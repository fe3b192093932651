//! Which family of models a directory holds, from its `model_index.json`.

use serde::Deserialize;

use super::{LoadError, ModelFiles};

const INDEX: &str = "model_index.json";
/// How the names of diffusers' pipelines begin, and what the families are called that are not supported yet.
const UNSUPPORTED: [(&str, &str); 8] = [
    ("StableDiffusionXL", "SDXL"),
    ("StableDiffusion3", "Stable Diffusion 3"),
    ("Flux", "FLUX"),
    ("StableCascade", "Stable Cascade"),
    ("StableVideoDiffusion", "Stable Video Diffusion"),
    ("PixArt", "PixArt"),
    ("Kandinsky", "Kandinsky"),
    ("QwenImage", "Qwen-Image"),
];

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name", default)]
    class_name: String,
}

/// Makes sure that it is one that can be loaded.
///
/// # Errors
/// Names the family if it is not.
pub(super) fn check_supported(files: &ModelFiles) -> Result<(), LoadError> {
    let bad = |reason: String| LoadError::BadConfig { path: files.path(INDEX), reason };
    let ModelIndex { class_name } = serde_json::from_slice(&files.read(INDEX)?).map_err(|error| bad(error.to_string()))?;
    match UNSUPPORTED.iter().find(|(start, _)| class_name.starts_with(start)) {
        Some((_, family)) => Err(bad(format!(
            "this is a model of the family {family} ({class_name}), which is not supported yet; Stable Diffusion 1 and 2 are"
        ))),
        None => Ok(()),
    }
}
