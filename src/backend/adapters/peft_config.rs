//! PEFT's configuration in a file's header, where diffusers keeps the alphas: its files have no tensors for them.

use serde_json::{Map, Value};

use super::AdaptedNetwork;
use crate::backend::model_files::TensorFiles;

/// The entry of the header.
const ENTRY: &str = "lora_adapter_metadata";

/// The configurations of all networks.
#[derive(Debug, Default)]
pub(super) struct PeftConfig(Map<String, Value>);

impl PeftConfig {
    /// The configuration of a file; an empty one if the file has none.
    pub(super) fn read(files: &TensorFiles) -> Self {
        Self(files.metadata(ENTRY).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default())
    }

    /// The alpha of a layer.
    pub(super) fn alpha(&self, network: AdaptedNetwork, layer: &str, rank: usize) -> Option<f64> {
        let part = match network {
            AdaptedNetwork::Denoiser => "unet",
            AdaptedNetwork::TextEncoder(0) => "text_encoder",
            AdaptedNetwork::TextEncoder(_) => "text_encoder_2",
        };
        // The names have no network in files of a single one.
        let get = |name: &str| self.0.get(&format!("{part}.{name}")).or_else(|| self.0.get(name));
        let patterns = get("alpha_pattern").and_then(Value::as_object);
        let own = patterns.and_then(|patterns| patterns.iter().find(|(end, _)| is_end(layer, end)).map(|(_, alpha)| alpha));
        let alpha = own.or_else(|| get("lora_alpha"))?.as_f64()?;
        // Rank-stabilized LoRA divides by the root of the rank.
        let is_stabilized = get("use_rslora").and_then(Value::as_bool).unwrap_or_default();
        Some(if is_stabilized { alpha * (rank as f64).sqrt() } else { alpha })
    }
}

/// Whether a layer's name is `end`, or ends in it behind a dot.
fn is_end(layer: &str, end: &str) -> bool {
    layer.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
