//! The names of tensors in checkpoints in one file, for diffusers' and transformers' names. After diffusers' `single_file_utils.py`, the
//! other way round.

use super::{
    architectures::{LAYERS_PER_BLOCK, VAE_LEVELS},
    tensor_files::StoredTensor,
};

/// A residual block's layers.
const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];
/// A VAE's attention.
const VAE_ATTENTION: [(&str, &str); 5] = [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];
/// The layers of `OpenCLIP`'s transformer.
const OPEN_CLIP: [(&str, &str); 5] = [
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
];

/// The name of a UNet's tensor below `model.diffusion_model.`. Blocks are numbered through all levels, residual blocks and changes of
/// resolution alike. `exists` tells whether there is a tensor of a name.
pub(in crate::backend) fn unet(name: &str, exists: impl Fn(&str) -> bool) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let block = |level: &str, i: usize| number(level) * (LAYERS_PER_BLOCK + 1) + i;
    match parts.as_slice() {
        ["conv_in", end] => format!("input_blocks.0.0.{end}"),
        ["conv_norm_out", end] => format!("out.0.{end}"),
        ["conv_out", end] => format!("out.2.{end}"),
        ["time_embedding", "linear_1", end] => format!("time_embed.0.{end}"),
        ["time_embedding", "linear_2", end] => format!("time_embed.2.{end}"),
        ["time_embedding", "cond_proj", end] => format!("time_embed.cond_proj.{end}"),
        ["add_embedding", "linear_1", end] => format!("label_emb.0.0.{end}"),
        ["add_embedding", "linear_2", end] => format!("label_emb.0.2.{end}"),
        ["down_blocks", level, "resnets", i, rest @ ..] => {
            format!("input_blocks.{}.0.{}", block(level, 1 + number(i)), renamed(rest, &RESNET))
        }
        ["down_blocks", level, "attentions", i, rest @ ..] => format!("input_blocks.{}.1.{}", block(level, 1 + number(i)), rest.join(".")),
        ["down_blocks", level, "downsamplers", "0", "conv", end] => {
            format!("input_blocks.{}.0.op.{end}", block(level, 1 + LAYERS_PER_BLOCK))
        }
        ["mid_block", "resnets", i, rest @ ..] => format!("middle_block.{}.{}", 2 * number(i), renamed(rest, &RESNET)),
        ["mid_block", "attentions", "0", rest @ ..] => format!("middle_block.1.{}", rest.join(".")),
        ["up_blocks", level, "resnets", i, rest @ ..] => format!("output_blocks.{}.0.{}", block(level, number(i)), renamed(rest, &RESNET)),
        ["up_blocks", level, "attentions", i, rest @ ..] => format!("output_blocks.{}.1.{}", block(level, number(i)), rest.join(".")),
        ["up_blocks", level, "upsamplers", "0", "conv", end] => {
            // The upsampler comes after the level's last transformer, if there is one.
            let block = format!("output_blocks.{}", block(level, LAYERS_PER_BLOCK));
            let is_alone = ["weight", "bias"].iter().any(|end| exists(&format!("{block}.1.conv.{end}")));
            let place = if is_alone { 1 } else { 2 };
            format!("{block}.{place}.conv.{end}")
        }
        _ => name.to_owned(),
    }
}

/// The name of a ControlNet's tensor below `control_model.`.
pub(super) fn controlnet(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    // Each convolution of the hint is followed by an activation.
    let hint = |convolution: usize, end: &str| format!("input_hint_block.{}.{end}", 2 * convolution);
    match parts.as_slice() {
        ["controlnet_cond_embedding", "conv_in", end] => hint(0, end),
        ["controlnet_cond_embedding", "blocks", i, end] => hint(1 + number(i), end),
        ["controlnet_cond_embedding", "conv_out", end] => hint(7, end),
        ["controlnet_down_blocks", i, end] => format!("zero_convs.{i}.0.{end}"),
        ["controlnet_mid_block", end] => format!("middle_block_out.0.{end}"),
        _ => unet(name, |_| false),
    }
}

/// Residual blocks at each level of a T2I-Adapter whose blocks are numbered through all levels.
pub(super) const T2I_BLOCKS: usize = 2;

/// The name of a T2I-Adapter's tensor in its first files, whose residual blocks are numbered through all levels.
pub(super) fn t2i_adapter(name: &str) -> String {
    let name = name.strip_prefix("adapter.").unwrap_or(name);
    let parts: Vec<&str> = name.split('.').collect();
    match parts.as_slice() {
        ["body", level, "resnets", i, rest @ ..] => format!("body.{}.{}", T2I_BLOCKS * number(level) + number(i), rest.join(".")),
        ["body", level, "in_conv", end] => format!("body.{}.in_conv.{end}", T2I_BLOCKS * number(level)),
        _ => name.to_owned(),
    }
}

/// The name of a VAE's tensor below `first_stage_model.`. The decoder numbers its levels from the finest.
pub(super) fn vae(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let up = |level: &str| VAE_LEVELS.saturating_sub(1 + number(level));
    let resnet = |rest: &[&str]| renamed(rest, &[("conv_shortcut", "nin_shortcut")]);
    match parts.as_slice() {
        [side, "conv_norm_out", end] => format!("{side}.norm_out.{end}"),
        [side, "mid_block", "resnets", i, rest @ ..] => format!("{side}.mid.block_{}.{}", number(i) + 1, resnet(rest)),
        [side, "mid_block", "attentions", "0", rest @ ..] => format!("{side}.mid.attn_1.{}", renamed(rest, &VAE_ATTENTION)),
        ["encoder", "down_blocks", level, "resnets", i, rest @ ..] => format!("encoder.down.{level}.block.{i}.{}", resnet(rest)),
        ["encoder", "down_blocks", level, "downsamplers", "0", rest @ ..] => format!("encoder.down.{level}.downsample.{}", rest.join(".")),
        ["decoder", "up_blocks", level, "resnets", i, rest @ ..] => format!("decoder.up.{}.block.{i}.{}", up(level), resnet(rest)),
        ["decoder", "up_blocks", level, "upsamplers", "0", rest @ ..] => format!("decoder.up.{}.upsample.{}", up(level), rest.join(".")),
        _ => name.to_owned(),
    }
}

/// The name of an `OpenCLIP`'s tensor below its prefix. Projections of queries, keys and values are one tensor. `exists` tells whether there
/// is a tensor of a name.
pub(super) fn open_clip(name: &str, exists: impl Fn(&str) -> bool) -> StoredTensor {
    let parts: Vec<&str> = name.split('.').collect();
    match parts.as_slice() {
        ["text_model", "embeddings", "token_embedding", "weight"] => "token_embedding.weight".to_owned().into(),
        ["text_model", "embeddings", "position_embedding", "weight"] => "positional_embedding".to_owned().into(),
        ["text_model", "final_layer_norm", end] => format!("ln_final.{end}").into(),
        // diffusers' converter wrote a linear layer until 2024, as in SSD-1B.
        ["text_projection", "weight"] if exists("text_projection.weight") => name.to_owned().into(),
        ["text_projection", "weight"] => StoredTensor { name: "text_projection".to_owned(), third: None, is_transposed: true },
        ["text_model", "encoder", "layers", i, "self_attn", projection @ ("q_proj" | "k_proj" | "v_proj"), end] => StoredTensor {
            name: format!("transformer.resblocks.{i}.attn.in_proj_{end}"),
            third: ["q_proj", "k_proj", "v_proj"].iter().position(|name| name == projection),
            is_transposed: false,
        },
        ["text_model", "encoder", "layers", i, rest @ ..] => format!("transformer.resblocks.{i}.{}", renamed(rest, &OPEN_CLIP)).into(),
        _ => name.to_owned().into(),
    }
}

/// The name of a layer of an `OpenCLIP`'s transformer below its prefix. `None` for layers that are stored as part of another, and for all
/// outside of the transformer.
pub(in crate::backend) fn open_clip_layer(name: &str) -> Option<String> {
    let (number, layer) = name.strip_prefix("text_model.encoder.layers.")?.split_once('.')?;
    let (_, other) = OPEN_CLIP.iter().find(|(ours, _)| *ours == layer)?;
    Some(format!("transformer.resblocks.{number}.{other}"))
}

/// A layer's other name.
fn renamed(parts: &[&str], names: &[(&str, &str)]) -> String {
    let name = parts.join(".");
    let other = names.iter().find_map(|(ours, theirs)| Some(format!("{theirs}.{}", name.strip_prefix(ours)?.strip_prefix('.')?)));
    other.unwrap_or(name)
}

/// A number in a tensor's name.
fn number(text: &str) -> usize {
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pairs are of Stable Diffusion 1.5, from diffusers' converter.
    #[test]
    fn names_are_those_of_the_first_checkpoints() {
        let exists = |name: &str| name == "output_blocks.2.1.conv.bias";
        for (ours, theirs) in [
            ("conv_in.weight", "input_blocks.0.0.weight"),
            ("time_embedding.linear_2.bias", "time_embed.2.bias"),
            ("down_blocks.0.resnets.0.conv1.weight", "input_blocks.1.0.in_layers.2.weight"),
            ("down_blocks.0.downsamplers.0.conv.bias", "input_blocks.3.0.op.bias"),
            ("down_blocks.1.resnets.0.conv_shortcut.weight", "input_blocks.4.0.skip_connection.weight"),
            (
                "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight",
                "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
            ),
            ("mid_block.resnets.1.norm2.bias", "middle_block.2.out_layers.0.bias"),
            ("mid_block.attentions.0.proj_in.weight", "middle_block.1.proj_in.weight"),
            ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
            ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
            ("up_blocks.3.resnets.2.time_emb_proj.weight", "output_blocks.11.0.emb_layers.1.weight"),
            ("conv_norm_out.weight", "out.0.weight"),
        ] {
            assert_eq!(unet(ours, exists), theirs);
        }
        for (ours, theirs) in [
            ("encoder.down_blocks.1.resnets.0.conv_shortcut.bias", "encoder.down.1.block.0.nin_shortcut.bias"),
            ("decoder.up_blocks.0.resnets.2.norm1.weight", "decoder.up.3.block.2.norm1.weight"),
            ("decoder.up_blocks.2.upsamplers.0.conv.weight", "decoder.up.1.upsample.conv.weight"),
            ("decoder.mid_block.attentions.0.to_out.0.bias", "decoder.mid.attn_1.proj_out.bias"),
            ("quant_conv.weight", "quant_conv.weight"),
        ] {
            assert_eq!(vae(ours), theirs);
        }
        let place = open_clip("text_model.encoder.layers.3.self_attn.v_proj.bias", |_| false);
        assert_eq!(
            place,
            StoredTensor { name: "transformer.resblocks.3.attn.in_proj_bias".to_owned(), third: Some(2), is_transposed: false }
        );
        assert_eq!(open_clip("text_model.encoder.layers.3.mlp.fc2.weight", |_| false).name, "transformer.resblocks.3.mlp.c_proj.weight");
    }
}
