//! Defaults never conflict with what a request says, or with each other: in every family, on every route.

use std::{fs, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    made_up,
    single_file::{checkpoint, write},
    support::{Worker, binary},
};

/// Every family, and the Turbos, which are recognised by a file's name.
fn models(folder: &Path) -> Vec<String> {
    let mut models = Vec::new();
    for (name, model) in [
        ("sd1", "sd1"),
        ("sd1-inpainting", "sd1-inpainting"),
        ("sd2", "sd2"),
        ("sdxl", "sdxl"),
        ("lcm", "lcm"),
        ("ssd-1b", "ssd-1b"),
        ("sd_turbo", "sd2"),
        ("sd_xl_turbo_1.0", "sdxl"),
    ] {
        let file = folder.join(format!("{name}.safetensors"));
        write(&file, &checkpoint(model), &[]);
        models.push(file.to_str().unwrap().to_owned());
    }
    models
}

fn gradient(folder: &Path) -> (String, String) {
    let file = folder.join("a.png");
    image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 4, y as u8 * 4, 128])).save(&file).unwrap();
    (BASE64_STANDARD.encode(fs::read(&file).unwrap()), file.to_str().unwrap().to_owned())
}

#[tokio::test]
async fn defaults_never_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let (picture, file) = gradient(folder.path());
    for model in models(folder.path()) {
        let worker = Worker::ready(&["--model", &model]);
        let post = async |route: &str, body: Value| {
            let answer = reqwest::Client::new().post(worker.url(route)).json(&body).send().await.unwrap();
            let (status, answer) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
            assert!(matches!(status, 200 | 202), "{model} {route} {body}: {status} {answer}");
            answer
        };
        post("/v1/images/generations", json!({ "prompt": "a", "size": "64x64" })).await;
        for more in [json!({}), json!({ "mask": picture }), json!({ "strength": 0.3 }), json!({ "steps": 1 })] {
            let mut body = json!({ "prompt": "a", "image": picture });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = post("/v1/images/edits", body).await;
            if more == json!({}) && model.contains("turbo") {
                assert_eq!((&answer["parameters"]["steps"], &answer["parameters"]["strength"]), (&json!(2), &json!(0.8)), "{answer}");
            }
        }
        for body in [
            json!({ "operation": "image_generation", "prompt": "a", "width": 64, "height": 64 }),
            json!({ "operation": "image_transform", "prompt": "a", "input_image": picture }),
            json!({ "operation": "image_transform", "prompt": "a", "input_image": picture, "strength": 0.04 }),
            json!({ "operation": "image_inpaint", "prompt": "a", "init_image": picture, "mask_image": picture }),
        ] {
            let job = post("/v1/jobs", body.clone()).await["job_id"].as_str().unwrap().to_owned();
            let events = worker.get(&format!("/v1/jobs/{job}/stream")).await.text().await.unwrap();
            assert!(events.trim().ends_with("data: [DONE]"), "{model} {}: {events}", body["operation"]);
        }
        drop(worker);
        let out = folder.path().join("x.png");
        for mask in [&[][..], &["--mask", &file]] {
            let mut command = binary();
            command.args(["generate", "a", "--model", &model, "--init-image", &file]).args(mask).arg("-o").arg(&out);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{model}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// Names of other tools, from the request to the parameters in the answer.
#[tokio::test]
async fn a_name_with_a_schedule_in_it_is_both() {
    let directory = made_up::model("sd1");
    let worker = Worker::ready(&["--model", directory.path().to_str().unwrap()]);
    for (sampler, schedule, right) in [
        ("DPM++ 2M Karras", json!(null), ["dpmpp_2m", "karras"]),
        ("DPM++ 2M", json!("Automatic"), ["dpmpp_2m", "karras"]),
        ("Euler", json!("Automatic"), ["euler", "normal"]),
        ("euler", json!("discrete"), ["euler", "normal"]),
        ("dpmpp_2m_sde_gpu", json!("exponential"), ["dpmpp_2m_sde", "exponential"]),
        ("uni_pc_bh2", json!(null), ["unipc", "default"]),
        ("DDIM", json!("Automatic"), ["ddim", "default"]),
    ] {
        let answer =
            worker.generate(&json!({ "prompt": "a", "steps": 2, "size": "64x64", "sampler": sampler, "schedule": schedule })).await;
        assert_eq!([&answer["parameters"]["sampler"], &answer["parameters"]["schedule"]], right, "{sampler} {schedule}");
    }
    let refused = worker.post(&json!({ "prompt": "a", "sampler": "DPM++ 2M Karras", "schedule": "beta" })).await;
    assert_eq!(refused.status(), 400);
    let error = refused.json::<Value>().await.unwrap();
    assert_eq!(error["error"]["param"], "schedule");
}

/// For clients that cannot ask for it.
#[tokio::test]
async fn requests_that_leave_something_out_get_what_the_owner_says() {
    let directory = made_up::model("sd1");
    let model = ["--model", directory.path().to_str().unwrap()];
    let owner = ["--steps", "3", "--guidance-scale", "2.5", "--sampler", "euler_a", "--schedule", "Karras", "--size", "72x64"];
    let worker = Worker::ready(&[&model[..], &owner, &["--negative-prompt", "an owl"]].concat());
    let of = |answer: &Value| {
        let of = &answer["parameters"];
        json!([of["steps"], of["guidance_scale"], of["sampler"], of["schedule"], of["width"], of["height"]])
    };
    let bare = worker.generate(&json!({ "prompt": "a", "seed": 1 })).await;
    assert_eq!((of(&bare), &bare["ignored"]), (json!([3, 2.5, "euler_a", "karras", 72, 64]), &json!([])));
    let defaults = worker.get("/v1/models").await.json::<Value>().await.unwrap()["data"][0]["defaults"].clone();
    let right = json!({ "size": "72x64", "num_inference_steps": 3, "guidance_scale": 2.5, "sampler": "euler_a", "schedule": "karras",
        "negative_prompt": "an owl" });
    assert_eq!(defaults, right);
    let said = json!({ "prompt": "a", "seed": 1, "steps": 3, "guidance_scale": 2.5, "sampler": "euler_a", "schedule": "karras", "size": "72x64",
        "negative_prompt": "an owl" });
    assert_eq!(worker.generate(&said).await["data"], bare["data"]);
    let none = worker.generate(&json!({ "prompt": "a", "seed": 1, "negative_prompt": "" })).await;
    assert_ne!(none["data"], bare["data"], "to leave it empty is to say something");
    let other = worker.generate(&json!({ "prompt": "a", "sampler": "lcm", "guidance_scale": 1, "steps": 2, "size": "64x64" })).await;
    assert_eq!((of(&other), &other["ignored"]), (json!([2, 1.0, "lcm", "default", 64, 64]), &json!([])), "a schedule that lcm has not");

    for (options, message) in [
        (["--sampler", "ddim", "--schedule", "karras"], "--schedule must be one of default, normal, sgm_uniform with the sampler ddim"),
        (["--size", "68x64", "--steps", "3"], "--size"),
        (["--size", "4096x4096", "--steps", "3"], "--size must be at most"),
        (["--steps", "0", "--sampler", "ddim"], "must be a whole number from 1 to 1000, not 0"),
    ] {
        let output = binary().arg("serve").args(model).args(options).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains(message), "{options:?}: {stderr}");
    }
}

/// What was merged into a checkpoint does not show but in its name.
#[tokio::test]
async fn a_checkpoint_for_few_steps_is_known_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options, right) in [
        ("house-lcm-v2", vec![], json!([4, 1.0, "lcm", "default"])),
        ("house_lightning_8step", vec![], json!([8, 1.0, "euler", "sgm_uniform"])),
        ("house_lightning_8step", vec!["--steps", "6", "--guidance-scale", "1.5"], json!([6, 1.5, "euler", "sgm_uniform"])),
        ("lightning_over_a_house", vec![], json!([20, 7.5, "pndm", "default"])),
    ] {
        let file = folder.path().join(format!("{name}.safetensors"));
        write(&file, &checkpoint("sd1"), &[]);
        let worker = Worker::ready(&[&["--model", file.to_str().unwrap()][..], &options].concat());
        let defaults = worker.get("/v1/models").await.json::<Value>().await.unwrap()["data"][0]["defaults"].clone();
        let said = json!([defaults["num_inference_steps"], defaults["guidance_scale"], defaults["sampler"], defaults["schedule"]]);
        assert_eq!(said, right, "{name} {options:?}");
        let drawn = worker.generate(&json!({ "prompt": "a", "size": "64x64", "steps": 2 })).await["parameters"].clone();
        assert_eq!(json!([drawn["guidance_scale"], drawn["sampler"], drawn["schedule"]]), json!([right[1], right[2], right[3]]), "{name}");
    }
}
