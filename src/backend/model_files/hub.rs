//! Models from the Hugging Face Hub, kept in its usual cache (`HF_HOME`), from its usual address (`HF_ENDPOINT`).

use std::{
    env,
    fs::{self, File},
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError},
};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use super::{INDEXES, WEIGHTS};
use crate::backend::LoadError;

/// The parts of a Stable Diffusion model, as folders of its repository.
const PARTS: [&str; 7] = ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"];
const INDEX: &str = "model_index.json";
const RETRIES: usize = 3;

/// Whether `model` has the form of a repository's name, `owner/name`, and is not the path of something.
pub(super) fn is_repository(model: &str) -> bool {
    let is_plain =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    model.split('/').count() == 2 && model.split('/').all(is_plain) && !Path::new(model).exists()
}

/// Downloads what is not in the cache yet, at a revision (a branch, a tag, a commit; `main` if none is given), and gives back the directory
/// where it is. With `HF_HUB_OFFLINE` it only looks there.
///
/// # Errors
/// When the hub cannot be reached, has no such model, or sends something else than it says.
pub(super) fn fetch(repository: &str, revision: Option<&str>) -> Result<PathBuf, LoadError> {
    let revision = revision.unwrap_or("main");
    let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
    let folder = |index: PathBuf| index.parent().map(Path::to_owned).unwrap_or_default();
    let cache = || Cache::from_env().repo(repo.clone());
    let cached = || cache().get(INDEX);
    if env::var("HF_HUB_OFFLINE").is_ok_and(|value| !matches!(value.as_str(), "" | "0")) {
        let missing = || format!("{repository} at {revision} is not in the cache, and HF_HUB_OFFLINE forbids to download it");
        return cached().map(folder).ok_or_else(|| LoadError::NotFound(missing()));
    }
    let failed = |source: ApiError| LoadError::Download { repository: repository.to_owned(), source: Box::new(source) };
    let token = env::var("HF_TOKEN").ok().or_else(|| Cache::from_env().token());
    let builder = ApiBuilder::from_env().with_token(token).with_retries(RETRIES).with_progress(std::io::stderr().is_terminal());
    let remote = builder.build().map_err(failed)?.repo(repo.clone());
    let files = match (remote.info(), cached()) {
        (Ok(info), _) => info.siblings.into_iter().map(|file| file.rfilename).collect::<Vec<String>>(),
        // The index is fetched last: where it is, all of the model is.
        (Err(error), Some(index)) => {
            warn!(%error, "the hub does not answer; {repository} is taken from the cache");
            return Ok(folder(index));
        }
        (Err(error), None) => return Err(failed(error)),
    };
    if !files.iter().any(|file| file == INDEX) {
        return Err(LoadError::NotFound(without_index(repository, &files)));
    }
    for file in wanted(&files).into_iter().chain([INDEX]) {
        if cache().get(file).is_none() {
            info!(repository, revision, file, "downloading");
            check(&remote.get(file).map_err(failed)?)?;
        }
    }
    cached().map(folder).ok_or_else(|| LoadError::NotFound(without_index(repository, &files)))
}

/// What a repository is told that is none of a model in parts.
fn without_index(repository: &str, files: &[String]) -> String {
    let whole: Vec<&str> = files.iter().map(String::as_str).filter(|file| !file.contains('/') && file.ends_with(".safetensors")).collect();
    let hint = if whole.is_empty() { String::new() } else { format!("; download {} and give it with --model", whole.join(" or ")) };
    format!("{repository} has no {INDEX}, so it is no model in the layout of diffusers{hint}")
}

/// Makes sure that a file that was downloaded is the one that was meant: the hub names large ones by their SHA-256. What was resumed after
/// a break need not be.
fn check(path: &Path) -> Result<(), LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: path.to_owned(), source };
    let blob = path.canonicalize().map_err(unreadable)?;
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    if name.len() != 2 * Sha256::output_size() || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut hash = Sha256::new();
    io::copy(&mut File::open(&blob).map_err(unreadable)?, &mut hash).map_err(unreadable)?;
    if format!("{:x}", hash.finalize()) == name {
        return Ok(());
    }
    // So that the next start gets it anew.
    let _ = (fs::remove_file(path), fs::remove_file(&blob));
    let reason = "what was downloaded is not the file that the hub names; it was removed, and will be downloaded again".to_owned();
    Err(LoadError::BadConfig { path: path.to_owned(), reason })
}

/// Of a repository's files those that this worker reads: small ones, and for each part the weights that come first in its search.
fn wanted(files: &[String]) -> Vec<&str> {
    let is_small = |name: &str| [".json", ".txt"].iter().any(|end| name.ends_with(end)) && !name.contains(".safetensors.index.");
    // A name that leads out of its part is none of its files.
    let in_part = |file: &str, part: &str| {
        !file.contains("..") && file.strip_prefix(part).and_then(|rest| rest.strip_prefix('/')).is_some_and(is_small)
    };
    let small =
        files.iter().map(String::as_str).filter(|file| PARTS.iter().any(|part| in_part(file, part)) || *file == "generation_config.json");
    let weights = PARTS.iter().flat_map(|part| weights_of(part, files));
    small.chain(weights).collect()
}

/// One file, or the list of several and all of those: their names begin like the list's.
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
    }

    #[test]
    fn a_repository_of_checkpoints_says_what_to_do_with_them() {
        let files = ["README.md", "v1-5.safetensors", "vae/x.safetensors"].map(str::to_owned);
        assert!(without_index("a/b", &files).ends_with("; download v1-5.safetensors and give it with --model"));
        assert!(without_index("a/b", &files[..1]).ends_with("in the layout of diffusers"));
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
