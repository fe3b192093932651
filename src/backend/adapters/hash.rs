//! The hash by which other programs call an adapter file.

use std::io::{self, Read, Seek, SeekFrom};

use sha2::{Digest, Sha256};

/// Number of digits that A1111 and Civitai show.
pub(super) const SHORT: usize = 12;
/// Bytes that are read at once.
const BLOCK: usize = 1 << 20;

/// The first digits of the SHA-256 of all bytes behind the header, which stays the same when the header is edited. kohya's
/// `addnet_hash_safetensors`, which A1111 uses for `LoRA` files, and Civitai's `AutoV3`.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn hash_of_tensors(mut file: impl Read + Seek) -> io::Result<String> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    file.seek(SeekFrom::Start(u64::from_le_bytes(length).saturating_add(8)))?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; BLOCK]);
    loop {
        match file.read(&mut block)? {
            0 => break,
            count => hash.update(&block[..count]),
        }
    }
    let bytes = hash.finalize();
    Ok(bytes[..SHORT / 2].iter().fold(String::new(), |digits, byte| format!("{digits}{byte:02x}")))
}
