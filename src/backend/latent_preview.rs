//! What latents look like, without the decoder: a linear map from each latent to one colour.
//!
//! The idea is that of the well-known tables of "latent RGB factors", but fitted to the VAE at hand: a chart of colours goes
//! through the encoder, and least squares give the map back from its latents to its colours.

use candle_core::{D, DType, Device, Result, Tensor};
use image::RgbImage;

use crate::models::AutoencoderKl;

/// Side of the chart in latents, and of its patches: small next to a picture, with more latents than unknowns.
const CHART: usize = 16;
const PATCH: usize = 2;

/// The fractional parts of multiples of these fill a cube evenly: the R3 sequence (M. Roberts, 2018).
const R3: [f64; 3] = [0.819_172_513_396_164_4, 0.671_043_606_703_789_2, 0.549_700_477_901_970_3];

/// The map: one row for each latent channel and one for the constant, one column for each colour.
#[derive(Debug, Clone)]
pub struct LatentPreview {
    weights: Vec<[f64; 3]>,
}

impl LatentPreview {
    /// Fits the map to a VAE. Costs one encoding of a small picture.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fit(vae: &AutoencoderKl, dtype: DType, device: &Device) -> Result<Self> {
        let scale = vae.config().scale_factor();
        let side = CHART * scale;
        let pixel = |i: usize| chart_color(i / (side * side), i / side % side / scale, i % side / scale);
        let chart: Vec<f32> = (0..3 * side * side).map(pixel).collect();
        let chart = Tensor::from_vec(chart, (1, 3, side, side), device)?.to_dtype(dtype)?;
        let latents: Vec<Vec<f64>> = rows(&vae.encode_mode(&chart)?)?;
        let colors = (0..CHART * CHART).map(|i| [0, 1, 2].map(|c| f64::from(chart_color(c, i / CHART, i % CHART))));
        Ok(Self { weights: least_squares(&latents, &colors.collect::<Vec<_>>()) })
    }

    /// A picture of latents `(1, channels, height, width)`, one pixel for each.
    ///
    /// # Errors
    /// When the device fails.
    pub fn render(&self, latents: &Tensor) -> Result<RgbImage> {
        let (height, width) = (latents.dim(2)?, latents.dim(D::Minus1)?);
        let pixels = rows(latents)?.into_iter().flat_map(|row| {
            let color = |c: usize| row.iter().zip(&self.weights).map(|(x, w)| x * w[c]).sum::<f64>();
            [0, 1, 2].map(|c| ((color(c) / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8)
        });
        RgbImage::from_raw(width as u32, height as u32, pixels.collect())
            .ok_or_else(|| candle_core::Error::msg("previews are of one picture"))
    }
}

/// The chart: patches whose colours step through the cube of colours in an order that does not repeat, in [-1, 1].
fn chart_color(channel: usize, y: usize, x: usize) -> f32 {
    let patch = (y / PATCH) * (CHART / PATCH) + x / PATCH;
    ((patch as f64 * R3[channel]).fract() * 2.0 - 1.0) as f32
}

/// Each latent as a row, with a 1 at its end for the constant.
fn rows(latents: &Tensor) -> Result<Vec<Vec<f64>>> {
    let mut rows: Vec<Vec<f64>> = latents.get(0)?.flatten_from(1)?.t()?.to_dtype(DType::F64)?.to_vec2()?;
    for row in &mut rows {
        row.push(1.0);
    }
    Ok(rows)
}

/// Solves the normal equations, slightly damped so that a channel that never moves costs nothing.
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
