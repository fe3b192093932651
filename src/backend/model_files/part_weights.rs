//! The weights of one part of a model, and what is said of those that are missing or left over.

use std::{path::PathBuf, sync::Arc};

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
    /// Where they are, for messages.
    pub path: PathBuf,
    /// Gives tensors by diffusers' names, read as they are asked for.
    pub vb: VarBuilder<'static>,
    /// The files that they are in.
    pub(super) files: Arc<TensorFiles>,
    pub(super) locate: Locate,
    /// What asks for them: a variant of Stable Diffusion, or a configuration.
    pub(super) owner: &'static str,
    /// How the names begin of tensors that nobody asks for, and nobody misses.
    pub(super) needless: Vec<String>,
}

/// How the names of such tensors begin in any checkpoint: the schedule of training, averages of weights, marks.
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
/// And how they end: numbers from 0 to 76, what CLIP compared pictures with, what its projection is to where it is not looked at, and how
/// `ComfyUI` made 8 bits of weights and would make them of what they are multiplied with.
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
    /// Why a network could not be built of these weights, with all tensors that it asks for and that are not there, or are of another
    /// shape, where that is why. `new` builds it once more, of nothing but shapes.
    pub(in crate::backend) fn failure<T>(&self, source: Error, new: impl Fn(&Weights) -> Result<T>) -> LoadError {
        let survey = Survey::new(Arc::clone(&self.files), Arc::clone(&self.locate));
        // Of a type that no kernel packs, so that there is nothing but shapes in memory.
        let vb = VarBuilder::from_backend(Box::new(survey.clone()), DType::F64, Device::Cpu);
        let _ = new(&Weights::new(vb, WeightType::F32));
        match survey.wrong() {
            Some(wrong) => LoadError::MissingWeights { path: self.path.clone(), owner: self.owner, wrong },
            None => LoadError::WrongWeights { path: self.path.clone(), source },
        }
    }

    /// The names of tensors that no network asked for, though they look like parts of one, in order.
    pub(in crate::backend) fn unread(&self) -> Vec<String> {
        let begins =
            |name: &str| NEEDLESS.iter().any(|start| name.starts_with(start)) || self.needless.iter().any(|start| name.starts_with(start));
        let is_needless = |name: &String| begins(name) || NEEDLESS_ENDS.iter().any(|end| name.ends_with(end));
        self.files.unread().into_iter().filter(|name| !is_needless(name)).collect()
    }
}
