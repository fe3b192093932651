//! LoRAs by request: the pictures of diffusers with the LoRA merged by its formula, and what the server and the command line make of them.
//! `tests/parity/make_lora_goldens.py` makes the goldens.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::Device;
use sd_worker::{
    backend::{self, Generation, GenerationRequest, InferencePipeline, Interrupt, LoadOptions, ModelFiles, Order, OrderAdapters, Pipeline},
    common::NamedLora,
    ops::WeightType,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cli::{failure, path, run},
    made_lora::{Spelling, lora, save, save_what_cannot_be_used},
    made_up,
    parity::{Request, largest_pixel_error, relative_error},
    support::{Worker, compare_batches, picture, steps},
};

/// As for pictures without a LoRA.
const LATENTS_LIMIT: f32 = 1e-3;
const PIXEL_LIMIT: i32 = 2;

#[derive(Deserialize)]
struct Case {
    name: String,
    modules: usize,
    scale: f64,
    text_scale: f64,
    #[serde(flatten)]
    request: Request,
}

fn load(model: &Path, loras: &Path, weight_type: WeightType) -> Arc<InferencePipeline> {
    let options = LoadOptions { weight_type, adapters: Some(loras.to_owned()), ..LoadOptions::default() };
    Arc::new(backend::load(&ModelFiles::open(model.to_str().unwrap()).unwrap(), &options).unwrap())
}

fn named(name: &str, text_scale: f64, scale: f64) -> NamedLora {
    NamedLora { name: name.to_owned(), text_scale: text_scale.try_into().unwrap(), denoiser_scale: scale.try_into().unwrap() }
}

#[test]
fn pictures_with_a_lora_agree_with_diffusers() {
    let goldens = candle_core::safetensors::load("tests/parity/loras.safetensors", &Device::Cpu).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&fs::read("tests/parity/loras.json").unwrap()).unwrap();
    assert_eq!(cases.len(), 3);
    for Case { name, modules, scale, text_scale, request } in cases {
        let (model, folder) = (made_up::model(&name), tempfile::tempdir().unwrap());
        let pipeline = load(model.path(), folder.path(), WeightType::F32);
        let mut last: Option<Vec<f32>> = None;
        for (spelling, lora_name) in [(Spelling::Kohya, "kohya"), (Spelling::Peft, "peft"), (Spelling::Differences, "merged")] {
            let (tensors, count) = lora(&pipeline, spelling, 1.0);
            assert_eq!(count, modules, "{name}");
            save(&tensors, &folder.path().join(format!("{lora_name}.safetensors")));
            let library = pipeline.info().adapters.as_ref().unwrap();
            library.folder().refresh().unwrap();
            let chosen = library.choose(&[], &[named(lora_name, text_scale, scale)]).unwrap();
            assert_eq!(chosen[0].warnings().next(), None, "{name} {lora_name}");
            let asked = request.with(pipeline.info().defaults.sampler, pipeline.info().defaults.schedule).request(&pipeline);
            let order = Order { adapters: Arc::new(OrderAdapters { chosen, ..OrderAdapters::default() }), ..asked.order };
            let mut generation = pipeline.begin(&GenerationRequest::unheard(order), Interrupt::NEVER).unwrap();
            let latents = &goldens[&format!("{name}.latents")];
            let steps = latents.dim(0).unwrap() - 1;
            let mut worst = 0f32;
            for step in 1..=steps {
                generation.step().unwrap();
                worst = worst.max(relative_error(generation.latents(), &latents.narrow(0, step, 1).unwrap()));
            }
            let numbers: Vec<f32> = generation.latents().flatten_all().unwrap().to_vec1().unwrap();
            let pixels = largest_pixel_error(&generation.finish(Interrupt::NEVER).unwrap(), &goldens[&format!("{name}.image")]);
            println!("{name} {lora_name}: latents {worst}, pixels {pixels}");
            assert!(worst < LATENTS_LIMIT && pixels <= PIXEL_LIMIT, "{name} {lora_name}: latents {worst}, pixels {pixels}");
            if spelling == Spelling::Peft {
                assert_eq!(last.as_ref(), Some(&numbers), "{name}: two spellings of one file");
            }
            last = Some(numbers);
        }
    }
}

/// A folder of LoRAs for the built-in model.
fn builtin_loras() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = load(Path::new("builtin"), folder.path(), WeightType::F32);
    for (name, spelling, strength) in [
        ("one", Spelling::Kohya, 0.5),
        ("two", Spelling::Peft, -0.4),
        ("merged", Spelling::Differences, 0.3),
        ("four", Spelling::Kohya, 0.2),
    ] {
        save(&lora(&pipeline, spelling, strength).0, &folder.path().join(format!("{name}.safetensors")));
    }
    folder
}

fn with(loras: &Value) -> Value {
    let mut request = steps("a fox", 3);
    request["loras"] = loras.clone();
    request
}

async fn drawn(worker: &Worker, request: &Value) -> image::DynamicImage {
    picture(&worker.generate(request).await["data"][0])
}

#[tokio::test]
async fn a_request_brings_its_loras() {
    let folder = builtin_loras();
    let worker = Worker::ready(&["--loras", folder.path().to_str().unwrap()]);
    let plain = drawn(&worker, &steps("a fox", 3)).await;
    let one = drawn(&worker, &with(&json!([{ "name": "one", "scale": 0.8 }]))).await;
    assert!(one != plain, "a LoRA changes the picture");
    for other in [
        json!([{ "path": "one.safetensors", "multiplier": 0.8 }]),
        json!({ "name": "one", "scale": 0.8 }),
        json!([{ "name": "one", "scale": 0.5 }, { "name": "one", "scale": 0.3 }]),
    ] {
        assert!(drawn(&worker, &with(&other)).await == one, "{other}");
    }
    let mut alias = steps("a fox", 3);
    alias["lora"] = json!([{ "name": "one", "scale": 0.8 }]);
    assert!(drawn(&worker, &alias).await == one, "`lora` is `loras`");
    assert!(drawn(&worker, &steps("a fox<lora:one:0.8>", 3)).await == one, "the prompt may name it");
    // The prompt's embeddings are kept: they are of one LoRA, or of none.
    assert!(drawn(&worker, &steps("a fox", 3)).await == plain, "it was this request's alone");
    assert!(drawn(&worker, &with(&json!([{ "name": "one", "scale": 0 }, { "name": "merged", "scale": 0 }]))).await == plain, "0 is off");
    let text_alone = drawn(&worker, &steps("a fox<lora:one:0.8:0>", 3)).await;
    let denoiser_alone = drawn(&worker, &steps("a fox<lora:one:0:0.8>", 3)).await;
    assert!(text_alone != plain && denoiser_alone != plain && text_alone != denoiser_alone && text_alone != one);

    let answer = worker.generate(&with(&json!([{ "name": "one", "scale": 0.8 }, { "name": "two" }]))).await;
    let used = &answer["parameters"]["loras"];
    assert_eq!((&used[0]["name"], &used[0]["scale"], &used[1]["scale"]), (&json!("one"), &json!(0.8), &json!(1.0)), "{used}");
    let hash = used[0]["hash"].as_str().unwrap();
    assert!(hash.len() == 12 && !answer["warnings"].to_string().contains("LoRA") && answer["ignored"] == json!([]), "{answer}");
    let file = crate::support::bytes(&answer["data"][0]);
    let text = String::from_utf8_lossy(&file);
    assert!(
        text.contains("a fox<lora:one:0.8><lora:two:1>\nSteps: 3") && text.contains(&format!("Lora hashes: \"one: {hash}, two: ")),
        "{text:.600}"
    );

    // What an answer says makes the picture again, also where the text encoders have a scale of their own.
    let apart = worker.generate(&steps("a fox<lora:one:0.2:0.8>", 3)).await;
    let used = &apart["parameters"]["loras"];
    assert_eq!((&used[0]["scale"], &used[0]["text_scale"]), (&json!(0.8), &json!(0.2)), "{used}");
    assert!(drawn(&worker, &with(used)).await == picture(&apart["data"][0]));

    // Files may come while the worker runs.
    fs::copy(folder.path().join("one.safetensors"), folder.path().join("new.safetensors")).unwrap();
    let listed: Value = worker.get("/v1/loras").await.json().await.unwrap();
    let names: Vec<&str> = listed["data"].as_array().unwrap().iter().map(|lora| lora["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["four", "merged", "new", "one", "two"], "{listed}");
    assert_eq!((&listed["data"][3]["object"], &listed["data"][3]["rank"]), (&json!("lora"), &json!(3)), "{listed}");
    assert!(drawn(&worker, &with(&json!([{ "name": "new", "scale": 0.8 }]))).await == one);
}

#[tokio::test]
async fn what_cannot_be_a_lora_is_refused_with_the_reason() {
    let folder = builtin_loras();
    let one = folder.path().join("one.safetensors");
    save_what_cannot_be_used(folder.path());
    let worker = Worker::ready(&["--loras", folder.path().to_str().unwrap()]);
    for (loras, reason) in [
        (
            json!([{ "name": "none" }]),
            "must be one of \"four\", \"infinite\", \"large\", \"merged\", \"one\", \"strange\", \"two\", \"wide\", not \"none\"",
        ),
        (json!([{ "name": "../one" }]), "must be one of "),
        (json!([{ "name": one }]), "must be one of "),
        (json!([{ "name": "cut" }]), "no whole safetensors file"),
        (json!([{ "name": "text" }]), "no whole safetensors file"),
        (json!([{ "name": "huge" }]), "no whole safetensors file"),
        (json!([{ "name": "long" }]), "and that of a LoRA has at most 8388608"),
        (json!([{ "name": "wide" }]), "must be a LoRA for Stable Diffusion 1 (conv_in of the "),
        (json!([{ "name": "strange" }]), "has no layer of the model: lora_unet_nowhere.lora_down.weight"),
        (json!([{ "name": "infinite" }]), "a LoRA of the request cannot be used: "),
        (json!([{ "name": "one", "scale": 20.5 }]), "a list of LoRAs such as"),
        (json!([{ "name": "one", "scale": 15 }, { "name": "one", "scale": 15 }]), "scale from -20 to 20, not 30"),
        (json!([{ "name": "one", "sclae": 0.5 }]), "a list of LoRAs such as"),
        (json!((0..33).map(|i| format!("{i}")).collect::<Vec<_>>()), "must be at most 32 LoRAs, not 33"),
        (json!(3), "a list of LoRAs such as"),
        (json!([{ "name": "large", "scale": 20 }]), "a LoRA of the request cannot be used: a strength of "),
    ] {
        let response = worker.post(&with(&loras)).await;
        let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
        assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("loras")), "{loras}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(reason), "{loras}: {answer}");
    }
    worker.generate(&with(&json!([{ "name": "one" }]))).await;
    let listed: Value = worker.get("/v1/loras").await.json().await.unwrap();
    let broken =
        listed["data"].as_array().unwrap().iter().filter(|lora| lora["error"].is_string()).map(|lora| lora["name"].as_str().unwrap());
    assert_eq!(broken.collect::<Vec<_>>(), ["cut", "huge", "long", "text"], "{listed}");
}

#[tokio::test]
async fn what_a_prompt_names_is_checked_too() {
    let folder = builtin_loras();
    let worker = Worker::ready(&["--loras", folder.path().to_str().unwrap()]);
    // The limit is that of both places together.
    let mut both = with(&json!((0..20).map(|i| format!("{i}")).collect::<Vec<_>>()));
    both["prompt"] = (20..33).map(|i| format!("<lora:{i}:1>")).collect::<Vec<_>>().concat().into();
    let answer: Value = worker.post(&both).await.json().await.unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains("must be at most 32 LoRAs, not 33"), "{answer}");
    for (prompt, reason) in [("a<lora:none:1>", "must be one of "), ("a<lora:one:much>", "a LoRA's scale from -20 to 20, not \"much\"")] {
        let response = worker.post(&steps(prompt, 2)).await;
        let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
        assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("prompt")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(reason), "{answer}");
    }
}

#[tokio::test]
async fn a_worker_without_loras_says_so() {
    let worker = Worker::ready(&[]);
    let response = worker.post(&with(&json!([{ "name": "one" }]))).await;
    assert_eq!(response.status(), 400);
    let answer: Value = response.json().await.unwrap();
    assert!(
        answer["error"]["message"].as_str().unwrap().contains("must be left out: this worker was started without --loras DIR, not \"one\""),
        "{answer}"
    );
    let answer = worker.generate(&steps("a fox <lora:one:1> <hypernet:two:1>", 2)).await;
    let warnings = answer["warnings"].to_string();
    assert!(warnings.contains("LoRA \\\"one\\\" was left out") && warnings.contains("hypernetwork \\\"two\\\" was left out"), "{warnings}");
    assert_eq!(worker.get("/v1/loras").await.json::<Value>().await.unwrap(), json!({ "object": "list", "data": [] }));
}

/// Requests with different LoRAs, and one without, take their steps together.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_with_a_lora_does_not_depend_on_its_batch() {
    let folder = builtin_loras();
    let arguments = ["--loras", folder.path().to_str().unwrap()];
    let request = |i: usize| {
        let mut request = steps(["a fox", "an owl"][i % 2], 20);
        request["seed"] = i.into();
        request["loras"] =
            [json!([]), json!([{ "name": "one" }]), json!(["two", "one"]), json!(["merged"]), json!(["four"]), json!(["one", "merged"])]
                [i % 6]
                .clone();
        request
    };
    let worker = Worker::ready(&[&arguments[..], &["--max-batch", "4"]].concat());
    let requests: Vec<Value> = (0..12).map(request).collect();
    let (passes, pictures) = compare_batches(&Worker::ready(&arguments), worker, &requests).await;
    assert!(pictures > 1.5 * passes, "{pictures} pictures' steps in {passes} passes");
}

/// Merging the layers of a large model takes seconds. What was begun is not kept.
#[test]
fn merging_ends_when_nobody_waits_for_it() {
    let folder = builtin_loras();
    let pipeline = load(Path::new("builtin"), folder.path(), WeightType::F32);
    let library = pipeline.info().adapters.as_ref().unwrap();
    let chosen = library.choose(&[], &[named("merged", 1.0, 1.0)]).unwrap();
    let asked = AtomicUsize::new(0);
    let is_unwanted = || asked.fetch_add(1, Ordering::Relaxed) == 3;
    assert!(library.apply(&chosen, Interrupt::when(&is_unwanted)).is_err());
    assert_eq!(asked.into_inner(), 4, "no layer is merged after that");
    library.apply(&chosen, Interrupt::NEVER).unwrap();
    library.apply(&chosen, Interrupt::when(&|| true)).expect("the layers are there");
}

#[test]
fn generate_takes_loras_by_name() {
    let (folder, out) = (builtin_loras(), tempfile::tempdir().unwrap());
    let (loras, file) = (folder.path().to_str().unwrap(), path(&out, "a.png"));
    let pixels = |prompt: &str, more: &[&str]| {
        let output =
            run(&[&["generate", prompt, "--seed", "1", "--steps", "2", "--size", "64x64", "-o", &file, "--loras", loras], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        image::open(&file).unwrap()
    };
    let with = pixels("a fox", &["--lora", "one:0.8", "--lora", "four"]);
    assert!(with == pixels("a fox <lora:one:0.8><lora:four:1>", &[]) && with != pixels("a fox", &[]));
    let (code, message) = failure(&["generate", "a fox", "--loras", loras, "--lora", "three"]);
    assert_eq!(code, 64, "{message}");
    assert!(message.contains("must be one of \"four\", \"merged\", \"one\", \"two\", not \"three\""), "{message}");
    let (code, message) = failure(&["generate", "a fox", "--loras", &path(&out, "nowhere")]);
    assert_eq!((code, message.contains("nowhere cannot be read")), (66, true), "{message}");
}

/// Merged into the weights, whatever they are kept in, it is the LoRA that a request brings.
#[tokio::test]
async fn a_lora_of_the_worker_changes_every_picture() {
    let folder = builtin_loras();
    let loras = ["--loras", folder.path().to_str().unwrap()];
    let by_request = Worker::ready(&loras);
    let expected = drawn(&by_request, &with(&json!([{ "name": "one", "scale": 0.8 }, { "name": "merged", "scale": 0.5 }]))).await;
    let plain = drawn(&by_request, &steps("a fox", 3)).await;
    // The mean difference of a byte.
    let off = |a: &image::DynamicImage, b: &image::DynamicImage| {
        let (a, b) = (a.to_rgb8(), b.to_rgb8());
        a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
    };
    assert!(off(&plain, &expected) > 2.0, "they change the picture");
    for more in [&[][..], &["--low-memory"], &["--dtype", "q8_0"]] {
        let worker = Worker::ready(&[&loras[..], &["--lora", "one:0.8,merged:0.5"], more].concat());
        let found = drawn(&worker, &steps("a fox", 3)).await;
        let limit = if more.contains(&"q8_0") { off(&plain, &expected) / 4.0 } else { 0.01 };
        assert!(off(&found, &expected) <= limit, "{more:?}: {}", off(&found, &expected));
        // One more by request, on top of it.
        assert!(drawn(&worker, &with(&json!(["two"]))).await != found);
    }
    for (lora, reason) in [("none", "--lora must be one of \"four\", "), ("one:21", "a LoRA's scale from -20 to 20, not 21")] {
        let (code, message) = failure(&["serve", "--port", "0", "--loras", loras[1], "--lora", lora]);
        assert!(code != 0 && message.contains(reason), "{code} {message}");
    }
    let (_, message) = failure(&["serve", "--port", "0", "--lora", "one"]);
    assert!(message.contains("--loras"), "{message}");
}

/// The model's settings for many steps would spoil the picture.
#[tokio::test]
async fn a_lora_for_few_steps_brings_its_settings() {
    let folder = builtin_loras();
    for name in ["lcm-lora", "sdxl_lightning_2step"] {
        fs::copy(folder.path().join("one.safetensors"), folder.path().join(format!("{name}.safetensors"))).unwrap();
    }
    let worker = Worker::ready(&["--loras", folder.path().to_str().unwrap()]);
    let request = json!({ "prompt": "a fox<lora:lcm-lora:1>", "seed": 1, "size": "64x64" });
    let answer = worker.generate(&request).await;
    let used = |answer: &Value| ["sampler", "steps", "guidance_scale"].map(|name| answer["parameters"][name].to_string());
    assert_eq!(used(&answer), ["\"lcm\"", "4", "1.0"], "{answer:.300}");
    assert!(
        answer["warnings"].to_string().contains("is for few steps: sampler lcm, 4 steps, guidance_scale 1 in place of the model's own"),
        "{}",
        answer["warnings"]
    );
    let mut request = request;
    (request["sampler"], request["steps"], request["guidance_scale"]) = ("euler".into(), 2.into(), 3.into());
    let answer = worker.generate(&request).await;
    assert_eq!(used(&answer), ["\"euler\"", "2", "3.0"]);
    assert!(!answer["warnings"].to_string().contains("few steps"), "{}", answer["warnings"]);
    // A schedule that the model's own sampler does not have goes with the sampler that a LoRA brings.
    let karras = json!({ "prompt": "a fox", "size": "64x64", "schedule": "karras" });
    assert_eq!(worker.post(&karras).await.status(), 400);
    let mut request = karras;
    request["loras"] = "sdxl_lightning_2step".into();
    let answer = worker.generate(&request).await;
    assert_eq!((used(&answer), &answer["parameters"]["schedule"]), (["\"euler\"", "2", "1.0"].map(str::to_owned), &json!("karras")));
    // Of the worker, it leaves the model's settings as they are, and says so.
    let mut worker = Worker::ready(&["--loras", folder.path().to_str().unwrap(), "--lora", "lcm-lora"]);
    let said = worker.stderr();
    assert!(
        said.contains("--lora lcm-lora is for few steps; requests should say so: sampler lcm, schedule default, 4 steps, guidance_scale 1"),
        "{said}"
    );
}

/// A request that was accepted draws what it was accepted with, or says that it cannot.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_while_a_request_waits_is_no_other_lora() {
    let folder = builtin_loras();
    let worker = Arc::new(Worker::ready(&["--loras", folder.path().to_str().unwrap()]));
    let running = worker.start(&crate::support::long("a cat")).await;
    let waiting = tokio::spawn({
        let worker = Arc::clone(&worker);
        async move { worker.post(&with(&json!(["two"]))).await }
    });
    worker.wait_for_metric("sdw_requests_waiting", |value| value > 0.0).await;
    // Of the same length, and with the same time of change.
    let (one, two) = (folder.path().join("one.safetensors"), folder.path().join("two.safetensors"));
    let old = fs::metadata(&two).unwrap();
    fs::copy(&one, folder.path().join("new")).unwrap();
    fs::File::options().write(true).open(folder.path().join("new")).unwrap().set_modified(old.modified().unwrap()).unwrap();
    fs::rename(folder.path().join("new"), &two).unwrap();
    running.abort();
    let response = waiting.await.unwrap();
    let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
    assert_eq!(status, 400, "{answer:.300}");
    assert!(
        answer["error"]["message"].as_str().unwrap().contains("two.safetensors was replaced while a request for it waited; ask again"),
        "{answer}"
    );
    assert!(drawn(&worker, &with(&json!(["two"]))).await == drawn(&worker, &with(&json!(["one"]))).await, "it is the new file now");
}

#[tokio::test]
async fn edits_and_jobs_take_loras() {
    let folder = builtin_loras();
    let worker = Worker::ready(&["--loras", folder.path().to_str().unwrap()]);
    let job = json!({ "operation": "image_generation", "prompt": "a fox", "steps": 3, "seed": 1, "width": 64, "height": 64, "guidance_scale": 4,
        "sampler": "ddim", "schedule": "default", "lora": "one" });
    let client = reqwest::Client::new();
    let submitted: Value = client.post(worker.url("/v1/jobs")).json(&job).send().await.unwrap().json().await.unwrap();
    let id = submitted["job_id"].as_str().unwrap_or_else(|| panic!("{submitted}"));
    assert!(worker.get(&format!("/v1/jobs/{id}/stream")).await.text().await.unwrap().contains("[DONE]"));
    let result: Value = worker.get(&format!("/v1/jobs/{id}/result")).await.json().await.unwrap();
    assert!(picture(&result["data"][0]) == drawn(&worker, &with(&json!(["one"]))).await);

    let edit = async |loras: &str| {
        let image = reqwest::multipart::Part::bytes(fs::read("tests/parity/picture.png").unwrap()).file_name("picture.png");
        let form = reqwest::multipart::Form::new().part("image", image).text("prompt", "a fox").text("seed", "1").text("steps", "3");
        let response = client.post(worker.url("/v1/images/edits")).multipart(form.text("loras", loras.to_owned())).send().await.unwrap();
        let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
        assert_eq!(status, 200, "{answer:.300}");
        (picture(&answer["data"][0]), answer["parameters"]["loras"][0]["name"].clone())
    };
    let (plain, none) = edit("").await;
    let (one, name) = edit("{\"name\": \"one\", \"scale\": 0.5}").await;
    assert!(one != plain && name == "one" && none == Value::Null);
    assert!(edit("[{\"name\": \"one\", \"scale\": 0.5}]").await.0 == one);
}

/// A file of a megabyte may ask for gigabytes.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_lora_that_memory_does_not_suffice_for_fails_alone() {
    let folder = builtin_loras();
    let mut large = candle_core::safetensors::load(folder.path().join("one.safetensors"), &Device::Cpu).unwrap();
    large.retain(|name, tensor| name.ends_with("attn1_to_k.lora_down.weight") && tensor.rank() == 2);
    let (name, down) = large.iter().next().map(|(name, down)| (name.replace(".lora_down.weight", ""), down.clone())).unwrap();
    // Ranks of zeros, which the file system does not store.
    let (inputs, rank) = (down.dim(1).unwrap(), 1usize << 20);
    let length = 4 * inputs * rank;
    let header = format!(
        r#"{{"{name}.lora_down.weight":{{"dtype":"F32","shape":[{rank},{inputs}],"data_offsets":[0,{length}]}},"{name}.lora_up.weight":{{"dtype":"F32","shape":[{inputs},{rank}],"data_offsets":[{length},{}]}}}}"#,
        2 * length
    );
    let file = folder.path().join("large.safetensors");
    fs::write(&file, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_len((8 + header.len() + 2 * length) as u64).unwrap();
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -v 2000000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_sd-worker")]);
    let mut worker = Worker::listening_as(limited, &["--loras", folder.path().to_str().unwrap()]);
    assert_eq!(worker.event()["event"], "ready");
    let response = worker.post(&with(&json!(["large"]))).await;
    let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (500, &json!("out_of_memory")), "{answer}");
    worker.generate(&with(&json!(["one"]))).await;
}
