//! Results are the same to the last bit, however many threads there are and whatever else is in the batch.

use super::*;

/// `run` with a sample of `len` numbers: alone on one thread, alone on more, and as one of three.
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
    // Rows that divide into no tile or task, and enough of them for several of each.
    let (side, channels, outputs) = if cfg!(miri) { (6, 2, 3) } else { (45, 48, 40) };
    let weight = numbers(outputs * channels * 9, 1);
    for arch in archs() {
        let packed = PackedConv::with_arch(arch, Storage::F16, &weight, channels, numbers(outputs, 2), Conv2dConfig::SAME_3X3);
        for algorithm in [Algorithm::Direct, Algorithm::Winograd] {
            alone_or_not(&format!("{algorithm:?} on {arch:?}"), side * side * channels, |pixels, batch| {
                let shape = Shape { batch, height: side, width: side, seen: (side, side) };
                packed.forward_by(algorithm, pixels, shape, Epilogue { activation: Some(Activation::Silu), ..Epilogue::default() })
            });
        }
    }
    // The choice of the algorithm is of one picture, too.
    let packed = PackedConv::new(Storage::F32, &weight, channels, numbers(outputs, 2), Conv2dConfig::SAME_3X3);
    for side in [6, 9, 12] {
        alone_or_not(&format!("{side} x {side}"), side * side * channels, |pixels, batch| {
            packed.forward(pixels, Shape { batch, height: side, width: side, seen: (side, side) }, Epilogue::default())
        });
    }
}

#[test]
fn linear_layers_are_independent() {
    let (rows, inputs, outputs) = if cfg!(miri) { (7, 34, 6) } else { (131, 500, 90) };
    let (weight, bias) = (numbers(outputs * inputs, 1), numbers(outputs, 2));
    for (storage, arch) in
        [Storage::F32, Storage::F16, Storage::Bf16, Storage::Q8_0].into_iter().flat_map(|s| archs().into_iter().map(move |arch| (s, arch)))
    {
        let plain = PackedLinear::with_arch(arch, storage, &weight, inputs, outputs, Some(bias.clone()));
        let gated = PackedLinear::gated(arch, storage, &weight, inputs, outputs / 2, &bias);
        for (name, layer) in [("a layer", plain), ("a gated layer", gated)] {
            let name = format!("{name} in {storage} on {arch:?}");
            alone_or_not(&name, rows * inputs, |values, _| layer.forward(values, Epilogue::default()));
        }
    }
}

#[test]
fn attention_is_independent() {
    let (tokens, head_dim) = if cfg!(miri) { (5, 3) } else { (150, 24) };
    for (causal, arch) in [true, false].into_iter().flat_map(|causal| archs().into_iter().map(move |arch| (causal, arch))) {
        let shape = |batch| Sequences { batch, heads: 2, head_dim, queries: tokens, keys: tokens, causal };
        let run = |values: &[f32], batch| attention_with(arch, values, values, values, shape(batch));
        alone_or_not(&format!("attention on {arch:?}"), tokens * 2 * head_dim, run);
        // Queries of one sample are those of every sample.
        let (one, keys) = (numbers(tokens * 2 * head_dim, 1), numbers(3 * tokens * 2 * head_dim, 2));
        let asked_once = attention_with(arch, &one, &keys, &keys, shape(3));
        assert_eq!(asked_once, attention_with(arch, &one.repeat(3), &keys, &keys, shape(3)));
    }
}

#[test]
fn norms_are_independent() {
    let (pixels, channels) = if cfg!(miri) { (20, 6) } else { (4000, 36) };
    let (weight, bias) = (numbers(channels, 1), numbers(channels, 2));
    for arch in archs() {
        for activate in [true, false] {
            let config = GroupNormConfig { groups: channels / 3, eps: EPS, weight: &weight, bias: &bias, activate };
            alone_or_not(&format!("a group norm on {arch:?}"), pixels * channels, |values, batch| {
                group_norm_with(arch, values, batch, config)
            });
        }
        let run = |values: &[f32], _| layer_norm_with(arch, values, EPS as f32, &weight, &bias);
        alone_or_not(&format!("a layer norm on {arch:?}"), pixels * channels, run);
    }
}
