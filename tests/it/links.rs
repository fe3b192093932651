//! Answers that link to their pictures.

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::support::{Worker, bytes, small};

fn linked(prompt: &str, more: &Value) -> Value {
    let mut body = small(prompt);
    body["response_format"] = "url".into();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn link(answer: &Value, index: usize) -> String {
    answer["data"][index]["url"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_link_leads_to_the_file() {
    let worker = Worker::ready(&[]);
    let answer = worker.generate(&linked("a fox", &json!({ "n": 2 }))).await;
    let mut body = small("a fox");
    body["n"] = 2.into();
    let right = worker.generate(&body).await;
    assert_ne!(link(&answer, 0), link(&answer, 1));
    for i in 0..2 {
        assert!(link(&answer, i).starts_with(&worker.url("/v1/images/job-")) && link(&answer, i).ends_with("/content"));
        assert_eq!((&answer["data"][i]["b64_json"], &answer["data"][i]["seed"]), (&Value::Null, &right["data"][i]["seed"]));
        let file = reqwest::get(link(&answer, i)).await.unwrap();
        assert_eq!((file.status(), &file.headers()["content-type"]), (StatusCode::OK, &"image/png".parse().unwrap()));
        assert_eq!(file.bytes().await.unwrap(), bytes(&right["data"][i]));
    }
    assert_eq!((&answer["ignored"], &answer["parameters"]), (&json!([]), &right["parameters"]));
    for wrong in [link(&answer, 0).replace("-0/", "-2/"), link(&answer, 0).replace("/job-", "/job-0"), worker.url("/v1/images/x/content")] {
        let refused = reqwest::get(&wrong).await.unwrap();
        assert_eq!(
            (refused.status(), refused.json::<Value>().await.unwrap()["error"]["code"].clone()),
            (StatusCode::NOT_FOUND, json!("image_not_found")),
            "{wrong}"
        );
    }
    let webp = worker.generate(&linked("a fox", &json!({ "output_format": "webp" }))).await;
    assert_eq!(reqwest::get(link(&webp, 0)).await.unwrap().headers()["content-type"], "image/webp");
    let stream = worker.post(&linked("a fox", &json!({ "stream": true }))).await.text().await.unwrap();
    assert!(stream.contains("\"b64_json\"") && stream.contains("\"ignored\":[\"response_format\"]"), "a stream has files: {stream}");
}

/// The link is the secret: who shows a picture to somebody has no key to give.
#[tokio::test]
async fn a_link_needs_no_key_and_names_the_address_that_was_asked() {
    let worker = Worker::ready(&["--api-key", "s3cret"]);
    let ask = Client::new().post(worker.url("/v1/images/generations")).bearer_auth("s3cret").json(&linked("a fox", &json!({})));
    let through_proxy = ask.try_clone().unwrap().header("host", "pictures.example").header("x-forwarded-proto", "https");
    let strange = ask.try_clone().unwrap().header("host", "pictures.example/\"><b>");
    let answer: Value = ask.send().await.unwrap().json().await.unwrap();
    assert_eq!(reqwest::get(link(&answer, 0)).await.unwrap().status(), 200);
    let answer: Value = through_proxy.send().await.unwrap().json().await.unwrap();
    assert!(link(&answer, 0).starts_with("https://pictures.example/v1/images/job-"), "{answer}");
    let answer: Value = strange.send().await.unwrap().json().await.unwrap();
    assert!(link(&answer, 0).starts_with("/v1/images/job-"), "what is no address is in no link: {answer}");
}

#[tokio::test]
async fn a_link_ends_with_what_is_kept() {
    let worker = Worker::ready(&["--max-results", "1"]);
    let first = worker.generate(&linked("a fox", &json!({}))).await;
    let second = worker.generate(&linked("an owl", &json!({}))).await;
    assert_eq!(reqwest::get(link(&first, 0)).await.unwrap().status(), 404);
    assert_eq!(reqwest::get(link(&second, 0)).await.unwrap().status(), 200);
    for none in ["--keep-results", "--max-results"] {
        let refused = Worker::ready(&[none, "0"]).post(&linked("a fox", &json!({}))).await;
        assert_eq!(
            (refused.status().as_u16(), &refused.json::<Value>().await.unwrap()["error"]["param"]),
            (400, &json!("response_format"))
        );
    }
}
