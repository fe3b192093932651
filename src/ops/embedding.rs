//! Embeddings: rows of a table, by id.

use candle_core::{DType, Result, Tensor};

use super::{Weights, weight_type::DenseType};

/// A table `(rows, features)`, one row for each token. It is kept in 16 bits where weights are kept in fewer than 32.
#[derive(Debug, Clone)]
pub struct Embedding {
    table: Tensor,
    dtype: DType,
}

impl Embedding {
    /// Reads `weight` `(rows, features)`.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn new(rows: usize, features: usize, vb: &Weights) -> Result<Self> {
        let table = vb.get((rows, features), "weight")?;
        let dtype = table.dtype();
        let kept = match vb.packed_type(&table) {
            Some(DenseType::F16) => DType::F16,
            Some(DenseType::Bf16) => DType::BF16,
            Some(DenseType::F32) | None => dtype,
        };
        Ok(Self { table: table.to_dtype(kept)?, dtype })
    }

    /// Appends rows `(new, features)`. Returns the id of the first of them.
    ///
    /// # Errors
    /// When the rows have another number of features, or the device fails.
    pub fn append(&mut self, rows: &Tensor) -> Result<usize> {
        let first = self.table.dim(0)?;
        let rows = rows.to_device(self.table.device())?.to_dtype(self.table.dtype())?;
        self.table = Tensor::cat(&[&self.table, &rows], 0)?;
        Ok(first)
    }

    /// Ids of any shape to their rows, `(…, features)`.
    ///
    /// # Errors
    /// When an id is not in the table, or the device fails.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let shape = [ids.dims(), &self.table.dims()[1..]].concat();
        self.table.index_select(&ids.flatten_all()?, 0)?.reshape(shape)?.to_dtype(self.dtype)
    }
}
