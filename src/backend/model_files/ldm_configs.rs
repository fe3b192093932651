//! The configurations that a checkpoint in one file does not carry, from the names and shapes of its tensors, as `ComfyUI` finds them.
//! They are written as diffusers and transformers would have them.

use serde_json::{Value, json};

use super::{ldm_names, tensor_files::TensorFiles};

/// Of Stable Diffusion 1; the others have heads of a fixed width.
const SD1_HEADS: usize = 8;
/// Width of a head, in every `UNet` but those of Stable Diffusion 1, and in all text encoders.
const HEAD_DIM: usize = 64;
/// Layers of Stable Diffusion 2's text encoder that are looked at.
const SD2_LAYERS: usize = 23;
/// The numbers that SDXL is told of a picture.
const TIME_IDS: usize = 6;

/// What the names of the tensors of a network begin with.
pub(super) struct Network<'a> {
    pub(super) files: &'a TensorFiles,
    pub(super) prefix: String,
}

impl Network<'_> {
    /// A length of a tensor, or 0 if it is not there, which no network has; so its configuration is refused.
    fn dim(&self, name: &str, dim: usize) -> usize {
        self.shape(name).and_then(|shape| shape.get(dim)).copied().unwrap_or_default()
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.files.shape(&format!("{}{name}", self.prefix))
    }

    /// How many there are of what `name` makes the names of, from 0 on.
    pub(super) fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..self.files.len()).take_while(|i| self.shape(&name(*i)).is_some()).count()
    }
}

/// A level of a UNet's way down.
struct Level {
    channels: usize,
    resnets: usize,
    /// Transformer blocks after each residual block.
    transformers: usize,
}

/// The levels of a UNet, the finest first.
fn levels(unet: &Network) -> Vec<Level> {
    let mut levels = Vec::new();
    let mut level = Level { channels: 0, resnets: 0, transformers: 0 };
    for i in 1..=unet.files.len() {
        let block = format!("input_blocks.{i}");
        if unet.shape(&format!("{block}.0.op.weight")).is_some() {
            levels.push(std::mem::replace(&mut level, Level { channels: 0, resnets: 0, transformers: 0 }));
            continue;
        }
        let channels = unet.dim(&format!("{block}.0.in_layers.2.weight"), 0);
        if channels == 0 {
            break;
        }
        let transformers = unet.count(|k| format!("{block}.1.transformer_blocks.{k}.norm1.weight"));
        level = Level { channels, resnets: level.resnets + 1, transformers };
    }
    levels.push(level);
    levels
}

/// Residual blocks to a level of a UNet.
pub(super) fn layers_per_block(unet: &Network) -> usize {
    levels(unet).first().map_or(0, |level| level.resnets)
}

/// `unet/config.json`.
pub(super) fn unet(unet: &Network, sample_size: usize, pooled_dim: Option<usize>) -> Value {
    let levels = levels(unet);
    let list = |of: fn(&Level) -> usize| levels.iter().map(of).collect::<Vec<_>>();
    let kind = |level: &Level, way: &str| {
        let attention = if level.transformers > 0 { "CrossAttn" } else { "" };
        format!("{attention}{way}Block2D")
    };
    let text_width = "middle_block.1.transformer_blocks.0.attn2.to_k.weight";
    let is_linear = unet.shape("middle_block.1.proj_in.weight").is_some_and(|shape| shape.len() == 2);
    let heads = |level: &Level| if is_linear { level.channels / HEAD_DIM } else { SD1_HEADS };
    let mut config = json!({
        "sample_size": sample_size,
        "in_channels": unet.dim("input_blocks.0.0.weight", 1),
        "out_channels": unet.dim("out.2.weight", 0),
        "block_out_channels": list(|level| level.channels),
        "down_block_types": levels.iter().map(|level| kind(level, "Down")).collect::<Vec<_>>(),
        "up_block_types": levels.iter().rev().map(|level| kind(level, "Up")).collect::<Vec<_>>(),
        "layers_per_block": layers_per_block(unet),
        "transformer_layers_per_block": list(|level| level.transformers),
        "attention_head_dim": levels.iter().map(heads).collect::<Vec<_>>(),
        "cross_attention_dim": unet.dim(text_width, 1),
        "use_linear_projection": is_linear,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "downsample_padding": 1,
        "time_cond_proj_dim": guidance_dim(unet),
    });
    if let Some(levels) = config["transformer_layers_per_block"].as_array_mut()
        && let Some(coarsest) = levels.last_mut()
    {
        // The middle has as many as the coarsest level, also where that has none itself.
        *coarsest = unet.count(|k| format!("middle_block.1.transformer_blocks.{k}.norm1.weight")).into();
    }
    if let Some(pooled_dim) = pooled_dim {
        let inputs = unet.dim("label_emb.0.0.weight", 1);
        config["addition_embed_type"] = "text_time".into();
        config["addition_time_embed_dim"] = (inputs.saturating_sub(pooled_dim) / TIME_IDS).into();
        config["projection_class_embeddings_input_dim"] = inputs.into();
    }
    config
}

/// Width of the embedding of the guidance scale, in models that were distilled to know it.
pub(super) fn guidance_dim(unet: &Network) -> Option<usize> {
    unet.shape("time_embed.cond_proj.weight").and_then(|shape| shape.get(1)).copied()
}

/// How many levels a VAE has.
pub(super) fn vae_levels(vae: &Network) -> usize {
    vae.count(|i| format!("encoder.down.{i}.block.0.conv1.weight"))
}

/// `vae/config.json`, but for what is not in the shapes. `names` are the file's for diffusers'.
pub(super) fn vae(vae: &Network, names: impl Fn(&str) -> String) -> Value {
    let dim = |name: &str, dim| vae.dim(&names(name), dim);
    let channels = |i: usize| format!("encoder.down_blocks.{i}.resnets.0.conv1.weight");
    let levels = vae.count(|i| names(&channels(i)));
    json!({
        "in_channels": dim("encoder.conv_in.weight", 1),
        "out_channels": dim("decoder.conv_out.weight", 0),
        "latent_channels": dim("decoder.conv_in.weight", 1),
        "block_out_channels": (0..levels).map(|i| dim(&channels(i), 0)).collect::<Vec<_>>(),
        "layers_per_block": vae.count(|i| names(&format!("encoder.down_blocks.0.resnets.{i}.conv1.weight"))),
        "norm_num_groups": 32,
        "use_quant_conv": vae.shape("quant_conv.weight").is_some(),
        "use_post_quant_conv": vae.shape("post_quant_conv.weight").is_some(),
    })
}

/// `text_encoder/config.json` of CLIP's own text encoder, which has transformers' names.
pub(super) fn clip(clip: &Network) -> Value {
    // The oldest checkpoints have no such word in front.
    let inside = if clip.shape("text_model.final_layer_norm.weight").is_some() { "text_model." } else { "" };
    let name = |name: &str| format!("{inside}{name}");
    let mut config = text_encoder(
        [clip.dim(&name("embeddings.token_embedding.weight"), 0), clip.dim(&name("embeddings.token_embedding.weight"), 1)],
        clip.dim(&name("embeddings.position_embedding.weight"), 0),
        clip.dim(&name("encoder.layers.0.mlp.fc1.weight"), 0),
        clip.count(|i| name(&format!("encoder.layers.{i}.layer_norm1.weight"))),
        "quick_gelu",
    );
    config["projection_dim"] = clip.dim("text_projection.weight", 0).into();
    config
}

/// The same of `OpenCLIP`'s.
pub(super) fn open_clip(clip: &Network) -> Value {
    let mut config = text_encoder(
        [clip.dim("token_embedding.weight", 0), clip.dim("token_embedding.weight", 1)],
        clip.dim("positional_embedding", 0),
        clip.dim("transformer.resblocks.0.mlp.c_fc.weight", 0),
        layers(clip),
        "gelu",
    );
    config["projection_dim"] = projection_dim(clip).into();
    config
}

/// The same of Stable Diffusion 2's `OpenCLIP`, which looks at what goes into the last layer. Files that were made of diffusers' layout
/// have that layer no more.
pub(super) fn sd2_open_clip(clip: &Network) -> Value {
    let mut config = open_clip(clip);
    config["num_hidden_layers"] = (layers(clip) - sd2_unused_layers(clip).len()).into();
    config
}

/// What the names begin with of the layers of Stable Diffusion 2's `OpenCLIP` that nobody looks at.
pub(super) fn sd2_unused_layers(clip: &Network) -> Vec<String> {
    let layers = layers(clip);
    let used = if layers == SD2_LAYERS { layers } else { layers.saturating_sub(1) };
    (used..layers).map(|i| format!("{}{}", clip.prefix, layer(i))).collect()
}

/// How many layers an `OpenCLIP` has.
fn layers(clip: &Network) -> usize {
    clip.count(|i| format!("{}ln_1.weight", layer(i)))
}

fn layer(i: usize) -> String {
    format!("transformer.resblocks.{i}.")
}

/// Width of the pooled text.
pub(super) fn projection_dim(open_clip: &Network) -> usize {
    open_clip.dim(&ldm_names::open_clip("text_projection.weight").name, 1)
}

fn text_encoder([vocab_size, hidden_size]: [usize; 2], positions: usize, intermediate: usize, layers: usize, act: &str) -> Value {
    json!({
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden_size / HEAD_DIM,
        "max_position_embeddings": positions,
        "hidden_act": act,
        "layer_norm_eps": 1e-5,
    })
}
