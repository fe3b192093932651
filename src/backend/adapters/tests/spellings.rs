//! The names of layers in all spellings.

use super::{open, tensor, values};
use crate::backend::adapters::{
    AdaptedNetwork::{self, Denoiser, TextEncoder},
    Layer, ModuleKind,
    key::{Part, TensorKey},
};

const TO_Q: &str = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q";
const TO_OUT: &str = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0";
const Q_PROJ: &str = "text_model.encoder.layers.3.self_attn.q_proj";

/// The path of a module's two matrices, how they end, and the layer that they are of.
const SPELLINGS: [(&str, &str, AdaptedNetwork, &str); 31] = [
    // kohya and LyCORIS, with diffusers' names.
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", "kohya", Denoiser, TO_Q),
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0", "kohya", Denoiser, TO_OUT),
    ("lora_te_text_model_encoder_layers_3_self_attn_q_proj", "kohya", TextEncoder(0), Q_PROJ),
    ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj", "kohya", TextEncoder(0), Q_PROJ),
    ("lora_te2_text_model_encoder_layers_3_self_attn_q_proj", "kohya", TextEncoder(1), Q_PROJ),
    ("lora_te2_text_projection", "kohya", TextEncoder(1), "text_projection"),
    ("lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", "kohya", Denoiser, TO_Q),
    ("lycoris_text_model_encoder_layers_3_self_attn_q_proj", "kohya", TextEncoder(0), Q_PROJ),
    // kohya's SDXL, with the names of checkpoints in one file.
    ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "kohya", Denoiser, TO_Q),
    ("lora_unet_input_blocks_3_0_op", "kohya", Denoiser, "down_blocks.0.downsamplers.0.conv"),
    ("lora_unet_input_blocks_1_0_emb_layers_1", "kohya", Denoiser, "down_blocks.0.resnets.0.time_emb_proj"),
    ("lora_unet_middle_block_1_proj_in", "kohya", Denoiser, "mid_block.attentions.0.proj_in"),
    ("lora_unet_middle_block_2_out_layers_3", "kohya", Denoiser, "mid_block.resnets.1.conv2"),
    ("lora_unet_output_blocks_2_2_conv", "kohya", Denoiser, "up_blocks.0.upsamplers.0.conv"),
    ("lora_unet_output_blocks_2_1_conv", "kohya", Denoiser, "up_blocks.0.upsamplers.0.conv"),
    ("lora_unet_time_embed_0", "kohya", Denoiser, "time_embedding.linear_1"),
    ("lora_unet_label_emb_0_2", "kohya", Denoiser, "add_embedding.linear_2"),
    ("lora_unet_out_2", "kohya", Denoiser, "conv_out"),
    ("lora_te2_transformer_resblocks_3_mlp_c_fc", "kohya", TextEncoder(1), "text_model.encoder.layers.3.mlp.fc1"),
    // diffusers and PEFT.
    ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "peft", Denoiser, TO_Q),
    ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", "named", Denoiser, TO_OUT),
    ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "bare", Denoiser, TO_Q),
    ("base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "peft", Denoiser, TO_Q),
    ("base_model.model.text_model.encoder.layers.3.self_attn.q_proj", "named", TextEncoder(0), Q_PROJ),
    ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj", "linear layer", TextEncoder(0), Q_PROJ),
    ("text_encoder_2.encoder.layers.3.self_attn.q_proj", "diffusers", TextEncoder(1), Q_PROJ),
    ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q", "processor", Denoiser, TO_Q),
    ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out", "processor", Denoiser, TO_OUT),
    // ComfyUI.
    ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q", "kohya", Denoiser, TO_Q),
    ("text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj", "kohya", TextEncoder(0), Q_PROJ),
    ("clip_g.transformer.text_model.encoder.layers.3.self_attn.q_proj", "peft", TextEncoder(1), Q_PROJ),
];

/// How the two matrices are called.
fn endings(style: &str) -> [&'static str; 2] {
    match style {
        "kohya" => [".lora_down.weight", ".lora_up.weight"],
        "peft" => [".lora_A.weight", ".lora_B.weight"],
        "named" => [".lora_A.default.weight", ".lora_B.default.weight"],
        "bare" => [".lora_A", ".lora_B"],
        "diffusers" => [".lora.down.weight", ".lora.up.weight"],
        "linear layer" => [".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"],
        "processor" => ["_lora.down.weight", "_lora.up.weight"],
        other => panic!("{other}"),
    }
}

/// The layers of all spellings, and their namesakes in the other networks.
fn layers() -> Vec<Layer<'static>> {
    let networks = [Denoiser, TextEncoder(0), TextEncoder(1)];
    let mut layers: Vec<(AdaptedNetwork, &str)> = SPELLINGS.iter().map(|(_, _, network, layer)| (*network, *layer)).collect();
    layers.extend(networks.iter().flat_map(|network| [(*network, TO_Q), (*network, Q_PROJ)]));
    layers.sort_unstable();
    layers.dedup();
    layers.into_iter().map(|(network, name)| Layer { network, name, shape: &[6, 4] }).collect()
}

#[test]
fn layers_are_found_in_every_spelling() {
    let layers = layers();
    for (path, style, network, layer) in SPELLINGS {
        let [down, up] = endings(style).map(|ending| format!("{path}{ending}"));
        let file = open(&[(&down, &[2, 4]), (&up, &[6, 2])]).unwrap();
        let fit = file.fit(&layers);
        assert!(fit.unfit.is_empty() && fit.wrong_shapes.is_empty(), "{path}: {fit:?}");
        let [(place, module)] = fit.modules[..] else { panic!("{path}: {fit:?}") };
        assert_eq!((layers[place].network, layers[place].name), (network, layer), "{path}");
        assert_eq!((module.kind(), module.rank(), module.alpha(), module.factor()), (ModuleKind::LowRank, Some(2), None, 1.0));
        assert_eq!(module.tensors().collect::<Vec<_>>(), [&down, &up]);
    }
}

#[test]
fn text_encoders_are_found_with_and_without_text_model() {
    let tensors = [
        ("lora_te_encoder_layers_3_self_attn_q_proj.lora_down.weight", &[2, 4][..]),
        ("lora_te_encoder_layers_3_self_attn_q_proj.lora_up.weight", &[6, 2]),
    ];
    let file = open(&tensors).unwrap();
    for name in [Q_PROJ, "encoder.layers.3.self_attn.q_proj"] {
        assert_eq!(file.fit(&[Layer { network: TextEncoder(0), name, shape: &[6, 4] }]).modules.len(), 1);
        assert_eq!(file.fit(&[Layer { network: TextEncoder(1), name, shape: &[6, 4] }]).unfit.len(), 2);
    }
}

#[test]
fn parts_are_known_by_their_endings() {
    for (ending, part) in [
        (".alpha", Part::Alpha),
        (".dora_scale", Part::DoraScale),
        (".lora_magnitude_vector", Part::Magnitude),
        (".lora_magnitude_vector.weight", Part::Magnitude),
        (".lora_magnitude_vector.default", Part::Magnitude),
        (".lora_magnitude_vector.default.weight", Part::Magnitude),
        (".lora_B.bias", Part::UpBias),
        (".lora_B.style.bias", Part::UpBias),
        (".lora_mid.weight", Part::Mid),
        (".hada_w1_a", Part::HadaW1A),
        (".hada_t2", Part::HadaT2),
        (".lokr_w1", Part::LokrW1),
        (".lokr_w1_b", Part::LokrW1B),
        (".lokr_t2", Part::LokrT2),
        (".diff", Part::Difference),
        (".diff_b", Part::BiasDifference),
        (".w_norm", Part::NormWeight),
        (".b_norm", Part::NormBias),
    ] {
        let name = format!("lora_unet_mid_block{ending}");
        assert_eq!(TensorKey::parse(&name), Some(TensorKey { network: Denoiser, layer: "mid_block", part }), "{name}");
    }
    // `GLoRA`, `OFT`, `IA3`, bundled words, sparse biases, and what looks like a part.
    for name in [
        "lora_unet_a.a1.weight",
        "lora_unet_a.oft_blocks",
        "lora_unet_a.on_input",
        "bundle_emb.word.string_to_param.*",
        "lora_unet_a.bias_indices",
        "lora_unet_a.weight",
        "lora_down.weight",
        ".alpha",
        "alpha",
        "a.lora_A.b.c.weight",
        "a.lora_Alpha",
        "",
        "lora_unet_.alpha",
    ] {
        assert_eq!(TensorKey::parse(name), None, "{name}");
    }
}

/// They have no effect, and are listed.
#[test]
fn tensors_of_an_unknown_kind_are_listed() {
    let tensors: [(&str, &[usize]); 6] = [
        ("lora_unet_out_2.lora_down.weight", &[2, 4]),
        ("lora_unet_out_2.lora_up.weight", &[6, 2]),
        ("bundle_emb.word.clip_l", &[1, 4]),
        ("lora_unet_out_2.oft_blocks", &[1, 4]),
        ("lora_unet_else.alpha", &[]),
        ("lora_unet_nowhere.diff", &[6, 4]),
    ];
    let file = open(&tensors).unwrap();
    assert_eq!(file.unknown(), ["bundle_emb.word.clip_l", "lora_unet_else.alpha", "lora_unet_out_2.oft_blocks"]);
    let fit = file.fit(&layers());
    assert_eq!(fit.modules.len(), 1);
    assert_eq!(fit.unfit, ["lora_unet_nowhere.diff", "bundle_emb.word.clip_l", "lora_unet_else.alpha", "lora_unet_out_2.oft_blocks"]);
}

/// As A1111 and `ComfyUI` do.
#[test]
fn a_linear_file_is_for_a_convolution_of_1_by_1_and_the_other_way_round() {
    let files = [
        open(&[("unet.proj_in.lora_A.weight", &[2, 4]), ("unet.proj_in.lora_B.weight", &[6, 2])]).unwrap(),
        open(&[("unet.proj_in.lora_A.weight", &[2, 4, 1, 1]), ("unet.proj_in.lora_B.weight", &[6, 2, 1, 1])]).unwrap(),
    ];
    for shape in [&[6, 4][..], &[6, 4, 1, 1]] {
        let weights = files.each_ref().map(|file| {
            let fit = file.fit(&[Layer { network: Denoiser, name: "proj_in", shape }]);
            assert_eq!(fit.modules[0].1.low_rank().unwrap().unwrap().down.dims(), [2, 4]);
            fit.modules[0].1.weight(&tensor(shape, 5), 0.7).unwrap()
        });
        assert_eq!(weights[0].dims(), shape);
        assert_eq!(values(&weights[0]), values(&weights[1]));
    }
}

#[test]
fn other_shapes_are_named_with_both() {
    let file =
        open(&[("unet.proj_in.lora_A.weight", &[2, 4]), ("unet.proj_in.lora_B.weight", &[6, 2]), ("unet.proj_in.diff_b", &[6])]).unwrap();
    for shape in [&[6, 5][..], &[5, 4], &[6, 4, 3, 3], &[6], &[]] {
        let fit = file.fit(&[Layer { network: Denoiser, name: "proj_in", shape }]);
        assert!(fit.modules.is_empty() && fit.unfit.is_empty());
        let right = format!("proj_in of the denoiser has a weight of the shape {shape:?}, and the adapter one of [6, 4]");
        assert_eq!(fit.wrong_shapes, [right]);
        let error = file.modules()[0].weight(&tensor(shape, 0), 1.0).unwrap_err().to_string();
        assert!(
            error.contains(&format!("proj_in of the denoiser changes a weight of the shape [6, 4], and the model's is {shape:?}")),
            "{error}"
        );
    }
    let error = file.modules()[0].bias(Some(&tensor(&[5], 0)), 1.0).unwrap_err().to_string();
    assert!(error.contains("unet.proj_in.diff_b is of the shape [6], and the layer's bias of [5]"), "{error}");
    let file = open(&[("a.lora_A.weight", &[2, 4]), ("a.lora_B.weight", &[6, 2]), ("a.dora_scale", &[5, 1])]).unwrap();
    let fit = file.fit(&[Layer { network: Denoiser, name: "a", shape: &[6, 4] }]);
    assert!(fit.wrong_shapes[0].contains("a.dora_scale has 5 magnitudes, of the shape [5, 1], for 6 outputs and 4 inputs"), "{fit:?}");
}
