//! Single-file checkpoints: the same model, bit for bit, as in diffusers' layout.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use sd_worker::{
    backend::{self, Generation, InferencePipeline, Interrupt, LoadError, LoadOptions, ModelFiles},
    common::{ModelVariant, Sampler, Schedule},
};
use serde_json::json;

use crate::{
    made_up,
    parity::Request,
    support::{binary, edit},
};

pub(crate) type Tensors = HashMap<String, Tensor>;

/// diffusers' names to those of the first checkpoints, after its `convert_diffusers_to_original_stable_diffusion.py` and
/// `convert_diffusers_to_original_sdxl.py`.
pub(crate) fn checkpoint(model: &str) -> Tensors {
    let mut all = Tensors::new();
    for (part, tensors) in made_up::tensors(model) {
        let is_xl = ["sdxl", "ssd-1b", "vega"].contains(&model);
        match part.as_str() {
            "unet" => all.extend(unet(tensors)),
            "vae" => all.extend(vae(tensors)),
            "text_encoder" if model == "sd2" => all.extend(open_clip(tensors, "cond_stage_model.model.")),
            "text_encoder" => {
                let prefix = if is_xl { "conditioner.embedders.0" } else { "cond_stage_model" };
                all.extend(tensors.into_iter().map(|(name, tensor)| (format!("{prefix}.transformer.text_model.{name}"), tensor)));
            }
            _ => all.extend(open_clip(tensors, "conditioner.embedders.1.model.")),
        }
    }
    all
}

fn replaced(name: &str, pairs: &[(String, String)]) -> String {
    pairs.iter().fold(name.to_owned(), |name, (to, from)| name.replace(from.as_str(), to))
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(to, from)| ((*to).to_owned(), (*from).to_owned())).collect()
}

pub(crate) fn unet(tensors: Tensors) -> Tensors {
    let whole = pairs(&[
        ("time_embed.0.", "time_embedding.linear_1."),
        ("time_embed.2.", "time_embedding.linear_2."),
        ("time_embed.cond_proj.", "time_embedding.cond_proj."),
        ("label_emb.0.0.", "add_embedding.linear_1."),
        ("label_emb.0.2.", "add_embedding.linear_2."),
        ("input_blocks.0.0.", "conv_in."),
        ("out.0.", "conv_norm_out."),
        ("out.2.", "conv_out."),
    ]);
    let resnet = pairs(&[
        ("in_layers.0", "norm1"),
        ("in_layers.2", "conv1"),
        ("out_layers.0", "norm2"),
        ("out_layers.3", "conv2"),
        ("emb_layers.1", "time_emb_proj"),
        ("skip_connection", "conv_shortcut"),
    ]);
    let mut layers = pairs(&[("middle_block.1.", "mid_block.attentions.0.")]);
    for j in 0..2 {
        layers.push((format!("middle_block.{}.", 2 * j), format!("mid_block.resnets.{j}.")));
    }
    for i in 0..4 {
        for j in 0..2 {
            layers.push((format!("input_blocks.{}.0.", 3 * i + j + 1), format!("down_blocks.{i}.resnets.{j}.")));
            layers.push((format!("input_blocks.{}.1.", 3 * i + j + 1), format!("down_blocks.{i}.attentions.{j}.")));
        }
        for j in 0..3 {
            layers.push((format!("output_blocks.{}.0.", 3 * i + j), format!("up_blocks.{i}.resnets.{j}.")));
            layers.push((format!("output_blocks.{}.1.", 3 * i + j), format!("up_blocks.{i}.attentions.{j}.")));
        }
        let has_attention = tensors.contains_key(&format!("up_blocks.{i}.attentions.2.norm.weight"));
        let place = if has_attention { 2 } else { 1 };
        layers.push((format!("input_blocks.{}.0.op.", 3 * (i + 1)), format!("down_blocks.{i}.downsamplers.0.conv.")));
        layers.push((format!("output_blocks.{}.{place}.", 3 * i + 2), format!("up_blocks.{i}.upsamplers.0.")));
    }
    let name = |name: String| {
        let inside = if name.contains("resnets") { replaced(&name, &resnet) } else { name };
        let name = if inside.contains("_block") { replaced(&inside, &layers) } else { replaced(&inside, &whole) };
        format!("model.diffusion_model.{name}")
    };
    tensors.into_iter().map(|(of, tensor)| (name(of), tensor)).collect()
}

fn vae(tensors: Tensors) -> Tensors {
    let mut layers = pairs(&[("nin_shortcut", "conv_shortcut"), ("norm_out", "conv_norm_out"), ("mid.attn_1.", "mid_block.attentions.0.")]);
    for i in 0..4 {
        for j in 0..2 {
            layers.push((format!("encoder.down.{i}.block.{j}."), format!("encoder.down_blocks.{i}.resnets.{j}.")));
        }
        for j in 0..3 {
            layers.push((format!("decoder.up.{}.block.{j}.", 3 - i), format!("decoder.up_blocks.{i}.resnets.{j}.")));
        }
        layers.push((format!("down.{i}.downsample."), format!("down_blocks.{i}.downsamplers.0.")));
        layers.push((format!("up.{}.upsample.", 3 - i), format!("up_blocks.{i}.upsamplers.0.")));
    }
    for i in 0..2 {
        layers.push((format!("mid.block_{}.", i + 1), format!("mid_block.resnets.{i}.")));
    }
    let attention = pairs(&[("norm.", "group_norm."), ("q.", "to_q."), ("k.", "to_k."), ("v.", "to_v."), ("proj_out.", "to_out.0.")]);
    let convert = |(name, tensor): (String, Tensor)| {
        let is_attention = name.contains("attentions");
        let name = replaced(&name, &layers);
        let name = if is_attention { replaced(&name, &attention) } else { name };
        // There, the projections are convolutions.
        let is_projection = is_attention && tensor.dims().len() == 2;
        let tensor = if is_projection { tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap() } else { tensor };
        (format!("first_stage_model.{name}"), tensor)
    };
    tensors.into_iter().map(convert).collect()
}

fn open_clip(tensors: Tensors, prefix: &str) -> Tensors {
    let names = pairs(&[
        ("transformer.resblocks.", "encoder.layers."),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        (".c_fc.", ".fc1."),
        (".c_proj.", ".fc2."),
        (".attn", ".self_attn"),
        ("ln_final.", "final_layer_norm."),
        ("token_embedding.weight", "embeddings.token_embedding.weight"),
        ("positional_embedding", "embeddings.position_embedding.weight"),
    ]);
    let tensors: Tensors = tensors.into_iter().map(|(name, tensor)| (name.replace("text_model.", ""), tensor)).collect();
    let mut all = Tensors::new();
    for (name, tensor) in &tensors {
        let (name, tensor) = if name.contains("k_proj") || name.contains("v_proj") {
            continue;
        } else if name.contains("q_proj") {
            let three: Vec<&Tensor> = ["q_proj", "k_proj", "v_proj"].iter().map(|other| &tensors[&name.replace("q_proj", other)]).collect();
            let name = name.replace(".q_proj.weight", ".in_proj_weight").replace(".q_proj.bias", ".in_proj_bias");
            (name, Tensor::cat(&three, 0).unwrap())
        } else if name == "text_projection.weight" {
            ("text_projection".to_owned(), tensor.t().unwrap().contiguous().unwrap())
        } else {
            (name.clone(), tensor.clone())
        };
        all.insert(format!("{prefix}{}", replaced(&name, &names)), tensor);
    }
    all
}

/// Writes a checkpoint with its maker's metadata.
pub(crate) fn write(path: &Path, tensors: &Tensors, metadata: &[(&str, &str)]) {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<HashMap<_, _>>();
    safetensors::serialize_to_file(tensors, Some(metadata), path).unwrap();
}

pub(crate) fn load(model: &Path) -> Result<Arc<InferencePipeline>, LoadError> {
    backend::load(&ModelFiles::open(model.to_str().unwrap())?, &LoadOptions::default()).map(Arc::new)
}

/// The latents and pixels of a run with every feature.
pub(crate) fn numbers(pipeline: &Arc<InferencePipeline>) -> (Vec<f32>, Vec<u8>) {
    let request: Request = serde_json::from_value(json!({
        "prompt": "An owl's (PIZZA:1.2), ünder 3 🍓 skies! BREAK wow", "negative_prompt": "red", "guidance_scale": 5, "seed": 3, "width": 72,
        "height": 64, "steps": 2
    }))
    .unwrap();
    let mut generation = request.with(Sampler::Euler, Schedule::Default).begin(pipeline);
    for _ in 0..generation.total_steps() {
        generation.step().unwrap();
    }
    (generation.latents().flatten_all().unwrap().to_vec1().unwrap(), generation.finish(Interrupt::NEVER).unwrap().into_raw())
}

/// Other tensors of checkpoints.
pub(crate) fn with_what_else_there_is(model: &str, mut all: Tensors) -> Tensors {
    let mut add = |name: &str, shape: &[usize]| all.insert(name.to_owned(), made_up::made_up(name, shape));
    add("betas", &[10]);
    add("model_ema.decay", &[1]);
    match model {
        "sd1" => drop(add("cond_stage_model.transformer.text_model.embeddings.position_ids", &[1, 77])),
        "sd2" => {
            // One layer more than is used.
            for (end, shape) in [("ln_1.weight", vec![128]), ("attn.in_proj_weight", vec![384, 128]), ("mlp.c_fc.weight", vec![256, 128])] {
                add(&format!("cond_stage_model.model.transformer.resblocks.3.{end}"), &shape);
            }
            add("cond_stage_model.model.text_projection", &[128, 128]);
        }
        _ => drop(add("conditioner.embedders.1.model.logit_scale", &[1])),
    }
    all
}

#[test]
fn both_layouts_make_the_same_picture_bit_for_bit() {
    for model in ["sd1", "sd2", "sdxl", "ssd-1b", "vega"] {
        let directory = made_up::model(model);
        let file = directory.path().join("model.safetensors");
        write(&file, &with_what_else_there_is(model, checkpoint(model)), &[]);
        let (whole, single) = (load(directory.path()).unwrap(), load(&file).unwrap());
        assert!(numbers(&whole) == numbers(&single), "{model}");
        let (whole, single) = (whole.info(), single.info());
        assert_eq!((single.id.as_str(), single.family, single.variant), ("model", whole.family, whole.variant));
        assert_eq!((single.defaults.steps, single.defaults.guidance_scale), (whole.defaults.steps, whole.defaults.guidance_scale));
        assert_eq!(single.defaults.size.to_string(), if model.starts_with("sd") && model != "sdxl" { "512x512" } else { "1024x1024" });

        // There is no warning about unused tensors until there is one.
        assert!(!warnings(&file, &[]).contains("were not read"));
        let mut tensors = with_what_else_there_is(model, checkpoint(model));
        tensors.insert("model.diffusion_model.input_blocks.77.0.in_layers.0.weight".to_owned(), made_up::made_up("", &[4]));
        write(&file, &tensors, &[]);
        let warnings = warnings(&file, &[]);
        assert!(warnings.contains("model.safetensors: 1 of its tensors belong to no part of the model and were not read: model.diffusion_model.input_blocks.77.0.in_layers.0.weight"), "{warnings}");
    }
}

/// The pooled projection as a linear layer instead of its transpose, as diffusers' converter wrote it until 2024.
#[test]
fn the_projection_of_the_pooled_text_may_be_a_linear_layer() {
    let directory = made_up::model("sdxl");
    let right = numbers(&load(directory.path()).unwrap());
    let turned = |(name, tensor): (String, Tensor)| match name.strip_suffix("text_projection") {
        Some(start) => (format!("{start}text_projection.weight"), tensor.t().unwrap().contiguous().unwrap()),
        None => (name, tensor),
    };
    let tensors: Tensors = checkpoint("sdxl").into_iter().map(turned).collect();
    let [whole, alone] = ["whole.safetensors", "alone.safetensors"].map(|name| directory.path().join(name));
    write(&whole, &tensors, &[]);
    assert!(numbers(&load(&whole).unwrap()) == right);
    let second =
        tensors.into_iter().filter_map(|(name, tensor)| Some((name.strip_prefix("conditioner.embedders.1.model.")?.to_owned(), tensor)));
    write(&alone, &second.collect(), &[]);
    let files = ModelFiles::open(directory.path().to_str().unwrap()).unwrap().with_part("text_encoder_2", &alone).unwrap();
    assert!(numbers(&backend::load(&files, &LoadOptions::default()).map(Arc::new).unwrap()) == right);
}

/// What the binary prints while it makes a picture.
pub(crate) fn warnings(model: &Path, args: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("x.png");
    let size = ["--width", "64", "--height", "64"];
    let output =
        binary().args(["generate", "a", "--steps", "1"]).args(size).args(args).arg("-o").arg(&picture).arg("--model").arg(model).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

/// From before names began with `text_model.`.
#[test]
fn the_oldest_names_are_read_as_well() {
    let directory = made_up::model("sd1");
    let file = directory.path().join("old.safetensors");
    let old: Tensors = checkpoint("sd1").into_iter().map(|(name, tensor)| (name.replace("text_model.", ""), tensor)).collect();
    write(&file, &old, &[]);
    assert!(numbers(&load(directory.path()).unwrap()) == numbers(&load(&file).unwrap()));
}

#[test]
fn an_inpainting_checkpoint_is_told_by_its_channels() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    write(&file, &checkpoint("sd1-inpainting"), &[]);
    assert_eq!(load(&file).unwrap().info().variant, ModelVariant::Inpainting);
}

fn prediction(file: &Path) -> (String, String, ModelVariant, String) {
    let config = ModelFiles::open(file.to_str().unwrap()).unwrap().read("scheduler/scheduler_config.json").unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let text = |key: &str| config[key].as_str().unwrap().to_owned();
    let info = load(file).unwrap().info().clone();
    (text("prediction_type"), text("timestep_spacing"), info.variant, info.defaults.size.to_string())
}

#[test]
fn what_a_checkpoint_predicts_is_found_where_people_put_it() {
    use ModelVariant::{Base, Turbo};
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).with_extension("safetensors");
    let (sd2, mut xl) = (checkpoint("sd2"), checkpoint("sdxl"));
    let is = |file: PathBuf, prediction_type: &str, spacing: &str, variant, size: &str| {
        let right = (prediction_type.to_owned(), spacing.to_owned(), variant, size.to_owned());
        assert_eq!(prediction(&file), right, "{}", file.display());
    };
    write(&file("plain"), &sd2, &[]);
    is(file("plain"), "epsilon", "leading", Base, "512x512");
    write(&file("said"), &sd2, &[("modelspec.prediction_type", "v")]);
    is(file("said"), "v_prediction", "leading", Base, "768x768");
    fs::write(folder.path().join("beside.yaml"), "model:\n  params:\n    parameterization: \"v\"\n").unwrap();
    write(&file("beside"), &sd2, &[]);
    is(file("beside"), "v_prediction", "leading", Base, "768x768");
    let bias = "model.diffusion_model.output_blocks.5.1.transformer_blocks.0.norm1.bias";
    let mut learned = sd2.clone();
    learned.insert(bias.to_owned(), (&sd2[bias] * 3.0).unwrap());
    write(&file("learned"), &learned, &[]);
    is(file("learned"), "v_prediction", "leading", Base, "768x768");
    write(&file("sd-turbo"), &learned, &[]);
    is(file("sd-turbo"), "epsilon", "trailing", Turbo, "512x512");
    // SD-Turbo as written by XL's program; it is a model of Stable Diffusion 2 all the same.
    let of_sgm = |(name, tensor): (&String, &Tensor)| (name.replace("cond_stage_model.", "conditioner.embedders.0."), tensor.clone());
    write(&file("sd_turbo"), &learned.iter().map(of_sgm).collect(), &[]);
    is(file("sd_turbo"), "epsilon", "trailing", Turbo, "512x512");
    assert!(numbers(&load(&file("sd_turbo")).unwrap()) == numbers(&load(&file("sd-turbo")).unwrap()));
    // The inpainting model predicts noise, whatever that tensor learned.
    let conv_in = "model.diffusion_model.input_blocks.0.0.weight";
    learned.insert(conv_in.to_owned(), Tensor::cat(&[&sd2[conv_in], &sd2[conv_in], &sd2[conv_in].narrow(1, 0, 1).unwrap()], 1).unwrap());
    write(&file("inpainting"), &learned, &[]);
    is(file("inpainting"), "epsilon", "leading", ModelVariant::Inpainting, "512x512");

    write(&file("xl"), &xl, &[]);
    is(file("xl"), "epsilon", "leading", Base, "1024x1024");
    write(&file("sd_xl_turbo_1.0_fp16"), &xl, &[]);
    is(file("sd_xl_turbo_1.0_fp16"), "epsilon", "trailing", Turbo, "512x512");
    write(&file("xl of ComfyUI"), &xl, &[("modelspec.predict_key", "v")]);
    is(file("xl of ComfyUI"), "v_prediction", "leading", Base, "1024x1024");
    for mark in ["v_pred", "ztsnr"] {
        xl.insert(mark.to_owned(), Tensor::zeros(0, candle_core::DType::F32, &Device::Cpu).unwrap());
    }
    // Metadata copied from the model's origin.
    write(&file("marked"), &xl, &[("modelspec.prediction_type", "epsilon")]);
    is(file("marked"), "v_prediction", "trailing", Base, "1024x1024");
}

/// A consistency model that embeds the guidance scale equals itself in diffusers' layout. A single file does not tell the scheduler.
#[test]
fn a_consistency_model_is_told_by_what_it_knows_of_guidance() {
    let directory = made_up::model("lcm");
    let file = directory.path().join("model.safetensors");
    write(&file, &checkpoint("lcm"), &[]);
    let (whole, single) = (load(directory.path()).unwrap(), load(&file).unwrap());
    assert_eq!((single.info().variant, single.info().defaults.sampler), (ModelVariant::Lcm, Sampler::Lcm));
    assert!(numbers(&whole) == numbers(&single));
}

#[test]
fn what_is_no_such_checkpoint_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let failure = |tensors: &Tensors| {
        write(&file, tensors, &[]);
        let error = load(&file).map(drop).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {source}")
    };
    let refiner = ["conditioner.embedders.0.model.ln_final.weight", "model.diffusion_model.label_emb.0.0.weight"];
    let error = failure(&refiner.map(|name| (name.to_owned(), made_up::made_up(name, &[2, 2]))).into());
    assert!(error.contains("an SDXL refiner"), "{error}");
    for (name, what) in [
        ("model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias", "a Stable Diffusion 3 model"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", "a FLUX model"),
        ("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", "a FLUX model"),
        ("edm_vpred.sigma_max", "a CosXL model"),
        ("embedder.model.visual.ln_post.bias", "a Stable Diffusion 2 unCLIP model"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.alpha", "a LoRA"),
        ("emb_params", "an embedding"),
        ("first_stage_model.decoder.conv_in.weight", "a VAE is for --vae"),
        ("down_blocks.0.resnets.0.conv1.weight", "loaded by the directory of the whole"),
    ] {
        let error = failure(&HashMap::from([(name.to_owned(), made_up::made_up(name, &[2, 2]))]));
        assert!(error.contains(what) && error.contains("model.safetensors"), "{name}: {error}");
    }
    let without = |prefix: &str| checkpoint("sd1").into_iter().filter(|(name, _)| !name.starts_with(prefix)).collect::<Tensors>();
    let error = failure(&without("cond_stage_model."));
    assert!(error.contains("has no text encoder"), "{error}");
    let error = failure(&without("first_stage_model."));
    assert!(error.contains("has no VAE; give one with --vae"), "{error}");
    let error = failure(&without("model.diffusion_model.middle_block.2.out_layers.0.bias"));
    assert!(
        error.contains(
            "not all weights of a small Stable Diffusion 1; 1 are missing: model.diffusion_model.middle_block.2.out_layers.0.bias"
        ),
        "{error}"
    );
    let mut bent = checkpoint("sd1");
    bent.insert("first_stage_model.decoder.mid.attn_1.q.weight".to_owned(), made_up::made_up("", &[64, 32, 1, 1]));
    let error = failure(&bent);
    assert!(
        error.contains("1 have another shape: first_stage_model.decoder.mid.attn_1.q.weight is [64, 32, 1, 1] and should be [64, 64]"),
        "{error}"
    );

    fs::write(&file, "no tensors").unwrap();
    let error = load(&file).map(drop).unwrap_err().to_string();
    assert!(error.contains("is no whole safetensors file"), "{error}");
}

/// transformers 4 wrote `text_model.` before the names of a text encoder; version 5 does not.
#[test]
fn text_encoders_of_both_transformers_are_read() {
    let directory = made_up::model("sdxl");
    let before = numbers(&load(directory.path()).unwrap());
    let file = directory.path().join("text_encoder/model.safetensors");
    let old: Tensors =
        made_up::tensors("sdxl")["text_encoder"].iter().map(|(name, tensor)| (format!("text_model.{name}"), tensor.clone())).collect();
    candle_core::safetensors::save(&old, &file).unwrap();
    edit(&directory.path().join("text_encoder/config.json"), |json| json["transformers_version"] = "4.57.0".into());
    assert!(numbers(&load(directory.path()).unwrap()) == before);
}
