//! Pictures made in a batch equal those made alone, to the last bit: the network's output, the latents after every step, and the files.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use candle_core::Tensor;
use image::RgbImage;
use sd_worker::{
    backend::{
        self, Diffusion, Generation, GenerationEngine, GenerationRequest, GenerationResponse, InferencePipeline, Interrupt, LoadOptions,
        ModelFiles, ParsedPrompt, RequestQueue, StepKind, TextAdapters,
    },
    common::{InputImage, Mask, MaskMeaning, OutputConfig, Sampler, Schedule},
    models::{Conditions, DenoiserContext, Residuals},
    ops::WeightType,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    asked::{self, Asked},
    made_up,
    parity::Request,
    support::{Worker, bytes, long, steps},
};

fn load(model: &Path, weight_type: WeightType) -> Arc<InferencePipeline> {
    let options = LoadOptions { weight_type, ..LoadOptions::default() };
    Arc::new(backend::load(&ModelFiles::open(model.to_str().unwrap()).unwrap(), &options).unwrap())
}

fn builtin() -> Arc<InferencePipeline> {
    load(Path::new("builtin"), WeightType::F32)
}

/// Calls `check` with every kind of model: one whose first level does not use the text, one whose first level does, and one of each family.
fn for_every_model(check: impl Fn(&str, &Arc<InferencePipeline>)) {
    for model in ["builtin", "tests/parity/tiny"] {
        check(model, &load(Path::new(model), WeightType::F32));
    }
    for model in ["sd1-inpainting", "sd2", "sdxl", "lcm"] {
        check(model, &load(made_up::model(model).path(), WeightType::F32));
    }
}

/// The bits of a tensor, which are equal only if the tensors are.
fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Compares the network's output for generations in a batch with its output for each alone. The prompts differ in length.
fn compare_passes(model: &str, pipeline: &InferencePipeline) {
    let (denoiser, long) = (&pipeline.networks().denoiser, "an owl ".repeat(80));
    let prompts = [["", "a fox"], ["red", "an owl on a blue background"], ["blurry", &long], ["", "a pizza"]];
    let timesteps = [981.0, 1.0, 500.5, 321.0];
    for with_negative in [true, false] {
        let contexts = prompts.iter().zip([7.5, 1.0, 3.0, 0.0]).map(|([negative, positive], guidance_scale)| {
            let prompts = [&ParsedPrompt::negative(negative), &asked::positive(positive)];
            let encoded = pipeline
                .prompt_encoder()
                .encode(&prompts[usize::from(!with_negative)..], None, &TextAdapters::default(), Interrupt::NEVER)
                .unwrap();
            let conditions = Conditions {
                text: &encoded.embeddings,
                pooled: encoded.pooled.as_ref(),
                size: (72, 80),
                guidance_scale,
                images: &[],
                adapters: None,
            };
            denoiser.context(&conditions).unwrap()
        });
        let contexts: Vec<DenoiserContext> = contexts.collect();
        let samples = 1 + usize::from(with_negative);
        let latents = |i: usize| made_up::made_up(&format!("latents {i}"), &[1, denoiser.config().in_channels(), 9, 10]);
        let alone: Vec<Vec<u32>> = (0..4)
            .map(|i| bits(&denoiser.forward(&latents(i), &timesteps[i..=i], &contexts[i], Residuals::NONE, Interrupt::NEVER).unwrap()))
            .collect();
        assert_eq!(alone.iter().collect::<std::collections::HashSet<_>>().len(), 4, "{model}: they are different");
        for company in [&[0, 1, 2, 3][..], &[3, 0], &[2], &[1, 3, 0, 2], &[0, 0, 0]] {
            let context = DenoiserContext::join(&company.iter().map(|i| &contexts[*i]).collect::<Vec<_>>()).unwrap();
            let times: Vec<f64> = company.iter().map(|i| timesteps[*i]).collect();
            // With the latents shared by a generation's samples, and with copies of them.
            for copies in [1, samples] {
                let latents: Vec<Tensor> = company.iter().flat_map(|i| vec![latents(*i); copies]).collect();
                let output =
                    denoiser.forward(&Tensor::cat(&latents, 0).unwrap(), &times, &context, Residuals::NONE, Interrupt::NEVER).unwrap();
                let together = output.chunk(company.len(), 0).unwrap();
                for (i, together) in company.iter().zip(&together) {
                    assert!(bits(together) == alone[*i], "{model}: {i} in {company:?} with {samples} samples");
                }
            }
        }
    }
}

#[test]
fn what_the_network_says_does_not_depend_on_who_else_is_asked_about() {
    for_every_model(|model, pipeline| compare_passes(model, pipeline));
    for weight_type in [WeightType::F16, WeightType::Bf16, WeightType::Q8_0] {
        compare_passes(&format!("builtin in {weight_type}"), &load(Path::new("builtin"), weight_type));
    }
}

#[test]
fn generations_that_do_not_fit_are_refused() {
    let pipeline = builtin();
    let denoiser = &pipeline.networks().denoiser;
    let context = |prompts: &[&ParsedPrompt]| {
        let text = pipeline.prompt_encoder().encode(prompts, None, &TextAdapters::default(), Interrupt::NEVER).unwrap().embeddings;
        denoiser.context(&Conditions::of_text(&text)).unwrap()
    };
    let (negative, positive) = (ParsedPrompt::negative(""), asked::positive("a"));
    let (one, two) = (context(&[&positive]), context(&[&negative, &positive]));
    let error = DenoiserContext::join(&[&one, &two]).unwrap_err().to_string();
    assert!(error.contains("the texts of 1 and of 2 samples"), "{error}");
    let latents = made_up::made_up("latents", &[3, 4, 8, 8]);
    for timesteps in [&[1.0, 2.0, 3.0][..], &[1.0, 2.0], &[]] {
        let error = denoiser.forward(&latents, timesteps, &two, Residuals::NONE, Interrupt::NEVER).unwrap_err().to_string();
        assert!(error.contains(&format!("of {} generations with the text of 2 samples", timesteps.len())), "{error}");
    }
}

/// A request, the step at which it joins, and the step after which its client leaves, if it does.
struct Member {
    asked: Asked,
    comes: usize,
    leaves: Option<usize>,
}

/// Settings beyond the given ones are those of a small picture of a fox.
fn member(sampler: Sampler, comes: usize, settings: &Value) -> Member {
    let mut all = json!({
        "prompt": "a fox on a blue background", "negative_prompt": "", "guidance_scale": 4, "seed": 1, "steps": 3, "width": 72, "height": 64
    });
    all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    let request: Request = serde_json::from_value(all).unwrap();
    Member { asked: request.with(sampler, Schedule::Default), comes, leaves: None }
}

/// The latents after every step, and the picture of a generation that finished.
type Outcome = (Vec<Vec<u32>>, Option<RgbImage>);

fn alone(pipeline: &Arc<InferencePipeline>, member: &Member) -> Outcome {
    let mut generation = member.asked.begin(pipeline);
    let mut latents = Vec::new();
    for _ in 0..generation.total_steps() {
        generation.step().unwrap();
        latents.push(bits(generation.latents()));
        if member.leaves == Some(latents.len()) {
            return (latents, None);
        }
    }
    (latents, Some(generation.finish(Interrupt::NEVER).unwrap()))
}

/// Runs all members, with every one that is present in each step, if its step is of the kind of the first one's.
fn together(pipeline: &Arc<InferencePipeline>, members: &[Member]) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = members.iter().map(|_| (Vec::new(), None)).collect();
    let mut here: BTreeMap<usize, Diffusion> = BTreeMap::new();
    for step in 0.. {
        let coming = members.iter().enumerate().filter(|(_, member)| member.comes == step);
        here.extend(coming.map(|(i, member)| (i, member.asked.begin(pipeline))));
        let Some(kind) = here.values().next().map(Diffusion::kind) else { break };
        let generations: Vec<&Diffusion> = here.values().filter(|generation| generation.kind() == kind).collect();
        let outputs = Diffusion::predict(&generations, &Diffusion::join(&generations).unwrap(), Interrupt::NEVER).unwrap();
        let stepping = here.iter_mut().filter(|(_, generation)| generation.kind() == kind);
        for ((i, generation), output) in stepping.zip(outputs) {
            generation.update(output).unwrap();
            outcomes[*i].0.push(bits(generation.latents()));
            generation.preview(Interrupt::NEVER).unwrap();
        }
        let is_over = |i: &usize, generation: &mut Diffusion| {
            let done = outcomes[*i].0.len();
            done == generation.total_steps() || members[*i].leaves == Some(done)
        };
        let over: Vec<(usize, Diffusion)> = here.extract_if(.., is_over).collect();
        for (i, generation) in over {
            if outcomes[i].0.len() == generation.total_steps() {
                outcomes[i].1 = Some(generation.finish(Interrupt::NEVER).unwrap());
            }
        }
    }
    outcomes
}

/// The kind of a member's first step.
fn kind(pipeline: &InferencePipeline, member: &Member) -> StepKind {
    member.asked.request(pipeline).order.demand.kind(0)
}

fn compare_members(what: &str, pipeline: &Arc<InferencePipeline>, members: &[Member]) {
    assert!(members.iter().all(|member| kind(pipeline, member) == kind(pipeline, &members[0])), "{what}: their steps are of one kind");
    for (i, (member, together)) in members.iter().zip(together(pipeline, members)).enumerate() {
        assert!(alone(pipeline, member) == together, "{what}: {i} is another picture in company");
    }
}

#[test]
fn every_sampler_may_be_in_the_company_of_all_others() {
    let pipeline = builtin();
    let mut members: Vec<Member> = Sampler::ALL
        .into_iter()
        .enumerate()
        .map(|(i, sampler)| {
            let prompt = ["a fox", "an owl on a red background", "a very old pizza"][i % 3];
            let settings = json!({ "prompt": prompt, "negative_prompt": (["", "red"][i % 2]), "seed": i, "steps": 2 + i % 4 });
            let mut member = member(sampler, i % 5, &settings);
            member.asked.config.guidance_scale = (2.0 + i as f64).try_into().unwrap();
            member
        })
        .collect();
    members[1].leaves = Some(1);
    members[4].asked.config.schedule = Schedule::Karras;
    members[5].asked.config.options.guidance_rescale = Some(0.7.try_into().unwrap());
    members[6].asked.prompt = "a fox ".repeat(100);
    // Two equal ones.
    members.push(member(Sampler::Euler, 0, &json!({})));
    members.push(member(Sampler::Euler, 0, &json!({})));
    compare_members("builtin", &pipeline, &members);
}

#[test]
fn pictures_to_begin_with_and_masks_are_ones_own() {
    let image = image::open("tests/parity/picture.png").unwrap().into_rgb8();
    let mask = Mask::new(image::open("tests/parity/mask.png").unwrap().into_luma8(), MaskMeaning::White);
    for_every_model(|model, pipeline| {
        let sampler = pipeline.info().defaults.sampler;
        let plain = member(sampler, 0, &json!({ "prompt": "a fox", "seed": 1, "steps": 4 }));
        let mut changed = member(Sampler::EulerAncestral, 0, &json!({ "prompt": "an owl", "seed": 2, "steps": 4, "guidance_scale": 6 }));
        changed.asked.config.options.strength = Some(0.8.try_into().unwrap());
        changed.asked.input = Some(InputImage { image: image.clone(), mask: None });
        let mut masked = member(Sampler::Dpmpp2m, 1, &json!({ "prompt": "a pizza", "seed": 3, "steps": 3, "guidance_scale": 2 }));
        masked.asked.config.options.strength = Some(0.9.try_into().unwrap());
        masked.asked.input = Some(InputImage { image: image.clone(), mask: Some(mask.clone()) });
        compare_members(model, pipeline, &[plain, changed, masked]);
    });
}

#[test]
fn pictures_without_guidance_or_of_several_parts_share_batches_of_their_kind() {
    let pipeline = builtin();
    for (guidance_scale, prompts) in [
        (1.0, ["a fox", "an owl", "a pizza"]),
        (4.0, ["a fox AND an owl", "a pizza :0.5 AND a cat :2", "a dog AND a dog"]),
        (1.0, ["a fox AND an owl AND a cat", "a AND b AND c", "1 :0 AND 2 :1 AND 3"]),
    ] {
        let members = prompts.into_iter().enumerate();
        let members: Vec<Member> = members
            .map(|(i, prompt)| member(Sampler::Heun, i, &json!({ "prompt": prompt, "seed": i, "guidance_scale": guidance_scale })))
            .collect();
        compare_members(prompts[0], &pipeline, &members);
    }
    let of = |settings: &Value| kind(&pipeline, &member(Sampler::Ddim, 0, settings));
    let usual = of(&json!({}));
    assert!(usual == of(&json!({ "prompt": "an owl", "steps": 50, "seed": 7, "guidance_scale": 9, "negative_prompt": "red" })));
    for other in [json!({ "width": 64 }), json!({ "guidance_scale": 1 }), json!({ "prompt": "a fox AND an owl" })] {
        assert!(usual != of(&other), "{other}");
    }
}

#[test]
fn kept_features_are_ones_own() {
    for_every_model(|model, pipeline| {
        let with = |i: usize, comes: usize, sampler: Sampler, cache: &str| {
            let prompt = ["a fox", "an owl on a red background", "a very old pizza"][i % 3];
            member(sampler, comes, &json!({ "prompt": prompt, "seed": i, "steps": 5 + i % 2, "guidance_scale": 2 + i, "cache": cache }))
        };
        let mut members = vec![
            with(0, 0, Sampler::Euler, "deep,interval=2"),
            with(1, 0, Sampler::Heun, "deep,interval=3"),
            with(2, 1, Sampler::Ddim, "deep,threshold=0.1"),
            with(3, 0, Sampler::Dpmpp2m, "deep,interval=3,start=0.3,end=0.9"),
            with(4, 2, Sampler::Euler, "deep,interval=2"),
            member(Sampler::EulerAncestral, 0, &json!({ "seed": 9, "steps": 4 })),
        ];
        members[1].leaves = Some(3);
        compare_members(model, pipeline, &members);
    });
}

/// Previews and pictures as files, from an engine whose queue was full before it started.
async fn files(pipeline: &Arc<InferencePipeline>, max_batch: usize, members: Vec<Member>) -> Vec<Vec<Vec<u8>>> {
    let (queue, requests) = RequestQueue::new();
    let mut clients = Vec::new();
    for Member { asked, .. } in members {
        let (response_tx, responses) = mpsc::unbounded_channel();
        let mut request = GenerationRequest { response_tx, ..asked.request(pipeline) };
        request.order.output = OutputConfig { previews: 2, ..OutputConfig::default() };
        queue.add_request(request).unwrap();
        clients.push(responses);
    }
    drop(queue);
    GenerationEngine::new(Arc::clone(pipeline), requests).with_max_batch(max_batch).start().await.unwrap();
    let mut files = Vec::new();
    for mut responses in clients {
        let mut own = Vec::new();
        while let Some(response) = responses.recv().await {
            match response {
                GenerationResponse::Preview { image, .. } => own.push(image.bytes),
                GenerationResponse::Complete(complete) => own.push(complete.image.bytes),
                GenerationResponse::Error(error) => panic!("{error}"),
                GenerationResponse::Started | GenerationResponse::Progress(_) => {}
            }
        }
        files.push(own);
    }
    files
}

#[tokio::test]
async fn previews_and_files_are_those_of_an_engine_that_serves_one_at_a_time() {
    let pipeline = builtin();
    let members = || {
        let samplers = [Sampler::Ddim, Sampler::EulerAncestral, Sampler::Heun, Sampler::Dpmpp2m, Sampler::UniPc, Sampler::DpmppSde];
        let cache = |i| ["deep,interval=2", "deep,threshold=0.2", "deep,interval=3"].get(i);
        let settings = |i: usize| json!({ "seed": i, "steps": 3 + i % 3, "cache": cache(i) });
        samplers.into_iter().enumerate().map(|(i, sampler)| member(sampler, 0, &settings(i))).collect::<Vec<Member>>()
    };
    let alone = files(&pipeline, 1, members()).await;
    assert!(alone.iter().all(|files| files.len() == 3), "two previews and the picture");
    for max_batch in [2, 4, 100] {
        assert!(files(&pipeline, max_batch, members()).await == alone, "up to {max_batch} at a time");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_together_get_the_pictures_of_those_that_come_alone() {
    let request = |i: usize| {
        let mut request = steps(["a fox", "an owl on a red background", "a pizza"][i % 3], 20 + i as u32);
        request["seed"] = i.into();
        request["sampler"] = ["ddim", "euler_a", "dpmpp_2m", "heun"][i % 4].into();
        request["guidance_scale"] = (3 + i).into();
        request
    };
    let (single, worker) = (Arc::new(Worker::ready(&[])), Arc::new(Worker::ready(&["--max-batch", "4"])));
    let alone = async |i: usize| bytes(&single.generate(&request(i)).await["data"][0]);

    // A client that is present throughout, and then disconnects.
    let running = worker.start(&long("a cat")).await;
    let (count, sum) = (worker.metric("sdw_batch_size_count").await, worker.metric("sdw_batch_size_sum").await);
    let clients = (0..8).map(|i| {
        let worker = Arc::clone(&worker);
        tokio::spawn(async move { bytes(&worker.generate(&request(i)).await["data"][0]) })
    });
    for (i, client) in clients.collect::<Vec<_>>().into_iter().enumerate() {
        assert!(client.await.unwrap() == alone(i).await, "picture {i}");
    }
    let (steps, pictures) = (worker.metric("sdw_batch_size_count").await - count, worker.metric("sdw_batch_size_sum").await - sum);
    assert!(pictures > 1.5 * steps, "{pictures} pictures' steps in {steps} passes");
    assert_eq!(worker.metric("sdw_requests_running").await as usize, 1);
    running.abort();
    worker.wait_for_metric("sdw_requests_running", |value| value < 1.0).await;

    // Several pictures of one request.
    let mut several = request(0);
    several["n"] = 4.into();
    let together = worker.generate(&several).await;
    for (i, picture) in together["data"].as_array().unwrap().iter().enumerate() {
        let mut one = request(0);
        one["seed"] = i.into();
        assert!(bytes(picture) == bytes(&single.generate(&one).await["data"][0]), "picture {i} of 4");
    }
    assert_eq!(worker.metric("sdw_images_total").await as usize, 12);
    assert_eq!(worker.metric("sdw_requests_waiting").await as usize, 0);
}

/// A prompt of several parts has more samples in a step than one of a single part; they share no batch.
#[tokio::test(flavor = "multi_thread")]
async fn prompts_of_several_parts_come_together_and_get_the_pictures_of_those_that_come_alone() {
    const PROMPTS: [&str; 5] =
        ["a fox AND an owl", "a pizza :0.5 AND a cat :2", "a dog", "a fox AND an owl AND a red background", "a dog AND a dog"];
    let request = |i: usize| {
        let mut request = steps(PROMPTS[i % PROMPTS.len()], 20);
        (request["seed"], request["n"]) = (i.into(), 2.into());
        request
    };
    let (single, worker) = (Worker::ready(&[]), Arc::new(Worker::ready(&["--max-batch", "4"])));
    let clients = (0..10).map(|i| {
        let worker = Arc::clone(&worker);
        tokio::spawn(async move { worker.generate(&request(i)).await["data"].clone() })
    });
    for (i, client) in clients.collect::<Vec<_>>().into_iter().enumerate() {
        let alone = single.generate(&request(i)).await;
        assert!(client.await.unwrap() == alone["data"], "{}", PROMPTS[i % PROMPTS.len()]);
    }
    let (passes, pictures) = (worker.metric("sdw_batch_size_count").await, worker.metric("sdw_batch_size_sum").await);
    assert_eq!(pictures as usize, 20 * 20, "every picture has its steps");
    assert!(passes < pictures, "the two pictures of a request, at least, take their steps together");
}
