//! `POST /v1/images/generations`: what it answers, and what it refuses.

use std::fs;

use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Worker, bytes, copy_of_tiny, long, picture, small, steps};

/// Answers are compared without what changes from run to run.
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
    // The prompt says blue: the corners must be.
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

/// A small request at the size that the models of these tests were made for.
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
    let named = ["LoRA \"Film Grain\"", "hypernetwork \"zyx\"", "LyCORIS \"zyx\""];
    let answer = worker.generate(&request).await;
    let mut warnings: Vec<&str> = answer["warnings"].as_array().unwrap().iter().map(|warning| warning.as_str().unwrap()).collect();
    warnings.sort_unstable();
    let mut right = named.map(|name| format!("{name} was left out: not supported by this worker"));
    right.sort();
    assert_eq!(warnings, right);
    // The rest of the prompt is what it would be without them, and what is kept of one is not taken for the other.
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

    // A model without such a list is taken to know everything.
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
        assert!(bytes(&answer["data"][0]).starts_with(magic), "{format}");
    }
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
async fn bad_requests_are_refused_with_the_reason() {
    let worker = Worker::ready(&["--max-pixels", "65536"]);
    let mut refusals = Vec::new();
    let long_prompt = "x".repeat(33_000);
    for (name, value) in [
        ("prompt", json!("")),
        ("prompt", json!(long_prompt)),
        ("prompt", json!(7)),
        ("prompt", json!(["a"; 17].join(" AND "))),
        ("prompt", Value::Null),
        ("negative_prompt", json!(long_prompt)),
        ("n", json!(0)),
        ("n", json!(11)),
        ("n", json!(1.5)),
        ("size", json!("100x100")),
        ("size", json!("big")),
        ("size", json!("64x-64")),
        ("size", json!("0x0")),
        ("size", json!("512x512")),
        ("size", json!("99999999999x64")),
        ("steps", json!(0)),
        ("steps", json!(1001)),
        ("num_inference_steps", json!("many")),
        ("guidance_scale", json!(-1)),
        ("cfg_scale", json!(51)),
        ("guidance_interval", json!([0.5])),
        ("guidance_interval", json!([0.8, 0.2])),
        ("guidance_interval", json!("all")),
        ("seed", json!(-2)),
        ("seed", json!(0.5)),
        ("sampler", json!("plms2")),
        ("schedule", json!("karras")),
        ("response_format", json!("url")),
        ("output_format", json!("gif")),
        ("output_compression", json!(101)),
        ("clip_skip", json!(4)),
        ("partial_images", json!(4)),
        ("stream", json!("yes")),
    ] {
        let mut request = small("a fox");
        request[name] = value.clone();
        let response = worker.post(&request).await;
        assert_eq!(response.status(), 400, "{name} = {value}");
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error["param"], name, "{error}");
        let shown = if value.to_string().len() > 100 { "\"xxx…\"".to_owned() } else { value.to_string() };
        refusals.push(format!("{name} = {shown} -> {} [{}]", error["message"].as_str().unwrap(), error["code"].as_str().unwrap()));
    }
    insta::assert_snapshot!(refusals.join("\n"));
    // Nobody is sent much of what is wrong again.
    for name in ["size", "steps", "guidance_scale", "seed", "sampler", "schedule", "response_format", "output_format", "stream", "prompt"] {
        let mut request = small("a fox");
        request[name] = if name == "prompt" { json!(vec!["ü"; 5_000]) } else { json!("ü".repeat(5_000)) };
        let response = worker.post(&request).await;
        assert_eq!(response.status(), 400, "{name}");
        let error = response.text().await.unwrap();
        assert!(error.len() < 1_500, "{name}: {error}");
    }
    assert_eq!(worker.metric("sdw_requests_waiting").await.to_bits(), 0, "nothing of this was queued");
    assert_eq!(worker.metric("sdw_queue_seconds_count").await.to_bits(), 0);
}

/// Also where an answer has begun by the time that the engine looks at it.
#[tokio::test]
async fn what_a_sampler_cannot_do_is_refused_before_it_is_queued() {
    let worker = Worker::ready(&[]);
    let request = json!({ "prompt": "a fox", "sampler": "lcm", "steps": 60, "stream": true, "operation": "image_generation" });
    for path in ["/v1/images/generations", "/v1/jobs"] {
        let refused = Client::new().post(worker.url(path)).json(&request).send().await.unwrap();
        assert_eq!(refused.status(), 400, "{path}");
        assert_eq!(refused.json::<Value>().await.unwrap()["error"]["param"], "steps", "{path}");
    }
    assert_eq!(worker.metric("sdw_queue_seconds_count").await.to_bits(), 0);
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_the_same_form() {
    let worker = Worker::ready(&[]);
    let url = worker.url("/v1/images/generations");
    let post = |body: &'static str| Client::new().post(&url).header("content-type", "application/json").body(body);
    let mut refusals = Vec::new();
    for (name, request) in [
        ("broken JSON", post("{\"prompt\": ")),
        ("a number out of range", post("{\"prompt\": \"a\", \"guidance_scale\": 1e999}")),
        ("NaN", post("{\"prompt\": \"a\", \"guidance_scale\": NaN}")),
        ("something after the JSON", post("{\"prompt\": \"a\"} {}")),
        ("a list", post("[]")),
        ("no prompt", post("{}")),
        ("steps twice", post("{\"prompt\": \"a\", \"steps\": 2, \"num_inference_steps\": 3}")),
        ("no content type", Client::new().post(&url).body("{}")),
        ("no UTF-8", Client::new().post(&url).header("content-type", "application/json").body(&b"{\"prompt\": \"\xff\"}"[..])),
        ("no such route", Client::new().get(worker.url("/v2"))),
        ("wrong method", Client::new().get(&url)),
        ("a path that is no text", Client::new().get(worker.url("/v1/models/%ff"))),
    ] {
        let response = request.send().await.unwrap();
        assert!(response.headers().contains_key("x-request-id"), "{name}");
        let status = response.status();
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error.as_object().unwrap().keys().collect::<Vec<_>>(), ["code", "message", "param", "type"], "{name}");
        refusals.push(format!("{name} -> {status} {error}"));
    }
    insta::assert_snapshot!(refusals.join("\n"));
}

/// As programs on Windows and clients that compress send it.
#[tokio::test]
async fn a_body_with_a_mark_is_read_and_one_that_is_encoded_is_told_so() {
    let worker = Worker::ready(&[]);
    let send = |path: &str, encoding: &str, body: Vec<u8>| {
        let request = Client::new().post(worker.url(path)).header("content-type", "application/json").body(body);
        if encoding.is_empty() { request.send() } else { request.header("content-encoding", encoding).send() }
    };
    let text = small("a fox").to_string();
    let marked = [b"\xef\xbb\xbf", text.as_bytes()].concat();
    assert_eq!(send("/v1/images/generations", "", marked.clone()).await.unwrap().status(), 200);
    assert_eq!(send("/v1/images/generations", "Identity", marked).await.unwrap().status(), 200);
    let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let refused = send("/v1/images/generations", "", [&b"\xff\xfe"[..], &utf16].concat()).await.unwrap();
    assert_eq!(refused.status(), 400);
    let message = refused.json::<Value>().await.unwrap()["error"]["message"].clone();
    assert_eq!(message, "the body is not valid JSON: it is in UTF-16, and must be in UTF-8");

    for path in ["/v1/images/generations", "/v1/images/edits", "/v1/jobs"] {
        let refused = send(path, "gzip", text.clone().into_bytes()).await.unwrap();
        assert_eq!(refused.status(), 415, "{path}");
        let error = refused.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error["code"], "unsupported_content_encoding", "{path}");
        assert!(error["message"].as_str().unwrap().contains("not in the encoding \"gzip\""), "{error}");
    }
    let form = reqwest::multipart::Form::new().text("prompt", "a fox");
    let form = Client::new().post(worker.url("/v1/images/edits")).header("content-encoding", "br").multipart(form).send().await.unwrap();
    assert_eq!(form.status(), 415);
}

#[tokio::test]
async fn a_body_of_20_mb_is_refused_before_it_is_sent() {
    let worker = Worker::ready(&[]);
    let head = "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 20971520\r\n\r\n";
    let mut socket = tokio::net::TcpStream::connect(worker.address()).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.ends_with("{\"error\":{\"message\":\"the body must be at most 1048576 bytes\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"body_too_large\"}}"), "{answer}");
}

#[tokio::test]
async fn more_pictures_than_the_queue_takes_are_refused_for_good() {
    let worker = Worker::ready(&["--queue-capacity", "3"]);
    let mut request = small("a fox");
    request["n"] = 4.into();
    let response = worker.post(&request).await;
    assert_eq!(response.status(), 400);
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["message"], "n must be at most 3 on this worker");
}

#[tokio::test]
async fn requests_that_nobody_waits_for_still_count_until_the_engine_drops_them() {
    let worker = Worker::unlimited(&["--queue-capacity", "3"]);
    let mut slow = long("slow");
    slow["size"] = "1024x1024".into();
    let running = worker.start(&slow).await;
    for queue in [1.0, 2.0] {
        let queued = tokio::spawn(Client::new().post(worker.url("/v1/images/generations")).json(&small("gone")).send());
        worker.wait_for_metric("sdw_requests_waiting", |value| value >= queue).await;
        queued.abort();
    }
    assert_eq!(worker.post(&small("no room")).await.status(), 429);
    assert_eq!(worker.metric("sdw_requests_waiting").await.to_bits(), f64::to_bits(2.0));
    running.abort();
}

#[tokio::test]
async fn a_request_keeps_its_name() {
    let worker = Worker::ready(&[]);
    let named = |name: &'static str| Client::new().get(worker.url("/livez")).header("x-request-id", name).send();
    assert_eq!(named("job-7").await.unwrap().headers()["x-request-id"], "job-7");
    assert_ne!(named("two words").await.unwrap().headers()["x-request-id"], "two words");
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_client_that_goes_makes_room() {
    let worker = Worker::ready(&["--queue-capacity", "1"]);
    let running = worker.start(&long("a fox")).await;
    let refused = worker.post(&small("no room")).await;
    assert_eq!(refused.status(), 429);
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=120).contains(&wait), "{wait}");
    let error = refused.json::<Value>().await.unwrap()["error"].clone();
    assert_eq!((&error["code"], &error["type"]), (&"queue_full".into(), &"rate_limit_error".into()));

    running.abort();
    worker.wait_for_metric("sdw_cancelled_total{reason=\"disconnect\"}", |value| value > 0.0).await;
    // The place is free when the engine has let go of the request, which is after it has counted it.
    while worker.post(&small("room again")).await.status() == 429 {}
    assert!(worker.metric("sdw_step_seconds_count").await < 1000.0, "the request that nobody waits for was not finished");
}
