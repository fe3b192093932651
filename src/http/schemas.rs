//! `OpenAPI` schemas of types from `common`, which does not depend on utoipa.

use std::borrow::Cow;

use serde::Serialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ArrayBuilder, KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, Type},
};

use crate::common::{
    ClipSkip, Decoder, Eta, GuidanceInterval, GuidanceRescale, GuidanceScale, ImageFormat, MaskMeaning, ModelFamily, ModelVariant,
    NamedSampler, NamedSchedule, NegativePrompt, Prompt, Sampler, Schedule, Seed, Steps, Strength,
};

macro_rules! schemas {
    ($($type:ident: $schema:expr, $description:expr;)+) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                $schema.description(Some($description)).into()
            }
        }

        impl ToSchema for $type {}
    )+};
}

schemas! {
    Prompt: text().min_length(Some(1)).max_length(Some(32_000)).pattern(Some(r"\S")), "A prompt of 1 to 32,000 characters.";
    NegativePrompt: text().max_length(Some(32_000)), "What the picture does not show: nothing, or up to 32,000 characters.";
    Seed: integer(KnownFormat::Int64).minimum(Some(0)),
        "Seed of the random numbers. Like torch's Mersenne Twister, only its low 32 bits count.";
    Steps: integer(KnownFormat::Int32).minimum(Some(1)).maximum(Some(Steps::MAX)), "Number of denoising steps, 1 to 1000.";
    ClipSkip: integer(KnownFormat::Int32).minimum(Some(1)).maximum(Some(ClipSkip::MAX)),
        "The text encoder's last layer, counted from its end as in A1111, 1 to 12: 1 is the final layer, 2 the one before it (diffusers' 1). It has no effect in Stable Diffusion 2 and XL.";
    GuidanceScale: number(GuidanceScale::MAX),
        "Classifier-free guidance scale ([Ho & Salimans](https://arxiv.org/abs/2207.12598)), 0 to 50. Up to 1 there is no guidance, as in diffusers: the negative prompt has no effect and a step costs half.";
    Eta: number(1.0),
        "How much fresh noise is added in each step, 0 to 1: none, or as much as [DDPM](https://arxiv.org/abs/2006.11239) adds.";
    GuidanceRescale: number(1.0),
        "How far the guided output is rescaled to the standard deviation of the unguided one, 0 to 1 ([Lin et al.](https://arxiv.org/abs/2305.08891), section 3.4).";
    Strength: number(1.0),
        "How much a picture to begin with is changed, 0 to 1: the share of the steps that are taken, beginning at the matching noise level ([Meng et al.](https://arxiv.org/abs/2108.01073)).";
    ImageFormat: one_of(&[Self::Png, Self::Jpeg, Self::Webp]), "File formats of the answer, named as in the `OpenAI` Images API.";
    Decoder: one_of(&Self::ALL), "What turns latents into pixels: the model's VAE, or a tiny autoencoder.";
    MaskMeaning: one_of(&[Self::Transparent, Self::White]), "How a mask marks the part to repaint.";
    ModelFamily: one_of(&[Self::Sd1, Self::Sd2, Self::Sdxl]), "Models of one architecture.";
    ModelVariant: one_of(&[Self::Base, Self::Inpainting, Self::Lcm, Self::Turbo]), "The purpose of a model's further training.";
    Sampler: one_of(&Self::ALL), "The solver, by this name or an alias from diffusers, A1111, ComfyUI or stable-diffusion.cpp.";
    Schedule: one_of(&Self::ALL), "The spacing of the noise levels, by this name or an alias from other tools.";
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn integer(format: KnownFormat) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Integer).format(Some(SchemaFormat::KnownFormat(format)))
}

/// A number from 0 to `maximum`.
fn number(maximum: f64) -> ObjectBuilder {
    let number = ObjectBuilder::new().schema_type(Type::Number).format(Some(SchemaFormat::KnownFormat(KnownFormat::Double)));
    number.minimum(Some(0)).maximum(Some(maximum))
}

/// One of the names that serde gives these values.
fn one_of<T: Serialize>(values: &[T]) -> ObjectBuilder {
    text().enum_values(Some(values.iter().map(|value| serde_json::to_value(value).unwrap_or_default())))
}

impl PartialSchema for GuidanceInterval {
    fn schema() -> RefOr<Schema> {
        let share = ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)).maximum(Some(1));
        ArrayBuilder::new().items(share).min_items(Some(2)).max_items(Some(2)).into()
    }
}

impl ToSchema for GuidanceInterval {}

impl PartialSchema for NamedSampler {
    fn schema() -> RefOr<Schema> {
        Sampler::schema()
    }
}

impl ToSchema for NamedSampler {
    fn name() -> Cow<'static, str> {
        <Sampler as ToSchema>::name()
    }
}

impl PartialSchema for NamedSchedule {
    fn schema() -> RefOr<Schema> {
        Schedule::schema()
    }
}

impl ToSchema for NamedSchedule {
    fn name() -> Cow<'static, str> {
        <Schedule as ToSchema>::name()
    }
}
