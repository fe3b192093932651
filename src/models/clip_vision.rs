//! CLIP's image encoder: [Radford et al.](https://arxiv.org/abs/2103.00020), a
//! [vision transformer](https://arxiv.org/abs/2010.11929). After transformers' `modeling_clip.py`.

use std::collections::HashMap;

use candle_core::{D, Result, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    ConfigError,
    clip::{ClipEncoderLayer, ClipLayerConfig, encoder_layers, run},
    pass::{Interrupt, Pass},
};
use crate::ops::{Activation, LayerNorm, Linear, OnDemand, Weights};

/// Colours of a picture.
const CHANNELS: usize = 3;
/// The widest embeddings, the largest patch and the largest picture. The largest published encoder has 1664, 32 and 336.
const MAX_HIDDEN_SIZE: usize = 8192;
const MAX_PATCH_SIZE: usize = 64;
const MAX_IMAGE_SIZE: usize = 2048;

/// `image_encoder/config.json`. What it leaves out, or has as null, is as in transformers' `CLIPVisionConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Width of the embeddings.
    pub hidden_size: usize,
    /// Width between the two layers of an MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of each attention.
    pub num_attention_heads: usize,
    /// Colours of a picture.
    pub num_channels: usize,
    /// Side of a picture in pixels.
    pub image_size: usize,
    /// Side of a patch, which becomes one token, in pixels.
    pub patch_size: usize,
    /// Width of the projected embedding of a picture.
    pub projection_dim: usize,
    /// Activation of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: CHANNELS,
            image_size: 224,
            patch_size: 32,
            projection_dim: 512,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipVisionConfig {
    /// Reads and checks `config.json` of a `CLIPVisionModelWithProjection`, or of a whole `CLIPModel`.
    ///
    /// # Errors
    /// When it is no valid JSON, is the configuration of another model, or describes no network.
    pub fn from_json(json: &[u8]) -> std::result::Result<Self, ConfigError> {
        let fields = vision_fields(ConfigError::read_fields(json, &[])?)?;
        if let Some(kind) = fields.get("model_type") {
            ConfigError::unless(kind == "clip_vision_model", || {
                format!("model_type = {kind} is not supported: an image encoder is a \"clip_vision_model\", or in a \"clip\"")
            })?;
        }
        let config: Self = ConfigError::read(Value::Object(fields))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), ConfigError> {
        let in_range = |name: &str, value: usize, most: usize| {
            ConfigError::unless((1..=most).contains(&value), || format!("{name} must be 1 to {most}, not {value}"))
        };
        in_range("hidden_size", self.hidden_size, MAX_HIDDEN_SIZE)?;
        in_range("intermediate_size", self.intermediate_size, 8 * MAX_HIDDEN_SIZE)?;
        in_range("projection_dim", self.projection_dim, MAX_HIDDEN_SIZE)?;
        in_range("num_hidden_layers", self.num_hidden_layers, 1000)?;
        in_range("patch_size", self.patch_size, MAX_PATCH_SIZE)?;
        in_range("image_size", self.image_size, MAX_IMAGE_SIZE)?;
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        ConfigError::unless(heads > 0 && width.is_multiple_of(heads), || {
            format!("hidden_size {width} does not fall into {heads} attention heads")
        })?;
        ConfigError::unless(self.image_size.is_multiple_of(self.patch_size), || {
            format!("image_size {} does not fall into patches of {}", self.image_size, self.patch_size)
        })?;
        ConfigError::unless(self.num_channels == CHANNELS, || format!("num_channels must be {CHANNELS}, not {}", self.num_channels))?;
        ConfigError::unless(matches!(self.hidden_act, Activation::Gelu | Activation::QuickGelu), || {
            "hidden_act must be gelu or quick_gelu".to_owned()
        })?;
        ConfigError::unless(self.layer_norm_eps >= 0.0, || format!("layer_norm_eps must be at least 0, not {}", self.layer_norm_eps))
    }

    /// Number of tokens of a picture: one for each patch, and the class token before them.
    #[must_use]
    pub fn tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }

    fn layer(&self) -> ClipLayerConfig {
        ClipLayerConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
            is_causal: false,
        }
    }
}

/// The fields of the image encoder: all of them, or, in a `CLIPModel`, its part's. The width of the projection is then the whole model's.
fn vision_fields(mut fields: Map<String, Value>) -> std::result::Result<Map<String, Value>, ConfigError> {
    let Some(part) = fields.remove("vision_config") else { return Ok(fields) };
    let mut part: Map<String, Value> = ConfigError::read(part)?;
    // Older files have it a second time, which counts.
    if let Some(Value::Object(again)) = fields.remove("vision_config_dict") {
        part.extend(again);
    }
    part.extend(fields.remove_entry("projection_dim"));
    part.retain(|_, value| !value.is_null());
    Ok(part)
}

/// What the image encoder makes of pictures.
#[derive(Debug, Clone)]
pub struct ImageEmbeds {
    /// Of the whole picture, projected into the space that CLIP's texts are in, `(batch, projection_dim)`: transformers' `image_embeds`.
    pub projected: Tensor,
    /// The input of the last layer, `(batch, tokens, hidden_size)`: transformers' `hidden_states[-2]`.
    pub penultimate: Tensor,
}

/// `CLIPVisionModelWithProjection`.
#[derive(Debug, Clone)]
pub struct ClipVisionModel {
    /// Of a patch's colours, rows and columns. Patches do not overlap, so the convolution is a linear layer.
    patch_embedding: Linear,
    class_embedding: Tensor,
    position_embedding: Tensor,
    pre_layernorm: LayerNorm,
    layers: Vec<OnDemand<ClipEncoderLayer>>,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
    config: ClipVisionConfig,
}

impl ClipVisionModel {
    /// Reads the weights, with transformers' names: `vision_model.…` and `visual_projection.weight`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: ClipVisionConfig, vb: &Weights) -> Result<Self> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let model = vb.pp("vision_model");
        let embeddings = model.pp("embeddings");
        Ok(Self {
            patch_embedding: patch_embedding(&config, &embeddings)?,
            class_embedding: embeddings.get(width, "class_embedding")?,
            position_embedding: embeddings.get((config.tokens(), width), "position_embedding.weight")?,
            // transformers' spelling.
            pre_layernorm: LayerNorm::new(width, eps, &model.pp("pre_layrnorm"))?,
            layers: encoder_layers(config.layer(), config.num_hidden_layers, &model.pp("encoder.layers"))?,
            post_layernorm: LayerNorm::new(width, eps, &model.pp("post_layernorm"))?,
            visual_projection: Linear::no_bias(width, config.projection_dim, &vb.pp("visual_projection"))?,
            config,
        })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// Pixels `(batch, 3, image_size, image_size)`, of CLIP's mean and deviation, to embeddings.
    ///
    /// # Errors
    /// When the pictures are of another size, the device fails, or the pass is interrupted.
    pub fn forward(&self, pixels: &Tensor, interrupt: Interrupt) -> Result<ImageEmbeds> {
        let pass = &Pass::of_input(interrupt);
        let (first, rest) = self.layers.split_at(self.layers.len().saturating_sub(1));
        let penultimate = run(first, self.pre_layernorm.forward(&self.embed(pixels)?)?, pass)?;
        let last = run(rest, penultimate.clone(), pass)?;
        let class = self.post_layernorm.forward(&last.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)?;
        Ok(ImageEmbeds { projected: self.visual_projection.forward(&class)?, penultimate })
    }

    /// The class token and the patches, row by row, with their positions: `(batch, tokens, hidden_size)`.
    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = pixels.dims4()?;
        let (side, patch) = (self.config.image_size, self.config.patch_size);
        if (channels, height, width) != (CHANNELS, side, side) {
            candle_core::bail!("an image encoder for {CHANNELS} x {side} x {side} pixels got {:?}", pixels.shape());
        }
        let across = side / patch;
        let patches = pixels.to_dtype(self.class_embedding.dtype())?.reshape(&[batch, channels, across, patch, across, patch])?;
        let patches = patches.permute([0, 2, 4, 1, 3, 5])?.reshape((batch, across * across, channels * patch * patch))?;
        let patches = self.patch_embedding.forward(&patches)?;
        let class = self.class_embedding.expand((batch, 1, patches.dim(D::Minus1)?))?;
        Tensor::cat(&[class, patches], 1)?.broadcast_add(&self.position_embedding)
    }
}

fn patch_embedding(config: &ClipVisionConfig, vb: &Weights) -> Result<Linear> {
    let (width, patch) = (config.hidden_size, config.patch_size);
    let inputs = CHANNELS * patch * patch;
    let kernel = vb.get((width, CHANNELS, patch, patch), "patch_embedding.weight")?.reshape((width, inputs))?;
    Linear::no_bias(inputs, width, &vb.of_tensors(HashMap::from([("weight".to_owned(), kernel)]))?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    use super::*;
    use crate::ops::WeightType;

    const VALID: &str = r#"{"architectures":["CLIPVisionModelWithProjection"],"model_type":"clip_vision_model","hidden_size":64,
        "intermediate_size":128,"num_hidden_layers":3,"num_attention_heads":2,"image_size":56,"patch_size":14,"projection_dim":32,
        "hidden_act":"gelu","layer_norm_eps":1e-5,"num_channels":3,"dropout":0.0,"torch_dtype":"float16"}"#;

    fn parse(json: &str) -> std::result::Result<ClipVisionConfig, String> {
        ClipVisionConfig::from_json(json.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_configuration_may_be_that_of_a_whole_clip_model() {
        let alone = parse(VALID).unwrap();
        assert_eq!((alone.hidden_size, alone.tokens(), alone.projection_dim, alone.hidden_act), (64, 17, 32, Activation::Gelu));
        let part = VALID.replace("\"projection_dim\":32", "\"projection_dim\":512");
        let whole = |more: &str| {
            parse(&format!(r#"{{"model_type":"clip","text_config":{{"hidden_size":9}},"projection_dim":32,"vision_config":{part}{more}}}"#))
        };
        let config = whole("").unwrap();
        assert_eq!((config.hidden_size, config.projection_dim), (64, 32), "the projection is the whole model's");
        assert_eq!(whole(r#","vision_config_dict":null"#).unwrap().num_hidden_layers, 3);
        assert_eq!(whole(r#","vision_config_dict":{"num_hidden_layers":4}"#).unwrap().num_hidden_layers, 4);
        let left_out = parse("{\"hidden_size\":null}").unwrap();
        assert_eq!((left_out.hidden_size, left_out.tokens(), left_out.projection_dim), (768, 50, 512));
    }

    #[test]
    fn impossible_encoders_are_refused_with_the_reason() {
        for (from, to, reason) in [
            ("\"hidden_size\":64", "\"hidden_size\":65", "hidden_size 65 does not fall into 2 attention heads"),
            ("\"hidden_size\":64", "\"hidden_size\":1000000000", "hidden_size must be 1 to 8192, not 1000000000"),
            ("\"hidden_size\":64", "\"hidden_size\":-1", "hidden_size: invalid value: integer `-1`"),
            ("\"num_attention_heads\":2", "\"num_attention_heads\":0", "does not fall into 0 attention heads"),
            ("\"intermediate_size\":128", "\"intermediate_size\":0", "intermediate_size must be 1 to 65536, not 0"),
            ("\"num_hidden_layers\":3", "\"num_hidden_layers\":0", "num_hidden_layers must be 1 to 1000, not 0"),
            ("\"projection_dim\":32", "\"projection_dim\":0", "projection_dim must be 1 to 8192, not 0"),
            ("\"patch_size\":14", "\"patch_size\":0", "patch_size must be 1 to 64, not 0"),
            ("\"patch_size\":14", "\"patch_size\":16", "image_size 56 does not fall into patches of 16"),
            ("\"image_size\":56", "\"image_size\":[56,56]", "image_size: invalid type: sequence"),
            ("\"image_size\":56", "\"image_size\":56000", "image_size must be 1 to 2048"),
            ("\"num_channels\":3", "\"num_channels\":4", "num_channels must be 3, not 4"),
            ("\"hidden_act\":\"gelu\"", "\"hidden_act\":\"mish\"", "hidden_act: unknown variant `mish`"),
            ("\"hidden_act\":\"gelu\"", "\"hidden_act\":\"silu\"", "hidden_act must be gelu or quick_gelu"),
            ("\"layer_norm_eps\":1e-5", "\"layer_norm_eps\":-1", "layer_norm_eps must be at least 0, not -1"),
            ("clip_vision_model", "siglip_vision_model", "model_type = \"siglip_vision_model\" is not supported"),
        ] {
            let json = VALID.replace(from, to);
            assert_ne!(json, VALID);
            let error = parse(&json).unwrap_err();
            assert!(error.contains(reason), "{from} -> {to}: {error}");
        }
        for (json, reason) in [
            ("", "EOF"),
            ("[]", "invalid type"),
            (r#"{"vision_config":3}"#, "invalid type: integer `3`"),
            (r#"{"model_type":"clip_text_model"}"#, "model_type = \"clip_text_model\" is not supported"),
        ] {
            let error = parse(json).unwrap_err();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }

    #[test]
    fn pictures_of_another_size_are_refused_and_none_are_no_picture() {
        let vb = Weights::new(VarBuilder::zeros(DType::F32, &Device::Cpu), WeightType::F32);
        let model = ClipVisionModel::new(parse(VALID).unwrap(), &vb).unwrap();
        let forward = |shape: &[usize], interrupt| model.forward(&Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap(), interrupt);
        for shape in [&[1, 3, 56, 55][..], &[1, 3, 28, 56], &[1, 4, 56, 56], &[3, 56, 56]] {
            forward(shape, Interrupt::NEVER).unwrap_err();
        }
        let embeds = forward(&[2, 3, 56, 56], Interrupt::NEVER).unwrap();
        assert_eq!((embeds.projected.dims(), embeds.penultimate.dims()), (&[2, 32][..], &[2, 17, 64][..]));
        let interrupted = || true;
        assert!(forward(&[1, 3, 56, 56], Interrupt::when(&interrupted)).unwrap_err().to_string().contains("interrupted"));
    }
}
