use std::collections::BTreeMap;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::*;
use crate::{models::ClipVisionConfig, ops::WeightType};

type Shapes<'a> = &'a [(&'a str, &'a [usize])];

const PLAIN: [(&str, &[usize]); 4] = [("proj.weight", &[24, 5]), ("proj.bias", &[24]), ("norm.weight", &[8]), ("norm.bias", &[8])];
const PLUS: [(&str, &[usize]); 7] = [
    ("latents", &[1, 4, 16]),
    ("proj_in.weight", &[16, 6]),
    ("proj_out.weight", &[8, 16]),
    ("layers.0.0.to_q.weight", &[128, 16]),
    ("layers.0.1.1.weight", &[32, 16]),
    ("layers.1.0.norm1.weight", &[16]),
    ("layers.1.0.norm1.bias", &[16]),
];

fn shapes(tensors: Shapes) -> BTreeMap<String, Vec<usize>> {
    tensors.iter().map(|(name, shape)| (format!("image_proj.{name}"), shape.to_vec())).collect()
}

#[test]
fn kind_and_sizes_follow_from_names_and_shapes() {
    let plain = ImageProjectionConfig::from_shapes(&shapes(&PLAIN)).unwrap();
    let right = ImageProjectionConfig { kind: ImageProjectionKind::Plain, input_dim: 5, tokens: 3, cross_attention_dim: 8 };
    assert_eq!(plain, right);
    let resampler = ResamplerConfig { hidden_dim: 16, heads: 2, intermediate_dim: 32, depth: 2 };
    let plus = ImageProjectionConfig::from_shapes(&shapes(&PLUS)).unwrap();
    let right = ImageProjectionConfig { kind: ImageProjectionKind::Plus(resampler), input_dim: 6, tokens: 4, cross_attention_dim: 8 };
    assert_eq!(plus, right);
}

#[test]
fn kinds_that_are_not_supported_are_named() {
    for (tensors, kind) in [
        (&["proj.0.weight", "proj.2.weight", "norm.weight"][..], "this is an IP-Adapter FaceID, "),
        (&["proj.0.weight", "proj.2.weight", "norm.weight", "perceiver_resampler.proj_in.weight"], "an IP-Adapter FaceID Plus"),
        (&["proj.0.weight", "proj.2.weight", "proj.3.weight"], "a full IP-Adapter (full-face)"),
        (&["norm.weight"], "no IP-Adapter of a known kind: it has neither image_proj.proj.weight (plain) nor image_proj.latents (Plus)"),
        (&[], "no IP-Adapter of a known kind"),
    ] {
        let tensors: Vec<(&str, &[usize])> = tensors.iter().map(|name| (*name, &[2, 2][..])).collect();
        let error = ImageProjectionConfig::from_shapes(&shapes(&tensors)).unwrap_err().to_string();
        assert!(error.contains(kind), "{error}");
    }
}

#[test]
fn impossible_projections_are_refused_with_the_reason() {
    const HUGE: usize = usize::MAX / 2;
    let changes: [(Shapes, &str, Option<&[usize]>, &str); 16] = [
        (&PLAIN, "norm.weight", None, "image_proj.norm.weight is missing"),
        (&PLAIN, "norm.weight", Some(&[7]), "has 24 outputs, which are no tokens of the width 7 of image_proj.norm"),
        (&PLAIN, "norm.weight", Some(&[0]), "image_proj.norm.weight is of the shape [0], and should have 1 dimensions, none of them 0"),
        (&PLAIN, "norm.weight", Some(&[HUGE]), "has 24 outputs"),
        (&PLAIN, "proj.weight", Some(&[24]), "image_proj.proj.weight is of the shape [24], and should have 2 dimensions"),
        (&PLAIN, "proj.weight", Some(&[0, 5]), "of the shape [0, 5]"),
        (&PLUS, "latents", Some(&[2, 4, 16]), "image_proj.latents has 2 sets of latents, and should have 1"),
        (&PLUS, "latents", Some(&[4, 16]), "image_proj.latents is of the shape [4, 16], and should have 3 dimensions"),
        (&PLUS, "proj_in.weight", None, "image_proj.proj_in.weight is missing"),
        (&PLUS, "proj_out.weight", None, "image_proj.proj_out.weight is missing"),
        (&PLUS, "layers.0.0.to_q.weight", None, "image_proj.layers.0.0.to_q.weight is missing"),
        (&PLUS, "layers.0.1.1.weight", None, "image_proj.layers.0.1.1.weight is missing"),
        (&PLUS, "layers.0.0.to_q.weight", Some(&[100, 16]), "has 100 outputs, which do not fall into heads of 64"),
        (&PLUS, "layers.0.0.to_q.weight", Some(&[0, 16]), "of the shape [0, 16]"),
        (&PLUS, "layers.99.0.norm1.weight", Some(&[16]), "image_proj.layers.99 is there, and layers before it are not"),
        (&PLUS, "layers.18446744073709551615.x", Some(&[16]), "and layers before it are not"),
    ];
    for (tensors, name, shape, reason) in changes {
        let mut shapes = shapes(tensors);
        shapes.remove(&format!("image_proj.{name}"));
        shapes.extend(shape.map(|shape| (format!("image_proj.{name}"), shape.to_vec())));
        let error = ImageProjectionConfig::from_shapes(&shapes).unwrap_err().to_string();
        assert!(error.contains(reason), "{name} {shape:?}: {error}");
    }
}

#[test]
fn another_encoder_is_refused() {
    let encoder = |projection_dim, hidden_size| ClipVisionConfig { hidden_size, projection_dim, ..ClipVisionConfig::default() };
    let [plain, plus] = [&PLAIN[..], &PLUS].map(|tensors| ImageProjectionConfig::from_shapes(&shapes(tensors)).unwrap());
    plain.check_encoder(&encoder(5, 7)).unwrap();
    plus.check_encoder(&encoder(7, 6)).unwrap();
    let error = plain.check_encoder(&encoder(6, 5)).unwrap_err().to_string();
    assert!(error.contains("for an image encoder with a projection_dim of 5, and this one has 6"), "{error}");
    let error = plus.check_encoder(&encoder(6, 5)).unwrap_err().to_string();
    assert!(error.contains("for an image encoder with a hidden_size of 6, and this one has 5"), "{error}");
}

#[test]
fn a_picture_becomes_tokens_of_the_texts_width() {
    let vb = Weights::new(VarBuilder::zeros(DType::F32, &Device::Cpu), WeightType::F32);
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for (tensors, dims) in [(&PLAIN[..], [2, 3, 8]), (&PLUS, [2, 4, 8])] {
        let config = ImageProjectionConfig::from_shapes(&shapes(tensors)).unwrap();
        let projection = ImageProjection::new(config, &vb).unwrap();
        let embeds = ImageEmbeds { projected: zeros(&[2, 5]), penultimate: zeros(&[2, 10, 6]) };
        assert_eq!(projection.forward(&embeds, Interrupt::NEVER).unwrap().dims(), dims);
        let of_another_encoder = ImageEmbeds { projected: zeros(&[2, 6]), penultimate: zeros(&[2, 10, 5]) };
        projection.forward(&of_another_encoder, Interrupt::NEVER).unwrap_err();
    }
    let plus = ImageProjection::new(ImageProjectionConfig::from_shapes(&shapes(&PLUS)).unwrap(), &vb).unwrap();
    let embeds = ImageEmbeds { projected: zeros(&[1, 5]), penultimate: zeros(&[1, 10, 6]) };
    let interrupted = || true;
    assert!(plus.forward(&embeds, Interrupt::when(&interrupted)).unwrap_err().to_string().contains("interrupted"));
}
