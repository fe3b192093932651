//! A job as server-sent events, with numbers, so that a client can come back where it was. The last line is a marker for clients
//! that read lines and not JSON.

use axum::response::{Response, sse::Event};
use futures::stream;

use super::job_wire::JobEvent;
use crate::http::{
    event_stream,
    run::{Entry, Follower, Status},
};

/// Turns the stream into an answer.
pub(super) fn respond(follower: Follower) -> Response {
    event_stream::respond(stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        let (event, rest) = match follower.next().await {
            Some((id, entry)) => (event(&follower, id, entry), Some(follower)),
            None => (Event::default().data(marker(&follower.run.status())), None),
        };
        Some((event, rest))
    }))
}

fn event(follower: &Follower, id: u64, entry: Entry) -> Event {
    let event = JobEvent::new(&follower.run, entry);
    let numbered = Event::default().id(id.to_string()).event(event.name());
    // Numbers and strings always serialise; if not, the marker still ends the stream.
    numbered.json_data(&event).unwrap_or_else(|_| Event::default().comment("an event could not be written"))
}

fn marker(status: &Status) -> String {
    match status {
        Status::Failed(error) => format!("[ERROR] {}", error.body().message.replace(['\r', '\n'], " ")),
        Status::Cancelled => "[CANCELLED]".to_owned(),
        Status::Queued | Status::Running | Status::Completed => "[DONE]".to_owned(),
    }
}
