//! The cache of features that a request asks for.

use serde::{Deserialize, Deserializer};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type, schema::AdditionalProperties},
};

use super::object_or_text::{ObjectOrText, object_or_text, reason};
use crate::common::{CacheKind, CacheParts, FeatureCache, WholeNumber};

/// The field in a request: an object or, in a form, text with one. Empty text is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct WireCache(pub(super) Option<FeatureCache>);

/// The object. A field that is none of these is refused: it may be a misspelled one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parts {
    kind: Option<String>,
    interval: Option<WholeNumber>,
    threshold: Option<f64>,
    start: Option<f64>,
    end: Option<f64>,
}

impl ObjectOrText for FeatureCache {
    type Parts = Parts;
    const EXPECTED: &'static str = "an object such as {\"kind\": \"deep\", \"interval\": 3} or {\"kind\": \"deep\", \"threshold\": 0.1}";

    fn of_parts(parts: Parts) -> Result<Self, String> {
        let Parts { kind, interval, threshold, start, end } = parts;
        let parts = CacheParts { kind, interval: interval.map(i64::from), threshold, start, end };
        Self::try_from(parts).map_err(|error| reason(&error, "cache"))
    }

    fn of_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error| reason(&error, "cache"))
    }
}

impl<'de> Deserialize<'de> for WireCache {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object_or_text(deserializer).map(Self)
    }
}

impl PartialSchema for WireCache {
    fn schema() -> RefOr<Schema> {
        let number = |kind: Type, from: f64, to: f64, what: &str| {
            ObjectBuilder::new().schema_type(kind).minimum(Some(from)).maximum(Some(to)).description(Some(what))
        };
        let kind = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(CacheKind::ALL.map(CacheKind::name)));
        let interval = "Every such evaluation of the network is full. Without `threshold`.";
        let threshold =
            "An evaluation is full if the latents have changed by more than this share since the latest full one. Without `interval`.";
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("kind", kind.description(Some("Which features are kept.")))
            .property("interval", number(Type::Integer, 2.0, FeatureCache::MAX_INTERVAL as f64, interval))
            .property("threshold", number(Type::Number, 0.0, 1.0, threshold))
            .property("start", number(Type::Number, 0.0, 1.0, "The share of the steps before which all are full."))
            .property("end", number(Type::Number, 0.0, 1.0, "The share of the steps after which all are full."))
            .required("kind")
            .additional_properties(Some(AdditionalProperties::FreeForm(false)))
            .into()
    }
}

impl ToSchema for WireCache {}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Option<FeatureCache>, String> {
        serde_json::from_str::<WireCache>(json).map(|cache| cache.0).map_err(|error| error.to_string())
    }

    #[test]
    fn objects_and_texts_are_read() {
        let cache: FeatureCache = "deep,interval=3,end=0.8".parse().unwrap();
        for json in [
            r#"{"kind": "deep", "interval": 3, "end": 0.8}"#,
            r#"{"kind": "deep", "interval": 3.0, "threshold": null, "start": 0, "end": 0.8}"#,
            r#""{\"kind\": \"deep\", \"interval\": 3, \"end\": 0.8}""#,
            r#""deep,interval=3,end=0.8""#,
        ] {
            assert_eq!(read(json).unwrap(), Some(cache), "{json}");
        }
        assert_eq!(read(r#"" ""#).unwrap(), None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (json, reason) in [
            ("3", "invalid type: integer `3`, expected an object such as {\"kind\": \"deep\", \"interval\": 3}"),
            ("{}", "kind must be deep, not left out"),
            (r#"{"kind": "ucache", "interval": 3}"#, "kind must be deep, not \"ucache\""),
            (r#"{"kind": "deep"}"#, "must be given with interval or threshold, such as deep,interval=3, not neither"),
            (r#"{"kind": "deep", "interval": 3, "threshold": 0.1}"#, "must be given with interval or threshold, not both"),
            (r#"{"kind": "deep", "interval": 1}"#, "interval must be a whole number from 2 to 20, not 1"),
            (r#"{"kind": "deep", "interval": 2.5}"#, "expected a whole number"),
            (r#"{"kind": "deep", "threshold": 1.5}"#, "threshold must be a number from 0 to 1, not 1.5"),
            (r#"{"kind": "deep", "intervall": 3}"#, "unknown field `intervall`, expected one of `kind`, `interval`, `threshold`"),
            (r#"{"kind": "deep", "interval": 3, "start": 0.8, "end": 0.2}"#, "start and end must be two numbers from 0 to 1"),
            (r#""{\"kind\": 7}""#, "expected a string"),
            (r#""deep""#, "given with interval or threshold"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(reason), "{json}: {error}");
        }
    }
}
