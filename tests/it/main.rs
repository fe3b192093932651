//! Promises to the outside, one module for each. The tests run the binary as users do; only `batches`, `damaged`, `families`,
//! `family_samplers`, `layouts`, `loras`, `made_lora`, `parity`, `parts`, `references`, `sharing`, `single_file`, `tiny_vae` and `upscalers` look inside.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod access;
mod architecture;
mod asked;
mod batches;
mod bodies;
mod cache;
mod cli;
mod compute_types;
mod connections;
mod control_files;
mod control_requests;
mod controls;
mod crisp;
mod damaged;
mod defaults;
mod edits;
mod engine;
mod fake;
mod families;
mod family_samplers;
mod faults;
mod generate;
mod http;
mod hub;
mod image_parity;
mod ink;
mod jobs;
mod layouts;
mod life;
mod links;
mod load;
mod loras;
mod made_lora;
mod made_up;
mod memory;
mod numbers;
mod openapi;
#[cfg(feature = "otlp")]
mod otlp;
mod parity;
mod parts;
mod probes;
mod proxies;
mod redraws;
mod reference_requests;
mod references;
mod refusals;
mod sdapi;
mod sharing;
mod single_file;
mod sizes;
mod sse;
mod support;
#[cfg(target_os = "linux")]
mod threads;
mod tiny_decoder;
mod tiny_vae;
mod trouble;
mod upscale_requests;
mod upscalers;
mod waiting;
mod web_page;
