//! A dry run of building a network, which lists what the files lack.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, var_builder::SimpleBackend};

use super::tensor_files::{Locate, StoredTensor, TensorFiles};

/// The most tensors that a message names.
const NAMED: usize = 5;
/// The survey ends after this many missing tensors: a configuration may ask for a million layers.
const MOST: usize = 1000;

/// Gives a network tensors of the shapes that it asks for, without memory behind them, and lists what the files lack.
#[derive(Clone)]
pub(super) struct Survey {
    files: Arc<TensorFiles>,
    locate: Locate,
    found: Arc<Mutex<Found>>,
}

#[derive(Default)]
struct Found {
    missing: Vec<String>,
    /// With the shapes that they have and should have.
    misshapen: Vec<String>,
}

impl Survey {
    pub(super) fn new(files: Arc<TensorFiles>, locate: Locate) -> Self {
        Self { files, locate, found: Arc::default() }
    }

    /// The tensors that are missing or have another shape, for messages; `None` if there are none.
    pub(super) fn wrong(&self) -> Option<String> {
        let Found { missing, misshapen } = &*self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let list = |what: &str, all: &[String]| {
            let more = if all.len() > NAMED { ", …" } else { "" };
            let or_more = if all.len() >= MOST { " or more" } else { "" };
            (!all.is_empty()).then(|| format!("{}{or_more} {what}: {}{more}", all.len(), all[..all.len().min(NAMED)].join(", ")))
        };
        let lists = [list("are missing", missing), list("have another shape", misshapen)];
        let wrong: Vec<String> = lists.into_iter().flatten().collect();
        (!wrong.is_empty()).then(|| wrong.join("; "))
    }
}

impl SimpleBackend for Survey {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let place = (self.locate)(name);
        let expected = place.shape_of(&shape);
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if found.missing.len() >= MOST {
            candle_core::bail!("nothing of this network is there");
        }
        match self.files.shape(&place.name) {
            None => found.missing.push(place.name),
            Some(shape) if !StoredTensor::fits(shape, &expected) => {
                found.misshapen.push(format!("{} is {shape:?} and should be {expected:?}", place.name));
            }
            Some(_) => {}
        }
        // One number stands for all.
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} is asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.files.shape(&(self.locate)(name).name).is_some()
    }
}
