//! What clients hear of their pictures, on a thread of its own: pixels become files beside the next step.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    time::Instant,
};

use image::{RgbImage, imageops};

use super::{attempt, turn::Turn};
use crate::{
    backend::{
        Complete, EncodedImage, GenerationError, GenerationResponse, ImageMetadata, Progress, Pulse, Timings,
        picture_encoder::missing_metadata,
    },
    common::{ImageSize, OutputConfig},
};

/// The most previews and pictures that wait or are being written. The engine waits for room: their memory is bounded.
pub(super) const MOST_PIXELS: usize = 4;

/// [`picture_encoder::encode`](crate::backend::picture_encoder::encode), or what a test has in its place.
pub(super) type Encode<'a> = &'a (dyn Fn(&RgbImage, OutputConfig, Option<&ImageMetadata>) -> Result<EncodedImage, GenerationError> + Sync);

/// What there is to say of a request. A request hears of it in the order in which it was added.
#[derive(Debug)]
pub(super) enum News {
    Progress(Progress),
    Preview {
        index: u8,
        /// Of any size.
        pixels: RgbImage,
    },
    /// The last of a request.
    End(Result<Drawn, GenerationError>),
}

/// A picture that is no file yet.
#[derive(Debug)]
pub(super) struct Drawn {
    pub(super) pixels: RgbImage,
    pub(super) timings: Timings,
    pub(super) warnings: Vec<String>,
    /// When it was decoded.
    pub(super) since: Instant,
}

/// The engine's end of the queue to the writer, which ends when this is dropped and all is written.
#[derive(Debug)]
pub(super) struct WriterQueue {
    news: Sender<(Arc<Turn>, News)>,
    /// Has a place for each of [`MOST_PIXELS`].
    room: SyncSender<()>,
}

/// The writer: one thread, which takes one after the other.
#[derive(Debug)]
pub(super) struct Writer {
    news: Receiver<(Arc<Turn>, News)>,
    room: Receiver<()>,
}

impl News {
    fn has_pixels(&self) -> bool {
        matches!(self, Self::Preview { .. } | Self::End(Ok(_)))
    }
}

impl WriterQueue {
    pub(super) fn new() -> (Self, Writer) {
        let ((news, to_write), (room, taken)) = (mpsc::channel(), mpsc::sync_channel(MOST_PIXELS));
        (Self { news, room }, Writer { news: to_write, room: taken })
    }

    /// Adds news of a request. Pixels wait until there is room for them.
    pub(super) fn add(&self, turn: &Arc<Turn>, news: News) {
        let news = match news {
            // A thread that wakes up after each step costs more than it takes off this one.
            News::Progress(progress) if turn.has_heard_all() => return turn.respond(GenerationResponse::Progress(progress)),
            // It need not wait for others' files.
            News::End(Err(error)) if turn.has_heard_all() => return conclude(turn, Err(error)),
            news => news,
        };
        // Without a writer, what is dropped closes its `response_tx`.
        if news.has_pixels() && self.room.send(()).is_err() {
            return;
        }
        turn.note_added();
        let _ = self.news.send((Arc::clone(turn), news));
    }
}

impl Writer {
    /// Tells requests their news until the engine's end of the queue is gone. An error or a panic costs no other request anything.
    pub(super) fn run(self, model_id: &str, pulse: &Pulse, encode: Encode) {
        while let Ok((turn, news)) = self.news.recv() {
            let has_pixels = news.has_pixels();
            tell(&turn, news, model_id, pulse, encode);
            turn.note_told();
            if has_pixels {
                let _ = self.room.recv();
            }
        }
    }
}

fn tell(turn: &Turn, news: News, model_id: &str, pulse: &Pulse, encode: Encode) {
    let output = turn.request.order.output;
    match news {
        News::Progress(progress) => turn.respond(GenerationResponse::Progress(progress)),
        News::Preview { index, pixels } if turn.is_wanted() => {
            pulse.beat();
            let enlarged = || enlarge(&pixels, turn.request.order.size());
            match attempt(&[turn], pulse, |_| encode(&enlarged(), output, None)) {
                Ok(image) => turn.respond(GenerationResponse::Preview { index, image }),
                Err(error) => turn.fail(error),
            }
        }
        News::Preview { .. } => {}
        News::End(outcome) => {
            pulse.beat();
            conclude(turn, outcome.and_then(|drawn| attempt(&[turn], pulse, |_| write(turn, drawn, model_id, encode))));
        }
    }
}

/// Gives the last answer. Not even a log that cannot be written may end the loop of who calls this.
fn conclude(turn: &Turn, outcome: Result<Complete, GenerationError>) {
    let _ = catch_unwind(AssertUnwindSafe(|| turn.conclude(outcome)));
}

/// # Errors
/// When nobody waits for the picture any more, or the encoder fails.
fn write(turn: &Turn, drawn: Drawn, model_id: &str, encode: Encode) -> Result<Complete, GenerationError> {
    turn.check_wanted()?;
    let Drawn { pixels, mut timings, mut warnings, since } = drawn;
    let order = &turn.request.order;
    let metadata = ImageMetadata::new(order, model_id);
    let image = encode(&pixels, order.output, Some(&metadata))?;
    warnings.extend(missing_metadata(order.output.format, &metadata).map(str::to_owned));
    timings.encode = since.elapsed();
    Ok(Complete { image, config: order.config, timings, warnings })
}

/// A preview at the size of the picture, so that a client can show it in the picture's place.
fn enlarge(preview: &RgbImage, size: ImageSize) -> RgbImage {
    imageops::resize(preview, size.width(), size.height(), imageops::FilterType::Triangle)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::backend::{GenerationRequest, Order, generation_engine::running::Running, picture_encoder};

    /// A request that was begun, and what it hears.
    fn begun() -> (Arc<Turn>, UnboundedReceiver<GenerationResponse>) {
        let (response_tx, responses) = unbounded_channel();
        let request = GenerationRequest { response_tx, ..GenerationRequest::unheard(Order::plain("a fox", 1)) };
        (Arc::new(Turn::new(request, Running::default().begin())), responses)
    }

    #[test]
    fn an_error_waits_for_no_file_of_another_request() {
        let ((drawing, _), (failing, mut responses)) = (begun(), begun());
        // Nobody writes.
        let (queue, _writer) = WriterQueue::new();
        queue.add(&drawing, News::Preview { index: 0, pixels: RgbImage::new(8, 8) });
        queue.add(&failing, News::End(Err(GenerationError::AllBlack)));
        assert!(matches!(responses.try_recv(), Ok(GenerationResponse::Error(GenerationError::AllBlack))));
    }

    #[test]
    fn pixels_wait_for_room_and_progress_does_not() {
        let ((turn, mut responses), (queue, writer)) = (begun(), WriterQueue::new());
        for index in 0..MOST_PIXELS {
            queue.add(&turn, News::Preview { index: index as u8, pixels: RgbImage::new(8, 8) });
        }
        assert!(queue.room.try_send(()).is_err(), "one more would wait");
        queue.add(&turn, News::End(Err(GenerationError::AllBlack)));
        drop(turn);
        std::thread::scope(|threads| {
            threads.spawn(|| writer.run("fake", &Pulse::default(), &picture_encoder::encode));
            let said = std::iter::from_fn(|| responses.blocking_recv());
            assert!(matches!(said.last(), Some(GenerationResponse::Error(GenerationError::AllBlack))));
            assert!(queue.room.try_send(()).is_ok(), "what is written makes room");
            drop(queue);
        });
    }
}
