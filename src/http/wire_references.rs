//! The pictures of a request that the model looks at beside the prompt.

use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ArrayBuilder, ObjectBuilder, RefOr, Schema, Type, schema::AdditionalProperties},
};

use super::{
    api_error::ApiError,
    fields::{self, Listed},
    uploads,
};
use crate::{
    backend::{ImageFile, MAX_REFERENCES},
    common::ControlScale,
};

/// The field's name, also in errors.
const REFERENCE: &str = "reference";
/// Why a value of another form is refused.
const EXPECTED: &str = "It must be a list such as [{\"image\": \"data:image/png;base64,…\", \"scale\": 0.6}]";

/// The field in a request. [`read`] has taken the field itself out of it before: its pictures are large.
#[derive(Debug, Default)]
pub(super) struct WireReferences(pub(super) Vec<ControlScale>);

/// An entry. A field that is none of these is refused: it may be a misspelled scale.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireReference<'a> {
    #[serde(borrow)]
    image: Option<&'a RawValue>,
    #[serde(alias = "weight")]
    scale: Option<ControlScale>,
}

/// Whether a field has such pictures.
pub(super) fn is_reference(name: &str) -> bool {
    matches!(name, "reference" | "references")
}

/// Reads the values of the field, each a list, a single entry, or, in a form, text with one of them. `files` are a form's pictures: those of
/// the entries that have none in the text, in their order, and then further ones.
pub(super) fn read<'a>(
    values: impl IntoIterator<Item = &'a RawValue>,
    files: Vec<Vec<u8>>,
) -> Result<(Vec<ControlScale>, Vec<ImageFile>), ApiError> {
    let (mut scales, mut pictures, mut files) = (Vec::new(), Vec::new(), files.into_iter());
    for value in values {
        fields::each_entry(value, |entry| {
            check_count(pictures.len() + 1)?;
            let wrong = |reason: &str| ApiError::invalid_param(REFERENCE, &format!("entry {}: {reason}", pictures.len() + 1));
            let reference = match entry {
                Listed::Text(text) => {
                    pictures.push(uploads::from_text(REFERENCE, text)?);
                    scales.push(ControlScale::ONE);
                    return Ok(());
                }
                Listed::Value(value) => fields::entry::<WireReference>(value),
            };
            let reference = reference.map_err(|reason| wrong(&format!("{reason}. {EXPECTED}")))?;
            let bytes = match reference.image.map(|image| uploads::from_json(REFERENCE, image)).transpose()? {
                Some(bytes) => bytes,
                None => files.next().ok_or_else(|| wrong("it has no image, here or among the files in reference_image[]"))?,
            };
            pictures.push(bytes);
            scales.push(reference.scale.unwrap_or(ControlScale::ONE));
            Ok(())
        })?;
    }
    pictures.extend(files);
    check_count(pictures.len())?;
    scales.resize(pictures.len(), ControlScale::ONE);
    let pictures = pictures.into_iter().map(|bytes| ImageFile::open(REFERENCE, bytes)).collect::<Result<_, _>>()?;
    Ok((scales, pictures))
}

fn check_count(count: usize) -> Result<(), ApiError> {
    let is_few = count <= MAX_REFERENCES;
    if is_few { Ok(()) } else { Err(ApiError::invalid_param(REFERENCE, &format!("must have at most {MAX_REFERENCES} entries"))) }
}

impl<'de> Deserialize<'de> for WireReferences {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self::default())
    }
}

impl PartialSchema for WireReferences {
    fn schema() -> RefOr<Schema> {
        let image = ObjectBuilder::new().schema_type(Type::String);
        let reference = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("image", image.description(Some("A PNG, JPEG or WebP file in base64, or a `data:` URL with one.")))
            .property("scale", ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).maximum(Some(ControlScale::MAX)))
            .additional_properties(Some(AdditionalProperties::FreeForm(false)));
        ArrayBuilder::new().items(reference).max_items(Some(MAX_REFERENCES)).into()
    }
}

impl ToSchema for WireReferences {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG of one pixel.
    const DOT: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";

    fn read_json(json: &str, files: usize) -> Result<Vec<f64>, String> {
        let value = RawValue::from_string(json.to_owned()).unwrap();
        let files = vec![uploads::from_text("image", DOT).unwrap(); files];
        let (scales, pictures) = read([&*value], files).map_err(|error| error.body().message.clone())?;
        assert_eq!(scales.len(), pictures.len());
        Ok(scales.into_iter().map(ControlScale::get).collect())
    }

    #[test]
    fn pictures_are_read_alone_in_lists_and_from_files() {
        for (json, files, scales) in [
            (format!(r#"[{{"image":"{DOT}","scale":0.5}},{{"image":"{DOT}"}}]"#), 0, vec![0.5, 1.0]),
            (format!(r#"{{"image":"{DOT}","weight":0.5}}"#), 0, vec![0.5]),
            (format!(r#"["{DOT}","data:image/png;base64,{DOT}"]"#), 0, vec![1.0, 1.0]),
            (format!("\"{DOT}\""), 0, vec![1.0]),
            (r#""[{\"scale\":0.25}]""#.to_owned(), 2, vec![0.25, 1.0]),
            (r#""""#.to_owned(), 1, vec![1.0]),
            ("[]".to_owned(), 0, vec![]),
        ] {
            assert_eq!(read_json(&json, files).unwrap(), scales, "{json}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (json, reason) in [
            ("7", "must be a list such as"),
            ("[{}]", "entry 1: it has no image, here or among"),
            (r#"[{"scale":11}]"#, "entry 1: scale must be a number from 0 to 10, not 11. It must"),
            (r#"["AAEC","AAEC","AAEC","AAEC","AAEC","AAEC","AAEC","AAEC","AAEC"]"#, "at most 8 entries"),
            (r#"[{"image":"x","sclae":1}]"#, "unknown field `sclae`"),
            (r#"["http://example.com/x.png"]"#, "this worker opens no links"),
            (r#"["R0lGODlh"]"#, "must be a PNG, JPEG or WebP file"),
        ] {
            let error = read_json(json, 0).unwrap_err();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }
}
