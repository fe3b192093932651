//! The API of [A1111's web UI](https://github.com/AUTOMATIC1111/stable-diffusion-webui), which many programs speak: its requests become
//! orders of the same queue, and its names those of this worker.

mod control_lists;
mod control_units;
mod extras;
mod lists;
mod models;
mod options;
mod overrides;
mod picture_answer;
mod picture_request;
mod pictures;
mod png_info;
mod progress;
mod running;

use std::collections::BTreeSet;

use axum::{
    Extension,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use running::Running;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt},
    routes,
};

use super::{app_state::AppState, body_bytes::MAX_UPLOAD_BYTES, fields::Fields};

/// The upscaler that leaves a picture as it is.
const NONE: &str = "None";
/// What a worker has none of.
const NOTHING: [&str; 7] = ["sd-vae", "sd-modules", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "script-info"];
/// What a worker with one model has no need for.
const NOTHING_TO_DO: [&str; 5] = ["refresh-checkpoints", "refresh-loras", "refresh-vae", "unload-checkpoint", "reload-checkpoint"];

/// The routes of this API.
pub(super) fn routes() -> OpenApiRouter<AppState> {
    let path = |name: &str| format!("/sdapi/v1/{name}");
    let router = OpenApiRouter::new()
        .routes(routes!(pictures::txt2img).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)))
        .routes(routes!(pictures::img2img).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)))
        .routes(routes!(extras::extra_single_image).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)))
        .routes(routes!(png_info::png_info).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)))
        .routes(routes!(progress::progress))
        .routes(routes!(progress::interrupt))
        .routes(routes!(progress::skip))
        .routes(routes!(options::show, options::set))
        .routes(routes!(models::list))
        .routes(routes!(lists::samplers))
        .routes(routes!(lists::schedulers))
        .routes(routes!(lists::upscalers))
        .routes(routes!(lists::latent_upscale_modes))
        .routes(routes!(lists::loras))
        .routes(routes!(lists::embeddings))
        .routes(routes!(control_lists::model_list))
        .routes(routes!(control_lists::module_list))
        .routes(routes!(control_lists::version))
        .route(&path("scripts"), get(lists::scripts))
        .route(&path("cmd-flags"), get(lists::nothing_in_detail))
        .route(&path("memory"), get(lists::memory));
    let router = NOTHING.iter().fold(router, |router, name| router.route(&path(name), get(lists::nothing)));
    let router = NOTHING_TO_DO.iter().fold(router, |router, name| router.route(&path(name), post(lists::nothing_to_do)));
    router.layer(Extension(Running::default()))
}

/// Fields that mean nothing here, and the values with which they ask for nothing, as A1111's own clients send them.
const IDLE: [(&str, &str); 16] = [
    ("do_not_save_grid", "true"),
    ("do_not_save_samples", "true"),
    ("hr_checkpoint_name", "\"Use same checkpoint\""),
    ("image_cfg_scale", "1.5"),
    ("initial_noise_multiplier", "1"),
    ("initial_noise_multiplier", "1.0"),
    ("override_settings_restore_afterwards", "true"),
    ("override_settings_restore_afterwards", "false"),
    ("s_noise", "1"),
    ("s_noise", "1.0"),
    ("show_extras_results", "true"),
    ("upscaler_2", "\"None\""),
    ("upscaling_crop", "true"),
    ("upscaling_resize_h", "512"),
    ("upscaling_resize_w", "512"),
    ("include_init_images", "true"),
];

/// The names of fields whose values ask for something.
fn asking(fields: &Fields) -> BTreeSet<String> {
    let asks =
        |name: &str, value: &str| !matches!(value, "\"\"" | "[]" | "{}" | "false" | "0" | "0.0" | "-1") && !IDLE.contains(&(name, value));
    let values = fields.short(usize::MAX).map(|(name, value)| (name, value.get()));
    values.filter(|(name, value)| asks(name, value)).map(|(name, _)| name.to_owned()).collect()
}
