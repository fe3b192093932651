//! The control networks of a request, with the pictures that they look at.

use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ArrayBuilder, ObjectBuilder, RefOr, Schema, Type, schema::AdditionalProperties},
};

use super::{
    api_error::{self, ApiError},
    fields::{self, Listed},
    uploads,
};
use crate::{
    backend::{ImageFile, MAX_CONTROLS},
    common::{ControlKind, ControlScale, ControlSettings, ControlWindow, InvalidValue, Preprocess},
};

/// The field's name, also in errors.
const CONTROL: &str = "control";
/// Why a value of another form is refused.
const EXPECTED: &str = "It must be a list such as [{\"name\": \"canny\", \"image\": \"data:image/png;base64,…\", \"scale\": 0.8, \"start\": 0, \
                        \"end\": 1, \"guess_mode\": false, \"preprocess\": \"none\"}]";

/// The field in a request. [`read`] has taken the field itself out of it before: its pictures are large.
#[derive(Debug, Default)]
pub(super) struct WireControls(pub(super) Vec<ControlSettings>);

/// An entry. A field that is none of these is refused: it may be a misspelled scale.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireControl<'a> {
    #[serde(alias = "model")]
    name: String,
    #[serde(borrow)]
    image: Option<&'a RawValue>,
    #[serde(alias = "weight")]
    scale: Option<ControlScale>,
    #[serde(alias = "guidance_start")]
    start: Option<f64>,
    #[serde(alias = "guidance_end")]
    end: Option<f64>,
    guess_mode: Option<bool>,
    #[serde(alias = "module")]
    preprocess: Option<Preprocess>,
    #[serde(rename = "type", alias = "control_type")]
    kind: Option<ControlKind>,
}

/// Whether a field has control networks.
pub(super) fn is_control(name: &str) -> bool {
    matches!(name, "control" | "controls")
}

/// Reads the values of the field, each a list, a single entry, or, in a form, text with one of them. `files` are a form's pictures, for
/// entries that have none in the text, in their order.
pub(super) fn read<'a>(
    values: impl IntoIterator<Item = &'a RawValue>,
    files: Vec<Vec<u8>>,
) -> Result<(Vec<ControlSettings>, Vec<ImageFile>), ApiError> {
    let (mut all, mut pictures, mut files) = (Vec::new(), Vec::new(), files.into_iter());
    for value in values {
        fields::each_entry(value, |entry| {
            let Listed::Value(entry) = entry else { return Err(ApiError::invalid_param(CONTROL, EXPECTED)) };
            if all.len() == MAX_CONTROLS {
                return Err(ApiError::invalid_param(CONTROL, &format!("must have at most {MAX_CONTROLS} entries")));
            }
            let wrong = |reason: &str| ApiError::invalid_param(CONTROL, &format!("entry {}: {reason}", all.len() + 1));
            let control: WireControl = fields::entry(entry).map_err(|reason| wrong(&format!("{reason}. {EXPECTED}")))?;
            let bytes = match control.image.map(|image| uploads::from_json(CONTROL, image)).transpose()? {
                Some(bytes) => bytes,
                None => files.next().ok_or_else(|| wrong(&format!("\"{}\" has no image", api_error::clip(&control.name))))?,
            };
            pictures.push(ImageFile::open(CONTROL, bytes).map_err(|error| wrong(&format!("image {error}")))?);
            all.push(control.settings().map_err(|error| wrong(&format!("start and end {error}")))?);
            Ok(())
        })?;
    }
    if files.next().is_some() {
        return Err(ApiError::invalid_param("control_image", "must have one entry of `control` without an `image` for each file"));
    }
    Ok((all, pictures))
}

impl WireControl<'_> {
    fn settings(self) -> Result<ControlSettings, InvalidValue> {
        Ok(ControlSettings {
            name: self.name,
            scale: self.scale.unwrap_or(ControlScale::ONE),
            window: ControlWindow::new(self.start.unwrap_or(0.0), self.end.unwrap_or(1.0))?,
            guess_mode: self.guess_mode.unwrap_or(false),
            preprocess: self.preprocess.unwrap_or_default(),
            kind: self.kind,
        })
    }
}

impl<'de> Deserialize<'de> for WireControls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self::default())
    }
}

impl PartialSchema for WireControls {
    fn schema() -> RefOr<Schema> {
        let text = |what: &str| ObjectBuilder::new().schema_type(Type::String).description(Some(what));
        let number = |most: f64, what: &str| {
            ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).maximum(Some(most)).description(Some(what))
        };
        let guess_mode = "Whether the picture says more than the prompt: only the prompt's side of guidance sees it.";
        let control = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("name", text("One of the names in `controls` of `/v1/capabilities`. Also `model`."))
            .property("image", text("A PNG, JPEG or WebP file in base64, or a `data:` URL with one."))
            .property("scale", number(ControlScale::MAX, "How strongly it counts; 1 where it is left out. Also `weight`."))
            .property("start", number(1.0, "The share of the steps at which it begins to count. Also `guidance_start`."))
            .property("end", number(1.0, "The share of the steps at which it ends to count. Also `guidance_end`."))
            .property("guess_mode", ObjectBuilder::new().schema_type(Type::Boolean).description(Some(guess_mode)))
            .property(
                "preprocess",
                text("What is done to the picture first. Also `module`.").enum_values(Some(Preprocess::ALL.map(Preprocess::name))),
            )
            .property(
                "type",
                text("The kind of the picture, for networks that know several.").enum_values(Some(ControlKind::ALL.map(ControlKind::name))),
            )
            .required("name")
            .additional_properties(Some(AdditionalProperties::FreeForm(false)));
        ArrayBuilder::new().items(control).max_items(Some(MAX_CONTROLS)).into()
    }
}

impl ToSchema for WireControls {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG of one pixel.
    const DOT: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==";

    fn read_json(json: &str, files: usize) -> Result<(Vec<ControlSettings>, Vec<ImageFile>), String> {
        let value = RawValue::from_string(json.to_owned()).unwrap();
        let files = vec![uploads::from_text("image", DOT).unwrap(); files];
        read([&*value], files).map_err(|error| error.body().message.clone())
    }

    #[test]
    fn lists_single_entries_and_text_are_read() {
        let dot = format!(r#""image":"{DOT}""#);
        let plain = ControlSettings::new("a");
        let all = ControlSettings {
            scale: 0.5.try_into().unwrap(),
            window: ControlWindow::new(0.25, 0.75).unwrap(),
            guess_mode: true,
            preprocess: Preprocess::Canny,
            ..ControlSettings::new("b")
        };
        let long = format!(r#"{{"name":"b",{dot},"scale":0.5,"start":0.25,"end":0.75,"guess_mode":true,"preprocess":"canny"}}"#);
        let a1111 =
            format!(r#"{{"model":"b",{dot},"weight":0.5,"guidance_start":0.25,"guidance_end":0.75,"guess_mode":true,"module":"canny"}}"#);
        for (json, expected) in [
            (format!(r#"{{"name":"a",{dot}}}"#), vec![plain.clone()]),
            (format!(r#"[{{"name":"a",{dot}}},{long}]"#), vec![plain.clone(), all.clone()]),
            (a1111, vec![all]),
            (r#""[]""#.to_owned(), vec![]),
            (r#"" ""#.to_owned(), vec![]),
            ("[]".to_owned(), vec![]),
        ] {
            let (settings, pictures) = read_json(&json, 0).unwrap();
            assert_eq!((pictures.len(), settings), (expected.len(), expected), "{json}");
        }
        let of_form = r#""[{\"name\":\"a\"},{\"name\":\"a\"}]""#;
        assert_eq!(read_json(of_form, 2).unwrap().0, [plain.clone(), plain]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let entry = |more: &str| format!(r#"{{"name":"a","image":"{DOT}"{more}}}"#);
        for (json, files, reason) in [
            ("7".to_owned(), 0, "must be a list such as"),
            (r#""{""#.to_owned(), 0, "must be a list such as"),
            (r#"{"name":"a"}"#.to_owned(), 0, "entry 1: \"a\" has no image"),
            (r#"{"name":"a"}"#.to_owned(), 2, "one entry of `control` without an `image` for each file"),
            (r#"{"image":"x"}"#.to_owned(), 0, "missing field `name`"),
            (entry(r#","sclae":1"#), 0, "unknown field `sclae`"),
            (entry(r#","scale":11"#), 0, "entry 1: scale must be a number from 0 to 10, not 11. It must"),
            (entry(r#","guess_mode":1"#), 0, "entry 1: guess_mode: invalid type: integer `1`, expected a boolean. It must"),
            (
                entry(r#","start":0.8,"end":0.2"#),
                0,
                "entry 1: start and end must be two numbers from 0 to 1, the second no less than the first, not 0.8 and 0.2",
            ),
            (entry(r#","preprocess":"depth""#), 0, "entry 1: preprocess must be one of none, canny, invert, tile, not \"depth\""),
            (r#"{"name":"a","image":"http://example.com/x.png"}"#.to_owned(), 0, "this worker opens no links"),
            (r#"{"name":"a","image":"R0lGODlh"}"#.to_owned(), 0, "must be a PNG, JPEG or WebP file"),
        ] {
            let error = read_json(&json, files).unwrap_err();
            assert!(error.contains(reason), "{json}: {error}");
        }
        let many = vec![entry(""); MAX_CONTROLS + 1].join(",");
        assert!(read_json(&format!("[{many}]"), 0).unwrap_err().contains("at most 8"));
    }
}
