//! Every family of models that is known: by what its files are recognised, what is particular to it, and which ones are refused by name.
//!
//! A new family is a variant of [`ModelFamily`], an entry of [`SUPPORTED`], and the networks in `models`; the compiler names what else must
//! know of it.

use crate::{
    common::ModelFamily,
    models::{DenoiserConfig, HiddenState, TextNetworkConfig},
    ops::Activation,
};

/// For messages.
pub(super) const SUPPORTED_NAMES: &str = "Stable Diffusion 1, 2 and XL";

/// How the names of tensors begin in checkpoints in one file: the text encoders of Stable Diffusion 1, 2, and the two of XL.
pub(super) const CLIP: &str = "cond_stage_model.transformer.";
pub(super) const OPEN_CLIP: &str = "cond_stage_model.model.";
/// That of 2 in files written by SGM, the program of XL, such as SD-Turbo's. SDXL's refiner has it too.
pub(super) const SGM_OPEN_CLIP: &str = "conditioner.embedders.0.model.";
pub(super) const XL_CLIP: &str = "conditioner.embedders.0.transformer.";
pub(super) const XL_OPEN_CLIP: &str = "conditioner.embedders.1.model.";
/// Looks at pooled text and at a picture's sizes.
const LABEL_EMBEDDING: &str = "model.diffusion_model.label_emb.";

/// A family that is supported.
#[derive(Debug)]
pub(super) struct Family {
    is: ModelFamily,
    /// How the names of tensors begin that only its text encoders have, in checkpoints in one file.
    text_encoders: &'static [&'static str],
    /// The same of its denoiser, for files without text encoders.
    denoiser: &'static [&'static str],
    /// Folders in diffusers' layout: of each text encoder, and of its tokenizer.
    pub(super) text_folders: &'static [(&'static str, &'static str)],
    /// The state of the text encoders that the denoiser looks at.
    pub(super) hidden_state: HiddenState,
    /// Whether `clip_skip` has an effect: as in A1111, in Stable Diffusion 1 alone. Each other family looks at one fixed layer.
    pub(super) has_clip_skip: bool,
    /// Whether the embeddings of an empty negative prompt are zeros, unless `model_index.json` says something else: diffusers' defaults.
    pub(super) force_zeros_for_empty_prompt: bool,
    /// Guidance scale of a request that leaves it out, as in diffusers' pipeline.
    pub(super) guidance_scale: f64,
}

static SUPPORTED: [Family; 3] = [
    Family {
        is: ModelFamily::Sdxl,
        text_encoders: &[XL_OPEN_CLIP],
        denoiser: &[LABEL_EMBEDDING],
        text_folders: &[("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")],
        hidden_state: HiddenState::Penultimate,
        has_clip_skip: false,
        force_zeros_for_empty_prompt: true,
        guidance_scale: 5.0,
    },
    Family {
        is: ModelFamily::Sd2,
        text_encoders: &[OPEN_CLIP, SGM_OPEN_CLIP],
        denoiser: &[],
        text_folders: &[("text_encoder", "tokenizer")],
        hidden_state: HiddenState::Last,
        has_clip_skip: false,
        force_zeros_for_empty_prompt: false,
        guidance_scale: 7.5,
    },
    Family {
        is: ModelFamily::Sd1,
        text_encoders: &[CLIP],
        denoiser: &[],
        text_folders: &[("text_encoder", "tokenizer")],
        hidden_state: HiddenState::Last,
        has_clip_skip: true,
        force_zeros_for_empty_prompt: false,
        guidance_scale: 7.5,
    },
];

/// Files that are refused by name.
struct Refused {
    /// The family's name, for directories in diffusers' layout.
    name: &'static str,
    /// How the names of its pipelines begin in `model_index.json`.
    pipeline: Option<&'static str>,
    /// What a checkpoint in one file is.
    file: &'static str,
    /// Parts of the names of its tensors, all of which such a file has.
    tensors: &'static [&'static str],
}

const fn model(name: &'static str, pipeline: Option<&'static str>, file: &'static str, tensors: &'static [&'static str]) -> Refused {
    Refused { name, pipeline, file, tensors }
}

static REFUSED: [Refused; 19] = [
    model("Stable Diffusion 3", Some("StableDiffusion3"), "a Stable Diffusion 3 model", &["joint_blocks.0."]),
    model("FLUX.2", None, "a FLUX.2 model", &["single_stream_modulation."]),
    model("Chroma", None, "a Chroma model", &["distilled_guidance_layer."]),
    model("FLUX", Some("Flux"), "a FLUX model", &["double_blocks.0.img_attn."]),
    model("Playground 2.5", None, "a Playground 2.5 model", &["edm_mean"]),
    model("CosXL", None, "a CosXL model", &["edm_vpred."]),
    model("Stable Diffusion 2 unCLIP", None, "a Stable Diffusion 2 unCLIP model", &["embedder.model.visual."]),
    model("Stable Cascade", Some("StableCascade"), "a Stable Cascade model", &["clip_txt_mapper."]),
    model("Stable Video Diffusion", Some("StableVideoDiffusion"), "a Stable Video Diffusion model", &["time_stack."]),
    model("AuraFlow", None, "an AuraFlow model", &["double_layers.0.attn."]),
    model("Lumina", None, "a Lumina model", &["cap_embedder.0."]),
    model("Qwen-Image", Some("QwenImage"), "a Qwen-Image model", &["img_mlp."]),
    model("PixArt", Some("PixArt"), "a PixArt model", &[]),
    model("Kandinsky", Some("Kandinsky"), "a Kandinsky model", &[]),
    model("ControlNet", None, "a ControlNet, and no model by itself", &["control_model."]),
    model("LoRA", None, "a LoRA, and no model by itself", &["lora_"]),
    model("LyCORIS", None, "a LyCORIS, and no model by itself", &["hada_w1_a"]),
    model("embedding", None, "an embedding, and no model by itself: its folder is for --embeddings", &["emb_params"]),
    model("SDXL refiner", None, "an SDXL refiner", &[SGM_OPEN_CLIP, LABEL_EMBEDDING]),
];

/// What is particular to a family.
pub(super) fn of(family: ModelFamily) -> &'static Family {
    let [sdxl, sd2, sd1] = &SUPPORTED;
    match family {
        ModelFamily::Sd1 => sd1,
        ModelFamily::Sd2 => sd2,
        ModelFamily::Sdxl => sdxl,
    }
}

/// The family of a directory in diffusers' layout, by the configurations of its networks.
pub(super) fn by_configs(denoiser: &DenoiserConfig, text: &TextNetworkConfig) -> ModelFamily {
    match (denoiser, text) {
        (DenoiserConfig::UNet(unet), _) if unet.text_time().is_some() => ModelFamily::Sdxl,
        (DenoiserConfig::UNet(_), TextNetworkConfig::Clip(text)) if text.hidden_act == Activation::Gelu => ModelFamily::Sd2,
        (DenoiserConfig::UNet(_), TextNetworkConfig::Clip(_)) => ModelFamily::Sd1,
    }
}

/// The family of a checkpoint in one file, by its tensors' names: `has` tells whether a name begins so. `None` where neither a text encoder
/// nor the denoiser tells.
pub(super) fn by_tensors(has: impl Fn(&str) -> bool) -> Option<ModelFamily> {
    let find = |parts: fn(&Family) -> &'static [&'static str]| SUPPORTED.iter().find(|family| parts(family).iter().any(|part| has(part)));
    find(|family| family.text_encoders).or_else(|| find(|family| family.denoiser)).map(|family| family.is)
}

/// The name of a family that is refused, by the class of its pipeline.
pub(super) fn refused_pipeline(class: &str) -> Option<&'static str> {
    REFUSED.iter().find(|refused| refused.pipeline.is_some_and(|start| class.starts_with(start))).map(|refused| refused.name)
}

/// What a checkpoint in one file is, if it is refused, by its tensors' names.
pub(super) fn refused_file(names: &[String]) -> Option<&'static str> {
    let has = |part: &&str| names.iter().any(|name| name.contains(part));
    REFUSED.iter().find(|refused| !refused.tensors.is_empty() && refused.tensors.iter().all(has)).map(|refused| refused.file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_own_entry() {
        for family in [ModelFamily::Sd1, ModelFamily::Sd2, ModelFamily::Sdxl] {
            assert_eq!(of(family).is, family);
            let first = of(family).text_encoders[0];
            assert_eq!(by_tensors(|start| start == first), Some(family));
            assert_eq!(refused_file(&[format!("{first}weight")]), None, "{family:?}");
        }
        assert_eq!(by_tensors(|start| start == LABEL_EMBEDDING), Some(ModelFamily::Sdxl));
        assert_eq!(by_tensors(|_| false), None);
    }

    #[test]
    fn a_refused_file_is_called_by_its_name() {
        for refused in &REFUSED {
            let names: Vec<String> = refused.tensors.iter().map(|part| format!("a.{part}weight")).collect();
            assert_eq!(refused_file(&names), (!names.is_empty()).then_some(refused.file));
            if let Some(start) = refused.pipeline {
                assert_eq!(refused_pipeline(&format!("{start}Img2ImgPipeline")), Some(refused.name));
            }
        }
        assert_eq!(refused_pipeline("StableDiffusionXLPipeline"), None);
    }
}
