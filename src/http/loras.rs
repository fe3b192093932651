//! `GET /v1/loras`: the LoRAs that requests may ask for.

use axum::{Json, extract::State};
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

use super::{
    api_error::ApiError,
    app_state::AppState,
    off_thread,
    openapi::{DISCOVERY, KeyMissing, NotReady},
};
use crate::{
    backend::{AdapterEntry, AdapterInfo, GenerationError, ModelInfo},
    common::{ModelFamily, error_chain},
};

/// A LoRA file.
#[derive(Debug, Serialize, ToSchema)]
struct LoraObject {
    object: &'static str,
    /// What requests call it: its file's name without the ending.
    name: String,
    /// The name under which it was trained, which requests may use too.
    #[serde(skip_serializing_if = "Option::is_none")]
    alias: Option<String>,
    /// The file's size.
    bytes: u64,
    /// Why it cannot be used, if that is so. Nothing below is known then.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The family of models that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    family: Option<ModelFamily>,
    /// The model that it was trained on, in its author's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    base_model: Option<String>,
    /// The largest rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    /// Words that call for it: those that its author gives, or the most frequent tags of its training pictures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trigger_words: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// The size of its training pictures, in its author's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    resolution: Option<String>,
    /// What trained it.
    #[serde(skip_serializing_if = "Option::is_none")]
    network_module: Option<String>,
}

/// All LoRAs, by the paths of their files.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LoraList {
    object: &'static str,
    data: Vec<LoraObject>,
}

impl From<&AdapterEntry> for LoraObject {
    fn from(entry: &AdapterEntry) -> Self {
        let (info, error) = match entry.info() {
            Ok(info) => (info.clone(), None),
            Err(error) => (AdapterInfo::default(), Some(error.to_owned())),
        };
        let words = info.trigger_phrase.map_or_else(|| info.tags.into_iter().map(|(tag, _)| tag).collect(), |phrase| vec![phrase]);
        Self {
            object: "lora",
            name: entry.name().to_owned(),
            alias: info.alias,
            bytes: entry.len(),
            error,
            family: info.family,
            base_model: info.base,
            rank: info.ranks.map(|(_, largest)| largest),
            trigger_words: words,
            title: info.title,
            author: info.author,
            description: info.description,
            resolution: info.resolution,
            network_module: info.network_module,
        }
    }
}

/// The LoRAs of the folder of `--loras`, as it is now, with what their files say of themselves.
#[utoipa::path(
    get,
    path = "/v1/loras",
    operation_id = "list_loras",
    tag = DISCOVERY,
    responses((status = 200, description = "All that there are", body = LoraList), KeyMissing, NotReady)
)]
pub(super) async fn list(State(state): State<AppState>) -> Result<Json<LoraList>, ApiError> {
    let data = of_entries(&*state.model()?, |entry| Some(LoraObject::from(entry))).await?;
    Ok(Json(LoraList { object: "list", data }))
}

/// What is to be said of the LoRAs that there are now.
pub(super) async fn of_entries<T: Send + 'static>(
    info: &ModelInfo,
    item: impl Fn(&AdapterEntry) -> Option<T> + Send + 'static,
) -> Result<Vec<T>, ApiError> {
    let Some(library) = info.adapters.clone() else { return Ok(Vec::new()) };
    let items = move || {
        if let Err(error) = library.folder().refresh() {
            warn!("{}", error_chain(&error));
        }
        library.folder().list().iter().filter_map(|entry| item(entry)).collect()
    };
    Ok(off_thread::offload(usize::MAX, items).await.map_err(|error| GenerationError::Panicked(error.to_string()))?)
}
