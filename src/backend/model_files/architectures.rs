//! The networks of checkpoints in one file, which carry no configuration. The variant of a file decides its networks; a single tensor
//! decides nothing. So a damaged file is an error that names what it lacks, and not another network.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::tensor_files::TensorFiles;
use crate::common::ModelFamily;

/// Prefix of a UNet's tensors in checkpoints.
pub(super) const UNET: &str = "model.diffusion_model.";
/// Residual blocks at each level of every UNet on the way down, and of every VAE's encoder.
pub(super) const LAYERS_PER_BLOCK: usize = 2;
/// Levels of every VAE.
pub(super) const VAE_LEVELS: usize = 4;
/// Attention heads of Stable Diffusion 1. The others have heads of a fixed width.
const SD1_HEADS: usize = 8;
/// Width of a head, in every UNet but those of Stable Diffusion 1, and in all text encoders.
const HEAD_DIM: usize = 64;
/// The sizes and offsets of a picture that SDXL looks at.
const TIME_IDS: usize = 6;
/// The distance between variants of different widths. One transformer block more or less is a distance of 1.
const WIDTH_COUNTS: usize = 1000;

/// A variant of Stable Diffusion: the settings of its networks that are not the same in all variants.
#[derive(Debug)]
pub(super) struct Architecture {
    /// For messages.
    pub(super) name: &'static str,
    pub(super) family: ModelFamily,
    /// Channels of the UNet's levels, the finest first.
    channels: &'static [usize],
    /// Transformer blocks after each residual block on the way down, the finest level first,
    down: &'static [[usize; LAYERS_PER_BLOCK]],
    /// in the middle, where SSD-1B and Vega have no transformer,
    mid: Option<usize>,
    /// and on the way up, the coarsest level first.
    up: &'static [[usize; LAYERS_PER_BLOCK + 1]],
    /// Width of the embedding of each of SDXL's sizes and offsets.
    time_dim: usize,
    /// One text encoder, or the two of SDXL.
    text: &'static [TextArchitecture],
    /// Channels of the VAE's levels, the finest first.
    vae: [usize; VAE_LEVELS],
}

/// A text encoder.
#[derive(Debug, Clone, Copy)]
struct TextArchitecture {
    hidden_size: usize,
    intermediate_size: usize,
    /// Stable Diffusion 2 leaves out the last one, which its files may have.
    layers: usize,
    act: &'static str,
}

const CLIP_L: TextArchitecture = TextArchitecture { hidden_size: 768, intermediate_size: 3072, layers: 12, act: "quick_gelu" };
const OPEN_CLIP_H: TextArchitecture = TextArchitecture { hidden_size: 1024, intermediate_size: 4096, layers: 23, act: "gelu" };
const OPEN_CLIP_G: TextArchitecture = TextArchitecture { hidden_size: 1280, intermediate_size: 5120, layers: 32, act: "gelu" };
const VAE: [usize; VAE_LEVELS] = [128, 256, 512, 512];

const SD1: Architecture = Architecture {
    name: "Stable Diffusion 1",
    family: ModelFamily::Sd1,
    channels: &[320, 640, 1280, 1280],
    down: &[[1; 2], [1; 2], [1; 2], [0; 2]],
    mid: Some(1),
    up: &[[0; 3], [1; 3], [1; 3], [1; 3]],
    time_dim: 0,
    text: &[CLIP_L],
    vae: VAE,
};
const SD2: Architecture = Architecture { name: "Stable Diffusion 2", family: ModelFamily::Sd2, text: &[OPEN_CLIP_H], ..SD1 };
const SDXL: Architecture = Architecture {
    name: "Stable Diffusion XL",
    family: ModelFamily::Sdxl,
    channels: &[320, 640, 1280],
    down: &[[0; 2], [2; 2], [10; 2]],
    mid: Some(10),
    up: &[[10; 3], [2; 3], [0; 3]],
    time_dim: 256,
    text: &[CLIP_L, OPEN_CLIP_G],
    vae: VAE,
};

/// The small text encoders and VAE of the project's tests (`tests/parity/make_family_goldens.py`).
const SMALL_CLIP: TextArchitecture = TextArchitecture { hidden_size: 64, intermediate_size: 128, layers: 3, act: "quick_gelu" };
const SMALL_OPEN_CLIP: TextArchitecture = TextArchitecture { hidden_size: 128, intermediate_size: 256, layers: 3, act: "gelu" };
const SMALL_VAE: [usize; VAE_LEVELS] = [32, 32, 32, 64];

/// Every variant, after the table of `ComfyUI`'s `model_detection.py`. Inpainting models differ in `in_channels`, and LCM in a tensor.
static KNOWN: [Architecture; 11] = [
    SD1,
    SD2,
    SDXL,
    Architecture { name: "SSD-1B", down: &[[0; 2], [2; 2], [4; 2]], mid: None, up: &[[4, 4, 10], [2, 1, 1], [0; 3]], ..SDXL },
    Architecture { name: "Segmind-Vega", down: &[[0; 2], [1; 2], [2; 2]], mid: None, up: &[[2; 3], [1; 3], [0; 3]], ..SDXL },
    Architecture {
        name: "a small Stable Diffusion 1",
        channels: &[32, 64, 64],
        down: &[[1; 2], [1; 2], [0; 2]],
        up: &[[0; 3], [1; 3], [1; 3]],
        text: &[SMALL_CLIP],
        vae: SMALL_VAE,
        ..SD1
    },
    Architecture {
        name: "a small LCM",
        channels: &[32, 64],
        down: &[[1; 2], [0; 2]],
        up: &[[0; 3], [1; 3]],
        text: &[SMALL_CLIP],
        vae: SMALL_VAE,
        ..SD1
    },
    Architecture {
        name: "a small Stable Diffusion 2",
        channels: &[64, 128],
        down: &[[1; 2], [0; 2]],
        up: &[[0; 3], [1; 3]],
        text: &[SMALL_OPEN_CLIP],
        vae: SMALL_VAE,
        ..SD2
    },
    Architecture { name: "a small Stable Diffusion XL", down: &[[0; 2], [2; 2]], mid: Some(2), up: &[[2; 3], [0; 3]], ..SMALL_XL },
    Architecture { name: "a small SSD-1B", down: &[[0; 2], [2; 2]], mid: None, up: &[[2, 2, 3], [0; 3]], ..SMALL_XL },
    Architecture { name: "a small Segmind-Vega", down: &[[0; 2], [1; 2]], mid: None, up: &[[1; 3], [0; 3]], ..SMALL_XL },
];
const SMALL_XL: Architecture =
    Architecture { channels: &[64, 128], time_dim: 32, text: &[SMALL_CLIP, SMALL_OPEN_CLIP], vae: SMALL_VAE, ..SDXL };

impl Architecture {
    /// The variant of a checkpoint: of its family, if that is known, the variant with the UNet nearest to the checkpoint's.
    ///
    /// # Errors
    /// When the UNet has more blocks than that variant. Missing blocks are found when the UNet is read.
    pub(super) fn of(files: &TensorFiles, family: Option<ModelFamily>) -> Result<&'static Self, String> {
        let found = transformers(files);
        let known = KNOWN.iter().filter(|known| family.map_or(known.family != ModelFamily::Sdxl, |family| known.family == family));
        let Some(nearest) = known.min_by_key(|known| known.distance(files, &found)) else {
            return Err("no variant of its family is known".to_owned());
        };
        let own = nearest.transformers();
        let more = found.iter().find(|(place, depth)| **depth > own.get(*place).copied().unwrap_or_default());
        more.map_or(Ok(nearest), |(place, depth)| {
            let (name, own) = (nearest.name, own.get(place).copied().unwrap_or_default());
            Err(format!(
                "this is no variant of Stable Diffusion that is known: the nearest is {name}, which has {own} transformer blocks in \
                 {UNET}{place}, where this one has {depth}"
            ))
        })
    }

    /// The distance between this variant's UNet and that of the files.
    fn distance(&self, files: &TensorFiles, found: &BTreeMap<String, usize>) -> usize {
        let width = |name: &str, dim: usize, right: usize| {
            let found = files.shape(&format!("{UNET}{name}")).and_then(|shape| shape.get(dim));
            if found.is_none_or(|found| *found == right) { 0 } else { WIDTH_COUNTS }
        };
        let own = self.transformers();
        let text = |place: &String| {
            let looks_at_text = ["to_k", "to_v"].map(|name| format!("{place}.transformer_blocks.0.attn2.{name}.weight"));
            looks_at_text.iter().map(|name| width(name, 1, self.cross_attention_dim())).sum::<usize>()
        };
        let depths: usize = own.iter().map(|(place, depth)| depth.abs_diff(found.get(place).copied().unwrap_or_default())).sum::<usize>()
            + found.iter().filter(|(place, _)| !own.contains_key(*place)).map(|(_, depth)| depth).sum::<usize>();
        depths
            + own.keys().map(text).sum::<usize>()
            + width("input_blocks.0.0.weight", 0, self.channels[0])
            + width("out.2.weight", 1, self.channels[0])
    }

    /// Number of blocks of each transformer, by its prefix.
    fn transformers(&self) -> BTreeMap<String, usize> {
        let level = |way: &'static str, first: usize, depths: &[usize], level: usize| {
            let block = first + level * (LAYERS_PER_BLOCK + 1);
            depths.iter().enumerate().map(|(i, depth)| (format!("{way}.{}.1", block + i), *depth)).collect::<Vec<_>>()
        };
        let down = self.down.iter().enumerate().flat_map(|(i, depths)| level("input_blocks", 1, depths, i));
        let up = self.up.iter().enumerate().flat_map(|(i, depths)| level("output_blocks", 0, depths, i));
        let mid = self.mid.map(|depth| ("middle_block.1".to_owned(), depth));
        down.chain(up).chain(mid).filter(|(_, depth)| *depth > 0).collect()
    }

    /// Width of the text embeddings.
    fn cross_attention_dim(&self) -> usize {
        self.text.iter().map(|text| text.hidden_size).sum()
    }

    /// Index of the last block on the UNet's way up.
    pub(super) fn last_output_block(&self) -> usize {
        self.up.len() * (LAYERS_PER_BLOCK + 1) - 1
    }

    /// Width of the pooled text that SDXL looks at.
    fn pooled_dim(&self) -> Option<usize> {
        (self.family == ModelFamily::Sdxl).then(|| self.text.last().map(|text| text.hidden_size)).flatten()
    }

    /// `unet/config.json`, as diffusers has it.
    pub(super) fn unet(&self, sample_size: usize, in_channels: usize, guidance_dim: Option<usize>) -> Value {
        let kind = |depths: &[usize], way: &str| {
            let attention = if depths.iter().any(|depth| *depth > 0) { "CrossAttn" } else { "" };
            format!("{attention}{way}Block2D")
        };
        let heads = |channels: &usize| if self.family == ModelFamily::Sd1 { SD1_HEADS } else { channels / HEAD_DIM };
        let (middle, depth) = self.mid.map_or(("UNetMidBlock2D", 0), |depth| ("UNetMidBlock2DCrossAttn", depth));
        let mut down: Vec<Value> = self.down.iter().map(|depths| json!(depths)).collect();
        if let Some(coarsest) = down.last_mut().filter(|_| depth > 0) {
            // diffusers gives the middle as many as the coarsest level, even if that level itself has none.
            *coarsest = json!([depth, depth]);
        }
        let mut config = json!({
            "sample_size": sample_size,
            "in_channels": in_channels,
            "out_channels": 4,
            "block_out_channels": self.channels,
            "down_block_types": self.down.iter().map(|depths| kind(depths, "Down")).collect::<Vec<_>>(),
            "mid_block_type": middle,
            "up_block_types": self.up.iter().map(|depths| kind(depths, "Up")).collect::<Vec<_>>(),
            "layers_per_block": LAYERS_PER_BLOCK,
            "transformer_layers_per_block": down,
            "reverse_transformer_layers_per_block": self.up,
            "attention_head_dim": self.channels.iter().map(heads).collect::<Vec<_>>(),
            "cross_attention_dim": self.cross_attention_dim(),
            "time_cond_proj_dim": guidance_dim,
        });
        if let Some(pooled_dim) = self.pooled_dim() {
            config["addition_embed_type"] = "text_time".into();
            config["addition_time_embed_dim"] = self.time_dim.into();
            config["projection_class_embeddings_input_dim"] = (pooled_dim + TIME_IDS * self.time_dim).into();
        }
        config
    }

    /// `text_encoder/config.json`, or that of SDXL's second text encoder, as transformers has it. Training may have added words to CLIP's.
    pub(super) fn text_encoder(&self, index: usize, vocab_size: Option<usize>) -> Option<Value> {
        let text = self.text.get(index)?;
        Some(json!({
            "vocab_size": vocab_size.unwrap_or(49_408),
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.hidden_size / HEAD_DIM,
            "max_position_embeddings": 77,
            "hidden_act": text.act,
            "projection_dim": text.hidden_size,
        }))
    }

    /// Number of layers of the first text encoder that are used.
    pub(super) fn text_layers(&self) -> usize {
        self.text.first().map_or(0, |text| text.layers)
    }

    /// `vae/config.json`, as diffusers has it.
    pub(super) fn vae(&self) -> Value {
        let mut config = vae(self.vae);
        config["scaling_factor"] = if self.family == ModelFamily::Sdxl { 0.13025 } else { 0.18215 }.into();
        config
    }
}

/// `vae/config.json` of the known VAE whose finest level has this many channels, without its scaling.
pub(super) fn known_vae(finest: usize) -> Option<Value> {
    KNOWN.iter().map(|known| known.vae).find(|channels| channels[0] == finest).map(vae)
}

/// Number of layers that Stable Diffusion 2 uses of an `OpenCLIP` of this width, if one is known.
pub(super) fn known_open_clip(hidden_size: usize) -> Option<usize> {
    let known = KNOWN.iter().filter(|known| known.family == ModelFamily::Sd2).flat_map(|known| known.text);
    known.filter(|text| text.hidden_size == hidden_size).map(|text| text.layers).next()
}

fn vae(channels: [usize; VAE_LEVELS]) -> Value {
    json!({
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": channels,
        "layers_per_block": LAYERS_PER_BLOCK,
        "norm_num_groups": 32,
        "use_quant_conv": true,
        "use_post_quant_conv": true,
    })
}

/// Number of blocks of each transformer of a UNet, by its prefix, such as `input_blocks.4.1`. Any tensor of a block counts.
fn transformers(files: &TensorFiles) -> BTreeMap<String, usize> {
    let mut depths = BTreeMap::new();
    for name in files.names() {
        let Some((place, rest)) = name.strip_prefix(UNET).and_then(|name| name.split_once(".transformer_blocks.")) else { continue };
        let Some(index) = rest.split('.').next().and_then(|index| index.parse::<usize>().ok()) else { continue };
        let depth = depths.entry(place.to_owned()).or_default();
        *depth = index.saturating_add(1).max(*depth);
    }
    depths
}
