//! From files to a pipeline.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use tracing::warn;

use super::{
    AdaptableNetwork, AdaptedNetwork, AdapterFolder, AdapterLibrary, ControlLibrary, FewSteps, InferencePipeline, IpAdapter, KnownWords,
    LatentPreview, LoadError, MergedAdapters, ModelFiles, ModelInfo, Networks, Order, PartWeights, PromptEncoder, RequestDefaults,
    TextEncoder, UpscalerLibrary, WideVae, families,
    model_configs::{ModelConfigs, TextConfigs},
    model_files::{LearnedVectors, TinyVaeFiles},
};
use crate::{
    common::{ModelFamily, NamedLora, NamedPath},
    device,
    models::{AutoencoderKl, AutoencoderTiny, AutoencoderTinyConfig, Denoiser, TextNetwork, Tiling},
    ops::{self, ComputeType, WeightType, Weights},
};

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where it runs.
    pub device: Device,
    /// The type in which its weights are kept.
    pub weight_type: WeightType,
    /// The type in which a CPU multiplies the matrices of the denoiser and of control networks.
    pub compute: ComputeType,
    /// The largest picture that a request may ask for.
    pub max_pixels: u64,
    /// Whether large pictures go through the VAE in strips.
    pub vae_tiling: Tiling,
    /// Whether the layers of text encoders and the VAE's encoder are read for each use, and are in memory only while they run.
    pub low_memory: bool,
    /// A folder of adapters that requests may ask for.
    pub adapters: Option<PathBuf>,
    /// Adapters of that folder that change the model for all requests: they are merged into its weights.
    pub merged: Vec<NamedLora>,
    /// Control networks that requests may ask for.
    pub controls: Vec<NamedPath>,
    /// The most bytes of control networks that stay loaded.
    pub max_control_bytes: usize,
    /// An IP-Adapter, for pictures as a prompt.
    pub ip_adapter: Option<PathBuf>,
    /// The folder of its image encoder, if that is not beside it.
    pub image_encoder: Option<PathBuf>,
    /// A tiny autoencoder, for requests that ask for its decoder and for previews.
    pub tiny_vae: Option<PathBuf>,
    /// What requests get that leave it out.
    pub requests: RequestDefaults,
    /// Networks that enlarge finished pictures, for requests that ask for it.
    pub upscalers: Vec<NamedPath>,
}

impl LoadOptions {
    /// The default: all sizes of `OpenAI`'s API fit.
    pub const MAX_PIXELS: u64 = 2 << 20;
    /// The default: two ControlNets of Stable Diffusion 1, or one of XL.
    pub const MAX_CONTROL_BYTES: usize = 6 << 30;
}

impl Default for LoadOptions {
    /// The binary's defaults on a CPU.
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            weight_type: WeightType::F32,
            compute: ComputeType::F32,
            max_pixels: Self::MAX_PIXELS,
            vae_tiling: Tiling::Auto,
            low_memory: false,
            adapters: None,
            merged: Vec::new(),
            controls: Vec::new(),
            max_control_bytes: Self::MAX_CONTROL_BYTES,
            ip_adapter: None,
            image_encoder: None,
            tiny_vae: None,
            requests: RequestDefaults::default(),
            upscalers: Vec::new(),
        }
    }
}

/// Loads a model: reads and checks every configuration first, then the weights.
///
/// # Errors
/// Names the file that is missing, broken, or does not fit the others.
pub fn load(files: &ModelFiles, options: &LoadOptions) -> Result<InferencePipeline, LoadError> {
    let (device, weight_type) = (&options.device, options.weight_type);
    check_compute(options.compute, device)?;
    match weight_type.compute_type(device) {
        Some(dtype) => load_as(dtype, files, options),
        None => Err(LoadError::Unsupported(format!("weights in {weight_type} work on a CPU only, not on {}", device::describe(device)))),
    }
}

/// The same with networks that compute in `dtype`.
pub(super) fn load_as(dtype: DType, files: &ModelFiles, options: &LoadOptions) -> Result<InferencePipeline, LoadError> {
    let (device, weight_type) = (&options.device, options.weight_type);
    let configs = ModelConfigs::load(files)?;
    let known_words = KnownWords::load(files)?;
    let widths: Vec<usize> = configs.text.iter().map(|text| text.config.hidden_size()).collect();
    let most = configs.text.iter().map(|text| text.tokenizer.room()).min().unwrap_or_default();
    let learned = files.embeddings().iter().filter_map(|word| word.vectors(&widths, most).transpose());
    let learned: Vec<LearnedVectors> = learned.collect::<Result<_, _>>()?;
    let facts = families::of(configs.family);
    let mut info = info(files, options, &configs, &learned);
    // Before gigabytes are read.
    let adapters = options.adapters.as_deref().map(adapter_folder).transpose()?;
    let merged = MergedAdapters::open(adapters.as_ref(), &options.merged)?;
    if info.defaults.size.pixels() > info.max_pixels {
        return Err(LoadError::Limit { max_pixels: info.max_pixels, size: info.defaults.size });
    }
    Order::bare(&info).map_err(|error| LoadError::Unsupported(format!("--{} {error}", error.name.replace('_', "-"))))?;
    let upscalers = UpscalerLibrary::open(&options.upscalers, device, info.max_pixels)?;
    info.upscalers = Arc::new(upscalers.with_embedded(files.upscalers(), device)?);
    info.controls = controls(files, &configs, dtype, options)?;
    ops::prepare(device).map_err(|error| LoadError::SelfTest(error.into()))?;
    let tiny_vae = options.tiny_vae.as_deref().map(|path| tiny_vae(path, &configs, dtype, options)).transpose()?;
    let mut builder = Builder { files, dtype, options, opened: Vec::new(), merged, adaptable: Vec::new() };
    let ModelConfigs { family, text, denoiser, vae, force_zeros_for_empty_prompt, .. } = configs;
    let mut encoders = Vec::with_capacity(text.len());
    for TextConfigs { folder, config, tokenizer } in text {
        let network = builder.build(folder, |vb| TextNetwork::new(&config, vb))?;
        encoders.push(TextEncoder::new(tokenizer, network, facts.hidden_state));
    }
    for (i, encoder) in encoders.iter_mut().enumerate() {
        let words: Vec<_> = learned.iter().map(|word| (word.names.as_slice(), &word.vectors[i])).collect();
        encoder.learn(&words).map_err(|error| LoadError::SelfTest(error.into()))?;
    }
    let denoiser = builder.build("unet", |vb| Denoiser::new(&denoiser, vb))?;
    let wide_vae = (weight_type != WeightType::F32).then(|| WideVae::new(files.clone(), vae.clone(), device.clone(), options.vae_tiling));
    let vae = builder.build("vae", |vb| AutoencoderKl::new(vae.clone(), vb))?.with_tiling(options.vae_tiling);
    builder.warn_of_unread();
    info.adapters = adapters.map(|folder| builder.library(folder, family)).transpose()?;
    let kept = (dtype, weight_type, device);
    let ip_adapter = options
        .ip_adapter
        .as_deref()
        .map(|file| IpAdapter::open(file, options.image_encoder.as_deref(), &denoiser, kept, options.low_memory));
    info.ip_adapter = ip_adapter.transpose()?.map(Arc::new);
    let networks = Networks { denoiser, vae, wide_vae, tiny_vae };
    let preview = fit_preview(&networks, dtype, device).map_err(|error| LoadError::SelfTest(error.into()))?;
    let prompt_encoder = PromptEncoder::new(encoders, known_words, force_zeros_for_empty_prompt, device.clone());
    Ok(InferencePipeline::new(info, prompt_encoder, networks, preview, device.clone(), dtype))
}

/// The control networks, of which nothing but headers and configurations is read here.
fn controls(
    files: &ModelFiles,
    configs: &ModelConfigs,
    dtype: DType,
    options: &LoadOptions,
) -> Result<Option<Arc<ControlLibrary>>, LoadError> {
    if options.controls.is_empty() {
        return Ok(None);
    }
    let json = files.read("unet/config.json")?;
    let like = Weights::new(VarBuilder::zeros(dtype, &options.device), options.weight_type).computing_in(options.compute);
    let library = ControlLibrary::open(&options.controls, &json, &configs.denoiser, like, options.max_control_bytes)?;
    Ok(Some(Arc::new(library)))
}

/// The tiny autoencoder's decoder for a model of these configurations.
fn tiny_vae(path: &Path, configs: &ModelConfigs, dtype: DType, options: &LoadOptions) -> Result<AutoencoderTiny, LoadError> {
    let files = TinyVaeFiles::open(path, configs.family)?;
    let config = AutoencoderTinyConfig::from_json(&files.config()).and_then(|config| config.check_fits(&configs.vae).map(|()| config));
    let config = config.map_err(LoadError::config(files.config_path().to_owned()))?;
    let weights = files.weights(dtype, &options.device);
    let new = |vb: &Weights| AutoencoderTiny::new(&config, vb);
    // So few weights need not be kept in fewer bits, where some might overflow.
    let network = new(&Weights::new(weights.vb.clone(), WeightType::F32)).map_err(|source| weights.failure(source, new))?;
    if let Some(warning) = weights.unread_warning() {
        warn!("{warning}");
    }
    Ok(network.with_tiling(options.vae_tiling))
}

/// `builtin`, or a folder.
fn adapter_folder(path: &Path) -> Result<AdapterFolder, LoadError> {
    #[cfg(feature = "builtin-model")]
    if path == Path::new("builtin") {
        return Ok(AdapterFolder::embedded(crate::builtin_model::LORAS));
    }
    Ok(AdapterFolder::new(path)?)
}

fn check_compute(compute: ComputeType, device: &Device) -> Result<(), LoadError> {
    if compute != ComputeType::F32 && !device.is_cpu() {
        let help = "leave --compute out; the networks compute in the type of --dtype";
        return Err(LoadError::Unsupported(format!("{compute} is for a CPU, and this is {}: {help}", device::describe(device))));
    }
    if !ops::computes_in(compute) {
        let help = "give --compute f32, or auto for the fastest that there is";
        let would = match compute {
            ComputeType::Int8 => "AVX-512-VNNI or AVX-VNNI and without AMX, whose bf16 is as fast,",
            _ => "AVX-512-BF16 or AMX",
        };
        return Err(LoadError::Unsupported(format!(
            "this processor multiplies no {compute} faster than other types (one with {would} does): {help}"
        )));
    }
    Ok(())
}

/// What requests are checked against, without adapters and control networks.
fn info(files: &ModelFiles, options: &LoadOptions, configs: &ModelConfigs, learned: &[LearnedVectors]) -> ModelInfo {
    let has_clip_skip = families::of(configs.family).has_clip_skip;
    ModelInfo {
        id: files.id().to_owned(),
        family: configs.family,
        variant: configs.variant,
        embeds_guidance: configs.denoiser.embeds_guidance(),
        device: device::describe(&options.device),
        dtype: options.weight_type.name(),
        compute: options.device.is_cpu().then(|| options.compute.name()),
        max_pixels: options.max_pixels,
        size_multiple: configs.vae.scale_factor() as u32,
        max_steps: configs.scheduler.num_train_timesteps,
        embeddings: learned.iter().filter_map(|word| word.names.first().cloned()).collect(),
        max_clip_skip: if has_clip_skip { configs.text[0].config.depth() } else { 1 },
        defaults: configs.defaults,
        requests: options.requests.clone(),
        scheduler: configs.scheduler.clone(),
        adapters: None,
        controls: None,
        ip_adapter: None,
        upscalers: Arc::default(),
        has_tiny_decoder: options.tiny_vae.is_some(),
    }
}

fn fit_preview(networks: &Networks, dtype: DType, device: &Device) -> candle_core::Result<LatentPreview> {
    let preview = LatentPreview::fit(&networks.vae, dtype, device)?;
    match &networks.wide_vae {
        Some(wide) if !preview.is_finite() => LatentPreview::fit(&*wide.get()?, DType::F32, device),
        _ => Ok(preview),
    }
}

/// Builds networks from the weights of a model's parts, and keeps a list of those.
struct Builder<'a> {
    files: &'a ModelFiles,
    dtype: DType,
    options: &'a LoadOptions,
    opened: Vec<PartWeights>,
    merged: MergedAdapters,
    /// The networks that adapters can change.
    adaptable: Vec<AdaptableNetwork>,
}

impl Builder<'_> {
    fn build<T>(&mut self, part: &str, new: impl Fn(&Weights) -> candle_core::Result<T>) -> Result<T, LoadError> {
        let weights = self.files.weights(part, self.dtype, &self.options.device)?;
        let adaptable = match part {
            "unet" => Some(AdaptedNetwork::Denoiser),
            "text_encoder" => Some(AdaptedNetwork::TextEncoder(0)),
            "text_encoder_2" => Some(AdaptedNetwork::TextEncoder(1)),
            _ => None,
        };
        let vb = weights.vb.clone();
        let vb = if let Some(network) = adaptable { self.merged.merge(network, vb) } else { vb };
        // Text encoders take little time, and what they lose is lost in every step; a VAE is mostly 3 x 3 convolutions.
        let compute = if part == "unet" { self.options.compute } else { ComputeType::F32 };
        let vb = Weights::new(vb, self.options.weight_type).computing_in(compute).freed_after_use(self.options.low_memory);
        let network = new(&vb).map_err(|source| weights.failure(source, &new))?;
        self.opened.push(weights);
        self.adaptable.extend(adaptable.map(|network| AdaptableNetwork::new(network, vb)));
        Ok(network)
    }

    /// The adapters that requests may ask for. Those that are merged into the model must fit it too.
    fn library(&mut self, folder: AdapterFolder, family: ModelFamily) -> Result<Arc<AdapterLibrary>, LoadError> {
        let library = AdapterLibrary::new(folder, family, std::mem::take(&mut self.adaptable));
        for (name, file) in self.merged.files() {
            match library.check(file) {
                Ok(effect) => {
                    if let Some(lost) = effect.lost {
                        warn!("--lora {name}: {lost}");
                    }
                    // Requests that bring such an adapter get its settings; the model's own stay what they are.
                    if let Some(few) = FewSteps::of_name(name) {
                        warn!("--lora {name} is for few steps; requests should say so: {few}");
                    }
                }
                Err(allowed) => return Err(LoadError::Unsupported(format!("--lora {name} must be {allowed}"))),
            }
        }
        Ok(Arc::new(library))
    }

    fn warn_of_unread(&self) {
        let mut seen: Vec<&PathBuf> = Vec::new();
        for weights in &self.opened {
            if seen.contains(&&weights.path) {
                continue;
            }
            seen.push(&weights.path);
            if let Some(warning) = weights.unread_warning() {
                warn!("{warning}");
            }
        }
    }
}
