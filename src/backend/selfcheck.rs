//! A check of a device: each stage of a small picture of the built-in model is compared with diffusers' numbers, which
//! `tests/parity/make_selfcheck_goldens.py` writes.

use std::{collections::HashMap, sync::Arc};

use candle_core::{DType, Device, Result, Tensor};

use super::{
    Diffusion, Generation, GenerationError, GenerationRequest, InferencePipeline, LoadError, LoadOptions, ModelFiles, ModelInfo, Order,
    Pipeline, load,
};
use crate::{
    builtin_model,
    common::{ImageSize, Sampler, SamplingConfig, SamplingOptions, Schedule, Seed},
    models::Interrupt,
    ops::WeightType,
};

/// The stages, by the names of their goldens, with limits of their errors: in f32, with 10 bits of fraction, and with 7. The last two are
/// five and three times diffusers' own errors in f16 and bf16 on a CPU, which the script prints: candle's convolutions sum f16 in f16.
const STAGES: [(&str, [f32; 3]); 6] = [
    ("text_embeddings", [1e-4, 5e-3, 2e-2]),
    ("unet", [1e-4, 3e-2, 2.5e-1]),
    ("latents", [1e-3, 2e-2, 1.4e-1]),
    ("picture", [1e-2, 6e-2, 4e-1]),
    ("decoded", [1e-4, 4e-3, 3e-2]),
    ("encoded", [1e-4, 3e-3, 1.5e-2]),
];

/// Tensors by the stages' names.
type Goldens = HashMap<String, Tensor>;

/// The comparison of a stage with diffusers'.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// `text_embeddings`; `unet`, its first pass; `latents`, after the last step; `picture`; `decoded` and `encoded`, the VAE alone.
    pub stage: &'static str,
    /// The largest difference, divided by the largest value; infinite if a value is not finite.
    pub error: f32,
    /// The limit of the error.
    pub limit: f32,
}

impl Comparison {
    /// Whether the error is within its limit.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.error <= self.limit
    }
}

/// Compares every stage on a device, with weights kept in this type.
///
/// # Errors
/// When the built-in model does not load or work there.
pub fn selfcheck(device: &Device, weight_type: WeightType) -> std::result::Result<Vec<Comparison>, LoadError> {
    let options = LoadOptions { device: device.clone(), weight_type, ..LoadOptions::default() };
    let pipeline = load(&ModelFiles::open("builtin")?, &options)?;
    let precision = match weight_type {
        WeightType::F32 if device.is_cpu() => 0,
        // cuDNN computes convolutions of f32 with the 10 bits of TF32.
        WeightType::F32 | WeightType::F16 => 1,
        WeightType::Bf16 | WeightType::Q8_0 => 2,
    };
    goldens().map_err(GenerationError::from).and_then(|goldens| compare(pipeline, precision, &goldens)).map_err(LoadError::SelfTest)
}

fn goldens() -> Result<Goldens> {
    candle_core::safetensors::load_buffer(builtin_model::GOLDENS, &Device::Cpu)
}

/// `precision` is the index of the limits in [`STAGES`].
fn compare(pipeline: InferencePipeline, precision: usize, goldens: &Goldens) -> std::result::Result<Vec<Comparison>, GenerationError> {
    let found = stages(&Arc::new(pipeline), goldens)?;
    let compare = |(stage, limits): (&'static str, [f32; 3])| {
        Ok(Comparison { stage, error: relative_error(&found[stage], &goldens[stage])?, limit: limits[precision] })
    };
    STAGES.into_iter().map(compare).collect()
}

/// Every stage on this device. The VAE alone is given the goldens' input.
fn stages(pipeline: &Arc<InferencePipeline>, goldens: &Goldens) -> std::result::Result<HashMap<&'static str, Tensor>, GenerationError> {
    let mut generation = pipeline.begin(&request(pipeline.info())?, Interrupt::NEVER)?;
    let tokens = goldens["text_embeddings"].dim(1)?;
    let text_embeddings = generation.text_embeddings().narrow(1, 0, tokens)?;
    let predictions = Diffusion::predict(&[&generation], &Diffusion::join(&[&generation])?, Interrupt::NEVER)?;
    let outputs: Vec<&Tensor> = predictions.iter().map(|prediction| &prediction.output).collect();
    let unet = Tensor::cat(&outputs, 0)?;
    for _ in 0..generation.total_steps() {
        generation.step()?;
    }
    let latents = generation.latents().clone();
    let picture = generation.finish(Interrupt::NEVER)?;
    let picture = Tensor::from_slice(picture.as_raw(), goldens["picture"].shape(), &Device::Cpu)?;

    let (vae, given) = (&pipeline.networks().vae, |x: &Tensor| x.to_dtype(pipeline.dtype())?.to_device(pipeline.device()));
    let corner = goldens["decoded"].dim(3)? / vae.config().scale_factor();
    let decoded = vae.decode(&given(&goldens["latents"].narrow(2, 0, corner)?.narrow(3, 0, corner)?.contiguous()?)?, Interrupt::NEVER)?;
    let pixels = goldens["picture"].to_dtype(DType::F32)?.affine(2.0 / 255.0, -1.0)?.permute((2, 0, 1))?.unsqueeze(0)?;
    let encoded = vae.encode(&given(&pixels.contiguous()?)?, Interrupt::NEVER)?.mean;
    let stages = [text_embeddings, unet, latents, picture, decoded, encoded];
    Ok(STAGES.iter().map(|(name, _)| *name).zip(stages).collect())
}

/// `FOX` of the script.
fn request(info: &ModelInfo) -> std::result::Result<GenerationRequest, GenerationError> {
    let config = SamplingConfig {
        size: ImageSize::new(64, 64)?,
        steps: 6.try_into()?,
        guidance_scale: 4.0.try_into()?,
        seed: Seed::from(1),
        sampler: Sampler::Ddim,
        schedule: Schedule::Default,
        options: SamplingOptions::default(),
    };
    Ok(GenerationRequest::unheard(Order::of("a fox on a blue background", "", config, info)?))
}

fn relative_error(ours: &Tensor, golden: &Tensor) -> Result<f32> {
    if ours.dims() != golden.dims() {
        candle_core::bail!("{:?} is to be compared with {:?}", ours.shape(), golden.shape());
    }
    let values = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (ours, golden) = (values(ours)?, values(golden)?);
    if !ours.iter().all(|value| value.is_finite()) {
        return Ok(f32::INFINITY);
    }
    let largest = golden.iter().map(|value| value.abs()).fold(0.0, f32::max);
    Ok(ours.iter().zip(&golden).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::model_loader::load_as;

    fn pipeline(dtype: DType, weight_type: WeightType) -> InferencePipeline {
        let options = LoadOptions { weight_type, ..LoadOptions::default() };
        load_as(dtype, &ModelFiles::open("builtin").unwrap(), &options).unwrap()
    }

    /// On a CPU that goes through candle's own operations, as it does on a GPU.
    #[test]
    fn networks_that_work_in_f16_are_right() {
        let comparisons = compare(pipeline(DType::F16, WeightType::F16), 1, &goldens().unwrap()).unwrap();
        assert!(comparisons.iter().all(|comparison| comparison.is_right() && comparison.error > 1e-4), "{comparisons:?}");
    }

    #[test]
    fn a_golden_that_is_changed_is_noticed() {
        let wrong = |goldens: &Goldens| -> Vec<&str> {
            let comparisons = compare(pipeline(DType::F32, WeightType::F32), 0, goldens).unwrap();
            comparisons.iter().filter(|comparison| !comparison.is_right()).map(|comparison| comparison.stage).collect()
        };
        let goldens = goldens().unwrap();
        assert_eq!(wrong(&goldens), [""; 0]);
        for (stage, [limit, ..]) in STAGES {
            let golden = goldens[stage].to_dtype(DType::F32).unwrap().flatten_all().unwrap();
            let mut values = golden.to_vec1::<f32>().unwrap();
            let largest = values.iter().fold(0f32, |most, value| most.max(value.abs()));
            // In the corner that the decoder looks at.
            values[0] += if values[0] > 0.5 * largest { -4.0 } else { 4.0 } * limit * largest;
            let changed = Tensor::from_vec(values, goldens[stage].shape(), &Device::Cpu).unwrap().to_dtype(goldens[stage].dtype()).unwrap();
            let wrong = wrong(
                &goldens.iter().map(|(name, golden)| (name.clone(), if name == stage { &changed } else { golden }.clone())).collect(),
            );
            assert!(wrong.contains(&stage), "{stage}: {wrong:?}");
            // The VAE alone sees what the goldens of two others are.
            let seen_by = |vae: &str| (stage, vae) == ("latents", "decoded") || (stage, vae) == ("picture", "encoded");
            assert!(wrong.iter().all(|name| *name == stage || seen_by(name)), "{stage}: {wrong:?}");
        }
    }

    #[test]
    fn what_is_no_number_is_wrong() {
        let golden = Tensor::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        for (ours, error) in [([1.5f32, -2.0], 0.25), ([1.0, f32::NAN], f32::INFINITY), ([f32::NEG_INFINITY, -2.0], f32::INFINITY)] {
            let found = relative_error(&Tensor::new(&ours, &Device::Cpu).unwrap(), &golden).unwrap();
            assert!(found.total_cmp(&error).is_eq(), "{ours:?}: {found}");
        }
        assert!(relative_error(&golden.unsqueeze(0).unwrap(), &golden).is_err());
    }
}
