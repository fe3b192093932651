//! Shapes at the edges of a kernel's blocks, against f64.

use super::*;

#[test]
fn convolutions_of_odd_shapes() {
    let sizes: &[(usize, usize)] = if cfg!(miri) { &[(1, 1), (5, 3)] } else { &[(1, 1), (1, 9), (2, 3), (5, 3), (7, 13), (17, 16)] };
    let channels: &[(usize, usize)] =
        if cfg!(miri) { &[(1, 1), (2, 5)] } else { &[(1, 1), (1, 33), (17, 1), (3, 4), (33, 31), (32, 1), (64, 33)] };
    for ((height, width), (channels, outputs)) in sizes.iter().flat_map(|size| channels.iter().map(move |channels| (*size, *channels))) {
        let shape = Shape { batch: 3, height, width, seen: (height, width) };
        let (pixels, weight) = (numbers(3 * height * width * channels, 1), numbers(outputs * channels * 9, 2));
        let bias = numbers(outputs, 3);
        let right = plain_conv(&pixels, &weight, &bias, shape, channels, Conv2dConfig::SAME_3X3);
        for machine in Machine::all() {
            let packed = PackedConv::new(machine, DenseType::F32, &weight, channels, bias.clone(), Conv2dConfig::SAME_3X3);
            for (algorithm, limit) in algorithms(machine, Conv2dConfig::SAME_3X3, channels, shape) {
                let error = error(&packed.forward_by(algorithm, &pixels, shape, None, Epilogue::default()), &right);
                assert!(error < limit, "{machine:?}, {algorithm:?}, {shape:?}, {channels} to {outputs}: {error}");
            }
        }
    }
}

/// So many channels that a picture's tiles are transformed in several rounds.
#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn a_convolution_of_many_rounds() {
    let (channels, outputs) = (600, 5);
    let shape = Shape { batch: 3, height: 61, width: 63, seen: (61, 63) };
    let (pixels, weight) = (numbers(3 * 61 * 63 * channels, 1), numbers(outputs * channels * 9, 2));
    let machine = Machine::all().into_iter().rfind(|machine| machine.products.is_plain()).unwrap();
    let packed = PackedConv::new(machine, DenseType::F32, &weight, channels, numbers(outputs, 3), Conv2dConfig::SAME_3X3);
    let by = |algorithm| packed.forward_by(algorithm, &pixels, shape, None, Epilogue::default());
    let direct: Vec<f64> = by(Algorithm::Direct).into_iter().map(f64::from).collect();
    assert!(error(&by(Algorithm::Winograd), &direct) < 1e-4);
}

/// So large an image that its rows are prepared in bands: the result is the same as if the whole image was normalized or enlarged first.
#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn a_convolution_of_many_bands() {
    let (batch, height, width, channels, outputs) = (3, 150, 151, 64, 5);
    let pixels = numbers(batch * height * width * channels, 1);
    assert!(4 * pixels.len() > super::super::band::BAND);
    let (scale, shift) = (numbers(channels, 2), numbers(channels, 3));
    let config = GroupNormConfig { groups: 8, eps: EPS, weight: &scale, bias: &shift, activate: true, statistics: None };
    let (norm, normed) = (Normalization::new(&pixels, batch, config), group_norm(&pixels, batch, config));
    let shape = Shape { batch, height, width, seen: (height, width) };
    // Enlarged to twice its height less one, and to its own width.
    let (enlarged, enlarged_shape) = (Shape { seen: (2 * height - 1, width), ..shape }, Shape { height: 2 * height - 1, ..shape });
    let row = |y: usize| &normed[y * width * channels..(y + 1) * width * channels];
    let rows = (0..batch).flat_map(|b| (0..2 * height - 1).map(move |y| b * height + y * height / (2 * height - 1)));
    let copied: Vec<f32> = rows.flat_map(row).copied().collect();
    let enlarged_shape = Shape { seen: (2 * height - 1, width), ..enlarged_shape };
    for machine in Machine::all().into_iter().skip(1) {
        for (kernel, stride, padding) in [(3, 1, 1), (1, 1, 0), (3, 2, 1), (3, 2, 0), (5, 1, 2)] {
            let weight = numbers(outputs * channels * kernel * kernel, 4);
            let config = Conv2dConfig { kernel, stride, padding };
            let packed = PackedConv::new(machine, DenseType::F32, &weight, channels, numbers(outputs, 5), config);
            let run = |algorithm, pixels: &[f32], shape, norm| packed.forward_by(algorithm, pixels, shape, norm, Epilogue::default());
            for (algorithm, _) in algorithms(machine, config, channels, shape) {
                let right = run(algorithm, &normed, shape, None);
                assert!(run(algorithm, &pixels, shape, Some(&norm)) == right, "{machine:?}, {algorithm:?}, {config:?}");
            }
            for (algorithm, _) in algorithms(machine, config, channels, enlarged) {
                let right = run(algorithm, &copied, enlarged_shape, None);
                assert!(run(algorithm, &pixels, enlarged, Some(&norm)) == right, "{machine:?}, {algorithm:?}, {config:?}, enlarged");
            }
        }
    }
}

#[test]
fn weights_take_no_more_memory_than_they_are_multiplied_in() {
    let (depth, columns) = (128, 64);
    let (weight, bias) = (numbers(depth * columns, 1), numbers(columns, 2));
    for machine in Machine::all() {
        // Bits of 64 weights.
        let packed = match machine.products.digits() {
            7 => 64 * 8 + 32,
            8 => 64 * 16,
            _ => 64 * 32,
        };
        let blocks = 64 * 8 + 64 * 32 / machine.products.group_rows();
        let all = [(WeightType::F32, 64 * 32), (WeightType::F16, 64 * 16), (WeightType::Bf16, 64 * 16), (WeightType::Q8_0, blocks)];
        for (kept, stored) in all {
            let bytes = linear(machine, kept, &weight, depth, &bias).bytes();
            assert_eq!(8 * 64 * bytes / weight.len(), packed.min(stored), "{machine:?}, {kept}");
        }
    }
}

/// Each channel in turn is all that there is.
#[test]
fn points_in_bf16_are_in_their_places() {
    for machine in Machine::all().into_iter().filter(|machine| matches!(Points::new(*machine, 64), Points::Bf16(_))) {
        let (channels, outputs, height, width) = if cfg!(miri) { (32, 3, 4, 5) } else { (96, 33, 5, 7) };
        let shape = Shape { batch: channels, height, width, seen: (height, width) };
        let mut pixels = vec![0.0; channels * height * width * channels];
        for channel in 0..channels {
            pixels[(channel * height * width + channel % (height * width)) * channels + channel] = 1.0;
        }
        let (weight, bias) = (numbers(outputs * channels * 9, 2), vec![0.0; outputs]);
        let right = plain_conv(&pixels, &weight, &bias, shape, channels, Conv2dConfig::SAME_3X3);
        let packed = PackedConv::new(machine, DenseType::F32, &weight, channels, bias, Conv2dConfig::SAME_3X3);
        let ours = packed.forward_by(Algorithm::Winograd, &pixels, shape, None, Epilogue::default());
        // Another channel is as far off as its weights are large.
        assert!(error(&ours, &right) < 0.3, "{machine:?}: {}", error(&ours, &right));
    }
}

/// There are several bands, and each reads the last rows of the one before.
#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn a_convolution_may_take_the_memory_of_its_image() {
    let (batch, height, width, channels) = (2, 210, 151, 64);
    let pixels = numbers(batch * height * width * channels, 1);
    let (scale, shift) = (numbers(channels, 2), numbers(channels, 3));
    let config = GroupNormConfig { groups: 8, eps: EPS, weight: &scale, bias: &shift, activate: true, statistics: None };
    let norm = Normalization::new(&pixels, batch, config);
    let shape = Shape { batch, height, width, seen: (height, width) };
    let residual = numbers(pixels.len(), 4);
    let epilogue = || Epilogue { residual: Some(&residual), ..Epilogue::default() };
    for machine in Machine::all().into_iter().skip(1) {
        let packed = PackedConv::new(
            machine,
            DenseType::F32,
            &numbers(channels * channels * 9, 5),
            channels,
            residual[..channels].to_vec(),
            Conv2dConfig::SAME_3X3,
        );
        let right = packed.forward(&pixels, shape, Some(&norm), epilogue());
        let directly: Vec<f64> =
            packed.forward_by(Algorithm::Direct, &pixels, shape, Some(&norm), epilogue()).into_iter().map(f64::from).collect();
        assert!(error(&right, &directly) < of_points(machine, channels, 1e-4), "{machine:?}");
        assert!(packed.works_in_place(shape), "{machine:?}");
        let mut ours = pixels.clone();
        packed.forward_in_place(&mut ours, shape, Some(&norm), epilogue());
        assert!(ours == right, "{machine:?}");
    }
}

#[test]
fn a_convolution_is_added_to_what_there_is() {
    let shape = Shape { batch: 2, height: 5, width: 17, seen: (5, 17) };
    let (channels, outputs) = if cfg!(miri) { (2, 3) } else { (32, 33) };
    let pixels = numbers(2 * 5 * 17 * channels, 1);
    let onto = numbers(2 * 5 * 17 * outputs, 2);
    for (machine, kernel) in Machine::all().into_iter().flat_map(|machine| [(machine, 1), (machine, 3)]) {
        let config = Conv2dConfig { kernel, stride: 1, padding: kernel / 2 };
        let packed = PackedConv::new(
            machine,
            DenseType::F32,
            &numbers(outputs * channels * kernel * kernel, 3),
            channels,
            numbers(outputs, 4),
            config,
        );
        let right = packed.forward(&pixels, shape, None, Epilogue { residual: Some(&onto), ..Epilogue::default() });
        let mut ours = onto.clone();
        packed.forward_onto(&pixels, shape, &mut ours);
        assert!(ours == right, "{machine:?}, {kernel}");
    }
}

#[test]
fn linear_layers_of_odd_shapes() {
    let rows: &[usize] = if cfg!(miri) { &[1, 7] } else { &[1, 3, 13, 97] };
    let inputs: &[usize] = if cfg!(miri) { &[1, 33] } else { &[1, 31, 33, 641, 1281] };
    for (rows, inputs) in rows.iter().flat_map(|rows| inputs.iter().map(move |inputs| (*rows, *inputs))) {
        for outputs in [1, 2, 34] {
            for kept in ALL_TYPES {
                let (values, weight) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
                let bias = numbers(outputs, 3);
                let right = plain_linear(&values, &stored(kept, weight.clone(), inputs), &bias, inputs);
                let gates = outputs / 2;
                let right_gated =
                    right.chunks_exact(outputs).flat_map(|row| (0..gates).map(|n| row[n] * f64::from(math::gelu(row[gates + n] as f32))));
                let right_gated: Vec<f64> = right_gated.collect();
                for machine in Machine::all() {
                    let layer = linear(machine, kept, &weight, inputs, &bias);
                    let error_of = |layer: PackedLinear, right: &[f64]| error(&layer.forward(&values, Epilogue::default()), right);
                    let plain_error = error_of(layer, &right);
                    assert!(plain_error < limit(machine, 2e-5), "{machine:?}, {kept}, {rows} x {inputs} x {outputs}: {plain_error}");
                    if gates > 0 {
                        let gated_error = error_of(gated(machine, kept, &weight, inputs, gates, &bias), &right_gated);
                        assert!(
                            gated_error < 2.0 * limit(machine, 2e-5),
                            "{machine:?}, {kept}, gated, {rows} x {inputs} x {outputs}: {gated_error}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn attention_of_odd_shapes() {
    let prompt = if cfg!(miri) { 9 } else { 77 };
    for (queries, keys, causal) in [
        (prompt, prompt, true),
        (prompt, prompt, false),
        (129, prompt, false),
        (1, prompt, false),
        (33, 1, false),
        (1, 1, true),
        (3, 129, false),
    ] {
        for (heads, head_dim) in [(1, 1), (3, 5)] {
            let shape = Sequences { batch: 3, heads, head_dim, queries, keys, causal };
            let of = |tokens: usize, seed| numbers(3 * tokens * heads * head_dim, seed);
            let (q, k, v) = (of(queries, 1), of(keys, 2), of(keys, 3));
            if cfg!(miri) && (queries.max(keys) > prompt || heads > 1) {
                continue;
            }
            let right = plain_attention(&q, &k, &v, shape);
            for machine in Machine::all() {
                let error = error(&attention(machine, &q, &k, &v, shape), &right);
                assert!(error < limit(machine, 1e-5), "{machine:?}, {shape:?}: {error}");
                // One key has the whole weight.
                let rounding = 2.0 / f64::from(1_u32 << machine.products.digits());
                assert!(keys > 1 || error < rounding.max(1e-7), "{machine:?}, {shape:?}: {error}");
            }
        }
    }
}

#[test]
fn norms_of_odd_shapes() {
    let pixels: &[usize] = if cfg!(miri) { &[1, 3, 17] } else { &[1, 3, 15, 17, 255, 257, 1025] };
    for (pixels, (channels, groups)) in
        pixels.iter().flat_map(|pixels| [(1, 1), (3, 1), (3, 3), (34, 2)].map(|channels| (*pixels, channels)))
    {
        let (values, weight, bias) = (numbers(3 * pixels * channels, 1), numbers(channels, 2), numbers(channels, 3));
        let (right, right_rows) = (
            [true, false].map(|activate| plain_group_norm(&values, 3, groups, &weight, &bias, activate)),
            plain_layer_norm(&values, &weight, &bias),
        );
        // One number less its mean is zero, and is divided by almost zero.
        let limit = if pixels * channels == groups { 1e-3 } else { 5e-5 };
        for machine in Machine::all() {
            for (activate, right) in [true, false].into_iter().zip(&right) {
                let config = GroupNormConfig { groups, eps: EPS, weight: &weight, bias: &bias, activate, statistics: None };
                let error = error(&group_norm_with(machine.vectors, &values, 3, config), right);
                assert!(error < limit, "{machine:?}: {pixels} pixels, {channels} channels in {groups} groups: {error}");
            }
            let error = error(&layer_norm_with(machine.vectors, &values, EPS as f32, &weight, &bias), &right_rows);
            assert!(error < 5e-5, "{machine:?}: {channels} features: {error}");
        }
    }
}
