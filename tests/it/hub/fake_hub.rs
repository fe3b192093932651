//! A hub on loopback that speaks as much of the protocol as the client needs.

use std::{
    fs,
    io::Write,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path as UrlPath, State},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::StreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};

pub(super) const TINY: &str = "tests/parity/tiny";
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The commit that `main` moves to, with one more file and another schedule.
pub(super) const LATER: &str = "89abcdef0123456789abcdef0123456789abcdef";
pub(super) const MORE: &str = "vae/more.json";
pub(super) const SCHEDULE: &str = "scheduler/scheduler_config.json";
pub(super) const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// The hub's behaviour, and a record of requests for the `UNet`'s weights.
#[derive(Default)]
pub(super) struct Hub {
    /// The bearer token that it requires.
    pub(super) token: Option<&'static str>,
    /// How many more times the weights break off half-way through.
    pub(super) breaks: AtomicUsize,
    /// Whether the weights differ from their hash.
    pub(super) lies: AtomicBool,
    /// Whether `main` has moved.
    pub(super) moved: AtomicBool,
    /// Whether `main` moves as soon as a client asks where it is.
    pub(super) moves: AtomicBool,
    /// A part whose weights are pickled.
    pub(super) pickled: Option<&'static str>,
    /// Whether the hub ignores ranges and sends whole files.
    pub(super) knows_no_ranges: bool,
    /// Whether the hub compresses text, and for whom.
    pub(super) compresses: Option<Compresses>,
    /// Another host that serves the weights.
    pub(super) store: Option<String>,
    /// The offset at which each request for the weights began.
    pub(super) starts: Mutex<Vec<usize>>,
}

/// For whom a hub compresses text.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Compresses {
    ForThoseWhoTakeIt,
    ForAll,
}

impl Hub {
    fn refuses(&self, headers: &HeaderMap) -> bool {
        assert!(self.token.is_some() || !headers.contains_key("authorization"), "a token is for the hub that it is of");
        let right = self.token.map(|token| format!("Bearer {token}"));
        right.is_some_and(|right| headers.get("authorization").is_none_or(|given| given.to_str().unwrap() != right))
    }

    fn commit(&self, revision: &str) -> Option<&'static str> {
        match revision {
            "main" if self.moved.load(Ordering::SeqCst) => Some(LATER),
            "main" | "v2" | COMMIT => Some(COMMIT),
            LATER => Some(LATER),
            _ => None,
        }
    }

    pub(super) fn starts(&self) -> Vec<usize> {
        self.starts.lock().unwrap().clone()
    }
}

pub(super) fn names(folder: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .flat_map(|entry| {
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            if entry.path().is_dir() { names(&entry.path(), &format!("{name}/")) } else { vec![name] }
        })
        .collect()
}

pub(super) fn file(path: &str, commit: &str) -> Option<Vec<u8>> {
    match (path, commit) {
        (MORE, LATER) => Some(b"{}".to_vec()),
        (SCHEDULE, LATER) => Some([fs::read(Path::new(TINY).join(path)).unwrap(), b"\n".to_vec()].concat()),
        _ => fs::read(Path::new(TINY).join(path)).ok(),
    }
}

async fn info(State(hub): State<Arc<Hub>>, UrlPath(revision): UrlPath<String>, headers: HeaderMap) -> Response {
    if hub.refuses(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(commit) = hub.commit(&revision) else { return StatusCode::NOT_FOUND.into_response() };
    let mut files = names(Path::new(TINY), "");
    files.extend((commit == LATER).then(|| MORE.to_owned()));
    files.sort();
    if let Some(part) = hub.pickled {
        let weights = files.iter_mut().find(|file| file.starts_with(part) && file.ends_with(".safetensors")).unwrap();
        *weights = weights.replace(".safetensors", ".bin");
    }
    let siblings: Vec<_> = files.into_iter().map(|name| json!({ "rfilename": name })).collect();
    hub.moved.fetch_or(hub.moves.load(Ordering::SeqCst), Ordering::SeqCst);
    Json(json!({ "siblings": siblings, "sha": commit })).into_response()
}

/// A file, or the part of it that is asked for.
async fn resolve(
    State(hub): State<Arc<Hub>>,
    UrlPath((revision, path)): UrlPath<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    if hub.refuses(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Some(commit) = hub.commit(&revision) else { return StatusCode::NOT_FOUND.into_response() };
    let Some(mut bytes) = file(&path, commit) else { return StatusCode::NOT_FOUND.into_response() };
    let hash: String = Sha256::digest(&bytes).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    let takes_gzip = headers.get("accept-encoding").is_some_and(|value| value.to_str().unwrap().contains("gzip"));
    let compresses = hub.compresses.is_some_and(|whom| whom == Compresses::ForAll || takes_gzip);
    if compresses && !path.ends_with(".safetensors") {
        return compressed(&bytes, &hash, commit);
    }
    if let Some(store) = hub.store.as_ref().filter(|_| path.ends_with(".safetensors")) {
        let size = bytes.len().to_string();
        let location = format!("{store}/somebody/tiny/resolve/{revision}/{path}");
        let headers = [
            ("location", location),
            ("x-linked-etag", format!("\"{hash}\"")),
            ("x-linked-size", size),
            ("x-repo-commit", commit.to_owned()),
        ];
        return (StatusCode::FOUND, headers).into_response();
    }
    let range = headers.get("range").filter(|_| !hub.knows_no_ranges);
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let range = range.map_or("bytes=0-", |range| range.to_str().unwrap()).trim_start_matches("bytes=").to_owned();
    let (from, to) = range.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let (is_whole, to) = (to.is_empty(), to.parse().unwrap_or(usize::MAX).min(bytes.len() - 1));
    let linked = path.ends_with(".safetensors").then(|| ("x-linked-etag", format!("\"{hash}\"")));
    let etag = format!("\"{}\"", &hash[..40]);
    let range = (status == StatusCode::PARTIAL_CONTENT).then(|| ("content-range", format!("bytes {from}-{to}/{}", bytes.len())));
    let mut response = Response::builder().status(status).header("content-length", to + 1 - from);
    for (name, value) in [("etag", etag), ("x-repo-commit", commit.to_owned())].into_iter().chain(range).chain(linked) {
        response = response.header(name, value);
    }
    let mut break_at = None;
    if path == UNET && is_whole && method == Method::GET {
        hub.starts.lock().unwrap().push(from);
        if hub.lies.load(Ordering::SeqCst) {
            *bytes.last_mut().unwrap() ^= 1;
        }
        if hub.breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            break_at = Some(usize::midpoint(from, to));
        }
    }
    let part = bytes[from..break_at.unwrap_or(to + 1)].to_vec();
    let end = break_at.map(|_| Err(std::io::Error::other("the line breaks")));
    // The server yields between two pieces, so that the client has everything before the break.
    let pieces = part.chunks(1 << 14).map(|piece| Ok(Bytes::copy_from_slice(piece))).chain(end).collect::<Vec<_>>();
    let pieces = futures_util::stream::iter(pieces).then(async |piece| {
        tokio::task::yield_now().await;
        piece
    });
    response.body(Body::from_stream(pieces)).unwrap()
}

/// A whole file, whatever range was asked for.
fn compressed(bytes: &[u8], hash: &str, commit: &str) -> Response {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    let headers =
        [("etag", format!("W/\"{}\"", &hash[..40])), ("x-repo-commit", commit.to_owned()), ("content-encoding", "gzip".to_owned())];
    (headers, encoder.finish().unwrap()).into_response()
}

/// Starts the hub, and returns its address.
pub(super) async fn start(hub: &Arc<Hub>) -> String {
    let app = Router::new()
        .route("/api/models/somebody/tiny/revision/{revision}", get(info))
        .route("/somebody/tiny/resolve/{revision}/{*path}", get(resolve))
        .with_state(Arc::clone(hub));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    format!("http://{address}")
}
