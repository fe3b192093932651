//! Models by name, from a hub on loopback that speaks as much of the protocol as the client needs.

use std::{
    fs,
    io::Write,
    path::Path,
    process::Output,
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
use futures::StreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::binary;

const TINY: &str = "tests/parity/tiny";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// What `main` moves to: a file more, and another schedule.
const LATER: &str = "89abcdef0123456789abcdef0123456789abcdef";
const MORE: &str = "vae/more.json";
const SCHEDULE: &str = "scheduler/scheduler_config.json";
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// How the hub behaves, and what the `UNet`'s weights were asked for.
#[derive(Default)]
struct Hub {
    /// What must be sent as a bearer token.
    token: Option<&'static str>,
    /// How many times the weights break off half-way through.
    breaks: AtomicUsize,
    /// Whether they are others than their hash says.
    lies: AtomicBool,
    /// Whether `main` has moved.
    moved: AtomicBool,
    /// Whether it moves as soon as somebody asks where it is.
    moves: AtomicBool,
    /// A part whose weights are pickled.
    pickled: Option<&'static str>,
    /// Whether it, or what stands before it, sends all of a file whatever part is asked for.
    knows_no_ranges: bool,
    /// Whether it compresses text, for those who take that or for all.
    compresses: Option<Compresses>,
    /// Another host, which the weights are on.
    store: Option<String>,
    /// Where in the weights each request began.
    starts: Mutex<Vec<usize>>,
}

/// For whom a hub compresses text.
#[derive(Clone, Copy, PartialEq)]
enum Compresses {
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

    fn starts(&self) -> Vec<usize> {
        self.starts.lock().unwrap().clone()
    }
}

fn names(folder: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .flat_map(|entry| {
            let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
            if entry.path().is_dir() { names(&entry.path(), &format!("{name}/")) } else { vec![name] }
        })
        .collect()
}

fn file(path: &str, commit: &str) -> Option<Vec<u8>> {
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
    let hash = format!("{:x}", Sha256::digest(&bytes));
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
    // What was sent before the break is on its way when it comes: the server gets to write between any two pieces.
    let pieces = part.chunks(1 << 14).map(|piece| Ok(Bytes::copy_from_slice(piece))).chain(end).collect::<Vec<_>>();
    let pieces = futures::stream::iter(pieces).then(async |piece| {
        tokio::task::yield_now().await;
        piece
    });
    response.body(Body::from_stream(pieces)).unwrap()
}

/// All of a file, whatever was asked for of it.
fn compressed(bytes: &[u8], hash: &str, commit: &str) -> Response {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    let headers =
        [("etag", format!("W/\"{}\"", &hash[..40])), ("x-repo-commit", commit.to_owned()), ("content-encoding", "gzip".to_owned())];
    (headers, encoder.finish().unwrap()).into_response()
}

/// The hub's address.
async fn start(hub: &Arc<Hub>) -> String {
    let app = Router::new()
        .route("/api/models/somebody/tiny/revision/{revision}", get(info))
        .route("/somebody/tiny/resolve/{revision}/{*path}", get(resolve))
        .with_state(Arc::clone(hub));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    format!("http://{address}")
}

async fn generate(model: &str, home: &Path, env: &[(&str, &str)]) -> Output {
    generate_with(&["--model", model], home, env).await
}

async fn generate_with(args: &[&str], home: &Path, env: &[(&str, &str)]) -> Output {
    let picture = home.join("x.png");
    let mut command = binary();
    command.args(["generate", "a", "--steps", "1"]).args(args).arg("-o").arg(picture);
    for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        command.env_remove(name);
    }
    command.env("HF_HOME", home).envs(env.iter().copied());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_model_is_downloaded_once_and_then_found_offline() {
    let (hub, home) = (start(&Arc::default()).await, tempfile::tempdir().unwrap());
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
    let (hub, home) = (start(&Arc::default()).await, tempfile::tempdir().unwrap());
    let output = generate("somebody/else", home.path(), &[("HF_ENDPOINT", hub.as_str())]).await;
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(66), "{stderr}");
    assert!(stderr.trim_end().lines().last().unwrap().starts_with("error: somebody/else cannot be downloaded: "), "{stderr}");
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let (hub, home) = (Arc::new(Hub::default()), tempfile::tempdir().unwrap());
    let (url, size) = (start(&hub).await, fs::metadata(Path::new(TINY).join(UNET)).unwrap().len() as usize);
    // As many breaks as one start has patience for.
    hub.breaks.store(5, Ordering::SeqCst);
    let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &url)]).await;
    assert_eq!(output.status.code(), Some(66), "{}", stderr(&output));
    assert!(stderr(&output).contains("somebody/tiny cannot be downloaded"), "{}", stderr(&output));
    let starts = hub.starts();
    assert!(starts.len() == 5 && starts[0] == 0 && starts.is_sorted_by(|a, b| a < b), "{starts:?} of {size}");

    hub.breaks.store(1, Ordering::SeqCst);
    let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &url)]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let starts = hub.starts();
    assert!(starts.len() == 7 && starts.is_sorted_by(|a, b| a < b) && starts[5] > size / 2, "{starts:?} of {size}");
}

/// [RFC 9110](https://www.rfc-editor.org/rfc/rfc9110#section-14.2) lets a server send all of a file whatever part is asked for.
#[tokio::test]
async fn hubs_need_neither_ranges_nor_plain_text() {
    let kinds = [
        Hub { knows_no_ranges: true, ..Hub::default() },
        Hub { knows_no_ranges: true, breaks: 2.into(), ..Hub::default() },
        Hub { compresses: Some(Compresses::ForThoseWhoTakeIt), ..Hub::default() },
        Hub { compresses: Some(Compresses::ForAll), ..Hub::default() },
        Hub { compresses: Some(Compresses::ForAll), knows_no_ranges: true, ..Hub::default() },
    ];
    for (kind, hub) in kinds.into_iter().enumerate() {
        let (hub, home) = (Arc::new(hub), tempfile::tempdir().unwrap());
        let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &start(&hub).await)]).await;
        assert!(output.status.success(), "{kind}: {}", stderr(&output));
        let snapshot = home.path().join("hub/models--somebody--tiny/snapshots").join(COMMIT);
        for path in names(&snapshot, "") {
            assert!(fs::read(snapshot.join(&path)).unwrap() == file(&path, COMMIT).unwrap(), "{kind}: {path}");
        }
        assert_eq!(hub.breaks.load(Ordering::SeqCst), 0);
    }
}

/// As huggingface.co has it: what is large is on other hosts, which are not told who asks.
#[tokio::test]
async fn weights_may_be_elsewhere() {
    let (store, home) = (Arc::new(Hub { breaks: 1.into(), ..Hub::default() }), tempfile::tempdir().unwrap());
    let hub = Hub { token: Some("hf_secret"), store: Some(start(&store).await), ..Hub::default() };
    let url = start(&Arc::new(hub)).await;
    let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &url), ("HF_TOKEN", "hf_secret")]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    let starts = store.starts();
    assert!(starts.len() == 2 && starts[0] == 0 && starts[1] > 0, "{starts:?}");
}

/// As several workers do that are started at once on a machine.
#[tokio::test]
async fn one_download_is_enough_for_all_who_want_it() {
    let (hub, home) = (Arc::new(Hub::default()), tempfile::tempdir().unwrap());
    let url = start(&hub).await;
    let env = [("HF_ENDPOINT", url.as_str())];
    let (first, second) = tokio::join!(generate("somebody/tiny", home.path(), &env), generate("somebody/tiny", home.path(), &env));
    for output in [first, second] {
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(hub.starts(), [0]);
}

#[tokio::test]
async fn a_file_that_is_another_than_the_hub_says_is_not_kept() {
    let (hub, home) = (Arc::new(Hub::default()), tempfile::tempdir().unwrap());
    let url = start(&hub).await;
    hub.lies.store(true, Ordering::SeqCst);
    let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &url)]).await;
    assert_eq!(output.status.code(), Some(66));
    assert!(stderr(&output).contains(&format!("{UNET}: what was downloaded is not the file that the hub names")), "{}", stderr(&output));
    hub.lies.store(false, Ordering::SeqCst);
    let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &url)]).await;
    assert!(output.status.success(), "{}", stderr(&output));
}

#[tokio::test]
async fn a_gated_model_needs_its_token() {
    let (hub, home) = (Arc::new(Hub { token: Some("hf_secret"), ..Hub::default() }), tempfile::tempdir().unwrap());
    let url = start(&hub).await;
    let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &url)]).await;
    assert_eq!(output.status.code(), Some(66));
    assert!(stderr(&output).contains("401"), "{}", stderr(&output));
    let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &url), ("HF_TOKEN", "hf_secret")]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stderr(&output).contains("hf_secret"));
}

#[tokio::test]
async fn a_token_is_found_where_python_finds_it() {
    let hub = Arc::new(Hub { token: Some("hf_secret"), ..Hub::default() });
    let url = start(&hub).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, "hf_secret\r\n").unwrap();
    let path = ("HF_TOKEN_PATH", file.path().to_str().unwrap());
    let places: [&[_]; 5] = [
        &[("HF_TOKEN", " hf_secret\r\n"), ("HUGGING_FACE_HUB_TOKEN", "another")],
        &[("HF_TOKEN", ""), ("HUGGING_FACE_HUB_TOKEN", "hf_secret")],
        &[path],
        &[path, ("HF_TOKEN", " \n")],
        &[("HF_TOKEN", "")],
    ];
    for place in places {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), if place.contains(&path) { "another" } else { "hf_secret\n" }).unwrap();
        let output = generate("somebody/tiny", home.path(), &[&[("HF_ENDPOINT", url.as_str())], place].concat()).await;
        assert!(output.status.success(), "{place:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn only_what_python_takes_for_a_yes_forbids_the_network() {
    let home = tempfile::tempdir().unwrap();
    let (hub, transformers) = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE");
    let no = ["", "0", "false", "no", "off"].map(|no| [(hub, no), (transformers, "0")]);
    let yes = ["1", "ON", "yes", "True"].map(|yes| [(hub, yes), (transformers, "0")]);
    let either = [([(hub, "0"), (transformers, "1")], None), ([(hub, ""), (transformers, "1")], Some(transformers))];
    let cases = no.into_iter().map(|env| (env, None)).chain(yes.into_iter().map(|env| (env, Some(hub)))).chain(either);
    for (env, forbids) in cases {
        let output = generate("somebody/tiny", home.path(), &[&env[..], &[("HF_ENDPOINT", "http://127.0.0.1:1")]].concat()).await;
        let message = forbids.map_or("cannot be downloaded".to_owned(), |name| format!("is not in the cache, and {name} forbids"));
        assert!(stderr(&output).contains(&message), "{env:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn a_commit_upstream_brings_what_is_new_in_it() {
    let (hub, home) = (Arc::new(Hub::default()), tempfile::tempdir().unwrap());
    let (url, cache) = (start(&hub).await, home.path().join("hub/models--somebody--tiny"));
    let snapshot = |commit: &str| {
        let mut files = names(&cache.join("snapshots").join(commit), "");
        files.sort();
        files
    };
    for commit in [COMMIT, LATER] {
        let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &url)]).await;
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(fs::read_to_string(cache.join("refs/main")).unwrap(), commit);
        for path in snapshot(commit) {
            assert!(fs::read(cache.join("snapshots").join(commit).join(&path)).unwrap() == file(&path, commit).unwrap(), "{path}");
        }
        hub.moved.store(true, Ordering::SeqCst);
    }
    assert_eq!(snapshot(LATER).into_iter().filter(|path| path != MORE).collect::<Vec<_>>(), snapshot(COMMIT));
    assert!(snapshot(LATER).contains(&MORE.to_owned()));
    assert_eq!(hub.starts(), [0], "weights that did not change are not downloaded again");
    let blob = cache.join("snapshots").join(LATER).join(UNET);
    assert!(fs::read_link(&blob).unwrap().starts_with("../../../blobs"));
    assert!(generate("somebody/tiny", home.path(), &[("HF_HUB_OFFLINE", "1")]).await.status.success());
}

#[tokio::test]
async fn a_commit_in_the_midst_of_a_download_waits_for_the_next_start() {
    let (hub, home) = (Arc::new(Hub { moves: true.into(), ..Hub::default() }), tempfile::tempdir().unwrap());
    let (url, cache) = (start(&hub).await, home.path().join("hub/models--somebody--tiny"));
    let snapshots = || fs::read_dir(cache.join("snapshots")).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &url)]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(snapshots(), [COMMIT]);
    assert_eq!(fs::read_to_string(cache.join("refs/main")).unwrap(), COMMIT);
    let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &url)]).await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(cache.join("refs/main")).unwrap(), LATER);
}

#[tokio::test]
async fn pickled_weights_are_refused_before_anything_is_downloaded() {
    let (hub, home) = (Arc::new(Hub { pickled: Some("vae"), ..Hub::default() }), tempfile::tempdir().unwrap());
    let url = start(&hub).await;
    let output = generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &url)]).await;
    assert_eq!(output.status.code(), Some(66));
    assert!(
        stderr(&output).contains("error: somebody/tiny/vae/diffusion_pytorch_model.bin: pickled weights are not read"),
        "{}",
        stderr(&output)
    );
    assert!(!home.path().join("hub").exists());
    // Where another is taken, they are of no use.
    let args = ["--model", "somebody/tiny", "--vae", "tests/parity/tiny/vae"];
    let output = generate_with(&args, home.path(), &[("HF_ENDPOINT", &url)]).await;
    assert!(output.status.success(), "{}", stderr(&output));
}

#[tokio::test]
async fn a_path_of_nothing_is_not_looked_for_on_the_hub() {
    let home = tempfile::tempdir().unwrap();
    for path in ["models/v1-5.safetensors", "models/v1-5.ckpt", "tests/tiny"] {
        let output = generate(path, home.path(), &[("HF_ENDPOINT", "http://127.0.0.1:1")]).await;
        assert_eq!(output.status.code(), Some(66));
        assert!(stderr(&output).contains(&format!("error: there is no model {path}: ")), "{}", stderr(&output));
    }
}

/// Python's client has a name for branches and tags alone.
#[tokio::test]
async fn a_commit_needs_no_reference() {
    let (hub, home) = (start(&Arc::default()).await, tempfile::tempdir().unwrap());
    assert!(generate("somebody/tiny", home.path(), &[("HF_ENDPOINT", &hub)]).await.status.success());
    let references = home.path().join("hub/models--somebody--tiny/refs");
    fs::remove_dir_all(&references).unwrap();
    for (commit, env, is_there) in
        [(COMMIT, ("HF_HUB_OFFLINE", "1"), true), (LATER, ("HF_HUB_OFFLINE", "1"), false), (COMMIT, ("HF_ENDPOINT", &*hub), true)]
    {
        let output = generate_with(&["--model", "somebody/tiny", "--revision", commit], home.path(), &[env]).await;
        assert_eq!(output.status.success(), is_there, "{}", stderr(&output));
        assert!(!references.exists());
    }
}

#[tokio::test]
async fn a_revision_is_the_one_that_is_asked_for() {
    let (hub, home) = (start(&Arc::default()).await, tempfile::tempdir().unwrap());
    let at = async |revision: &str, env: &[(&str, &str)]| {
        generate_with(&["--model", "somebody/tiny", "--revision", revision], home.path(), env).await
    };
    assert!(at("v2", &[("HF_ENDPOINT", &hub)]).await.status.success());
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert!(at("v2", &offline).await.status.success());
    for (revision, env, message) in
        [("v3", [("HF_ENDPOINT", hub.as_str())], "404"), ("main", offline, "somebody/tiny at main is not in the cache")]
    {
        let output = at(revision, &env).await;
        assert_eq!(output.status.code(), Some(66));
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
    }
    let output = generate_with(&["--model", TINY, "--revision", "v2"], home.path(), &[]).await;
    assert!(stderr(&output).contains("is no repository, and has no revision v2: give no --revision with it"), "{}", stderr(&output));
}
