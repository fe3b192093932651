//! Which module changes which layer.

use std::collections::HashMap;

use super::{AdaptedNetwork, AdapterFile, Module, dora, key::underscored};
use crate::backend::model_files::ldm_names;

/// A layer of the model.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// The network that it belongs to.
    pub network: AdaptedNetwork,
    /// diffusers' and transformers' name, such as `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`. The names of text encoders
    /// may begin with `text_model.`, or not.
    pub name: &'a str,
    /// The shape of its weight: `(outputs, inputs)`, `(outputs, inputs, kernel, kernel)` or `(channels,)`.
    pub shape: &'a [usize],
}

/// The modules of a file that change layers of a model.
#[derive(Debug, Default)]
pub struct Fit<'a> {
    /// Places in the list of layers, in its order, and what changes them.
    pub modules: Vec<(usize, &'a Module)>,
    /// The names of tensors that have no effect: those that fit no layer, and those of an unknown kind.
    pub unfit: Vec<String>,
    /// What is wrong with modules whose layers have other shapes, one message for each. These have no effect either.
    pub wrong_shapes: Vec<String>,
}

/// What a file does to a model.
#[derive(Debug, Clone)]
pub(in crate::backend) struct Effect {
    /// What of it has no effect, if something has not.
    pub(in crate::backend) lost: Option<String>,
    /// Whether it changes a text encoder.
    pub(super) changes_text: bool,
}

impl AdapterFile {
    /// Finds the module for each layer, whatever spelling of its name the file has.
    #[must_use]
    pub fn fit(&self, layers: &[Layer<'_>]) -> Fit<'_> {
        let by_name: HashMap<(AdaptedNetwork, String), usize> =
            self.modules().iter().enumerate().map(|(i, module)| ((module.network(), underscored(module.layer())), i)).collect();
        let mut fit = Fit::default();
        let mut is_found = vec![false; self.modules().len()];
        for (place, layer) in layers.iter().enumerate() {
            let Some(i) = spellings(layer).into_iter().find_map(|name| by_name.get(&(layer.network, name)).copied()) else { continue };
            let module = &self.modules()[i];
            is_found[i] = true;
            match mismatch(module, layer) {
                Some(message) => fit.wrong_shapes.push(message),
                None => fit.modules.push((place, module)),
            }
        }
        let lost = self.modules().iter().zip(is_found).filter(|(_, is_found)| !is_found).flat_map(|(module, _)| module.tensors());
        fit.unfit = lost.map(str::to_owned).chain(self.unknown().iter().cloned()).collect();
        fit
    }
}

/// What is wrong with a module for a layer.
fn mismatch(module: &Module, layer: &Layer<'_>) -> Option<String> {
    let describe = |problem: String| format!("{} of the {} {problem}", layer.name, layer.network);
    if !module.fits(layer.shape) {
        let found = module.shape().unwrap_or_default();
        return Some(describe(format!("has a weight of the shape {:?}, and the adapter one of {found:?}", layer.shape)));
    }
    let wrong = dora::axis(&module.parts, layer.shape).err()?;
    Some(describe(format!("does not go with the adapter: {} {}", wrong.tensor, wrong.problem)))
}

/// A layer's names in all spellings, with underscores for dots.
pub(super) fn spellings(layer: &Layer<'_>) -> Vec<String> {
    let mut names = vec![underscored(layer.name)];
    match layer.network {
        AdaptedNetwork::Denoiser => {
            // The place of an upsampler depends on what else is in its block: both are tried.
            for is_alone in [false, true] {
                let name = ldm_names::unet(&format!("{}.weight", layer.name), |_| is_alone);
                names.push(underscored(name.strip_suffix(".weight").unwrap_or(&name)));
            }
        }
        AdaptedNetwork::TextEncoder(_) => {
            let short = layer.name.strip_prefix("text_model.").unwrap_or(layer.name);
            let long = format!("text_model.{short}");
            names.extend([underscored(&long), underscored(short)]);
            names.extend(ldm_names::open_clip_layer(&long).map(|name| underscored(&name)));
        }
    }
    names
}
