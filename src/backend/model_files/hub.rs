//! Models from the Hugging Face Hub, kept in its usual cache (`HF_HOME`), from its usual address (`HF_ENDPOINT`).

mod cache;
mod client;

use std::{
    env,
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use cache::Cache;
use client::{Client, HubError, RemoteFile};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::{INDEXES, NO_PICKLES, WEIGHTS, is_pickle};
use crate::{backend::LoadError, common::error_chain};

/// The parts of a Stable Diffusion model, as folders of its repository.
const PARTS: [&str; 7] = ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"];
const INDEX: &str = "model_index.json";
/// Extensions of files, beside those of pickled ones: such a name is no repository.
const FILES: [&str; 2] = ["safetensors", "gguf"];

/// Whether `model` has the form of a repository's name, `owner/name`. A path into an existing directory and a name with the extension of a
/// file are none.
pub(super) fn is_repository(model: &str) -> bool {
    let is_plain =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let Some((owner, name)) = model.split_once('/') else { return false };
    let end = Path::new(name).extension();
    let is_file = end.is_some_and(|end| FILES.iter().any(|file| end.eq_ignore_ascii_case(file))) || is_pickle(Path::new(name));
    is_plain(owner) && is_plain(name) && !is_file && !Path::new(owner).is_dir()
}

/// Downloads the files that the cache lacks, at a revision (a branch, a tag, a commit; `main` by default), and returns their directory. With
/// `HF_HUB_OFFLINE`, the cache is all there is. Parts that come from `elsewhere` may have pickled weights here.
///
/// # Errors
/// When the hub cannot be reached, has no such model or pickled weights alone, or sends a file of another length or hash than it announced.
pub(super) fn fetch(repository: &str, revision: Option<&str>, elsewhere: &[&str]) -> Result<PathBuf, LoadError> {
    let revision = revision.unwrap_or("main");
    let (cache, failed) = (Cache::of(repository), |error| download_failed(repository, error));
    if let Some(name) = offline() {
        let missing = || format!("{repository} at {revision} is not in the cache, and {name} forbids to download it");
        return cached(&cache, revision).ok_or_else(|| LoadError::NotFound(missing()));
    }
    let hub = Client { endpoint: endpoint(), token: token() };
    let found = match (hub.revision(repository, revision), cached(&cache, revision)) {
        (Ok(found), _) => found,
        // The index is fetched last: with it, the model is complete.
        (Err(error), Some(snapshot)) => {
            warn!(error = error_chain(&error), "the hub does not answer; {repository} is taken from the cache");
            return Ok(snapshot);
        }
        (Err(error), None) => return Err(failed(error)),
    };
    let (files, commit) = (found.files(), found.sha);
    if !files.iter().any(|file| file == INDEX) {
        return Err(LoadError::NotFound(without_index(repository, &files)));
    }
    if let Some(file) = pickled(&files, elsewhere) {
        return Err(LoadError::BadConfig { path: Path::new(repository).join(file), reason: NO_PICKLES.to_owned() });
    }
    // All files are of one commit, even if the revision moves meanwhile.
    let snapshot = cache.snapshot(&commit);
    for file in wanted(&files).into_iter().chain([INDEX]).filter(|file| !snapshot.join(file).exists()) {
        let remote = hub.file(repository, &commit, file).map_err(failed)?;
        let is_here = fs::metadata(cache.blob(&remote.hash)).is_ok_and(|blob| remote.size.is_none_or(|size| blob.len() == size));
        if !is_here {
            info!(repository, revision, file, "downloading");
            download(&hub, &cache, &remote, file, &snapshot, &failed)?;
        }
        cache.link(&commit, file, &remote.hash).map_err(|error| failed(error.into()))?;
    }
    // Like Python's client, no reference from a commit to itself.
    if revision != commit {
        cache.set_commit_of(revision, &commit).map_err(|error| failed(error.into()))?;
    }
    Ok(snapshot)
}

fn download_failed(repository: &str, source: HubError) -> LoadError {
    LoadError::Download { repository: repository.to_owned(), source: Box::new(source) }
}

/// Brings a file into the cache and checks its SHA-256, by which the hub names large files: a resumed download may be part of another file.
fn download(
    hub: &Client,
    cache: &Cache,
    remote: &RemoteFile,
    file: &str,
    snapshot: &Path,
    failed: &impl Fn(HubError) -> LoadError,
) -> Result<(), LoadError> {
    let (part, _lock) = cache.incomplete(&remote.hash).map_err(|error| failed(error.into()))?;
    // Another process may have fetched it while this one waited for the lock.
    let blob = cache.blob(&remote.hash);
    if fs::metadata(&blob).is_ok_and(|blob| Some(blob.len()) == remote.size) {
        return Ok(());
    }
    hub.download(remote, file, &part).map_err(failed)?;
    if is_other(&part, &remote.hash).map_err(|source| LoadError::Unreadable { path: part.clone(), source })? {
        // The next start downloads it again.
        let _ = fs::remove_file(&part);
        let reason = "what was downloaded is not the file that the hub names; it was removed, and will be downloaded again".to_owned();
        return Err(LoadError::BadConfig { path: snapshot.join(file), reason });
    }
    fs::rename(&part, &blob).map_err(|error| failed(error.into()))
}

/// Whether a file is named by a SHA-256 that is not its own.
fn is_other(path: &Path, name: &str) -> io::Result<bool> {
    if name.len() != 2 * Sha256::output_size() || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(false);
    }
    let (mut file, mut hash, mut bytes) = (BufReader::with_capacity(1 << 16, File::open(path)?), Sha256::new(), 1);
    while bytes > 0 {
        let piece = file.fill_buf()?;
        hash.update(piece);
        bytes = piece.len();
        file.consume(bytes);
    }
    let digits = |i: usize| u8::from_str_radix(&name[2 * i..2 * i + 2], 16);
    Ok(hash.finalize().iter().enumerate().any(|(i, byte)| digits(i) != Ok(*byte)))
}

/// The cache's directory of a revision, if it has the index.
fn cached(cache: &Cache, revision: &str) -> Option<PathBuf> {
    let is_commit = revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let commits = [is_commit.then(|| revision.to_owned()), cache.commit_of(revision)];
    commits.into_iter().flatten().map(|commit| cache.snapshot(&commit)).find(|snapshot| snapshot.join(INDEX).exists())
}

/// The hub's address.
fn endpoint() -> String {
    let given = variable(&["HF_ENDPOINT"]).map_or("https://huggingface.co".to_owned(), |(_, endpoint)| endpoint);
    given.trim_end_matches('/').to_owned()
}

/// The first of these variables that is set and not empty, with its value.
fn variable<'a>(names: &[&'a str]) -> Option<(&'a str, String)> {
    names.iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()).map(|value| (*name, value)))
}

/// The variable that forbids the network, if one is set. Names and values are those of Python's client.
fn offline() -> Option<&'static str> {
    let (name, value) = variable(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])?;
    ["1", "on", "yes", "true"].iter().any(|yes| value.eq_ignore_ascii_case(yes)).then_some(name)
}

/// The user's token, from the environment or from the file of Python's client.
fn token() -> Option<String> {
    let clean = |token: String| Some(token.replace(['\r', '\n'], "").trim().to_owned()).filter(|token| !token.is_empty());
    let file = || variable(&["HF_TOKEN_PATH"]).map_or_else(|| cache::home().join("token"), |(_, path)| path.into());
    let given = variable(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).and_then(|(_, token)| clean(token));
    given.or_else(|| fs::read_to_string(file()).ok().and_then(clean))
}

/// The error of a repository without a model in diffusers' layout.
fn without_index(repository: &str, files: &[String]) -> String {
    let whole: Vec<&str> = files.iter().map(String::as_str).filter(|file| !file.contains('/') && file.ends_with(".safetensors")).collect();
    let hint = if whole.is_empty() { String::new() } else { format!("; download {} and give it with --model", whole.join(" or ")) };
    format!("{repository} has no {INDEX}, so it is no model in the layout of diffusers{hint}")
}

/// The files of a repository that this worker reads: small ones, and for each part the weights that its search finds first.
fn wanted(files: &[String]) -> Vec<&str> {
    let is_small = |name: &str| [".json", ".txt"].iter().any(|end| name.ends_with(end)) && !name.contains(".safetensors.index.");
    // A name that leads out of its part is no file of it.
    let in_part = |file: &str, part: &str| {
        !file.contains("..") && file.strip_prefix(part).and_then(|rest| rest.strip_prefix('/')).is_some_and(is_small)
    };
    let small =
        files.iter().map(String::as_str).filter(|file| PARTS.iter().any(|part| in_part(file, part)) || *file == "generation_config.json");
    let weights = PARTS.iter().flat_map(|part| weights_of(part, files));
    small.chain(weights).collect()
}

/// One file, or an index and all files whose names begin like the index's.
fn weights_of<'a>(part: &str, files: &'a [String]) -> Vec<&'a str> {
    let find = |name: &&str| files.iter().find(|file| **file == format!("{part}/{name}")).map(String::as_str);
    if let Some(file) = WEIGHTS.iter().find_map(find) {
        return vec![file];
    }
    let Some(index) = INDEXES.iter().find_map(find) else { return Vec::new() };
    let (stem, variant) = index.split_once(".safetensors.index.").unwrap_or((index, ""));
    let stem = if variant == "json" { format!("{stem}-") } else { format!("{stem}.fp16-") };
    let shards = files.iter().map(String::as_str).filter(|file| file.ends_with(".safetensors"));
    let shards = shards.filter(|file| file.strip_prefix(&stem).is_some_and(|rest| !rest.contains('/')));
    [index].into_iter().chain(shards).collect()
}

/// The first pickled weights of a part that has no others.
fn pickled<'a>(files: &'a [String], elsewhere: &[&str]) -> Option<&'a str> {
    let is_weights = |name: &str| ["diffusion_pytorch_model", "pytorch_model"].iter().any(|start| name.starts_with(start));
    let without = |part: &str| PARTS.contains(&part) && !elsewhere.contains(&part) && weights_of(part, files).is_empty();
    let is_needed = |file: &&str| file.split_once('/').is_some_and(|(part, name)| is_weights(name) && without(part));
    files.iter().map(String::as_str).filter(|file| is_pickle(Path::new(file))).find(is_needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_told_from_a_path() {
        for repository in ["stabilityai/sd-turbo", "a/b.c_d"] {
            assert!(is_repository(repository), "{repository}");
        }
        for path in ["builtin", "/models/sd", "./sd/turbo", "models/sd/turbo", "src/backend", "a b/c", "../sd"] {
            assert!(!is_repository(path), "{path}");
        }
        // Of what is not there.
        for path in ["models/v1-5.safetensors", "a/b.CKPT", "a/b.gguf", "a/b.pt", "a/b.pth", "a/b.bin", "src/sd-turbo"] {
            assert!(!is_repository(path), "{path}");
        }
    }

    #[test]
    fn a_repository_of_checkpoints_says_what_to_do_with_them() {
        let files = ["README.md", "v1-5.safetensors", "vae/x.safetensors"].map(str::to_owned);
        assert!(without_index("a/b", &files).ends_with("; download v1-5.safetensors and give it with --model"));
        assert!(without_index("a/b", &files[..1]).ends_with("in the layout of diffusers"));
    }

    #[test]
    fn pickled_weights_are_seen_where_there_are_no_others() {
        let files = [
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "safety_checker/pytorch_model.bin",
            "tokenizer/merges.bin",
            "text_encoder/pytorch_model-00001-of-00002.bin",
            "vae/diffusion_pytorch_model.fp16.bin",
        ]
        .map(str::to_owned);
        assert_eq!(pickled(&files, &[]), Some("text_encoder/pytorch_model-00001-of-00002.bin"));
        assert_eq!(pickled(&files, &["text_encoder"]), Some("vae/diffusion_pytorch_model.fp16.bin"));
        assert_eq!(pickled(&files, &["text_encoder", "vae"]), None);
    }

    #[test]
    fn only_what_is_read_is_downloaded() {
        let files = [
            "unet/config.json",
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
            "text_encoder/model.fp16.safetensors",
            "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
            "vae/diffusion_pytorch_model-00002-of-00002.safetensors",
            "vae/diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
            "vae/diffusion_pytorch_model.safetensors.index.fp16.json",
            "vae/diffusion_pytorch_model.safetensors.index.json",
            "safety_checker/config.json",
            "README.md",
            "tokenizer/merges.txt",
            "v1-5-pruned.safetensors",
            "generation_config.json",
        ]
        .map(str::to_owned);
        assert_eq!(
            wanted(&files),
            [
                "unet/config.json",
                "tokenizer/merges.txt",
                "generation_config.json",
                "text_encoder/model.fp16.safetensors",
                "unet/diffusion_pytorch_model.safetensors",
                "vae/diffusion_pytorch_model.safetensors.index.json",
                "vae/diffusion_pytorch_model-00001-of-00002.safetensors",
                "vae/diffusion_pytorch_model-00002-of-00002.safetensors"
            ]
        );
    }
}
