//! ControlNets and T2I-Adapters as single files: the same pictures, bit for bit, as in diffusers' layout.

use std::{path::Path, sync::Arc};

use sd_worker::{
    backend::{self, InferencePipeline, LoadOptions, ModelFiles},
    common::{ControlSettings, NamedPath, Preprocess, Sampler, Schedule},
};
use serde_json::json;

use crate::{
    made_up,
    parity::Request,
    single_file::{self, Tensors},
};

/// The latents of a picture that a network guides.
fn latents(model: &Path, network: &Path) -> Vec<f32> {
    let controls = vec![NamedPath { name: "x".to_owned(), path: network.to_owned() }];
    let options = LoadOptions { controls, ..LoadOptions::default() };
    let pipeline: Arc<InferencePipeline> = Arc::new(backend::load(&ModelFiles::open(model.to_str().unwrap()).unwrap(), &options).unwrap());
    let request: Request = serde_json::from_value(json!({
        "prompt": "a fox", "negative_prompt": "red", "guidance_scale": 5, "seed": 3, "width": 96, "height": 64, "steps": 2
    }))
    .unwrap();
    let mut asked = request.with(Sampler::Euler, Schedule::Default);
    let settings = ControlSettings { preprocess: Preprocess::Canny, ..ControlSettings::new("x") };
    asked.controls = vec![(settings, made_up::control_picture("a", 96, 64))];
    let mut generation = asked.begin(&pipeline);
    backend::Generation::step(&mut generation).unwrap();
    generation.latents().flatten_all().unwrap().to_vec1().unwrap()
}

/// The names of Stable Diffusion's first programs, after lllyasviel's `cldm.py`.
fn first_names(tensors: Tensors, prefix: &str) -> Tensors {
    let own = |name: &str| {
        let parts: Vec<&str> = name.split('.').collect();
        Some(match parts[..] {
            ["controlnet_cond_embedding", "conv_in", end] => format!("input_hint_block.0.{end}"),
            ["controlnet_cond_embedding", "blocks", i, end] => {
                format!("input_hint_block.{}.{end}", ["2", "4", "6", "8", "10", "12"][i.parse::<usize>().unwrap()])
            }
            ["controlnet_cond_embedding", "conv_out", end] => format!("input_hint_block.14.{end}"),
            ["controlnet_down_blocks", i, end] => format!("zero_convs.{i}.0.{end}"),
            ["controlnet_mid_block", end] => format!("middle_block_out.0.{end}"),
            _ => return None,
        })
    };
    let (own_tensors, encoder): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(name, _)| own(name).is_some());
    let own_tensors = own_tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{}", own(&name).unwrap()), tensor));
    let encoder = single_file::unet(encoder.into_iter().collect()).into_iter();
    own_tensors.chain(encoder.map(|(name, tensor)| (name.replace("model.diffusion_model.", prefix), tensor))).collect()
}

/// The names of `TencentARC`'s first files.
fn numbered(tensors: Tensors) -> Tensors {
    let name = |name: &str| {
        let name = name.strip_prefix("adapter.").unwrap();
        let parts: Vec<&str> = name.split('.').collect();
        let place = |level: &str, i: &str| 2 * level.parse::<usize>().unwrap() + i.parse::<usize>().unwrap();
        match parts[..] {
            ["body", level, "resnets", i, layer, end] => format!("body.{}.{layer}.{end}", place(level, i)),
            ["body", level, "in_conv", end] => format!("body.{}.in_conv.{end}", place(level, "0")),
            _ => name.to_owned(),
        }
    };
    tensors.into_iter().map(|(of, tensor)| (name(&of), tensor)).collect()
}

#[test]
fn every_naming_makes_the_same_picture_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for (model, network) in [
        ("sd1", "controlnet-sd1"),
        ("sd2", "controlnet-sd2"),
        ("sdxl", "controlnet-sdxl"),
        ("sdxl", "controlnet-union"),
        ("sd1", "t2i-sd1"),
        ("sd1", "t2i-light-sd1"),
        ("sdxl", "t2i-sdxl"),
    ] {
        let directory = made_up::model(model);
        let right = latents(directory.path(), made_up::network(network).path());
        let tensors = made_up::network_tensors(network);
        let is_control = network.starts_with("controlnet");
        let mut namings = vec![tensors.clone()];
        if network != "controlnet-union" && is_control {
            namings.push(first_names(tensors.clone(), "control_model."));
            namings.push(first_names(tensors.clone(), ""));
            // With a whole model beside it.
            let mut whole = first_names(tensors, "control_model.");
            whole.insert("model.diffusion_model.out.2.bias".to_owned(), made_up::made_up("", &[4]));
            namings.push(whole);
        } else if network != "t2i-light-sd1" && !is_control {
            namings.push(numbered(tensors));
        }
        // A model in one file has a configuration of another form.
        let checkpoint = folder.path().join("model.safetensors");
        single_file::write(&checkpoint, &single_file::with_what_else_there_is(model, single_file::checkpoint(model)), &[]);
        for (i, tensors) in namings.iter().enumerate() {
            let file = folder.path().join("network.safetensors");
            single_file::write(&file, tensors, &[]);
            assert!(latents(directory.path(), &file) == right, "{network} in naming {i}");
            seen += 1;
        }
        let one_file = latents(&checkpoint, &folder.path().join("network.safetensors"));
        assert_eq!(one_file.len(), right.len(), "{network} beside a model in one file");
    }
    assert_eq!(seen, 18);
}
