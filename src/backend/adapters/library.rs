//! The adapters that a worker offers, and what they make of the layers of its model.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use candle_core::{DType, Device, Tensor};

use super::{AdaptedNetwork, AdapterEntry, AdapterError, AdapterFile, AdapterFolder, FewSteps, Layer, Module};
use crate::{
    backend::{AdapterId, GenerationError, TextAdapters},
    common::{InvalidValue, LoraScale, ModelFamily, NamedLora, error_chain},
    ops::{AdaptedLayers, LayerAdapter, LayerKind, MergedLayer, WeightLayer, Weights},
};

/// The layers that are kept for requests to come, in bytes; the latest of each network are kept in any case.
const KEPT_BYTES: usize = 64 << 20;
/// The most adapters of one request: each costs time in every step.
const MAX_ADAPTERS: usize = 32;
/// The most files of which it is known how they fit.
const KNOWN_FILES: usize = 1024;
/// The most names that a message lists.
const NAMED: usize = 20;

/// The adapters of a folder, for one model.
#[derive(Debug)]
pub struct AdapterLibrary {
    folder: AdapterFolder,
    family: ModelFamily,
    networks: Vec<AdaptableNetwork>,
    fitted: Mutex<Vec<Arc<FittedAdapter>>>,
    made: Mutex<VecDeque<Made>>,
    next_id: AtomicU64,
}

/// A network of the model, with the weights that it was made of.
#[derive(Debug)]
pub struct AdaptableNetwork {
    network: AdaptedNetwork,
    weights: Weights,
    layers: Vec<WeightLayer>,
}

/// An adapter that fits the model.
#[derive(Debug)]
pub struct FittedAdapter {
    id: u64,
    entry: Arc<AdapterEntry>,
    hash: String,
    /// What of the file has no effect.
    warning: Option<String>,
}

/// An adapter of a request.
#[derive(Debug, Clone)]
pub struct ChosenAdapter {
    adapter: Arc<FittedAdapter>,
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
        self.adapter.entry.name()
    }

    /// A1111's short hash of its file.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.adapter.hash
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
        let alias = self.adapter.entry.info().ok().and_then(|info| info.alias.as_deref());
        let is_active = self.denoiser_scale.get() != 0.0;
        is_active.then(|| FewSteps::of_name(self.name()).or_else(|| FewSteps::of_name(alias?))).flatten()
    }

    /// What of its file has no effect.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.adapter.warning.as_deref()
    }

    fn id(&self, network: AdaptedNetwork) -> AdapterId {
        let scale = if network == AdaptedNetwork::Denoiser { self.denoiser_scale } else { self.text_scale };
        AdapterId { file: self.adapter.id, strength: scale.get() }
    }
}

impl AdapterLibrary {
    /// The adapters of `folder` for a model of these networks.
    #[must_use]
    pub fn new(folder: AdapterFolder, family: ModelFamily, networks: Vec<AdaptableNetwork>) -> Self {
        Self { folder, family, networks, fitted: Mutex::default(), made: Mutex::default(), next_id: AtomicU64::new(0) }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &AdapterFolder {
        &self.folder
    }

    /// The adapters of these names, each once: scales of the same one add up. Reads the files that no request had before.
    ///
    /// # Errors
    /// When there is none of a name, its file is broken, it is for another family of models, or there are too many.
    pub fn choose(&self, loras: &[NamedLora]) -> Result<Vec<ChosenAdapter>, InvalidValue> {
        let mut chosen: Vec<ChosenAdapter> = Vec::new();
        for NamedLora { name, text_scale, denoiser_scale } in loras {
            let adapter = self.find(name)?;
            match chosen.iter_mut().find(|other| other.adapter.id == adapter.id) {
                Some(same) => {
                    same.text_scale = (same.text_scale.get() + text_scale.get()).try_into()?;
                    same.denoiser_scale = (same.denoiser_scale.get() + denoiser_scale.get()).try_into()?;
                }
                None => chosen.push(ChosenAdapter { adapter, text_scale: *text_scale, denoiser_scale: *denoiser_scale }),
            }
        }
        match chosen.len() {
            ..=MAX_ADAPTERS => Ok(chosen),
            count => Err(InvalidValue::new("loras", count, format!("at most {MAX_ADAPTERS} LoRAs"))),
        }
    }

    fn find(&self, name: &str) -> Result<Arc<FittedAdapter>, InvalidValue> {
        let quoted = format!("\"{name}\"");
        let Some(entry) = self.folder.get(name) else { return Err(InvalidValue::new("loras", quoted, names_in(&self.folder))) };
        let mut fitted = self.fitted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = fitted.iter().find(|known| Arc::ptr_eq(&known.entry, &entry)) {
            return Ok(Arc::clone(known));
        }
        let unusable = |error: AdapterError| {
            InvalidValue::new("loras", &quoted, format!("the name of a LoRA that can be used ({})", error_chain(&error)))
        };
        let file = entry.open().map_err(unusable)?;
        let warning = self.check(&file).map_err(|why| InvalidValue::new("loras", &quoted, why))?;
        let hash = entry.short_hash().map_err(unusable)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let warning = warning.map(|warning| format!("LoRA {quoted}: {warning}"));
        let adapter = Arc::new(FittedAdapter { id, entry, hash, warning });
        // Files that were replaced go first.
        fitted.retain(|known| !Arc::ptr_eq(&known.entry, &adapter.entry) && known.entry.path() != adapter.entry.path());
        if fitted.len() >= KNOWN_FILES {
            fitted.remove(0);
        }
        fitted.push(Arc::clone(&adapter));
        Ok(adapter)
    }

    /// What of a file has no effect, if something has not.
    ///
    /// # Errors
    /// Why it does not fit the model, in the words of [`InvalidValue::allowed`].
    pub(in crate::backend) fn check(&self, file: &AdapterFile) -> Result<Option<String>, String> {
        let layers = self.layers();
        let fit = file.fit(&layers);
        if let Some(wrong) = fit.wrong_shapes.first() {
            return Err(format!("a LoRA for {} ({wrong})", self.family));
        }
        if fit.modules.is_empty() {
            let some = fit.unfit.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            return Err(format!("a LoRA for {} (this one has no layer of the model: {some}, …)", self.family));
        }
        Ok((!fit.unfit.is_empty()).then(|| {
            let some = fit.unfit.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            let more = if fit.unfit.len() > 3 { ", …" } else { "" };
            format!("{} of its tensors have no effect on this model: {some}{more}", fit.unfit.len())
        }))
    }

    fn layers(&self) -> Vec<Layer<'_>> {
        self.networks.iter().flat_map(AdaptableNetwork::layers).collect()
    }

    /// What these adapters make of the model's networks. What the latest requests had is kept.
    ///
    /// # Errors
    /// When a file is broken, or was replaced by one that does not fit, or there is no memory.
    pub fn apply(&self, chosen: &[ChosenAdapter]) -> Result<AppliedAdapters, GenerationError> {
        let mut applied = AppliedAdapters::default();
        for network in &self.networks {
            let of_network = chosen.iter().map(|adapter| (adapter, adapter.id(network.network)));
            // At scale 0, a picture is the one without the adapter, to the last bit.
            let active: Vec<(&ChosenAdapter, AdapterId)> = of_network.filter(|(_, id)| id.strength != 0.0).collect();
            let ids: Vec<AdapterId> = active.iter().map(|(_, id)| *id).collect();
            let layers = if ids.is_empty() { None } else { self.made(network, &active, &ids)? };
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
    ) -> Result<Option<Arc<AdaptedLayers>>, GenerationError> {
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
        let (layers, bytes) = make(network, active)?;
        kept.push_front(Made { network: network.network, ids: ids.to_vec(), layers: layers.clone(), bytes });
        Ok(layers)
    }
}

/// The names that there are, as an error has them after "must be".
pub(super) fn names_in(folder: &AdapterFolder) -> String {
    let all = folder.list();
    let names: Vec<String> = all.iter().take(NAMED).map(|entry| format!("\"{}\"", entry.name())).collect();
    match (names.is_empty(), all.len() > NAMED) {
        (true, _) => "left out: the folder of --loras has none".to_owned(),
        (false, true) => format!("one of {}, … (all: GET /v1/loras)", names.join(", ")),
        (false, false) => format!("one of {}", names.join(", ")),
    }
}

/// Frees the layers that are beyond [`KEPT_BYTES`], but for the latest of the other networks.
fn free(kept: &mut VecDeque<Made>, of: AdaptedNetwork) {
    let (mut bytes, mut seen) = (0, vec![of]);
    kept.retain(|made| {
        bytes += made.bytes;
        let is_latest = !seen.contains(&made.network);
        seen.push(made.network);
        is_latest || bytes <= KEPT_BYTES
    });
}

/// The layers of a network that adapters change, and their size in bytes.
fn make(
    network: &AdaptableNetwork,
    active: &[(&ChosenAdapter, AdapterId)],
) -> Result<(Option<Arc<AdaptedLayers>>, usize), GenerationError> {
    let files = active.iter().map(|(adapter, id)| Ok((adapter.adapter.entry.open()?, id.strength)));
    let files = files.collect::<Result<Vec<(AdapterFile, f64)>, AdapterError>>()?;
    let layers: Vec<Layer<'_>> = network.layers().collect();
    let mut by_layer: HashMap<usize, Vec<(&Module, f64)>> = HashMap::new();
    for (file, strength) in &files {
        for (place, module) in file.fit(&layers).modules {
            by_layer.entry(place).or_default().push((module, *strength));
        }
    }
    let (mut adapters, mut bytes) = (Vec::with_capacity(by_layer.len()), 0);
    for (place, modules) in by_layer {
        let layer = &network.layers[place];
        let (adapter, size) = match low_rank(layer, &modules, &network.weights)? {
            Some(adapter) => adapter,
            None => (merged(layer, &modules, &network.weights)?, layer.shape.iter().product()),
        };
        adapters.push((layer.index, adapter));
        bytes += size * size_of::<f32>();
    }
    let layers = (!adapters.is_empty()).then(|| Arc::new(AdaptedLayers::new(adapters)));
    Ok((layers, bytes))
}

/// The adapter of a layer whose modules are all of low rank, side by side, and how many numbers it has.
fn low_rank(layer: &WeightLayer, modules: &[(&Module, f64)], weights: &Weights) -> Result<Option<(LayerAdapter, usize)>, GenerationError> {
    if modules.iter().any(|(module, _)| module.changes_bias()) {
        return Ok(None);
    }
    let (mut downs, mut ups) = (Vec::with_capacity(modules.len()), Vec::with_capacity(modules.len()));
    for (module, strength) in modules {
        let Some(low_rank) = module.low_rank()? else { return Ok(None) };
        let rank = low_rank.down.dim(0)?;
        downs.push(low_rank.down.reshape([&[rank], &layer.shape[1..]].concat())?);
        ups.push((low_rank.up * (low_rank.factor * strength))?);
    }
    let (down, up) = (Tensor::cat(&downs, 0)?, Tensor::cat(&ups, 1)?);
    let adapter = LayerAdapter::low_rank(layer, &down, &up, weights)?;
    Ok(Some((adapter, down.elem_count() + up.elem_count())))
}

/// The layer with its modules in the weight.
fn merged(layer: &WeightLayer, modules: &[(&Module, f64)], weights: &Weights) -> Result<LayerAdapter, GenerationError> {
    let vb = weights.pp(&layer.name);
    let plain = |tensor: Tensor| tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32);
    let mut weight = plain(vb.get(&*layer.shape, "weight")?)?;
    let has_bias = layer.kind != LayerKind::Linear { has_bias: false };
    let mut bias = if has_bias { Some(plain(vb.get(layer.shape[0], "bias")?)?) } else { None };
    for (module, strength) in modules {
        weight = module.weight(&weight, *strength)?;
        bias = module.bias(bias.as_ref(), *strength)?.filter(|_| has_bias);
    }
    let tensors = [Some(("weight", weight)), bias.map(|bias| ("bias", bias))].into_iter().flatten();
    let tensors = tensors.map(|(name, tensor)| (format!("{}.{name}", layer.name), tensor)).collect();
    Ok(LayerAdapter::Merged(MergedLayer::new(layer, &weights.of_tensors(tensors)?)?))
}
