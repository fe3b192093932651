//! `sd-worker generate`: one picture, without a server.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use candle_core::Tensor;
use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, GenerateArgs};
use crate::{
    backend::{self, Generation, GenerationRequest, ImageFile, ImageMetadata, InputFiles, ModelInfo, Pipeline},
    common::{ImageFormat, InvalidValue, OutputConfig, SamplingConfig, SamplingOptions, Seed},
};

/// Makes the picture, with a progress bar if somebody watches.
///
/// # Errors
/// When the arguments do not fit the model, the model does not load or work, or a file cannot be written.
pub fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    let output = OutputConfig { format: format_of(&args.output)?, ..OutputConfig::default() };
    for file in [Some(&args.output), args.save_latents.as_ref()].into_iter().flatten() {
        check_folder(file)?;
    }
    let input = input_files(args)?;
    args.model.start_threads()?;

    let started = Instant::now();
    let options = args.model.options()?;
    let pipeline = Arc::new(backend::load(&args.model.files()?, &options)?);
    let load_time = started.elapsed();

    let request = request(args, input, output, pipeline.info())?;
    let mut record = Record::new(args.save_latents.as_deref());
    let started = Instant::now();
    let mut generation = pipeline.begin(&request)?;
    let text_time = started.elapsed();
    for warning in generation.warnings() {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    record.add("text_embeddings", generation.text_embeddings());
    record.add("latents.0", generation.latents());

    let started = Instant::now();
    let bar = progress_bar(generation.total_steps());
    for step in 1..=generation.total_steps() {
        generation.step()?;
        record.add(&format!("latents.{step}"), generation.latents());
        bar.inc(1);
    }
    bar.finish_and_clear();
    let denoise_time = started.elapsed();

    let started = Instant::now();
    let picture = generation.finish()?;
    let decode_time = started.elapsed();
    let image = backend::encode(&picture, request.output, Some(&ImageMetadata::new(&request, pipeline.model_id())))?;
    write(&args.output, &image.bytes)?;
    record.write()?;

    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    // Whoever does not read this has the picture.
    let _ = writeln!(
        io::stderr(),
        "{}: {}, {} steps of {} at guidance {}, seed {} (load {}, text {}, denoise {}, decode {})",
        args.output.display(),
        request.output.size(request.config.size),
        request.config.steps,
        request.config.sampler,
        request.config.guidance_scale,
        request.config.seed,
        seconds(load_time),
        seconds(text_time),
        seconds(denoise_time),
        seconds(decode_time)
    );
    Ok(())
}

/// The pictures to begin with, as far as their headers.
fn input_files(args: &GenerateArgs) -> Result<Option<InputFiles>, Failure> {
    let open = |name: &'static str, path: &PathBuf| -> Result<ImageFile, Failure> {
        let bytes = fs::read(path).map_err(|source| Failure::Input { path: path.clone(), source })?;
        Ok(ImageFile::open(name, bytes)?)
    };
    let Some(image) = &args.init_image else { return Ok(None) };
    let mask = args.mask.as_ref().map(|path| open("mask", path)).transpose()?;
    Ok(Some(InputFiles { image: open("init-image", image)?, mask }))
}

fn request(args: &GenerateArgs, input: Option<InputFiles>, output: OutputConfig, info: &ModelInfo) -> Result<GenerationRequest, Failure> {
    let defaults = info.defaults;
    let size = input.as_ref().map_or(defaults.size, |files| info.size_for(files.image.size().0, files.image.size().1));
    let (sampler, schedule) = info.sampler(args.sampler, args.schedule)?;
    let (steps, strength) = info.steps(sampler, args.steps, input.as_ref().map(|files| (args.strength, files.mask.is_some())));
    let asked = args.size(size)?;
    info.check_size(asked)?;
    let config = SamplingConfig {
        size: info.drawing_size(asked, input.is_some()),
        steps,
        guidance_scale: args.guidance_scale.unwrap_or(defaults.guidance_scale),
        seed: args.seed.unwrap_or_else(Seed::random),
        sampler,
        schedule,
        options: SamplingOptions { strength, guidance_interval: args.guidance_interval, ..SamplingOptions::default() },
    };
    // Before the pictures are decoded.
    info.plan(&config)?;
    let output = OutputConfig { enlarged_to: Some(asked).filter(|asked| *asked != config.size), ..output };
    let input = input.map(|files| files.decode(asked)).transpose()?.map(Arc::new);
    let negative_prompt = args.negative_prompt.clone();
    Ok(GenerationRequest { negative_prompt, input, output, ..GenerationRequest::unheard(args.prompt.clone(), config) })
}

fn format_of(path: &Path) -> Result<ImageFormat, InvalidValue> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default();
    match extension.as_str() {
        "png" => Ok(ImageFormat::Png),
        "jpg" | "jpeg" => Ok(ImageFormat::Jpeg),
        "webp" => Ok(ImageFormat::Webp),
        _ => Err(InvalidValue::new("output", path.display(), "a file name that ends in .png, .jpg, .jpeg or .webp")),
    }
}

/// Says before the work is done that its result could not be kept.
fn check_folder(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::metadata(folder).map(drop).map_err(|source| Failure::Output { path: path.to_owned(), source })
}

/// Writes into what is there, if it is a link or a device.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::write(path, bytes).map_err(|source| Failure::Output { path: path.to_owned(), source })
}

fn progress_bar(steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} steps, {per_sec}, {eta} to go") {
        bar.set_style(style);
    }
    bar
}

/// Tensors that are kept on the way, if somebody wants them.
struct Record<'a> {
    path: Option<&'a Path>,
    tensors: HashMap<String, Tensor>,
}

impl<'a> Record<'a> {
    fn new(path: Option<&'a Path>) -> Self {
        Self { path, tensors: HashMap::new() }
    }

    fn add(&mut self, name: &str, tensor: &Tensor) {
        if self.path.is_some() {
            self.tensors.insert(name.to_owned(), tensor.clone());
        }
    }

    fn write(&self) -> Result<(), Failure> {
        let Some(path) = self.path else { return Ok(()) };
        let failed = |error| Failure::Output { path: path.to_owned(), source: io::Error::other(error) };
        write(path, &safetensors::serialize(&self.tensors, None).map_err(failed)?)
    }
}
