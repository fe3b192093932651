//! What files say of themselves.

use super::{open, open_with};
use crate::{
    backend::adapters::{AdapterFolder, AdapterInfo, tag_counts},
    common::ModelFamily,
};

const TENSORS: [(&str, &[usize]); 2] = [("lora_unet_out_2.lora_down.weight", &[2, 4]), ("lora_unet_out_2.lora_up.weight", &[6, 2])];

fn info(metadata: &[(&str, &str)]) -> AdapterInfo {
    open_with(&TENSORS, metadata).unwrap().info().clone()
}

#[test]
fn the_header_is_read() {
    let info = info(&[
        ("ss_output_name", "style-v2"),
        ("ss_base_model_version", "sdxl_base_v1-0"),
        ("ss_network_module", "networks.lora"),
        ("ss_resolution", "(1024, 1024)"),
        ("modelspec.title", " A style "),
        ("modelspec.author", "None"),
        ("modelspec.description", "First line\nsecond\u{7} line"),
        ("modelspec.trigger_phrase", "in a style"),
        ("sshs_model_hash", "ABCDEF0123456789abcdef"),
        ("ss_tag_frequency", r#"{"10_a": {"fox": 3, " owl ": 5, "": 9}, "1_b": {"fox": 4, "bad": "x"}, "c": 7}"#),
    ]);
    let right = AdapterInfo {
        alias: Some("style-v2".to_owned()),
        base: Some("sdxl_base_v1-0".to_owned()),
        family: Some(ModelFamily::Sdxl),
        ranks: Some((2, 2)),
        alphas: None,
        trigger_phrase: Some("in a style".to_owned()),
        tags: vec![("fox".to_owned(), 7), ("owl".to_owned(), 5)],
        title: Some("A style".to_owned()),
        author: None,
        description: Some("First line\nsecond line".to_owned()),
        resolution: Some("(1024, 1024)".to_owned()),
        network_module: Some("networks.lora".to_owned()),
        short_hash: Some("abcdef012345".to_owned()),
    };
    assert_eq!(info, right);
}

#[test]
fn texts_are_bounded() {
    let long = "x".repeat(50_000);
    let tags = format!(r#"{{"a": {{{}}}}}"#, (0..100).map(|i| format!(r#""{long}{i}": {}"#, i + 1)).collect::<Vec<_>>().join(","));
    let info =
        info(&[("ss_output_name", &long), ("modelspec.description", &long), ("ss_tag_frequency", &tags), ("sshs_model_hash", "abcü")]);
    assert_eq!((info.alias.unwrap().len(), info.description.unwrap().len(), info.short_hash), (256, 4096, None));
    assert!(info.tags.len() == 24 && info.tags.iter().all(|(tag, _)| tag.len() == 128));
    for text in ["", "[]", "{", "null", &"[".repeat(100_000), r#"{"a": {"b": -1}}"#] {
        assert!(tag_counts::most_frequent(text).is_empty(), "{text:.20}");
    }
    assert_eq!(tag_counts::most_frequent(&format!(r#"{{"a": {{"b": {0}}}, "c": {{"b": {0}}}}}"#, u64::MAX)), [("b".to_owned(), u64::MAX)]);
}

#[test]
fn the_family_is_known_by_name() {
    use ModelFamily::{Sd1, Sd2, Sdxl};
    for (key, value, family) in [
        ("ss_base_model_version", "sd_v1", Some(Sd1)),
        ("ss_base_model_version", "sd_v2", Some(Sd2)),
        ("ss_base_model_version", "sdxl_base_v1-0", Some(Sdxl)),
        ("ss_base_model_version", "flux1", None),
        ("modelspec.architecture", "stable-diffusion-v1/lora", Some(Sd1)),
        ("modelspec.architecture", "stable-diffusion-v2-768-v/lora", Some(Sd2)),
        ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora", Some(Sdxl)),
        ("modelspec.architecture", "stable-diffusion-3-medium/lora", None),
        ("ss_v2", "True", Some(Sd2)),
        ("ss_v2", "False", None),
    ] {
        assert_eq!(info(&[(key, value)]).family, family, "{key} {value}");
    }
}

#[test]
fn the_family_is_known_by_shapes() {
    use ModelFamily::{Sd1, Sd2, Sdxl};
    let to_k = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k";
    for (layer, width, family) in [
        (to_k, 768, Some(Sd1)),
        (to_k, 1024, Some(Sd2)),
        (to_k, 2048, Some(Sdxl)),
        (to_k, 4096, None),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k", 768, None),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, None),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1024, Some(Sd2)),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 1280, Some(Sdxl)),
    ] {
        let [down, up] = ["down", "up"].map(|part| format!("{layer}.lora_{part}.weight"));
        let file = open(&[(&down, &[3, width]), (&up, &[8, 3])]).unwrap();
        assert_eq!(file.info().family, family, "{layer} {width}");
        let loha = ["w1_a", "w1_b", "w2_a", "w2_b"].map(|part| format!("{layer}.hada_{part}"));
        let shapes = [&[8, 3][..], &[3, width], &[8, 3], &[3, width]];
        let file = open(&[0, 1, 2, 3].map(|i| (loha[i].as_str(), shapes[i]))).unwrap();
        assert_eq!(file.info().family, family, "{layer} {width}");
        assert_eq!(file.info().ranks, Some((3, 3)));
    }
}

/// The digits are those of `sha256sum` of all bytes behind the header.
#[test]
fn the_hash_is_that_of_the_tensors_alone() {
    let hash = |metadata: &[(&str, &str)]| {
        let place = tempfile::tempdir().unwrap();
        super::write(&place.path().join("a.safetensors"), &[("a.diff", &[1])], metadata);
        AdapterFolder::new(place.path()).unwrap().get("a").unwrap().short_hash().unwrap()
    };
    // Of four bytes of zeros.
    assert_eq!(hash(&[]), "df3f619804a9");
    assert_eq!(hash(&[("modelspec.title", "another header")]), "df3f619804a9");
    assert_eq!(hash(&[("sshs_model_hash", "0123456789abcdef")]), "0123456789ab");
}
