//! What other networks add to the images inside of a UNet: ControlNets and T2I-Adapters.

use candle_core::{Result, Tensor};

use crate::ops::{add_images, for_batch, join_images, scale_image};

/// What is added inside of a UNet, for each sample of a batch, or for fewer samples that stand for the batch as in
/// [`for_batch`].
#[derive(Debug, Clone, Default)]
pub struct Residuals {
    /// To the output of each layer on the way down once the middle has seen it, and last to that of the middle: those of ControlNets, or none.
    after: Vec<Tensor>,
    /// To the way down itself, by level: those of T2I-Adapters, or none.
    within: Vec<Tensor>,
}

impl Residuals {
    /// Nothing.
    pub const NONE: &'static Self = &Self { after: Vec::new(), within: Vec::new() };

    /// Those of a ControlNet: for each layer on the way down, and for the middle.
    pub(super) fn after(after: Vec<Tensor>) -> Self {
        Self { after, within: Vec::new() }
    }

    /// Those of a T2I-Adapter: for each level.
    pub(super) fn within(within: Vec<Tensor>) -> Self {
        Self { after: Vec::new(), within }
    }

    /// The tensors: for the layers on the way down and the middle, and for the levels.
    #[must_use]
    pub fn tensors(&self) -> (&[Tensor], &[Tensor]) {
        (&self.after, &self.within)
    }

    /// Those of this network times the factor that `factor` gives for each tensor, by its place and the number of all.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scaled(&self, factor: impl Fn(usize, usize) -> f64) -> Result<Self> {
        let scaled =
            |all: &[Tensor]| all.iter().enumerate().map(|(i, tensor)| scale_image(tensor, factor(i, all.len()))).collect::<Result<_>>();
        Ok(Self { after: scaled(&self.after)?, within: scaled(&self.within)? })
    }

    /// Those of `samples` samples, after zeros for `more` samples, to which nothing is added.
    ///
    /// # Errors
    /// When there are others than for `samples` samples or for fewer that stand for them, or the device fails.
    pub fn after_zeros(&self, more: usize, samples: usize) -> Result<Self> {
        self.map(|tensor| join_images(&[&zeros_like(tensor, more)?, &for_batch(tensor, samples)?]))
    }

    /// For each sample and channel, the mean over all pixels in place of each.
    ///
    /// # Errors
    /// When the device fails.
    pub fn pooled(&self) -> Result<Self> {
        self.map(|tensor| tensor.mean_keepdim((2, 3))?.broadcast_as(tensor.shape()))
    }

    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let map = |all: &[Tensor]| all.iter().map(&f).collect::<Result<_>>();
        Ok(Self { after: map(&self.after)?, within: map(&self.within)? })
    }

    /// The sum of these and those of another network.
    ///
    /// # Errors
    /// When both have tensors of different numbers or shapes, or the device fails.
    pub fn plus(self, other: Self) -> Result<Self> {
        let add = |one: Vec<Tensor>, other: Vec<Tensor>| match (one.len(), other.len()) {
            (_, 0) => Ok(one),
            (0, _) => Ok(other),
            (n, m) if n == m => one.iter().zip(&other).map(|(one, other)| add_images(one, other)).collect(),
            (n, m) => candle_core::bail!("residuals for {n} and for {m} layers cannot be added"),
        };
        Ok(Self { after: add(self.after, other.after)?, within: add(self.within, other.within)? })
    }

    /// Those of several generations of `samples` samples each, one after the other. Nothing is added to those that have none.
    ///
    /// # Errors
    /// When the shapes differ, or the device fails.
    pub fn join(all: &[Self], samples: usize) -> Result<Self> {
        if let [only] = all {
            return Ok(only.clone());
        }
        let join = |part: fn(&Self) -> &Vec<Tensor>| {
            let Some(like) = all.iter().map(part).find(|tensors| !tensors.is_empty()) else { return Ok(Vec::new()) };
            let of_place = |i: usize| {
                let each = all.iter().map(|one| match part(one).get(i) {
                    Some(tensor) => for_batch(tensor, samples),
                    None => zeros_like(&like[i], samples),
                });
                let each = each.collect::<Result<Vec<_>>>()?;
                join_images(&each.iter().collect::<Vec<_>>())
            };
            (0..like.len()).map(of_place).collect::<Result<_>>()
        };
        Ok(Self { after: join(|one| &one.after)?, within: join(|one| &one.within)? })
    }

    /// What is added to the output of the first layer alone.
    pub(super) fn of_first_layer(&self) -> Self {
        Self { after: self.after.iter().take(1).cloned().collect(), within: Vec::new() }
    }

    /// Adds what comes to the output of the first layer.
    pub(super) fn add_to_first(&self, first: &Tensor) -> Result<Tensor> {
        self.after.first().map_or(Ok(first.clone()), |residual| add_images(first, residual))
    }

    /// What is added at a level of the way down.
    pub(super) fn of_level(&self, level: usize) -> Option<&Tensor> {
        self.within.get(level)
    }

    /// Adds what comes after a way down of so many levels.
    pub(super) fn add_to(&self, middle: Tensor, skips: Vec<Tensor>, levels: usize) -> Result<(Tensor, Vec<Tensor>)> {
        // A T2I-Adapter may have one more tensor than there are levels. As in diffusers, it goes here if it fits.
        let middle = match self.within.get(levels).filter(|more| more.dims()[1..] == middle.dims()[1..]) {
            Some(more) => add_images(&middle, more)?,
            None => middle,
        };
        let Some((last, rest)) = self.after.split_last() else { return Ok((middle, skips)) };
        if rest.len() != skips.len() {
            candle_core::bail!("residuals for {} layers cannot be added to {}", rest.len(), skips.len());
        }
        let skips = skips.iter().zip(rest).map(|(skip, residual)| add_images(skip, residual)).collect::<Result<_>>()?;
        Ok((add_images(&middle, last)?, skips))
    }
}

/// Images of zeros in the shape of `image`, for so many samples.
fn zeros_like(image: &Tensor, samples: usize) -> Result<Tensor> {
    Tensor::zeros([&[samples], &image.dims()[1..]].concat(), image.dtype(), image.device())
}
