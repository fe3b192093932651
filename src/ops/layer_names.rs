//! Numbers for the layers of a network, by which whatever a request brings for a layer is found without looking at its name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The number of a layer within its network, given when the layer is built. A layer that is read again keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerIndex(usize);

impl LayerIndex {
    /// The number: 0 for the layer that was built first.
    #[must_use]
    pub fn get(self) -> usize {
        self.0
    }
}

/// The layers of one network, by their names in the checkpoint. Clones share one list.
#[derive(Debug, Clone, Default)]
pub struct LayerNames(Arc<Mutex<HashMap<String, LayerIndex>>>);

impl LayerNames {
    /// The number of the layer of this name, a new one if the name is new.
    pub(super) fn index(&self, name: &str) -> LayerIndex {
        let mut names = self.names();
        let next = LayerIndex(names.len());
        *names.entry(name.to_owned()).or_insert(next)
    }

    /// The number of the layer of this name, such as `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<LayerIndex> {
        self.names().get(name).copied()
    }

    /// Number of layers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names().len()
    }

    /// Whether no layer was built yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, LayerIndex>> {
        // Every entry is whole, whatever panics elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    use crate::ops::{WeightType, Weights};

    #[test]
    fn a_layer_that_is_read_again_keeps_its_number() {
        let weights = |dtype| Weights::new(VarBuilder::zeros(dtype, &Device::Cpu), WeightType::F32);
        let network = weights(DType::F32);
        let [first, second] = ["a", "b"].map(|name| network.pp(name).layer_index());
        assert_eq!((first.get(), second.get()), (0, 1));
        assert_eq!(network.clone().pp("a").layer_index(), first);
        assert_eq!(network.layer_names().find("b"), Some(second));
        assert_eq!(weights(DType::F32).pp("b").layer_index().get(), 0, "another network counts for itself");
    }
}
