//! What every arithmetic promises, on random numbers.

use half::bf16;
use proptest::prelude::*;
use pulp::WithSimd;

use super::*;
use crate::ops::cpu::{
    Machine,
    tests::{error, numbers, up_to},
};

/// A product of prepared lines and packed weights.
struct Product<'a> {
    multiplier: Multiplier,
    lines: Lines<'a>,
    rows: usize,
    weights: &'a [f32],
    width: usize,
    sums: &'a mut [f32],
    add: bool,
}

impl WithSimd for Product<'_> {
    type Output = ();

    fn with_simd<S: Simd>(self, simd: S) {
        self.multiplier.multiply(simd, self.lines, self.rows, (self.weights, &[]), self.width, self.sums, self.add);
    }
}

/// `(depth, width)` of a panel, with zeros up to the padded depth.
fn padded(products: Products, mut weights: Vec<f32>, width: usize) -> Vec<f32> {
    weights.resize(products.padded(weights.len() / width) * width, 0.0);
    weights
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 3 } else { 60 }, ..ProptestConfig::default() })]

    #[test]
    fn products_agree_with_f64(rows in up_to(50, 9), depth in up_to(400, 40), spare in 0..9usize, vectors in 1..3usize, add in any::<bool>(), seed in any::<u64>()) {
        for machine in Machine::all() {
            let products = machine.products;
            let width = machine.panel_width(vectors * machine.lanes());
            // What an arithmetic rounds first, it multiplies as exactly as another.
            let rounded = |(i, x): (usize, f32)| match products.digits() {
                8 => bf16::from_f32(x).to_f32(),
                7 if i.is_multiple_of(products.blocking().depth) => 1.27,
                7 => (x * 100.0).round().clamp(-127.0, 127.0) / 100.0,
                _ => x,
            };
            let values: Vec<f32> = numbers(rows * depth, seed).into_iter().enumerate().map(|(i, x)| rounded((i % depth, x))).collect();
            let weights = numbers(depth * width, seed ^ 1).into_iter().enumerate().map(|(i, x)| rounded((i / width, x))).collect();
            let rows = rows.next_multiple_of(products.blocking().rows);
            let pitch = products.words(depth) + spare;
            let mut words = vec![0.0; rows * pitch];
            products.prepare_rows(&values, depth, &mut words, pitch);
            let weights = padded(products, weights, width);
            let mut packed = vec![f32::NAN; products.packed_words(weights.len())];
            products.pack(&weights, width, &mut packed);
            let before = numbers(rows * width, seed ^ 2);
            let mut sums = before.clone();
            let lines = Lines { words: &words, pitch, numbers: products.padded(depth) };
            machine.run(|multiplier| Product { multiplier, lines, rows, weights: &packed, width, sums: &mut sums, add });
            let right: Vec<f64> = (0..rows * width).map(|i| {
                let dot = |row: &[f32]| row.iter().enumerate().map(|(k, x)| f64::from(*x) * f64::from(weights[k * width + i % width])).sum::<f64>();
                let before = if add { f64::from(before[i]) } else { 0.0 };
                before + values.chunks_exact(depth).nth(i / width).map_or(0.0, dot)
            }).collect();
            prop_assert!(error(&sums, &right) < 6e-5, "{machine:?}: {}", error(&sums, &right));
        }
    }

    #[test]
    fn weights_in_their_places_are_packed_alike(depth in up_to(100, 40), seed in any::<u64>()) {
        for machine in Machine::all() {
            let products = machine.products;
            let width = machine.panel_width(2 * machine.lanes());
            let weights = padded(products, numbers(depth * width, seed), width);
            let mut placed = vec![0.0; weights.len()];
            for (i, number) in placed.iter_mut().enumerate() {
                let (row, column) = products.place(i / width, i % width);
                *number = weights[row * width + column];
                // What is quantized together has one factor.
                let (first, _) = products.place(i / width / products.group_rows() * products.group_rows(), i % width);
                prop_assert_eq!(first / GROUP, row / GROUP, "{:?}", machine);
            }
            let [mut packed, mut packed_placed] = [(); 2].map(|()| vec![0.0; products.packed_words(weights.len())]);
            products.pack(&weights, width, &mut packed);
            products.pack_placed(&placed, width, &mut packed_placed);
            // Words of halves may look like NaN.
            prop_assert!(packed.iter().map(|x| x.to_bits()).eq(packed_placed.iter().map(|x| x.to_bits())), "{machine:?}");
        }
    }

    #[test]
    fn lines_are_made_of_parts(before in up_to(70, 9), count in up_to(70, 9), first in 0..9usize, seed in any::<u64>()) {
        for machine in Machine::all() {
            let products = machine.products;
            let part = products.blocking().depth;
            let (before, first) = if products.takes_parts_of(1) { (before, first) } else { (before * part, first * part) };
            let prepared = |numbers: &[f32]| {
                let mut line = vec![f32::NAN; products.words(numbers.len())];
                products.prepare(numbers, &mut line);
                line
            };
            let values = numbers(first + count, seed);
            let whole = prepared(&[&vec![0.0; before][..], &values[first..]].concat());
            let mut parts = vec![f32::NAN; whole.len()];
            products.copy(None, &mut parts, 0..before);
            products.copy(Some((&prepared(&values), first)), &mut parts, before..before + count);
            products.copy(None, &mut parts, before + count..products.padded(before + count));
            prop_assert!(whole.iter().map(|x| x.to_bits()).eq(parts.iter().map(|x| x.to_bits())), "{machine:?}");
        }
    }
}

/// The last of a thread's proofs releases its tiles, not the first.
#[test]
fn readiness_may_be_nested() {
    for machine in Machine::all() {
        let width = machine.panel_width(32);
        let (line, weights) = (numbers(32, 1), padded(machine.products, numbers(32 * width, 2), width));
        let rows = machine.products.blocking().rows;
        let mut words = vec![0.0; rows * machine.products.words(32)];
        machine.products.prepare_rows(&line, 32, &mut words, machine.products.words(32));
        let mut packed = vec![0.0; machine.products.packed_words(weights.len())];
        machine.products.pack(&weights, width, &mut packed);
        let lines = Lines { words: &words, pitch: machine.products.words(32), numbers: machine.products.padded(32) };
        let product = |multiplier| {
            let mut sums = vec![0.0; rows * width];
            machine.vectors.dispatch(Product { multiplier, lines, rows, weights: &packed, width, sums: &mut sums, add: false });
            sums
        };
        let (outer, inner) = (machine.products.multiplier(), machine.products.multiplier());
        let first = product(inner);
        assert_eq!(first, product(outer), "{machine:?}");
    }
}
