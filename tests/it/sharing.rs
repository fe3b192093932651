//! What is worked out once for several uses changes no number: for both sides of guidance, for all steps, for all requests.

use candle_core::{DType, Device, Tensor};
use sd_worker::{
    backend::{self, InferencePipeline, LoadOptions, ModelFiles},
    models::UNet2DConditionConfig,
};

/// One whose first level does not look at the text, and one that does so at once.
const MODELS: [&str; 2] = ["builtin", "tests/parity/tiny"];

fn load(model: &str) -> InferencePipeline {
    let options = LoadOptions { device: Device::Cpu, max_pixels: 1 << 20 };
    backend::load(&ModelFiles::open(model).unwrap(), &options).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// One picture's latents, of an odd size, and the text of two samples.
fn inputs(config: &UNet2DConditionConfig) -> (Tensor, Tensor) {
    let made_up = |shape: (usize, usize, usize, usize)| {
        let count = shape.0 * shape.1 * shape.2 * shape.3;
        let values = (Tensor::arange(0f64, count as f64, &Device::Cpu).unwrap() * 0.7).unwrap().sin().unwrap();
        values.reshape(shape).unwrap().to_dtype(DType::F32).unwrap()
    };
    (made_up((1, config.in_channels, 9, 10)), made_up((1, 2, 7, config.cross_attention_dim)).squeeze(0).unwrap())
}

#[test]
fn both_sides_of_guidance_may_share_their_latents() {
    for model in MODELS {
        let pipeline = load(model);
        let unet = &pipeline.networks().unet;
        let (latents, text) = inputs(unet.config());
        let context = unet.text_context(&text).unwrap();
        let times = |count: usize| Tensor::cat(&vec![&latents; count], 0).unwrap();
        let (once, twice) = (unet.forward(&times(1), 321.0, &context).unwrap(), unet.forward(&times(2), 321.0, &context).unwrap());
        assert_eq!(once.dims(), [2, unet.config().out_channels, 9, 10]);
        assert_eq!(numbers(&once), numbers(&twice), "{model}");
        let sides = [once.get(0).unwrap(), once.get(1).unwrap()].map(|side| numbers(&side));
        assert_ne!(sides[0], sides[1], "the text makes a difference");

        let error = unet.forward(&times(3), 321.0, &context).unwrap_err().to_string();
        assert!(error.contains("with the text of 2 samples"), "{error}");
    }
}
