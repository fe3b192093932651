//! CLIP's vocabulary, which checkpoints in one file do not carry. It is the same for every Stable Diffusion.

use std::{collections::BTreeMap, io::Read};

use flate2::read::GzDecoder;
use serde_json::{Value, json};

/// As in CLIP's `merges.txt`.
static MERGES: &[u8] = include_bytes!("clip_vocabulary/merges.txt.gz");
const SPECIAL: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];

/// `merges.txt`.
pub(super) fn merges() -> String {
    let mut text = String::new();
    // The file is part of this binary. A broken one gives a vocabulary without tokens, which its reader refuses.
    let _ = GzDecoder::new(MERGES).read_to_string(&mut text);
    text
}

/// `vocab.json`: the bytes as letters, the bytes at the end of a word, the merges, and the special tokens, in this order.
pub(super) fn vocab() -> Value {
    let letters: Vec<String> = letters().map(String::from).collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let merges = merges();
    let merged = merges.lines().filter(|line| !line.starts_with("#version")).map(|pair| pair.replace(' ', ""));
    let tokens = letters.iter().cloned().chain(ends).chain(merged).chain(SPECIAL.map(str::to_owned));
    json!(tokens.zip(0..).collect::<BTreeMap<String, usize>>())
}

/// `tokenizer_config.json`.
pub(super) fn config(pad_token: &str) -> Value {
    json!({ "bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": pad_token })
}

/// A letter for each byte, in CLIP's order: printable bytes stand for themselves, the others for the letters after them.
fn letters() -> impl Iterator<Item = char> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let printable = (0..=u8::MAX).filter(is_printable).map(char::from);
    let others = (0..=u8::MAX).filter(move |byte| !is_printable(byte)).zip('\u{100}'..).map(|(_, letter)| letter);
    printable.chain(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of the `tokenizer/vocab.json` of Stable Diffusion 1.5.
    #[test]
    fn tokens_have_the_numbers_that_all_models_know() {
        let vocab = vocab();
        assert_eq!(vocab.as_object().unwrap().len(), 49_408);
        for (token, id) in [("!", 0), ("!</w>", 256), ("a</w>", 320), ("cat</w>", 2368), ("photo</w>", 1125), ("<|endoftext|>", 49_407)] {
            assert_eq!(vocab[token], id, "{token}");
        }
    }
}
