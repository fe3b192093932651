//! Models by name, from a hub on loopback that speaks as much of the protocol as the client needs.

use std::{fs, path::Path, process::Output};

use axum::{
    Json, Router,
    extract::Path as UrlPath,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;

use crate::support::binary;

const TINY: &str = "tests/parity/tiny";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn names(folder: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .flat_map(|entry| {
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            if entry.path().is_dir() { names(&entry.path(), &format!("{name}/")) } else { vec![name] }
        })
        .collect()
}

async fn info() -> Response {
    let siblings: Vec<_> = names(Path::new(TINY), "").into_iter().map(|name| json!({ "rfilename": name })).collect();
    Json(json!({ "siblings": siblings, "sha": COMMIT })).into_response()
}

/// A file, or the part of it that is asked for.
async fn resolve(UrlPath(path): UrlPath<String>, headers: HeaderMap) -> Response {
    let Ok(bytes) = fs::read(Path::new(TINY).join(&path)) else { return StatusCode::NOT_FOUND.into_response() };
    let range = headers.get("range").map_or("bytes=0-", |range| range.to_str().unwrap()).trim_start_matches("bytes=").to_owned();
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse().unwrap_or(usize::MAX).min(bytes.len() - 1);
    let etag = format!("\"{}\"", path.replace('/', "-"));
    let headers = [("etag", etag), ("x-repo-commit", COMMIT.to_owned()), ("content-range", format!("bytes {from}-{to}/{}", bytes.len()))];
    (StatusCode::PARTIAL_CONTENT, headers, bytes[from..=to].to_vec()).into_response()
}

/// The hub's address.
async fn hub() -> String {
    let app = Router::new()
        .route("/api/models/somebody/tiny/revision/main", get(info))
        .route("/somebody/tiny/resolve/main/{*path}", get(resolve));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    format!("http://{address}")
}

async fn generate(model: &str, home: &Path, env: &[(&str, &str)]) -> Output {
    let picture = home.join("x.png");
    let mut command = binary();
    command.args(["generate", "a", "--steps", "1", "--model", model, "-o"]).arg(picture).env("HF_HOME", home).envs(env.iter().copied());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_model_is_downloaded_once_and_then_found_offline() {
    let (hub, home) = (hub().await, tempfile::tempdir().unwrap());
    let offline = [("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", "http://127.0.0.1:1")];
    let missing = generate("somebody/tiny", home.path(), &offline).await;
    assert_eq!(missing.status.code(), Some(66));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("is not in the cache"));

    // The hub, no network at all by choice, and a hub that is gone.
    for env in [&[("HF_ENDPOINT", hub.as_str())][..], &offline[..], &[("HF_ENDPOINT", "http://127.0.0.1:1")][..]] {
        let output = generate("somebody/tiny", home.path(), env).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let picture = std::io::BufReader::new(fs::File::open(home.path().join("x.png")).unwrap());
        let text = png::Decoder::new(picture).read_info().unwrap().info().uncompressed_latin1_text[0].text.clone();
        assert!(text.contains("Model: somebody/tiny,"), "{text}");
    }
}

#[tokio::test]
async fn a_model_that_the_hub_does_not_have_is_named() {
    let (hub, home) = (hub().await, tempfile::tempdir().unwrap());
    let output = generate("somebody/else", home.path(), &[("HF_ENDPOINT", hub.as_str())]).await;
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(66), "{stderr}");
    assert!(stderr.trim_end().lines().last().unwrap().starts_with("error: somebody/else cannot be downloaded: "), "{stderr}");
}
