//! CLIP's text encoder: [Radford et al.](https://arxiv.org/abs/2103.00020). After transformers' `modeling_clip.py`.

use candle_core::{Result, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::{
    ConfigError,
    pass::{Interrupt, Pass},
};
use crate::ops::{Activation, Adapters, ComputeType, Embedding, LayerNames, LayerNorm, Linear, OnDemand, Weights, attention};

/// `text_encoder/config.json`. What it leaves out, or has as null, is as in transformers' `CLIPTextConfig`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Number of tokens known.
    pub vocab_size: usize,
    /// Width of the embeddings.
    pub hidden_size: usize,
    /// Width between the two layers of an MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads of each attention.
    pub num_attention_heads: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Activation of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Width of the pooled text, if it is used. Configurations have it whether or not there is a projection.
    pub projection_dim: Option<usize>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: Some(512),
        }
    }
}

impl ClipTextConfig {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// When it is no valid JSON, or describes no network.
    pub fn from_json(json: &[u8]) -> std::result::Result<Self, ConfigError> {
        let config: Self = ConfigError::read(Value::Object(ConfigError::read_fields(json, &[])?))?;
        let heads = config.num_attention_heads;
        ConfigError::unless(heads > 0 && config.hidden_size > 0 && config.hidden_size.is_multiple_of(heads), || {
            format!("hidden_size {} does not fall into {heads} attention heads", config.hidden_size)
        })?;
        ConfigError::unless(config.max_position_embeddings >= 3, || "max_position_embeddings must be at least 3".to_owned())?;
        Ok(config)
    }

    fn layer(&self) -> ClipLayerConfig {
        ClipLayerConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
            is_causal: true,
        }
    }
}

/// A layer of CLIP's text encoder or of its image encoder.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClipLayerConfig {
    /// Width of the embeddings.
    pub(super) hidden_size: usize,
    /// Width between the two layers of the MLP.
    pub(super) intermediate_size: usize,
    /// Heads of the attention.
    pub(super) heads: usize,
    /// Activation of the MLP.
    pub(super) activation: Activation,
    /// Epsilon of the layer norms.
    pub(super) layer_norm_eps: f64,
    /// Whether a token sees itself and those before it alone, as in a text.
    pub(super) is_causal: bool,
}

/// `CLIPTextModel`, or `CLIPTextModelWithProjection`.
#[derive(Debug, Clone)]
pub struct ClipTextModel {
    token_embedding: Embedding,
    position_embedding: Tensor,
    layers: Vec<OnDemand<ClipEncoderLayer>>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    layer_names: LayerNames,
}

impl ClipTextModel {
    /// Reads the weights, with or without the `text_model.` in front of their names (transformers 4 and 5).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn new(config: &ClipTextConfig, vb: &Weights) -> Result<Self> {
        let text_projection = config.projection_dim.map(|dim| Linear::no_bias(config.hidden_size, dim, &vb.pp("text_projection")));
        // Either tensor may be missing: the other still tells.
        let beginnings = ["text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight"];
        let prefixed = beginnings.iter().any(|name| vb.contains_tensor(name));
        let vb = &if prefixed { vb.pp("text_model") } else { vb.clone() };
        let embeddings = vb.pp("embeddings");
        Ok(Self {
            token_embedding: Embedding::new(config.vocab_size, config.hidden_size, &embeddings.pp("token_embedding"))?,
            position_embedding: embeddings.get((config.max_position_embeddings, config.hidden_size), "position_embedding.weight")?,
            layers: encoder_layers(config.layer(), config.num_hidden_layers, &vb.pp("encoder.layers"))?,
            final_layer_norm: LayerNorm::new(config.hidden_size, config.layer_norm_eps, &vb.pp("final_layer_norm"))?,
            text_projection: text_projection.transpose()?,
            layer_names: vb.layer_names(),
        })
    }

    /// The numbers of the network's layers, by their names in the checkpoint.
    #[must_use]
    pub fn layer_names(&self) -> &LayerNames {
        &self.layer_names
    }

    /// Number of layers.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Adds tokens to the vocabulary, with these embeddings, `(new, hidden_size)`, and returns the id of the first one.
    ///
    /// # Errors
    /// When they have another width, or the device fails.
    pub fn add_tokens(&mut self, embeddings: &Tensor) -> Result<u32> {
        Ok(self.token_embedding.append(embeddings)? as u32)
    }

    /// Token ids `(batch, tokens)` to the hidden state after all layers but the `skipped_layers` last ones and the final norm,
    /// `(batch, tokens, hidden_size)`.
    ///
    /// # Errors
    /// When there are more tokens than positions, an id is out of the vocabulary, the device fails, or the pass is interrupted.
    pub fn forward(&self, ids: &Tensor, skipped_layers: usize, adapters: &Adapters, interrupt: Interrupt) -> Result<Tensor> {
        let pass = &Pass { adapters, ..Pass::of_input(interrupt) };
        let layers = &self.layers[..self.layers.len().saturating_sub(skipped_layers)];
        self.final_layer_norm.with(adapters).forward(&run(layers, self.embed(ids)?, pass)?)
    }

    /// Token ids `(batch, tokens)` to the input of the last layer, without a norm, `(batch, tokens, hidden_size)`, and, if the model has a
    /// projection, to the pooled text, `(batch, projection_dim)`: the state after all layers at the tokens `ends`, one for each text.
    ///
    /// # Errors
    /// As [`ClipTextModel::forward`].
    pub fn forward_penultimate(
        &self,
        ids: &Tensor,
        ends: &[usize],
        adapters: &Adapters,
        interrupt: Interrupt,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let pass = &Pass { adapters, ..Pass::of_input(interrupt) };
        let (first, rest) = self.layers.split_at(self.layers.len().saturating_sub(1));
        let penultimate = run(first, self.embed(ids)?, pass)?;
        let Some(projection) = &self.text_projection else { return Ok((penultimate, None)) };
        let last = run(rest, penultimate.clone(), pass)?;
        let ends = ends.iter().enumerate().map(|(i, end)| last.get(i)?.get(*end)).collect::<Result<Vec<_>>>()?;
        let last = self.final_layer_norm.with(adapters).forward(&Tensor::stack(&ends, 0)?)?;
        let pooled = projection.with(adapters).forward(&last)?;
        Ok((penultimate, Some(pooled)))
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (_, tokens) = ids.dims2()?;
        self.token_embedding.forward(ids)?.broadcast_add(&self.position_embedding.narrow(0, 0, tokens)?)
    }
}

/// The layers of an encoder. `vb` has them by their numbers.
pub(super) fn encoder_layers(config: ClipLayerConfig, count: usize, vb: &Weights) -> Result<Vec<OnDemand<ClipEncoderLayer>>> {
    (0..count).map(|i| OnDemand::new(vb.pp(i), move |vb| ClipEncoderLayer::new(config, vb))).collect()
}

/// `x` `(batch, tokens, hidden_size)` through several layers.
pub(super) fn run(layers: &[OnDemand<ClipEncoderLayer>], x: Tensor, pass: &Pass) -> Result<Tensor> {
    layers.iter().try_fold(x, |x, layer| {
        pass.check()?;
        layer.with(|layer| layer.forward(&x, pass.adapters))
    })
}

/// transformers' `CLIPEncoderLayer`.
#[derive(Debug, Clone)]
pub(super) struct ClipEncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: ClipAttention,
    layer_norm2: LayerNorm,
    mlp: ClipMlp,
}

impl ClipEncoderLayer {
    fn new(config: ClipLayerConfig, vb: &Weights) -> Result<Self> {
        Ok(Self {
            layer_norm1: LayerNorm::new(config.hidden_size, config.layer_norm_eps, &vb.pp("layer_norm1"))?,
            self_attn: ClipAttention::new(config, &vb.pp("self_attn"))?,
            layer_norm2: LayerNorm::new(config.hidden_size, config.layer_norm_eps, &vb.pp("layer_norm2"))?,
            mlp: ClipMlp::new(config, &vb.pp("mlp"))?,
        })
    }

    fn forward(&self, x: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        let x = self.self_attn.forward(&self.layer_norm1.with(adapters).forward(x)?, x, adapters)?;
        self.mlp.forward(&self.layer_norm2.with(adapters).forward(&x)?, &x, adapters)
    }
}

#[derive(Debug, Clone)]
struct ClipAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
    is_causal: bool,
}

impl ClipAttention {
    fn new(config: ClipLayerConfig, vb: &Weights) -> Result<Self> {
        let projection = |name: &str| Linear::new(config.hidden_size, config.hidden_size, &vb.pp(name));
        Ok(Self {
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            out_proj: projection("out_proj")?,
            heads: config.heads,
            is_causal: config.is_causal,
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        let project = |projection: &Linear| projection.with(adapters).forward(x);
        let (q, k, v) = (project(&self.q_proj)?, project(&self.k_proj)?, project(&self.v_proj)?);
        self.out_proj.with(adapters).forward_add(&attention(ComputeType::F32, &q, &k, &v, self.heads, self.is_causal)?, residual)
    }
}

#[derive(Debug, Clone)]
struct ClipMlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl ClipMlp {
    fn new(config: ClipLayerConfig, vb: &Weights) -> Result<Self> {
        Ok(Self {
            fc1: Linear::new(config.hidden_size, config.intermediate_size, &vb.pp("fc1"))?,
            fc2: Linear::new(config.intermediate_size, config.hidden_size, &vb.pp("fc2"))?,
            activation: config.activation,
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor, adapters: &Adapters) -> Result<Tensor> {
        let hidden = self.fc1.with(adapters).forward_activated(x, self.activation)?;
        self.fc2.with(adapters).forward_add(&hidden, residual)
    }
}
