//! `sd-worker generate`: pictures without a server.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Failure, GenerateArgs,
    output_file::{self, Output},
    stderr,
};
use crate::{
    backend::{
        self, Diffusion, Generation, GenerationError, GenerationRequest, ImageFile, ImageMetadata, InferencePipeline, InitFiles,
        InputFiles, InputKind, Interrupt, ModelInfo, Order, OrderAdapters, Pipeline, Recording, Settings,
    },
    common::{ImageFormat, InvalidValue, OutputConfig, SamplingConfig, read_regular},
};

/// The largest file of a picture: the most pixels that are accepted, uncompressed, in 16 bits.
const MAX_INPUT_BYTES: u64 = 1 << 28;

/// Makes the pictures, with a progress bar on a terminal.
///
/// # Errors
/// When the arguments do not fit the model, the model does not load or work, or a file cannot be read or written.
pub fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    let output = Output::new(args.output.as_deref(), args.count)?;
    let format = output.format()?;
    if let Some(file) = &args.save_latents {
        output_file::check_folder(file)?;
        if args.count > 1 {
            return Err(InvalidValue::new("count", args.count, "1 with --save-latents").into());
        }
    }
    let input = input_files(args)?;
    args.model.start_threads()?;

    let started = Instant::now();
    let options = args.model.options()?;
    let pipeline = Arc::new(backend::load(&args.model.files()?, &options)?);
    let load_time = started.elapsed();

    let order = order(args, &input, format, pipeline.info())?;
    for index in 0..args.count {
        let order = order.picture(index.into());
        let SamplingConfig { size, steps, sampler, guidance_scale, seed, .. } = order.config;
        let mut recording = args.save_latents.as_ref().map(|_| Recording::default());
        let enlarged = order.upscale.as_ref().map(ToString::to_string).or(order.redraw.as_ref().map(ToString::to_string));
        let upscaled = enlarged.map_or(String::new(), |how| format!(", upscaled to {how}"));
        let (picture, times) = draw(&pipeline, order, recording.as_mut())?;
        let path = output.write(index, &picture)?;
        if let (Some(path), Some(recording)) = (&args.save_latents, recording) {
            let bytes = recording.to_safetensors().map_err(|source| Failure::Output { path: path.clone(), source })?;
            output_file::write(path, &bytes)?;
        }
        let loaded = if index == 0 { format!("load {}, ", seconds(load_time)) } else { String::new() };
        let path = path.display();
        // A line that nobody reads does not make the picture fail.
        stderr().line(format!(
            "{path}: {size}, {steps} steps of {sampler} at guidance {guidance_scale}, seed {seed}{upscaled} ({loaded}{times})"
        ));
    }
    Ok(())
}

/// Makes one picture. Returns the file and a line about the time taken.
fn draw(
    pipeline: &Arc<InferencePipeline>,
    order: Order,
    mut recording: Option<&mut Recording>,
) -> Result<(Vec<u8>, String), GenerationError> {
    let started = Instant::now();
    let request = GenerationRequest::unheard(order);
    let mut generation = pipeline.begin(&request, Interrupt::NEVER)?;
    let text_time = started.elapsed();
    for warning in generation.warnings() {
        stderr().line(format!("warning: {warning}"));
    }
    let mut record = |step, generation: &Diffusion| {
        if let Some(recording) = &mut recording {
            recording.add(step, generation);
        }
    };
    record(0, &generation);

    let started = Instant::now();
    let bar = progress_bar(generation.total_steps());
    for step in 1..=generation.total_steps() {
        generation.step()?;
        record(step, &generation);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let denoise_time = started.elapsed();

    let started = Instant::now();
    let picture = generation.finish(Interrupt::NEVER)?;
    let decode_time = started.elapsed();
    let image = backend::encode(&picture, request.order.output, Some(&ImageMetadata::new(&request.order, pipeline.model_id())))?;
    let [text, denoise, decode] = [text_time, denoise_time, decode_time].map(seconds);
    Ok((image.bytes, format!("text {text}, denoise {denoise}, decode {decode}")))
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// The pictures to begin with and to look at; only their headers are read here.
fn input_files(args: &GenerateArgs) -> Result<InputFiles, Failure> {
    let open = |name: &'static str, path: &PathBuf| -> Result<ImageFile, Failure> {
        let bytes = read_regular(path, MAX_INPUT_BYTES).map_err(|source| Failure::Input { path: path.clone(), source })?;
        ImageFile::open(name, bytes).map_err(|error| no_picture(path, &error))
    };
    let mask = args.mask.as_ref().map(|path| open("mask", path)).transpose()?;
    let image = args.init_image.as_ref().map(|path| open("init-image", path)).transpose()?;
    let controls = args.control.iter().map(|control| open("control", &control.path)).collect::<Result<_, _>>()?;
    let references = args.reference.iter().map(|reference| open("reference", &reference.path)).collect::<Result<_, _>>()?;
    Ok(InputFiles { init: image.map(|image| InitFiles::new(image, mask)), controls, references })
}

/// The failure for a file that is no picture.
fn no_picture(path: &Path, error: &InvalidValue) -> Failure {
    Failure::Input { path: path.to_owned(), source: io::Error::other(format!("it {error}")) }
}

/// The failure for files whose headers were read.
fn no_pixels(args: &GenerateArgs, input: &InputFiles, error: &InvalidValue) -> Failure {
    let first_broken = |files: &[ImageFile]| files.iter().position(|file| !file.is_whole());
    let path = match error.name {
        "mask" => args.mask.as_ref(),
        "control" => first_broken(&input.controls).map(|place| &args.control[place].path),
        "reference" => first_broken(&input.references).map(|place| &args.reference[place].path),
        _ => args.init_image.as_ref(),
    };
    no_picture(path.map_or(Path::new(""), PathBuf::as_path), error)
}

fn order(args: &GenerateArgs, input: &InputFiles, format: ImageFormat, info: &ModelInfo) -> Result<Order, Failure> {
    let settings = Settings {
        input: input.init.as_ref().map(|files| InputKind { has_mask: files.mask.is_some() }),
        output: OutputConfig { format, ..OutputConfig::default() },
        ..args.settings(info.default_size(input.leading_size()))?
    };
    // The settings are validated before the pictures are decoded.
    let adapters = OrderAdapters::choose(info.adapters.as_deref(), &settings.prompt, args.lora.clone())?;
    let (order, without_effect) = Order::new(settings, adapters, info)?;
    for name in without_effect {
        stderr().line(format!("warning: {} has no effect here", name.replace('_', "-")));
    }
    let images = input.decode(order.size(), info.reference_side()).map_err(|error| match error {
        GenerationError::Unsupported(error) => no_pixels(args, input, &error),
        other => other.into(),
    })?;
    Ok(Order { images: Arc::new(images), ..order })
}

fn progress_bar(steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} steps, {per_sec}, {eta} to go") {
        bar.set_style(style);
    }
    bar
}
