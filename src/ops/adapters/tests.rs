use std::collections::HashMap;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use super::*;
use crate::ops::{Activation, Added, WeightType};

/// Tensors of f64 take the way of other devices.
const TYPES: [(DType, f64); 2] = [(DType::F32, 2e-4), (DType::F64, 1e-6)];

fn made_up(shape: &[usize], scale: f64) -> Tensor {
    let count = shape.iter().product::<usize>() as f64;
    let numbers = (Tensor::arange(0f64, count, &Device::Cpu).unwrap() * scale).unwrap().sin().unwrap();
    numbers.to_dtype(DType::F32).unwrap().reshape(shape).unwrap()
}

fn weights(dtype: DType, tensors: &[(&str, Tensor)]) -> Weights {
    let tensors: HashMap<String, Tensor> =
        tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.to_dtype(dtype).unwrap())).collect();
    Weights::new(VarBuilder::from_tensors(tensors, dtype, &Device::Cpu), WeightType::F32)
}

fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(found: &Tensor, right: &Tensor, limit: f64, what: &str) {
    assert_eq!(found.dims(), right.dims(), "{what}");
    let off = numbers(found).iter().zip(numbers(right)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let largest = numbers(right).into_iter().map(f64::abs).fold(0.0, f64::max);
    assert!(off <= limit * largest, "{what} is off by {off} of {largest}");
}

/// The product of an adapter's factors, as a weight of the shape of `down` with other outputs.
fn product(down: &Tensor, up: &Tensor) -> Tensor {
    let product = up.matmul(&down.flatten_from(1).unwrap()).unwrap();
    product.reshape([&[up.dim(0).unwrap()], &down.dims()[1..]].concat()).unwrap()
}

/// A pass of three requests of one sample each: the first and the last with the adapter, the second without.
fn passes(layer: &WeightLayer, down: &Tensor, up: &Tensor, vb: &Weights) -> (Adapters, Adapters) {
    let adapter = LayerAdapter::low_rank(layer, down, up, vb).unwrap();
    let with = Adapters::new(Some(Arc::new(AdaptedLayers::new([(layer.index, adapter)]))));
    (Adapters::join(&[&with, &Adapters::new(None), &with]), with)
}

/// Checks that each sample is as it is alone, and that adapters of low rank are those of a merged weight.
fn check(
    (dtype, limit): (DType, f64),
    x: &Tensor,
    (all, with): &(Adapters, Adapters),
    run: impl Fn(&Tensor, &Adapters) -> Tensor,
    merged: impl Fn(&Tensor) -> Tensor,
    what: &str,
) {
    let x = &x.to_dtype(dtype).unwrap();
    let sample = |x: &Tensor, i: usize| x.narrow(0, i, 1).unwrap();
    let together = run(x, all);
    for (i, adapters) in [with, Adapters::NONE, with].into_iter().enumerate() {
        let alone = run(&sample(x, i), adapters);
        // candle's matrix products are cut by the size of the batch.
        let same = if dtype == DType::F32 { 0.0 } else { 1e-12 };
        assert_close(&sample(&together, i), &alone, same, what);
        if i == 1 {
            assert!(numbers(&alone) != numbers(&run(&sample(x, i), with)), "{what}: the adapter changes nothing");
        } else {
            assert_close(&alone, &merged(&sample(x, i)), limit, what);
        }
    }
}

#[test]
fn a_linear_layer_with_an_adapter_is_one_with_a_merged_weight() {
    let (weight, bias) = (made_up(&[24, 20], 0.7), made_up(&[24], 0.4));
    let (down, up) = (made_up(&[3, 20], 0.3), made_up(&[24, 3], 0.9));
    for (dtype, limit) in TYPES {
        let vb = weights(dtype, &[("weight", weight.clone()), ("bias", bias.clone())]);
        let merged = weights(dtype, &[("weight", (&weight + product(&down, &up)).unwrap()), ("bias", bias.clone())]);
        let (layer, merged_layer) = (Linear::new(20, 24, &vb).unwrap(), Linear::new(20, 24, &merged).unwrap());
        let adapters = passes(&vb.layer_names().with_weights()[0], &down, &up, &vb);
        let x = made_up(&[3, 11, 20], 0.2);
        let run = |x: &Tensor, adapters: &Adapters| layer.with(adapters).forward(x).unwrap();
        check((dtype, limit), &x, &adapters, run, |x| merged_layer.forward(x).unwrap(), "linear");
        let residual = |x: &Tensor| x.narrow(2, 0, 1).unwrap().broadcast_as((x.dim(0).unwrap(), 11, 24)).unwrap().contiguous().unwrap();
        let run = |x: &Tensor, adapters: &Adapters| layer.with(adapters).forward_add(x, &residual(x)).unwrap();
        check((dtype, limit), &x, &adapters, run, |x| merged_layer.forward_add(x, &residual(x)).unwrap(), "with a residual");
        let run = |x: &Tensor, adapters: &Adapters| layer.with(adapters).forward_activated(x, Activation::Gelu).unwrap();
        check((dtype, limit), &x, &adapters, run, |x| merged_layer.forward_activated(x, Activation::Gelu).unwrap(), "with an activation");
        // A time embedding has one row for each sample.
        let row = made_up(&[3, 20], 0.2);
        let run = |x: &Tensor, adapters: &Adapters| layer.with(adapters).forward(x).unwrap();
        check((dtype, limit), &row, &adapters, run, |x| merged_layer.forward(x).unwrap(), "of one row");
    }
}

#[test]
fn a_gated_layer_with_an_adapter_is_one_with_a_merged_weight() {
    let (weight, bias) = (made_up(&[2 * 21, 20], 0.7), made_up(&[2 * 21], 0.4));
    let (down, up) = (made_up(&[3, 20], 0.3), made_up(&[2 * 21, 3], 0.9));
    for (dtype, limit) in TYPES {
        let vb = weights(dtype, &[("weight", weight.clone()), ("bias", bias.clone())]);
        let merged = weights(dtype, &[("weight", (&weight + product(&down, &up)).unwrap()), ("bias", bias.clone())]);
        let (layer, merged_layer) = (Geglu::new(20, 21, &vb).unwrap(), Geglu::new(20, 21, &merged).unwrap());
        let adapters = passes(&vb.layer_names().with_weights()[0], &down, &up, &vb);
        let run = |x: &Tensor, adapters: &Adapters| layer.with(adapters).forward(x).unwrap();
        check((dtype, limit), &made_up(&[3, 11, 20], 0.2), &adapters, run, |x| merged_layer.forward(x).unwrap(), "gated");
    }
}

#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn a_convolution_with_an_adapter_is_one_with_a_merged_weight() {
    let half = Conv2dConfig { kernel: 3, stride: 2, padding: 1 };
    for (config, name) in [(Conv2dConfig::SAME_3X3, "3 x 3"), (Conv2dConfig::POINTWISE, "1 x 1"), (half, "stride 2")] {
        let kernel = config.kernel;
        let (weight, bias) = (made_up(&[24, 16, kernel, kernel], 0.7), made_up(&[24], 0.4));
        let (down, up) = (made_up(&[3, 16, kernel, kernel], 0.3), made_up(&[24, 3], 0.9));
        let norm = [("norm.weight", made_up(&[16], 0.2)), ("norm.bias", made_up(&[16], 0.3))];
        for (dtype, limit) in TYPES {
            let of = |weight: Tensor| weights(dtype, &[&[("weight", weight), ("bias", bias.clone())][..], &norm].concat());
            let (vb, merged) = (of(weight.clone()), of((&weight + product(&down, &up)).unwrap()));
            let (layer, merged_layer) = (Conv2d::new(16, 24, config, &vb).unwrap(), Conv2d::new(16, 24, config, &merged).unwrap());
            let adapters = passes(&vb.layer_names().with_weights()[0], &down, &up, &vb);
            let norm = GroupNorm::new(4, 16, 1e-5, &vb.pp("norm")).unwrap();
            let x = made_up(&[3, 16, 10, 8], 0.2);
            let run = |x: &Tensor, adapters: &Adapters| layer.with(adapters).forward(x).unwrap();
            check((dtype, limit), &x, &adapters, run, |x| merged_layer.forward(x).unwrap(), name);
            let bias_of = |x: &Tensor| x.narrow(1, 0, 1).unwrap().mean((2, 3)).unwrap().broadcast_as((x.dim(0).unwrap(), 24)).unwrap();
            let right =
                |x: &Tensor| merged_layer.forward_normed(&norm, x, Added { sample_bias: Some(&bias_of(x)), residual: None }).unwrap();
            let run = |x: &Tensor, adapters: &Adapters| {
                let (layer, norm) = (layer.with(adapters), norm.with(adapters));
                let x = x.copy().unwrap();
                let bias = bias_of(&x);
                layer.forward_normed_in_place(norm, x, Added { sample_bias: Some(&bias), residual: None }).unwrap()
            };
            check((dtype, limit), &x, &adapters, run, right, &format!("{name}, after a norm"));
            if config == Conv2dConfig::SAME_3X3 {
                let run = |x: &Tensor, adapters: &Adapters| layer.with(adapters).forward_enlarged(x, (19, 16)).unwrap();
                let right = |x: &Tensor| merged_layer.forward_enlarged(x, (19, 16), Added::default()).unwrap();
                check((dtype, limit), &x, &adapters, run, right, "enlarged");
            }
            let onto = |x: &Tensor| layer.forward(x).unwrap();
            let run = |x: &Tensor, adapters: &Adapters| layer.with(adapters).forward_onto(x, onto(x)).unwrap();
            check(
                (dtype, limit),
                &x,
                &adapters,
                run,
                |x| merged_layer.forward_onto(x, onto(x)).unwrap(),
                &format!("{name}, onto an image"),
            );
        }
    }
}

#[test]
fn merged_layers_take_the_place_of_others() {
    let tensors = |scale| {
        [
            ("linear.weight", made_up(&[24, 20], scale)),
            ("linear.bias", made_up(&[24], scale)),
            ("gated.weight", made_up(&[10, 20], scale)),
            ("gated.bias", made_up(&[10], scale)),
            ("conv.weight", made_up(&[4, 20, 3, 3], scale)),
            ("conv.bias", made_up(&[4], scale)),
            ("group.weight", made_up(&[20], scale)),
            ("group.bias", made_up(&[20], scale)),
            ("layer.weight", made_up(&[20], scale)),
            ("layer.bias", made_up(&[20], scale)),
        ]
    };
    // candle has no layer norm of f64.
    let dtype = DType::F32;
    let [vb, other] = [0.3, 0.5].map(|scale| weights(dtype, &tensors(scale)));
    let build = |vb: &Weights| {
        (
            Linear::new(20, 24, &vb.pp("linear")).unwrap(),
            Geglu::new(20, 5, &vb.pp("gated")).unwrap(),
            Conv2d::new(20, 4, Conv2dConfig::SAME_3X3, &vb.pp("conv")).unwrap(),
            GroupNorm::new(5, 20, 1e-5, &vb.pp("group")).unwrap(),
            LayerNorm::new(20, 1e-5, &vb.pp("layer")).unwrap(),
        )
    };
    let (ours, right) = (build(&vb), build(&other));
    let merged = vb.layer_names().with_weights().into_iter().map(|layer| {
        let merged = MergedLayer::new(&layer, &other).unwrap();
        (layer.index, LayerAdapter::Merged(merged))
    });
    let merged = Adapters::new(Some(Arc::new(AdaptedLayers::new(merged))));
    // The first request has the adapter, the second has none.
    let pass = &Adapters::join(&[&merged, &Adapters::new(None)]);
    let (rows, image) = (made_up(&[2, 7, 20], 0.2).to_dtype(dtype).unwrap(), made_up(&[2, 20, 6, 5], 0.2).to_dtype(dtype).unwrap());
    let check = |found: Tensor, merged: Tensor, plain: Tensor| {
        let expected = Tensor::cat(&[merged.narrow(0, 0, 1).unwrap(), plain.narrow(0, 1, 1).unwrap()], 0).unwrap();
        assert_close(&found, &expected, 1e-12, "merged");
    };
    check(ours.0.with(pass).forward(&rows).unwrap(), right.0.forward(&rows).unwrap(), ours.0.forward(&rows).unwrap());
    check(ours.1.with(pass).forward(&rows).unwrap(), right.1.forward(&rows).unwrap(), ours.1.forward(&rows).unwrap());
    check(ours.2.with(pass).forward(&image).unwrap(), right.2.forward(&image).unwrap(), ours.2.forward(&image).unwrap());
    check(ours.3.with(pass).forward(&image).unwrap(), right.3.forward(&image).unwrap(), ours.3.forward(&image).unwrap());
    check(ours.4.with(pass).forward(&rows).unwrap(), right.4.forward(&rows).unwrap(), ours.4.forward(&rows).unwrap());
    let found = ours.2.with(pass).forward_normed(ours.3.with(pass), &image, Added::default()).unwrap();
    let normed = |(_, _, conv, norm, _): &(_, _, Conv2d, GroupNorm, _)| conv.forward_normed(norm, &image, Added::default()).unwrap();
    assert_close(
        &found,
        &Tensor::cat(&[normed(&right).narrow(0, 0, 1).unwrap(), normed(&ours).narrow(0, 1, 1).unwrap()], 0).unwrap(),
        1e-5,
        "normed",
    );
}

#[test]
fn adapters_that_do_not_fit_are_errors() {
    let vb = weights(DType::F32, &[("weight", made_up(&[6, 4], 0.7)), ("bias", made_up(&[6], 0.4))]);
    let linear = Linear::new(4, 6, &vb).unwrap();
    let layer = &vb.layer_names().with_weights()[0];
    for (down, up) in [([2, 5], [6, 2]), ([2, 4], [5, 2]), ([2, 4], [6, 3]), ([0, 4], [6, 0])] {
        let error = LayerAdapter::low_rank(layer, &made_up(&down, 0.1), &made_up(&up, 0.1), &vb).unwrap_err().to_string();
        assert!(error.contains("are no adapter of [6, 4]"), "{error}");
    }
    // The adapter of a layer of another shape, under this layer's number.
    let other = WeightLayer { shape: vec![6, 5], ..layer.clone() };
    let adapter = LayerAdapter::low_rank(&other, &made_up(&[2, 5], 0.1), &made_up(&[6, 2], 0.1), &vb).unwrap();
    let with = Adapters::new(Some(Arc::new(AdaptedLayers::new([(layer.index, adapter)]))));
    assert!(linear.with(&with).forward(&made_up(&[1, 3, 4], 0.2)).is_err());
    let twice = Adapters::join(&[&with, &Adapters::new(None)]);
    assert!(linear.with(&twice).forward(&made_up(&[3, 3, 4], 0.2)).is_err(), "three samples of two requests");
}
