//! The LoRAs of a request, in the spellings of several servers.

use serde::Deserialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ArrayBuilder, ObjectBuilder, RefOr, Schema, Type},
};

use crate::common::{LoraScale, NamedLora};

/// A list of LoRAs, or a single one.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "OneOrMany")]
pub(super) struct WireLoras(pub(super) Vec<NamedLora>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "a list of LoRAs such as [{\"name\": \"pixel\", \"scale\": 0.8}] with scales from -20 to 20")]
enum OneOrMany {
    Many(Vec<WireLora>),
    One(WireLora),
}

/// A LoRA by its name.
#[derive(Deserialize)]
#[serde(untagged)]
enum WireLora {
    Name(String),
    Scaled {
        /// stable-diffusion.cpp says `path`; a name is looked up all the same, and never opened as a path.
        #[serde(alias = "path")]
        name: String,
        #[serde(alias = "multiplier", alias = "weight", alias = "strength")]
        scale: Option<LoraScale>,
    },
}

impl From<OneOrMany> for WireLoras {
    fn from(loras: OneOrMany) -> Self {
        let all = match loras {
            OneOrMany::Many(all) => all,
            OneOrMany::One(one) => vec![one],
        };
        Self(all.into_iter().map(NamedLora::from).collect())
    }
}

impl From<WireLora> for NamedLora {
    fn from(lora: WireLora) -> Self {
        match lora {
            WireLora::Name(name) => Self::new(&name, LoraScale::ONE),
            // Clients of stable-diffusion.cpp send file names.
            WireLora::Scaled { name, scale } => {
                Self::new(name.strip_suffix(".safetensors").unwrap_or(&name), scale.unwrap_or(LoraScale::ONE))
            }
        }
    }
}

impl PartialSchema for WireLoras {
    fn schema() -> RefOr<Schema> {
        let scale = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(-20)).maximum(Some(20));
        let lora = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("name", ObjectBuilder::new().schema_type(Type::String))
            .property("scale", scale)
            .required("name");
        ArrayBuilder::new().items(lora).into()
    }
}

impl ToSchema for WireLoras {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_single_ones_are_read_in_the_spellings_of_several_servers() {
        let read = |json: &str| serde_json::from_str::<WireLoras>(json).unwrap().0;
        let of = |name: &str, scale: f64| NamedLora::new(name, scale.try_into().unwrap());
        for (json, loras) in [
            (r#"[{"name":"a","scale":0.5},{"name":"b"}]"#, vec![of("a", 0.5), of("b", 1.0)]),
            (r#"[{"path":"a.safetensors","multiplier":-1,"is_high_noise":false}]"#, vec![of("a", -1.0)]),
            (r#"{"name":"a","scale":2}"#, vec![of("a", 2.0)]),
            (r#"{"name":"a","path":null}"#, vec![]),
            (r#"["a","b"]"#, vec![of("a", 1.0), of("b", 1.0)]),
            (r#""a""#, vec![of("a", 1.0)]),
            ("[]", vec![]),
        ] {
            if loras.is_empty() && json != "[]" {
                assert!(serde_json::from_str::<WireLoras>(json).is_err(), "{json}");
            } else {
                assert_eq!(read(json), loras, "{json}");
            }
        }
        for wrong in [r#"[{"name":"a","scale":21}]"#, r#"[{"scale":1}]"#, "1", r#"[{"name":"a","scale":"x"}]"#] {
            let error = serde_json::from_str::<WireLoras>(wrong).unwrap_err().to_string();
            assert!(error.contains("a list of LoRAs such as"), "{wrong}: {error}");
        }
    }
}
