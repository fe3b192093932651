//! The LoRA in the binary.

use serde_json::{Value, json};

use crate::{
    cli::{failure, path, run},
    support::{Worker, picture, steps},
};

/// The share of pixels that are neither black nor white nor gray.
fn coloured(picture: &image::DynamicImage) -> f64 {
    let picture = picture.to_rgb8();
    let is_coloured = |pixel: &&image::Rgb<u8>| pixel.0.iter().max().unwrap() - pixel.0.iter().min().unwrap() > 40;
    picture.pixels().filter(is_coloured).count() as f64 / f64::from(picture.width() * picture.height())
}

#[tokio::test]
async fn the_lora_in_the_binary_draws_in_ink() {
    let worker = Worker::ready(&["--loras", "builtin"]);
    let list: Value = worker.get("/v1/loras").await.json().await.unwrap();
    let [ink] = &list["data"].as_array().unwrap()[..] else { panic!("{list}") };
    assert_eq!((&ink["name"], &ink["rank"], &ink["family"]), (&json!("ink"), &json!(8), &json!("sd1")), "{ink}");
    assert!(ink["bytes"].as_u64().unwrap() < 1_000_000 && ink["error"].is_null(), "{ink}");

    let mut request = steps("a frog on a purple background", 12);
    let plain = picture(&worker.generate(&request).await["data"][0]);
    request["loras"] = json!(["ink"]);
    let answer = worker.generate(&request).await;
    let drawn = picture(&answer["data"][0]);
    assert!(coloured(&plain) > 0.8 && coloured(&drawn) < 0.1, "{} {}", coloured(&plain), coloured(&drawn));
    for (lora, warning) in [
        (json!("ink"), None),
        (json!({ "name": "ink", "text_scale": 0 }), None),
        (
            json!({ "name": "ink", "text_scale": 0.5 }),
            Some("LoRA \"ink\" does not change the text encoders: the scale 0.5 for them has no effect"),
        ),
    ] {
        let mut request = steps("a frog", 1);
        request["loras"] = json!([lora]);
        let answer = worker.generate(&request).await;
        let warnings: Vec<&str> = answer["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(warnings.into_iter().find(|warning| warning.contains("LoRA")), warning);
    }
    assert_eq!(answer["parameters"]["loras"][0]["hash"].as_str().map(str::len), Some(12), "{}", answer["parameters"]);
}

/// The exported file is the one in the binary, and an unknown name is answered with what there is.
#[test]
fn the_lora_in_the_binary_is_exported_with_the_model() {
    let out = tempfile::tempdir().unwrap();
    let (model, exported, embedded) = (path(&out, "model"), path(&out, "a.png"), path(&out, "b.png"));
    assert!(run(&["models", "export", "builtin", &model]).status.success());
    let common = ["generate", "a fox", "--seed", "1", "--steps", "2", "--lora", "ink:0.7"];
    for (loras, file) in [(path(&out, "model/loras"), &exported), ("builtin".to_owned(), &embedded)] {
        let output = run(&[&common[..], &["--loras", &loras, "-o", file]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(std::fs::read(exported).unwrap() == std::fs::read(embedded).unwrap());
    let (code, message) = failure(&["generate", "a fox", "--loras", "builtin", "--lora", "oil"]);
    assert!(code == 64 && message.contains("must be one of \"ink\", not \"oil\""), "{code} {message}");
}
