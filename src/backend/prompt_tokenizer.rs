//! From a prompt to the token ids of CLIP.

use serde::Deserialize;
use tokenizers::Tokenizer;

use super::{GenerationError, LoadError, ModelFiles};

/// CLIP's tokenizer, and how sequences are filled up.
#[derive(Debug)]
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    /// Every prompt is this long, as in diffusers: `padding="max_length", truncation=True`.
    length: usize,
    end: u32,
    pad: u32,
}

/// A prompt as the text encoder reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIds {
    /// Start, prompt, end, padding.
    pub ids: Vec<u32>,
    /// The end of the prompt that did not fit.
    pub cut: Option<String>,
}

#[derive(Deserialize)]
struct TokenizerConfig {
    pad_token: Option<TokenName>,
    eos_token: Option<TokenName>,
}

/// A token is written as its text, or as an object around it.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenName {
    Plain(String),
    Added { content: String },
}

impl TokenName {
    fn text(self) -> String {
        match self {
            Self::Plain(text) | Self::Added { content: text } => text,
        }
    }
}

impl PromptTokenizer {
    /// Reads `tokenizer/tokenizer.json` and `tokenizer_config.json`; prompts become `length` tokens.
    ///
    /// # Errors
    /// When a file is missing or broken, or names a token that the vocabulary does not have.
    pub fn load(files: &ModelFiles, length: usize) -> Result<Self, LoadError> {
        let path = "tokenizer/tokenizer.json";
        let bad = |path: &str, reason: String| LoadError::BadConfig { path: files.path(path), reason };
        let mut tokenizer = Tokenizer::from_bytes(files.read(path)?).map_err(|e| bad(path, e.to_string()))?;
        // Length and padding are ours to decide: a file may carry what somebody last used.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| bad(path, e.to_string()))?;

        let config_path = "tokenizer/tokenizer_config.json";
        let config: TokenizerConfig = serde_json::from_slice(&files.read(config_path)?).map_err(|e| bad(config_path, e.to_string()))?;
        let eos_token = config.eos_token.map_or_else(|| "<|endoftext|>".to_owned(), TokenName::text);
        let pad_token = config.pad_token.map_or_else(|| eos_token.clone(), TokenName::text);
        let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| bad(config_path, format!("the vocabulary has no token {token}")));
        let (end, pad) = (id(&eos_token)?, id(&pad_token)?);
        Ok(Self { tokenizer, length, end, pad })
    }

    /// The largest id that can come out, for checking it against an embedding.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Start, prompt, end, padding.
    ///
    /// # Errors
    /// When the tokenizer fails, which no text is known to make it do.
    pub fn encode(&self, prompt: &str) -> Result<TokenIds, GenerationError> {
        let encoding = self.tokenizer.encode(prompt, true).map_err(|e| GenerationError::Tokenizer(e.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        let mut cut = None;
        if ids.len() > self.length {
            // Offsets are in bytes of the text that was given, as long as nothing was normalised away; `get` makes sure.
            let from = encoding.get_offsets()[self.length - 1].0;
            cut = Some(prompt.get(from..).unwrap_or_default().trim().to_owned());
            ids.truncate(self.length - 1);
            ids.push(self.end);
        }
        ids.resize(self.length, self.pad);
        Ok(TokenIds { ids, cut })
    }
}
