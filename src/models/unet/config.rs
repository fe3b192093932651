//! `unet/config.json`.

use serde::Deserialize;
use serde_json::Value;

use crate::{models::ConfigError, ops::Activation};

/// The fields that describe the network; [`UNet2DConditionConfig::from_json`] refuses values of others that would change it.
#[derive(Debug, Clone, Deserialize)]
pub struct UNet2DConditionConfig {
    /// Side of the latents in training.
    pub sample_size: usize,
    /// Channels of the noisy latents.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Channels of each level, the finest first.
    pub block_out_channels: Vec<usize>,
    /// Kind of each block on the way down.
    pub down_block_types: Vec<DownBlockType>,
    /// Kind of each block on the way up, the coarsest first.
    pub up_block_types: Vec<UpBlockType>,
    /// Residual blocks to a level on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// Transformer blocks after each residual block, by level.
    #[serde(default = "one")]
    pub transformer_layers_per_block: OneOrEach,
    /// Attention heads by level. diffusers took its own misnomer over: this is the number of heads, not their width.
    pub attention_head_dim: OneOrEach,
    /// The same under its right name, where a checkpoint has it.
    pub num_attention_heads: Option<OneOrEach>,
    /// Width of the text embeddings.
    pub cross_attention_dim: usize,
    /// Whether the transformers' projections are stored as linear layers (SD 2) or 1 x 1 convolutions (SD 1).
    #[serde(default)]
    pub use_linear_projection: bool,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Epsilon of the group norms.
    pub norm_eps: f64,
    /// Activation of the residual blocks.
    pub act_fn: Activation,
    /// Whether the time embedding's cosines come first.
    pub flip_sin_to_cos: bool,
    /// Shifts the time embedding's frequencies.
    pub freq_shift: f64,
    /// Padding of the convolutions that halve the resolution.
    pub downsample_padding: usize,
    /// What is added to the time embedding.
    pub addition_embed_type: Option<AdditionEmbedType>,
    /// Width of the embedding of each of the numbers that are added.
    pub addition_time_embed_dim: Option<usize>,
    /// Width of all that is added, before its embedding.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Width of the embedding of the guidance scale, in models that were distilled to know it.
    pub time_cond_proj_dim: Option<usize>,
}

/// The numbers that SDXL is told of a picture: height and width of the original, top and left of the part that was cut out of it,
/// height and width of the result.
pub(super) const TIME_IDS: usize = 6;

/// What may be added to the time embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdditionEmbedType {
    /// The pooled text, and sizes of the picture: SDXL.
    TextTime,
}

/// The widths of [`AdditionEmbedType::TextTime`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextTime {
    /// Of the pooled text.
    pub pooled_dim: usize,
    /// Of each number's embedding.
    pub time_dim: usize,
}

fn one() -> OneOrEach {
    OneOrEach::One(1)
}

/// A number for all levels, or one for each.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrEach {
    /// For all levels.
    One(usize),
    /// For each level, the finest first.
    Each(Vec<usize>),
}

impl OneOrEach {
    /// The number of a level.
    #[must_use]
    pub fn at(&self, level: usize) -> usize {
        match self {
            Self::One(n) => *n,
            Self::Each(all) => all.get(level).copied().unwrap_or_default(),
        }
    }
}

/// Kinds of block on the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DownBlockType {
    /// Residual blocks.
    #[serde(rename = "DownBlock2D")]
    Plain,
    /// Residual blocks, each followed by a transformer that looks at the text.
    #[serde(rename = "CrossAttnDownBlock2D")]
    CrossAttention,
}

/// Kinds of block on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum UpBlockType {
    /// Residual blocks.
    #[serde(rename = "UpBlock2D")]
    Plain,
    /// Residual blocks, each followed by a transformer that looks at the text.
    #[serde(rename = "CrossAttnUpBlock2D")]
    CrossAttention,
}

/// Fields that change the network in ways that it is not built for, with the values at which they do not.
const UNSUPPORTED: [(&str, &[&str]); 21] = [
    ("addition_embed_type", &["null", "\"text_time\""]),
    ("attention_type", &["\"default\""]),
    ("center_input_sample", &["false"]),
    ("class_embed_type", &["null"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("cross_attention_norm", &["null"]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("mid_block_only_cross_attention", &["null", "false"]),
    ("mid_block_scale_factor", &["1", "1.0"]),
    ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""]),
    ("num_class_embeds", &["null"]),
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1", "1.0"]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("reverse_transformer_layers_per_block", &["null"]),
    ("time_embedding_act_fn", &["null"]),
    ("time_embedding_type", &["\"positional\""]),
];

impl UNet2DConditionConfig {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// When it is no valid JSON, or describes a network that cannot be or that is not supported.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let raw: serde_json::Map<String, Value> = serde_json::from_slice(json)?;
        for (field, supported) in UNSUPPORTED {
            if let Some(value) = raw.get(field) {
                let value = value.to_string();
                ConfigError::unless(supported.contains(&value.as_str()), || format!("{field} = {value} is not supported"))?;
            }
        }
        let config: Self = serde_json::from_value(Value::Object(raw))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let levels = self.block_out_channels.len();
        ConfigError::unless((1..=8).contains(&levels), || format!("block_out_channels must have 1 to 8 entries, not {levels}"))?;
        ConfigError::unless_one_each("down_block_types", &self.down_block_types, levels)?;
        ConfigError::unless_one_each("up_block_types", &self.up_block_types, levels)?;
        for (name, value) in
            [("attention_head_dim", self.heads_field()), ("transformer_layers_per_block", &self.transformer_layers_per_block)]
        {
            if let OneOrEach::Each(each) = value {
                ConfigError::unless_one_each(name, each, levels)?;
            }
        }
        for (level, channels) in self.block_out_channels.iter().enumerate() {
            let heads = self.heads(level);
            ConfigError::unless(heads > 0 && *channels > 0 && channels.is_multiple_of(heads), || {
                format!("{channels} channels at level {level} do not fall into {heads} attention heads")
            })?;
        }
        let finest = self.block_out_channels[0];
        ConfigError::unless(finest.is_multiple_of(2) && finest as f64 / 2.0 > self.freq_shift, || {
            format!("block_out_channels must begin with an even number of at least 2, not {finest}")
        })?;
        ConfigError::unless(self.act_fn == Activation::Silu, || "act_fn must be silu".to_owned())?;
        ConfigError::unless(self.downsample_padding <= 1, || {
            format!("downsample_padding must be 0 or 1, not {}", self.downsample_padding)
        })?;
        let is_even = |dim: usize| dim > 2 && dim.is_multiple_of(2);
        ConfigError::unless(self.time_cond_proj_dim.is_none_or(is_even), || {
            format!("time_cond_proj_dim must be even, not {:?}", self.time_cond_proj_dim)
        })?;
        ConfigError::unless(self.addition_embed_type.is_none() || self.text_time().is_some_and(|widths| is_even(widths.time_dim)), || {
            format!(
                "projection_class_embeddings_input_dim {:?} has no room for {TIME_IDS} numbers of addition_time_embed_dim {:?} and the text",
                self.projection_class_embeddings_input_dim, self.addition_time_embed_dim
            )
        })?;
        ConfigError::unless((1..=1024).contains(&self.sample_size), || format!("sample_size must be 1 to 1024, not {}", self.sample_size))
    }

    fn heads_field(&self) -> &OneOrEach {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim)
    }

    /// Attention heads at a level.
    #[must_use]
    pub fn heads(&self, level: usize) -> usize {
        self.heads_field().at(level)
    }

    /// The widths of what is added to the time embedding, if anything is.
    #[must_use]
    pub fn text_time(&self) -> Option<TextTime> {
        let AdditionEmbedType::TextTime = self.addition_embed_type?;
        let time_dim = self.addition_time_embed_dim?;
        let pooled_dim = self.projection_class_embeddings_input_dim?.checked_sub(TIME_IDS * time_dim)?;
        (pooled_dim > 0).then_some(TextTime { pooled_dim, time_dim })
    }

    /// Width of the time embedding.
    #[must_use]
    pub fn time_embed_dim(&self) -> usize {
        4 * self.block_out_channels[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = r#"{"sample_size":16,"in_channels":4,"out_channels":4,"block_out_channels":[64,128],"layers_per_block":1,
        "down_block_types":["DownBlock2D","CrossAttnDownBlock2D"],"up_block_types":["CrossAttnUpBlock2D","UpBlock2D"],
        "attention_head_dim":[4,8],"cross_attention_dim":64,"norm_num_groups":32,"norm_eps":1e-5,"act_fn":"silu",
        "flip_sin_to_cos":true,"freq_shift":0,"downsample_padding":1}"#;

    #[test]
    fn heads_are_read_as_diffusers_reads_them() {
        let config = UNet2DConditionConfig::from_json(VALID.as_bytes()).unwrap();
        assert_eq!((config.heads(0), config.heads(1)), (4, 8));
        let named = VALID.replace("\"attention_head_dim\":[4,8]", "\"attention_head_dim\":3,\"num_attention_heads\":2");
        assert_eq!(UNet2DConditionConfig::from_json(named.as_bytes()).unwrap().heads(1), 2);
    }

    #[test]
    fn impossible_networks_are_refused_with_the_reason() {
        for (from, to, reason) in [
            ("[64,128]", "[]", "1 to 8 entries"),
            ("[64,128]", "[64,128,256]", "down_block_types has 2 entries"),
            ("[4,8]", "[4]", "attention_head_dim has 1 entries"),
            ("[4,8]", "0", "0 attention heads"),
            ("[4,8]", "7", "do not fall into 7"),
            ("[64,128]", "[63,128]", "do not fall into 4"),
            ("\"act_fn\":\"silu\"", "\"act_fn\":\"relu\"", "relu"),
            ("\"freq_shift\":0", "\"freq_shift\":32", "even number"),
            ("\"sample_size\":16", "\"sample_size\":0", "sample_size must be 1 to 1024"),
            (
                "\"sample_size\":16",
                "\"sample_size\":16,\"addition_embed_type\":\"image\"",
                "addition_embed_type = \"image\" is not supported",
            ),
            (
                "\"sample_size\":16",
                "\"sample_size\":16,\"addition_embed_type\":\"text_time\",\"addition_time_embed_dim\":8,\"projection_class_embeddings_input_dim\":48",
                "Some(48) has no room for 6 numbers",
            ),
            ("\"sample_size\":16", "\"sample_size\":16,\"time_cond_proj_dim\":7", "time_cond_proj_dim must be even, not Some(7)"),
            ("DownBlock2D\",\"Cross", "SkipDownBlock2D\",\"Cross", "SkipDownBlock2D"),
        ] {
            let json = VALID.replace(from, to);
            assert_ne!(json, VALID);
            let error = UNet2DConditionConfig::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{from} -> {to}: {error}");
        }
    }
}
