//! A model in another layout is the same model: embeddings and latents are equal bit for bit.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
};

use candle_core::{Device, Tensor};
use sd_worker::{
    backend::{self, Interrupt, LoadError, LoadOptions, ModelFiles, ParsedPrompt, TextAdapters},
    models::{Conditions, Residuals},
};
use serde_json::{Value, json};

use crate::{
    asked::positive,
    made_up,
    single_file::warnings,
    support::{copy_of_tiny, edit},
};

const PROMPTS: [&str; 4] = ["a fox on a blue background", "", "It's 3  ÜNDER-skies, 🍓!\n狐 <|endoftext|>", "1girl's {x}\u{200b}  (owl)"];

/// A model's output for prompts, latents and a picture.
fn numbers(model: &Path) -> Result<Vec<f32>, LoadError> {
    let pipeline = backend::load(&ModelFiles::open(model.to_str().unwrap()).unwrap(), &LoadOptions::default())?;
    let text = pipeline
        .prompt_encoder()
        .encode(&PROMPTS.map(positive).each_ref(), None, &TextAdapters::default(), Interrupt::NEVER)
        .unwrap()
        .embeddings;
    let networks = pipeline.networks();
    let latents = Tensor::arange(0f32, 256., &Device::Cpu).unwrap().sin().unwrap().reshape((1, 4, 8, 8)).unwrap();
    let context = networks.denoiser.context(&Conditions::of_text(&text.narrow(0, 0, 1).unwrap())).unwrap();
    let output = networks.denoiser.forward(&latents, &[500.0], &context, Residuals::NONE, Interrupt::NEVER).unwrap();
    let picture = networks.vae.decode(&output, Interrupt::NEVER).unwrap();
    let flat = [text, output, picture].map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    Ok(flat.concat())
}

/// diffusers' defaults for what a model's files leave out.
#[test]
fn what_configurations_leave_out_is_as_in_diffusers() {
    let model = made_up::model("sdxl");
    let nothing = || {
        let pipeline = backend::load(&ModelFiles::open(model.path().to_str().unwrap()).unwrap(), &LoadOptions::default()).unwrap();
        let text = pipeline
            .prompt_encoder()
            .encode(&[&ParsedPrompt::negative("")], None, &TextAdapters::default(), Interrupt::NEVER)
            .unwrap()
            .embeddings;
        text.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() == 0.0
    };
    let without =
        |file: &str, field: &str| edit(&model.path().join(file), |json| drop(json.as_object_mut().unwrap().remove(field).unwrap()));
    without("model_index.json", "force_zeros_for_empty_prompt");
    without("vae/config.json", "norm_num_groups");
    assert!(nothing());
    edit(&model.path().join("model_index.json"), |json| json["force_zeros_for_empty_prompt"] = false.into());
    assert!(!nothing());
}

/// Alternative or optional fields of diffusers and transformers: the numbers are the same.
#[test]
fn fields_may_be_lists_or_left_out() {
    let model = made_up::model("sdxl");
    let numbers = || crate::single_file::numbers(&crate::single_file::load(model.path()).unwrap());
    let right = numbers();
    let change = |file: &str, fields: &[(&str, Value)], left_out: &[&str]| {
        edit(&model.path().join(file), |json| {
            for (field, value) in fields {
                json[*field] = value.clone();
            }
            for field in left_out {
                json.as_object_mut().unwrap().remove(*field);
            }
        });
    };
    let lists = [
        ("sample_size", json!([8, 8])),
        ("cross_attention_dim", json!([192, 192])),
        ("layers_per_block", json!([2, 2])),
        ("only_cross_attention", json!([false, false])),
        ("transformer_layers_per_block", json!([1, [2, 2]])),
        ("reverse_transformer_layers_per_block", json!([[2, 2, 2], 1])),
        ("num_attention_heads", json!([1, 2])),
    ];
    let left_out =
        ["norm_num_groups", "norm_eps", "act_fn", "flip_sin_to_cos", "freq_shift", "downsample_padding", "in_channels", "out_channels"];
    change("unet/config.json", &lists, &[&left_out[..], &["attention_head_dim"]].concat());
    change("unet/config.json", &[("mid_block_scale_factor", json!(null)), ("norm_eps", json!(null))], &[]);
    change("vae/config.json", &[], &["in_channels", "out_channels", "latent_channels", "norm_num_groups", "use_quant_conv"]);
    change("text_encoder/config.json", &[], &["hidden_act", "layer_norm_eps", "vocab_size", "max_position_embeddings", "projection_dim"]);
    // The padding is that of transformers' CLIPTokenizer.
    fs::remove_file(model.path().join("tokenizer/tokenizer_config.json")).unwrap();
    let _ = fs::remove_file(model.path().join("tokenizer/special_tokens_map.json"));
    assert!(numbers() == right);

    for (file, field, value, reason) in [
        ("unet/config.json", "block_out_channels", json!([64, "wide"]), "block_out_channels[1]: invalid type: string \"wide\""),
        ("vae/config.json", "layers_per_block", json!("two"), "layers_per_block: invalid type: string \"two\""),
        ("text_encoder/config.json", "hidden_size", json!(6.5), "hidden_size: invalid type: floating point"),
        ("scheduler/scheduler_config.json", "steps_offset", json!("one"), "steps_offset: invalid type: string \"one\""),
        ("tokenizer_2/tokenizer_config.json", "added_tokens_decoder", json!({ "7": { "content": 1 } }), "added_tokens_decoder.7.content: "),
        ("model_index.json", "force_zeros_for_empty_prompt", json!("yes"), "force_zeros_for_empty_prompt: invalid type"),
    ] {
        let whole = fs::read(model.path().join(file)).unwrap();
        change(file, &[(field, value)], &[]);
        let error = crate::single_file::load(model.path()).map(drop).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(reason), "{file} {field}: {error}");
        fs::write(model.path().join(file), whole).unwrap();
    }
}

/// Such a model is sampled without those steps, with a warning.
#[test]
fn a_scheduler_with_steps_of_runge_and_kutta_is_warned_of() {
    let model = copy_of_tiny();
    for (skips, is_warned) in [(true, false), (false, true)] {
        edit(&model.path().join("scheduler/scheduler_config.json"), |json| {
            json["_class_name"] = "PNDMScheduler".into();
            json["skip_prk_steps"] = skips.into();
        });
        assert_eq!(warnings(model.path(), &[]).contains("skip_prk_steps is not true"), is_warned);
    }
}

#[test]
fn a_vocabulary_and_its_merges_are_a_tokenizer() {
    let model = copy_of_tiny();
    let folder = model.path().join("tokenizer");
    let before = numbers(model.path()).unwrap();
    let whole: Value = serde_json::from_slice(&fs::read(folder.join("tokenizer.json")).unwrap()).unwrap();
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let error = numbers(model.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is missing"), "{error}");

    let merge = |merge: &Value| match merge {
        Value::Array(pair) => pair.iter().map(|part| part.as_str().unwrap()).collect::<Vec<_>>().join(" "),
        other => other.as_str().unwrap().to_owned(),
    };
    let merges: Vec<String> = whole["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    fs::write(folder.join("vocab.json"), whole["model"]["vocab"].to_string()).unwrap();
    let error = numbers(model.path()).unwrap_err().to_string();
    assert!(error.contains("merges.txt is missing"), "{error}");
    let text = format!("#version: 0.2\n{}\n", merges.join("\n"));
    // Editors on Windows add a byte order mark.
    for text in [text.clone(), format!("\u{feff}{text}"), text.replace('\n', "\r\n"), merges.join("\r\n")] {
        fs::write(folder.join("merges.txt"), text).unwrap();
        assert_eq!(numbers(model.path()).unwrap(), before);
    }

    fs::write(folder.join("merges.txt"), "#version: 0.2\nno such\n").unwrap();
    let error = numbers(model.path()).unwrap_err().to_string();
    assert!(error.contains("merges.txt"), "{error}");
}

/// Stable Diffusion 2's repositories are older than the list of added tokens in the configuration.
#[test]
fn an_older_tokenizer_is_padded_as_transformers_pads_it() {
    let model = copy_of_tiny();
    let (config, map) = ["tokenizer_config.json", "special_tokens_map.json"].map(|name| model.path().join("tokenizer").join(name)).into();
    let plain = numbers(model.path()).unwrap();
    fs::write(&map, json!({ "pad_token": "!" }).to_string()).unwrap();
    let overridden = numbers(model.path()).unwrap();
    assert_ne!(overridden, plain);
    edit(&config, |json| json["added_tokens_decoder"] = json!({}));
    assert_eq!(numbers(model.path()).unwrap(), plain);
    edit(&config, |json| json["pad_token"] = json!({ "content": "!" }));
    assert_eq!(numbers(model.path()).unwrap(), overridden);
}

/// Splits the weights of a part into three files, as `save_pretrained(max_shard_size=…)` does.
fn spread(folder: &Path, stem: &str, variant: Option<&str>) -> Vec<std::path::PathBuf> {
    let whole = folder.join(format!("{stem}.safetensors"));
    let tensors = candle_core::safetensors::load(&whole, &Device::Cpu).unwrap();
    fs::remove_file(whole).unwrap();
    let (dot, end) = variant.map_or((String::new(), "json".to_owned()), |name| (format!(".{name}"), format!("{name}.json")));
    let mut shards = vec![HashMap::new(); 3];
    let mut weight_map = serde_json::Map::new();
    let names: Vec<String> = (1..=3).map(|i| format!("{stem}{dot}-0000{i}-of-00003.safetensors")).collect();
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        weight_map.insert(name.clone(), names[i % 3].clone().into());
        shards[i % 3].insert(name, tensor);
    }
    for (name, shard) in names.iter().zip(&shards) {
        candle_core::safetensors::save(shard, folder.join(name)).unwrap();
    }
    fs::write(folder.join(format!("{stem}.safetensors.index.{end}")), json!({ "metadata": {}, "weight_map": weight_map }).to_string())
        .unwrap();
    names.iter().map(|name| folder.join(name)).collect()
}

#[test]
fn weights_may_be_spread_over_several_files() {
    let model = copy_of_tiny();
    let before = numbers(model.path()).unwrap();
    let shards = spread(&model.path().join("unet"), "diffusion_pytorch_model", None);
    spread(&model.path().join("text_encoder"), "model", Some("fp16"));
    let vae = model.path().join("vae/diffusion_pytorch_model");
    fs::rename(vae.with_extension("safetensors"), vae.with_extension("fp16.safetensors")).unwrap();
    assert_eq!(numbers(model.path()).unwrap(), before);

    fs::write(&shards[1], "").unwrap();
    let error = numbers(model.path()).unwrap_err().to_string();
    assert!(error.contains("00002-of-00003.safetensors is no whole safetensors file"), "{error}");
    fs::remove_file(&shards[1]).unwrap();
    let error = numbers(model.path()).unwrap_err().to_string();
    assert!(error.contains("00002-of-00003.safetensors is missing"), "{error}");
}

#[test]
fn a_list_of_files_stays_in_its_folder() {
    let model = copy_of_tiny();
    let folder = model.path().join("unet");
    spread(&folder, "diffusion_pytorch_model", None);
    for name in ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "..", ""] {
        let index = json!({ "weight_map": { "conv_in.weight": name } });
        fs::write(folder.join("diffusion_pytorch_model.safetensors.index.json"), index.to_string()).unwrap();
        let error = numbers(model.path()).unwrap_err().to_string();
        assert!(error.contains("is no name of a file beside it"), "{name}: {error}");
    }
}

/// Every layer with a weight, and every attention to the text, has a number of its own, by its name in the checkpoint.
#[test]
fn layers_are_numbered_by_name() {
    let pipeline = backend::load(&ModelFiles::open("tests/parity/tiny").unwrap(), &LoadOptions::default()).unwrap();
    let tensors = candle_core::safetensors::load("tests/parity/tiny/unet/diffusion_pytorch_model.safetensors", &Device::Cpu).unwrap();
    let weights = tensors.keys().filter_map(|name| name.strip_suffix(".weight"));
    let mut names: BTreeSet<String> = weights.map(str::to_owned).collect();
    let attentions: Vec<String> = names.iter().filter_map(|name| Some(name.strip_suffix(".attn2.to_q")?.to_owned() + ".attn2")).collect();
    assert!(!attentions.is_empty());
    names.extend(attentions);
    let numbers = pipeline.networks().denoiser.layer_names();
    let found: BTreeSet<_> = names.iter().map(|name| numbers.find(name).unwrap_or_else(|| panic!("{name} has no number"))).collect();
    assert_eq!((found.len(), numbers.len()), (names.len(), names.len()));
    assert_eq!(numbers.find("no.such.layer"), None);
}
