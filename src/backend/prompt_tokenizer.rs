//! From a prompt to the token ids of CLIP.

use std::{collections::BTreeMap, ops::Range};

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{AddedToken, Tokenizer};

use super::{
    GenerationError, LoadError, ModelFiles,
    learned_words::{LearnedWords, Piece},
    prompt_syntax::Span,
};

/// What CLIP takes for a word.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// The most chunks that a prompt becomes. Each costs time and memory in every step.
const MAX_CHUNKS: usize = 16;

/// CLIP's tokenizer, and how sequences are filled up.
#[derive(Debug)]
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    /// Every chunk is this long, as in diffusers: `padding="max_length"`.
    length: usize,
    start: u32,
    end: u32,
    pad: u32,
    learned: LearnedWords,
}

/// As much of a prompt as the text encoder reads at once.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chunk {
    /// Start, words, end, padding.
    pub(super) ids: Vec<u32>,
    /// The stress of each.
    pub(super) weights: Vec<f32>,
}

/// Of `tokenizer_config.json`, and of `special_tokens_map.json`.
#[derive(Deserialize)]
struct TokenizerConfig {
    bos_token: Option<TokenName>,
    pad_token: Option<TokenName>,
    eos_token: Option<TokenName>,
    added_tokens_decoder: Option<serde::de::IgnoredAny>,
}

impl TokenizerConfig {
    /// As transformers reads it: where `tokenizer_config.json` is from before it listed the added tokens, the other file overrides it.
    /// In Stable Diffusion 2 they differ in the padding.
    fn load(files: &ModelFiles, folder: &str) -> Result<Self, LoadError> {
        let read = |name: &str| -> Result<Self, LoadError> {
            let path = format!("{folder}/{name}");
            serde_json::from_slice(&files.read(&path)?).map_err(|e| LoadError::BadConfig { path: files.path(&path), reason: e.to_string() })
        };
        let config = read("tokenizer_config.json")?;
        let map = "special_tokens_map.json";
        if config.added_tokens_decoder.is_some() || !files.exists(&format!("{folder}/{map}")) {
            return Ok(config);
        }
        let map = read(map)?;
        Ok(Self {
            bos_token: map.bos_token.or(config.bos_token),
            pad_token: map.pad_token.or(config.pad_token),
            eos_token: map.eos_token.or(config.eos_token),
            added_tokens_decoder: None,
        })
    }
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
    /// Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, and `tokenizer_config.json` in a folder of a model; prompts become
    /// chunks of `length` tokens.
    ///
    /// # Errors
    /// When a file is missing or broken, or names a token that the vocabulary does not have.
    pub fn load(files: &ModelFiles, folder: &str, length: usize) -> Result<Self, LoadError> {
        let path = &format!("{folder}/tokenizer.json");
        let bad = |path: &str, reason: String| LoadError::BadConfig { path: files.path(path), reason };
        let mut tokenizer = if files.exists(path) || !files.exists(&format!("{folder}/vocab.json")) {
            Tokenizer::from_bytes(files.read(path)?).map_err(|e| bad(path, e.to_string()))?
        } else {
            from_vocab_and_merges(files, folder)?
        };
        // Length and padding are ours to decide: a file may carry what somebody last used.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| bad(path, e.to_string()))?;

        let config_path = &format!("{folder}/tokenizer_config.json");
        let config = TokenizerConfig::load(files, folder)?;
        let bos_token = config.bos_token.map_or_else(|| "<|startoftext|>".to_owned(), TokenName::text);
        let eos_token = config.eos_token.map_or_else(|| "<|endoftext|>".to_owned(), TokenName::text);
        let pad_token = config.pad_token.map_or_else(|| eos_token.clone(), TokenName::text);
        let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| bad(config_path, format!("the vocabulary has no token {token}")));
        let (start, end, pad) = (id(&bos_token)?, id(&eos_token)?, id(&pad_token)?);
        // As in transformers, a prompt may say it, and gets its id: in SDXL and Stable Diffusion 2, where it is an exclamation mark,
        // that is another one than of the word.
        tokenizer.add_special_tokens([AddedToken::from(pad_token, true)]).map_err(|e| bad(config_path, e.to_string()))?;
        Ok(Self { tokenizer, length, start, end, pad, learned: LearnedWords::default() })
    }

    /// The largest id that can come out, for checking it against an embedding.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// Makes `name` a word of the token ids `ids`.
    pub(super) fn learn(&mut self, name: &str, ids: Range<u32>) {
        self.learned.add(name, ids);
    }

    /// The most vectors that a learned word may have: it is not cut.
    #[must_use]
    pub fn room(&self) -> usize {
        // All of a chunk but its start and its end.
        self.length - 2
    }

    /// The chunks of a prompt, one or more for each section, and the end of it that did not fit into as many as there may be.
    ///
    /// # Errors
    /// When the tokenizer fails, which no text is known to make it do.
    pub(super) fn chunks(&self, sections: &[Vec<Span>]) -> Result<(Vec<Chunk>, Option<String>), GenerationError> {
        let mut chunks = Vec::new();
        for (i, section) in sections.iter().enumerate() {
            if chunks.len() == MAX_CHUNKS {
                return Ok((chunks, Some(text_of(&sections[i..].concat()).trim().to_owned())));
            }
            let mut words: Vec<(u32, f32)> = Vec::new();
            for (j, span) in section.iter().enumerate() {
                for (start, ids) in self.words(&span.text)? {
                    if words.len() + ids.len() > self.room() {
                        chunks.push(self.chunk(&std::mem::take(&mut words)));
                    }
                    if chunks.len() == MAX_CHUNKS {
                        // Places are in bytes of the text that was given, as long as nothing was normalised away; `get` makes sure.
                        let rest = span.text.get(start..).unwrap_or_default().to_owned();
                        let cut = rest + &text_of(&section[j + 1..]) + &text_of(&sections[i + 1..].concat());
                        return Ok((chunks, Some(cut.trim().to_owned())));
                    }
                    words.extend(ids.map(|id| (id, span.weight as f32)));
                }
            }
            chunks.push(self.chunk(&words));
        }
        Ok((chunks, None))
    }

    /// The words of a text, each with its place and its token ids: one, or several that stay together.
    fn words(&self, text: &str) -> Result<Vec<(usize, Range<u32>)>, GenerationError> {
        let mut words = Vec::new();
        for piece in self.learned.pieces(text) {
            match piece {
                Piece::Learned(at, ids) => words.push((at, ids)),
                Piece::Plain(at, plain) => {
                    let encoding = self.tokenizer.encode(plain, false).map_err(|e| GenerationError::Tokenizer(e.to_string()))?;
                    words.extend(encoding.get_ids().iter().zip(encoding.get_offsets()).map(|(id, (start, _))| (at + start, *id..*id + 1)));
                }
            }
        }
        Ok(words)
    }

    /// Where the text of a chunk ends.
    pub(super) fn end_of(&self, chunk: &Chunk) -> usize {
        chunk.ids.iter().position(|id| *id == self.end).unwrap_or_default()
    }

    fn chunk(&self, words: &[(u32, f32)]) -> Chunk {
        let (ids, weights): (Vec<u32>, Vec<f32>) = words.iter().copied().unzip();
        let mut chunk = Chunk { ids: [vec![self.start], ids, vec![self.end]].concat(), weights: [vec![1.0], weights].concat() };
        chunk.ids.resize(self.length, self.pad);
        chunk.weights.resize(self.length, 1.0);
        chunk
    }
}

/// The tokenizer of a model from before there was `tokenizer.json`, as transformers' `CLIPConverter` makes that of these files.
fn from_vocab_and_merges(files: &ModelFiles, folder: &str) -> Result<Tokenizer, LoadError> {
    let [vocab_path, merges_path] = ["vocab.json", "merges.txt"].map(|name| format!("{folder}/{name}"));
    let bad = |path: &str, reason: String| LoadError::BadConfig { path: files.path(path), reason };
    let vocab: BTreeMap<String, u32> = serde_json::from_slice(&files.read(&vocab_path)?).map_err(|e| bad(&vocab_path, e.to_string()))?;
    let merges = files.read(&merges_path)?;
    let merges = str::from_utf8(&merges).map_err(|e| bad(&merges_path, e.to_string()))?;
    let merges: Vec<&str> = merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
    let special = ["<|startoftext|>", "<|endoftext|>"].map(|token| {
        let id = vocab.get(token).ok_or_else(|| bad(&vocab_path, format!("the vocabulary has no token {token}")))?;
        Ok(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}))
    });
    let special: Vec<Value> = special.into_iter().collect::<Result<_, LoadError>>()?;
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "model": {
            "type": "BPE", "unk_token": "<|endoftext|>", "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges,
        },
    });
    Tokenizer::from_bytes(tokenizer.to_string()).map_err(|e| bad(&merges_path, e.to_string()))
}

fn text_of(section: &[Span]) -> String {
    section.iter().map(|span| span.text.as_str()).collect()
}
