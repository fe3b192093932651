//! `unet/config.json`.

use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;

use crate::{models::ConfigError, ops::Activation};

/// The fields that describe the network. [`UNet2DConditionConfig::from_json`] refuses values of other fields that would change it. A field
/// that is left out or null has the default of diffusers' `UNet2DConditionModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct UNet2DConditionConfig {
    /// Side of the latents in training.
    #[serde(deserialize_with = "the_same")]
    pub sample_size: usize,
    /// Channels of the noisy latents.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Channels of each level, the finest first.
    pub block_out_channels: Vec<usize>,
    /// Kind of each block on the way down.
    pub down_block_types: Vec<DownBlockType>,
    /// Kind of the block in the middle, if there is one.
    pub mid_block_type: Option<MidBlockType>,
    /// Kind of each block on the way up, the coarsest first.
    pub up_block_types: Vec<UpBlockType>,
    /// Residual blocks at each level on the way down. The way up has one more.
    pub layers_per_block: OneOrEach,
    /// Transformer blocks after each residual block on the way down, by level, for all of its residual blocks or for each.
    pub transformer_layers_per_block: OneOrEach<OneOrEach>,
    /// The same on the way up, the coarsest level first, where it differs.
    pub reverse_transformer_layers_per_block: Option<OneOrEach<OneOrEach>>,
    /// Number of attention heads by level, not their width: a misnomer that diffusers kept.
    pub attention_head_dim: OneOrEach,
    /// The same under its right name, if a checkpoint has it.
    pub num_attention_heads: Option<OneOrEach>,
    /// Width of the text embeddings.
    #[serde(deserialize_with = "the_same")]
    pub cross_attention_dim: usize,
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
    /// Width of the embedding of each of SDXL's sizes and offsets.
    pub addition_time_embed_dim: Option<usize>,
    /// Width of the pooled text and these embeddings together.
    pub projection_class_embeddings_input_dim: Option<usize>,
    /// Width of the embedding of the guidance scale, in models that look at it.
    pub time_cond_proj_dim: Option<usize>,
}

impl Default for UNet2DConditionConfig {
    /// diffusers' defaults, with the latents' size of Stable Diffusion 1, for which diffusers has none.
    fn default() -> Self {
        use {DownBlockType::CrossAttention as Down, UpBlockType::CrossAttention as Up};
        Self {
            sample_size: 64,
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_block_types: vec![Down, Down, Down, DownBlockType::Plain],
            mid_block_type: Some(MidBlockType::CrossAttention),
            up_block_types: vec![UpBlockType::Plain, Up, Up, Up],
            layers_per_block: OneOrEach::One(2),
            transformer_layers_per_block: OneOrEach::One(OneOrEach::One(1)),
            reverse_transformer_layers_per_block: None,
            attention_head_dim: OneOrEach::One(8),
            num_attention_heads: None,
            cross_attention_dim: 1280,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            act_fn: Activation::Silu,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            downsample_padding: 1,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
            time_cond_proj_dim: None,
        }
    }
}

/// SDXL's `time_ids`: height and width of the original, top and left of the crop, height and width of the result.
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

/// A value for all, or one for each.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "must be one value, or a list with one for each level")]
pub enum OneOrEach<T = usize> {
    /// For each.
    Each(Vec<T>),
    /// For all.
    One(T),
}

impl<T> OneOrEach<T> {
    /// The value for this index.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&T> {
        match self {
            Self::One(one) => Some(one),
            Self::Each(all) => all.get(index),
        }
    }

    /// # Errors
    /// When there is a list that has not `count` entries, one for each `what`.
    fn check(&self, field: &str, count: usize, what: &str) -> Result<(), ConfigError> {
        match self {
            Self::Each(all) => ConfigError::unless_one_each(field, all, count, what),
            Self::One(_) => Ok(()),
        }
    }
}

impl OneOrEach {
    /// The number for this index, 0 if there is none.
    #[must_use]
    pub fn at(&self, index: usize) -> usize {
        self.get(index).copied().unwrap_or_default()
    }
}

/// A number, or a list that repeats it for each block or side. diffusers has networks in which the entries differ; no Stable Diffusion does.
fn the_same<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match OneOrEach::deserialize(deserializer)? {
        OneOrEach::One(number) => Ok(number),
        OneOrEach::Each(numbers) => match numbers.as_slice() {
            [first, rest @ ..] if rest.iter().all(|other| other == first) => Ok(*first),
            _ => Err(D::Error::custom(format_args!("{numbers:?} is not supported: a number, or a list of the same number is"))),
        },
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

/// Kinds of block in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum MidBlockType {
    /// Two residual blocks with a transformer between them.
    #[serde(rename = "UNetMidBlock2DCrossAttn")]
    CrossAttention,
    /// A residual block, in SSD-1B and Vega.
    #[serde(rename = "UNetMidBlock2D")]
    Plain,
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

/// Fields that change the network in unsupported ways, with the values that do not. A list has one value for each block.
const UNSUPPORTED: [(&str, &[&str]); 19] = [
    ("addition_embed_type", &["\"text_time\""]),
    ("attention_type", &["\"default\""]),
    ("center_input_sample", &["false"]),
    ("class_embed_type", &[]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("cross_attention_norm", &[]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &[]),
    ("encoder_hid_dim_type", &[]),
    ("mid_block_only_cross_attention", &["false"]),
    ("mid_block_scale_factor", &["1", "1.0"]),
    ("num_class_embeds", &[]),
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1", "1.0"]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("time_embedding_act_fn", &[]),
    ("time_embedding_type", &["\"positional\""]),
];

impl UNet2DConditionConfig {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// When it is no valid JSON, or describes a network that cannot be or that is not supported.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let raw = ConfigError::read_fields(json, &["mid_block_type"])?;
        for (field, supported) in UNSUPPORTED {
            let Some(value) = raw.get(field) else { continue };
            let each = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let is_supported = each.iter().all(|value| supported.contains(&value.to_string().as_str()));
            ConfigError::unless(is_supported, || format!("{field} = {value} is not supported"))?;
        }
        let config: Self = ConfigError::read(Value::Object(raw))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let levels = self.block_out_channels.len();
        ConfigError::unless((1..=8).contains(&levels), || format!("block_out_channels must have 1 to 8 entries, not {levels}"))?;
        ConfigError::unless_one_each("down_block_types", &self.down_block_types, levels, "blocks")?;
        ConfigError::unless_one_each("up_block_types", &self.up_block_types, levels, "blocks")?;
        self.layers_per_block.check("layers_per_block", levels, "blocks")?;
        self.heads_field().check("attention_head_dim", levels, "blocks")?;
        self.check_transformers()?;
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

    /// # Errors
    /// When the lists of transformers and residual blocks differ in length.
    fn check_transformers(&self) -> Result<(), ConfigError> {
        let (levels, down) = (self.block_out_channels.len(), &self.transformer_layers_per_block);
        let up = self.reverse_transformer_layers_per_block.as_ref();
        let is_uneven = |depth: Option<&OneOrEach>| matches!(depth, Some(OneOrEach::Each(_)));
        ConfigError::unless(up.is_some() || !(0..levels).any(|level| is_uneven(down.get(level))), || {
            "transformer_layers_per_block with lists in it needs reverse_transformer_layers_per_block".to_owned()
        })?;
        for (name, depths, more) in [("transformer_layers_per_block", Some(down), 0), ("reverse_transformer_layers_per_block", up, 1)] {
            let Some(depths) = depths else { continue };
            depths.check(name, levels, "blocks")?;
            for block in 0..levels {
                let level = if more == 0 { block } else { levels - 1 - block };
                let layers = self.layers_per_block.at(level) + more;
                depths.get(block).map_or(Ok(()), |depth| depth.check(name, layers, "residual blocks"))?;
            }
        }
        Ok(())
    }

    fn heads_field(&self) -> &OneOrEach {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim)
    }

    /// Attention heads at a level.
    #[must_use]
    pub fn heads(&self, level: usize) -> usize {
        self.heads_field().at(level)
    }

    /// Number of blocks of the transformer after residual block `layer` of a level on the way down, if there is a transformer.
    #[must_use]
    pub fn down_depth(&self, level: usize, layer: usize) -> Option<usize> {
        let has_transformer = self.down_block_types[level] == DownBlockType::CrossAttention;
        has_transformer.then(|| self.transformer_layers_per_block.get(level).map_or(0, |depth| depth.at(layer)))
    }

    /// The same for the middle block: as in diffusers, the depth after the coarsest level's first residual block.
    #[must_use]
    pub fn mid_depth(&self) -> Option<usize> {
        let coarsest = self.block_out_channels.len() - 1;
        let has_transformer = self.mid_block_type == Some(MidBlockType::CrossAttention);
        has_transformer.then(|| self.transformer_layers_per_block.get(coarsest).map_or(0, |depth| depth.at(0)))
    }

    /// The same for a level on the way up.
    #[must_use]
    pub fn up_depth(&self, level: usize, layer: usize) -> Option<usize> {
        let block = self.block_out_channels.len() - 1 - level;
        let has_transformer = self.up_block_types[block] == UpBlockType::CrossAttention;
        let depth = self
            .reverse_transformer_layers_per_block
            .as_ref()
            .map_or_else(|| self.transformer_layers_per_block.get(level), |up| up.get(block));
        has_transformer.then(|| depth.map_or(0, |depth| depth.at(layer)))
    }

    /// The widths of the addition to the time embedding, if there is one.
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
            ("\"layers_per_block\":1", "\"layers_per_block\":[1]", "layers_per_block has 1 entries, but there are 2 blocks"),
            ("\"sample_size\":16", "\"sample_size\":[16,8]", "sample_size: [16, 8] is not supported"),
            ("\"sample_size\":16", "\"sample_size\":16,\"mid_block_type\":\"None\"", "mid_block_type: unknown variant `None`"),
            ("\"sample_size\":16", "\"sample_size\":16,\"only_cross_attention\":[false,true]", "only_cross_attention = [false,true]"),
            (
                "\"sample_size\":16",
                "\"sample_size\":16,\"transformer_layers_per_block\":[1,[2]]",
                "needs reverse_transformer_layers_per_block",
            ),
            (
                "\"sample_size\":16",
                "\"sample_size\":16,\"reverse_transformer_layers_per_block\":[[2,1,1],1]",
                "reverse_transformer_layers_per_block has 3 entries, but there are 2 residual blocks",
            ),
            ("[4,8]", "0", "0 attention heads"),
            ("[4,8]", "7", "do not fall into 7"),
            ("[64,128]", "[63,128]", "do not fall into 4"),
            ("\"act_fn\":\"silu\"", "\"act_fn\":\"relu\"", "act_fn must be silu"),
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
