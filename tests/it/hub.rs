//! Models by name, from a hub.

mod fake_hub;

use std::{
    fs,
    path::Path,
    process::Output,
    sync::{Arc, atomic::Ordering},
};

use crate::support::binary;
use fake_hub::{COMMIT, Compresses, Hub, LATER, MORE, TINY, UNET, file, names, start};

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

    // With the hub, offline by choice, and with a hub that is gone.
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
    // The most interruptions that one start survives.
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

/// A server may send all of a file whatever range is asked for ([RFC 9110](https://www.rfc-editor.org/rfc/rfc9110#section-14.2)).
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

/// As on huggingface.co: large files are on other hosts, which must not see the token.
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

/// As when several workers start at once on a machine.
#[tokio::test]
async fn several_workers_share_one_download() {
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
    // The old blobs are of no use for another revision.
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

/// Python's client keeps references for branches and tags alone.
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
