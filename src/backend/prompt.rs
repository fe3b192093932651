//! From the text of a prompt to what the network looks at: syntax, learned words, tokens, chunks, embeddings.

mod chunks;
mod encoder;
mod known_words;
mod learned_words;
mod parsed_prompt;
mod prompt_cache;
mod syntax;
mod text_encoder;
mod tokenizer;

pub use encoder::{AdapterId, EncodedPrompts, PromptEncoder, TextAdapters};
pub use known_words::KnownWords;
pub use parsed_prompt::ParsedPrompt;
pub use text_encoder::TextEncoder;
pub use tokenizer::PromptTokenizer;
