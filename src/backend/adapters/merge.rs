//! Changed weights. Everything is computed in f32.

use candle_core::{DType, Device, Result, Tensor};

use super::{
    AdapterError, Module, ModuleKind, dora,
    key::Part::{
        self, BiasDifference, Difference, Down, HadaT1, HadaT2, HadaW1A, HadaW1B, HadaW2A, HadaW2B, LokrT2, LokrW1, LokrW1A, LokrW1B,
        LokrW2, LokrW2A, LokrW2B, Mid, NormBias, NormWeight, Up, UpBias,
    },
};

/// A difference of low rank, not multiplied out: `factor * up * down`. In f32, on the CPU.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `(rank, inputs)`, or `(rank, inputs, kernel…)` with a kernel larger than 1 x 1; it is flat, `(rank, inputs * kernel)`, in a file that
    /// has a matrix for a convolution.
    pub down: Tensor,
    /// `(outputs, rank)`.
    pub up: Tensor,
    /// Alpha / rank.
    pub factor: f64,
}

impl Module {
    /// The layer's weight with the module's difference times `strength`, in f32, in the shape and on the device of `base`. A strength of 0
    /// gives the weight itself, and a negative one goes the other way.
    ///
    /// `DoRA` moves from the weight `W` to its changed form `W'` in a straight line, `W + strength (W' - W)`.
    ///
    /// # Errors
    /// When `base` has another shape than the module, values cannot be read or are not finite, or `strength` is not finite.
    pub fn weight(&self, base: &Tensor, strength: f64) -> std::result::Result<Tensor, AdapterError> {
        self.check_strength(strength)?;
        let wrong_shape = |found: &[usize]| AdapterError::WrongShape {
            path: self.source.path.clone(),
            layer: format!("{} of the {}", self.layer(), self.network()),
            found: found.to_vec(),
            expected: base.dims().to_vec(),
        };
        let Some(shape) = self.shape() else { return Ok(base.clone()) };
        if !self.fits(base.dims()) {
            return Err(wrong_shape(shape));
        }
        let axis = dora::axis(&self.parts, base.dims()).map_err(|wrong| self.wrong(wrong))?;
        let values = Values { module: self, device: base.device() };
        let difference = self.difference(&values).map_err(|source| self.wrong_values(source))?;
        let magnitude = axis.map(|axis| values.magnitude().map(|magnitude| (axis, magnitude))).transpose();
        let magnitude = magnitude.map_err(|source| self.wrong_values(source))?;
        let merge = || -> Result<Tensor> {
            let base = base.to_dtype(DType::F32)?;
            if strength == 0.0 {
                return Ok(base);
            }
            let difference = difference.reshape(base.shape())?;
            let Some((axis, magnitude)) = magnitude else { return &base + (difference * (self.factor() * strength))? };
            let changed = dora::with_magnitude(&(&base + (difference * self.factor())?)?, &magnitude, axis)?;
            // From the changed weight on, so that a strength of 1 is exact.
            &changed + ((&changed - &base)? * (strength - 1.0))?
        };
        merge().map_err(|source| self.failed(source))
    }

    /// The layer's bias with the module's difference times `strength`, in f32. A layer without a bias gets one if the module has one for it;
    /// `None` if neither has any.
    ///
    /// # Errors
    /// When `base` has another length than the module's bias, values cannot be read or are not finite, or `strength` is not finite.
    pub fn bias(&self, base: Option<&Tensor>, strength: f64) -> std::result::Result<Option<Tensor>, AdapterError> {
        self.check_strength(strength)?;
        let mut bias = base.cloned();
        for (part, factor) in [(BiasDifference, 1.0), (NormBias, 1.0), (UpBias, self.factor())] {
            let Some(stored) = self.parts.get(part) else { continue };
            if let Some(base) = base
                && base.dims() != stored.shape
            {
                let problem = format!("is of the shape {:?}, and the layer's bias of {:?}", stored.shape, base.dims());
                return Err(self.wrong(stored.wrong(problem)));
            }
            let device = base.map_or(&Device::Cpu, Tensor::device);
            let difference = Values { module: self, device }.read(part).map_err(|source| self.wrong_values(source))?;
            let merge = || -> Result<Tensor> {
                let difference = (difference * (factor * strength))?;
                bias.as_ref().map_or(Ok(difference.clone()), |bias| bias.to_dtype(DType::F32)? + difference)
            };
            bias = Some(merge().map_err(|source| self.failed(source))?);
        }
        Ok(bias)
    }

    /// The difference of the weight as two matrices. `None` for a module of another kind, and for one with magnitudes. A bias is not in it.
    ///
    /// # Errors
    /// When values cannot be read or are not finite.
    pub fn low_rank(&self) -> std::result::Result<Option<LowRank>, AdapterError> {
        if self.kind() != ModuleKind::LowRank || self.has_magnitude() {
            return Ok(None);
        }
        let read = Values { module: self, device: &Device::Cpu };
        let matrices = || -> Result<LowRank> {
            let (up, down) = (read.matrix(Up)?, read.low_rank_down()?);
            let shape = match self.shape() {
                Some([_, rest @ ..]) => [&[down.dim(0)?], rest].concat(),
                _ => down.dims().to_vec(),
            };
            Ok(LowRank { down: down.reshape(shape)?, up, factor: self.factor() })
        };
        matrices().map(Some).map_err(|source| self.wrong_values(source))
    }

    /// The difference before its factor, as `(outputs, inputs * kernel)`, or `(channels, 1)`.
    fn difference(&self, read: &Values<'_>) -> Result<Tensor> {
        match self.kind() {
            ModuleKind::LowRank => read.matrix(Up)?.matmul(&read.low_rank_down()?),
            ModuleKind::LoHa => read.product(HadaW1A, HadaW1B, Some(HadaT1))? * read.product(HadaW2A, HadaW2B, Some(HadaT2))?,
            ModuleKind::LoKr => kronecker(
                &read.kronecker_factor(LokrW1, LokrW1A, LokrW1B, None)?,
                &read.kronecker_factor(LokrW2, LokrW2A, LokrW2B, Some(LokrT2))?,
            ),
            ModuleKind::Difference => read.read(Difference),
            ModuleKind::Norm => read.read(NormWeight),
        }
    }

    fn check_strength(&self, strength: f64) -> std::result::Result<(), AdapterError> {
        let is_number = ((strength * self.factor()) as f32).is_finite() && (strength as f32).is_finite();
        if is_number { Ok(()) } else { Err(AdapterError::WrongStrength(strength)) }
    }

    fn wrong_values(&self, source: candle_core::Error) -> AdapterError {
        AdapterError::WrongValues { path: self.source.path.clone(), source: source.into() }
    }

    fn failed(&self, source: candle_core::Error) -> AdapterError {
        AdapterError::Merge { path: self.source.path.clone(), layer: self.layer().to_owned(), source: source.into() }
    }
}

/// Reads a module's tensors in f32 onto a device.
struct Values<'a> {
    module: &'a Module,
    device: &'a Device,
}

impl Values<'_> {
    fn read(&self, part: Part) -> Result<Tensor> {
        let name = self.module.parts.get(part).map_or(part.name(), |part| &part.name);
        self.module.source.files.tensor(name)?.to_device(self.device)
    }

    fn magnitude(&self) -> Result<Tensor> {
        let part = if self.module.parts.has(Part::Magnitude) { Part::Magnitude } else { Part::DoraScale };
        self.read(part)
    }

    /// A tensor with all but its rows as columns.
    fn matrix(&self, part: Part) -> Result<Tensor> {
        self.read(part)?.flatten_from(1)
    }

    /// `(rank, inputs * kernel)`, a core folded into it.
    fn low_rank_down(&self) -> Result<Tensor> {
        let down = self.matrix(Down)?;
        if self.module.parts.has(Mid) { fold(&self.read(Mid)?, &down) } else { Ok(down) }
    }

    /// `a b`, or `aᵀ core b` with a Tucker core: `(outputs, inputs * kernel)`.
    fn product(&self, a: Part, b: Part, core: Option<Part>) -> Result<Tensor> {
        let (left, right) = (self.matrix(a)?, self.matrix(b)?);
        match core.filter(|core| self.module.parts.has(*core)) {
            Some(core) => left.t()?.contiguous()?.matmul(&fold(&self.read(core)?, &right)?),
            None => left.matmul(&right),
        }
    }

    /// A factor that is stored whole, or as a product.
    fn kronecker_factor(&self, whole: Part, a: Part, b: Part, core: Option<Part>) -> Result<Tensor> {
        if self.module.parts.has(whole) { self.matrix(whole) } else { self.product(a, b, core) }
    }
}

/// A core `(n, m, kernel…)` behind a matrix `(m, inputs)`: `(n, inputs * kernel)`.
fn fold(core: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    let (n, m, inputs) = (core.dim(0)?, core.dim(1)?, matrix.dim(1)?);
    let kernel = core.elem_count() / (n * m).max(1);
    let by_kernel = core.reshape((n, m, kernel))?.permute((0, 2, 1))?.reshape((n * kernel, m))?;
    by_kernel.matmul(matrix)?.reshape((n, kernel, inputs))?.permute((0, 2, 1))?.reshape((n, inputs * kernel))
}

/// The Kronecker product of `(a, b)` and `(c, d)`: `(a c, b d)`.
fn kronecker(first: &Tensor, second: &Tensor) -> Result<Tensor> {
    let ((a, b), (c, d)) = (first.dims2()?, second.dims2()?);
    first.reshape((a, 1, b, 1))?.broadcast_mul(&second.reshape((1, c, 1, d))?)?.reshape((a * c, b * d))
}
