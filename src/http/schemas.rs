//! What the description of the API says of the types that every room speaks: `common` knows nothing of `OpenAPI`.

use std::borrow::Cow;

use serde::Serialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ArrayBuilder, KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, Type},
};

use crate::common::{
    ClipSkip, Eta, GuidanceInterval, GuidanceRescale, GuidanceScale, ImageFormat, MaskMeaning, ModelFamily, ModelVariant, NamedSampler,
    NamedSchedule, NegativePrompt, Prompt, Sampler, Schedule, Seed, Steps, Strength,
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
        "Which of the text encoder's layers is the last one, counted from its end as in A1111, 1 to 12: 1 is the last there is, 2 the one\nbefore it (which diffusers calls 1). In Stable Diffusion 2 and XL it has no effect.";
    GuidanceScale: number(GuidanceScale::MAX),
        "Classifier-free guidance scale ([Ho & Salimans](https://arxiv.org/abs/2207.12598)), 0 to 50. Up to 1 there is no guidance,\nas in diffusers: the negative prompt is not looked at and a step costs half.";
    Eta: number(1.0),
        "How much fresh noise is added in each step, 0 to 1: none, or as much as [DDPM](https://arxiv.org/abs/2006.11239) adds.";
    GuidanceRescale: number(1.0),
        "How far the output of guidance gets the standard deviation that it had without, 0 to 1\n([Lin et al.](https://arxiv.org/abs/2305.08891), section 3.4).";
    Strength: number(1.0),
        "How far a picture to begin with is changed, 0 to 1: that share of the steps is taken, from the noise level at which they begin\n([Meng et al.](https://arxiv.org/abs/2108.01073)).";
    ImageFormat: one_of(&[Self::Png, Self::Jpeg, Self::Webp]), "File formats of the answer, named as in the `OpenAI` Images API.";
    MaskMeaning: one_of(&[Self::Transparent, Self::White]), "What of a mask stands for the part to be painted anew.";
    ModelFamily: one_of(&[Self::Sd1, Self::Sd2, Self::Sdxl]), "Models of one architecture.";
    ModelVariant: one_of(&[Self::Base, Self::Inpainting, Self::Lcm, Self::Turbo]), "What a model of a family was trained further for.";
    Sampler: one_of(&Self::ALL), "The solver, by this name or the one that diffusers, A1111, ComfyUI or stable-diffusion.cpp has for it.";
    Schedule: one_of(&Self::ALL), "How the noise levels of the steps are spaced, by this name or the one that other tools have for it.";
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

/// A name, as `serde` writes these.
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
