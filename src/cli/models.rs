//! `sd-worker models`.

use std::path::Path;

use super::{Failure, ModelsCommand};

/// Lists models, or exports the built-in one.
///
/// # Errors
/// When there is no built-in model, or a file cannot be written.
pub fn models(command: &ModelsCommand) -> Result<(), Failure> {
    match command {
        ModelsCommand::List => {
            #[cfg(feature = "builtin-model")]
            super::stdout().line("builtin");
            super::printed()
        }
        ModelsCommand::Export { directory, .. } => export(directory),
    }
}

#[cfg(not(feature = "builtin-model"))]
fn export(_: &Path) -> Result<(), Failure> {
    Err(Failure::Configuration("this binary has no built-in model".to_owned()))
}

#[cfg(feature = "builtin-model")]
fn export(directory: &Path) -> Result<(), Failure> {
    use std::{borrow::Cow, fs};

    use crate::{
        backend::{LoadError, dequantized},
        builtin_model,
    };

    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::Output { path, source }
    };
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::Configuration(format!("{} is not empty", directory.display())));
    }
    for (name, bytes) in [builtin_model::FILES, builtin_model::LORAS, builtin_model::UPSCALERS].into_iter().flatten() {
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed(parent))?;
        }
        let bytes = if name.ends_with(".safetensors") {
            Cow::Owned(dequantized(bytes).map_err(|source| LoadError::BadWeights { path: name.into(), source })?)
        } else {
            Cow::Borrowed(*bytes)
        };
        fs::write(&path, bytes).map_err(failed(&path))?;
    }
    Ok(())
}
