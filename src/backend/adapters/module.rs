//! What an adapter does to one layer.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    AdaptedNetwork, AdapterError,
    key::Part,
    parts::{Layout, Parts, Wrong},
};
use crate::backend::model_files::TensorFiles;

/// How a module makes the difference that it adds to a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ModuleKind {
    /// `LoRA`, and `LoCon` for convolutions: a product of two matrices, perhaps with a Tucker core between them.
    LowRank,
    /// `LoHa`: the product, number by number, of two such products.
    LoHa,
    /// `LoKr`: the Kronecker product of two matrices, each of which may be such a product.
    LoKr,
    /// The difference itself. Either of weight and bias may be absent.
    Difference,
    /// The difference of a normalization's weight and bias.
    Norm,
}

/// An open file, shared by its modules.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) files: Arc<TensorFiles>,
}

/// What an adapter does to one layer. Its values are read from the file when they are asked for.
#[derive(Debug, Clone)]
pub struct Module {
    pub(super) source: Arc<Source>,
    network: AdaptedNetwork,
    layer: String,
    kind: ModuleKind,
    rank: Option<usize>,
    alpha: Option<f64>,
    shape: Option<Vec<usize>>,
    pub(super) parts: Parts,
}

impl Module {
    /// `alpha` is the module's own; `None` for none.
    ///
    /// # Errors
    /// When the factor is not finite.
    pub(super) fn new(
        source: Arc<Source>,
        network: AdaptedNetwork,
        layer: String,
        layout: Layout,
        alpha: Option<f64>,
        parts: Parts,
    ) -> Result<Self, AdapterError> {
        let module = Self { source, network, layer, kind: layout.kind, rank: layout.rank, alpha, shape: layout.shape, parts };
        if !(module.factor() as f32).is_finite() {
            let tensor = module.parts.get(Part::Alpha).map_or(module.layer.as_str(), |part| &part.name).to_owned();
            let problem = format!("gives an alpha of {}, which is no number to multiply weights with", module.alpha.unwrap_or_default());
            return Err(AdapterError::WrongTensor { path: module.source.path.clone(), tensor, problem });
        }
        Ok(module)
    }

    /// The network that the layer belongs to.
    #[must_use]
    pub fn network(&self) -> AdaptedNetwork {
        self.network
    }

    /// The layer's name as the file spells it, without the network's prefix.
    #[must_use]
    pub fn layer(&self) -> &str {
        &self.layer
    }

    /// How the difference is made.
    #[must_use]
    pub fn kind(&self) -> ModuleKind {
        self.kind
    }

    /// The rank of the factors; `None` if there are no factors of low rank.
    #[must_use]
    pub fn rank(&self) -> Option<usize> {
        self.rank
    }

    /// The stored alpha.
    #[must_use]
    pub fn alpha(&self) -> Option<f64> {
        self.alpha
    }

    /// Whether the weight is brought to stored magnitudes: `DoRA`.
    #[must_use]
    pub fn has_magnitude(&self) -> bool {
        self.parts.magnitude().is_some()
    }

    /// Whether the layer's bias changes.
    #[must_use]
    pub fn changes_bias(&self) -> bool {
        [Part::BiasDifference, Part::NormBias, Part::UpBias].iter().any(|part| self.parts.has(*part))
    }

    /// The shape of the weight that changes: `(outputs, inputs)`, `(outputs, inputs, kernel…)` with a kernel larger than 1 x 1,
    /// `(outputs, inputs * kernel)` where the file does not tell the kernel, or `(channels,)`. `None` if the bias alone changes.
    #[must_use]
    pub fn shape(&self) -> Option<&[usize]> {
        self.shape.as_deref()
    }

    /// The names of its tensors.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.parts.names()
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// What the product of the factors is multiplied with: alpha / rank; 1 without an alpha, and where nothing has a rank.
    #[must_use]
    pub fn factor(&self) -> f64 {
        match (self.alpha, self.rank) {
            (Some(alpha), Some(rank)) => alpha / rank as f64,
            _ => 1.0,
        }
    }

    pub(super) fn wrong(&self, Wrong { tensor, problem }: Wrong) -> AdapterError {
        AdapterError::WrongTensor { path: self.source.path.clone(), tensor, problem }
    }

    /// Whether the module is for a weight of this shape. A 1 x 1 convolution is a linear layer; a weight may be stored flat.
    pub(super) fn fits(&self, layer: &[usize]) -> bool {
        let outputs = |shape: &[usize]| (shape.first().copied(), shape.get(1..).unwrap_or_default().iter().product::<usize>());
        match (self.shape.as_deref(), layer) {
            (None, [first, ..]) => self.parts.get(Part::BiasDifference).is_none_or(|bias| bias.shape == [*first]),
            (Some(shape), _) if shape.len() == 1 || layer.len() == 1 => shape == layer,
            (Some([out, inputs, kernel @ ..]), _) if !kernel.is_empty() => {
                let layer_kernel = layer.get(2..).unwrap_or_default();
                layer.first() == Some(out) && layer.get(1) == Some(inputs) && same_kernel(kernel, layer_kernel)
            }
            (Some(shape), _) => !layer.is_empty() && outputs(shape) == outputs(layer),
            (None, []) => false,
        }
    }
}

/// Whether two kernels are the same. No sides are those of 1 x 1.
fn same_kernel(one: &[usize], other: &[usize]) -> bool {
    one == other || one.iter().chain(other).all(|side| *side == 1)
}
