//! The files that `generate` writes.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, IsTerminal, Write},
    path::{Path, PathBuf},
};

use super::Failure;
use crate::common::{ImageFormat, InvalidValue};

/// The file name that means stdout.
const STDOUT: &str = "-";

/// Where the pictures of a command go.
#[derive(Debug)]
pub(super) enum Output {
    /// New files in the working directory: `out.png`, or the first free of `out-1.png`, `out-2.png`, …
    Free,
    /// A named file; several pictures become `NAME-1`, `NAME-2`, …
    File { path: PathBuf, count: u8 },
    /// The process's stdout.
    Stdout,
}

impl Output {
    /// The destination of `count` pictures.
    ///
    /// # Errors
    /// When the folder does not exist, or stdout cannot take the pictures.
    pub(super) fn new(path: Option<&Path>, count: u8) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::Free) };
        if path != Path::new(STDOUT) {
            check_folder(path)?;
            return Ok(Self::File { path: path.to_owned(), count });
        }
        if count > 1 {
            return Err(InvalidValue::new("count", count, "1 where the picture goes to stdout").into());
        }
        if io::stdout().is_terminal() {
            return Err(InvalidValue::new("output", "-", "a file where stdout is a terminal, which shows no pictures").into());
        }
        Ok(Self::Stdout)
    }

    /// The format that the file's name implies.
    ///
    /// # Errors
    /// When the name implies none.
    pub(super) fn format(&self) -> Result<ImageFormat, InvalidValue> {
        let Self::File { path, .. } = self else { return Ok(ImageFormat::Png) };
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default();
        match extension.as_str() {
            "png" => Ok(ImageFormat::Png),
            "jpg" | "jpeg" => Ok(ImageFormat::Jpeg),
            "webp" => Ok(ImageFormat::Webp),
            _ => Err(InvalidValue::new("output", path.display(), "- or a file name that ends in .png, .jpg, .jpeg or .webp")),
        }
    }

    /// Writes a picture, and returns its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, index: u8, picture: &[u8]) -> Result<PathBuf, Failure> {
        match self {
            Self::Free => write_free(picture),
            Self::File { path, count: 1 } => write(path, picture).map(|()| path.clone()),
            Self::File { path, .. } => {
                let path = numbered(path, usize::from(index) + 1);
                write(&path, picture).map(|()| path)
            }
            Self::Stdout => {
                let mut stdout = io::stdout();
                stdout.write_all(picture).and_then(|()| stdout.flush()).map_err(failed(Path::new("stdout")))?;
                Ok("stdout".into())
            }
        }
    }
}

/// Checks, before the work is done, that the folder of the result exists.
///
/// # Errors
/// When it does not exist.
pub(super) fn check_folder(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::metadata(folder).map(drop).map_err(failed(path))
}

/// Replaces a file, completely or not at all. A link is followed to its file; a device or a pipe is written to directly.
///
/// # Errors
/// When the file cannot be written; the old one is then left as it was.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    // A dangling link has no old file to keep.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let before = fs::metadata(&target);
    let is_replaced =
        !target.is_symlink() && before.as_ref().map_or_else(|error| error.kind() == ErrorKind::NotFound, fs::Metadata::is_file);
    let written = if is_replaced { replace(&target, bytes, before.ok().as_ref()) } else { fs::write(&target, bytes) };
    written.map_err(failed(path))
}

fn replace(target: &Path, bytes: &[u8], before: Option<&fs::Metadata>) -> io::Result<()> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let beside = target.with_file_name(format!(".{name}.{}", std::process::id()));
    let mut file = match File::create_new(&beside) {
        Ok(file) => file,
        // The file may be writable in a folder that is not.
        Err(error) if before.is_some() && error.kind() == ErrorKind::PermissionDenied => return fs::write(target, bytes),
        Err(error) => return Err(error),
    };
    let mut fill = || {
        file.write_all(bytes)?;
        before.map_or(Ok(()), |before| file.set_permissions(before.permissions()))?;
        // Some file systems report a full disk only here.
        file.sync_all()?;
        fs::rename(&beside, target)
    };
    let written = fill().or_else(|error| match error.kind() {
        // A file that is a mount of its own, as in a container, can be written but not replaced.
        ErrorKind::ResourceBusy => fs::write(target, bytes),
        _ => Err(error),
    });
    let _ = fs::remove_file(&beside);
    written
}

fn write_free(bytes: &[u8]) -> Result<PathBuf, Failure> {
    let first = Path::new("out.png");
    for number in 0.. {
        let path = if number == 0 { first.to_owned() } else { numbered(first, number) };
        match File::create_new(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(&path)(error)),
            Ok(mut file) => {
                // A partial picture is removed.
                let written = file.write_all(bytes).inspect_err(|_| drop(fs::remove_file(&path)));
                return written.map_err(failed(&path)).map(|()| path);
            }
        }
    }
    Ok(first.to_owned())
}

/// `fox.png` becomes `fox-2.png`.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{number}.{extension}"))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure::Output { path, source }
}
