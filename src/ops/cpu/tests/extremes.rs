//! Numbers at the ends of f32: subnormal numbers are not lost, and an infinity reaches the results that depend on it and no others.

use super::*;

/// The smallest number above zero: subnormal results are rounded to a multiple of it.
const SMALLEST: f64 = 1.5e-45;

/// Subnormal numbers.
fn faint(values: Vec<f32>) -> Vec<f32> {
    let values: Vec<f32> = values.into_iter().map(|v| v * 1e-38).collect();
    assert!(values.iter().all(|v| v.abs() < f32::MIN_POSITIVE) && values.iter().any(|v| *v != 0.0));
    values
}

/// Those whose products do not take subnormal numbers for zeros.
fn exact_machines() -> Vec<Machine> {
    Machine::all().into_iter().filter(|machine| machine.has_exact_products()).collect()
}

/// The largest difference.
fn distance(ours: &[f32], right: &[f64]) -> f64 {
    assert_eq!(ours.len(), right.len());
    assert!(ours.iter().all(|v| v.is_finite()));
    ours.iter().zip(right).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

fn largest(right: &[f64]) -> f64 {
    right.iter().fold(0.0, |a, b| a.max(b.abs()))
}

/// Checks a result of which an infinity is an input. `clean` is the result without it: `ours` must be the same to the last bit where `seen`
/// is false, and infinite or NaN where the f64 version is.
fn spread(ours: &[f32], clean: &[f32], right: &[f64], seen: impl Fn(usize) -> bool) {
    assert!(ours.len() == clean.len() && ours.len() == right.len());
    assert!(right.iter().any(|v| !v.is_finite()) && clean.iter().all(|v| v.is_finite()));
    for (i, ((ours, clean), right)) in ours.iter().zip(clean).zip(right).enumerate() {
        assert!(right.is_finite() || !ours.is_finite(), "{i}: {ours} where f64 says {right}");
        assert!(!right.is_infinite() || ours.is_nan() || f64::from(*ours).total_cmp(right).is_eq(), "{i}: {ours} where f64 says {right}");
        assert!(seen(i) || ours.to_bits() == clean.to_bits(), "{i}: {ours} became {clean}");
    }
}

const CONV: Shape = Shape { batch: 3, height: 7, width: 9, seen: (7, 9) };
const CHANNELS: (usize, usize) = (5, 3);

fn conv(machine: Machine, weight: &[f32], bias: Vec<f32>) -> PackedConv {
    PackedConv::new(machine, DenseType::F32, weight, CHANNELS.0, bias, Conv2dConfig::SAME_3X3)
}

#[test]
fn convolutions_keep_subnormals() {
    let (pixels, weight) = (numbers(3 * 7 * 9 * CHANNELS.0, 1), numbers(9 * CHANNELS.0 * CHANNELS.1, 2));
    let bias = vec![0.0; CHANNELS.1];
    for (pixels, weight) in [(faint(pixels.clone()), weight.clone()), (pixels, faint(weight))] {
        let right = plain_conv(&pixels, &weight, &bias, CONV, CHANNELS.0, Conv2dConfig::SAME_3X3);
        for machine in exact_machines() {
            // A direct convolution rounds each product once. Winograd's transforms multiply rounding errors by up to a thousand.
            for (algorithm, _) in algorithms(machine, Conv2dConfig::SAME_3X3, CHANNELS.0, CONV) {
                let ours = conv(machine, &weight, bias.clone()).forward_by(algorithm, &pixels, CONV, None, Epilogue::default());
                let roundings = if algorithm == Algorithm::Winograd { 1e3 } else { 1.0 };
                let limit = roundings * SMALLEST * (9 * CHANNELS.0) as f64;
                assert!(limit < 0.01 * largest(&right), "such a limit says nothing");
                assert!(distance(&ours, &right) < limit, "{machine:?}, {algorithm:?}: {}", distance(&ours, &right));
            }
        }
    }
}

#[test]
fn an_infinite_pixel_reaches_the_windows_that_hold_it() {
    let clean = numbers(3 * 7 * 9 * CHANNELS.0, 1);
    let weight = numbers(9 * CHANNELS.0 * CHANNELS.1, 2);
    let bias = numbers(CHANNELS.1, 3);
    for (y, x, infinity) in [(0, 0, f32::INFINITY), (4, 3, f32::NEG_INFINITY), (6, 8, f32::INFINITY)] {
        let mut pixels = clean.clone();
        pixels[((7 + y) * 9 + x) * CHANNELS.0 + 2] = infinity;
        let right = plain_conv(&pixels, &weight, &bias, CONV, CHANNELS.0, Conv2dConfig::SAME_3X3);
        let place = |i: usize| (i / CHANNELS.1 / 63, i / CHANNELS.1 / 9 % 7, i / CHANNELS.1 % 9);
        let in_window = |i: usize| place(i).0 == 1 && place(i).1.abs_diff(y) <= 1 && place(i).2.abs_diff(x) <= 1;
        // A tile of 4 x 4 pixels reads one pixel more on each side.
        let sees = |at: usize, pixel: usize| (at / 4 * 4..at / 4 * 4 + 6).contains(&(pixel + 1));
        let in_tile = |i: usize| place(i).0 == 1 && sees(place(i).1, y) && sees(place(i).2, x);
        assert!(right.iter().enumerate().all(|(i, v)| v.is_finite() != in_window(i)));
        for machine in Machine::all() {
            let packed = conv(machine, &weight, bias.clone());
            let by = |algorithm, pixels: &[f32]| packed.forward_by(algorithm, pixels, CONV, None, Epilogue::default());
            spread(&by(Algorithm::Direct, &pixels), &by(Algorithm::Direct, &clean), &right, in_window);
            if !machine.products.is_plain() {
                continue;
            }
            let ours = by(Algorithm::Winograd, &pixels);
            let as_good: Vec<f64> = right.iter().map(|v| if v.is_finite() { *v } else { f64::NAN }).collect();
            spread(&ours, &by(Algorithm::Winograd, &clean), &as_good, in_tile);
        }
    }
}

/// Shape of the linear layers here: more inputs than two groups of [`WeightType::Q8_0`], outputs that fill no vector.
const ROWS: usize = 5;
const INPUTS: usize = 70;
const OUTPUTS: usize = 19;

/// The results of a linear layer and of a gated one.
fn both_linear(machine: Machine, kept: WeightType, weight: &[f32], values: &[f32], bias: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let outputs = bias.len();
    let plain = linear(machine, kept, weight, INPUTS, bias);
    let gated = gated(machine, kept, weight, INPUTS, outputs / 2, bias);
    (plain.forward(values, Epilogue::default()), gated.forward(values, Epilogue::default()))
}

#[test]
fn linear_layers_keep_subnormals() {
    let (values, weight, bias) = (numbers(ROWS * INPUTS, 1), numbers(2 * OUTPUTS * INPUTS, 2), vec![0.0; 2 * OUTPUTS]);
    for (kept, machine) in ALL_TYPES.into_iter().flat_map(|kept| exact_machines().into_iter().map(move |machine| (kept, machine))) {
        let rounded = stored(kept, weight.clone(), INPUTS);
        let faint_values = faint(values.clone());
        let right = plain_linear(&faint_values, &rounded, &bias, INPUTS);
        let (ours, _) = both_linear(machine, kept, &weight, &faint_values, &bias);
        let limit = SMALLEST * INPUTS as f64;
        assert!(limit < 1e-3 * largest(&right) && distance(&ours, &right) < limit, "{kept}, {machine:?}: {}", distance(&ours, &right));

        // With a bias of 1, a gate is GELU(1) to an f32, and the product as faint as the value.
        let open: Vec<f32> = (0..2 * OUTPUTS).map(|n| if n < OUTPUTS { 0.0 } else { 1.0 }).collect();
        let gate = f64::from(math::gelu(1.0));
        let right: Vec<f64> = right.chunks_exact(2 * OUTPUTS).flat_map(|row| row[..OUTPUTS].iter().map(|v| v * gate)).collect();
        let (_, ours) = both_linear(machine, kept, &weight, &faint_values, &open);
        assert!(distance(&ours, &right) < 2.0 * limit, "{kept}, {machine:?}, gated: {}", distance(&ours, &right));

        // Subnormal weights are zeros in f16, have fewer digits the smaller they are in bf16, and in q8_0 their factor is rounded to a
        // subnormal number, which is multiplied with up to 127.
        let faint_weight = faint(weight.clone());
        let right = plain_linear(&values, &faint_weight, &bias, INPUTS);
        let (ours, gated) = both_linear(machine, kept, &faint_weight, &values, &bias);
        let per_weight = match kept {
            WeightType::F32 => SMALLEST,
            WeightType::F16 => f64::from(f32::MIN_POSITIVE),
            WeightType::Bf16 => f64::from(f32::MIN_POSITIVE) / 128.0,
            WeightType::Q8_0 => f64::from(f32::MIN_POSITIVE) / 127.0,
        };
        let limit = per_weight * INPUTS as f64;
        assert!(distance(&ours, &right) < limit, "{kept}, {machine:?}: {}", distance(&ours, &right));
        assert!(gated.iter().all(|v| *v == 0.0), "{kept}, {machine:?}: a faint number times half of one");
    }
}

#[test]
fn products_that_are_not_exact_take_subnormals_for_zeros() {
    let (values, weight, bias) = (numbers(ROWS * INPUTS, 1), numbers(OUTPUTS * INPUTS, 2), numbers(OUTPUTS, 3));
    for machine in Machine::all().into_iter().filter(|machine| !machine.has_exact_products()) {
        let layer = |weight: &[f32]| linear(machine, WeightType::F32, weight, INPUTS, &bias);
        assert_eq!(layer(&weight).forward(&faint(values.clone()), Epilogue::default()), bias.repeat(ROWS));
        assert_eq!(layer(&faint(weight.clone())).forward(&values, Epilogue::default()), bias.repeat(ROWS));
    }
}

#[test]
fn weights_of_nothing_give_the_bias() {
    // In one column, the factor of q8_0 is too small for an f32.
    let mut weight = vec![0.0; OUTPUTS * INPUTS];
    weight[3 * INPUTS] = f32::from_bits(1);
    let (values, bias) = (numbers(ROWS * INPUTS, 1), numbers(OUTPUTS, 2));
    for (kept, machine) in ALL_TYPES.into_iter().flat_map(|kept| Machine::all().into_iter().map(move |machine| (kept, machine))) {
        let (ours, _) = both_linear(machine, kept, &weight, &values, &bias);
        assert_eq!(ours, bias.repeat(ROWS), "{kept}, {machine:?}");
    }
}

#[test]
fn an_infinity_reaches_its_row_or_its_column() {
    let (values, weight, bias) = (numbers(ROWS * INPUTS, 1), numbers(2 * OUTPUTS * INPUTS, 2), numbers(2 * OUTPUTS, 3));
    for (kept, machine) in ALL_TYPES.into_iter().flat_map(|kept| Machine::all().into_iter().map(move |machine| (kept, machine))) {
        let rounded = stored(kept, weight.clone(), INPUTS);
        let (clean, clean_gated) = both_linear(machine, kept, &weight, &values, &bias);
        let in_row = |row: usize, width: usize| move |i: usize| i / width == row;
        let mut with = values.clone();
        with[2 * INPUTS + 33] = f32::NEG_INFINITY;
        let right = plain_linear(&with, &rounded, &bias, INPUTS);
        let (ours, gated) = both_linear(machine, kept, &weight, &with, &bias);
        spread(&ours, &clean, &right, in_row(2, 2 * OUTPUTS));
        let nan_where =
            |seen: &dyn Fn(usize) -> bool| (0..ROWS * OUTPUTS).map(|i| if seen(i) { f64::NAN } else { 0.0 }).collect::<Vec<_>>();
        let seen = in_row(2, OUTPUTS);
        spread(&gated, &clean_gated, &nan_where(&seen), seen);

        // A weight reaches its column, of values or of gates. In q8_0, its factor is infinite.
        let mut with = weight.clone();
        with[7 * INPUTS + 33] = f32::INFINITY;
        let (ours, gated) = both_linear(machine, kept, &with, &values, &bias);
        let column: Vec<f64> = (0..ours.len()).map(|i| if i % (2 * OUTPUTS) == 7 { f64::NAN } else { 0.0 }).collect();
        spread(&ours, &clean, &column, |i| i % (2 * OUTPUTS) == 7);
        let seen = |i: usize| i % OUTPUTS == 7;
        spread(&gated, &clean_gated, &nan_where(&seen), seen);
    }
}

const HEADS: Sequences = Sequences { batch: 2, heads: 2, head_dim: 6, queries: 77, keys: 77, causal: true };
const TOKENS: Sequences = if cfg!(miri) { Sequences { queries: 9, keys: 9, ..HEADS } } else { HEADS };
const WIDTH: usize = 12;

#[test]
fn attention_keeps_subnormals() {
    let len = 2 * TOKENS.keys * WIDTH;
    let (q, k, v) = (numbers(len, 1), numbers(len, 2), numbers(len, 3));
    for (shape, machine) in [true, false]
        .into_iter()
        .flat_map(|causal| exact_machines().into_iter().map(move |machine| (Sequences { causal, ..TOKENS }, machine)))
    {
        // A mean of faint numbers is faint.
        let faint_v = faint(v.clone());
        let right = plain_attention(&q, &k, &faint_v, shape);
        let ours = attention(machine, &q, &k, &faint_v, shape);
        let limit = SMALLEST * (shape.keys + 10) as f64;
        assert!(limit < 1e-3 * largest(&right) && distance(&ours, &right) < limit, "{machine:?}: {}", distance(&ours, &right));
        // Where scores are almost zero, all keys weigh the same.
        for (q, k) in [(faint(q.clone()), k.clone()), (q.clone(), faint(k.clone())), (faint(q.clone()), faint(k.clone()))] {
            let right = plain_attention(&q, &k, &v, shape);
            let ours = attention(machine, &q, &k, &v, shape);
            assert!(distance(&ours, &right) < 1e-6, "{machine:?}: {}", distance(&ours, &right));
        }
    }
}

#[test]
fn an_infinity_reaches_the_queries_that_see_it() {
    let len = 2 * TOKENS.keys * WIDTH;
    let (q, mut k, v) = (numbers(len, 1), numbers(len, 2), numbers(len, 3));
    // No number of a key is zero, which times infinity is NaN.
    for v in &mut k {
        *v = v.abs() + 0.1;
    }
    // A token of the second sample and head.
    let (token, at) = (5, (TOKENS.keys + 5) * WIDTH + 6 + 1);
    let of_head = |i: usize| i / WIDTH >= TOKENS.keys && i % WIDTH >= 6;
    let query = |i: usize| i / WIDTH % TOKENS.keys;
    let put = |values: &[f32], infinity: f32| {
        let mut values = values.to_vec();
        values[at] = infinity;
        values
    };
    for (shape, machine) in [true, false]
        .into_iter()
        .flat_map(|causal| Machine::all().into_iter().map(move |machine| (Sequences { causal, ..TOKENS }, machine)))
    {
        let clean = attention(machine, &q, &k, &v, shape);
        let sees = |i: usize| of_head(i) && (!shape.causal || query(i) >= token);
        for infinity in [f32::INFINITY, f32::NEG_INFINITY] {
            // A query: all its scores are infinite. Where they are -infinity, it has no answer.
            let q = put(&q, infinity);
            let right = plain_attention(&q, &k, &v, shape);
            assert!(right.iter().enumerate().all(|(i, v)| v.is_nan() == (of_head(i) && query(i) == token)));
            spread(&attention(machine, &q, &k, &v, shape), &clean, &right, |i| of_head(i) && query(i) == token);
        }
        // A key: its score is infinite, and its weight 1 or 0.
        let with = put(&k, f32::INFINITY);
        spread(&attention(machine, &q, &with, &v, shape), &clean, &plain_attention(&q, &with, &v, shape), sees);
        // A value: the results of its own feature. A hidden key weighs 0, which times infinity is NaN, as in torch: a query before the key
        // may have no answer, but never a wrong one.
        let with = put(&v, f32::NEG_INFINITY);
        let ours = attention(machine, &q, &k, &with, shape);
        let right = plain_attention(&q, &k, &with, shape);
        assert!(ours.iter().zip(&clean).all(|(a, b)| a.is_nan() || a.is_infinite() || a.to_bits() == b.to_bits()));
        spread(&ours, &clean, &right, |i| of_head(i) && i % WIDTH == 7);
    }
}

/// Channels of images of 35 pixels.
const NORM_CHANNELS: usize = 6;
const SAMPLE: usize = 35 * NORM_CHANNELS;

#[test]
fn norms_keep_subnormals() {
    let (values, weight, bias) = (faint(numbers(3 * SAMPLE, 1)), numbers(NORM_CHANNELS, 2), vec![0.0; NORM_CHANNELS]);
    let right = plain_group_norm(&values, 3, 2, &weight, &bias, false);
    let right_rows = plain_layer_norm(&values, &weight, &bias);
    assert!(largest(&right) > 1e-37 && largest(&right_rows) > 1e-37);
    for machine in Machine::all() {
        let config = GroupNormConfig { groups: 2, eps: EPS, weight: &weight, bias: &bias, activate: false, statistics: None };
        let ours = group_norm_with(machine.vectors, &values, 3, config);
        assert!(distance(&ours, &right) < 1e-41, "{machine:?}: {}", distance(&ours, &right));
        let ours = layer_norm_with(machine.vectors, &values, EPS as f32, &weight, &bias);
        assert!(distance(&ours, &right_rows) < 1e-41, "{machine:?}: {}", distance(&ours, &right_rows));
    }
}

#[test]
fn an_infinity_reaches_what_is_normed_with_it() {
    let (clean, weight, bias) = (numbers(3 * SAMPLE, 1), numbers(NORM_CHANNELS, 2), numbers(NORM_CHANNELS, 3));
    for (infinity, machine) in
        [f32::INFINITY, f32::NEG_INFINITY].into_iter().flat_map(|v| Machine::all().into_iter().map(move |machine| (v, machine)))
    {
        let mut values = clean.clone();
        values[SAMPLE + 11 * NORM_CHANNELS + 4] = infinity;
        for activate in [true, false] {
            let config = GroupNormConfig { groups: 2, eps: EPS, weight: &weight, bias: &bias, activate, statistics: None };
            let right = plain_group_norm(&values, 3, 2, &weight, &bias, activate);
            let of_group = |i: usize| i / SAMPLE == 1 && i % NORM_CHANNELS >= 3;
            assert!(right.iter().enumerate().all(|(i, v)| v.is_finite() != of_group(i)));
            spread(
                &group_norm_with(machine.vectors, &values, 3, config),
                &group_norm_with(machine.vectors, &clean, 3, config),
                &right,
                of_group,
            );
        }
        let norm = |values: &[f32]| layer_norm_with(machine.vectors, values, EPS as f32, &weight, &bias);
        let right = plain_layer_norm(&values, &weight, &bias);
        spread(&norm(&values), &norm(&clean), &right, |i| i / NORM_CHANNELS == 35 + 11);
    }
}
