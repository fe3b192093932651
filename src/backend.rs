//! From a queued request to a picture: the queue, the engine that empties it, and the pipeline that the engine drives.

mod adapted_network;
mod adapter_error;
mod adapters;
mod controls;
mod demand;
mod edit_image;
mod error;
mod exif;
mod families;
mod fitting;
mod generation;
mod generation_engine;
mod image_file;
mod image_utils;
mod inference_pipeline;
mod infotext;
mod ip_adapter;
mod latent_filter;
mod latent_preview;
mod model_configs;
mod model_files;
mod model_info;
mod model_loader;
mod order;
mod picture_decoder;
mod picture_encoder;
mod picture_text;
mod prompt;
mod pulse;
mod recording;
mod request_defaults;
mod request_queue;
#[cfg(feature = "builtin-model")]
mod selfcheck;
mod studio;
mod upscalers;
mod wide_vae;

pub use adapted_network::AdaptedNetwork;
pub use adapter_error::AdapterError;
pub use adapters::{
    AdaptableNetwork, AdapterEntry, AdapterFile, AdapterFolder, AdapterInfo, AdapterLibrary, AppliedAdapters, ChosenAdapter, FewSteps, Fit,
    Layer, LowRank, MergedAdapters, Module, ModuleKind,
};
pub use controls::{ChosenControl, ControlEntry, ControlLibrary, ControlNetwork, MAX_CONTROLS};
pub use demand::{Demand, StepKind};
pub use error::{GenerationError, LoadError};
pub use fitting::{Fitting, MaskFill, MaskRules, Resize};
pub use generation::{Generation, Pipeline};
pub use generation_engine::GenerationEngine;
pub use image_file::{ImageFile, InitFiles, InputFiles, MAX_INPUT_PIXELS};
pub use inference_pipeline::{Diffusion, InferencePipeline, Networks, Prediction};
pub use infotext::{ImageMetadata, read_infotext};
pub use ip_adapter::{CrossAttentionLayer, IpAdapter, IpAdapterFile, MAX_REFERENCES, preprocess};
pub use latent_filter::LatentFilter;
pub use latent_preview::LatentPreview;
pub use model_files::{ModelFiles, PartWeights, dequantized};
pub use model_info::{ModelDefaults, ModelInfo};
pub use model_loader::{LoadOptions, load};
pub use order::{Enlarger, InputKind, Order, OrderAdapters, Redraw, Settings};
pub use picture_encoder::encode;
pub use prompt::{AdapterId, EncodedPrompts, KnownWords, ParsedPrompt, PromptEncoder, PromptTokenizer, TextAdapters, TextEncoder};
pub use pulse::Pulse;
pub use recording::Recording;
pub use request_defaults::RequestDefaults;
pub use request_queue::{Complete, EncodedImage, GenerationRequest, GenerationResponse, Progress, RequestQueue, Timings};
#[cfg(feature = "builtin-model")]
pub use selfcheck::{Comparison, selfcheck};
pub use studio::{Studio, Work};
pub use upscalers::{ChosenUpscale, ChosenUpscaler, UpscalerEntry, UpscalerLibrary};
pub use wide_vae::WideVae;

pub use crate::models::{HiddenState, Interrupt, Tiling};
