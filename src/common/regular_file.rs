//! Regular files. Opening a FIFO could wait for ever and reading a device might not end, so both are refused.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Opens a file for reading, following links. Returns its size in bytes as well.
///
/// # Errors
/// When it cannot be opened, or is a directory, a FIFO, a socket or a device.
pub fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    // `O_NONBLOCK` keeps the opening of a FIFO from waiting; it does not affect a regular file.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok((file, metadata.len()))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a directory, a FIFO or a device, and not a file"))
    }
}

/// Reads a file of at most `most` bytes.
///
/// # Errors
/// As [`open_regular`]; also when the file is larger, or there is no memory for it.
pub fn read_regular(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let (file, length) = open_regular(path)?;
    let too_large = |length: u64| io::Error::new(io::ErrorKind::FileTooLarge, format!("it has {length} bytes; at most {most} are read"));
    if length > most {
        return Err(too_large(length));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length as usize).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // The file may have grown meanwhile, and files in /proc report no size.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_large(bytes.len() as u64)) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, process::Command};

    use super::*;

    #[test]
    fn only_files_are_read_and_only_small_ones() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link, fifo) = (folder.path().join("file"), folder.path().join("link"), folder.path().join("fifo"));
        fs::write(&file, "12345").unwrap();
        symlink(&file, &link).unwrap();
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert_eq!(read_regular(&link, 5).unwrap(), b"12345");
        assert_eq!(open_regular(&file).unwrap().1, 5);
        assert_eq!(read_regular(&file, 4).unwrap_err().to_string(), "it has 5 bytes; at most 4 are read");
        for path in [fifo.as_path(), folder.path(), Path::new("/dev/zero")] {
            assert_eq!(read_regular(path, 5).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", path.display());
        }
        assert_eq!(read_regular(&folder.path().join("none"), 5).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
