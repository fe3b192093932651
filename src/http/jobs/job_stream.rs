//! A job as server-sent events. Events are numbered, so that a client may resume; the last line is a marker for clients that do not parse
//! JSON.

use std::sync::Arc;

use axum::response::{Response, sse::Event};
use futures_util::stream;

use super::job_wire::JobEvent;
use crate::http::{
    event_stream, off_thread,
    run::{Entry, Follower, Run, Status},
};

/// Answers with the follower's events.
pub(super) fn respond(follower: Follower) -> Response {
    event_stream::respond(stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        let (event, rest) = match follower.next().await {
            Some((id, entry)) => {
                let run = Arc::clone(&follower.run);
                let event = off_thread::offload(entry.bytes(), move || event(&run, id, entry)).await;
                (event.unwrap_or_else(lost), Some(follower))
            }
            None => (Event::default().data(marker(&follower.run.status())), None),
        };
        Some((event, rest))
    }))
}

fn event(run: &Run, id: u64, entry: Entry) -> Event {
    let event = JobEvent::new(run, entry);
    let numbered = Event::default().id(id.to_string()).event(event.name());
    numbered.json_data(&event).unwrap_or_else(lost)
}

/// Replaces an event that cannot be serialised. The marker still ends the stream.
fn lost<E>(_: E) -> Event {
    Event::default().comment("an event could not be written")
}

fn marker(status: &Status) -> String {
    match status {
        Status::Failed(error) => format!("[ERROR] {}", error.body().message.replace(['\r', '\n'], " ")),
        Status::Cancelled => "[CANCELLED]".to_owned(),
        Status::Queued | Status::Running | Status::Completed => "[DONE]".to_owned(),
    }
}
