//! Embeddings learned by textual inversion ([Gal et al.](https://arxiv.org/abs/2208.01618)), one file for each word, as A1111, kohya and
//! diffusers write them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use candle_core::{Error, Tensor};
use tracing::warn;

use super::TensorFiles;
use crate::backend::LoadError;

/// A1111's name for the vectors.
const A1111: &str = "emb_params";
/// Names of the vectors for SDXL's two text encoders.
const SDXL: [&str; 2] = ["clip_l", "clip_g"];

/// A word, named like its file. The file is open only while it is read: a process may have fewer files open than there are words.
#[derive(Debug, Clone)]
pub(in crate::backend) struct TextualInversion {
    pub(in crate::backend) name: String,
    /// The path below the embeddings' folder without the extension, which is `ComfyUI`'s name for it.
    call: String,
    path: PathBuf,
}

/// A word with its vectors for each text encoder of a model, `(vectors, hidden_size)`, as many for each.
#[derive(Debug)]
pub(in crate::backend) struct LearnedVectors {
    /// The word, and other names for it.
    pub(in crate::backend) names: Vec<String>,
    pub(in crate::backend) vectors: Vec<Tensor>,
}

/// All words in a folder and its subfolders. Other files are left out, with a warning.
///
/// # Errors
/// When the folder cannot be read.
pub(in crate::backend) fn read_folder(folder: &Path) -> Result<Vec<TextualInversion>, LoadError> {
    let mut paths = files_in(folder).map_err(|source| LoadError::Unreadable { path: folder.to_owned(), source })?;
    paths.sort();
    let mut words: Vec<TextualInversion> = Vec::new();
    for path in paths {
        let ends_in = |endings: &[&str]| path.extension().is_some_and(|end| endings.iter().any(|other| end.eq_ignore_ascii_case(other)));
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if ends_in(&["pt", "bin", "ckpt"]) {
            warn!("{}: pickled embeddings are not read, since reading them runs code; convert it to safetensors", path.display());
        } else if !ends_in(&["safetensors"]) {
            // A preview or a note.
        } else if let Some(other) = words.iter().find(|word| word.name.eq_ignore_ascii_case(&name)) {
            warn!("{}: left out, since {} has the same name", path.display(), other.path.display());
        } else {
            match TensorFiles::open(std::slice::from_ref(&path)) {
                Ok(_) => {
                    let call = path.strip_prefix(folder).unwrap_or(&path).with_extension("").to_string_lossy().into_owned();
                    words.push(TextualInversion { name, call, path });
                }
                Err((path, error)) => warn!("{}: left out: {error}", path.display()),
            }
        }
    }
    Ok(words)
}

/// Links to files are followed, links to folders are not.
fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { files.extend(files_in(&entry.path())?) } else { files.push(entry.path()) }
    }
    Ok(files)
}

/// Why a word is left out.
enum Misfit {
    /// Its values cannot be read.
    Unreadable(Error),
    /// It is for another model, or no embedding.
    Other(String),
}

impl From<Error> for Misfit {
    fn from(error: Error) -> Self {
        Self::Unreadable(error)
    }
}

impl TextualInversion {
    /// The vectors for text encoders of these widths. `None`, with a warning, if it was made for others.
    ///
    /// # Errors
    /// When its values cannot be read or are not finite.
    pub(in crate::backend) fn vectors(&self, widths: &[usize], most: usize) -> Result<Option<LearnedVectors>, LoadError> {
        match self.fitting(widths, most) {
            Ok(vectors) => {
                let mut names = vec![self.name.clone(), self.call.clone()];
                names.dedup();
                Ok(Some(LearnedVectors { names, vectors }))
            }
            Err(Misfit::Unreadable(source)) => Err(LoadError::WrongWeights { path: self.path.clone(), source }),
            Err(Misfit::Other(reason)) => {
                warn!("{}: the embedding is left out: {reason}", self.path.display());
                Ok(None)
            }
        }
    }

    fn fitting(&self, widths: &[usize], most: usize) -> Result<Vec<Tensor>, Misfit> {
        let files = TensorFiles::open(std::slice::from_ref(&self.path)).map_err(|(_, error)| error)?;
        let names: Vec<String> = files.names().collect();
        let has = |name: &str| names.iter().any(|other| other == name);
        let wanted: Vec<&str> = match (widths.len(), &names[..]) {
            (2, _) if SDXL.iter().all(|name| has(name)) => SDXL.to_vec(),
            (2, _) => return Err(Misfit::Other(format!("SDXL needs {} and {} in it", SDXL[0], SDXL[1]))),
            _ if has(A1111) => vec![A1111],
            // diffusers' name for it is the word itself.
            (_, [only]) => vec![only],
            _ => return Err(Misfit::Other(format!("it has {} tensors, and none of them is {A1111}", names.len()))),
        };
        let vectors = wanted.iter().zip(widths).map(|(name, width)| {
            let shape = files.shape(name).unwrap_or_default();
            match shape {
                [found] | [_, found] if found != width => {
                    Err(Misfit::Other(format!("its vectors are {found} wide, and those of the model {width}")))
                }
                [_] => Ok(files.tensor(name)?.unsqueeze(0)?),
                [count, _] if (1..=most).contains(count) => Ok(files.tensor(name)?),
                _ => Err(Misfit::Other(format!("{name} is of the shape {shape:?}, which is not 1 to {most} vectors"))),
            }
        });
        let vectors = vectors.collect::<Result<Vec<Tensor>, Misfit>>()?;
        let same = vectors.windows(2).all(|pair| pair[0].dims()[0] == pair[1].dims()[0]);
        if same { Ok(vectors) } else { Err(Misfit::Other("it has not as many vectors for one text encoder as for the other".to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn no_file_stays_open() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().canonicalize().unwrap();
        let vectors = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
        for name in ["a", "b", "c"] {
            let tensors = std::collections::HashMap::from([(A1111, vectors.clone())]);
            candle_core::safetensors::save(&tensors, place.join(name).with_extension("safetensors")).unwrap();
        }
        let open = || {
            let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
            links.filter(|path| path.starts_with(&place)).count()
        };
        let file = fs::File::open(place.join("a.safetensors")).unwrap();
        assert_eq!(open(), 1, "those that are open are seen");
        drop(file);
        let words = read_folder(&place).unwrap();
        assert_eq!(open(), 0);
        let learned: Vec<LearnedVectors> = words.iter().filter_map(|word| word.vectors(&[4], 75).unwrap()).collect();
        assert_eq!(open(), 0);
        assert_eq!(
            learned.iter().map(|word| (word.names[0].as_str(), word.vectors[0].dims())).collect::<Vec<_>>(),
            [("a", &[2, 4][..]), ("b", &[2, 4]), ("c", &[2, 4])]
        );
    }
}
