//! Weights with adapters merged into them as they are read, for all requests.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

use super::{AdaptedNetwork, AdapterFile, AdapterFolder, Layer, Module, library};
use crate::{
    backend::LoadError,
    common::{NamedLora, error_chain},
};

/// Adapters that are merged into a model when it is loaded.
#[derive(Debug, Clone, Default)]
pub struct MergedAdapters(Arc<Vec<(NamedLora, AdapterFile)>>);

impl MergedAdapters {
    /// Opens the files of these names.
    ///
    /// # Errors
    /// When there is none of a name, or its file is broken.
    pub(in crate::backend) fn open(folder: Option<&AdapterFolder>, loras: &[NamedLora]) -> std::result::Result<Self, LoadError> {
        let open = |lora: &NamedLora| {
            let Some(folder) = folder else { return Err(LoadError::Unsupported("--lora needs --loras DIR".to_owned())) };
            let Some(entry) = folder.get(&lora.name) else {
                let known = library::names_in(folder);
                return Err(LoadError::Unsupported(format!("--lora must be {known}, not \"{}\"", lora.name)));
            };
            Ok((lora.clone(), entry.open()?))
        };
        Ok(Self(Arc::new(loras.iter().map(open).collect::<std::result::Result<_, _>>()?)))
    }

    /// The files, by the names that they are asked for by.
    pub(in crate::backend) fn files(&self) -> impl Iterator<Item = (&str, &AdapterFile)> {
        self.0.iter().map(|(lora, file)| (lora.name.as_str(), file))
    }

    /// The weights of a network with the adapters in them.
    pub(in crate::backend) fn merge(&self, network: AdaptedNetwork, base: VarBuilder<'static>) -> VarBuilder<'static> {
        if self.0.is_empty() {
            return base;
        }
        let (dtype, device) = (base.dtype(), base.device().clone());
        let merged = MergedWeights { base, network, adapters: self.clone(), modules: Mutex::default() };
        VarBuilder::from_backend(Box::new(merged), dtype, device)
    }
}

struct MergedWeights {
    base: VarBuilder<'static>,
    network: AdaptedNetwork,
    adapters: MergedAdapters,
    /// What changes each layer. It is found by the shape of its weight, which is read before the bias.
    modules: Mutex<HashMap<String, Vec<(Module, f64)>>>,
}

impl MergedWeights {
    /// What changes a layer whose weight has this shape.
    fn modules(&self, layer: &str, shape: &Shape) -> Vec<(Module, f64)> {
        let mut known = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let modules = known.entry(layer.to_owned()).or_insert_with(|| {
            let layer = Layer { network: self.network, name: layer, shape: shape.dims() };
            let of_file = |(lora, file): &(NamedLora, AdapterFile)| {
                let scale = if self.network == AdaptedNetwork::Denoiser { lora.denoiser_scale } else { lora.text_scale };
                file.fit(&[layer]).modules.into_iter().map(|(_, module)| (module.clone(), scale.get())).collect::<Vec<_>>()
            };
            self.adapters.0.iter().flat_map(of_file).filter(|(_, scale)| *scale != 0.0).collect()
        });
        modules.clone()
    }

    fn known_modules(&self, layer: &str) -> Vec<(Module, f64)> {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner).get(layer).cloned().unwrap_or_default()
    }
}

impl SimpleBackend for MergedWeights {
    fn get(&self, shape: Shape, name: &str, hints: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let failed = |error| Error::msg(error_chain(&error));
        let (layer, is_weight) = match name.rsplit_once('.') {
            Some((layer, "weight")) => (layer, true),
            Some((layer, "bias")) => (layer, false),
            _ => return self.base.get_with_hints_dtype(shape, name, hints, dtype),
        };
        let modules = if is_weight { self.modules(layer, &shape) } else { self.known_modules(layer) };
        if modules.is_empty() {
            return self.base.get_with_hints_dtype(shape, name, hints, dtype);
        }
        let mut merged = self.base.get_with_hints_dtype(shape, name, hints, DType::F32)?.to_device(&Device::Cpu)?;
        for (module, strength) in modules {
            merged = if is_weight {
                module.weight(&merged, strength).map_err(failed)?
            } else {
                module.bias(Some(&merged), strength).map_err(failed)?.unwrap_or(merged)
            };
        }
        merged.to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> Result<Tensor> {
        self.base.get_unchecked_dtype(name, dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.base.contains_tensor(name)
    }
}
