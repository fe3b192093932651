//! Lists of what clients offer in their menus.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::{
    backend::{AdapterEntry, LatentFilter},
    common::{Sampler, Schedule},
    http::{
        api_error::ApiError,
        app_state::AppState,
        loras,
        openapi::{A1111, KeyMissing, NotReady},
        page::OfNoStranger,
    },
};

/// A solver.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SamplerItem {
    name: &'static str,
    aliases: [&'static str; 1],
    options: BTreeMap<String, String>,
}

/// A way to space noise levels.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SchedulerItem {
    name: &'static str,
    label: &'static str,
    aliases: Vec<&'static str>,
    default_rho: f64,
    need_inner_model: bool,
}

/// What enlarges pictures.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UpscalerItem {
    name: String,
    #[schema(required)]
    model_name: Option<String>,
    #[schema(required)]
    model_path: Option<String>,
    #[schema(required)]
    model_url: Option<String>,
    scale: f64,
}

/// A way to enlarge latents.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LatentUpscaleMode {
    name: &'static str,
}

/// A LoRA.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LoraItem {
    /// What prompts call it.
    name: String,
    alias: String,
    path: String,
    metadata: BTreeMap<String, String>,
}

/// Learned words.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Embeddings {
    loaded: BTreeMap<String, Value>,
    skipped: BTreeMap<String, Value>,
}

/// The solvers, by A1111's names.
#[utoipa::path(get, path = "/sdapi/v1/samplers", operation_id = "sdapi_samplers", tag = A1111, responses((status = 200, description = "All of them", body = Vec<SamplerItem>), KeyMissing))]
pub(super) async fn samplers() -> Json<Vec<SamplerItem>> {
    let item = |sampler: Sampler| SamplerItem { name: sampler.a1111_name(), aliases: [sampler.name()], options: BTreeMap::new() };
    Json(Sampler::ALL.into_iter().map(item).collect())
}

/// The schedules, by A1111's names and labels.
#[utoipa::path(get, path = "/sdapi/v1/schedulers", operation_id = "sdapi_schedulers", tag = A1111, responses((status = 200, description = "All of them", body = Vec<SchedulerItem>), KeyMissing))]
pub(super) async fn schedulers() -> Json<Vec<SchedulerItem>> {
    let item = |name, label| SchedulerItem { name, label, aliases: Vec::new(), default_rho: -1.0, need_inner_model: false };
    let own = Schedule::ALL.into_iter().map(|schedule| item(schedule.name(), schedule.a1111_name()));
    Json([item("automatic", "Automatic")].into_iter().chain(own).collect())
}

/// What enlarges pictures: nothing, filters, and networks.
#[utoipa::path(get, path = "/sdapi/v1/upscalers", operation_id = "sdapi_upscalers", tag = A1111, responses((status = 200, description = "All of them", body = Vec<UpscalerItem>), KeyMissing, NotReady))]
pub(super) async fn upscalers(State(state): State<AppState>) -> Result<Json<Vec<UpscalerItem>>, ApiError> {
    let item = |(name, scale): (&str, Option<usize>)| UpscalerItem {
        name: name.to_owned(),
        model_name: scale.map(|_| name.to_owned()),
        model_path: None,
        model_url: None,
        scale: scale.map_or(4.0, |scale| scale as f64),
    };
    let info = state.model()?;
    let (networks, filters): (Vec<_>, Vec<_>) = info.upscalers.names().partition(|(_, scale)| scale.is_some());
    Ok(Json([("None", None)].into_iter().chain(filters).chain(networks).map(item).collect()))
}

/// What enlarges latents that are drawn again.
#[utoipa::path(get, path = "/sdapi/v1/latent-upscale-modes", operation_id = "sdapi_latent_upscale_modes", tag = A1111, responses((status = 200, description = "All of them", body = Vec<LatentUpscaleMode>), KeyMissing))]
pub(super) async fn latent_upscale_modes() -> Json<Vec<LatentUpscaleMode>> {
    Json(LatentFilter::ALL.map(|filter| LatentUpscaleMode { name: filter.name }).into())
}

/// The LoRAs of the folder of `--loras` that can be used.
#[utoipa::path(get, path = "/sdapi/v1/loras", operation_id = "sdapi_loras", tag = A1111, responses((status = 200, description = "All of them", body = Vec<LoraItem>), KeyMissing, NotReady))]
pub(super) async fn loras(State(state): State<AppState>) -> Result<Json<Vec<LoraItem>>, ApiError> {
    Ok(Json(loras::of_entries(&*state.model()?, LoraItem::of).await?))
}

impl LoraItem {
    /// None of a file that cannot be used.
    fn of(entry: &AdapterEntry) -> Option<Self> {
        let info = entry.info().ok()?.clone();
        let name = entry.name().to_owned();
        let known = [("ss_base_model_version", info.base), ("ss_network_module", info.network_module), ("modelspec.title", info.title)];
        let metadata = known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        Some(Self { alias: info.alias.unwrap_or_else(|| name.clone()), path: name.clone(), name, metadata })
    }
}

/// The learned words of `--embeddings`.
#[utoipa::path(get, path = "/sdapi/v1/embeddings", operation_id = "sdapi_embeddings", tag = A1111, responses((status = 200, description = "All of them", body = Embeddings), KeyMissing, NotReady))]
pub(super) async fn embeddings(State(state): State<AppState>) -> Result<Json<Embeddings>, ApiError> {
    let entry = |word: &String| (word.clone(), json!({ "step": null, "sd_checkpoint": null, "sd_checkpoint_name": null }));
    Ok(Json(Embeddings { loaded: state.model()?.embeddings.iter().map(entry).collect(), skipped: BTreeMap::new() }))
}

/// The scripts that `alwayson_scripts` may name.
pub(super) async fn scripts(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    let scripts: &[&str] = if state.model()?.controls.is_some() { &["controlnet"] } else { &[] };
    Ok(Json(json!({ "txt2img": scripts, "img2img": scripts })))
}

/// Free, used and all memory. A worker does not measure it: `/metrics` is for that.
pub(super) async fn memory() -> Json<Value> {
    Json(json!({ "ram": { "free": 0, "used": 0, "total": 0 }, "cuda": {} }))
}

/// A list of what a worker has none of.
pub(super) async fn nothing() -> Json<[Value; 0]> {
    Json([])
}

/// An object without entries.
pub(super) async fn nothing_in_detail() -> Json<Value> {
    Json(json!({}))
}

/// A request that changes nothing here.
pub(super) async fn nothing_to_do(_: OfNoStranger) -> Json<Value> {
    Json(json!({}))
}
