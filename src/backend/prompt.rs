//! From the text of a prompt to what the network looks at: syntax, learned words, tokens, chunks, embeddings.

mod chunks;
mod encoder;
mod known_words;
mod learned_words;
mod syntax;
mod text_encoder;
mod tokenizer;

pub use encoder::{EncodedPrompts, PromptEncoder, PromptText};
pub use known_words::KnownWords;
pub use text_encoder::{HiddenState, TextEncoder};
pub use tokenizer::PromptTokenizer;
