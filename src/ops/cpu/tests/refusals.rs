//! Kernels refuse shapes of which they would leave numbers unwritten: a result is new memory, which nobody may read before it is written.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{super::concat, *};
use crate::ops::cpu::output::Output;

fn refused<T>(work: impl FnOnce() -> T) -> bool {
    catch_unwind(AssertUnwindSafe(work)).is_err()
}

#[test]
fn a_result_is_read_only_where_it_was_written() {
    let mut memory = vec![std::mem::MaybeUninit::uninit(); 8];
    let mut out = Output::new(&mut memory);
    out.write(0, &[1.0; 8]);
    assert!(refused(|| out.read(0, 1).len()) && refused(|| out.swap(0, &mut [0.0])));
    assert!(refused(|| out.write(5, &[0.0; 4])) && refused(|| out.write(usize::MAX, &[0.0; 4])));
    let mut numbers = [1.0, 2.0, 3.0];
    let mut out = Output::over(&mut numbers);
    assert_eq!(out.read(1, 2), [2.0, 3.0]);
    assert!(refused(|| out.read(2, 2).len()) && refused(|| out.part(2..4).len()));
    assert_eq!(out.part(1..3).read(1, 1), [3.0]);
}

#[test]
fn norms_refuse_what_is_not_whole() {
    let (weight, bias) = (numbers(3, 1), numbers(3, 2));
    let config = GroupNormConfig { groups: 1, eps: EPS, weight: &weight, bias: &bias, activate: false, statistics: None };
    for machine in Machine::all() {
        assert!(refused(|| layer_norm_with(machine.vectors, &numbers(7, 3), EPS as f32, &weight, &bias)));
        assert!(refused(|| group_norm_with(machine.vectors, &numbers(9, 3), 2, config)));
        assert!(refused(|| group_norm_with(machine.vectors, &numbers(3, 3), 0, config)));
        assert!(group_norm_with(machine.vectors, &[], 0, config).is_empty());
    }
}

#[test]
fn pixels_without_channels_are_not_joined() {
    assert!(refused(|| concat::concat(&numbers(6, 1), 3, &[], 0)) && refused(|| concat::concat(&[], 0, &numbers(6, 1), 3)));
}

#[test]
fn queries_without_keys_have_no_answer() {
    let shape = Sequences { batch: 2, heads: 1, head_dim: 5, queries: 3, keys: 0, causal: false };
    for machine in Machine::all() {
        assert!(attention(machine, &numbers(2 * 3 * 5, 1), &[], &[], shape).iter().all(|number| number.is_nan()), "{machine:?}");
    }
}

#[test]
fn algorithms_refuse_convolutions_that_are_not_theirs() {
    let shape = Shape { batch: 1, height: 20, width: 20, seen: (20, 20) };
    let channels = if cfg!(miri) { 2 } else { 32 };
    let pixels = numbers(400 * channels, 1);
    for machine in Machine::all() {
        let pointwise =
            PackedConv::new(machine, DenseType::F32, &numbers(4 * channels, 2), channels, numbers(4, 3), Conv2dConfig::POINTWISE);
        for algorithm in [Algorithm::Winograd, Algorithm::Padded] {
            assert!(refused(|| pointwise.forward_by(algorithm, &pixels, shape, None, Epilogue::default())), "{machine:?}, {algorithm:?}");
        }
        assert!(!pointwise.works_in_place(shape));
        assert!(refused(|| pointwise.forward_in_place(&mut pixels.clone(), shape, None, Epilogue::default())));
        assert!(refused(|| pointwise.forward(&pixels[1..], shape, None, Epilogue::default())));
        assert!(refused(|| pointwise.forward_onto(&pixels, shape, &mut [0.0; 9])));
    }
}
