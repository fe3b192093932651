//! `POST /v1/images/generations`: the answers.

use std::fs;

use reqwest::Client;
use serde_json::{Value, json};

use crate::support::{Worker, bytes, copy_of_tiny, picture, small, steps};

/// Compares an answer without what differs from run to run.
fn snapshot(name: &str, answer: &Value) {
    let mut answer = answer.clone();
    for item in answer["data"].as_array_mut().unwrap() {
        item["b64_json"] = "…".into();
    }
    for time in answer["timings"].as_object_mut().unwrap().values_mut() {
        assert!(time.is_u64());
        *time = "ms".into();
    }
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    answer["created"] = "seconds".into();
    insta::assert_json_snapshot!(name, answer);
}

#[tokio::test]
async fn a_prompt_becomes_a_picture() {
    let worker = Worker::ready(&[]);
    let answer = worker.generate(&steps("a fox on a blue background", 15)).await;
    snapshot("answer", &answer);
    let picture = picture(&answer["data"][0]).to_rgb8();
    assert_eq!(format!("{}x{}", picture.width(), picture.height()), answer["size"].as_str().unwrap());
    // The prompt says blue, so the corners must be blue.
    let [red, green, blue] = picture.get_pixel(2, 2).0;
    assert!(blue > 150 && blue > red && blue > green, "{red} {green} {blue}");
}

#[tokio::test]
async fn the_same_seed_gives_the_same_picture_and_no_seed_gives_any() {
    let worker = Worker::ready(&[]);
    let one = worker.generate(&small("a fox")).await;
    let again = worker.generate(&small("a fox")).await;
    assert_eq!(one["data"], again["data"]);
    let mut any = small("a fox");
    any["seed"] = (-1).into();
    let (first, second) = (worker.generate(&any).await, worker.generate(&any).await);
    assert_ne!(first["data"][0]["seed"], second["data"][0]["seed"]);
    any["seed"] = first["data"][0]["seed"].clone();
    assert_eq!(worker.generate(&any).await["data"], first["data"], "the seed that was told leads back to the picture");
}

#[tokio::test]
async fn several_pictures_have_the_seeds_that_follow() {
    let worker = Worker::ready(&[]);
    let mut request = small("a fox");
    request["n"] = 3.into();
    let answer = worker.generate(&request).await;
    assert_eq!(answer["data"].as_array().unwrap().len(), 3);
    for (i, data) in answer["data"].as_array().unwrap().iter().enumerate() {
        let mut single = small("a fox");
        single["seed"] = (1 + i).into();
        assert_eq!(&worker.generate(&single).await["data"][0], data);
    }
}

#[tokio::test]
async fn every_setting_changes_the_picture() {
    let worker = Worker::ready(&[]);
    let plain = worker.generate(&small("a fox")).await["data"].clone();
    for (name, value) in [
        ("prompt", json!("a pizza")),
        ("prompt", json!("a (fox:1.4)")),
        ("prompt", json!("a fox BREAK a pizza")),
        ("prompt", json!("a fox AND a pizza :0.8")),
        ("clip_skip", json!(2)),
        ("negative_prompt", json!("blue")),
        ("seed", json!(2)),
        ("steps", json!(3)),
        ("guidance_scale", json!(9)),
        ("sampler", json!("euler_a")),
        ("schedule", json!("sgm_uniform")),
        ("eta", json!(0.5)),
        ("guidance_rescale", json!(0.7)),
        ("guidance_interval", json!([0.5, 1])),
        ("cache", json!({ "kind": "deep", "interval": 2 })),
        ("zero_snr", json!(false)),
        ("size", json!("72x64")),
        ("width", json!(72)),
        ("height", json!(72)),
    ] {
        let mut request = small("a fox");
        request[name] = value;
        assert_ne!(worker.generate(&request).await["data"], plain, "{name}");
    }
}

#[tokio::test]
async fn the_parameters_of_an_answer_make_the_picture_again() {
    let worker = Worker::ready(&[]);
    let asked = json!({
        "prompt": "a fox", "size": "96x72", "steps": 2, "guidance_scale": 4, "sampler": "ddim", "schedule": "sgm_uniform", "eta": 0.5,
        "guidance_rescale": 0.7, "guidance_interval": [0.0, 0.5], "zero_snr": false, "clip_skip": 2,
        "cache": { "kind": "deep", "threshold": 0.5 },
    });
    let answer = worker.generate(&asked).await;
    let mut again = answer["parameters"].clone();
    again["prompt"] = asked["prompt"].clone();
    let again = worker.generate(&again).await;
    assert_eq!((&again["data"], &again["parameters"], &again["ignored"]), (&answer["data"], &answer["parameters"], &json!([])));
}

#[tokio::test]
async fn width_and_height_stand_before_a_size() {
    let worker = Worker::ready(&[]);
    for (width, height, size, made, ignored) in [
        (json!(72), json!(64), json!("72x64"), "72x64", json!([])),
        (json!(72), json!(64), json!("96x96"), "72x64", json!(["size"])),
        (json!(72), Value::Null, json!("96x96"), "72x96", json!(["size"])),
        (Value::Null, json!(64), json!("auto"), "128x64", json!([])),
    ] {
        let request = json!({ "prompt": "a fox", "steps": 1, "width": width, "height": height, "size": size });
        let answer = worker.generate(&request).await;
        assert_eq!((&answer["size"], &answer["ignored"]), (&json!(made), &ignored), "{request}");
    }
}

#[tokio::test]
async fn names_from_other_tools_are_understood() {
    let worker = Worker::ready(&[]);
    let ours =
        json!({ "prompt": "a fox", "seed": 1, "num_inference_steps": 2, "guidance_scale": 3, "sampler": "dpmpp_2m", "schedule": "karras" });
    let ours = worker.generate(&ours).await;
    for theirs in [
        json!({ "prompt": "a fox", "seed": 1, "steps": 2, "cfg_scale": 3, "sampler_name": "DPM++ 2M", "scheduler": "Karras" }),
        json!({ "prompt": "a fox", "seed": 1, "step": 2, "cfg_scale": 3.0, "sample_method": "dpm++2m", "scheduler": "karras" }),
    ] {
        let theirs = worker.generate(&theirs).await;
        assert_eq!(theirs["data"], ours["data"]);
        assert_eq!(theirs["parameters"], ours["parameters"]);
        assert_eq!(theirs["ignored"], json!([]));
    }
}

#[tokio::test]
async fn a_field_without_effect_is_named() {
    let worker = Worker::ready(&[]);
    let mut request = small("a fox");
    for (name, value) in [
        ("model", json!("gpt-image-1")),
        ("quality", json!("high")),
        ("style", json!("vivid")),
        ("user", json!("me")),
        ("background", json!("auto")),
        ("moderation", json!("auto")),
        ("suffix", Value::Null),
        ("output_compression", json!(50)),
        ("partial_images", json!(2)),
        ("stepz", json!(5)),
        ("sampler", json!("heun")),
        ("eta", json!(0.5)),
        ("zero_snr", json!(true)),
    ] {
        request[name] = value;
    }
    let answer = worker.generate(&request).await;
    assert_eq!(
        answer["ignored"],
        json!(["eta", "model", "output_compression", "partial_images", "quality", "stepz", "style", "user", "zero_snr"])
    );
}

#[tokio::test]
async fn a_negative_prompt_without_guidance_is_named_as_ignored() {
    let worker = Worker::ready(&[]);
    let mut request = small("a fox");
    request["negative_prompt"] = "red".into();
    assert_eq!(worker.generate(&request).await["ignored"], json!([]));
    request["guidance_scale"] = 1.into();
    request["background"] = "opaque".into();
    request["guidance_interval"] = json!([0.0, 0.5]);
    assert_eq!(worker.generate(&request).await["ignored"], json!(["guidance_interval", "negative_prompt"]));
    request["prompt"] = "a fox AND a pizza".into();
    assert_eq!(worker.generate(&request).await["ignored"], json!([]), "parts of a prompt lead away from it at any scale");
}

/// A small request at the size of the test models.
fn at_own_size(prompt: &str) -> Value {
    let mut request = small(prompt);
    request["size"] = "auto".into();
    request
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_cut_with_a_warning() {
    let worker = Worker::ready(&[]);
    let prompt = format!("{} and the end that nobody reads", "a fox ".repeat(600).trim());
    let answer = worker.generate(&small(&prompt)).await;
    let warning = answer["warnings"][0].as_str().unwrap();
    assert!(warning.contains("too long") && warning.ends_with("and the end that nobody reads\""), "{warning}");
}

#[tokio::test]
async fn networks_are_left_out_of_a_prompt_with_a_warning() {
    let worker = Worker::ready(&[]);
    let mut request = at_own_size("a <lora:Film Grain:0.8>fox<hypernet:zyx:1>");
    request["negative_prompt"] = "a <lora:Film Grain:1>owl <lyco:zyx>".into();
    let answer = worker.generate(&request).await;
    let mut warnings: Vec<&str> = answer["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap()).collect();
    warnings.sort_unstable();
    assert_eq!(
        warnings,
        [
            "LoRA \"Film Grain\" was left out of the negative prompt: LoRAs change the model for both prompts, and belong into the other one",
            "LoRA \"Film Grain\" was left out: this worker was started without --loras DIR",
            "LoRA \"zyx\" was left out of the negative prompt: LoRAs change the model for both prompts, and belong into the other one",
            "hypernetwork \"zyx\" was left out: not supported by this worker"
        ]
    );
    // The rest of the prompt equals a prompt without networks, and the prompt cache tells them apart.
    let mut plain = at_own_size("a fox");
    plain["negative_prompt"] = "a owl ".into();
    let without = worker.generate(&plain).await;
    assert_eq!(without["warnings"], json!([]));
    assert_eq!(picture(&without["data"][0]), picture(&answer["data"][0]));
    assert_eq!(worker.generate(&request).await["warnings"], answer["warnings"]);
}

#[tokio::test]
async fn words_that_the_model_was_not_taught_are_named() {
    let worker = Worker::ready(&[]);
    let mut request = at_own_size("A (zyx:1.2) t-rex, Blorb — on a blue-ish background 🦀 AND zyx");
    request["negative_prompt"] = "blorb, a red quux".into();
    let answer = worker.generate(&request).await;
    let warning = answer["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("unknown words: blorb, quux, zyx, ish, 🦀 ("), "{warning}");
    assert_eq!(answer["warnings"].as_array().unwrap().len(), 1);
    assert_eq!(worker.generate(&request).await["warnings"], answer["warnings"], "the same where the prompt is kept");
    assert_eq!(worker.generate(&at_own_size("a small red fox and a piñata on yellow!")).await["warnings"], json!([]));

    // A model without a list of its words is assumed to know every word.
    let model = copy_of_tiny();
    let path = model.path().to_str().unwrap();
    assert_eq!(Worker::ready(&["--model", path]).generate(&at_own_size("zyx")).await["warnings"], json!([]));
    fs::write(model.path().join("known_words.json"), r#"["fox"]"#).unwrap();
    let answer = Worker::ready(&["--model", path]).generate(&at_own_size("zyx fox")).await;
    assert!(answer["warnings"][0].as_str().unwrap().starts_with("unknown words: zyx ("), "{answer}");
}

#[tokio::test]
async fn words_that_mean_nothing_else_are_taken_for_taught_ones() {
    let worker = Worker::ready(&[]);
    let taught = worker.generate(&at_own_size("a picture of a red fox on a blue background")).await;
    let said = worker.generate(&at_own_size("The photo of my red fox on the blue wall")).await;
    assert_eq!(said["warnings"], json!([]));
    assert_eq!(picture(&said["data"][0]), picture(&taught["data"][0]));
}

#[tokio::test]
async fn every_output_format_is_what_it_says() {
    let worker = Worker::ready(&[]);
    for (format, magic) in [("png", &b"\x89PNG"[..]), ("jpeg", &b"\xff\xd8\xff"[..]), ("webp", &b"RIFF"[..])] {
        let mut request = small("a fox");
        request["output_format"] = format.into();
        let answer = worker.generate(&request).await;
        assert_eq!(answer["output_format"], format);
        let file = bytes(&answer["data"][0]);
        assert!(file.starts_with(magic), "{format}");
        let body = serde_json::json!({ "image": answer["data"][0]["b64_json"] });
        let read = Client::new().post(worker.url("/sdapi/v1/png-info")).json(&body).send().await.unwrap();
        let read: Value = read.json().await.unwrap();
        assert!(read["info"].as_str().unwrap().starts_with("a fox\nSteps: 2, Sampler: DDIM, "), "{format}: {read}");
        assert_eq!((&read["parameters"]["Prompt"], &read["parameters"]["Size-1"]), (&json!("a fox"), &json!("64")));
        request["output_compression"] = 10.into();
        let smaller = worker.generate(&request).await;
        let is_smaller = bytes(&smaller["data"][0]).len() < file.len();
        assert_eq!(
            (is_smaller, &smaller["ignored"]),
            (format != "png", &if format == "png" { json!(["output_compression"]) } else { json!([]) })
        );
    }
    let long = "a fox ".repeat(5000);
    let body = json!({ "prompt": long, "negative_prompt": long, "output_format": "jpeg", "size": "64x64", "steps": 1 });
    let warnings = worker.generate(&body).await["warnings"].clone();
    assert!(warnings.to_string().contains("the prompts are too long for a JPEG file"), "{warnings}");
}

#[tokio::test]
async fn png_files_say_how_they_were_made() {
    let worker = Worker::ready(&[]);
    let mut request = small("a fox — 🦊");
    request["negative_prompt"] = "red".into();
    request["sampler"] = "dpmpp_2m".into();
    request["schedule"] = "karras".into();
    let answer = worker.generate(&request).await;
    let file = bytes(&answer["data"][0]);
    let reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
    let text = reader.info().utf8_text[0].get_text().unwrap();
    assert_eq!(reader.info().utf8_text[0].keyword, "parameters");
    insta::assert_snapshot!(text.replace(env!("CARGO_PKG_VERSION"), "VERSION"));
}

#[tokio::test]
async fn a_request_keeps_its_name() {
    let worker = Worker::ready(&[]);
    let named = |name: &'static str| Client::new().get(worker.url("/livez")).header("x-request-id", name).send();
    assert_eq!(named("job-7").await.unwrap().headers()["x-request-id"], "job-7");
    assert_ne!(named("two words").await.unwrap().headers()["x-request-id"], "two words");
}
