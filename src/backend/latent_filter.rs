//! The filters that enlarge latents, as A1111's hires fix has them: those of torch's `interpolate`.

use candle_core::{Device, Result, Tensor};

/// A filter of latents.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentFilter {
    /// What A1111 calls it.
    pub name: &'static str,
    kernel: Kernel,
    /// Whether the weights of an output are those inside of the latents, normalized; otherwise, edges are repeated.
    is_antialiased: bool,
}

/// How an output is weighed from the inputs near it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kernel {
    /// The input at the output's left edge.
    Nearest,
    /// The input at the output's centre.
    NearestExact,
    /// A triangle of one input to each side.
    Linear,
    /// [Keys' cubic](https://doi.org/10.1109/TASSP.1981.1163711) of two inputs to each side, with this slope at the first.
    Cubic(f64),
}

impl LatentFilter {
    /// All of them. The first is what A1111 takes where none is named.
    pub const ALL: [Self; 6] = [
        Self { name: "Latent", kernel: Kernel::Linear, is_antialiased: false },
        Self { name: "Latent (antialiased)", kernel: Kernel::Linear, is_antialiased: true },
        Self { name: "Latent (bicubic)", kernel: Kernel::Cubic(-0.75), is_antialiased: false },
        Self { name: "Latent (bicubic antialiased)", kernel: Kernel::Cubic(-0.5), is_antialiased: true },
        Self { name: "Latent (nearest)", kernel: Kernel::Nearest, is_antialiased: false },
        Self { name: "Latent (nearest-exact)", kernel: Kernel::NearestExact, is_antialiased: false },
    ];

    /// The filter of this name, in any case.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|filter| filter.name.eq_ignore_ascii_case(name))
    }

    /// Latents `(1, channels, height, width)` at another height and width. Of other proportions, their middle.
    ///
    /// # Errors
    /// When the device fails.
    pub fn resize(self, latents: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
        let (_, channels, from_height, from_width) = latents.dims4()?;
        let scale = (height as f64 / from_height as f64).max(width as f64 / from_width as f64);
        let side = |from: usize, least: usize| ((from as f64 * scale).round() as usize).max(least);
        let (whole_height, whole_width) = (side(from_height, height), side(from_width, width));
        let across = self.weights(from_width, whole_width, latents.device())?;
        let down = self.weights(from_height, whole_height, latents.device())?;
        let rows = latents.reshape((channels * from_height, from_width))?.matmul(&across)?;
        let columns = rows.reshape((channels, from_height, whole_width))?.transpose(1, 2)?.contiguous()?;
        let columns = columns.reshape((channels * whole_width, from_height))?.matmul(&down)?;
        let whole = columns.reshape((1, channels, whole_width, whole_height))?.transpose(2, 3)?;
        whole.narrow(2, (whole_height - height) / 2, height)?.narrow(3, (whole_width - width) / 2, width)?.contiguous()
    }

    /// The weights of `to` outputs, `(from, to)`: each column is an output.
    fn weights(self, from: usize, to: usize, device: &Device) -> Result<Tensor> {
        let mut weights = vec![0f32; from * to];
        for output in 0..to {
            for (input, weight) in self.taps(from, to, output) {
                weights[input * to + output] += weight as f32;
            }
        }
        Tensor::from_vec(weights, (from, to), device)
    }

    /// The inputs that an output is made of, with their weights.
    fn taps(self, from: usize, to: usize, output: usize) -> Vec<(usize, f64)> {
        let ratio = from as f64 / to as f64;
        let nearest = |place: f64| vec![((place as usize).min(from - 1), 1.0)];
        let centre = (output as f64 + 0.5) * ratio;
        let (radius, slope) = match self.kernel {
            Kernel::Nearest => return nearest(output as f64 * ratio),
            Kernel::NearestExact => return nearest(centre),
            Kernel::Linear => (1.0, None),
            Kernel::Cubic(slope) => (2.0, Some(slope)),
        };
        let stretch = if self.is_antialiased { ratio.max(1.0) } else { 1.0 };
        let (first, last) = ((centre - radius * stretch - 0.5).ceil() as i64, (centre + radius * stretch - 0.5).floor() as i64);
        let weighed = (first..=last).map(|input| {
            let distance = ((input as f64 + 0.5 - centre) / stretch).abs();
            (input, slope.map_or((1.0 - distance).max(0.0), |slope| cubic(distance, slope)))
        });
        let inside = 0..i64::try_from(from).unwrap_or(i64::MAX);
        let weighed: Vec<(i64, f64)> = weighed.filter(|(input, _)| !self.is_antialiased || inside.contains(input)).collect();
        let sum: f64 = weighed.iter().map(|(_, weight)| weight).sum();
        weighed.into_iter().map(|(input, weight)| (input.clamp(0, inside.end - 1) as usize, weight / sum)).collect()
    }
}

/// Keys' cubic at a distance of 0 to 2.
fn cubic(x: f64, slope: f64) -> f64 {
    match x {
        _ if x < 1.0 => ((slope + 2.0) * x - (slope + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => slope * (((x - 5.0) * x + 8.0) * x - 4.0),
        _ => 0.0,
    }
}
