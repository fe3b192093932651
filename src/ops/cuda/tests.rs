//! What is launched, beside candle's own operations in f64 on a CPU. It takes a GPU, or the CPU that `.ci/cuda test` has stand for one.

use candle_core::D;
use candle_nn::Module;

use super::*;

/// With the error that each may make.
const TYPES: [(DType, f64); 3] = [(DType::F32, 1e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)];

/// The same numbers on the device, where they are not the first of their memory, and on the CPU in f64.
struct Both {
    device: Device,
    dtype: DType,
}

impl Both {
    fn new(dtype: DType) -> Self {
        let device = Device::new_cuda_with_stream(0).unwrap();
        prepare(&device).unwrap();
        Self { device, dtype }
    }

    fn made_up(&self, shape: &[usize], scale: f64) -> (Tensor, Tensor) {
        let one_more = [&[shape[0] + 1], &shape[1..]].concat();
        let count = one_more.iter().product::<usize>() as f64;
        let values = ((Tensor::arange(0f64, count, &Device::Cpu).unwrap() * scale).unwrap().sin().unwrap() + scale).unwrap();
        let values = values.reshape(one_more).unwrap().to_dtype(self.dtype).unwrap();
        let without_first = |x: Tensor| x.narrow(0, 1, shape[0]).unwrap();
        (without_first(values.to_device(&self.device).unwrap()), without_first(values.to_dtype(DType::F64).unwrap()))
    }
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, error: f64) {
    assert_eq!(found.dims(), expected.dims());
    let numbers = |x: &Tensor| x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    let (found, expected) = (numbers(found).to_vec1::<f64>().unwrap(), numbers(expected).to_vec1::<f64>().unwrap());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= error * expected.abs().max(1.0), "{found} is not {expected}");
    }
}

#[test]
fn images_are_normed_in_groups() {
    for (dtype, error) in TYPES {
        let both = Both::new(dtype);
        // Of one part a group, and of three.
        for (batch, channels, side, groups) in [(3, 12, 5, 4), (2, 8, 72, 1)] {
            let (x, x64) = both.made_up(&[batch, channels, side, side], 0.37);
            let ((weight, weight64), (bias, bias64)) = (both.made_up(&[channels], 0.7), both.made_up(&[channels], 0.4));
            let config = GroupNormConfig { groups, eps: 1e-5, weight: &weight, bias: &bias, activate: false, statistics: None };
            let normed =
                candle_nn::GroupNorm::new(weight64.clone(), bias64.clone(), channels, groups, 1e-5).unwrap().forward(&x64).unwrap();
            assert_close(&group_norm(&x, config).unwrap(), &normed, error);
            assert_close(&group_norm(&x, GroupNormConfig { activate: true, ..config }).unwrap(), &normed.silu().unwrap(), error);

            let statistics = group_statistics(&x, groups).unwrap();
            let rows = x64.reshape((batch, groups, ())).unwrap().transpose(0, 1).unwrap().flatten_from(1).unwrap();
            for (i, (mean, variance)) in statistics.of_groups().iter().enumerate() {
                let numbers = rows.get(i).unwrap().to_vec1::<f64>().unwrap();
                let expected = numbers.iter().sum::<f64>() / numbers.len() as f64;
                assert!((mean - expected).abs() < 1e-6, "a mean of {mean} is not {expected}");
                let expected = numbers.iter().map(|x| (x - expected).powi(2)).sum::<f64>() / numbers.len() as f64;
                assert!((variance - expected).abs() < 1e-6, "a variance of {variance} is not {expected}");
            }
            let given = GroupStatistics::new((0..groups).map(|i| (0.5 * i as f64, 2.0)).collect());
            let per_group = |numbers: Vec<f64>| Tensor::from_vec(numbers, (groups, 1), &Device::Cpu).unwrap();
            let of_channels = |x: &Tensor| x.reshape((1, channels, 1, 1)).unwrap();
            let (means, variances): (Vec<f64>, Vec<f64>) = given.of_groups().iter().copied().unzip();
            let grouped = x64.reshape((batch, groups, ())).unwrap();
            let factor = (per_group(variances) + 1e-5).unwrap().sqrt().unwrap();
            let normed = grouped.broadcast_sub(&per_group(means)).unwrap().broadcast_div(&factor).unwrap().reshape(x64.shape()).unwrap();
            let normed = normed.broadcast_mul(&of_channels(&weight64)).unwrap().broadcast_add(&of_channels(&bias64)).unwrap();
            assert_close(&group_norm(&x, GroupNormConfig { statistics: Some(&given), ..config }).unwrap(), &normed, error);

            assert!(group_norm(&x, GroupNormConfig { weight: &x, ..config }).is_err());
            assert!(group_norm(&x, GroupNormConfig { groups: 5, ..config }).is_err());
        }
    }
}

#[test]
fn what_is_added_belongs_to_channels_and_samples() {
    for (dtype, error) in TYPES {
        let both = Both::new(dtype);
        for shape in [&[4, 6, 5, 7][..], &[2, 8, 16, 16], &[4, 5, 24], &[2, 13]] {
            let channels = if shape.len() == 4 { shape[1] } else { shape[shape.len() - 1] };
            let wide = |x: &Tensor| if shape.len() == 4 { x.unsqueeze(2).unwrap().unsqueeze(3).unwrap() } else { x.clone() };
            let (x, x64) = both.made_up(shape, 0.3);
            let ((bias, bias64), (residual, residual64)) = (both.made_up(&[channels], 0.7), both.made_up(shape, 0.4));
            let (sample_bias, sample_bias64) = both.made_up(&[2, channels], 0.6);
            let each = shape[0] / 2;
            let sample_bias64 =
                Tensor::cat(&(0..2).flat_map(|i| vec![sample_bias64.narrow(0, i, 1).unwrap(); each]).collect::<Vec<_>>(), 0);
            let mut of_samples = sample_bias64.unwrap();
            while shape.len() < 4 && of_samples.rank() < shape.len() {
                of_samples = of_samples.unsqueeze(1).unwrap();
            }
            let sums = [
                (Added { bias: Some(&bias), ..Added::default() }, x64.broadcast_add(&wide(&bias64.unsqueeze(0).unwrap()))),
                (Added { sample_bias: Some(&sample_bias), ..Added::default() }, x64.broadcast_add(&wide(&of_samples))),
                (Added { residual: Some(&residual), ..Added::default() }, &x64 + &residual64),
            ];
            for (added, sum) in sums {
                let functions = [Activation::Silu, Activation::Gelu, Activation::QuickGelu, Activation::Relu];
                for activation in [None].into_iter().chain(functions.map(Some)) {
                    let sum = sum.as_ref().unwrap();
                    let expected = activation.map_or_else(|| Ok(sum.clone()), |activation| activation.forward(sum)).unwrap();
                    let x = x.copy().unwrap();
                    assert_close(&add(x, Added { activation, ..added }).unwrap(), &expected, error);
                }
            }
            let unchanged = add(x.copy().unwrap(), Added::default()).unwrap();
            assert_close(&unchanged, &x64, 0.0);
            assert!(add(x.copy().unwrap(), Added { bias: Some(&sample_bias), ..Added::default() }).is_err());
            assert!(add(x.copy().unwrap(), Added { residual: Some(&bias), ..Added::default() }).is_err());
        }
    }
}

#[test]
fn half_of_a_row_gates_the_other() {
    for (dtype, error) in TYPES {
        let both = Both::new(dtype);
        for channels in [3, 40] {
            let ((x, x64), (bias, bias64)) = (both.made_up(&[2, 9, 2 * channels], 0.3), both.made_up(&[2 * channels], 0.8));
            let sum = x64.broadcast_add(&bias64).unwrap();
            let half = |i: usize| sum.narrow(D::Minus1, i * channels, channels).unwrap().contiguous().unwrap();
            assert_close(&geglu(&x, &bias).unwrap(), &(half(0) * half(1).gelu_erf().unwrap()).unwrap(), error);
            assert!(geglu(&x, &x).is_err());
        }
    }
}

#[test]
fn rows_become_columns() {
    for (dtype, _) in TYPES {
        let (x, x64) = Both::new(dtype).made_up(&[3, 35, 70], 0.3);
        assert_close(&transpose(&x).unwrap(), &x64.transpose(1, 2).unwrap().contiguous().unwrap(), 0.0);
    }
}

#[test]
fn nothing_else_is_taken() {
    let x = Tensor::ones(3, DType::F32, &Device::Cpu).unwrap();
    let device = Both::new(DType::F32).device;
    assert!(takes(&x.to_device(&device).unwrap()));
    let of_other_type = x.to_dtype(DType::F64).unwrap().to_device(&device).unwrap();
    let empty = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap().to_device(&device).unwrap();
    assert!(!takes(&x) && !takes(&of_other_type) && !takes(&empty));
}
