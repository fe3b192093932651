//! Spans for a collector, by [OpenTelemetry's protocol](https://opentelemetry.io/docs/specs/otlp/) over HTTP. Its other settings come from
//! the standard environment variables, such as `OTEL_EXPORTER_OTLP_HEADERS`.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Level, Subscriber, debug, level_filters::LevelFilter, warn};
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};
use ureq::Agent;

use super::Failure;
use crate::common::{self, error_chain};

pub(super) const IS_BUILT_IN: bool = true;

/// How long the process waits at its end for a collector that does not answer.
const FLUSH: Duration = Duration::from_secs(2);
/// The longest time that a batch of spans may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The exporter of spans. Dropping it sends the rest.
#[derive(Debug)]
pub(super) struct Export(SdkTracerProvider);

impl Drop for Export {
    fn drop(&mut self) {
        let _ = self.0.shutdown_with_timeout(FLUSH);
    }
}

/// A layer that exports this crate's spans, with the warnings in them.
///
/// # Errors
/// When the endpoint or an environment variable is invalid.
pub(super) fn layer<S>(endpoint: &str) -> Result<(Box<dyn Layer<S> + Send + Sync>, Export), Failure>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let refused =
        |error: &dyn std::error::Error| Failure::Configuration(format!("spans cannot be sent to {endpoint}: {}", error_chain(error)));
    let exporter = SpanExporter::builder().with_http().with_http_client(Collector::default());
    let exporter =
        exporter.with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/'))).build().map_err(|error| refused(&error))?;
    let mut resource = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(env!("CARGO_PKG_NAME"));
    }
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let layer =
        tracing_opentelemetry::layer().with_tracer(provider.tracer(env!("CARGO_PKG_NAME"))).with_location(false).with_threads(false);
    let ours = filter_fn(|item| item.target().starts_with("sd_worker") && (item.is_span() || *item.level() <= Level::WARN));
    Ok((layer.with_filter(ours.with_max_level_hint(LevelFilter::DEBUG)).boxed(), Export(provider)))
}

/// The HTTP client for the collector.
#[derive(Debug, Default)]
struct Collector {
    /// A failure is logged once as a warning, and then at DEBUG.
    is_lost: AtomicBool,
}

impl Collector {
    fn send(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let agent = common::agent(&parts.uri, Agent::config_builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false))?;
        let mut response = agent.run(Request::from_parts(parts, &body[..]))?;
        let body = response.body_mut().read_to_vec()?;
        let (parts, _) = response.into_parts();
        Ok(Response::from_parts(parts, body.into()))
    }
}

#[async_trait]
impl HttpClient for Collector {
    // Blocking is fine here: only the exporter's own thread waits.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = Self::send(request);
        let trouble = match &sent {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(response.status().to_string()),
            Err(error) => Some(error_chain(error.as_ref())),
        };
        match (trouble, self.is_lost.load(Ordering::Relaxed)) {
            (None, _) => self.is_lost.store(false, Ordering::Relaxed),
            (Some(error), true) => debug!(error, "the spans still cannot be delivered"),
            (Some(error), false) => {
                warn!(error, "the spans cannot be delivered");
                self.is_lost.store(true, Ordering::Relaxed);
            }
        }
        sent
    }
}
