//! Pictures inside requests: from text to files, and from files to pixels.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::Value;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::JoinError,
    time::timeout,
};

use super::{ApiError, MAX_UPLOAD_BYTES, extract};
use crate::{
    backend::InputFiles,
    common::{ImageSize, InputImage},
};

/// Pictures are decoded by so many at a time, so that their memory has a bound.
static DECODERS: Semaphore = Semaphore::const_new(2);

const KIB: usize = 1 << 10;

/// KiB of bodies that are taken in at a time, for the same reason: eight of the largest, or thousands of usual ones.
static ROOM: Semaphore = Semaphore::const_new(8 * MAX_UPLOAD_BYTES / KIB);

/// Room for the body of a request, until its pictures are decoded and all of this is dropped.
#[derive(Debug, Clone)]
pub(super) struct Room {
    _permit: Arc<SemaphorePermit<'static>>,
}

/// Lets a request wait for room for its body before any of that is read, so that its client waits with it.
pub(super) async fn make_room(State(patience): State<Duration>, mut request: Request, next: Next) -> Response {
    // One that is too long is refused unread, and needs none.
    let length = extract::length(request.headers()).unwrap_or(MAX_UPLOAD_BYTES);
    if length <= MAX_UPLOAD_BYTES {
        let Ok(Ok(permit)) = timeout(patience, ROOM.acquire_many(length.div_ceil(KIB) as u32)).await else {
            let refused = ApiError::too_many_uploads();
            refused.count_rejection();
            return refused.into_response();
        };
        request.extensions_mut().insert(Room { _permit: Arc::new(permit) });
    }
    next.run(request).await
}

/// As clients write it, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true),
);

/// How a picture in text is to be written, for error messages.
const AS_TEXT: &str = "must be a picture in base64, or a data: URL with one";

/// A picture in JSON: text, or an object with text as `OpenAI`'s API has it.
pub(super) fn from_json(param: &str, value: &Value) -> Result<Vec<u8>, ApiError> {
    let text = match value {
        Value::String(text) => Some(text.as_str()),
        Value::Object(object) => ["image_url", "b64_json"].iter().find_map(|name| object.get(*name)?.as_str()),
        _ => None,
    };
    from_text(param, text.ok_or_else(|| ApiError::invalid_param(param, AS_TEXT))?)
}

/// A picture in base64, alone or in a `data:` URL. Other URLs are not opened.
pub(super) fn from_text(param: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    let text = text.trim();
    let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    let encoded = match scheme.as_deref() {
        None => text,
        Some("data") => match text.split_once(";base64,") {
            Some((_, encoded)) => encoded,
            None => return Err(ApiError::invalid_param(param, &format!("{AS_TEXT}; this one has no ;base64, in it"))),
        },
        Some(_) => return Err(ApiError::invalid_param(param, &format!("{AS_TEXT}: this worker opens no links and no files"))),
    };
    // Some encoders break lines.
    let encoded: Vec<u8> = encoded.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(encoded).map_err(|error| ApiError::invalid_param(param, &format!("{AS_TEXT}; it cannot be decoded: {error}")))
}

/// Decodes pictures whose headers are known to be right, off the runtime's threads.
pub(super) async fn decode(files: InputFiles, size: ImageSize) -> Result<Arc<InputImage>, ApiError> {
    let decoded = in_turn(&DECODERS, move || files.decode(size)).await;
    Ok(Arc::new(decoded.map_err(|_| ApiError::unreadable_body("a picture in it cannot be decoded"))??))
}

/// Does what blocks under a permit. The work itself holds it: it goes on to its end, whether or not somebody still waits for that.
async fn in_turn<T: Send + 'static>(permits: &'static Semaphore, work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    // It is never closed.
    let permit = permits.acquire().await;
    tokio::task::spawn_blocking(move || (work(), permit)).await.map(|(done, _)| done)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use proptest::prelude::*;
    use tokio::sync::oneshot;

    use super::*;

    fn error(text: &str) -> String {
        from_text("image", text).unwrap_err().body().message.clone()
    }

    #[test]
    fn base64_is_read_as_clients_write_it() {
        for text in ["AAEC/w==", "AAEC/w", " AAEC\r\n/w==\n", "data:image/png;base64,AAEC/w==", "DATA:;base64,AAEC/w"] {
            assert_eq!(from_text("image", text).unwrap(), [0, 1, 2, 255], "{text}");
        }
        let object = serde_json::json!({ "image_url": "data:image/png;base64,AAEC/w==" });
        assert_eq!(from_json("image", &object).unwrap(), [0, 1, 2, 255]);
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
        for value in [serde_json::json!({ "file_id": "file-1" }), serde_json::json!(7), serde_json::json!([])] {
            assert!(from_json("image", &value).is_err(), "{value}");
        }
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_keeps_its_permit_to_its_end() {
        static PERMITS: Semaphore = Semaphore::const_new(1);
        let (started, has_started) = oneshot::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let waiting = tokio::spawn(in_turn(&PERMITS, move || {
            started.send(()).unwrap();
            may_end.recv()
        }));
        has_started.await.unwrap();
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        assert_eq!(PERMITS.available_permits(), 0);
        end.send(()).unwrap();
        assert!(PERMITS.acquire().await.is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = from_text("image", &text).is_ok();
        }
    }
}
