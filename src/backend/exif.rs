//! Parameters in JPEG and WebP files: the `UserComment` of their EXIF data, as A1111 writes and reads it.

use std::io::Cursor;

use exif::{Context, Field, In, Reader, Tag, Value, experimental::Writer};

/// What precedes text in UTF-16, and, by A1111's library, its higher bytes come first.
const UNICODE: &[u8; 8] = b"UNICODE\0";
const ASCII: &[u8; 8] = b"ASCII\0\0\0";

/// EXIF data with a comment. None if it cannot be written.
pub(super) fn with_comment(text: &str) -> Option<Vec<u8>> {
    let comment = UNICODE.iter().copied().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    let field = Field { tag: Tag::UserComment, ifd_num: In::PRIMARY, value: Value::Undefined(comment, 0) };
    let (mut writer, mut data) = (Writer::new(), Cursor::new(Vec::new()));
    writer.push_field(&field);
    writer.write(&mut data, false).ok()?;
    Some(data.into_inner())
}

/// The comment of EXIF data, if it has one.
pub(super) fn comment(data: Vec<u8>) -> Option<String> {
    let exif = Reader::new().read_raw(data).ok()?;
    let field = exif.fields().find(|field| field.tag.context() == Context::Exif && field.tag == Tag::UserComment)?;
    let Value::Undefined(comment, _) = &field.value else { return None };
    match comment.split_first_chunk()? {
        (UNICODE, text) => {
            let units: Vec<u16> = text.as_chunks().0.iter().map(|unit| u16::from_be_bytes(*unit)).collect();
            Some(String::from_utf16_lossy(&units))
        }
        (ASCII, text) => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_comment_comes_back(text in "(?s).{0,60}") {
            prop_assert_eq!(comment(with_comment(&text).unwrap()), Some(text));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = comment([b"MM\0*\0\0\0\x08", &bytes[..]].concat());
        }
    }
}
