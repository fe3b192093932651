//! From a prompt to the token ids of CLIP.

use std::{collections::BTreeMap, ops::Range};

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{AddedToken, Tokenizer};

use super::{
    chunks::{Word, spread},
    learned_words::{LearnedWords, Piece},
    syntax::{BREAK, Span},
};
use crate::backend::{GenerationError, LoadError, ModelFiles};

/// CLIP's pattern of a word.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// Some editors begin a file with it.
const BYTE_ORDER_MARK: char = '\u{feff}';
/// The file of added tokens, for tokenizers whose configuration does not list them.
const ADDED_TOKENS: &str = "added_tokens.json";
/// The token of a comma.
const COMMA: &str = ",</w>";
/// The deepest nesting of `tokenizer.json`. CLIP's has 5 levels.
const MAX_NESTING: usize = 16;
/// A text that a tokenizer must read when it is loaded.
const TRIAL: &str = "A fox's 2 <|endoftext|> ünder,  🍓!";
/// The most chunks of a prompt. Each costs time and memory in every step.
const MAX_CHUNKS: usize = 16;

/// CLIP's tokenizer, with the padding of chunks.
#[derive(Debug)]
pub struct PromptTokenizer {
    tokenizer: Tokenizer,
    /// Length of every chunk, as with diffusers' `padding="max_length"`.
    length: usize,
    start: u32,
    end: u32,
    pad: u32,
    /// The token after which a full chunk may end.
    comma: Option<u32>,
    learned: LearnedWords,
}

/// The tokens that the text encoder reads at once.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chunk {
    /// Start, words, end, padding.
    pub(super) ids: Vec<u32>,
    /// The weight of each.
    pub(super) weights: Vec<f32>,
}

/// Fields of `tokenizer_config.json` and `special_tokens_map.json`. Defaults are those of transformers' `CLIPTokenizer`.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<TokenName>,
    pad_token: Option<TokenName>,
    eos_token: Option<TokenName>,
    /// Tokens beyond the vocabulary, or other properties of tokens in it, by id.
    added_tokens_decoder: Option<BTreeMap<u32, TokenEntry>>,
}

impl TokenizerConfig {
    /// As in transformers: `special_tokens_map.json` overrides a `tokenizer_config.json` that does not list the added tokens. In Stable
    /// Diffusion 2, the two differ in the padding.
    fn load(files: &ModelFiles, folder: &str) -> Result<Self, LoadError> {
        let read = |name: &str| files.json::<Self>(&format!("{folder}/{name}"));
        let name = "tokenizer_config.json";
        let config = if files.exists(&format!("{folder}/{name}")) { read(name)? } else { Self::default() };
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

/// An entry of `added_tokens_decoder`. Defaults are those of transformers' `AddedToken`.
#[derive(Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "as in the file")]
struct TokenEntry {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
    normalized: Option<bool>,
}

impl From<TokenEntry> for AddedToken {
    fn from(entry: TokenEntry) -> Self {
        let TokenEntry { content, single_word, lstrip, rstrip, special, normalized } = entry;
        Self { content, single_word, lstrip, rstrip, special, normalized: normalized.unwrap_or(!special) }
    }
}

/// A token as its text, or as an object.
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
    /// Reads `tokenizer.json`, or `vocab.json` and `merges.txt`, in a folder of a model, and `tokenizer_config.json` and
    /// `added_tokens.json` if they are there. Chunks have `length` tokens.
    ///
    /// # Errors
    /// When a file is missing or broken, names a token that the vocabulary does not have, or adds one with an id that is not free.
    pub fn load(files: &ModelFiles, folder: &str, length: usize) -> Result<Self, LoadError> {
        let path = &format!("{folder}/tokenizer.json");
        let bad = |path: &str, reason: String| LoadError::BadConfig { path: files.path(path), reason };
        let mut tokenizer = if files.exists(path) || !files.exists(&format!("{folder}/vocab.json")) {
            from_json(&files.read(path)?).map_err(|reason| bad(path, reason))?
        } else {
            from_vocab_and_merges(files, folder)?
        };
        // A file may carry the truncation and padding of its last use.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| bad(path, e.to_string()))?;

        let config_path = &format!("{folder}/tokenizer_config.json");
        let config = TokenizerConfig::load(files, folder)?;
        let bos_token = config.bos_token.map_or_else(|| "<|startoftext|>".to_owned(), TokenName::text);
        let eos_token = config.eos_token.map_or_else(|| "<|endoftext|>".to_owned(), TokenName::text);
        let pad_token = config.pad_token.map_or_else(|| eos_token.clone(), TokenName::text);
        if let Some(entries) = config.added_tokens_decoder {
            let tokens = entries.into_iter().map(|(id, entry)| (id, entry.into())).collect();
            add_tokens(&mut tokenizer, tokens).map_err(|reason| bad(config_path, reason))?;
        } else {
            let path = &format!("{folder}/{ADDED_TOKENS}");
            let tokens = read_added_tokens(files, path, [&bos_token, &eos_token, &pad_token])?;
            add_tokens(&mut tokenizer, tokens).map_err(|reason| bad(path, reason))?;
        }
        let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| bad(config_path, format!("the vocabulary has no token {token}")));
        let (start, end, pad) = (id(&bos_token)?, id(&eos_token)?, id(&pad_token)?);
        let comma = tokenizer.token_to_id(COMMA);
        // As in transformers, the padding token in a prompt has the padding's id. In SDXL and Stable Diffusion 2 it is an exclamation mark,
        // whose id as a word is another one.
        if !tokenizer.get_added_tokens_decoder().contains_key(&pad) {
            tokenizer.add_special_tokens([AddedToken::from(pad_token, true)]).map_err(|e| bad(config_path, e.to_string()))?;
        }
        Ok(Self { tokenizer, length, start, end, pad, comma, learned: LearnedWords::default() })
    }

    /// The token with the largest id, to check it against an embedding.
    #[must_use]
    pub fn last_token(&self) -> Option<(String, u32)> {
        self.tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id)
    }

    /// Adds a learned word of the token ids `ids`, under each of these names.
    pub(super) fn learn(&mut self, names: &[String], ids: &Range<u32>) {
        for name in names {
            self.learned.add(name, ids.clone());
        }
    }

    /// Names in a text that are called learned words and are none. They are left out.
    pub(super) fn unknown_embeddings(&self, text: &str) -> Vec<String> {
        let unknown = |piece| if let Piece::Unknown(name) = piece { Some(name.to_owned()) } else { None };
        self.learned.pieces(text).into_iter().filter_map(unknown).collect()
    }

    /// The most vectors of a learned word, which is never divided.
    #[must_use]
    pub fn room(&self) -> usize {
        // A chunk without its start and end tokens.
        self.length - 2
    }

    /// The chunks of a prompt, one or more for each section, and the end of the prompt if it exceeds the most chunks.
    ///
    /// # Errors
    /// When the tokenizer fails. No text is known that makes it.
    pub(super) fn chunks(&self, sections: &[Vec<Span>]) -> Result<(Vec<Chunk>, Option<String>), GenerationError> {
        let mut text = String::new();
        let mut words: Vec<Vec<Word>> = Vec::with_capacity(sections.len());
        for (i, section) in sections.iter().enumerate() {
            text.push_str(if i > 0 { BREAK } else { "" });
            words.push(Vec::new());
            for span in section {
                let found = self.words(span, text.len())?;
                words[i].extend(found);
                text.push_str(&span.text);
            }
        }
        let mut chunks: Vec<&[Word]> = words.iter().flat_map(|words| spread(words, self.room(), self.comma)).collect();
        // Without words after the last `BREAK`, there is no chunk.
        if chunks.len() > 1 {
            chunks.pop_if(|last| last.is_empty());
        }
        let rest = chunks.split_off(chunks.len().min(MAX_CHUNKS));
        let cut = rest.into_iter().flatten().next().map(|word| text[text.floor_char_boundary(word.at)..].trim().to_owned());
        Ok((chunks.into_iter().map(|words| self.chunk(words)).collect(), cut))
    }

    /// The words of a span at offset `start`: tokens, and learned words.
    fn words(&self, span: &Span, start: usize) -> Result<Vec<Word>, GenerationError> {
        let mut words = Vec::new();
        let mut push = |ids, at| words.push(Word { ids, weight: span.weight as f32, at: start + at });
        for piece in self.learned.pieces(&span.text) {
            match piece {
                Piece::Learned(at, ids) => push(ids, at),
                Piece::Unknown(_) => {}
                Piece::Plain(at, plain) => {
                    let encoding = self.tokenizer.encode(plain, false).map_err(|e| GenerationError::Tokenizer(e.to_string()))?;
                    // Offsets are in bytes of the text.
                    encoding.get_ids().iter().zip(encoding.get_offsets()).for_each(|(id, (begin, _))| push(*id..*id + 1, at + begin));
                }
            }
        }
        Ok(words)
    }

    /// Index of a chunk's end token.
    pub(super) fn end_of(&self, chunk: &Chunk) -> usize {
        chunk.ids.iter().position(|id| *id == self.end).unwrap_or_default()
    }

    fn chunk(&self, words: &[Word]) -> Chunk {
        let (ids, weights): (Vec<u32>, Vec<f32>) = words.iter().flat_map(|word| word.ids.clone().map(|id| (id, word.weight))).unzip();
        let mut chunk = Chunk { ids: [vec![self.start], ids, vec![self.end]].concat(), weights: [vec![1.0], weights].concat() };
        chunk.ids.resize(self.length, self.pad);
        chunk.weights.resize(self.length, 1.0);
        chunk
    }
}

/// The tokenizer that a file describes, if it works. The tokenizers crate panics on some invalid files, and overflows the stack on deep
/// nesting.
fn from_json(json: &[u8]) -> Result<Tokenizer, String> {
    let depth = nesting(json);
    if depth > MAX_NESTING {
        return Err(format!("it is nested {depth} deep, and a tokenizer at most {MAX_NESTING}"));
    }
    let built = std::panic::catch_unwind(|| {
        let tokenizer = Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
        tokenizer.encode(TRIAL, false).map_err(|error| format!("it cannot read \"{TRIAL}\": {error}"))?;
        Ok(tokenizer)
    });
    built.unwrap_or_else(|_| Err("it describes no tokenizer that works".to_owned()))
}

/// The depth of nested lists and objects.
fn nesting(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_text, mut is_escaped) = (0usize, 0, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_text => is_escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The tokenizer of a model without `tokenizer.json`, as transformers' `CLIPConverter` makes it.
fn from_vocab_and_merges(files: &ModelFiles, folder: &str) -> Result<Tokenizer, LoadError> {
    let [vocab_path, merges_path] = ["vocab.json", "merges.txt"].map(|name| format!("{folder}/{name}"));
    let bad = |path: &str, reason: String| LoadError::BadConfig { path: files.path(path), reason };
    let vocab: BTreeMap<String, u32> = files.json(&vocab_path)?;
    let merges = files.read(&merges_path)?;
    let merges = str::from_utf8(&merges).map_err(|e| bad(&merges_path, e.to_string()))?.trim_start_matches(BYTE_ORDER_MARK);
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

/// `added_tokens.json`, from text to id. As in transformers, tokens are matched in upper or lower case, but `special` ones exactly.
fn read_added_tokens(files: &ModelFiles, path: &str, special: [&String; 3]) -> Result<Vec<(u32, AddedToken)>, LoadError> {
    if !files.exists(path) {
        return Ok(Vec::new());
    }
    let ids: BTreeMap<String, u32> = files.json(path)?;
    let token = |(text, id)| {
        let is_special = special.contains(&&text);
        (id, AddedToken::from(text, is_special))
    };
    let mut tokens: Vec<(u32, AddedToken)> = ids.into_iter().map(token).collect();
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}

/// Adds tokens to a vocabulary in the order of their ids. Each id must be the token's own or the next free one.
fn add_tokens(tokenizer: &mut Tokenizer, tokens: Vec<(u32, AddedToken)>) -> Result<(), String> {
    for (id, token) in tokens {
        let text = token.content.clone();
        let bad = |why: String| Err(format!("the added token \"{text}\" has the id {id}, {why}"));
        match (tokenizer.token_to_id(&text), tokenizer.id_to_token(id)) {
            (Some(own), _) if own != id => return bad(format!("but {own} in the vocabulary")),
            (None, Some(other)) => return bad(format!("which is that of \"{other}\"")),
            _ => {}
        }
        tokenizer.add_tokens([token]).map_err(|e| e.to_string())?;
        match tokenizer.token_to_id(&text) {
            Some(found) if found == id => {}
            Some(next) => return bad(format!("but {next} is the next one, and none may be left out")),
            None => return bad("but no text".to_owned()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
