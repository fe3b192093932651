//! Sizes far from a model's own, and work beyond the limit of one request.

use serde_json::{Value, json};

use crate::support::{Worker, picture, small};

/// Clients ask for such sizes by default. The built-in model draws at one size only; other models get a warning.
#[tokio::test]
async fn sizes_that_a_model_was_not_made_for_are_made_the_best_of() {
    let worker = Worker::ready(&[]);
    let mut body = json!({ "prompt": "a fox on a blue background", "seed": 3, "steps": 4 });
    let own = picture(&worker.generate(&body).await["data"][0]).to_rgb8();
    for size in ["1024x1024", "1536x1024", "1024x1536", "1792x1024", "1024x1792"] {
        body["size"] = size.into();
        let answer = worker.generate(&body).await;
        let made = picture(&answer["data"][0]).to_rgb8();
        let (width, height) = made.dimensions();
        let parameters = &answer["parameters"];
        assert_eq!((&answer["size"], format!("{width}x{height}").as_str()), (&size.into(), size));
        assert_eq!((&parameters["width"], &parameters["height"]), (&width.into(), &height.into()));
        assert_eq!((&parameters["drawn_size"], &parameters["upscaler"]), (&"128x128".into(), &"lanczos".into()));
        assert!(answer["warnings"][0].as_str().unwrap().contains("was drawn at 128x128 and enlarged"), "{}", answer["warnings"]);
        assert_eq!(answer["ignored"], json!([]));
        // The drawn picture is in the middle.
        let side = width.min(height);
        let middle = image::imageops::crop_imm(&made, (width - side) / 2, (height - side) / 2, side, side).to_image();
        let small = image::imageops::resize(&middle, 128, 128, image::imageops::FilterType::Triangle);
        let off: u64 = small.as_raw().iter().zip(own.as_raw()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        assert!(off / (own.as_raw().len() as u64) < 3, "{size}");
    }
    body["size"] = "4096x4096".into();
    let refused = worker.post(&body).await.json::<Value>().await.unwrap();
    assert!(refused["error"]["message"].as_str().unwrap().contains("2097152 pixels on this worker (its --max-pixels)"), "{refused}");

    for (size, is_warned) in [("128x128", false), ("120x112", false), ("96x128", true), ("128x72", true)] {
        body["size"] = size.into();
        let answer = worker.generate(&body).await;
        assert_eq!(answer["warnings"] != json!([]), is_warned, "{size}: {}", answer["warnings"]);
    }

    let other = Worker::unlimited(&[]);
    for (size, warning) in [
        ("96x96", None),
        ("64x64", Some("it may be blurred")),
        ("256x128", None),
        ("264x64", Some("several times")),
        ("192x192", Some("several times")),
    ] {
        body["size"] = size.into();
        let answer = other.generate(&body).await;
        let warnings = answer["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), usize::from(warning.is_some()), "{size}: {warnings:?}");
        assert!(warning.is_none_or(|warning| warnings[0].as_str().unwrap().contains(warning)), "{size}: {warnings:?}");
        assert_eq!(answer["parameters"]["drawn_size"], Value::Null);
    }
}

#[tokio::test]
async fn one_request_has_a_limit_of_work() {
    let worker = Worker::ready(&["--max-work", "1"]);
    let mut body = small("a fox");
    body["steps"] = 128.into();
    assert_eq!(worker.post(&body).await.status(), 200);
    for (name, value) in [("steps", json!(129)), ("n", json!(2)), ("prompt", json!("a fox AND a pizza")), ("size", json!("64x72"))] {
        let mut more = body.clone();
        more[name] = value;
        let response = worker.post(&more).await;
        assert_eq!(response.status(), 400, "{name}");
        let error = response.json::<Value>().await.unwrap()["error"].clone();
        assert_eq!(error["code"], "too_much_work");
        assert!(error["message"].as_str().unwrap().contains("--max-work is 1;"), "{error}");
    }
    body["guidance_scale"] = 1.into();
    body["steps"] = 256.into();
    assert_eq!(worker.post(&body).await.status(), 200, "without guidance it is half");
}
