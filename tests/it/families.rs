//! The same numbers as diffusers in every family: each network by itself, and whole pictures. `tests/parity/make_family_goldens.py` makes
//! the goldens.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use candle_core::{Device, Tensor};
use sd_worker::{
    backend::{self, Generation, InferencePipeline, Interrupt, LoadOptions, ModelFiles, ParsedPrompt, TextAdapters},
    common::{ModelFamily, ModelVariant, Sampler},
    models::{Conditions, DenoiserContext, Residuals},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    asked::positive,
    made_up,
    parity::{Request, largest_pixel_error, relative_error},
    support::{Worker, binary, edit},
};

const NETWORK_LIMIT: f32 = 1e-4;
const LATENTS_LIMIT: f32 = 1e-3;
/// In steps of 1/255.
const PIXEL_LIMIT: i32 = 2;

/// The largest errors of a family, by stage.
type Errors = BTreeMap<&'static str, f32>;

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) model: String,
    /// The checkpoint's `scheduler_config.json`.
    pub(crate) scheduler: Value,
    #[serde(flatten)]
    pub(crate) request: Request,
}

pub(crate) fn load_with(model: &Path, options: &LoadOptions) -> Arc<InferencePipeline> {
    Arc::new(backend::load(&ModelFiles::open(model.to_str().unwrap()).unwrap(), options).unwrap())
}

fn load(model: &Path) -> Arc<InferencePipeline> {
    load_with(model, &LoadOptions::default())
}

fn check(errors: &mut Errors, stage: &'static str, limit: f32, ours: &Tensor, theirs: &Tensor, what: &str) {
    let error = relative_error(ours, theirs);
    assert!(error < limit, "{what}: {stage} is off by {error}");
    let worst = errors.entry(stage).or_default();
    *worst = worst.max(error);
}

#[test]
fn every_family_agrees_with_diffusers() {
    let goldens = candle_core::safetensors::load("tests/parity/families.safetensors", &Device::Cpu).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&fs::read("tests/parity/families.json").unwrap()).unwrap();
    let mut seen = 0;
    for model in ["sd1", "sd1-inpainting", "sd2", "sdxl", "ssd-1b", "vega", "lcm"] {
        let mut errors = Errors::new();
        let folder = made_up::model(model);
        networks(model, &load(folder.path()), &goldens, &mut errors);
        for case in cases.iter().filter(|case| case.model == model) {
            fs::write(folder.path().join("scheduler/scheduler_config.json"), case.scheduler.to_string()).unwrap();
            picture(case, &load(folder.path()), &goldens, &mut errors);
            seen += 1;
        }
        println!("{model}: {errors:?}");
    }
    assert_eq!((seen, cases.len()), (24, 24));
}

/// Each network by itself.
fn networks(model: &str, pipeline: &InferencePipeline, goldens: &HashMap<String, Tensor>, errors: &mut Errors) {
    // Families that differ only in their UNet share the goldens of the other networks.
    let is_xl = ["sdxl", "ssd-1b", "vega"].contains(&model);
    let owner = |part: &str| match model {
        "sd1-inpainting" | "lcm" if part != "unet" => "sd1",
        "ssd-1b" | "vega" if part != "unet" => "sdxl",
        _ => model,
    };
    let golden = |part: &str| &goldens[&format!("{}.{part}", owner(part))];
    let mut check = |stage, ours: &Tensor| check(errors, stage, NETWORK_LIMIT, ours, golden(stage), model);
    let prompts = [&ParsedPrompt::negative("red, blurry"), &positive("An owl's PIZZA, ünder 3 🍓 skies!")];
    let encoded = pipeline.prompt_encoder().encode(&prompts, None, &TextAdapters::default(), Interrupt::NEVER).unwrap();
    check("text_embeddings", &encoded.embeddings);

    let (networks, pooled, (context, output)) = (pipeline.networks(), encoded.pooled.as_ref(), denoised(pipeline));
    let DenoiserContext::UNet(of_unet) = &context;
    assert_eq!((pooled.is_some(), of_unet.add_embedding().is_some()), (is_xl, is_xl));
    if let (Some(pooled), Some(added)) = (pooled, of_unet.add_embedding()) {
        check("pooled", pooled);
        check("added", added);
    }
    check("unet", &output);
    check("encoded", &networks.vae.encode(&made_up::made_up("picture", &[1, 3, 64, 72]), Interrupt::NEVER).unwrap().mean);
    check("decoded", &networks.vae.decode(&made_up::made_up("latents", &[1, 4, 8, 9]), Interrupt::NEVER).unwrap());
}

/// What the denoiser makes of the goldens' prompts, and of their latents.
pub(crate) fn denoised(pipeline: &InferencePipeline) -> (DenoiserContext, Tensor) {
    let prompts = [&ParsedPrompt::negative("red, blurry"), &positive("An owl's PIZZA, ünder 3 🍓 skies!")];
    let encoded = pipeline.prompt_encoder().encode(&prompts, None, &TextAdapters::default(), Interrupt::NEVER).unwrap();
    let (denoiser, pooled) = (&pipeline.networks().denoiser, encoded.pooled.as_ref());
    let context = denoiser
        .context(&Conditions { text: &encoded.embeddings, pooled, size: (64, 72), guidance_scale: 7.5, images: &[], adapters: None })
        .unwrap();
    let latents = (made_up::made_up("latents", &[1, denoiser.config().in_channels(), 8, 9]) * 2.0).unwrap();
    let output = denoiser.forward(&latents, &[801.0], &context, Residuals::NONE, Interrupt::NEVER).unwrap();
    (context, output)
}

/// A whole run.
fn picture(case: &Case, pipeline: &Arc<InferencePipeline>, goldens: &HashMap<String, Tensor>, errors: &mut Errors) {
    let golden = |part: &str| &goldens[&format!("{}.{part}", case.name)];
    let sampler = pipeline.info().defaults.sampler;
    let what = format!("{} {} {sampler} {}", case.model, case.scheduler["prediction_type"], case.request.steps);
    let mut generation = case.request.with(sampler, pipeline.info().defaults.schedule).begin(pipeline);
    let latents = golden("latents");
    assert_eq!(generation.total_steps() + 1, latents.dim(0).unwrap(), "{what}");
    for step in 0..=generation.total_steps() {
        if step > 0 {
            generation.step().unwrap();
        }
        check(
            errors,
            "latents",
            LATENTS_LIMIT,
            generation.latents(),
            &latents.narrow(0, step, 1).unwrap(),
            &format!("{what}, step {step}"),
        );
    }
    let pixels = largest_pixel_error(&generation.finish(Interrupt::NEVER).unwrap(), golden("image"));
    assert!(pixels <= PIXEL_LIMIT, "{what}: a pixel is off by {pixels}");
    let worst = errors.entry("pixels").or_default();
    *worst = worst.max(pixels as f32);
}

/// As in A1111 and `ComfyUI`: the pooled text is that of the first 75 tokens.
#[test]
fn the_pooled_text_is_that_of_the_first_chunk() {
    let pipeline = load(made_up::model("sdxl").path());
    let encode =
        |prompts: &[&ParsedPrompt]| pipeline.prompt_encoder().encode(prompts, None, &TextAdapters::default(), Interrupt::NEVER).unwrap();
    let (long, short) = (positive("a fox BREAK an owl"), positive("a fox"));
    let (both, one) = (encode(&[&ParsedPrompt::negative(""), &long]), encode(&[&short]));
    assert_eq!(both.embeddings.dims(), [2, 154, 192]);
    let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(numbers(&both.pooled.as_ref().unwrap().get(1).unwrap()), numbers(one.pooled.as_ref().unwrap()));
    assert_eq!(numbers(&both.embeddings.narrow(0, 1, 1).unwrap().narrow(1, 0, 77).unwrap()), numbers(&one.embeddings));
    // An empty negative prompt is all zeros, whatever its length.
    let zeros = [numbers(&both.embeddings.get(0).unwrap()), numbers(&both.pooled.unwrap().get(0).unwrap())];
    assert!(zeros.concat().iter().all(|number| *number == 0.0));
    let empty_words = encode(&[&positive(" "), &ParsedPrompt::negative("a")]);
    assert!(numbers(&empty_words.embeddings).iter().any(|number| *number != 0.0));
}

type Change<'a> = &'a dyn Fn(&mut Value);

#[test]
fn a_model_says_what_it_is() {
    use ModelFamily::{Sd1, Sd2, Sdxl};
    use ModelVariant::{Base, Inpainting, Lcm, Turbo};
    let trailing = |config: &mut Value| config["timestep_spacing"] = "trailing".into();
    let zero_snr = |config: &mut Value| {
        trailing(config);
        config["prediction_type"] = "v_prediction".into();
    };
    let consistent = |config: &mut Value| config["_class_name"] = "LCMScheduler".into();
    let same = |_: &mut Value| {};
    let cases: [(_, Change, _, _, _, _, _); 9] = [
        ("sd1", &same, Sd1, Base, 20, 7.5, Sampler::Pndm),
        ("sd1", &consistent, Sd1, Lcm, 4, 1.0, Sampler::Lcm),
        ("sd1-inpainting", &same, Sd1, Inpainting, 20, 7.5, Sampler::Pndm),
        ("sd2", &same, Sd2, Base, 20, 7.5, Sampler::Ddim),
        ("sd2", &zero_snr, Sd2, Base, 20, 7.5, Sampler::Ddim),
        ("sd2", &trailing, Sd2, Turbo, 1, 0.0, Sampler::Ddim),
        ("sdxl", &same, Sdxl, Base, 20, 5.0, Sampler::Euler),
        ("sdxl", &trailing, Sdxl, Turbo, 1, 0.0, Sampler::Euler),
        ("lcm", &same, Sd1, Lcm, 4, 8.5, Sampler::Lcm),
    ];
    for (model, change, family, variant, steps, guidance_scale, sampler) in cases {
        let folder = made_up::model(model);
        edit(&folder.path().join("scheduler/scheduler_config.json"), change);
        let pipeline = load(folder.path());
        let info = pipeline.info();
        assert_eq!((info.family, info.variant, info.embeds_guidance), (family, variant, model == "lcm"), "{model}");
        let defaults = info.defaults;
        assert_eq!((defaults.steps.get(), defaults.guidance_scale.get(), defaults.sampler), (steps, guidance_scale, sampler), "{model}");
    }
}

/// A folder of embeddings in the forms of diffusers (one tensor of any name), A1111 and SDXL's trainers, with other files beside them.
fn words(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let save = |name: &str, tensors: &[(&str, Tensor)]| {
        let tensors: HashMap<String, Tensor> = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
        candle_core::safetensors::save(&tensors, folder.path().join(name)).unwrap();
    };
    let vectors = |word: &str, encoder: usize, count: usize| made_up::made_up(&format!("{word} {encoder}"), &[count, [64, 128][encoder]]);
    fs::create_dir(folder.path().join("negative")).unwrap();
    if model == "sdxl" {
        for (file, word, count) in [("negative/easy-negative.safetensors", "easy-negative", 3), ("<cat-toy>.safetensors", "<cat-toy>", 1)] {
            save(file, &[("clip_l", vectors(word, 0, count)), ("clip_g", vectors(word, 1, count))]);
        }
        save("uneven.safetensors", &[("clip_l", vectors("", 0, 1)), ("clip_g", vectors("", 1, 2))]);
    } else {
        save("negative/easy-negative.safetensors", &[("emb_params", vectors("easy-negative", 0, 3))]);
        save("<cat-toy>.safetensors", &[("<cat-toy>", vectors("<cat-toy>", 0, 1).squeeze(0).unwrap())]);
        save("two.safetensors", &[("one", vectors("", 0, 1)), ("other", vectors("", 0, 1))]);
    }
    save("wide.safetensors", &[("emb_params", vectors("", 1, 2))]);
    save("many.safetensors", &[("emb_params", vectors("", 0, 76)), ("clip_l", vectors("", 0, 76)), ("clip_g", vectors("", 1, 76))]);
    for name in ["broken.safetensors", "old.pt", "preview.png"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    folder
}

fn is_same(ours: &Tensor, theirs: &Tensor) -> bool {
    let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    numbers(ours) == numbers(theirs)
}

#[test]
fn learned_words_agree_with_diffusers() {
    let goldens = candle_core::safetensors::load("tests/parity/families.safetensors", &Device::Cpu).unwrap();
    for model in ["sd1", "sdxl"] {
        let (directory, folder) = (made_up::model(model), words(model));
        let files = ModelFiles::open(directory.path().to_str().unwrap()).unwrap().with_embeddings(folder.path()).unwrap();
        let pipeline = backend::load(&files, &LoadOptions::default()).unwrap();
        assert_eq!(pipeline.info().embeddings, ["<cat-toy>", "easy-negative"], "{model}");
        let encode = |prompt: &str| {
            pipeline.prompt_encoder().encode(&[&positive(prompt)], None, &TextAdapters::default(), Interrupt::NEVER).unwrap()
        };
        let right = &goldens[&format!("{model}.learned")];
        let encoded = encode("a <cat-toy>, easy-negative fox");
        let error = relative_error(&encoded.embeddings, right);
        assert!(error < NETWORK_LIMIT, "{model}: off by {error}");
        if let Some(pooled) = &encoded.pooled {
            let error = relative_error(pooled, &goldens[&format!("{model}.learned_pooled")]);
            assert!(error < NETWORK_LIMIT, "{model}: pooled text is off by {error}");
        }
        for same in ["a <CAT-toy>, Easy-Negative fox", "a <cat-toy>, embedding:easy-negative fox", "a (<cat-toy>:1.0), easy-negative fox"] {
            assert!(is_same(&encode(same).embeddings, &encoded.embeddings), "{same}");
        }
        assert!(relative_error(&encode("a <cat-toy>, easy-negativ fox").embeddings, right) > 0.1);
        // A word is never split: after 73 others, it begins a chunk of its own.
        assert_eq!(encode(&format!("{} easy-negative", "fox ".repeat(72))).embeddings.dim(1).unwrap(), 77);
        let long = encode(&format!("{} easy-negative", "fox ".repeat(73))).embeddings;
        let chunk = long.narrow(1, 77, 77).unwrap();
        assert!(is_same(&chunk, &encode("easy-negative").embeddings));
    }
}

/// The same words as tokens of the model, as training saves them: rows at the end of the embedding, and one of the two files that name
/// them. diffusers makes several tokens of a word with several vectors.
#[test]
fn words_that_were_saved_with_a_model_agree_with_diffusers() {
    let goldens = candle_core::safetensors::load("tests/parity/families.safetensors", &Device::Cpu).unwrap();
    let tokens = ["<cat-toy>", "easy-negative", "easy-negative_1", "easy-negative_2"];
    let ids = || 49_408..;
    let directory = made_up::model("sd1");
    let inside = |name: &str| directory.path().join(name);
    let weights = inside("text_encoder/model.safetensors");
    let mut tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    let embedding = tensors.get_mut("embeddings.token_embedding.weight").unwrap();
    let learned = [("<cat-toy> 0", 1), ("easy-negative 0", 3)].map(|(name, count)| made_up::made_up(name, &[count, 64]));
    *embedding = Tensor::cat(&[&*embedding, &learned[0], &learned[1]], 0).unwrap();
    candle_core::safetensors::save(&tensors, &weights).unwrap();
    edit(&inside("text_encoder/config.json"), |config| config["vocab_size"] = (49_408 + tokens.len()).into());

    let encode = || {
        let prompt = positive("a <cat-toy>, easy-negative easy-negative_1 easy-negative_2 fox");
        load(directory.path()).prompt_encoder().encode(&[&prompt], None, &TextAdapters::default(), Interrupt::NEVER).unwrap().embeddings
    };
    let error = || relative_error(&encode(), &goldens["sd1.learned"]);
    assert!(error() > 0.1, "they are named nowhere");
    let added: serde_json::Map<String, Value> = tokens.into_iter().map(str::to_owned).zip(ids().map(Value::from)).collect();
    fs::write(inside("tokenizer/added_tokens.json"), Value::from(added).to_string()).unwrap();
    assert!(error() < NETWORK_LIMIT, "off by {}", error());

    fs::remove_file(inside("tokenizer/added_tokens.json")).unwrap();
    let entry = |text: &str| json!({ "content": text, "lstrip": false, "rstrip": false, "single_word": false, "special": false, "normalized": true });
    let decoder: serde_json::Map<String, Value> = ids().zip(tokens).map(|(id, token): (u32, _)| (id.to_string(), entry(token))).collect();
    edit(&inside("tokenizer/tokenizer_config.json"), |config| config["added_tokens_decoder"] = decoder.into());
    assert!(error() < NETWORK_LIMIT, "off by {}", error());
}

/// As in A1111: in Stable Diffusion 2 and XL, whose text encoders use a fixed layer, `clip_skip` changes nothing, and the answer says so.
#[tokio::test]
async fn clip_skip_has_an_effect_in_stable_diffusion_1_alone() {
    for model in ["sd1", "sd2", "sdxl"] {
        let directory = made_up::model(model);
        let worker = Worker::ready(&["--model", directory.path().to_str().unwrap()]);
        let mut pictures = Vec::new();
        for skip in [json!(null), json!(1), json!(2), json!(12)] {
            let is_beyond = model == "sd1" && skip == 12;
            let body = json!({ "prompt": "a fox", "steps": 1, "seed": 3, "size": "64x64", "clip_skip": skip });
            if is_beyond {
                assert_eq!(worker.post(&body).await.status(), 400);
                continue;
            }
            let answer = worker.generate(&body).await;
            let is_ignored = model != "sd1" && !skip.is_null();
            assert_eq!(answer["ignored"], if is_ignored { json!(["clip_skip"]) } else { json!([]) }, "{model} {skip}");
            assert_eq!(answer["parameters"].get("clip_skip").is_some(), model == "sd1" && !skip.is_null(), "{model} {skip}");
            pictures.push(crate::support::picture(&answer["data"][0]).into_rgb8().into_raw());
        }
        assert!(pictures[0] == pictures[1], "{model}: 1 skips nothing");
        assert_eq!(pictures[0] == pictures[2], model != "sd1", "{model}");
    }
}

/// A prompt that names a word gets its vectors or a warning; a NaN in them is reported at the start.
#[tokio::test]
async fn a_call_of_a_learned_word_is_the_word_or_a_warning() {
    let (directory, folder) = (made_up::model("sd1"), words("sd1"));
    let [model, embeddings] = [directory.path(), folder.path()].map(|path| path.to_str().unwrap().to_owned());
    let worker = Worker::ready(&["--model", &model, "--embeddings", &embeddings]);
    let ask = async |prompt: &str| {
        let answer = worker.generate(&json!({ "prompt": prompt, "steps": 1, "seed": 3, "size": "64x64" })).await;
        (crate::support::picture(&answer["data"][0]).into_rgb8().into_raw(), answer["warnings"].clone())
    };
    let (right, _) = ask("a easy-negative, fox").await;
    for call in [
        "embedding:easy-negative",
        "embedding:negative/easy-negative",
        "easy-negative.safetensors",
        "(embedding:negative/easy-negative.safetensors:1.0)",
    ] {
        let (picture, warnings) = ask(&format!("a {call}, fox")).await;
        assert!(picture == right && warnings == json!([]), "{call}: {warnings}");
    }
    let (without, _) = ask("a , fox").await;
    for call in ["embedding:people/easy-negative", "embedding:nobody"] {
        let (picture, warnings) = ask(&format!("a {call}, fox")).await;
        let name = call.strip_prefix("embedding:").unwrap();
        assert!(picture == without, "{call}");
        assert_eq!(
            warnings,
            json!([format!("the embedding \"{name}\" was left out: there is no such file below the folder of --embeddings")])
        );
    }

    let broken = made_up::made_up("", &[1, 64]).affine(f64::NAN, 0.0).unwrap();
    candle_core::safetensors::save(&HashMap::from([("emb_params".to_owned(), broken)]), folder.path().join("nan.safetensors")).unwrap();
    crate::damaged::fails(&["--model", &model, "--embeddings", &embeddings], "emb_params has a value that is not a number (NaN)");
}

#[tokio::test]
async fn learned_words_are_listed_and_what_is_none_is_named() {
    let (directory, folder) = (made_up::model("sd1"), words("sd1"));
    let paths = [directory.path(), folder.path()].map(|path| path.to_str().unwrap().to_owned());
    let mut worker = Worker::ready(&["--model", &paths[0], "--embeddings", &paths[1]]);
    let capabilities: Value = worker.get("/v1/capabilities").await.json().await.unwrap();
    assert_eq!(capabilities["embeddings"], json!(["<cat-toy>", "easy-negative"]));
    let log = worker.stderr();
    for reason in [
        "two.safetensors: the embedding is left out: it has 2 tensors, and none of them is emb_params",
        "wide.safetensors: the embedding is left out: its vectors are 128 wide, and those of the model 64",
        "many.safetensors: the embedding is left out: emb_params is of the shape [76, 64], which is not 1 to 75 vectors",
        "broken.safetensors: left out: ",
        "old.pt: pickled embeddings are not read",
    ] {
        assert!(log.contains(reason), "{reason}: {log}");
    }
    assert!(!log.contains("preview.png"));

    let missing = binary().args(["generate", "a", "--embeddings", "/no/such"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such cannot be read"));
}
