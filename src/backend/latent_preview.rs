//! Rough pictures of latents for workers without a tiny autoencoder, and without the decoder: a linear map from each latent to one colour.
//!
//! Like the well-known tables of "latent RGB factors", but fitted to the VAE at hand: plain pictures in the eight corner colours of the
//! cube go through the encoder, and least squares map their latents back to the colours. This small chart did better than gradients,
//! patches and larger sets of colours.

use candle_core::{D, DType, Device, Result, Tensor};
use image::RgbImage;

use crate::models::{AutoencoderKl, Interrupt};

/// The corners of the cube of colours in [-1, 1].
const CORNERS: usize = 8;
/// Side of each plain picture in latents: large enough that most of them do not depend on the border.
const SIDE: usize = 8;

/// The map: one row for each latent channel and one for the constant, one column for each colour.
#[derive(Debug, Clone)]
pub struct LatentPreview {
    weights: Vec<[f64; 3]>,
}

impl LatentPreview {
    /// Fits the map to a VAE. Costs one encoding of eight small pictures.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fit(vae: &AutoencoderKl, dtype: DType, device: &Device) -> Result<Self> {
        let colors: Vec<f32> = (0..CORNERS).flat_map(corner).collect();
        let side = SIDE * vae.config().scale_factor();
        let plain = Tensor::from_vec(colors, (CORNERS, 3, 1, 1), device)?.to_dtype(dtype)?.broadcast_as((CORNERS, 3, side, side))?;
        let latents = vae.encode(&plain.contiguous()?, Interrupt::NEVER)?.mean;
        let inputs = (0..CORNERS).map(|i| rows(&latents.get(i)?)).collect::<Result<Vec<_>>>()?.concat();
        let outputs: Vec<[f64; 3]> = (0..CORNERS).flat_map(|i| [corner(i).map(f64::from); SIDE * SIDE]).collect();
        Ok(Self { weights: least_squares(&inputs, &outputs) })
    }

    /// Whether the VAE's numbers were finite.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.weights.iter().flatten().all(|weight| weight.is_finite())
    }

    /// A picture of latents `(1, channels, height, width)`, one pixel for each.
    ///
    /// # Errors
    /// When the device fails.
    pub fn render(&self, latents: &Tensor) -> Result<RgbImage> {
        let (height, width) = (latents.dim(2)?, latents.dim(D::Minus1)?);
        let pixels = rows(&latents.get(0)?)?.into_iter().flat_map(|row| {
            let color = |c: usize| row.iter().zip(&self.weights).map(|(x, w)| x * w[c]).sum::<f64>();
            [0, 1, 2].map(|c| ((color(c) / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8)
        });
        RgbImage::from_raw(width as u32, height as u32, pixels.collect())
            .ok_or_else(|| candle_core::Error::msg("previews are of one picture"))
    }
}

fn corner(i: usize) -> [f32; 3] {
    [0, 1, 2].map(|channel| if i >> channel & 1 == 1 { 1.0 } else { -1.0 })
}

/// Each latent of `(channels, height, width)` as a row, with a 1 at its end for the constant.
fn rows(latents: &Tensor) -> Result<Vec<Vec<f64>>> {
    // On the host: Metal has no f64.
    let mut rows: Vec<Vec<f64>> = latents.flatten_from(1)?.t()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2()?;
    for row in &mut rows {
        row.push(1.0);
    }
    Ok(rows)
}

/// Solves the normal equations, slightly damped for channels that never change.
fn least_squares(inputs: &[Vec<f64>], outputs: &[[f64; 3]]) -> Vec<[f64; 3]> {
    const DAMPING: f64 = 1e-3;
    let n = inputs.first().map_or(0, Vec::len);
    let mut system: Vec<Vec<f64>> = (0..n)
        .map(|i| {
            let products = (0..n).map(|j| inputs.iter().map(|row| row[i] * row[j]).sum::<f64>() + if i == j { DAMPING } else { 0.0 });
            let targets = (0..3).map(|c| inputs.iter().zip(outputs).map(|(row, out)| row[i] * out[c]).sum::<f64>());
            products.chain(targets).collect()
        })
        .collect();
    // Gauss-Jordan; the matrix is positive definite, so no pivot is 0.
    for pivot in 0..n {
        let scale = system[pivot][pivot];
        system[pivot].iter_mut().for_each(|v| *v /= scale);
        let row = system[pivot].clone();
        for (_, other) in system.iter_mut().enumerate().filter(|(i, _)| *i != pivot) {
            let factor = other[pivot];
            other.iter_mut().zip(&row).for_each(|(v, p)| *v -= factor * p);
        }
    }
    system.iter().map(|row| [row[n], row[n + 1], row[n + 2]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_squares_finds_an_exact_map() {
        let inputs: Vec<Vec<f64>> = (0..64).map(|i| vec![f64::from(i % 7), f64::from(i * i % 11), f64::from(i % 3), 1.0]).collect();
        let map = |row: &[f64]| [2.0 * row[0] - row[1] + 3.0, row[2], -0.5 * row[0] + 1.0];
        let outputs: Vec<[f64; 3]> = inputs.iter().map(|row| map(row)).collect();
        let weights = least_squares(&inputs, &outputs);
        for (found, expected) in weights.iter().flatten().zip([2., 0., -0.5, -1., 0., 0., 0., 1., 0., 3., 0., 1.]) {
            assert!((found - expected).abs() < 1e-3, "{weights:?}");
        }
    }
}
