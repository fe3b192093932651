//! The names of tensors in adapter files: which network, which layer, and which part of the layer's module.

use crate::backend::AdaptedNetwork;

/// A tensor's part in its module. The names are those of kohya and `LyCORIS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    Down,
    Up,
    Mid,
    /// PEFT's `lora_bias`: a bias after `lora_B`.
    UpBias,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    HadaT1,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    Difference,
    BiasDifference,
    NormWeight,
    NormBias,
    Alpha,
    DoraScale,
    /// PEFT's name for `dora_scale`, always by output.
    Magnitude,
}

use Part::{
    Alpha, BiasDifference, Difference, DoraScale, Down, HadaT1, HadaT2, HadaW1A, HadaW1B, HadaW2A, HadaW2B, LokrT2, LokrW1, LokrW1A,
    LokrW1B, LokrW2, LokrW2A, LokrW2B, Magnitude, Mid, NormBias, NormWeight, Up, UpBias,
};

/// How the names of parts end. The first ending of a part is also its name in messages.
const ENDINGS: [(&str, Part); 30] = [
    (".lora_down.weight", Down),
    (".lora_up.weight", Up),
    (".lora_mid.weight", Mid),
    (".lora_B.bias", UpBias),
    (".hada_w1_a", HadaW1A),
    (".hada_w1_b", HadaW1B),
    (".hada_w2_a", HadaW2A),
    (".hada_w2_b", HadaW2B),
    (".hada_t1", HadaT1),
    (".hada_t2", HadaT2),
    (".lokr_w1", LokrW1),
    (".lokr_w1_a", LokrW1A),
    (".lokr_w1_b", LokrW1B),
    (".lokr_w2", LokrW2),
    (".lokr_w2_a", LokrW2A),
    (".lokr_w2_b", LokrW2B),
    (".lokr_t2", LokrT2),
    (".diff", Difference),
    (".diff_b", BiasDifference),
    (".w_norm", NormWeight),
    (".b_norm", NormBias),
    (".alpha", Alpha),
    (".dora_scale", DoraScale),
    (".lora_magnitude_vector", Magnitude),
    // diffusers, before it used PEFT.
    (".lora.down.weight", Down),
    (".lora.up.weight", Up),
    (".lora_linear_layer.down.weight", Down),
    (".lora_linear_layer.up.weight", Up),
    // The same of its attention processors, `attn1.processor.to_q_lora.down.weight`.
    ("_lora.down.weight", Down),
    ("_lora.up.weight", Up),
];

/// PEFT's parts, whose names may have the adapter's name inside: `lora_A.weight`, `lora_A.default.weight`, `lora_A`.
const PEFT: [(&str, Part); 3] = [(".lora_A", Down), (".lora_B", Up), (".lora_magnitude_vector", Magnitude)];

/// How the names of layers begin, and of which network they are then. `None` says nothing of the network.
const BEGINNINGS: [(&str, Option<AdaptedNetwork>); 20] = [
    ("base_model.model.", None),
    // kohya and LyCORIS.
    ("lora_unet_", Some(AdaptedNetwork::Denoiser)),
    ("lora_te1_", Some(AdaptedNetwork::TextEncoder(0))),
    ("lora_te2_", Some(AdaptedNetwork::TextEncoder(1))),
    ("lora_te_", Some(AdaptedNetwork::TextEncoder(0))),
    ("lycoris_unet_", Some(AdaptedNetwork::Denoiser)),
    ("lycoris_te1_", Some(AdaptedNetwork::TextEncoder(0))),
    ("lycoris_te2_", Some(AdaptedNetwork::TextEncoder(1))),
    ("lycoris_te_", Some(AdaptedNetwork::TextEncoder(0))),
    ("lycoris_", None),
    // diffusers.
    ("unet.", Some(AdaptedNetwork::Denoiser)),
    ("text_encoder_2.", Some(AdaptedNetwork::TextEncoder(1))),
    ("text_encoder.", Some(AdaptedNetwork::TextEncoder(0))),
    // ComfyUI and the programs that write checkpoints in one file.
    ("model.diffusion_model.", Some(AdaptedNetwork::Denoiser)),
    ("diffusion_model.", Some(AdaptedNetwork::Denoiser)),
    ("text_encoders.", None),
    ("clip_l.transformer.", Some(AdaptedNetwork::TextEncoder(0))),
    ("clip_h.transformer.", Some(AdaptedNetwork::TextEncoder(0))),
    ("clip_g.transformer.", Some(AdaptedNetwork::TextEncoder(1))),
    ("conditioner.embedders.1.model.", Some(AdaptedNetwork::TextEncoder(1))),
];

/// A tensor's place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TensorKey<'a> {
    pub(super) network: AdaptedNetwork,
    /// As the file spells it, without the prefix of the network.
    pub(super) layer: &'a str,
    pub(super) part: Part,
}

impl Part {
    /// The part's name in messages.
    pub(super) fn name(self) -> &'static str {
        let (ending, _) = ENDINGS.iter().find(|(_, part)| *part == self).unwrap_or(&ENDINGS[0]);
        ending.trim_start_matches('.')
    }
}

impl<'a> TensorKey<'a> {
    /// `None` for a tensor of an unknown kind.
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let (path, part) = peft_part(name).or_else(|| {
            // The longest first: `_lora.down.weight` ends other endings.
            let ending = ENDINGS.iter().filter(|(ending, _)| name.ends_with(ending)).max_by_key(|(ending, _)| ending.len());
            ending.map(|(ending, part)| (&name[..name.len() - ending.len()], *part))
        })?;
        let (network, layer) = network_of(path);
        if layer.is_empty() { None } else { Some(Self { network, layer, part }) }
    }
}

/// The layer's name with underscores for dots, in which all programs agree. What only a spelling has is taken out.
pub(super) fn underscored(layer: &str) -> String {
    let mut name = layer.replace(".processor.", ".");
    if name.len() < layer.len() {
        // An old attention processor's tensors: `to_out_lora` is of `to_out.0`.
        name.truncate(name.strip_suffix("_lora").unwrap_or(&name).len());
        if name.ends_with(".to_out") {
            name.push_str(".0");
        }
    }
    name.replace('.', "_")
}

/// A path and a part in PEFT's spelling.
fn peft_part(name: &str) -> Option<(&str, Part)> {
    PEFT.iter().find_map(|(marker, part)| {
        let at = name.rfind(marker)?;
        let rest: Vec<&str> = name[at + marker.len()..].split('.').collect();
        match rest.as_slice() {
            [""] | ["", "weight"] | ["", _, "weight"] => Some((&name[..at], *part)),
            ["", "bias"] | ["", _, "bias"] if *part == Up => Some((&name[..at], UpBias)),
            ["", _] if *part == Magnitude => Some((&name[..at], *part)),
            _ => None,
        }
    })
}

/// The network, and what is left of the path.
fn network_of(path: &str) -> (AdaptedNetwork, &str) {
    let (mut network, mut layer) = (None, path);
    let next = |network: Option<AdaptedNetwork>, layer: &str| {
        let fits = |(beginning, of): &&(&str, Option<AdaptedNetwork>)| layer.starts_with(beginning) && (network.is_none() || of.is_none());
        BEGINNINGS.iter().find(fits)
    };
    while let Some((beginning, of)) = next(network, layer) {
        (network, layer) = (network.or(*of), &layer[beginning.len()..]);
    }
    let is_text = layer.starts_with("text_model.") || layer.starts_with("text_model_");
    let guess = if is_text { AdaptedNetwork::TextEncoder(0) } else { AdaptedNetwork::Denoiser };
    (network.unwrap_or(guess), layer)
}
