//! The random numbers of `torch.Generator("cpu")`, so that a seed gives the same picture as in diffusers.
//!
//! Follows ATen's `MT19937RNGEngine.h`, `DistributionsHelper.h` and `native/cpu/DistributionTemplates.h`.

use std::f64::consts::TAU;

use super::Seed;

const N: usize = 624;
const M: usize = 397;

/// torch's CPU generator: the Mersenne Twister, with both of its ways to normal numbers.
#[derive(Debug, Clone)]
pub struct TorchRng {
    state: [u32; N],
    next: usize,
    /// Box-Muller makes two numbers at a time; the short path keeps the second for the next call.
    spare: Option<f64>,
}

impl TorchRng {
    /// `torch.Generator("cpu").manual_seed(seed)`.
    #[must_use]
    pub fn new(seed: Seed) -> Self {
        let mut state = [0; N];
        state[0] = seed.get() as u32;
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N, spare: None }
    }

    /// `torch.randn(len, generator=self)` in f32.
    ///
    /// torch draws 16 or more values in blocks of 16 from 24-bit uniforms, and fewer one by one from 53-bit uniforms: two different
    /// sequences for one seed. torch's vectorised `log`, `sin` and `cos` differ from these in the last bits, so values agree to about 1e-6,
    /// not bit for bit.
    pub fn randn(&mut self, len: usize) -> Vec<f32> {
        if len < 16 {
            return (0..len).map(|_| self.normal() as f32).collect();
        }
        let mut values: Vec<f32> = (0..len).map(|_| self.uniform_f32()).collect();
        for block in values.chunks_exact_mut(16) {
            box_muller_16(block);
        }
        if !len.is_multiple_of(16) {
            // As in torch, the last block is drawn anew and overlaps the one before it.
            let tail = &mut values[len - 16..];
            tail.fill_with(|| self.uniform_f32());
            box_muller_16(tail);
        }
        values
    }

    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (u1, u2) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let (sin, cos) = (TAU * u1).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// 24 bits of one draw, as a number in [0, 1).
    fn uniform_f32(&mut self) -> f32 {
        (self.random() & 0x00ff_ffff) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// 53 bits of two draws, as a number in [0, 1).
    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.random()), u64::from(self.random()));
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    fn random(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// Converts 16 uniform values into normal ones: the first half becomes radii, the second half angles.
fn box_muller_16(values: &mut [f32]) {
    let (radii, angles) = values.split_at_mut(8);
    for (u1, u2) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * (1.0 - *u1).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * *u2).sin_cos();
        *u1 = radius * cos;
        *u2 = radius * sin;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(ours: &[f32], torch: &[f32]) {
        for (a, b) in ours.iter().zip(torch) {
            assert!((a - b).abs() < 2e-6, "{ours:?} is not torch's {torch:?}");
        }
    }

    #[test]
    fn the_engine_is_the_mersenne_twister() {
        // The check value of the original mt19937ar.c, and of C++11's std::mt19937: the 10,000th number from seed 5489.
        let mut rng = TorchRng::new(Seed::from(5489));
        let last = (0..10_000).map(|_| rng.random()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    // g = torch.Generator("cpu").manual_seed(42); torch.randn(5, generator=g); torch.randn(2, generator=g)
    #[test]
    fn fewer_than_16_values_come_one_by_one() {
        let mut rng = TorchRng::new(Seed::from(42));
        assert_close(&rng.randn(5), &[0.336_690_4, 0.128_809_4, 0.234_462_4, 0.230_333, -1.122_856_4]);
        assert_close(&rng.randn(2), &[-0.186_328_3, 2.208_201_4]);
    }

    // g = torch.Generator("cpu").manual_seed(42); torch.randn(1, 4, 8, 8, generator=g); torch.randn(3, generator=g)
    #[test]
    fn multiples_of_16_come_in_blocks() {
        let mut rng = TorchRng::new(Seed::from(42));
        let latents = rng.randn(256);
        assert_close(&latents[..4], &[1.926_915_3, 1.487_284_1, 0.900_717_2, -2.105_521]);
        assert_close(&latents[252..], &[0.539_731, 0.565_505, 0.505_791_7, 0.222_453_7]);
        assert_close(&rng.randn(3), &[0.010_962_5, 0.144_680_6, 1.281_804_6]);
    }

    // g = torch.Generator("cpu").manual_seed(2**40 + 7); torch.randn(21, generator=g)
    #[test]
    fn a_rest_redraws_the_last_block_and_only_32_bits_of_the_seed_count() {
        let values = TorchRng::new(Seed::from((1 << 40) + 7)).randn(21);
        assert_close(
            &values[..8],
            &[-0.820_134_5, 0.395_631_2, 0.898_908_5, -1.388_403_9, -0.166_996, 0.782_072_7, 1.039_107_7, -0.724_510_7],
        );
        assert_close(&values[15..], &[-1.359_769, -0.866_701_6, -0.564_006_7, -2.056_462_5, -0.356_722_5, 1.095_580_5]);
        assert_eq!(values, TorchRng::new(Seed::from(7)).randn(21));
    }
}
