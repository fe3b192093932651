//! Work that is shared changes no number: between both sides of guidance, between steps, and between requests.

use candle_core::{DType, Device, Tensor};
use sd_worker::{
    backend::{self, EncodedPrompts, InferencePipeline, Interrupt, LoadOptions, ModelFiles, ParsedPrompt, TextAdapters},
    models::{Conditions, DenoiserConfig, Residuals},
};

use crate::{
    asked::positive,
    support::{Worker, bytes, small},
};

/// One model whose first level does not use the text, and one whose first level does.
const MODELS: [&str; 2] = ["builtin", "tests/parity/tiny"];

fn load(model: &str) -> InferencePipeline {
    backend::load(&ModelFiles::open(model).unwrap(), &LoadOptions::default()).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

fn encode(pipeline: &InferencePipeline, prompts: &[&str]) -> EncodedPrompts {
    let prompts: Vec<ParsedPrompt> = prompts.iter().copied().map(positive).collect();
    pipeline.prompt_encoder().encode(&prompts.iter().collect::<Vec<_>>(), None, &TextAdapters::default(), Interrupt::NEVER).unwrap()
}

/// The latents of one picture of an odd size, and the text of two samples.
fn inputs(config: &DenoiserConfig) -> (Tensor, Tensor) {
    let made_up = |shape: (usize, usize, usize, usize)| {
        let count = shape.0 * shape.1 * shape.2 * shape.3;
        let values = (Tensor::arange(0f64, count as f64, &Device::Cpu).unwrap() * 0.7).unwrap().sin().unwrap();
        values.reshape(shape).unwrap().to_dtype(DType::F32).unwrap()
    };
    (made_up((1, config.in_channels(), 9, 10)), made_up((1, 2, 7, config.text_dim())).squeeze(0).unwrap())
}

#[test]
fn both_sides_of_guidance_may_share_their_latents() {
    for model in MODELS {
        let pipeline = load(model);
        let denoiser = &pipeline.networks().denoiser;
        let (latents, text) = inputs(&denoiser.config());
        let context = denoiser.context(&Conditions::of_text(&text)).unwrap();
        let times = |count: usize| Tensor::cat(&vec![&latents; count], 0).unwrap();
        let forward = |count| denoiser.forward(&times(count), &[321.0], &context, Residuals::NONE, Interrupt::NEVER);
        let (once, twice) = (forward(1).unwrap(), forward(2).unwrap());
        assert_eq!(once.dims(), [2, denoiser.config().out_channels(), 9, 10]);
        assert_eq!(numbers(&once), numbers(&twice), "{model}");
        let sides = [once.get(0).unwrap(), once.get(1).unwrap()].map(|side| numbers(&side));
        assert_ne!(sides[0], sides[1], "the text makes a difference");

        let error = forward(3).unwrap_err().to_string();
        assert!(error.contains("with the text of 2 samples"), "{error}");
    }
}

#[test]
fn a_prompt_is_the_same_alone_and_in_company() {
    for model in MODELS {
        let prompts = ["a fox on a blue background", "", "an owl"];
        let together = encode(&load(model), &prompts).embeddings;
        for (i, prompt) in prompts.into_iter().enumerate() {
            let alone = encode(&load(model), &[prompt]).embeddings;
            assert_eq!(numbers(&alone), numbers(&together.get(i).unwrap()), "{model}: {prompt:?}");
        }
    }
}

#[test]
fn a_prompt_that_was_kept_is_the_same_as_a_new_one() {
    let long = format!("a fox {}", "and an owl ".repeat(500));
    let pipeline = load("builtin");
    encode(&pipeline, &["", &long]);
    // One prompt is cached, one is new; the embeddings come in the order of the prompts.
    for prompts in [[long.as_str(), "a cat"], ["a dog", long.as_str()], ["", "a dog"], ["a pig", "a pig"]] {
        let (ours, fresh) = (encode(&pipeline, &prompts), encode(&load("builtin"), &prompts));
        assert_eq!(numbers(&ours.embeddings), numbers(&fresh.embeddings), "{prompts:?}");
        assert_eq!(ours.warnings, fresh.warnings);
        assert_eq!(ours.warnings.len(), usize::from(prompts.contains(&long.as_str())), "{prompts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_encoded_once_for_all_requests() {
    let worker = Worker::ready(&[]);
    let count = async |outcome: &str| worker.metric(&format!("sdw_prompt_cache_total{{outcome=\"{outcome}\"}}")).await as u64;
    let (hits, misses) = (count("hit").await, count("miss").await);
    let first = worker.generate(&small("a fox")).await;
    // The worker's own first picture has cached the empty negative prompt.
    assert_eq!((count("hit").await - hits, count("miss").await - misses), (1, 1));
    let again = worker.generate(&small("a fox")).await;
    assert_eq!((count("hit").await - hits, count("miss").await - misses), (3, 1));
    assert_eq!(bytes(&first["data"][0]), bytes(&again["data"][0]));
    worker.generate(&small("a fox ")).await;
    assert_eq!(count("miss").await - misses, 2, "another prompt, if only by a space");
    let mut several = small("an owl");
    several["n"] = 3.into();
    assert_eq!(worker.generate(&several).await["data"].as_array().map(Vec::len), Some(3));
    assert_eq!(count("miss").await - misses, 3, "once for all pictures of a request");
}
