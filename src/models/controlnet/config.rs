//! `config.json` of a ControlNet.

use serde::Deserialize;
use serde_json::{Value, json};

use super::UnionConfig;
use crate::models::{ConfigError, UNet2DConditionConfig};

/// More channels than any network has.
const MAX_CHANNELS: usize = 1 << 16;

/// The configuration of a ControlNet: that of the UNet that it is a copy of, and its own fields.
#[derive(Debug, Clone)]
pub struct ControlNetConfig {
    /// The UNet, of which the way up counts for nothing.
    pub unet: UNet2DConditionConfig,
    /// Channels of the picture.
    pub conditioning_channels: usize,
    /// Channels on the picture's way to the resolution of latents, one entry for each halving and one more.
    pub conditioning_embedding_out_channels: Vec<usize>,
    /// Of networks that know several kinds of pictures.
    pub union: Option<UnionConfig>,
    channel_order: ChannelOrder,
    global_pool_conditions: bool,
}

/// The fields that a UNet lacks, with diffusers' defaults.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Own {
    conditioning_channels: usize,
    conditioning_embedding_out_channels: Vec<usize>,
    controlnet_conditioning_channel_order: ChannelOrder,
    global_pool_conditions: bool,
}

/// The order of a picture's colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ChannelOrder {
    #[default]
    Rgb,
    Bgr,
}

impl Default for Own {
    fn default() -> Self {
        Self {
            conditioning_channels: 3,
            conditioning_embedding_out_channels: vec![16, 32, 96, 256],
            controlnet_conditioning_channel_order: ChannelOrder::Rgb,
            global_pool_conditions: false,
        }
    }
}

impl ControlNetConfig {
    /// Reads and checks `config.json` of a `ControlNetModel`, or of a UNet that it is a copy of.
    ///
    /// # Errors
    /// When it is no valid JSON, or describes a network that cannot be or that is not supported.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let mut raw = ConfigError::read_fields(json, &["mid_block_type"])?;
        let own: Own = ConfigError::read(Value::Object(raw.clone()))?;
        let is_union = raw.contains_key("num_control_type");
        let union: Option<UnionConfig> = is_union.then(|| ConfigError::read(Value::Object(raw.clone()))).transpose()?;
        // The way up mirrors the way down, and nothing is built of it.
        if let Some(Value::Array(down)) = raw.get("down_block_types") {
            let up = down.iter().rev().map(|kind| kind.as_str().unwrap_or_default().replace("Down", "Up")).collect::<Vec<_>>();
            raw.insert("reverse_transformer_layers_per_block".to_owned(), json!(vec![0; up.len()]));
            raw.insert("up_block_types".to_owned(), json!(up));
        }
        let unet = UNet2DConditionConfig::from_json(Value::Object(raw).to_string().as_bytes())?;
        let Own { conditioning_channels, conditioning_embedding_out_channels, controlnet_conditioning_channel_order, .. } = own;
        ConfigError::unless(conditioning_channels == 3, || format!("conditioning_channels must be 3, not {conditioning_channels}"))?;
        let channels = &conditioning_embedding_out_channels;
        ConfigError::unless(channels.len() == 4 && channels.iter().all(|channels| (1..=MAX_CHANNELS).contains(channels)), || {
            format!(
                "conditioning_embedding_out_channels must have 4 entries, one for each halving of the picture's side and one more, not {channels:?}"
            )
        })?;
        let groups = unet.norm_num_groups;
        let fall_into_groups = groups > 0 && unet.block_out_channels.iter().all(|channels| channels.is_multiple_of(groups));
        ConfigError::unless(fall_into_groups, || format!("norm_num_groups = {groups} does not divide block_out_channels"))?;
        ConfigError::unless(unet.norm_eps > 0.0, || format!("norm_eps must be more than 0, not {}", unet.norm_eps))?;
        if let Some(union) = union {
            check_union(union, &unet)?;
        }
        ConfigError::unless(unet.mid_block_type.is_some(), || "a ControlNet without a middle block is not supported".to_owned())?;
        Ok(Self {
            unet,
            conditioning_channels,
            conditioning_embedding_out_channels,
            union,
            channel_order: controlnet_conditioning_channel_order,
            global_pool_conditions: own.global_pool_conditions,
        })
    }

    /// Channels of the output of each layer on the way down: of the first convolution, and at each level of its residual blocks and the
    /// halving after them.
    #[must_use]
    pub fn skip_channels(&self) -> Vec<usize> {
        let channels = &self.unet.block_out_channels;
        let level = |level: usize| {
            let halving = usize::from(level + 1 < channels.len());
            std::iter::repeat_n(channels[level], self.unet.layers_per_block.at(level) + halving)
        };
        std::iter::once(channels[0]).chain((0..channels.len()).flat_map(level)).collect()
    }

    /// Whether blue comes first in pictures.
    #[must_use]
    pub fn is_bgr(&self) -> bool {
        self.channel_order == ChannelOrder::Bgr
    }

    /// Whether only the mean of each channel counts. Such a network is always used as in guess mode, as in diffusers.
    #[must_use]
    pub fn pools(&self) -> bool {
        self.global_pool_conditions
    }

    /// Whether the outputs can be added to those of this UNet.
    ///
    /// # Errors
    /// Says what differs.
    pub fn check_fits(&self, unet: &UNet2DConditionConfig) -> Result<(), String> {
        let (own, own_text) = (&self.unet, self.unet.text_time());
        if own.block_out_channels != unet.block_out_channels {
            return Err(format!("its levels have {:?} channels, the model's {:?}", own.block_out_channels, unet.block_out_channels));
        }
        if own.cross_attention_dim != unet.cross_attention_dim {
            return Err(format!("it looks at text of width {}, the model at {}", own.cross_attention_dim, unet.cross_attention_dim));
        }
        if (0..own.block_out_channels.len()).any(|level| own.layers_per_block.at(level) != unet.layers_per_block.at(level)) {
            return Err("it has another number of layers at a level than the model".to_owned());
        }
        if own_text.is_some_and(|own| Some(own.pooled_dim) != unet.text_time().map(|text| text.pooled_dim)) {
            return Err("it looks at pooled text of another width than the model".to_owned());
        }
        Ok(())
    }
}

fn check_union(union: UnionConfig, unet: &UNet2DConditionConfig) -> Result<(), ConfigError> {
    let UnionConfig { num_control_type, num_trans_channel: channels, num_trans_layer, num_proj_channel } = union;
    let finest = unet.block_out_channels[0];
    ConfigError::unless((1..=64).contains(&num_control_type), || format!("num_control_type must be 1 to 64, not {num_control_type}"))?;
    ConfigError::unless(num_trans_layer <= 64, || format!("num_trans_layer must be at most 64, not {num_trans_layer}"))?;
    ConfigError::unless(channels == finest && num_proj_channel == finest, || {
        format!(
            "num_trans_channel and num_proj_channel must be {finest}, as the first of block_out_channels, not {channels} and {num_proj_channel}"
        )
    })?;
    ConfigError::unless(unet.addition_time_embed_dim.is_some_and(|dim| dim > 2), || {
        "a union of ControlNets needs addition_time_embed_dim".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = r#"{"_class_name":"ControlNetModel","block_out_channels":[64,128],"layers_per_block":2,
        "down_block_types":["DownBlock2D","CrossAttnDownBlock2D"],"transformer_layers_per_block":[1,2],
        "attention_head_dim":[4,8],"cross_attention_dim":64,"conditioning_embedding_out_channels":[16,32,96,256]}"#;

    const UNION: &str = r#""num_control_type":6,"num_trans_channel":64,"num_trans_layer":1,"num_proj_channel":64"#;

    #[test]
    fn skips_are_those_of_the_unet() {
        let config = ControlNetConfig::from_json(VALID.as_bytes()).unwrap();
        assert_eq!(config.skip_channels(), [64, 64, 64, 64, 128, 128]);
        assert!(!config.is_bgr() && !config.pools());
        config.check_fits(&config.unet).unwrap();
        let sd1 = ControlNetConfig::from_json(b"{}").unwrap();
        assert_eq!(sd1.skip_channels().len(), 12);
        assert!(config.check_fits(&sd1.unet).unwrap_err().contains("[64, 128] channels"));
    }

    #[test]
    fn impossible_networks_are_refused_with_the_reason() {
        for (from, to, reason) in [
            ("[16,32,96,256]", "[16,32,96]", "must have 4 entries"),
            ("[16,32,96,256]", "[16,32,0,256]", "must have 4 entries"),
            ("\"layers_per_block\":2", "\"layers_per_block\":2,\"conditioning_channels\":1", "conditioning_channels must be 3, not 1"),
            ("\"layers_per_block\":2", "\"layers_per_block\":2,\"controlnet_conditioning_channel_order\":\"hsv\"", "unknown variant `hsv`"),
            ("\"layers_per_block\":2", "\"layers_per_block\":2,\"addition_embed_type\":\"text\"", "addition_embed_type = \"text\""),
            ("\"layers_per_block\":2", "\"layers_per_block\":2,\"mid_block_type\":null", "without a middle block"),
            ("\"DownBlock2D\",", "", "down_block_types has 1 entries"),
            ("\"layers_per_block\":2", UNION, "needs addition_time_embed_dim"),
            ("\"layers_per_block\":2", "\"layers_per_block\":2,\"num_control_type\":6", "missing field `num_trans_channel`"),
        ] {
            let json = VALID.replace(from, to);
            assert_ne!(json, VALID);
            let error = ControlNetConfig::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{from} -> {to}: {error}");
        }
    }
}
