//! Models that are missing, broken or impossible: one line, the file's name, exit code 66, and never a panic.

use std::{fs, path::Path};

use serde_json::json;

use crate::support::{binary, copy_of_tiny as copy, edit};

/// Loads a model, and returns its error.
fn failure(model: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("x.png");
    let output = binary().args(["generate", "a", "--steps", "1", "-o"]).arg(&picture).arg("--model").arg(model).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(66), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(!picture.exists());
    stderr.trim_end().lines().last().unwrap().to_owned()
}

#[test]
fn the_copy_works_before_it_is_broken() {
    let (model, out) = (copy(), tempfile::tempdir().unwrap());
    let picture = out.path().join("x.png");
    let output = binary().args(["generate", "a", "--steps", "1", "-o"]).arg(&picture).arg("--model").arg(model.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(picture.exists());
}

#[test]
fn a_model_that_is_not_there_is_named() {
    assert!(failure(Path::new("/no/such/model")).contains("there is no model /no/such/model"));
    let empty = tempfile::tempdir().unwrap();
    assert!(failure(empty.path()).contains("model_index.json is missing"));
}

#[test]
fn a_missing_file_is_named() {
    for file in [
        "unet/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ] {
        let model = copy();
        fs::remove_file(model.path().join(file)).unwrap();
        let message = failure(model.path());
        let (folder, _) = file.split_once('/').unwrap();
        assert!(message.contains(folder) && message.contains(" is missing"), "{file}: {message}");
    }
}

#[test]
fn broken_files_are_named() {
    let size = |file: &Path| fs::metadata(file).unwrap().len();
    for (file, keep) in [
        ("unet/diffusion_pytorch_model.safetensors", 0.5),
        ("vae/diffusion_pytorch_model.safetensors", 0.0),
        ("text_encoder/model.safetensors", 0.001),
    ] {
        let model = copy();
        let path = model.path().join(file);
        let cut = (size(&path) as f64 * keep) as u64;
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let message = failure(model.path());
        assert!(message.contains(file) && message.contains("is no whole safetensors file"), "{message}");
    }
    for file in ["unet/config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"] {
        let model = copy();
        fs::write(model.path().join(file), "{ \"half\": ").unwrap();
        let message = failure(model.path());
        assert!(message.contains(file), "{message}");
    }
}

#[test]
fn impossible_configurations_are_errors() {
    for (file, field, value, reason) in [
        ("unet/config.json", "block_out_channels", json!([]), "1 to 8 entries"),
        ("unet/config.json", "block_out_channels", json!([16, 24]), "down_block_types has 3 entries"),
        ("unet/config.json", "block_out_channels", json!([16, 24, 33]), "33 channels"),
        ("unet/config.json", "block_out_channels", json!([32, 48, 64]), "have another shape"),
        ("unet/config.json", "attention_head_dim", json!(0), "0 attention heads"),
        ("unet/config.json", "norm_num_groups", json!(0), "0 groups"),
        ("unet/config.json", "norm_num_groups", json!(5), "do not fall into 5 groups"),
        ("unet/config.json", "sample_size", json!(0), "sample_size"),
        ("unet/config.json", "cross_attention_dim", json!(33), "cross_attention_dim is 33"),
        ("unet/config.json", "in_channels", json!(5), "the UNet takes 5 channels"),
        ("unet/config.json", "class_embed_type", json!("timestep"), "class_embed_type = \"timestep\" is not supported"),
        ("unet/config.json", "layers_per_block", json!(1_000_000), "1000 or more are missing"),
        ("vae/config.json", "block_out_channels", json!([]), "1 to 6 entries"),
        ("vae/config.json", "scaling_factor", json!(0), "scaling_factor must not be 0"),
        ("vae/config.json", "norm_num_groups", json!(0), "0 groups"),
        ("vae/config.json", "latents_mean", json!([0.1, 0.2, 0.3, 0.4]), "latents_mean is not supported"),
        ("text_encoder/config.json", "num_attention_heads", json!(3), "3 attention heads"),
        ("text_encoder/config.json", "max_position_embeddings", json!(1), "max_position_embeddings"),
        ("text_encoder/config.json", "vocab_size", json!(10), "but the text encoder's vocab_size is 10"),
        ("text_encoder/config.json", "hidden_act", json!("relu7"), "relu7"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", json!(0), "num_train_timesteps"),
        ("scheduler/scheduler_config.json", "beta_end", json!(7), "between 0 and 1"),
        ("scheduler/scheduler_config.json", "prediction_type", json!("flow"), "flow"),
        ("scheduler/scheduler_config.json", "use_lu_lambdas", json!(true), "use_lu_lambdas = true is not supported"),
    ] {
        let model = copy();
        edit(&model.path().join(file), |json| json[field] = value.clone());
        let message = failure(model.path());
        assert!(message.contains(reason), "{file} {field} = {value}: {message}");
    }
}

/// Unused tensors are no error, but a warning.
#[test]
fn weights_that_nobody_reads_are_named() {
    let model = copy();
    let file = model.path().join("unet/diffusion_pytorch_model.safetensors");
    let out = tempfile::tempdir().unwrap();
    let warnings = || {
        let args = ["generate", "a", "--steps", "1", "-o"];
        let output = binary().args(args).arg(out.path().join("x.png")).arg("--model").arg(model.path()).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!warnings().contains("were not read"));
    let mut tensors = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
    for name in ["x.position_ids", "extra.0.weight", "extra.1.weight"] {
        tensors.insert(name.to_owned(), tensors["conv_in.bias"].clone());
    }
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let warnings = warnings();
    let right = "2 of its tensors belong to no part of the model and were not read: extra.0.weight, extra.1.weight";
    assert!(warnings.contains(right), "{warnings}");

    edit(&model.path().join("unet/config.json"), |json| json["block_out_channels"] = json!([16, 24, 48]));
    assert!(failure(model.path()).contains(" have another shape: "));
}

#[test]
fn a_broken_list_of_words_is_named() {
    let model = copy();
    fs::write(model.path().join("known_words.json"), r#"{"fox": 1}"#).unwrap();
    let message = failure(model.path());
    assert!(message.contains("known_words.json: invalid type: map"), "{message}");
}

#[test]
fn pickled_weights_are_refused_with_the_reason() {
    let model = copy();
    fs::rename(model.path().join("unet/diffusion_pytorch_model.safetensors"), model.path().join("unet/diffusion_pytorch_model.bin"))
        .unwrap();
    assert!(failure(model.path()).contains("convert them to safetensors"));
}

#[test]
fn a_server_with_a_broken_model_ends_with_code_66() {
    let output = binary().args(["serve", "--port", "0", "--model", "/no/such/model"]).output().unwrap();
    assert_eq!(output.status.code(), Some(66));
    assert!(String::from_utf8(output.stdout).unwrap().contains("\"listening\""), "the socket is bound first");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.trim_end().lines().last().unwrap().starts_with("error: there is no model /no/such/model"), "{stderr}");
}

#[test]
fn families_and_kinds_that_are_not_supported_are_named() {
    for (class, family) in [("StableDiffusion3Pipeline", "Stable Diffusion 3"), ("FluxPipeline", "FLUX")] {
        let model = copy();
        edit(&model.path().join("model_index.json"), |json| json["_class_name"] = class.into());
        let error = failure(model.path());
        assert!(
            error.contains(&format!("the family {family} ({class}), which is not supported; Stable Diffusion 1, 2 and XL are")),
            "{error}"
        );
    }
    let model = copy();
    edit(&model.path().join("model_index.json"), |json| {
        json["_class_name"] = "SanaPipeline".into();
        json["transformer"] = ["diffusers", "SanaTransformer2DModel"].into();
    });
    let error = failure(model.path());
    assert!(error.contains("a model of SanaPipeline with a transformer in place of a UNet, which is not supported"), "{error}");
    let model = copy();
    edit(&model.path().join("unet/config.json"), |json| json["in_channels"] = 8.into());
    let error = failure(model.path());
    assert!(error.contains("the UNet takes 8 channels and gives 4, but the VAE's latents have 4"), "{error}");
    edit(&model.path().join("model_index.json"), |json| json["requires_aesthetics_score"] = true.into());
    let error = failure(model.path());
    assert!(error.contains("the family SDXL refiner (StableDiffusionPipeline), which is not supported"), "{error}");

    for (name, message) in [("x.ckpt", "pickled weights are not read"), ("x.safetensors", "is no whole safetensors file")] {
        let file = model.path().join(name);
        fs::write(&file, "").unwrap();
        let error = failure(&file);
        assert!(error.contains(name) && error.contains(message), "{error}");
    }
}

/// Opening a FIFO waits for a writer, and a device may have no end.
#[test]
fn what_is_no_file_is_not_opened_as_one() {
    for (file, reason) in [
        ("model_index.json", "model_index.json is missing"),
        ("unet/config.json", "it is a directory, a FIFO or a device"),
        ("scheduler/scheduler_config.json", "it is a directory, a FIFO or a device"),
        ("vae/diffusion_pytorch_model.safetensors", " is missing"),
    ] {
        let model = copy();
        fs::remove_file(model.path().join(file)).unwrap();
        make_fifo(&model.path().join(file));
        let message = failure(model.path());
        assert!(message.contains(reason), "{file}: {message}");
        fs::remove_file(model.path().join(file)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", model.path().join(file)).unwrap();
        failure(model.path());
    }
    // Nothing is read of a file whose size is unknown.
    let model = copy();
    let config = fs::OpenOptions::new().write(true).open(model.path().join("unet/config.json")).unwrap();
    config.set_len(1 << 40).unwrap();
    assert!(failure(model.path()).contains("it has 1099511627776 bytes; at most 67108864 are read"));

    let words = tempfile::tempdir().unwrap();
    make_fifo(&words.path().join("a.safetensors"));
    let picture = words.path().join("x.png");
    let output = binary().args(["generate", "a", "--steps", "1", "-o"]).arg(picture).arg("--embeddings").arg(words.path()).output();
    let log = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(log.contains("a.safetensors: left out: it is a directory, a FIFO or a device"), "{log}");
}

fn make_fifo(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// The crate that reads these files panics for the first two, and overflows the stack for the third.
#[test]
fn a_tokenizer_that_cannot_work_is_a_broken_file() {
    let nested = (0..60).fold(json!({ "type": "Lowercase" }), |inside, _| json!({ "type": "Sequence", "normalizers": [inside] }));
    for (place, value, reason) in [
        ("/normalizer", json!({ "type": "Replace", "pattern": { "String": "" }, "content": "x" }), "it describes no tokenizer that works"),
        ("/model/continuing_subword_prefix", json!("##########"), "it describes no tokenizer that works"),
        ("/normalizer", nested, "it is nested 122 deep, and a tokenizer at most 16"),
        ("/model", json!({ "type": "WordLevel", "vocab": {}, "unk_token": "x" }), "it cannot read \"A fox"),
        ("/model/vocab/abcdefg", json!(70_000), "the token \"abcdefg\" has the id 70000, but the text encoder's vocab_size is "),
    ] {
        let model = copy();
        edit(&model.path().join("tokenizer/tokenizer.json"), |json| {
            let (parent, key) = place.rsplit_once('/').unwrap();
            json.pointer_mut(parent).unwrap()[key] = value.clone();
        });
        crate::damaged::fails(&["--model", model.path().to_str().unwrap()], reason);
    }
}
