//! The weights of one part of a model, and reports of missing and unread ones.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Error, Result};
use candle_nn::VarBuilder;

use super::{
    survey::Survey,
    tensor_files::{Locate, TensorFiles},
};
use crate::{
    backend::LoadError,
    ops::{WeightType, Weights},
};

/// The weights of a part.
pub struct PartWeights {
    /// The file, for messages.
    pub path: PathBuf,
    /// Reads tensors by diffusers' names, when a network asks for them.
    pub vb: VarBuilder<'static>,
    /// The files that they are in.
    pub(super) files: Arc<TensorFiles>,
    pub(super) locate: Locate,
    /// What they belong to, for messages: a variant of Stable Diffusion, or a configuration.
    pub(super) owner: &'static str,
    /// Prefixes of tensors that no network needs.
    pub(super) needless: Vec<String>,
}

/// Prefixes of such tensors in any checkpoint: the training's schedule, averages of weights, marks.
const NEEDLESS: [&str; 13] = [
    "model_ema.",
    "first_stage_model.loss.",
    "denoiser.",
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_",
    "posterior_",
    "logvar",
    "v_pred",
    "ztsnr",
    "scale_factor",
    "scaled_fp8",
];
/// The most tensors that a warning names.
const NAMED: usize = 5;
/// Suffixes of such tensors: positions, the parts of CLIP that compare with pictures, a projection that is not used, and `ComfyUI`'s notes on
/// quantization.
const NEEDLESS_ENDS: [&str; 8] = [
    "position_ids",
    "logit_scale",
    "attn_mask",
    "text_projection",
    "text_projection.weight",
    ".scale_input",
    ".input_scale",
    ".comfy_quant",
];

impl PartWeights {
    /// The tensors of files, under their own names. `owner` is what they belong to, for messages.
    pub(in crate::backend) fn of_files(path: &Path, files: &Arc<TensorFiles>, owner: &'static str, dtype: DType, device: &Device) -> Self {
        let locate: Locate = Arc::new(|name| name.to_owned().into());
        let vb = files.reader(dtype, device, Arc::clone(&locate));
        Self { path: path.to_owned(), vb, files: Arc::clone(files), locate, owner, needless: Vec::new() }
    }

    /// Looks for all tensors of the network that `new` builds, without reading them.
    ///
    /// # Errors
    /// Lists those that are missing or have another shape.
    pub(in crate::backend) fn check<T>(&self, new: impl Fn(&Weights) -> Result<T>) -> std::result::Result<(), LoadError> {
        self.wrong(new).map_or(Ok(()), Err)
    }

    /// Why a network could not be built of these weights. `new` builds it once more, of nothing but shapes, to list all tensors that are
    /// missing or have another shape.
    pub(in crate::backend) fn failure<T>(&self, source: Error, new: impl Fn(&Weights) -> Result<T>) -> LoadError {
        self.wrong(new).unwrap_or(LoadError::WrongWeights { path: self.path.clone(), source })
    }

    fn wrong<T>(&self, new: impl Fn(&Weights) -> Result<T>) -> Option<LoadError> {
        let survey = Survey::new(Arc::clone(&self.files), Arc::clone(&self.locate));
        // No kernel packs f64, so nothing but shapes is in memory.
        let vb = VarBuilder::from_backend(Box::new(survey.clone()), DType::F64, Device::Cpu);
        let _ = new(&Weights::new(vb, WeightType::F32));
        survey.wrong().map(|wrong| LoadError::MissingWeights { path: self.path.clone(), owner: self.owner, wrong })
    }

    /// Number of elements of the largest tensor in its files.
    pub(in crate::backend) fn largest(&self) -> usize {
        self.files.largest()
    }

    /// A warning about tensors that look like a network's and that no network read: a sign of a wrong configuration.
    pub(in crate::backend) fn unread_warning(&self) -> Option<String> {
        let (unread, path) = (self.unread(), self.path.display());
        let some = unread[..unread.len().min(NAMED)].join(", ");
        let more = if unread.len() > NAMED { ", …" } else { "" };
        let count = unread.len();
        (count > 0).then(|| format!("{path}: {count} of its tensors belong to no part of the model and were not read: {some}{more}"))
    }

    /// The names, in order, of tensors that look like a network's and that no network read.
    fn unread(&self) -> Vec<String> {
        let begins =
            |name: &str| NEEDLESS.iter().any(|start| name.starts_with(start)) || self.needless.iter().any(|start| name.starts_with(start));
        let is_needless = |name: &String| begins(name) || NEEDLESS_ENDS.iter().any(|end| name.ends_with(end));
        self.files.unread().into_iter().filter(|name| !is_needless(name)).collect()
    }
}
