//! An HTTP inference worker for Stable Diffusion: one process, one model, one device.
//!
//! Data flows one way, and so do imports:
//!
//! ```text
//! http ──▶ backend::RequestQueue ──▶ backend::GenerationEngine ──▶ backend::InferencePipeline ──▶ models ──▶ ops
//!                                                                          └──▶ schedulers
//! ```
//!
//! [`http`] converts wire requests into [`backend::GenerationRequest`]s and sends them down an unbounded queue. The
//! [`backend::GenerationEngine`] takes them from it on a blocking thread, moves the generations of the shared, immutable
//! [`backend::InferencePipeline`] forward step by step, and answers through the channel inside each request.

pub mod backend;
pub mod cli;
pub mod common;
pub mod device;
pub mod http;
pub mod models;
pub mod ops;
pub mod schedulers;

#[cfg(feature = "builtin-model")]
pub use sd_worker_model as builtin_model;
