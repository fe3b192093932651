//! Files that `LyCORIS`, PEFT and diffusers save, and the weights that their layers then have: `make_adapter_goldens.py`.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};

use super::{error, golden, values};
use crate::backend::adapters::{AdaptedNetwork, AdapterFile, Layer, ModuleKind};

/// What a layer may differ by: f32 has 24 bits.
const TOLERANCE: f64 = 1e-6;

/// The layers' own tensors by name, and those with an adapter by case, strength and name.
struct Goldens {
    base: BTreeMap<String, Tensor>,
    merged: HashMap<(String, String, String), Tensor>,
}

fn goldens() -> Goldens {
    let all = candle_core::safetensors::load(golden("merged"), &Device::Cpu).unwrap();
    let mut goldens = Goldens { base: BTreeMap::new(), merged: HashMap::new() };
    for (name, tensor) in all {
        match name.split('/').collect::<Vec<_>>().as_slice() {
            ["base", name] => drop(goldens.base.insert((*name).to_owned(), tensor)),
            [case, strength, name] => {
                drop(goldens.merged.insert(((*case).to_owned(), (*strength).to_owned(), (*name).to_owned()), tensor));
            }
            _ => panic!("{name}"),
        }
    }
    goldens
}

impl Goldens {
    /// The names of all layers with their shapes.
    fn layers(&self) -> Vec<(&str, &[usize])> {
        self.base.iter().filter_map(|(name, tensor)| Some((name.strip_suffix(".weight")?, tensor.dims()))).collect()
    }

    fn cases(&self) -> Vec<(&str, &str)> {
        let mut cases: Vec<(&str, &str)> = self.merged.keys().map(|(case, strength, _)| (case.as_str(), strength.as_str())).collect();
        cases.sort_unstable();
        cases.dedup();
        cases
    }

    /// What a tensor is with an adapter; itself, if the adapter does not change it.
    fn right(&self, case: &str, strength: &str, name: &str) -> &Tensor {
        self.merged.get(&(case.to_owned(), strength.to_owned(), name.to_owned())).unwrap_or(&self.base[name])
    }
}

fn layers<'a>(names: &[(&'a str, &'a [usize])]) -> Vec<Layer<'a>> {
    names.iter().map(|(name, shape)| Layer { network: AdaptedNetwork::Denoiser, name, shape }).collect()
}

#[test]
fn merged_weights_are_those_that_the_training_programs_work_with() {
    let goldens = goldens();
    let names = goldens.layers();
    let mut largest: BTreeMap<&str, f64> = BTreeMap::new();
    for (case, strength) in goldens.cases() {
        let file = AdapterFile::open(&golden(case)).unwrap();
        let layers = layers(&names);
        let fit = file.fit(&layers);
        assert!(fit.unfit.is_empty() && fit.wrong_shapes.is_empty(), "{case}: {fit:?}");
        assert_eq!(fit.modules.len(), file.modules().len(), "{case}");
        for (place, layer) in layers.iter().enumerate() {
            let module = fit.modules.iter().find(|(of, _)| *of == place).map(|(_, module)| module);
            let [weight, bias] = ["weight", "bias"].map(|end| format!("{}.{end}", layer.name));
            let Some(module) = module else {
                assert!(
                    !goldens.merged.keys().any(|(of, _, name)| of == case && [&weight, &bias].contains(&name)),
                    "{case} changes {}",
                    layer.name
                );
                continue;
            };
            let number = strength.parse().unwrap();
            let found = module.weight(&goldens.base[&weight], number).unwrap();
            let found_bias = module.bias(Some(&goldens.base[&bias]), number).unwrap().unwrap();
            for (found, name) in [(found, &weight), (found_bias, &bias)] {
                let off = error(&found, goldens.right(case, strength, name));
                assert!(off < TOLERANCE, "{case} {strength} {name}: {off:e}");
                let largest = largest.entry(case).or_default();
                *largest = largest.max(off);
            }
        }
    }
    assert_eq!(largest.len(), 20, "{largest:?}");
    println!("the largest errors: {largest:#?}");
}

/// Programs mean three things by it; ours is a straight line, so that 0 is off.
#[test]
fn magnitudes_come_in_by_their_strength() {
    let goldens = goldens();
    let names = goldens.layers();
    for case in ["dora", "dora-inputs", "loha-dora-inputs", "lokr-dora", "peft-dora"] {
        let file = AdapterFile::open(&golden(case)).unwrap();
        for (place, module) in file.fit(&layers(&names)).modules {
            assert!(module.has_magnitude() && module.low_rank().unwrap().is_none());
            let name = format!("{}.weight", names[place].0);
            let (base, full) = (&goldens.base[&name], goldens.right(case, "1.0", &name));
            for strength in [0.0, 0.5, -0.25, 1.75] {
                let right = (base + ((full - base).unwrap() * strength).unwrap()).unwrap();
                let off = error(&module.weight(base, strength).unwrap(), &right);
                assert!(off < TOLERANCE, "{case} {strength} {name}: {off:e}");
            }
        }
    }
}

#[test]
fn low_rank_matrices_multiply_to_the_difference() {
    let goldens = goldens();
    let names = goldens.layers();
    let mut seen = 0;
    for case in ["lora", "lora-tucker", "lora-scalar-rs", "peft-lora", "diffusers", "loha", "lokr", "full"] {
        let file = AdapterFile::open(&golden(case)).unwrap();
        for (place, module) in file.fit(&layers(&names)).modules {
            let Some(factors) = module.low_rank().unwrap() else {
                assert_ne!(module.kind(), ModuleKind::LowRank);
                continue;
            };
            let shape = names[place].1;
            let kernel = if shape.len() == 4 && shape[2] > 1 { &shape[2..] } else { &[] };
            assert_eq!(factors.down.dims(), [&[module.rank().unwrap(), shape[1]], kernel].concat(), "{case}");
            assert_eq!(factors.up.dims(), [shape[0], module.rank().unwrap()]);
            let product = factors.up.matmul(&factors.down.flatten_from(1).unwrap()).unwrap().reshape(shape).unwrap();
            let none = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
            let off = error(&(product * factors.factor).unwrap(), &module.weight(&none, 1.0).unwrap());
            assert!(off < TOLERANCE, "{case}: {off:e}");
            seen += 1;
        }
    }
    assert_eq!(seen, 15);
}

#[test]
fn a_strength_of_0_changes_nothing() {
    let goldens = goldens();
    let names = goldens.layers();
    for (case, _) in goldens.cases() {
        let file = AdapterFile::open(&golden(case)).unwrap();
        for (place, module) in file.fit(&layers(&names)).modules {
            for end in ["weight", "bias"] {
                let base = &goldens.base[&format!("{}.{end}", names[place].0)];
                let same = if end == "bias" { module.bias(Some(base), 0.0).unwrap().unwrap() } else { module.weight(base, 0.0).unwrap() };
                assert_eq!(values(&same), values(base), "{case}");
            }
        }
    }
}
