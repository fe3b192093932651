//! Settings that a request gives as an object or, in a form, as text.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::common::InvalidValue;

/// Settings that are read from the fields of an object, or from text as the command line has it.
pub(super) trait ObjectOrText: Sized {
    /// The object.
    type Parts: DeserializeOwned;
    /// What is expected, for messages.
    const EXPECTED: &'static str;

    /// # Errors
    /// Says which field is wrong.
    fn of_parts(parts: Self::Parts) -> Result<Self, String>;

    /// # Errors
    /// Says what is wrong.
    fn of_text(text: &str) -> Result<Self, String>;
}

/// Deserializes an object, or text with an object or with the settings as the command line has them. Empty text is none.
pub(super) fn object_or_text<'de, T: ObjectOrText, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    struct Either<T>(PhantomData<T>);

    impl<'de, T: ObjectOrText> Visitor<'de> for Either<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::EXPECTED)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<T>, A::Error> {
            let parts = T::Parts::deserialize(MapAccessDeserializer::new(map))?;
            T::of_parts(parts).map(Some).map_err(A::Error::custom)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Option<T>, E> {
            let settings = match text.trim() {
                "" => return Ok(None),
                json if json.starts_with('{') => T::of_parts(serde_json::from_str(json).map_err(E::custom)?),
                spelled => T::of_text(spelled),
            };
            settings.map(Some).map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Either(PhantomData))
}

/// An error about settings under the name `settings`, after the name of the field that it is about if that is one inside of them.
pub(super) fn reason(error: &InvalidValue, settings: &str) -> String {
    if error.name == settings { error.to_string() } else { format!("{} {error}", error.name) }
}
