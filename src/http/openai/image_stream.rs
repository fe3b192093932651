//! Pictures as server-sent events.
//!
//! The official clients set the form: no `id:` and no `retry:`, progress as comments unless the request asks for events, errors nested as
//! in JSON bodies, and a last event in every case, because a stream that merely ends counts as a success.

use std::sync::Arc;

use axum::response::{Response, sse::Event};
use futures_util::stream;

use super::{
    image_events::{Completed, ImageEvent, Preview, ProgressEvent},
    images_response::Usage,
};
use crate::{
    backend::{Complete, EncodedImage},
    http::{
        answer::{Base64, Parameters, WireTimings},
        event_stream, off_thread,
        run::{Entry, Follower, Run, unix_seconds},
    },
};

/// The state of one stream. A client that disconnects drops it and its follower, which cancels the run.
pub(super) struct ImageStream {
    follower: Follower,
    greeted: bool,
}

/// Answers with the stream's events.
pub(super) fn respond(stream: ImageStream) -> Response {
    event_stream::respond(stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((event, stream))
    }))
}

impl ImageStream {
    pub(super) fn new(follower: Follower) -> Self {
        Self { follower, greeted: false }
    }

    /// The next event, or `None` after the last one.
    async fn next(&mut self) -> Option<Event> {
        if !self.greeted {
            // A comment at once confirms the request, however long it waits in the queue.
            self.greeted = true;
            return Some(Event::default().comment("accepted"));
        }
        let (_, entry) = self.follower.next().await?;
        let run = Arc::clone(&self.follower.run);
        Some(off_thread::offload(entry.bytes(), move || event(&run, entry)).await.unwrap_or_else(lost))
    }
}

/// The event for an entry of the log.
fn event(run: &Run, entry: Entry) -> Event {
    match entry {
        Entry::Progress(progress) if !run.order.progress => {
            let eta_ms = progress.remaining.as_millis();
            Event::default().comment(format!("step {}/{}, {eta_ms} ms to go", progress.step, progress.total))
        }
        Entry::Progress(progress) => {
            let (step, total, eta_ms) = (progress.step, progress.total, progress.remaining.as_millis() as u64);
            let progress = ProgressEvent { step, total, seconds_per_step: progress.step_time.as_secs_f64(), eta_ms };
            data(&if run.order.is_edit { ImageEvent::EditProgress(progress) } else { ImageEvent::Progress(progress) })
        }
        Entry::Preview { index, image, .. } => data(&partial_image(run, index, &image)),
        Entry::Complete(complete) => data(&completed(run, &complete)),
        Entry::Failed(error) => data(&ImageEvent::Error { error: error.into_body() }),
    }
}

fn completed(run: &Run, complete: &Arc<Complete>) -> ImageEvent {
    let completed = Box::new(Completed {
        b64_json: Base64::of(Arc::clone(complete)),
        created_at: unix_seconds(),
        size: run.order.size(),
        quality: "auto",
        background: "opaque",
        output_format: complete.image.format,
        usage: Usage::default(),
        seed: complete.config.seed,
        parameters: Parameters::new(run, complete.config),
        timings: WireTimings::of(&[complete.timings]),
        ignored: run.order.ignored.clone(),
        warnings: complete.warnings.clone(),
    });
    if run.order.is_edit { ImageEvent::EditCompleted(completed) } else { ImageEvent::Completed(completed) }
}

fn partial_image(run: &Run, index: u8, image: &Arc<EncodedImage>) -> ImageEvent {
    let partial = Preview {
        b64_json: Base64::of(Arc::clone(image)),
        created_at: unix_seconds(),
        size: format!("{}x{}", image.width, image.height),
        quality: "auto",
        background: "opaque",
        output_format: image.format,
        partial_image_index: index,
    };
    if run.order.is_edit { ImageEvent::EditPartialImage(partial) } else { ImageEvent::PartialImage(partial) }
}

fn data(event: &ImageEvent) -> Event {
    let named = Event::default().event(event.name());
    // Numbers and strings always serialise; the fallback ends the stream in the form of its contract.
    named.json_data(event).unwrap_or_else(lost)
}

/// The last event of a stream whose event cannot be serialised.
fn lost<E>(_: E) -> Event {
    Event::default().event("error").data(r#"{"type":"error","error":{"message":"the answer could not be written","type":"server_error","param":null,"code":"internal_error"}}"#)
}
