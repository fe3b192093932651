//! Prompts and negative prompts.

use std::str::FromStr;

use serde::Deserialize;

use super::InvalidValue;

/// `OpenAI`'s limit.
const MAX_CHARACTERS: usize = 32_000;

/// A prompt of 1 to 32,000 characters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Prompt(String);

/// What the picture does not show: nothing, or up to 32,000 characters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct NegativePrompt(String);

impl Prompt {
    /// No words: the picture shows whatever the model draws by itself.
    #[must_use]
    pub fn none() -> Self {
        Self(String::new())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl NegativePrompt {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Prompt {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let characters = text.chars().count();
        if text.trim().is_empty() || characters > MAX_CHARACTERS {
            let value = if characters > MAX_CHARACTERS { format!("{characters}") } else { "empty".to_owned() };
            return Err(InvalidValue::new("prompt", value, format!("1 to {MAX_CHARACTERS} characters")));
        }
        Ok(Self(text))
    }
}

impl TryFrom<String> for NegativePrompt {
    type Error = InvalidValue;

    fn try_from(text: String) -> Result<Self, InvalidValue> {
        let characters = text.chars().count();
        if characters > MAX_CHARACTERS {
            return Err(InvalidValue::new("negative_prompt", characters, format!("at most {MAX_CHARACTERS} characters")));
        }
        Ok(Self(text))
    }
}

impl FromStr for Prompt {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        text.to_owned().try_into()
    }
}

impl FromStr for NegativePrompt {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        text.to_owned().try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_have_1_to_32000_characters_whatever_their_bytes() {
        assert!("🦊".repeat(32_000).parse::<Prompt>().is_ok());
        assert_eq!("x".repeat(33_000).parse::<Prompt>().unwrap_err().to_string(), "must be 1 to 32000 characters, not 33000");
        assert_eq!(" \n".parse::<Prompt>().unwrap_err().to_string(), "must be 1 to 32000 characters, not empty");
        assert!("".parse::<NegativePrompt>().is_ok());
        assert!("x".repeat(33_000).parse::<NegativePrompt>().is_err());
    }
}
