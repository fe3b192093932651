//! The files of ControlNets and T2I-Adapters: single files make the same pictures, bit for bit, as directories in diffusers' layout, and what
//! cannot be used ends the start.

use std::{fs, path::Path, sync::Arc};

use sd_worker::{
    backend::{self, InferencePipeline, LoadOptions, ModelFiles},
    common::{ControlSettings, NamedPath, Preprocess, Sampler, Schedule},
};
use serde_json::{Value, json};

use crate::{
    cli::failure,
    made_up,
    parity::Request,
    single_file::{self, Tensors},
    support::edit,
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

#[test]
fn what_is_no_network_for_the_model_ends_the_start() {
    let (model, network, other) = (made_up::model("sd1"), made_up::network("controlnet-sd1"), tempfile::tempdir().unwrap());
    let model = model.path().to_str().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(other.path().join(name), bytes).unwrap();
    write("x.pth", b"PK");
    write("cut.safetensors", b"\xff\0\0\0\0\0\0\0{");
    let tensors = |name: &str, tensors: &[&str]| {
        let all = tensors.iter().map(|tensor| ((*tensor).to_owned(), made_up::made_up(tensor, &[2, 2])));
        candle_core::safetensors::save(&all.collect(), other.path().join(name)).unwrap();
    };
    tensors("lora.safetensors", &["lora_unet_a.lora_down.weight"]);
    tensors("unknown.safetensors", &["a.weight"]);
    let xl = made_up::network("controlnet-sdxl");
    let of_model = Path::new(model).join("unet");
    let first = network.path().display();
    for (argument, reason) in [
        (format!("x={}", other.path().join("none").display()), "there is no ControlNet"),
        (format!("x={}", other.path().join("x.pth").display()), "pickled weights are not read"),
        (format!("x={}", other.path().join("cut.safetensors").display()), "is no whole safetensors file"),
        (format!("x={}", other.path().join("lora.safetensors").display()), "this is a LoRA, which is for --loras"),
        (
            format!("x={}", other.path().join("unknown.safetensors").display()),
            "no ControlNet and no T2I-Adapter that is known here: its tensors are a.weight",
        ),
        (format!("x={}", of_model.display()), "its _class_name is \"UNet2DConditionModel\", and should be ControlNetModel or T2IAdapter"),
        (
            format!("x={}", xl.path().display()),
            "this ControlNet does not fit the model: its levels have [64, 128] channels, the model's [32, 64, 64]",
        ),
        (format!("x={first},x={first}"), "--controlnet x is given twice"),
    ] {
        let (_, stderr) = failure(&["generate", "a fox", "--model", model, "--controlnet", &argument]);
        assert!(stderr.contains(reason), "{argument}: {stderr}");
    }
    let (_, stderr) = failure(&["generate", "a fox", "--controlnet", "no-path"]);
    assert!(stderr.contains("NAME=PATH"), "{stderr}");
}

#[test]
fn a_network_of_impossible_numbers_or_without_all_tensors_ends_the_start() {
    let model = made_up::model("sd1");
    let model = model.path().to_str().unwrap();
    let refused = |network: &str, change: &dyn Fn(&mut Value), reason: &str| {
        let folder = made_up::network(network);
        edit(&folder.path().join("config.json"), change);
        let (_, stderr) = failure(&["generate", "a fox", "--model", model, "--controlnet", &format!("x={}", folder.path().display())]);
        assert!(stderr.contains(reason), "{stderr}");
    };
    let (net, adapter) = ("controlnet-sd1", "t2i-sd1");
    refused(
        net,
        &|json| json["conditioning_embedding_out_channels"][3] = 10_000_000_000_u64.into(),
        "config.json: conditioning_embedding_out",
    );
    refused(net, &|json| json["norm_num_groups"] = 0.into(), "norm_num_groups = 0 does not divide");
    refused(net, &|json| json["norm_eps"] = (-1).into(), "norm_eps must be more than 0");
    refused(net, &|json| json["in_channels"] = 9.into(), "conv_in.weight is [32, 4, 3, 3] and should be [32, 9, 3, 3]");
    refused(net, &|json| json["time_cond_proj_dim"] = 256.into(), "time_embedding.cond_proj.weight");
    refused(net, &|json| json["transformer_layers_per_block"] = 1_000_000_000_000_u64.into(), "or more are missing");
    refused(adapter, &|json| json["channels"][2] = 1_000_000_000_000_u64.into(), "channels must be 1 to 8 numbers from 4 to 65536");
    refused(adapter, &|json| json["adapter_type"] = "full_adapter_xl".into(), "at level 1 a pixel of it stands for 8 of the picture");
}
