//! What enlarges the finished pictures of a request.

use serde::{Deserialize, Deserializer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type, schema::AdditionalProperties},
};

use super::object_or_text::{ObjectOrText, object_or_text, reason};
use crate::common::{RedrawSettings, Steps, Strength, UpscaleScale, UpscaleSettings};

/// The field in a request: an object or, in a form, text with one. Empty text is none.
#[derive(Debug, Clone)]
pub(super) struct WireUpscale(pub(super) Option<UpscaleSettings>);

/// The object. A field that is none of these is refused: it may be a misspelled one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parts {
    name: Option<String>,
    scale: Option<UpscaleScale>,
    strength: Option<Strength>,
    steps: Option<Steps>,
}

impl ObjectOrText for UpscaleSettings {
    type Parts = Parts;
    const EXPECTED: &'static str = "an object such as {\"name\": \"Lanczos\", \"scale\": 2}";

    fn of_parts(Parts { name, scale, strength, steps }: Parts) -> Result<Self, String> {
        let name = name.ok_or("name must be that of an upscaler, such as \"Lanczos\", not left out")?;
        let redraw = RedrawSettings::of(strength, steps).map_err(|error| reason(&error, "upscale"))?;
        Ok(Self { name, scale, redraw })
    }

    fn of_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error| reason(&error, "upscale"))
    }
}

impl<'de> Deserialize<'de> for WireUpscale {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object_or_text(deserializer).map(Self)
    }
}

impl PartialSchema for WireUpscale {
    fn schema() -> RefOr<Schema> {
        let name = "One of `upscalers` in the capabilities; with a strength also one of `latent_upscalers`.";
        let scale = "How much larger each side is; the network's own scale where it is left out, or 2.";
        let number = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(1)).maximum(Some(UpscaleScale::MAX));
        let strength = "How much of the enlarged picture is changed, where it is drawn again: from the noise level at which so much of a schedule is left.";
        let share = ObjectBuilder::new().schema_type(Type::Number).exclusive_minimum(Some(0)).maximum(Some(1));
        let steps = "The steps that are taken for that; as many as the first time where it is left out.";
        let whole = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).maximum(Some(Steps::MAX));
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("name", ObjectBuilder::new().schema_type(Type::String).description(Some(name)))
            .property("scale", number.description(Some(scale)))
            .property("strength", share.description(Some(strength)))
            .property("steps", whole.description(Some(steps)))
            .required("name")
            .additional_properties(Some(AdditionalProperties::FreeForm(false)))
            .into()
    }
}

impl ToSchema for WireUpscale {}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Option<UpscaleSettings>, String> {
        serde_json::from_str::<WireUpscale>(json).map(|upscale| upscale.0).map_err(|error| error.to_string())
    }

    #[test]
    fn objects_and_texts_are_read() {
        let settings = "a b,scale=2".parse().ok();
        for json in [r#"{"name": "a b", "scale": 2}"#, r#""{\"name\": \"a b\", \"scale\": 2.0}""#, r#"" a b,scale=2""#] {
            assert_eq!(read(json).unwrap(), settings, "{json}");
        }
        assert_eq!(read(r#"{"name": "a b", "scale": null}"#).unwrap(), "a b".parse().ok());
        assert_eq!(read(r#"" ""#).unwrap(), None);
        for (json, reason) in [
            ("2", "expected an object such as {\"name\": \"Lanczos\", \"scale\": 2}"),
            (r#"{"scale": 2}"#, "name must be that of an upscaler, such as \"Lanczos\", not left out"),
            (r#"{"name": "a", "scale": 9}"#, "must be a number from 1 to 8, not 9"),
            (r#""a,scale=0.5""#, "scale must be a number from 1 to 8, not 0.5"),
            (r#"{"name": "a", "factor": 2}"#, "unknown field `factor`, expected one of `name`, `scale`, `strength`, `steps`"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }
}
