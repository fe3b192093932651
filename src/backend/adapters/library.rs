//! The adapters that a worker offers, and what they make of the layers of its model.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Tensor};

use super::{AdaptedNetwork, AdapterEntry, AdapterError, AdapterFile, AdapterFolder, Effect, FewSteps, Layer, Module, ModuleKind};
use crate::{
    backend::{AdapterId, TextAdapters},
    common::{InvalidValue, LoraScale, ModelFamily, NamedLora, error_chain},
    models::Interrupt,
    ops::{self, AdaptedLayers, LayerAdapter, LayerKind, MergedLayer, WeightLayer, Weights},
};

/// The layers that are kept for requests to come, in bytes; the latest of each network are kept in any case.
const KEPT_BYTES: usize = 48 << 20;
/// The most adapters of one request: each costs time in every step.
const MAX_ADAPTERS: usize = 32;
/// The most sets of layers that are kept.
const MAX_MADE: usize = 64;
/// Larger files are not read for their hash.
const MAX_HASHED_BYTES: u64 = 512 << 20;
/// The most names of files that a message lists.
const NAMED: usize = 20;
/// The most names of tensors that a message lists.
const NAMED_TENSORS: usize = 3;

/// The adapters of a folder, for one model.
#[derive(Debug)]
pub struct AdapterLibrary {
    folder: AdapterFolder,
    family: ModelFamily,
    networks: Vec<AdaptableNetwork>,
    made: Mutex<VecDeque<Made>>,
}

/// A network of the model, with the weights that it was made of.
#[derive(Debug)]
pub struct AdaptableNetwork {
    network: AdaptedNetwork,
    weights: Weights,
    layers: Vec<WeightLayer>,
}

/// An adapter of a request.
#[derive(Debug, Clone)]
pub struct ChosenAdapter {
    entry: Arc<AdapterEntry>,
    hash: Option<String>,
    effect: Effect,
    text_scale: LoraScale,
    denoiser_scale: LoraScale,
}

/// What the adapters of a request make of a model's networks.
#[derive(Debug, Default)]
pub struct AppliedAdapters {
    /// Of the denoiser, if they change it.
    pub denoiser: Option<Arc<AdaptedLayers>>,
    /// Of the text encoders.
    pub text: TextAdapters,
}

/// Layers that are kept for the next request.
#[derive(Debug)]
struct Made {
    network: AdaptedNetwork,
    ids: Vec<AdapterId>,
    layers: Option<Arc<AdaptedLayers>>,
    bytes: usize,
}

impl AdaptableNetwork {
    /// A network whose layers were built of `weights`.
    #[must_use]
    pub fn new(network: AdaptedNetwork, weights: Weights) -> Self {
        Self { network, layers: weights.layer_names().with_weights(), weights }
    }

    fn layers(&self) -> impl Iterator<Item = Layer<'_>> {
        self.layers.iter().map(|layer| Layer { network: self.network, name: &layer.name, shape: &layer.shape })
    }
}

impl ChosenAdapter {
    /// The name of its file, without the ending.
    #[must_use]
    pub fn name(&self) -> &str {
        self.entry.name()
    }

    /// A1111's short hash of its file; none of a very large one whose header has none.
    #[must_use]
    pub fn hash(&self) -> Option<&str> {
        self.hash.as_deref()
    }

    /// How strongly the text encoders are changed.
    #[must_use]
    pub fn text_scale(&self) -> LoraScale {
        self.text_scale
    }

    /// How strongly the denoiser is changed.
    #[must_use]
    pub fn denoiser_scale(&self) -> LoraScale {
        self.denoiser_scale
    }

    /// The settings that it was made for, if it makes the model draw in few steps.
    #[must_use]
    pub fn few_steps(&self) -> Option<FewSteps> {
        let alias = self.entry.info().ok().and_then(|info| info.alias.as_deref());
        let is_active = self.denoiser_scale.get() != 0.0;
        is_active.then(|| FewSteps::of_name(self.name()).or_else(|| FewSteps::of_name(alias?))).flatten()
    }

    /// What of its file, and of what the request says of it, has no effect.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let (name, Effect { lost, changes_text }) = (self.name(), &self.effect);
        let lost = lost.as_ref().map(|lost| format!("LoRA \"{name}\": {lost}"));
        let has_text_scale = self.text_scale != self.denoiser_scale && self.text_scale.get() != 0.0;
        let without_text = (has_text_scale && !changes_text)
            .then(|| format!("LoRA \"{name}\" does not change the text encoders: the scale {} for them has no effect", self.text_scale));
        lost.into_iter().chain(without_text)
    }

    /// Adds it to others. The scales of the same one add up.
    ///
    /// # Errors
    /// When a sum is out of range.
    fn add_to(self, chosen: &mut Vec<Self>) -> Result<(), InvalidValue> {
        match chosen.iter_mut().find(|other| other.entry.id() == self.entry.id()) {
            Some(same) => {
                same.text_scale = (same.text_scale.get() + self.text_scale.get()).try_into()?;
                same.denoiser_scale = (same.denoiser_scale.get() + self.denoiser_scale.get()).try_into()?;
            }
            None => chosen.push(self),
        }
        Ok(())
    }

    fn with_scales(self, text_scale: LoraScale, denoiser_scale: LoraScale) -> Self {
        Self { text_scale, denoiser_scale, ..self }
    }

    fn id(&self, network: AdaptedNetwork) -> AdapterId {
        let scale = if network == AdaptedNetwork::Denoiser { self.denoiser_scale } else { self.text_scale };
        AdapterId { file: self.entry.id(), strength: scale.get() }
    }
}

impl AdapterLibrary {
    /// The adapters of `folder` for a model of these networks.
    #[must_use]
    pub fn new(folder: AdapterFolder, family: ModelFamily, networks: Vec<AdaptableNetwork>) -> Self {
        Self { folder, family, networks, made: Mutex::default() }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &AdapterFolder {
        &self.folder
    }

    /// The adapters that a prompt names and those that a request lists, each once: scales of the same one add up. Reads the files that no
    /// request had before.
    ///
    /// # Errors
    /// When there is none of a name, its file is broken, it is for another family of models, or there are too many.
    pub fn choose(&self, in_prompt: &[NamedLora], listed: &[NamedLora]) -> Result<Vec<ChosenAdapter>, InvalidValue> {
        let names: HashSet<&str> = in_prompt.iter().chain(listed).map(|lora| lora.name.as_str()).collect();
        if names.len() > MAX_ADAPTERS {
            return Err(InvalidValue::new("loras", names.len(), format!("at most {MAX_ADAPTERS} LoRAs")));
        }
        let mut chosen: Vec<ChosenAdapter> = Vec::new();
        for (setting, loras) in [("prompt", in_prompt), ("loras", listed)] {
            for NamedLora { name, text_scale, denoiser_scale } in loras {
                let new = self.find(name).map(|adapter| adapter.with_scales(*text_scale, *denoiser_scale));
                new.and_then(|new| new.add_to(&mut chosen)).map_err(|error| InvalidValue { name: setting, ..error })?;
            }
        }
        Ok(chosen)
    }

    fn find(&self, name: &str) -> Result<ChosenAdapter, InvalidValue> {
        let quoted = format!("\"{name}\"");
        let Some(entry) = self.folder.get(name) else { return Err(InvalidValue::new("loras", quoted, names_in(&self.folder))) };
        let unusable = |why: &dyn Display| format!("the name of a LoRA that can be used ({why})");
        if let Err(why) = entry.info() {
            return Err(InvalidValue::new("loras", quoted, unusable(&why)));
        }
        let effect = entry.effect(|file| self.check(file)).unwrap_or_else(|error| Err(unusable(&error_chain(&error))));
        let effect = effect.map_err(|why| InvalidValue::new("loras", quoted, why))?;
        // The hash is no reason to fail.
        let hash = if entry.has_hash() || entry.len() <= MAX_HASHED_BYTES { entry.short_hash().ok() } else { None };
        Ok(ChosenAdapter { entry, hash, effect, text_scale: LoraScale::ONE, denoiser_scale: LoraScale::ONE })
    }

    /// What a file does to the model.
    ///
    /// # Errors
    /// Why it does not fit the model, in the words of [`InvalidValue::allowed`].
    pub(in crate::backend) fn check(&self, file: &AdapterFile) -> Result<Effect, String> {
        let layers = self.layers();
        let fit = file.fit(&layers);
        if let Some(wrong) = fit.wrong_shapes.first() {
            return Err(format!("a LoRA for {} ({wrong})", self.family));
        }
        let named = |names: &[String]| {
            let some = names.iter().take(NAMED_TENSORS).cloned().collect::<Vec<_>>().join(", ");
            if names.len() > NAMED_TENSORS { format!("{some}, …") } else { some }
        };
        if fit.modules.is_empty() {
            return Err(format!("a LoRA for {} (this one has no layer of the model: {})", self.family, named(&fit.unfit)));
        }
        let all: Vec<&WeightLayer> = self.networks.iter().flat_map(|network| &network.layers).collect();
        let has_no_bias = |place: usize| all[place].kind == LayerKind::Linear { has_bias: false };
        let lost = fit.modules.iter().filter(|(place, module)| module.changes_bias() && has_no_bias(*place));
        let changes_text = fit.modules.iter().any(|(place, _)| layers[*place].network != AdaptedNetwork::Denoiser);
        let lost: Vec<String> = lost.map(|(place, _)| format!("the bias of {}", all[*place].name)).chain(fit.unfit).collect();
        let lost = (!lost.is_empty()).then(|| format!("{} of its tensors have no effect on this model: {}", lost.len(), named(&lost)));
        Ok(Effect { lost, changes_text })
    }

    fn layers(&self) -> Vec<Layer<'_>> {
        self.networks.iter().flat_map(AdaptableNetwork::layers).collect()
    }

    /// What these adapters make of the model's networks. What the latest requests had is kept.
    ///
    /// # Errors
    /// When a file cannot be read, has values that are not finite, or was replaced, there is no memory, or the work is interrupted.
    pub fn apply(&self, chosen: &[ChosenAdapter], interrupt: Interrupt) -> Result<AppliedAdapters, AdapterError> {
        let mut applied = AppliedAdapters::default();
        for network in &self.networks {
            let of_network = chosen.iter().map(|adapter| (adapter, adapter.id(network.network)));
            // At scale 0, a picture is the one without the adapter, to the last bit.
            let active: Vec<(&ChosenAdapter, AdapterId)> = of_network.filter(|(_, id)| id.strength != 0.0).collect();
            let ids: Vec<AdapterId> = active.iter().map(|(_, id)| *id).collect();
            let layers = if ids.is_empty() { None } else { self.made(network, &active, &ids, interrupt)? };
            if network.network == AdaptedNetwork::Denoiser {
                applied.denoiser = layers;
            } else {
                if layers.is_some() {
                    applied.text.ids = ids;
                }
                applied.text.layers.push(layers);
            }
        }
        Ok(applied)
    }

    fn made(
        &self,
        network: &AdaptableNetwork,
        active: &[(&ChosenAdapter, AdapterId)],
        ids: &[AdapterId],
        interrupt: Interrupt,
    ) -> Result<Option<Arc<AdaptedLayers>>, AdapterError> {
        let mut kept = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = kept.iter().position(|made| made.network == network.network && made.ids == ids)
            && let Some(made) = kept.remove(index)
        {
            let layers = made.layers.clone();
            kept.push_front(made);
            return Ok(layers);
        }
        // Older layers go before there are new ones.
        free(&mut kept, network.network);
        let (layers, bytes) = make(network, active, interrupt)?;
        kept.push_front(Made { network: network.network, ids: ids.to_vec(), layers: layers.clone(), bytes });
        Ok(layers)
    }
}

/// The names that there are, as an error has them after "must be".
pub(super) fn names_in(folder: &AdapterFolder) -> String {
    let all = folder.list();
    let usable: BTreeSet<&str> = all.iter().filter(|entry| entry.info().is_ok()).map(|entry| entry.name()).collect();
    let names: Vec<String> = usable.iter().take(NAMED).map(|name| format!("\"{name}\"")).collect();
    match (names.is_empty(), usable.len() > NAMED) {
        (true, _) => "left out: the folder of --loras has none".to_owned(),
        (false, true) => format!("one of {}, … (all: GET /v1/loras)", names.join(", ")),
        (false, false) => format!("one of {}", names.join(", ")),
    }
}

/// Frees the layers that are beyond [`KEPT_BYTES`] and [`MAX_MADE`], but for the latest of the other networks.
fn free(kept: &mut VecDeque<Made>, of: AdaptedNetwork) {
    let (mut bytes, mut seen) = (0, vec![of]);
    kept.retain(|made| {
        bytes += made.bytes;
        let is_latest = !seen.contains(&made.network);
        seen.push(made.network);
        is_latest || bytes <= KEPT_BYTES && seen.len() <= MAX_MADE
    });
}

/// The layers of a network that adapters change, and their size in bytes.
fn make(
    network: &AdaptableNetwork,
    active: &[(&ChosenAdapter, AdapterId)],
    interrupt: Interrupt,
) -> Result<(Option<Arc<AdaptedLayers>>, usize), AdapterError> {
    let files = active.iter().map(|(adapter, id)| Ok((adapter.entry.open()?, id.strength)));
    let files = files.collect::<Result<Vec<(AdapterFile, f64)>, AdapterError>>()?;
    let layers: Vec<Layer<'_>> = network.layers().collect();
    let mut by_layer: HashMap<usize, Vec<(&Module, f64)>> = HashMap::new();
    for (file, strength) in &files {
        for (place, module) in file.fit(&layers).modules {
            by_layer.entry(place).or_default().push((module, *strength));
        }
    }
    let mut adapters = Vec::with_capacity(by_layer.len());
    for (place, modules) in by_layer {
        interrupt.check().map_err(AdapterError::Layer)?;
        let layer = &network.layers[place];
        // candle ends the process where it gets no memory.
        let made = ops::with_room(room(layer, &modules), || match low_rank(layer, &modules, &network.weights)? {
            Some(adapter) => Ok(adapter),
            None => merged(layer, &modules, &network.weights),
        });
        adapters.push((layer.index, made.map_err(AdapterError::Layer)??));
    }
    let layers = (!adapters.is_empty()).then(|| Arc::new(AdaptedLayers::new(adapters)));
    let bytes = layers.as_ref().map_or(0, |layers| layers.bytes());
    Ok((layers, bytes))
}

/// The most memory that candle takes for a layer's adapter, in bytes: each tensor as it is stored, in f32, joined, and multiplied.
fn room(layer: &WeightLayer, modules: &[(&Module, f64)]) -> u64 {
    let (outputs, weight) = (layer.shape[0] as u64, layer.shape.iter().product::<usize>() as u64);
    let factors: u64 =
        modules.iter().map(|(module, _)| module.rank().unwrap_or_default() as u64 * (outputs + weight / outputs.max(1))).sum();
    let is_low_rank =
        modules.iter().all(|(module, _)| module.kind() == ModuleKind::LowRank && !module.has_magnitude() && !module.changes_bias());
    size_of::<f64>() as u64 * (4 * factors + if is_low_rank { 0 } else { 6 * weight })
}

/// The adapter of a layer whose modules are all of low rank, side by side.
fn low_rank(layer: &WeightLayer, modules: &[(&Module, f64)], weights: &Weights) -> Result<Option<LayerAdapter>, AdapterError> {
    if modules.iter().any(|(module, _)| module.changes_bias()) {
        return Ok(None);
    }
    let (mut downs, mut ups) = (Vec::with_capacity(modules.len()), Vec::with_capacity(modules.len()));
    for (module, strength) in modules {
        let Some(low_rank) = module.low_rank()? else { return Ok(None) };
        let factor = low_rank.factor * strength;
        let join = || -> candle_core::Result<bool> {
            let rank = low_rank.down.dim(0)?;
            downs.push(low_rank.down.reshape([&[rank], &layer.shape[1..]].concat())?);
            let up = (low_rank.up * factor)?;
            let is_finite = up.abs()?.max_all()?.to_scalar::<f32>()?.is_finite();
            ups.push(up);
            Ok(is_finite)
        };
        if !join().map_err(AdapterError::Layer)? {
            return Err(AdapterError::WrongStrength(factor));
        }
    }
    let pack = || LayerAdapter::low_rank(layer, &Tensor::cat(&downs, 0)?, &Tensor::cat(&ups, 1)?, weights);
    pack().map(Some).map_err(AdapterError::Layer)
}

/// The layer with its modules in the weight.
fn merged(layer: &WeightLayer, modules: &[(&Module, f64)], weights: &Weights) -> Result<LayerAdapter, AdapterError> {
    let vb = weights.pp(&layer.name);
    let plain = |shape: &[usize], name| vb.get(shape, name)?.to_device(&Device::Cpu)?.to_dtype(DType::F32);
    let mut weight = plain(&layer.shape, "weight").map_err(AdapterError::Layer)?;
    let has_bias = layer.kind != LayerKind::Linear { has_bias: false };
    let mut bias = has_bias.then(|| plain(&layer.shape[..1], "bias")).transpose().map_err(AdapterError::Layer)?;
    for (module, strength) in modules {
        weight = module.weight(&weight, *strength)?;
        bias = module.bias(bias.as_ref(), *strength)?.filter(|_| has_bias);
    }
    let tensors = [Some(("weight", weight)), bias.map(|bias| ("bias", bias))].into_iter().flatten();
    let tensors = tensors.map(|(name, tensor)| (format!("{}.{name}", layer.name), tensor)).collect();
    let layer = weights.of_tensors(tensors).and_then(|weights| MergedLayer::new(layer, &weights));
    layer.map(LayerAdapter::Merged).map_err(AdapterError::Layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_kept_up_to_so_many_bytes_and_the_latest_of_each_network() {
        let made = |network, file: u64, bytes| Made { network, ids: vec![AdapterId { file, strength: 1.0 }], layers: None, bytes };
        let files = |kept: &VecDeque<Made>| kept.iter().map(|made| made.ids[0].file).collect::<Vec<_>>();
        let (denoiser, text) = (AdaptedNetwork::Denoiser, AdaptedNetwork::TextEncoder(0));
        let third = KEPT_BYTES / 3;
        let mut kept: VecDeque<Made> = (0..5).map(|file| made(denoiser, file, third)).collect();
        free(&mut kept, denoiser);
        assert_eq!(files(&kept), [0, 1, 2]);
        // The latest of another network is kept, however large; a new one takes the place of the latest of its own.
        kept.push_front(made(text, 9, KEPT_BYTES + 1));
        free(&mut kept, denoiser);
        assert_eq!(files(&kept), [9]);
        free(&mut kept, text);
        assert_eq!(files(&kept), [0; 0]);
        // What changes no layer takes a place too.
        let mut kept: VecDeque<Made> = (0..1000).map(|file| made(text, file, 0)).chain([made(denoiser, 2000, 1)]).collect();
        free(&mut kept, text);
        assert!(kept.len() <= MAX_MADE && files(&kept).last() == Some(&2000), "{:?}", files(&kept));
    }
}
