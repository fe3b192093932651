//! The fields of a JSON object, each with the text of its value. A body is parsed only as far as its fields need, and never into a tree of
//! everything.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor, value::MapDeserializer},
};
use serde_json::value::RawValue;
use serde_path_to_error::Track;

use super::{
    api_error::{self, ApiError},
    body_bytes::MAX_BODY_BYTES,
    json_error,
};

/// The most fields of an object, and the most entries of a list.
const MOST: usize = 256;
/// The deepest nesting of brackets: `serde_json`'s own limit.
const MAX_DEPTH: usize = 128;
/// Why a mask under an unknown name is refused.
const NO_MASK: &str = "is not where a mask is looked for: that is `mask` in /v1/images/edits, and `mask_image` in an image_inpaint job";
/// Why a picture that guides is refused under an unknown name.
const NO_GUIDE: &str = "is not where pictures that guide are looked for: that is `control` or `reference`, a list of objects; in a form, the list as text in \
                        one field, with the pictures in it or as files in `control_image[]` or `reference_image[]`";
/// The longest name of a field; every name with a meaning is shorter.
const MAX_NAME_BYTES: usize = 1024;

/// Fields in their order, each with the text of its value.
#[derive(Debug)]
pub(super) struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// The entries of a list.
struct Entries<'a>(Vec<&'a RawValue>);

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Fields<'a> {
    /// Reads the fields of an object.
    ///
    /// # Errors
    /// When the text is no JSON, no object, or has too many fields.
    pub(super) fn parse(text: &'a [u8]) -> Result<Self, ApiError> {
        check(text)?;
        serde_json::from_slice(text).map_err(|error| json_error::explain(&error, None))
    }

    /// Removes and returns the fields whose names satisfy `is_one`, with their values.
    pub(super) fn take(&mut self, is_one: impl Fn(&str) -> bool) -> Vec<(Cow<'a, str>, &'a RawValue)> {
        self.0.extract_if(.., |(name, value)| is_one(name) && value.get() != "null").collect()
    }

    /// The fields whose values are no longer than so many bytes.
    pub(super) fn short(&self, bytes: usize) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().filter(move |(_, value)| value.get().len() <= bytes).map(|(name, value)| (&**name, *value))
    }

    /// [`Fields::take`] for a field that may be there once.
    ///
    /// # Errors
    /// When there are several.
    pub(super) fn take_one(&mut self, is_one: impl Fn(&str) -> bool) -> Result<Option<&'a RawValue>, ApiError> {
        match &*self.take(is_one) {
            [] => Ok(None),
            [(_, value)] => Ok(Some(value)),
            [_, (twice, _), ..] => Err(ApiError::invalid_param(api_error::clip(twice), "must be given once")),
        }
    }

    /// Deserializes `T`, and returns the names of fields that `T` does not have and that would mean something.
    ///
    /// # Errors
    /// Names the field whose value is wrong, or a mask under an unknown name: ignoring the mask would repaint the whole picture.
    pub(super) fn read<T: Deserialize<'a>>(self) -> Result<(T, Vec<String>), ApiError> {
        let (mut track, mut unknown) = (Track::new(), Vec::new());
        for (name, value) in &self.0 {
            if value.get().len() > MAX_BODY_BYTES {
                return Err(ApiError::invalid_param(api_error::clip(name), &format!("must be at most {MAX_BODY_BYTES} bytes")));
            }
        }
        let values = MapDeserializer::new(self.0.iter().map(|(name, value)| (&**name, *value)));
        let values = serde_path_to_error::Deserializer::new(values, &mut track);
        let read = serde_ignored::deserialize(values, |path| unknown.push(path.to_string()));
        let read = read.map_err(|error: serde_json::Error| json_error::explain(&error, Some(&track.path())))?;

        let others = self.0.iter().filter(|(name, value)| has_meaning(name, value.get()) && unknown.iter().any(|other| other == name));
        if let Some((name, _)) = others.clone().find(|(name, value)| is_like_mask(name, value.get())) {
            return Err(ApiError::invalid_param(api_error::clip(name), NO_MASK));
        }
        if let Some((name, _)) = others.clone().find(|(name, _)| is_like_guide(name)) {
            return Err(ApiError::invalid_param(api_error::clip(name), NO_GUIDE));
        }
        let mut others: Vec<String> = others.map(|(name, _)| name.to_string()).collect();
        others.sort();
        match others.array_windows().find(|[one, other]| one == other) {
            Some([twice, _]) => Err(ApiError::invalid_param(api_error::clip(twice), "must be given once")),
            None => Ok((read, others)),
        }
    }
}

impl<'a> FromIterator<(&'a str, &'a RawValue)> for Fields<'a> {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a RawValue)>>(fields: I) -> Self {
        Self(fields.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

/// Whether an unknown field asks for anything but the default.
fn has_meaning(name: &str, value: &str) -> bool {
    let is_opaque = name == "background" && value == "\"opaque\"";
    !is_opaque && !matches!(value, "null" | "\"auto\"")
}

/// Whether a value holds a mask itself, rather than a number or a word about one.
fn is_like_mask(name: &str, value: &str) -> bool {
    const SHORT: usize = 64;
    name.to_ascii_lowercase().contains("mask") && (value.starts_with('{') || value.starts_with(['"', '[']) && value.len() > SHORT)
}

/// Whether a name is that of a picture that guides, in a spelling that is not read: ignoring it would change the result.
fn is_like_guide(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["control[", "controls[", "controlnet", "control_image", "reference[", "references[", "reference_image"]
        .iter()
        .any(|start| name.starts_with(start))
}

/// The entries of a list. Any other value is its own single entry.
///
/// # Errors
/// When the list has too many entries.
pub(super) fn entries(value: &RawValue) -> Result<Vec<&RawValue>, ApiError> {
    if !value.get().starts_with('[') {
        return Ok(vec![value]);
    }
    let entries: Entries = serde_json::from_str(value.get()).map_err(|error| json_error::explain(&error, None))?;
    Ok(entries.0)
}

/// An entry of a list that a client may write in several ways.
pub(super) enum Listed<'a> {
    /// Text that is no list in itself.
    Text(&'a str),
    /// Anything else.
    Value(&'a RawValue),
}

/// Deserializes an entry of a list.
///
/// # Errors
/// Says which field is wrong.
pub(super) fn entry<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Result<T, String> {
    let read = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(value.get()));
    read.map_err(|error| {
        let (path, text) = (error.path().to_string(), error.inner().to_string());
        // Its line and column help no one.
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        let text = text.replace("expected f64", "expected a number");
        let text = text.split_once(", expected struct ").map_or(text.as_str(), |(text, _)| text);
        match path.as_str() {
            "." => text.to_owned(),
            path if text.starts_with("must ") => format!("{path} {text}"),
            path if text.starts_with("unknown field") => text.replace(", expected one of", &format!(" ({path}); known are")),
            path => format!("{path}: {text}"),
        }
    })
}

/// Calls `read` with each entry of a list, with a single entry, or, as forms have them, with those of a list in text. Empty text has none.
///
/// # Errors
/// When a list has too many entries, and what `read` finds.
pub(super) fn each_entry(value: &RawValue, mut read: impl FnMut(Listed) -> Result<(), ApiError>) -> Result<(), ApiError> {
    for entry in entries(value)? {
        let Ok(text) = serde_json::from_str::<Cow<str>>(entry.get()) else {
            read(Listed::Value(entry))?;
            continue;
        };
        let text = text.trim();
        match serde_json::from_str::<&RawValue>(text).ok().filter(|_| text.starts_with(['[', '{'])) {
            Some(listed) => entries(listed)?.into_iter().try_for_each(|entry| read(Listed::Value(entry)))?,
            None if text.is_empty() => {}
            None => read(Listed::Text(text))?,
        }
    }
    Ok(())
}

/// Rejects text whose parsing would need more memory than the text itself: the parser keeps a note of each open bracket and a copy of a
/// name. The check itself allocates nothing.
fn check(text: &[u8]) -> Result<(), ApiError> {
    let (mut depth, mut start, mut length, mut is_text, mut is_escaped) = (0usize, 0, 0, false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => {
                (start, length) = if is_text { (start, at - start) } else { (at, 0) };
                is_text = !is_text;
            }
            _ if is_text => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b':' if length > MAX_NAME_BYTES => {
                return Err(ApiError::broken_json(&format!("the name of a field in it has more than {MAX_NAME_BYTES} bytes")));
            }
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(ApiError::broken_json(&format!("it has more than {MAX_DEPTH} brackets inside of each other")));
        }
    }
    Ok(())
}

struct Few<T>(PhantomData<T>);

impl<'de: 'a, 'a> Visitor<'de> for Few<Fields<'a>> {
    type Value = Fields<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'a>, A::Error> {
        let mut fields = Vec::new();
        while let Some((Name(name), value)) = map.next_entry()? {
            if fields.len() == MOST {
                return Err(A::Error::custom(format_args!("an object has at most {MOST} fields")));
            }
            fields.push((name, value));
        }
        Ok(Fields(fields))
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Few<Entries<'a>> {
    type Value = Entries<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries<'a>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = list.next_element()? {
            if entries.len() == MOST {
                return Err(A::Error::custom(format_args!("a list has at most {MOST} entries")));
            }
            entries.push(entry);
        }
        Ok(Entries(entries))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Few::<Self>(PhantomData))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Few::<Self>(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Known {
        #[serde(alias = "other_name")]
        number: Option<u8>,
        text: String,
    }

    fn read(text: &str) -> Result<(Known, Vec<String>), String> {
        Fields::parse(text.as_bytes()).and_then(Fields::read).map_err(|error| error.body().message.clone())
    }

    #[test]
    fn what_is_known_is_read_and_what_is_not_is_named() {
        let known = Known { number: Some(7), text: "a\"b".to_owned() };
        let text = r#"{"x": [{"y": 1}], "other_name": 7, "text": "a\"b", "z": null, "quality": "auto", "background": "opaque"}"#;
        assert_eq!(read(text).unwrap(), (known, vec!["x".to_owned()]));
        for (text, right) in [
            ("[]", "the body could not be read: invalid type: sequence, expected a JSON object"),
            (r#"{"number": 1, "other_name": 2}"#, "number must be given once"),
            (r#"{"number": "a"}"#, "number: invalid type: string \"a\", expected u8"),
            (r#"{"number": 1"#, "the body is not valid JSON: EOF while parsing an object at line 1 column 12"),
            ("{} {}", "the body is not valid JSON: trailing characters at line 1 column 4"),
        ] {
            assert_eq!(read(text).unwrap_err(), right, "{text}");
        }
    }

    #[test]
    fn a_body_is_bounded_in_fields_and_in_depth() {
        let many: Vec<String> = (0..=MOST).map(|i| format!("\"{i}\":0")).collect();
        assert!(read(&format!("{{{}}}", many[1..].join(","))).is_ok());
        assert!(read(&format!("{{{}}}", many.join(","))).unwrap_err().contains("at most 256 fields"));
        let nested = |depth: usize| format!("{{\"x\": {}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(read(&nested(MAX_DEPTH)).is_ok());
        assert!(read(&nested(MAX_DEPTH + 1)).unwrap_err().contains("more than 128 brackets inside of each other"));
        assert!(read(&format!("{{\"x\": \"{}\"}}", r#"[\"{"#.repeat(999))).is_ok(), "brackets in text are text");
        let named = |length: usize| format!("{{\"{}\": 1}}", "x".repeat(length));
        assert!(read(&named(MAX_NAME_BYTES)).is_err() && read(&named(MAX_NAME_BYTES - 1)).is_ok());
        assert!(read(&format!("{{\"text\": \"{}\"}}", "x".repeat(MAX_BODY_BYTES))).unwrap_err().contains("text must be at most"));
    }
}
