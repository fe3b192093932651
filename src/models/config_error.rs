//! Configurations that cannot be used.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// A configuration that describes no network that can be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(super) fn unless(condition: bool, message: impl FnOnce() -> String) -> Result<(), Self> {
        if condition { Ok(()) } else { Err(Self(message())) }
    }

    /// Refuses a list, of a field that is one number in other checkpoints, that has not one value for each of `count` things.
    pub(super) fn unless_one_each<T>(name: &str, values: &[T], count: usize, what: &str) -> Result<(), Self> {
        Self::unless(values.len() == count, || format!("{name} has {} entries, but there are {count} {what}", values.len()))
    }

    /// The fields of a file. A field that is null counts as left out, unless null has a meaning in it.
    pub(super) fn read_fields(json: &[u8], meaningful_nulls: &[&str]) -> Result<serde_json::Map<String, Value>, Self> {
        let mut fields: serde_json::Map<String, Value> = serde_json::from_slice(json).map_err(|error| Self(error.to_string()))?;
        fields.retain(|name, value| !value.is_null() || meaningful_nulls.contains(&name.as_str()));
        Ok(fields)
    }

    /// The configuration that fields describe. An error names the field.
    pub(super) fn read<T: DeserializeOwned>(fields: Value) -> Result<T, Self> {
        serde_path_to_error::deserialize(fields).map_err(|error| Self(error.to_string()))
    }
}
