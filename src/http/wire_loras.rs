//! The LoRAs of a request, in the spellings of several servers.

use serde::{Deserialize, de::IgnoredAny};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ArrayBuilder, ObjectBuilder, RefOr, Schema, Type, schema::AdditionalProperties},
};

use crate::common::{LoraScale, NamedLora};

/// Why an entry without a name is refused, and text in a form that is no list.
const EXPECTED: &str = "must be a list of LoRAs such as [{\"name\": \"pixel\", \"scale\": 0.8}]";

/// A list of LoRAs, or a single one.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "OneOrMany")]
pub(super) struct WireLoras(pub(super) Vec<NamedLora>);

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "must be a list of LoRAs such as [{\"name\": \"pixel\", \"scale\": 0.8}], with scales from -20 to 20 and no other fields"
)]
enum OneOrMany {
    Many(Vec<WireLora>),
    One(WireLora),
}

/// A LoRA by its name.
#[derive(Deserialize)]
#[serde(untagged)]
enum WireLora {
    Name(String),
    Scaled(ScaledLora),
}

/// A LoRA with its scale. A field that is none of these is refused: it may be a misspelled scale.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScaledLora {
    name: Option<String>,
    /// stable-diffusion.cpp's word. The name is looked up all the same, and never opened as a path.
    path: Option<String>,
    #[serde(alias = "multiplier", alias = "weight", alias = "strength")]
    scale: Option<LoraScale>,
    /// Of the text encoders, where it is another; answers have it.
    text_scale: Option<LoraScale>,
    /// What answers have, too.
    #[serde(rename = "hash")]
    _hash: Option<IgnoredAny>,
    /// stable-diffusion.cpp's, for models of two networks.
    #[serde(rename = "is_high_noise")]
    _is_high_noise: Option<bool>,
}

impl TryFrom<OneOrMany> for WireLoras {
    type Error = &'static str;

    fn try_from(loras: OneOrMany) -> Result<Self, &'static str> {
        let all = match loras {
            // A form has everything as text.
            OneOrMany::One(WireLora::Name(text)) if text.trim().is_empty() => Vec::new(),
            OneOrMany::One(WireLora::Name(text)) if text.trim_start().starts_with(['{', '[']) => {
                return serde_json::from_str(&text).map_err(|_| EXPECTED);
            }
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(all) => all,
        };
        all.into_iter().map(NamedLora::try_from).collect::<Result<_, _>>().map(Self)
    }
}

impl TryFrom<WireLora> for NamedLora {
    type Error = &'static str;

    fn try_from(lora: WireLora) -> Result<Self, &'static str> {
        let (name, scale, text_scale) = match lora {
            WireLora::Name(name) => (name, None, None),
            WireLora::Scaled(ScaledLora { name, path, scale, text_scale, .. }) => (name.or(path).ok_or(EXPECTED)?, scale, text_scale),
        };
        // Clients of stable-diffusion.cpp send file names.
        let name = name.strip_suffix(".safetensors").unwrap_or(&name).to_owned();
        let denoiser_scale = scale.unwrap_or(LoraScale::ONE);
        Ok(Self { name, text_scale: text_scale.unwrap_or(denoiser_scale), denoiser_scale })
    }
}

impl PartialSchema for WireLoras {
    fn schema() -> RefOr<Schema> {
        let scale = || ObjectBuilder::new().schema_type(Type::Number).minimum(Some(-20)).maximum(Some(20));
        let lora = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("name", ObjectBuilder::new().schema_type(Type::String))
            .property("scale", scale())
            .property("text_scale", scale())
            .required("name")
            .additional_properties(Some(AdditionalProperties::FreeForm(false)));
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
            (r#"{"name":"a","path":null,"hash":"0123"}"#, vec![of("a", 1.0)]),
            (r#"["a","b.safetensors"]"#, vec![of("a", 1.0), of("b", 1.0)]),
            (r#""a""#, vec![of("a", 1.0)]),
            (r#""[{\"name\":\"a\"}]""#, vec![of("a", 1.0)]),
            (r#"" ""#, vec![]),
            ("[]", vec![]),
        ] {
            assert_eq!(read(json), loras, "{json}");
        }
        let apart = &read(r#"[{"name":"a","scale":0.5,"text_scale":0}]"#)[0];
        assert_eq!((apart.denoiser_scale.get(), apart.text_scale.get()), (0.5, 0.0));
        for wrong in [
            r#"[{"name":"a","scale":21}]"#,
            r#"[{"scale":1}]"#,
            "1",
            r#"[{"name":"a","scale":"x"}]"#,
            r#"[{"name":"a","sclae":0.1}]"#,
            r#""{""#,
        ] {
            let error = serde_json::from_str::<WireLoras>(wrong).unwrap_err().to_string();
            assert!(error.contains("a list of LoRAs such as"), "{wrong}: {error}");
        }
    }
}
