//! Pictures in requests: from base64 text to files, and from files to pixels.

use std::{borrow::Cow, sync::Arc};

use base64::{
    DecodeSliceError, Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use image::RgbImage;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;
use tokio::sync::Semaphore;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

use super::{api_error::ApiError, off_thread::in_turn};
use crate::{
    backend::{ImageFile, InputFiles},
    common::{ImageSize, InputImages},
};

/// At most two pictures are decoded at a time, which bounds their memory.
static DECODERS: Semaphore = Semaphore::const_new(2);

/// Base64 with or without padding, as clients send it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true),
);

/// How a picture is written in text, for error messages.
const AS_TEXT: &str = "must be a picture in base64, or a data: URL with one";
/// How many letters of base64 are decoded at a time; a multiple of 4.
const LETTERS: usize = 4096;

/// A picture as an object, as in `OpenAI`'s API.
#[derive(Deserialize)]
struct Linked<'a> {
    #[serde(borrow, alias = "b64_json")]
    image_url: Option<&'a RawValue>,
}

/// A picture in a request, which has been taken out of it before its other fields are read: pictures are large.
#[derive(Debug, Default)]
pub(super) struct TakenPicture;

impl<'de> Deserialize<'de> for TakenPicture {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl PartialSchema for TakenPicture {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).into()
    }
}

impl ToSchema for TakenPicture {}

/// Reads a picture from a JSON string, or from an object that holds one.
pub(super) fn from_json(param: &str, value: &RawValue) -> Result<Vec<u8>, ApiError> {
    let text = value.get();
    if let Some(text) = quoted(text) {
        return from_text(param, &unescaped(param, text)?);
    }
    let linked = serde_json::from_str(text).ok().and_then(|linked: Linked| quoted(linked.image_url?.get()));
    from_text(param, &unescaped(param, linked.ok_or_else(|| ApiError::invalid_param(param, AS_TEXT))?)?)
}

/// The text between quotes, if there are quotes.
fn quoted(text: &str) -> Option<&str> {
    text.strip_prefix('"')?.strip_suffix('"')
}

/// Resolves the escape sequences that base64 and URLs may contain: some encoders write `\/` for a slash, or `\u002B` for a plus.
fn unescaped<'a>(param: &str, text: &'a str) -> Result<Cow<'a, str>, ApiError> {
    let Some(first) = text.find('\\') else { return Ok(Cow::Borrowed(text)) };
    let mut plain = String::new();
    plain.try_reserve_exact(text.len()).map_err(|_| ApiError::no_memory_for_body())?;
    plain.push_str(&text[..first]);
    let mut letters = text[first..].chars();
    while let Some(letter) = letters.next() {
        let letter = match letter {
            '\\' => match letters.next() {
                Some('/') => Some('/'),
                Some('n' | 'r' | 't') => Some(' '),
                Some('u') => escaped(&mut letters),
                _ => None,
            },
            letter => Some(letter),
        };
        let odd = || ApiError::invalid_param(param, &format!("{AS_TEXT}; this one has an escape sequence that neither has"));
        plain.push(letter.ok_or_else(odd)?);
    }
    Ok(Cow::Owned(plain))
}

/// The ASCII character that the four digits of a `\u` sequence stand for.
fn escaped(letters: &mut std::str::Chars) -> Option<char> {
    let (digits, rest) = letters.as_str().split_at_checked(4)?;
    let code = u8::from_str_radix(digits, 16).ok().filter(u8::is_ascii)?;
    *letters = rest.chars();
    Some(code.into())
}

/// Decodes a picture in base64, alone or in a `data:` URL. No other URL is opened.
pub(super) fn from_text(param: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    let text = text.trim();
    let encoded = match text.split_once(':') {
        None => text,
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("data") => match text.split_once(";base64,") {
            Some((_, encoded)) => encoded,
            None => return Err(ApiError::invalid_param(param, &format!("{AS_TEXT}; this one has no ;base64, in it"))),
        },
        Some(_) => return Err(ApiError::invalid_param(param, &format!("{AS_TEXT}: this worker opens no links and no files"))),
    };
    decode_base64(param, encoded)
}

/// Decodes base64 with line breaks in it. The memory for the result is reserved first.
fn decode_base64(param: &str, encoded: &str) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(encoded.len() / 4 * 3 + LETTERS).map_err(|_| ApiError::no_memory_for_body())?;
    let mut letters = encoded.bytes().filter(|byte| !byte.is_ascii_whitespace());
    let mut lot = [0; LETTERS];
    loop {
        let count = lot.iter_mut().zip(&mut letters).map(|(place, letter)| *place = letter).count();
        let start = bytes.len();
        bytes.resize(start + LETTERS / 4 * 3, 0);
        let decoded = BASE64.decode_slice(&lot[..count], &mut bytes[start..]);
        let decoded = decoded.map_err(|error| {
            let reason = if let DecodeSliceError::DecodeError(reason) = error { reason.to_string() } else { error.to_string() };
            ApiError::invalid_param(param, &format!("{AS_TEXT}; it cannot be decoded: {reason}"))
        });
        bytes.truncate(start + decoded?);
        if count < LETTERS {
            return Ok(bytes);
        }
    }
}

/// Decodes pictures whose headers have been checked, on another thread.
pub(super) async fn decode(files: InputFiles, size: ImageSize, reference_side: u32) -> Result<Arc<InputImages>, ApiError> {
    if files.is_empty() {
        return Ok(Arc::default());
    }
    let decoded = in_turn(&DECODERS, move || files.decode(size, reference_side)).await;
    Ok(Arc::new(decoded.map_err(|_| ApiError::unreadable_body("a picture in it cannot be decoded"))??))
}

/// Decodes a picture whose header has been checked as it is, on another thread.
pub(super) async fn decode_whole(file: ImageFile) -> Result<RgbImage, ApiError> {
    let decoded = in_turn(&DECODERS, move || file.pixels()).await;
    Ok(decoded.map_err(|_| ApiError::unreadable_body("a picture in it cannot be decoded"))??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        from_text("image", text).unwrap_err().body().message.clone()
    }

    #[test]
    fn base64_is_read_as_clients_write_it() {
        for text in ["AAEC/w==", "AAEC/w", " AAEC\r\n/w==\n", "data:image/png;base64,AAEC/w==", "DATA:;base64,AAEC/w"] {
            assert_eq!(from_text("image", text).unwrap(), [0, 1, 2, 255], "{text}");
        }
        for json in [
            r#""AAEC/w==""#,
            r#""AAEC\/w==""#,
            r#""AAEC\u002Fw\u003d\u003D""#,
            r#""\r\nAAEC\n/w""#,
            r#"{"image_url": "data:image\/png;base64,AAEC\/w=="}"#,
            r#"{"b64_json": "AAEC/w"}"#,
        ] {
            assert_eq!(from_json("image", &raw(json)).unwrap(), [0, 1, 2, 255], "{json}");
        }
    }

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn bytes_of_any_length_come_back(bytes in prop::collection::vec(any::<u8>(), 0..3 * LETTERS), every in 1usize..200) {
            use base64::prelude::BASE64_STANDARD;
            let mut text = BASE64_STANDARD.encode(&bytes);
            prop_assert_eq!(&from_text("image", &text).unwrap(), &bytes);
            for at in (0..text.len()).step_by(every).rev() {
                text.insert(at, '\n');
            }
            prop_assert_eq!(from_text("image", &text).unwrap(), bytes);
        }
    }

    #[test]
    fn links_and_files_are_not_opened() {
        for link in ["http://127.0.0.1/x.png", "HTTPS://example.com/x.png", "file:///etc/passwd", "ftp://x", "C:\\x.png", "blob:x"] {
            assert!(error(link).ends_with("this worker opens no links and no files"), "{link}: {}", error(link));
        }
        for path in ["/etc/passwd.png", "../x.png", "~/x"] {
            assert!(error(path).contains("cannot be decoded"), "{path}: {}", error(path));
        }
        assert!(error("data:image/png,AAEC").contains("has no ;base64,"));
        for json in [r#"{"file_id": "file-1"}"#, r#"{"image_url": 7}"#, "7", "[]", "null", r#""\u00e4AEC""#, r#""AAEC\ud83d\ude00AAA""#] {
            assert!(from_json("image", &raw(json)).is_err(), "{json}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = from_text("image", &text).is_ok();
        }
    }
}
