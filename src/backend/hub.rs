//! Models from the Hugging Face Hub, kept in its usual cache (`HF_HOME`), from its usual address (`HF_ENDPOINT`).

use std::{
    env,
    io::IsTerminal,
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache,
    api::sync::{ApiBuilder, ApiError},
};

use tracing::warn;

use super::{
    LoadError,
    model_files::{INDEXES, WEIGHTS},
};

/// The parts of a Stable Diffusion model, as folders of its repository.
const PARTS: [&str; 5] = ["scheduler", "text_encoder", "tokenizer", "unet", "vae"];
const INDEX: &str = "model_index.json";
const RETRIES: usize = 3;

/// Whether `model` has the form of a repository's name, `owner/name`, and is not the path of something.
pub(super) fn is_repository(model: &str) -> bool {
    let is_plain =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    model.split('/').count() == 2 && model.split('/').all(is_plain) && !Path::new(model).exists()
}

/// Downloads what is not in the cache yet, and gives back the directory where it is. With `HF_HUB_OFFLINE` it only looks there.
///
/// # Errors
/// When the hub cannot be reached, or has no such model.
pub(super) fn fetch(repository: &str) -> Result<PathBuf, LoadError> {
    let folder = |index: PathBuf| index.parent().map(Path::to_owned).unwrap_or_default();
    let cached = || Cache::from_env().model(repository.to_owned()).get(INDEX);
    if env::var("HF_HUB_OFFLINE").is_ok_and(|value| !matches!(value.as_str(), "" | "0")) {
        return cached()
            .map(folder)
            .ok_or_else(|| LoadError::NotFound(format!("{repository} is not in the cache, and HF_HUB_OFFLINE forbids to download it")));
    }
    let failed = |source: ApiError| LoadError::Download { repository: repository.to_owned(), source: Box::new(source) };
    let token = env::var("HF_TOKEN").ok().or_else(|| Cache::from_env().token());
    let builder = ApiBuilder::from_env().with_token(token).with_retries(RETRIES).with_progress(std::io::stderr().is_terminal());
    let repo = builder.build().map_err(failed)?.model(repository.to_owned());
    let info = match (repo.info(), cached()) {
        (Ok(info), _) => info,
        // The index is fetched last: where it is, all of the model is.
        (Err(error), Some(index)) => {
            warn!(%error, "the hub does not answer; {repository} is taken from the cache");
            return Ok(folder(index));
        }
        (Err(error), None) => return Err(failed(error)),
    };
    let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    for file in wanted(&files) {
        repo.get(file).map_err(failed)?;
    }
    repo.get(INDEX).map(folder).map_err(failed)
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
