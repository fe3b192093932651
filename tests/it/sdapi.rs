//! A1111's API: what its clients send, as read in their sources, and what they must get back.

use std::{collections::BTreeSet, io::Cursor, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    made_up,
    support::{Worker, bytes, steps},
};

/// A small request.
fn small(more: &Value) -> Value {
    with(json!({ "prompt": "a fox", "steps": 2, "seed": 1, "width": 64, "height": 64, "cfg_scale": 4, "sampler_name": "Euler" }), more)
}

fn with(mut body: Value, more: &Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn send(worker: &Worker, route: &str, body: &Value) -> Response {
    Client::new().post(worker.url(&format!("/sdapi/v1/{route}"))).json(body).send().await.unwrap()
}

/// The answer to a request, and what its `info` says.
async fn drawn(worker: &Worker, route: &str, body: &Value) -> (Value, Value) {
    let response = send(worker, route, body).await;
    assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
    let answer: Value = response.json().await.unwrap();
    let info = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
    (answer, info)
}

async fn refusal(worker: &Worker, route: &str, body: &Value) -> String {
    let response = send(worker, route, body).await;
    assert_eq!(response.status(), 400, "{body}");
    response.json::<Value>().await.unwrap()["error"]["message"].as_str().unwrap().to_owned()
}

async fn get(worker: &Worker, route: &str) -> Value {
    let response = worker.get(&format!("/sdapi/v1/{route}")).await;
    assert_eq!(response.status(), 200, "{route}");
    response.json().await.unwrap()
}

fn file(answer: &Value, index: usize) -> Vec<u8> {
    BASE64_STANDARD.decode(answer["images"][index].as_str().unwrap()).unwrap()
}

fn base64(picture: impl Into<DynamicImage>) -> String {
    let mut file = Cursor::new(Vec::new());
    picture.into().write_to(&mut file, ImageFormat::Png).unwrap();
    BASE64_STANDARD.encode(file.into_inner())
}

/// `SillyTavern`'s `generateAutoImage`, with the address and the password that its server passes on.
#[tokio::test]
async fn sillytavern_s_request_is_answered() {
    let worker = Worker::ready(&[]);
    let body = json!({
        "url": worker.url(""), "auth": "me:s3cret",
        "prompt": "a fox on a blue background", "negative_prompt": "an owl", "sampler_name": "DPM++ 2M", "scheduler": "karras", "steps": 3,
        "cfg_scale": 4.5, "width": 64, "height": 64, "restore_faces": false, "enable_hr": false, "hr_upscaler": "Latent", "hr_scale": 2,
        "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": 5,
        "override_settings": { "CLIP_stop_at_last_layers": 1 }, "override_settings_restore_afterwards": true, "clip_skip": 1,
        "save_images": true, "send_images": true, "do_not_save_grid": false, "do_not_save_samples": false
    });
    let (answer, info) = drawn(&worker, "txt2img", &body).await;
    assert!(file(&answer, 0).starts_with(b"\x89PNG"));
    assert_eq!(info["ignored"], json!(["auth", "save_images", "url"]), "what asks for nothing is not named");
    assert!(!answer.to_string().contains("s3cret"), "what is unknown is not repeated");
    assert_eq!((&answer["parameters"]["steps"], &answer["parameters"]["hr_upscaler"]), (&json!(3), &json!("Latent")));
    assert_eq!((&info["seed"], &info["sampler_name"], &info["cfg_scale"]), (&json!(5), &json!("DPM++ 2M"), &json!(4.5)));
    let text = info["infotexts"][0].as_str().unwrap();
    assert!(text.starts_with("a fox on a blue background\nNegative prompt: an owl\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras"));
    let names = |list: &Value, key: &str| list.as_array().unwrap().iter().map(|item| item[key].to_string()).collect::<Vec<_>>();
    assert_eq!(names(&get(&worker, "upscalers").await, "name")[0], "\"None\"");
    for route in ["latent-upscale-modes", "sd-vae", "sd-modules"] {
        assert!(get(&worker, route).await.is_array(), "{route}");
    }
    let idle = get(&worker, "progress").await;
    assert_eq!((&idle["progress"], &idle["state"]["job_count"]), (&json!(0.0), &json!(0)), "it polls for this");
}

/// Open `WebUI`'s `set_image_model` and `image_generations`, without a password.
#[tokio::test]
async fn open_webui_s_requests_are_answered() {
    let worker = Worker::ready(&[]);
    let client = Client::new();
    let mut options = get(&worker, "options").await;
    let models = get(&worker, "sd-models").await;
    options["sd_model_checkpoint"] = models[0]["title"].clone();
    let set = client.post(worker.url("/sdapi/v1/options")).header("authorization", "").json(&options).send().await.unwrap();
    assert_eq!((set.status(), set.text().await.unwrap().as_str()), (reqwest::StatusCode::OK, "null"));
    let body = json!({ "prompt": "a fox", "batch_size": 2, "width": 64, "height": 64, "steps": 2, "negative_prompt": "an owl" });
    let (answer, info) = drawn(&worker, "txt2img", &body).await;
    assert_eq!((answer["images"].as_array().unwrap().len(), &info["batch_size"]), (2, &json!(2)));
    assert_eq!(info["ignored"], json!([]));
    assert_eq!(info["sampler_name"], "DDIM", "what is left out is the model's own");
    options["sd_model_checkpoint"] = json!("another.safetensors [0123456789]");
    let refused = send(&worker, "options", &options).await;
    assert_eq!(refused.status(), 422);
    let message = refused.json::<Value>().await.unwrap()["error"]["message"].to_string();
    assert!(message.contains("this worker has") && message.contains("another.safetensors"), "{message}");
}

/// `LibreChat`'s tool, at the size that it always asks for.
#[tokio::test]
async fn librechat_s_request_is_answered() {
    let worker = Worker::ready(&[]);
    let body = json!({ "prompt": "a fox", "negative_prompt": "an owl", "cfg_scale": 4.5, "steps": 22, "width": 1024, "height": 1024 });
    let (answer, info) = drawn(&worker, "txt2img", &body).await;
    let picture = image::load_from_memory(&file(&answer, 0)).unwrap();
    assert_eq!((picture.width(), picture.height()), (1024, 1024));
    assert_eq!((&info["width"], &info["height"], info["seed"].is_u64()), (&json!(1024), &json!(1024), true));
    assert!(info["infotexts"][0].as_str().unwrap().rsplit('\n').next().unwrap().starts_with("Steps: 22, "));
}

#[tokio::test]
async fn a_picture_is_that_of_the_other_api() {
    let worker = Worker::ready(&[]);
    let (answer, info) = drawn(&worker, "txt2img", &small(&json!({ "batch_size": 1, "n_iter": 2, "scheduler": "Karras" }))).await;
    let body = json!({ "prompt": "a fox", "steps": 2, "seed": 1, "n": 2, "size": "64x64", "guidance_scale": 4, "sampler": "euler",
        "schedule": "karras" });
    let other = worker.generate(&body).await;
    for i in 0..2 {
        assert_eq!(file(&answer, i), bytes(&other["data"][i]));
        assert_eq!(info["all_seeds"][i], other["data"][i]["seed"]);
    }
    let (old_name, _) = drawn(&worker, "txt2img", &small(&json!({ "sampler_name": "Euler Karras", "width": 71, "height": 70 }))).await;
    assert_eq!(file(&old_name, 0), file(&answer, 0), "sides are rounded down");
    let (index, _) =
        drawn(&worker, "txt2img", &small(&json!({ "sampler_name": null, "sampler_index": "Euler", "scheduler": "karras" }))).await;
    assert_eq!(file(&index, 0), file(&answer, 0));
    let (empty, _) = drawn(&worker, "txt2img", &small(&json!({ "sampler_name": "", "sampler_index": "Euler", "scheduler": "" }))).await;
    let (left_out, _) = drawn(&worker, "txt2img", &small(&json!({ "scheduler": "Automatic" }))).await;
    assert_eq!(file(&empty, 0), file(&left_out, 0), "an empty name is none");
    let (of_model, info) = drawn(&worker, "txt2img", &small(&json!({ "sampler_name": null, "eta": 0.5 }))).await;
    let (named, _) = drawn(&worker, "txt2img", &small(&json!({ "sampler_name": "DDIM", "eta": 0.5 }))).await;
    assert_eq!((file(&of_model, 0), &info["ignored"]), (file(&named, 0), &json!([])), "the worker's own sampler has an eta");
    let (none, info) = drawn(&worker, "txt2img", &small(&json!({ "send_images": false, "prompt": "" }))).await;
    assert_eq!((&none["images"], &info["prompt"]), (&json!([]), &json!("")));
    let format = json!({ "override_settings": { "samples_format": "jpg", "sd_vae": "Automatic", "eta_noise_seed_delta": 5 } });
    let (jpeg, info) = drawn(&worker, "txt2img", &small(&format)).await;
    assert!(file(&jpeg, 0).starts_with(b"\xff\xd8"));
    assert_eq!(info["ignored"], json!(["override_settings.eta_noise_seed_delta"]));
}

/// Clients fill their menus with these names.
#[tokio::test]
async fn every_name_in_the_lists_may_be_asked_for() {
    let worker = Worker::ready(&[]);
    for sampler in get(&worker, "samplers").await.as_array().unwrap() {
        for name in [&sampler["name"], &sampler["aliases"][0]] {
            let (_, info) = drawn(&worker, "txt2img", &small(&json!({ "sampler_name": name, "scheduler": "Automatic" }))).await;
            assert_eq!(info["sampler_name"], sampler["name"]);
        }
    }
    let schedulers = get(&worker, "schedulers").await;
    for name in schedulers.as_array().unwrap().iter().flat_map(|scheduler| [&scheduler["name"], &scheduler["label"]]) {
        let (_, info) = drawn(&worker, "txt2img", &small(&json!({ "scheduler": name }))).await;
        assert_eq!(info["ignored"], json!([]), "{name}");
    }
    let (_, info) = drawn(&worker, "txt2img", &small(&json!({ "sampler_name": "DDIM", "scheduler": "karras", "eta": 1.0 }))).await;
    assert_eq!(info["ignored"], json!(["scheduler"]), "as in A1111, DDIM has its own");
    let (_, info) = drawn(&worker, "txt2img", &small(&json!({ "eta": 0.5, "subseed_strength": 0.1, "tiling": true }))).await;
    assert_eq!(info["ignored"], json!(["eta", "subseed_strength", "tiling"]));
}

#[tokio::test]
async fn the_key_may_be_a_password() {
    let worker = Worker::ready(&["--api-key", "s3:cret"]);
    let status = |path: &'static str, password: &'static str| {
        let request = Client::new().get(worker.url(path)).basic_auth("anyone", Some(password));
        async { request.send().await.unwrap() }
    };
    for path in ["/sdapi/v1/options", "/controlnet/model_list"] {
        assert_eq!(status(path, "s3:cret").await.status(), 200);
        let refused = status(path, "s3").await;
        assert_eq!((refused.status().as_u16(), &refused.headers()["www-authenticate"]), (401, &"Bearer".parse().unwrap()));
        assert_eq!(Client::new().get(worker.url(path)).bearer_auth("s3:cret").send().await.unwrap().status(), 200);
    }
    assert_eq!(status("/v1/models", "s3:cret").await.status(), 401, "other APIs have no passwords");
    assert_eq!(Client::new().get(worker.url("/sdapi/v1/options")).header("authorization", "Basic ?").send().await.unwrap().status(), 401);
}

/// Sends a request that takes long, on a connection of its own.
fn start(worker: &Worker) -> JoinHandle<(Value, Value)> {
    let url = worker.url("/sdapi/v1/txt2img");
    let body = small(&json!({ "steps": 1000, "n_iter": 2 }));
    tokio::spawn(async move {
        let answer: Value = Client::new().post(url).json(&body).send().await.unwrap().json().await.unwrap();
        let info = serde_json::from_str(answer["info"].as_str().unwrap()).unwrap();
        (answer, info)
    })
}

/// The first progress that is as wanted.
async fn progress_until(worker: &Worker, is_it: impl Fn(&Value) -> bool) -> Value {
    loop {
        let progress = get(worker, "progress").await;
        if is_it(&progress) {
            return progress;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `interrupt` ends the requests of this API with what they have.
#[tokio::test]
async fn progress_is_told_until_an_interrupt() {
    let worker = Worker::ready(&[]);
    let ours = start(&worker);
    let progress = progress_until(&worker, |progress| progress["current_image"].is_string()).await;
    assert!((0.01..1.0).contains(&progress["progress"].as_f64().unwrap()), "{progress}");
    assert_eq!((&progress["state"]["job_count"], &progress["state"]["sampling_steps"]), (&json!(2), &json!(1000)));
    assert_eq!(get(&worker, "progress?skip_current_image=true").await["current_image"], Value::Null);
    assert_eq!(worker.get("/sdapi/v1/progress?skip_current_image=7").await.status(), 400);
    let stranger = Client::new().post(worker.url("/sdapi/v1/interrupt")).header("origin", "https://evil.example");
    assert_eq!(stranger.send().await.unwrap().status(), 403);
    assert_eq!(send(&worker, "interrupt", &json!({})).await.json::<Value>().await.unwrap(), json!({}));
    let (answer, info) = ours.await.unwrap();
    assert_eq!((&info["interrupted"], answer["images"].as_array().unwrap().len()), (&json!(true), 1), "the latest preview");
    assert_eq!(get(&worker, "progress").await["state"]["job_count"], 0);
}

#[tokio::test]
async fn an_interrupt_is_for_this_api_alone() {
    let worker = Worker::ready(&[]);
    let other = worker.start(&steps("an owl", 1000)).await;
    assert_eq!(get(&worker, "progress").await["state"]["job_count"], 0, "another API's picture is not counted");
    let ours = start(&worker);
    progress_until(&worker, |progress| progress["state"]["job_count"] == 2).await;
    assert_eq!(send(&worker, "skip", &json!({})).await.status(), 200);
    let (_, info) = ours.await.unwrap();
    assert_eq!(info["interrupted"], true);
    assert_eq!(other.await.unwrap().status(), 200, "another API's picture is finished");
}

#[tokio::test]
async fn a_mask_alone_is_drawn_and_laid_into_the_picture() {
    let worker = Worker::ready(&[]);
    let picture = RgbImage::from_fn(200, 150, |x, y| Rgb([x as u8, y as u8, 80]));
    let mask = GrayImage::from_fn(200, 150, |x, y| Luma([if x.abs_diff(100) < 20 && y.abs_diff(70) < 20 { 255 } else { 0 }]));
    let body = small(&json!({
        "init_images": [format!("data:image/png;base64,{}", base64(picture.clone()))], "mask": base64(mask.clone()), "mask_blur": 0,
        "inpainting_fill": 1, "denoising_strength": 1.0, "inpaint_full_res_padding": 10
    }));
    let (answer, info) = drawn(&worker, "img2img", &body).await;
    let whole = image::load_from_memory(&file(&answer, 0)).unwrap().into_rgb8();
    assert_eq!(whole.dimensions(), (200, 150), "as large as the picture");
    let is_kept = |(x, y, pixel): (u32, u32, &Rgb<u8>)| mask.get_pixel(x, y).0[0] == 255 || pixel == picture.get_pixel(x, y);
    assert!(whole.enumerate_pixels().all(is_kept), "all around the mask is kept, bit by bit");
    let changed = whole.enumerate_pixels().filter(|(x, y, pixel)| *pixel != picture.get_pixel(*x, *y)).count();
    assert!(changed > 1000, "{changed} pixels of 1521 are new");
    assert_eq!((&info["denoising_strength"], &answer["parameters"].get("init_images")), (&json!(1.0), &None));

    let whole_picture = with(body.clone(), &json!({ "inpaint_full_res": false, "mask_blur": 4 }));
    let mut files = BTreeSet::new();
    for (fill, invert) in [(0, 0), (1, 0), (2, 0), (3, 0), (1, 1)] {
        let more = json!({ "inpainting_fill": fill, "denoising_strength": 0.6, "inpainting_mask_invert": invert });
        let (answer, _) = drawn(&worker, "img2img", &with(whole_picture.clone(), &more)).await;
        assert_eq!(image::load_from_memory(&file(&answer, 0)).unwrap().width(), 64);
        files.insert(file(&answer, 0));
    }
    assert_eq!(files.len(), 5, "each begins with something else");
}

#[tokio::test]
async fn what_cannot_be_drawn_is_refused() {
    let worker = Worker::ready(&[]);
    let init = || base64(RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8, y as u8, 80])));
    for (route, more, message) in [
        ("img2img", json!({}), "init_images is missing"),
        ("img2img", json!({ "init_images": [] }), "init_images is missing"),
        ("img2img", json!({ "init_images": [init(), init()] }), "init_images must be a list of one picture, not of 2"),
        ("img2img", json!({ "init_images": ["http://127.0.0.1/x.png"] }), "this worker opens no links and no files"),
        ("img2img", json!({ "init_images": [init()], "resize_mode": 3 }), "resize_mode must be a whole number from 0 to 2, not 3"),
        ("img2img", json!({ "init_images": [init()], "mask": base64(GrayImage::new(64, 64)) }), "one that is white nowhere"),
        ("txt2img", json!({ "mask": base64(GrayImage::new(64, 64)) }), "mask: needs a picture in init_images"),
        ("txt2img", json!({ "batch_size": 4, "n_iter": 3 }), "at most 10 in all, not 4 with n_iter 3"),
        ("txt2img", json!({ "sampler_name": "Nope" }), "sampler_name must be one of"),
        ("txt2img", json!({ "steps": 0 }), "steps must be a whole number from 1 to 1000, not 0"),
        ("txt2img", json!({ "cfg_scale": "high" }), "cfg_scale"),
        ("txt2img", json!({ "override_settings": { "samples_format": "bmp" } }), "samples_format must be png, jpg or webp"),
        ("txt2img", json!({ "override_settings": { "CLIP_stop_at_last_layers": 0 } }), "clip_skip must be a whole number from 1"),
        ("txt2img", json!({ "alwayson_scripts": [] }), "alwayson_scripts"),
        ("txt2img", json!({ "alwayson_scripts": { "ControlNet": { "args": [{ "model": "canny" }] } } }), "unit 0 of ControlNet"),
    ] {
        let refused = refusal(&worker, route, &small(&more)).await;
        assert!(refused.contains(message), "{more}: {refused}");
    }
    let of_edits = json!({ "init_images": [init()], "mask": base64(GrayImage::new(64, 64)), "mask_blur": 9, "denoising_strength": 0.3 });
    let (_, info) = drawn(&worker, "txt2img", &small(&of_edits)).await;
    assert_eq!(info["ignored"], json!(["denoising_strength", "init_images", "mask", "mask_blur"]));
}

#[tokio::test]
async fn control_units_are_the_networks_of_the_other_api() {
    let (model, network) = (made_up::model("sd1"), made_up::network("controlnet-sd1"));
    let named = format!("lines={}", network.path().display());
    let worker = Worker::ready(&["--model", model.path().to_str().unwrap(), "--controlnet", &named]);
    let lists = worker.get("/controlnet/model_list").await.json::<Value>().await.unwrap();
    assert_eq!(lists, json!({ "model_list": ["lines"] }));
    assert_eq!(get(&worker, "scripts").await["txt2img"], json!(["controlnet"]));
    let picture = base64(RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8 * 3, y as u8 * 3, 80])));
    let unit = json!({
        "image": { "image": picture, "mask": null }, "module": "none", "model": "lines [d14c016b]", "weight": 0.7, "guidance_end": 0.9,
        "control_mode": "ControlNet is more important", "resize_mode": "Crop and Resize", "low_vram": false, "processor_res": 512,
        "pixel_perfect": false, "enabled": true
    });
    let units = json!({ "ControlNet": { "args": [unit, { "model": "None" }, with(unit.clone(), &json!({ "enabled": false }))] } });
    let (answer, info) = drawn(&worker, "txt2img", &small(&json!({ "alwayson_scripts": units }))).await;
    let control = json!([{ "name": "lines", "image": picture, "scale": 0.7, "end": 0.9, "guess_mode": true }]);
    let other = json!({ "prompt": "a fox", "steps": 2, "seed": 1, "size": "64x64", "guidance_scale": 4, "sampler": "euler",
        "schedule": "normal", "control": control });
    assert_eq!(file(&answer, 0), bytes(&worker.generate(&other).await["data"][0]));
    assert_eq!(info["ignored"], json!([]));

    let more = json!({ "ADetailer": { "args": [true, {}] }, "roop": { "args": [false] }, "controlnet": { "args": [
        with(unit.clone(), &json!({ "image": null, "control_mode": 1 }))
    ] } });
    let (_, info) = drawn(&worker, "img2img", &small(&json!({ "init_images": [picture], "alwayson_scripts": more }))).await;
    assert_eq!(info["ignored"], json!(["alwayson_scripts.ADetailer", "alwayson_scripts.ControlNet.control_mode"]));
    assert!(info["infotexts"][0].as_str().unwrap().contains("ControlNet 0: "), "the unit looks at the picture to begin with");
    let wrong = json!({ "ControlNet": { "args": [with(unit, &json!({ "module": "openpose_full" }))] } });
    let refused = refusal(&worker, "txt2img", &small(&json!({ "alwayson_scripts": wrong }))).await;
    assert!(refused.contains("unit 0 of ControlNet") && refused.contains("openpose_full"), "{refused}");
}

#[tokio::test]
async fn extras_enlarge_a_picture() {
    let worker = Worker::ready(&[]);
    let names: Vec<Value> = get(&worker, "upscalers").await.as_array().unwrap().iter().map(|item| item["name"].clone()).collect();
    assert_eq!(names, ["None", "Lanczos", "Nearest", "crisp"]);
    let picture = RgbImage::from_fn(8, 6, |x, y| Rgb([x as u8 * 9, y as u8 * 9, 80]));
    let enlarged = |more: Value| {
        let body = with(json!({ "image": base64(picture.clone()), "gfpgan_visibility": 0, "upscaling_crop": true }), &more);
        let request = Client::new().post(worker.url("/sdapi/v1/extra-single-image")).json(&body);
        async { request.send().await.unwrap().json::<Value>().await.unwrap() }
    };
    let pixels =
        |answer: &Value| image::load_from_memory(&BASE64_STANDARD.decode(answer["image"].as_str().unwrap()).unwrap()).unwrap().into_rgb8();
    let nearest = enlarged(json!({ "upscaler_1": "Nearest", "upscaling_resize": 3 })).await;
    assert_eq!((pixels(&nearest).dimensions(), &nearest["html_info"]), ((24, 18), &json!("")));
    assert!(pixels(&nearest).enumerate_pixels().all(|(x, y, pixel)| pixel == picture.get_pixel(x / 3, y / 3)));
    assert_eq!(pixels(&enlarged(json!({ "upscaler_1": "None" })).await), picture);
    let odd = enlarged(json!({ "upscaler_1": "Lanczos", "codeformer_visibility": 0.5 })).await;
    assert_eq!((pixels(&odd).dimensions(), &odd["html_info"]), ((16, 12), &json!("without effect: codeformer_visibility")));
    for (more, param) in
        [(json!({ "upscaler_1": "SwinIR" }), "upscaler"), (json!({ "resize_mode": 1 }), "resize_mode"), (json!({ "image": null }), "image")]
    {
        assert_eq!(enlarged(more.clone()).await["error"]["param"], param, "{more}");
    }
}

/// A request for the hires fix, with all fields as A1111's clients send them.
fn hires(more: &Value) -> Value {
    let fields = json!({ "enable_hr": true, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "denoising_strength": 0.7,
        "hr_resize_x": 0, "hr_resize_y": 0, "hr_sampler_name": null, "hr_checkpoint_name": null, "hr_prompt": "", "hr_negative_prompt": "" });
    small(&with(fields, more))
}

/// The hires fix, with A1111's own fields.
#[tokio::test]
async fn the_hires_fix_draws_a_larger_picture_again() {
    let worker = Worker::unlimited(&[]);
    let own = |upscale: &str| {
        json!({ "prompt": "a fox", "steps": 2, "seed": 1, "size": "64x64", "guidance_scale": 4, "sampler": "euler", "schedule": "normal",
            "upscale": upscale })
    };
    let (answer, info) = drawn(&worker, "txt2img", &hires(&json!({}))).await;
    let other = worker.generate(&own("Latent,scale=2,strength=0.7,steps=2")).await;
    assert!(file(&answer, 0) == bytes(&other["data"][0]), "{info}");
    assert_eq!((&info["ignored"], &info["denoising_strength"]), (&json!([]), &json!(0.7)));
    assert_eq!((&info["width"], &info["height"]), (&json!(64), &json!(64)), "A1111's are those of the first drawing");
    assert_eq!(info["extra_generation_params"], json!({ "Hires upscale": 2.0, "Hires steps": 2, "Hires upscaler": "Latent" }));
    let text = info["infotexts"][0].as_str().unwrap();
    assert!(
        text.contains("Denoising strength: 0.7, ") && text.contains("Hires upscale: 2, Hires steps: 2, Hires upscaler: Latent, "),
        "{text}"
    );

    // Left out, they are A1111's.
    let left_out = small(&json!({ "enable_hr": true }));
    let (answer, info) = drawn(&worker, "txt2img", &left_out).await;
    let other = worker.generate(&own("Latent,scale=2,strength=0.75,steps=2")).await;
    assert!(file(&answer, 0) == bytes(&other["data"][0]), "{info}");
    let more =
        json!({ "hr_upscaler": "None", "hr_scale": 1.5, "hr_second_pass_steps": 3, "denoising_strength": 0.5, "hr_prompt": "a fox" });
    let (answer, info) = drawn(&worker, "txt2img", &hires(&more)).await;
    let other = worker.generate(&own("Lanczos,scale=1.5,strength=0.5,steps=3")).await;
    assert!(file(&answer, 0) == bytes(&other["data"][0]) && info["ignored"] == json!([]), "{info}");
}

#[tokio::test]
async fn the_hires_fix_takes_sizes_and_samplers_and_names_what_it_leaves_out() {
    let worker = Worker::unlimited(&[]);
    // A size, of one side and of both; another sampler; what has no effect.
    for (more, size, part) in [
        (json!({ "hr_resize_x": 100 }), (96, 96), "Hires resize: 96x96"),
        (json!({ "hr_resize_x": 96, "hr_resize_y": 128, "hr_upscaler": "Nearest" }), (96, 128), "Hires resize: 96x128"),
        (
            json!({ "hr_sampler_name": "DPM++ 2M", "hr_scheduler": "Karras" }),
            (128, 128),
            "Hires sampler: DPM++ 2M, Hires schedule type: Karras",
        ),
        (
            json!({ "hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler" }),
            (128, 128),
            "Hires upscaler: Latent, Model",
        ),
    ] {
        let (answer, info) = drawn(&worker, "txt2img", &hires(&more)).await;
        let picture = image::load_from_memory(&file(&answer, 0)).unwrap();
        assert_eq!((picture.width(), picture.height()), size, "{more}");
        assert!(info["infotexts"][0].as_str().unwrap().contains(part), "{info}");
    }
    let (_, info) = drawn(&worker, "txt2img", &hires(&json!({ "hr_prompt": "an owl", "hr_checkpoint_name": "x" }))).await;
    assert_eq!(info["ignored"], json!(["hr_checkpoint_name", "hr_prompt"]));
    let (_, info) = drawn(&worker, "img2img", &hires(&json!({ "init_images": [base64(RgbImage::new(64, 64))] }))).await;
    assert_eq!(info["ignored"], json!(["enable_hr"]));
    for (more, reason) in [
        (json!({ "hr_upscaler": "4x-UltraSharp" }), "\"Nearest\", \"Latent\""),
        (json!({ "hr_scale": 0.5 }), "hr_scale must be a number from 1 to 8"),
        (json!({ "hr_resize_x": 8 }), "hr_resize_x"),
        (json!({ "denoising_strength": 0 }), "strength must be at least"),
        (json!({ "hr_sampler_name": "none such" }), "hr_sampler_name"),
    ] {
        let message = refusal(&worker, "txt2img", &hires(&more)).await;
        assert!(message.contains(reason), "{more}: {message}");
    }
    let names = get(&worker, "latent-upscale-modes").await;
    assert_eq!((&names[0]["name"], names.as_array().unwrap().len()), (&json!("Latent"), 6));
}
