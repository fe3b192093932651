//! Whole numbers in JSON. 30 and 30.0 are the same number, and a program whose numbers are all floats writes the latter.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// A number without a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeNumber(i128);

impl<'de> Deserialize<'de> for WholeNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;

        impl Visitor<'_> for Whole {
            type Value = WholeNumber;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<WholeNumber, E> {
                Ok(WholeNumber(number.into()))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<WholeNumber, E> {
                Ok(WholeNumber(number.into()))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<WholeNumber, E> {
                let whole = number.fract() == 0.0 && number.is_finite();
                // A number outside this type's range is outside every setting's range, and must stay so.
                if whole { Ok(WholeNumber(number as i128)) } else { Err(E::invalid_type(Unexpected::Float(number), &self)) }
            }
        }

        deserializer.deserialize_any(Whole)
    }
}

impl From<WholeNumber> for i128 {
    fn from(number: WholeNumber) -> Self {
        number.0
    }
}

impl From<WholeNumber> for i64 {
    /// Saturates: no setting's range comes near the ends of the type.
    fn from(number: WholeNumber) -> Self {
        number.0.clamp(Self::MIN.into(), Self::MAX.into()) as Self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_of_zero_is_none() {
        let read = |json: &str| serde_json::from_str::<WholeNumber>(json).map(i128::from);
        for (json, number) in [("30", 30), ("30.0", 30), ("-1.0", -1), ("1e3", 1000), ("18446744073709551615", u64::MAX.into())] {
            assert_eq!(read(json).unwrap(), number, "{json}");
        }
        for (json, reason) in [
            ("1.5", "floating point `1.5`, expected a whole number"),
            ("\"1\"", "string \"1\", expected a whole number"),
            ("true", "boolean"),
        ] {
            assert!(read(json).unwrap_err().to_string().contains(reason), "{json}");
        }
        assert_eq!(i64::from(WholeNumber(i128::MAX)), i64::MAX);
    }
}
