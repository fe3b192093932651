//! Numbers for the layers of a network, by which whatever a request brings for a layer is found without looking at its name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::Conv2dConfig;

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

/// The kind of a layer that has a weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LayerKind {
    /// [`Linear`](super::Linear): `(out_features, in_features)`.
    Linear {
        /// Whether it has a bias.
        has_bias: bool,
    },
    /// [`Geglu`](super::Geglu): `(2 * out_features, in_features)`.
    Geglu,
    /// [`Conv2d`](super::Conv2d): `(out_channels, in_channels, kernel, kernel)`.
    Conv2d(Conv2dConfig),
    /// [`GroupNorm`](super::GroupNorm): `(channels,)`.
    GroupNorm {
        /// Number of groups.
        groups: usize,
        /// Added to the variance.
        eps: f64,
    },
    /// [`LayerNorm`](super::LayerNorm): `(features,)`.
    LayerNorm {
        /// Added to the variance.
        eps: f64,
    },
}

/// A layer that has a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightLayer {
    /// Its name in the checkpoint, such as `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`.
    pub name: String,
    /// Its number.
    pub index: LayerIndex,
    /// What it does with the weight.
    pub kind: LayerKind,
    /// The shape of its weight.
    pub shape: Vec<usize>,
}

/// The layers of one network, by their names in the checkpoint. Clones share one list.
#[derive(Debug, Clone, Default)]
pub struct LayerNames(Arc<Mutex<HashMap<String, Entry>>>);

#[derive(Debug)]
struct Entry {
    index: LayerIndex,
    /// None for a layer that has no weight of its own.
    weight: Option<(LayerKind, Vec<usize>)>,
}

impl LayerNames {
    /// The number of the layer of this name, a new one if the name is new. `weight` is its kind and the shape of its weight, if it has one.
    pub(super) fn index(&self, name: &str, weight: Option<(LayerKind, &[usize])>) -> LayerIndex {
        let mut names = self.names();
        let next = LayerIndex(names.len());
        let entry = names.entry(name.to_owned()).or_insert(Entry { index: next, weight: None });
        if let Some((kind, shape)) = weight {
            entry.weight = Some((kind, shape.to_vec()));
        }
        entry.index
    }

    /// The number of the layer of this name, such as `down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<LayerIndex> {
        self.names().get(name).map(|entry| entry.index)
    }

    /// The number of the layer of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<LayerIndex> {
        self.names().get(name).map(|entry| entry.index)
    }

    /// All layers that have a weight, in the order of their numbers.
    #[must_use]
    pub fn with_weights(&self) -> Vec<WeightLayer> {
        let names = self.names();
        let weights = names.iter().filter_map(|(name, Entry { index, weight })| {
            let (kind, shape) = weight.clone()?;
            Some(WeightLayer { name: name.clone(), index: *index, kind, shape })
        });
        let mut layers: Vec<WeightLayer> = weights.collect();
        layers.sort_by_key(|layer| layer.index);
        layers
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

    fn names(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // Every entry is whole, whatever panics elsewhere.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    use super::*;
    use crate::ops::{GroupNorm, Linear, WeightType, Weights};

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

    #[test]
    fn layers_with_weights_are_listed_in_order() {
        let vb = Weights::new(VarBuilder::zeros(DType::F32, &Device::Cpu), WeightType::F32);
        let _ = vb.pp("attn2").layer_index();
        GroupNorm::new(2, 4, 1e-5, &vb.pp("norm")).unwrap();
        let linear = Linear::no_bias(4, 3, &vb.pp("to_q")).unwrap();
        let layers = vb.layer_names().with_weights();
        assert_eq!(
            layers.iter().map(|layer| (layer.name.as_str(), &*layer.shape)).collect::<Vec<_>>(),
            [("norm", &[4][..]), ("to_q", &[3, 4])]
        );
        assert_eq!((layers[1].index, layers[1].kind), (linear.layer_index(), LayerKind::Linear { has_bias: false }));
    }
}
