//! Plain data that every room uses: settings of a generation, identifiers, torch's random numbers; and requests to other hosts.

mod control;
mod control_file;
mod decoder;
mod edit_defaults;
mod error_chain;
mod feature_cache;
mod guidance_interval;
mod image_format;
mod input_image;
mod invalid_value;
mod loopback;
mod lora;
mod model_family;
mod outgoing;
mod prompt;
mod regular_file;
mod request_id;
mod sampler;
mod sampler_names;
mod sampling_config;
mod torch_rng;
mod upscale;
mod whole_number;

pub use control::{ControlKind, ControlScale, ControlSettings, ControlWindow, Preprocess};
pub use control_file::{ControlFile, NamedPath, ReferenceFile};
pub use decoder::Decoder;
pub use error_chain::error_chain;
pub use feature_cache::{CacheKind, CacheParts, FeatureCache, Refresh};
pub use guidance_interval::GuidanceInterval;
pub use image_format::{ImageFormat, OutputConfig};
pub use input_image::{Canvas, InputImage, InputImages, Mask, MaskLatents, MaskMeaning, Part};
pub use invalid_value::InvalidValue;
pub use loopback::{is_loopback, normalised_host};
pub use lora::{LoraScale, NamedLora};
pub use model_family::{ModelFamily, ModelVariant};
pub use outgoing::{BadProxy, agent, without_secrets};
pub use prompt::{NegativePrompt, Prompt};
pub use regular_file::{open_regular, read_regular};
pub use request_id::RequestId;
pub use sampler::{Sampler, Schedule};
pub use sampler_names::{NamedSampler, NamedSchedule};
pub use sampling_config::{
    ClipSkip, Eta, GuidanceRescale, GuidanceScale, ImageSize, SamplingConfig, SamplingOptions, Seed, Steps, Strength,
};
pub use torch_rng::TorchRng;
pub use upscale::{RedrawSettings, UpscaleScale, UpscaleSettings};
pub use whole_number::WholeNumber;
