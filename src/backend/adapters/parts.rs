//! The tensors of one module, and whether their shapes go together.

use std::collections::BTreeMap;

use super::{
    key::Part::{
        self, BiasDifference, Difference, DoraScale, Down, HadaT1, HadaT2, HadaW1A, HadaW1B, HadaW2A, HadaW2B, LokrT2, LokrW1, LokrW1A,
        LokrW1B, LokrW2, LokrW2A, LokrW2B, Magnitude, Mid, NormBias, NormWeight, Up, UpBias,
    },
    module::ModuleKind,
};

/// The most weights of a layer: ten times those of SDXL's largest. Small tensors may have a huge product.
const MAX_WEIGHTS: usize = 1 << 28;

/// A tensor of a file.
#[derive(Debug, Clone)]
pub(super) struct StoredPart {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
}

/// The tensors of a module.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts(BTreeMap<Part, StoredPart>);

/// What is wrong with a tensor.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) tensor: String,
    pub(super) problem: String,
}

/// What the shapes of a module's tensors say.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) kind: ModuleKind,
    /// The shape of the weight that changes: `(outputs, inputs, kernel…)`, or `(outputs, inputs * kernel)`, or `(channels,)`.
    pub(super) shape: Option<Vec<usize>>,
    pub(super) rank: Option<usize>,
}

/// A tensor that is a matrix, perhaps with the sides of a kernel behind it.
struct Matrix<'a> {
    part: &'a StoredPart,
    rows: usize,
    columns: usize,
    kernel: &'a [usize],
}

impl Parts {
    pub(super) fn get(&self, part: Part) -> Option<&StoredPart> {
        self.0.get(&part)
    }

    pub(super) fn has(&self, part: Part) -> bool {
        self.0.contains_key(&part)
    }

    /// Adds a tensor. Returns it if the module has one of this part already.
    pub(super) fn add(&mut self, part: Part, tensor: StoredPart) -> Result<(), StoredPart> {
        if self.has(part) {
            return Err(tensor);
        }
        self.0.insert(part, tensor);
        Ok(())
    }

    /// The names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.values().map(|part| part.name.as_str())
    }

    /// The kind, or `None` if there is nothing but what goes with a kind.
    fn kind(&self) -> Result<Option<ModuleKind>, Wrong> {
        let mut found: Option<(ModuleKind, &StoredPart)> = None;
        for (part, tensor) in &self.0 {
            let Some(kind) = kind_of(*part) else { continue };
            match found {
                Some((other, first)) if other != kind => {
                    return Err(tensor.wrong(format!("is of another kind than {}, and a layer can have but one", first.name)));
                }
                _ => found = Some((kind, tensor)),
            }
        }
        let bias_alone = self.has(BiasDifference).then_some(ModuleKind::Difference);
        Ok(found.map(|(kind, _)| kind).or(bias_alone))
    }

    /// Checks the shapes. `None` if there is nothing to change a weight or a bias by; messages call the module `layer`.
    pub(super) fn layout(&self, layer: &str) -> Result<Option<Layout>, Wrong> {
        let Some(kind) = self.kind()? else { return Ok(None) };
        if let Some(empty) = self.0.values().find(|part| part.shape.contains(&0)) {
            return Err(empty.wrong(format!("is empty: its shape is {:?}", empty.shape)));
        }
        let (shape, rank) = match kind {
            ModuleKind::LowRank => self.low_rank(layer)?,
            ModuleKind::LoHa => self.loha(layer)?,
            ModuleKind::LoKr => self.lokr(layer)?,
            ModuleKind::Difference => (self.get(Difference).map(|part| part.shape.clone()), None),
            ModuleKind::Norm => (self.get(NormWeight).map(|part| part.shape.clone()), None),
        };
        if let (Some(first), Some(second)) = (self.get(DoraScale), self.get(Magnitude)) {
            return Err(second.wrong(format!("is another spelling of {}; a file should have one of them", first.name)));
        }
        if let (Some(part), true) = (self.magnitude(), matches!(kind, ModuleKind::Difference | ModuleKind::Norm)) {
            return Err(part.wrong("goes with factors of low rank, and this layer has none".to_owned()));
        }
        for part in [BiasDifference, NormBias, UpBias].into_iter().filter_map(|part| self.get(part)) {
            let outputs = shape.as_ref().and_then(|shape| shape.first());
            if part.shape.len() != 1 || outputs.is_some_and(|outputs| *outputs != part.shape[0]) {
                let expected = outputs.map_or("one number for each output".to_owned(), |outputs| format!("{outputs} numbers"));
                return Err(part.wrong(format!("is of the shape {:?}, and should be {expected}", part.shape)));
            }
        }
        if let Some(shape) = &shape
            && bounded(shape).is_none()
        {
            let problem = format!("would change a weight of the shape {shape:?}; at most {MAX_WEIGHTS} weights are supported");
            return Err(Wrong { tensor: layer.to_owned(), problem });
        }
        Ok(Some(Layout { kind, shape, rank }))
    }

    /// `DoRA`'s magnitudes.
    pub(super) fn magnitude(&self) -> Option<&StoredPart> {
        self.get(Magnitude).or_else(|| self.get(DoraScale))
    }

    fn low_rank(&self, layer: &str) -> Result<(Option<Vec<usize>>, Option<usize>), Wrong> {
        let up = self.matrix(Up, layer)?.without_kernel()?;
        let down = self.matrix(Down, layer)?;
        let (kernel, below) = if self.has(Mid) {
            let mid = self.matrix(Mid, layer)?;
            let down = self.matrix(Down, layer)?.without_kernel()?;
            mid.meets(down.rows, down.part)?;
            mid.can_be_folded(down.columns)?;
            (mid.kernel, mid.rows)
        } else {
            (down.kernel, down.rows)
        };
        up.meets(below, down.part)?;
        Ok((Some(shape(up.rows, down.columns, kernel)), Some(down.rows)))
    }

    fn loha(&self, layer: &str) -> Result<(Option<Vec<usize>>, Option<usize>), Wrong> {
        let first = self.product(layer, HadaW1A, HadaW1B, Some(HadaT1))?;
        let second = self.product(layer, HadaW2A, HadaW2B, Some(HadaT2))?;
        if first != second {
            let part = self.need(HadaW2A, layer)?;
            return Err(part.wrong(format!("makes a factor of the shape {second:?}, and hada_w1 one of {first:?}")));
        }
        Ok((Some(first), Some(self.matrix(HadaW1B, layer)?.rows)))
    }

    fn lokr(&self, layer: &str) -> Result<(Option<Vec<usize>>, Option<usize>), Wrong> {
        let first = self.kronecker_factor(layer, LokrW1, [LokrW1A, LokrW1B], None)?;
        let second = self.kronecker_factor(layer, LokrW2, [LokrW2A, LokrW2B], Some(LokrT2))?;
        if first.len() > 2 {
            let problem = format!("has a first factor of the shape {first:?}, and it should be a matrix");
            return Err(Wrong { tensor: layer.to_owned(), problem });
        }
        let rank = [LokrW2B, LokrW1B].iter().find_map(|part| self.get(*part)?.shape.first().copied());
        let times = |i: usize| first.get(i).copied().unwrap_or(1).saturating_mul(second.get(i).copied().unwrap_or(1));
        Ok((Some(shape(times(0), times(1), second.get(2..).unwrap_or_default())), rank))
    }

    /// The shape of a factor that is stored whole, or as a product.
    fn kronecker_factor(&self, layer: &str, whole: Part, [a, b]: [Part; 2], core: Option<Part>) -> Result<Vec<usize>, Wrong> {
        if !self.has(whole) {
            return self.product(layer, a, b, core);
        }
        let matrix = self.matrix(whole, layer)?;
        if let Some(other) = [Some(a), Some(b), core].into_iter().flatten().find_map(|part| self.get(part)) {
            return Err(other.wrong(format!("is a factor of {}, which is stored whole", matrix.part.name)));
        }
        Ok(shape(matrix.rows, matrix.columns, matrix.kernel))
    }

    /// The shape of `a b`, or of `aᵀ core b` with a Tucker core.
    fn product(&self, layer: &str, a: Part, b: Part, core: Option<Part>) -> Result<Vec<usize>, Wrong> {
        let Some(core) = core.filter(|core| self.has(*core)) else {
            let (left, right) = (self.matrix(a, layer)?.without_kernel()?, self.matrix(b, layer)?);
            left.meets(right.rows, right.part)?;
            return Ok(shape(left.rows, right.columns, right.kernel));
        };
        let middle = self.matrix(core, layer)?;
        let (left, right) = (self.matrix(a, layer)?.without_kernel()?, self.matrix(b, layer)?.without_kernel()?);
        if left.rows != middle.rows {
            return Err(left.part.wrong(format!("has a rank of {}, and {} one of {}", left.rows, middle.part.name, middle.rows)));
        }
        middle.meets(right.rows, right.part)?;
        middle.can_be_folded(right.columns)?;
        Ok(shape(left.columns, right.columns, middle.kernel))
    }

    fn matrix(&self, part: Part, layer: &str) -> Result<Matrix<'_>, Wrong> {
        let part = self.need(part, layer)?;
        match part.shape.as_slice() {
            [rows, columns, kernel @ ..] => Ok(Matrix { part, rows: *rows, columns: *columns, kernel }),
            _ => Err(part.wrong(format!("is of the shape {:?}, and should be a matrix", part.shape))),
        }
    }

    pub(super) fn need(&self, part: Part, layer: &str) -> Result<&StoredPart, Wrong> {
        let problem = || format!("has {}, and no {}", self.names().collect::<Vec<_>>().join(", "), part.name());
        self.get(part).ok_or_else(|| Wrong { tensor: layer.to_owned(), problem: problem() })
    }
}

impl StoredPart {
    pub(super) fn wrong(&self, problem: String) -> Wrong {
        Wrong { tensor: self.name.clone(), problem }
    }
}

impl<'a> Matrix<'a> {
    /// A matrix that may be stored as a convolution of 1 x 1.
    fn without_kernel(self) -> Result<Self, Wrong> {
        if self.kernel.iter().all(|side| *side == 1) {
            return Ok(Self { kernel: &[], ..self });
        }
        Err(self.part.wrong(format!("is of the shape {:?}, and should be a matrix", self.part.shape)))
    }

    /// Checks that a core and a matrix behind it make a matrix that is not too large.
    fn can_be_folded(&self, inputs: usize) -> Result<(), Wrong> {
        let sides = [&[self.rows, inputs], self.kernel].concat();
        if bounded(&sides).is_some() {
            return Ok(());
        }
        Err(self.part.wrong(format!("would make a matrix of {sides:?} numbers; at most {MAX_WEIGHTS} are supported")))
    }

    /// Checks that this matrix can be multiplied with one of `rows` rows.
    fn meets(&self, rows: usize, other: &'a StoredPart) -> Result<(), Wrong> {
        if self.columns == rows {
            return Ok(());
        }
        Err(self.part.wrong(format!("has a rank of {}, and {} one of {rows}", self.columns, other.name)))
    }
}

/// A weight's shape. Kernels of 1 x 1 are left out.
fn shape(outputs: usize, inputs: usize, kernel: &[usize]) -> Vec<usize> {
    let kernel = if kernel.iter().all(|side| *side == 1) { &[] } else { kernel };
    [&[outputs, inputs], kernel].concat()
}

/// The number of weights, if it is not too large.
fn bounded(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |all, side| all.checked_mul(*side).filter(|all| *all <= MAX_WEIGHTS))
}

fn kind_of(part: Part) -> Option<ModuleKind> {
    match part {
        Down | Up | Mid => Some(ModuleKind::LowRank),
        HadaW1A | HadaW1B | HadaW2A | HadaW2B | HadaT1 | HadaT2 => Some(ModuleKind::LoHa),
        LokrW1 | LokrW1A | LokrW1B | LokrW2 | LokrW2A | LokrW2B | LokrT2 => Some(ModuleKind::LoKr),
        Difference => Some(ModuleKind::Difference),
        NormWeight | NormBias => Some(ModuleKind::Norm),
        UpBias | BiasDifference | Part::Alpha | DoraScale | Magnitude => None,
    }
}
