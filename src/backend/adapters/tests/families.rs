//! All layers of whole models.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use super::open;
use crate::backend::{
    adapters::{AdaptedNetwork, Layer, fit::spellings},
    model_files::ldm_names,
};

/// A layer with its weight's shape, as diffusers has it.
type Own = (AdaptedNetwork, String, Vec<usize>);

fn layers(family: &str) -> Vec<Own> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/families").join(family).join("tensors.json");
    let parts: BTreeMap<String, BTreeMap<String, Vec<usize>>> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let networks = [
        ("unet", AdaptedNetwork::Denoiser),
        ("text_encoder", AdaptedNetwork::TextEncoder(0)),
        ("text_encoder_2", AdaptedNetwork::TextEncoder(1)),
    ];
    let of = |(part, network): (&str, AdaptedNetwork)| {
        let weights = parts.get(part).into_iter().flatten().filter_map(|(name, shape)| Some((name.strip_suffix(".weight")?, shape)));
        weights.map(|(name, shape)| (network, name.to_owned(), shape.clone())).collect::<Vec<_>>()
    };
    networks.into_iter().flat_map(of).collect()
}

fn borrowed(layers: &[Own]) -> Vec<Layer<'_>> {
    layers.iter().map(|(network, name, shape)| Layer { network: *network, name, shape }).collect()
}

/// kohya's name of a layer, with diffusers' names or with those of checkpoints in one file.
fn kohya(layer: &Layer<'_>, is_ldm: bool) -> String {
    let (prefix, name) = match layer.network {
        AdaptedNetwork::Denoiser if is_ldm => ("lora_unet", ldm_names::unet(&format!("{}.weight", layer.name), |_| false)),
        AdaptedNetwork::Denoiser => ("lora_unet", format!("{}.weight", layer.name)),
        AdaptedNetwork::TextEncoder(0) => ("lora_te1", format!("{}.weight", layer.name)),
        AdaptedNetwork::TextEncoder(_) => ("lora_te2", format!("{}.weight", layer.name)),
    };
    format!("{prefix}_{}", name.strip_suffix(".weight").unwrap().replace('.', "_"))
}

/// The tensors of an adapter for a layer: of rank 1, or differences for norms.
fn tensors(layer: &Layer<'_>, is_ldm: bool) -> Vec<(String, Vec<usize>)> {
    let name = kohya(layer, is_ldm);
    match layer.shape {
        [channels] => vec![(format!("{name}.w_norm"), vec![*channels]), (format!("{name}.b_norm"), vec![*channels])],
        [outputs, rest @ ..] => {
            let ones = vec![1; rest.len() - 1];
            let [up, down] = [[&[*outputs, 1], &ones[..]].concat(), [&[1], rest].concat()];
            vec![(format!("{name}.lora_up.weight"), up), (format!("{name}.lora_down.weight"), down), (format!("{name}.alpha"), vec![])]
        }
        [] => vec![],
    }
}

#[test]
fn every_layer_is_found_by_its_own_names_alone() {
    for family in ["sd1", "sd2", "sdxl", "ssd-1b", "vega", "lcm"] {
        let own = layers(family);
        let layers = borrowed(&own);
        let mut owners: HashMap<(AdaptedNetwork, String), &str> = HashMap::new();
        for layer in &layers {
            for name in spellings(layer) {
                if let Some(other) = owners.insert((layer.network, name.clone()), layer.name) {
                    assert_eq!(other, layer.name, "{family}: {name}");
                }
            }
        }
        for is_ldm in [false, true] {
            let tensors: Vec<_> = layers.iter().flat_map(|layer| tensors(layer, is_ldm)).collect();
            let file = open(&tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect::<Vec<_>>()).unwrap();
            let fit = file.fit(&layers);
            assert!(fit.unfit.is_empty() && fit.wrong_shapes.is_empty(), "{family}: {:?} {:?}", fit.unfit, fit.wrong_shapes);
            let found: Vec<usize> = fit.modules.iter().map(|(place, _)| *place).collect();
            assert_eq!(found, (0..layers.len()).collect::<Vec<_>>(), "{family}");
            for (place, module) in &fit.modules {
                assert_eq!(module.tensors().count(), self::tensors(&layers[*place], is_ldm).len());
                assert!(module.tensors().all(|name| name.starts_with(&format!("{}.", kohya(&layers[*place], is_ldm)))));
            }
        }
    }
}

/// Nothing of one family fits another by mistake: what has the same name and shape is the only exception.
#[test]
fn a_file_for_another_family_says_so() {
    let (xl, sd1) = (layers("sdxl"), layers("sd1"));
    let tensors: Vec<_> = borrowed(&xl).iter().flat_map(|layer| tensors(layer, true)).collect();
    let file = open(&tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect::<Vec<_>>()).unwrap();
    let layers = borrowed(&sd1);
    let fit = file.fit(&layers);
    assert!(fit.unfit.len() > 300 && fit.wrong_shapes.len() > 50, "{} {}", fit.unfit.len(), fit.wrong_shapes.len());
    for (place, module) in fit.modules {
        assert_eq!(module.shape().unwrap().iter().product::<usize>(), layers[place].shape.iter().product::<usize>());
    }
}
