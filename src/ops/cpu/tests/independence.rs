//! Results are the same to the last bit for any number of threads and any batch.

use super::*;

/// Compares `run` with a sample of `len` numbers alone on one thread, alone on more threads, and as one of three samples.
fn alone_or_not(what: &str, len: usize, run: impl Fn(&[f32], usize) -> Vec<f32> + Sync) {
    let on_threads = |threads: usize, values: &[f32], batch: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(values, batch).iter().map(|v| v.to_bits()).collect::<Vec<_>>())
    };
    let sample = numbers(len, 3);
    let batch = [numbers(len, 4), sample.clone(), numbers(len, 5)].concat();
    let alone = on_threads(1, &sample, 1);
    assert!(alone.iter().any(|bits| *bits != 0), "{what}");
    for threads in if cfg!(miri) { 2..3 } else { 2..6 } {
        assert!(on_threads(threads, &sample, 1) == alone, "{what} on {threads} threads");
        let among_others = on_threads(threads, &batch, 3);
        assert!(among_others[alone.len()..2 * alone.len()] == alone, "{what} among others on {threads} threads");
    }
}

#[test]
fn convolutions_are_independent() {
    // The rows are several tiles and tasks, and not a multiple of either.
    for (side, channels, outputs) in if cfg!(miri) { [(6, 2, 3)].to_vec() } else { [(45, 48, 40), (45, 64, 40)].to_vec() } {
        let weight = numbers(outputs * channels * 9, 1);
        let shape_of = |batch| Shape { batch, height: side, width: side, seen: (side, side) };
        for machine in Machine::all() {
            let packed = PackedConv::new(machine, DenseType::F16, &weight, channels, numbers(outputs, 2), Conv2dConfig::SAME_3X3);
            for (algorithm, _) in algorithms(machine, Conv2dConfig::SAME_3X3, channels, shape_of(1)) {
                alone_or_not(&format!("{algorithm:?} on {machine:?}"), side * side * channels, |pixels, batch| {
                    let epilogue = Epilogue { activation: Some(Activation::Silu), ..Epilogue::default() };
                    packed.forward_by(algorithm, pixels, shape_of(batch), None, epilogue)
                });
            }
        }
    }
    let (channels, outputs) = if cfg!(miri) { (2, 3) } else { (64, 64) };
    let weight = numbers(outputs * channels * 9, 1);
    for machine in Machine::all() {
        let doubling = PackedConv::doubling(machine, DenseType::F32, &weight, channels, numbers(outputs, 2));
        alone_or_not(&format!("a doubling convolution on {machine:?}"), 7 * 23 * channels, |pixels, batch| {
            doubling.forward(pixels, Shape { batch, height: 7, width: 23, seen: (14, 46) }, None, Epilogue::default())
        });
        // The choice of the algorithm follows from one image, too.
        let packed = PackedConv::new(machine, DenseType::F32, &weight, channels, numbers(outputs, 2), Conv2dConfig::SAME_3X3);
        for side in [6, 9, 12, 15, 16] {
            alone_or_not(&format!("{side} x {side} on {machine:?}"), side * side * channels, |pixels, batch| {
                packed.forward(pixels, Shape { batch, height: side, width: side, seen: (side, side) }, None, Epilogue::default())
            });
        }
    }
}

#[test]
fn linear_layers_are_independent() {
    let (rows, inputs, outputs) = if cfg!(miri) { (7, 34, 6) } else { (131, 500, 90) };
    let (weight, bias) = (numbers(outputs * inputs, 1), numbers(outputs, 2));
    for (kept, machine) in ALL_TYPES.into_iter().flat_map(|kept| Machine::all().into_iter().map(move |machine| (kept, machine))) {
        let plain = linear(machine, kept, &weight, inputs, &bias);
        let gated = gated(machine, kept, &weight, inputs, outputs / 2, &bias);
        for (name, layer) in [("a layer", plain), ("a gated layer", gated)] {
            let name = format!("{name} in {kept} on {machine:?}");
            alone_or_not(&name, rows * inputs, |values, _| layer.forward(values, Epilogue::default()));
        }
    }
}

#[test]
fn attention_is_independent() {
    let (tokens, head_dim) = if cfg!(miri) { (5, 3) } else { (150, 24) };
    for (causal, machine) in [true, false].into_iter().flat_map(|causal| Machine::all().into_iter().map(move |machine| (causal, machine))) {
        let shape = |batch| Sequences { batch, heads: 2, head_dim, queries: tokens, keys: tokens, causal };
        let run = |values: &[f32], batch| attention(machine, values, values, values, shape(batch));
        alone_or_not(&format!("attention on {machine:?}"), tokens * 2 * head_dim, run);
        // The queries of one sample stand for all samples; those of two, for a half each.
        let len = tokens * 2 * head_dim;
        let (one, other, keys) = (numbers(len, 1), numbers(len, 3), numbers(6 * len, 2));
        let asked_once = attention(machine, &one, &keys[..3 * len], &keys[..3 * len], shape(3));
        assert_eq!(asked_once, attention(machine, &one.repeat(3), &keys[..3 * len], &keys[..3 * len], shape(3)));
        let asked_twice = attention(machine, &[&one[..], &other].concat(), &keys, &keys, shape(6));
        assert_eq!(asked_twice, attention(machine, &[one.repeat(3), other.repeat(3)].concat(), &keys, &keys, shape(6)));
    }
}

#[test]
fn norms_are_independent() {
    let (pixels, channels) = if cfg!(miri) { (20, 6) } else { (4000, 36) };
    let (weight, bias) = (numbers(channels, 1), numbers(channels, 2));
    for machine in Machine::all() {
        for activate in [true, false] {
            let config = GroupNormConfig { groups: channels / 3, eps: EPS, weight: &weight, bias: &bias, activate, statistics: None };
            alone_or_not(&format!("a group norm on {machine:?}"), pixels * channels, |values, batch| {
                group_norm_with(machine.vectors, values, batch, config)
            });
        }
        let run = |values: &[f32], _| layer_norm_with(machine.vectors, values, EPS as f32, &weight, &bias);
        alone_or_not(&format!("a layer norm on {machine:?}"), pixels * channels, run);
    }
}
