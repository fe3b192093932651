//! Pictures as server-sent events.
//!
//! Shaped by what the official clients do: no `id:` and no `retry:`, progress as comments unless asked for as events, errors
//! nested as in JSON bodies, and a last event whatever happens, since both clients take a stream that just ends for a success.

use axum::response::{Response, sse::Event};
use futures::stream;

use super::{
    event_stream,
    image_events::{Completed, ImageEvent, Preview, ProgressEvent},
    run::{Entry, Follower},
    unix_seconds,
    wire::{self, Parameters, Usage, WireTimings},
};
use crate::{
    backend::{Complete, EncodedImage, Progress},
    common::SamplingConfig,
};

/// The state of one stream. When the client goes, it is dropped, and with it the follower: that is what stops the engine.
pub(super) struct ImageStream {
    follower: Follower,
    greeted: bool,
}

/// What one entry becomes.
enum Sent {
    Event(ImageEvent),
    Comment(String),
}

/// Turns the stream into an answer.
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

    /// The next event, or `None` after the last.
    async fn next(&mut self) -> Option<Event> {
        if !self.greeted {
            // The client knows at once that it is heard, however long it waits for its turn.
            self.greeted = true;
            return Some(Event::default().comment("accepted"));
        }
        let (_, entry) = self.follower.next().await?;
        let sent = match entry {
            Entry::Progress(progress) => self.progress(&progress),
            Entry::Preview { index, image, .. } => Sent::Event(self.partial_image(index, &image)),
            Entry::Complete(complete) => Sent::Event(self.completed(&complete)),
            Entry::Failed(error) => Sent::Event(ImageEvent::Error { error: error.into_body() }),
        };
        Some(match sent {
            Sent::Comment(text) => Event::default().comment(text),
            Sent::Event(event) => data(&event),
        })
    }

    fn progress(&self, progress: &Progress) -> Sent {
        let (step, total, eta_ms) = (progress.step, progress.total, progress.remaining().as_millis() as u64);
        if self.follower.run.order.progress {
            let progress = ProgressEvent { step, total, seconds_per_step: progress.step_time.as_secs_f64(), eta_ms };
            Sent::Event(if self.is_edit() { ImageEvent::EditProgress(progress) } else { ImageEvent::Progress(progress) })
        } else {
            Sent::Comment(format!("step {step}/{total}, {eta_ms} ms to go"))
        }
    }

    fn completed(&self, complete: &Complete) -> ImageEvent {
        let SamplingConfig { size, seed, .. } = complete.config;
        let completed = Box::new(Completed {
            b64_json: wire::base64(&complete.image),
            created_at: unix_seconds(),
            size: size.to_string(),
            quality: "auto",
            background: "opaque",
            output_format: complete.image.format,
            usage: Usage::default(),
            seed,
            parameters: Parameters::new(&self.follower.run, complete.config),
            timings: WireTimings::of(&[complete.timings]),
            ignored: self.follower.run.order.ignored.clone(),
            warnings: complete.warnings.clone(),
        });
        if self.is_edit() { ImageEvent::EditCompleted(completed) } else { ImageEvent::Completed(completed) }
    }

    fn partial_image(&self, index: u8, image: &EncodedImage) -> ImageEvent {
        let partial = Preview {
            b64_json: wire::base64(image),
            created_at: unix_seconds(),
            size: format!("{}x{}", image.width, image.height),
            quality: "auto",
            background: "opaque",
            output_format: image.format,
            partial_image_index: index,
        };
        if self.is_edit() { ImageEvent::EditPartialImage(partial) } else { ImageEvent::PartialImage(partial) }
    }

    /// Whether the picture is made from a picture.
    fn is_edit(&self) -> bool {
        self.follower.run.order.input.is_some()
    }
}

fn data(event: &ImageEvent) -> Event {
    let named = Event::default().event(event.name());
    // Numbers and strings always serialise; the fallback still ends the stream as the contract says.
    named.json_data(event).unwrap_or_else(|_| Event::default().event("error").data(r#"{"type":"error","error":{"message":"the answer could not be written","type":"server_error","param":null,"code":"internal_error"}}"#))
}
