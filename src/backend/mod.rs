//! From a queued request to a picture: the queue, the engine that empties it, and the pipeline that the engine drives.

mod error;
mod generation_engine;
mod image_file;
mod image_utils;
mod inference_pipeline;
mod infotext;
mod known_words;
mod latent_preview;
mod learned_words;
mod model_configs;
mod model_files;
mod model_info;
mod model_loader;
mod picture_decoder;
mod prompt_chunks;
mod prompt_encoder;
mod prompt_syntax;
mod prompt_tokenizer;
mod pulse;
mod recording;
mod request_queue;
mod text_encoder;
mod textual_inversion;
mod wide_vae;

pub use error::{GenerationError, LoadError};
pub use generation_engine::{Generation, GenerationEngine, Pipeline};
pub use image_file::{ImageFile, InputFiles, MAX_INPUT_PIXELS};
pub use image_utils::encode;
#[cfg(feature = "builtin-model")]
pub use inference_pipeline::{Comparison, selfcheck};
pub use inference_pipeline::{Diffusion, InferencePipeline, Networks};
pub use infotext::ImageMetadata;
pub use known_words::KnownWords;
pub use latent_preview::LatentPreview;
pub use model_files::{HubError, ModelFiles, PartWeights, dequantized};
pub use model_info::{ModelDefaults, ModelInfo};
pub use model_loader::{LoadOptions, load};
pub use prompt_encoder::{EncodedPrompts, PromptEncoder, PromptText};
pub use prompt_tokenizer::PromptTokenizer;
pub use pulse::Pulse;
pub use recording::Recording;
pub use request_queue::{Complete, EncodedImage, GenerationRequest, GenerationResponse, Progress, RequestQueue, Timings};
pub use text_encoder::{HiddenState, TextEncoder};
pub use wide_vae::WideVae;

pub use crate::models::Tiling;
