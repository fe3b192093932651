//! Files are made beside the next step.

use std::{
    iter,
    sync::mpsc::{Receiver, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use image::RgbImage;
use tokio_util::sync::CancellationToken;

use super::{super::writer::MOST_PIXELS, *};
use crate::backend::{Generation, ImageMetadata, RequestQueue, StepKind};

/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_mins(1);

type Responses = UnboundedReceiver<GenerationResponse>;

/// The seed of a picture whose second step takes as long as the picture is wanted.
const ENDLESS: u32 = 9;

/// Tells what the engine does, as "1 step 2". Pictures are of the colour that their seed names.
struct Told(Sender<String>);

struct Telling {
    pipeline: Arc<Told>,
    order: Order,
    done: usize,
}

impl Telling {
    fn tell(&self, what: &str) {
        let _ = self.pipeline.0.send(format!("{} {what}", self.order.config.seed));
    }

    fn is_endless(&self) -> bool {
        self.done == 1 && self.order.config.seed == u64::from(ENDLESS).into()
    }

    fn picture(&self) -> RgbImage {
        RgbImage::from_pixel(8, 8, image::Rgb([self.order.config.seed.get() as u8; 3]))
    }
}

impl Pipeline for Told {
    type Generation = Telling;

    fn begin(self: &Arc<Self>, request: &GenerationRequest, _: Interrupt) -> Result<Telling, GenerationError> {
        Ok(Telling { pipeline: Arc::clone(self), order: request.order.clone(), done: 0 })
    }

    fn model_id(&self) -> &'static str {
        "told"
    }

    fn picture_work(&self) -> u64 {
        Order::plain("", 1).demand.peak()
    }
}

impl Generation for Telling {
    type Context = ();
    type Output = ();

    fn kind(&self) -> StepKind {
        self.order.demand.kind(self.done)
    }

    fn kinds_to_come(&self) -> Vec<StepKind> {
        Vec::new()
    }

    fn total_steps(&self) -> usize {
        self.order.demand.steps()
    }

    fn join(_: &[&Self]) -> Result<(), GenerationError> {
        Ok(())
    }

    fn predict(generations: &[&Self], (): &(), interrupt: Interrupt) -> Result<Vec<()>, GenerationError> {
        let started = Instant::now();
        while generations.iter().any(|generation| generation.is_endless()) {
            interrupt.check()?;
            assert!(started.elapsed() < LIMIT, "it is still wanted");
        }
        Ok(vec![(); generations.len()])
    }

    fn update(&mut self, (): ()) -> Result<(), GenerationError> {
        self.done += 1;
        self.tell(&format!("step {}", self.done));
        Ok(())
    }

    fn prepare(&mut self, _: Interrupt) -> Result<(), GenerationError> {
        Ok(())
    }

    fn preview(&self, _: Interrupt) -> Result<RgbImage, GenerationError> {
        Ok(self.picture())
    }

    fn finish(self, _: Interrupt) -> Result<RgbImage, GenerationError> {
        self.tell("drawn");
        Ok(self.picture())
    }

    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// An engine at work, and what the test hears of it.
struct Engine {
    queue: RequestQueue,
    events: Receiver<String>,
    pulse: Pulse,
    thread: JoinHandle<()>,
}

/// What an encoder is to do with pixels of this colour; previews have no metadata.
type Fault = dyn Fn(u8, Option<&ImageMetadata>) -> Result<(), GenerationError> + Send + Sync;

impl Engine {
    fn start(fault: Box<Fault>) -> Self {
        let ((queue, requests), (told, events), pulse) = (RequestQueue::new(), channel(), Pulse::default());
        let engine = GenerationEngine::new(Arc::new(Told(told)), requests).with_pulse(pulse.clone());
        let encode = move |pixels: &RgbImage, output, metadata: Option<&ImageMetadata>| {
            fault(pixels.get_pixel(0, 0).0[0], metadata)?;
            picture_encoder::encode(pixels, output, metadata)
        };
        Self { queue, events, pulse, thread: thread::spawn(move || engine.run(&encode)) }
    }

    /// One whose encoder tells of each picture, and then waits for a word from the test, or for the end of the test's sender.
    fn held() -> (Self, Receiver<u8>, Sender<()>) {
        let ((entered, encoding), (release, released)) = (channel(), channel());
        let (entered, released) = (Mutex::new(entered), Mutex::new(released));
        let hold = move |color, _: Option<&ImageMetadata>| {
            let _ = entered.lock().unwrap().send(color);
            let _ = released.lock().unwrap().recv_timeout(LIMIT);
            Ok(())
        };
        (Self::start(Box::new(hold)), encoding, release)
    }

    /// Asks for a picture of this colour.
    fn ask(&self, color: u32, steps: i64, previews: u8) -> (Responses, CancellationToken) {
        let (response_tx, responses) = mpsc::unbounded_channel();
        let mut order = Order::plain("a fox", steps).picture(color);
        order.output.previews = previews;
        let request = GenerationRequest { response_tx, ..GenerationRequest::unheard(order) };
        let cancellation = request.cancellation.clone();
        self.queue.add_request(request).unwrap();
        (responses, cancellation)
    }

    /// Waits until the engine has done this.
    fn wait_for(&self, event: &str) {
        while self.events.recv_timeout(LIMIT).expect(event) != event {}
    }

    /// Lets the engine come to its end.
    fn end(self) {
        drop(self.queue);
        self.thread.join().unwrap();
    }
}

/// All answers but the first, in short.
fn transcript(mut responses: Responses) -> Vec<String> {
    let said = iter::from_fn(|| responses.try_recv().ok()).filter_map(|response| match response {
        GenerationResponse::Started => None,
        GenerationResponse::Progress(progress) => Some(format!("step {}", progress.step)),
        GenerationResponse::Preview { index, .. } => Some(format!("preview {index}")),
        GenerationResponse::Complete(_) => Some("complete".to_owned()),
        GenerationResponse::Error(error) => Some(error.to_string()),
    });
    said.collect()
}

#[test]
fn a_slow_encoder_holds_back_no_step() {
    let (engine, encoding, release) = Engine::held();
    let (first, _) = engine.ask(1, 3, 1);
    assert_eq!(encoding.recv_timeout(LIMIT), Ok(1), "the preview is being written");
    engine.wait_for("1 drawn");
    let (second, _) = engine.ask(2, 2, 0);
    engine.wait_for("2 drawn");
    assert!(encoding.try_recv().is_err(), "and nothing else was");
    drop(release);
    engine.end();
    assert_eq!(transcript(first), ["step 1", "step 2", "preview 0", "step 3", "complete"]);
    assert_eq!(transcript(second), ["step 1", "step 2", "complete"]);
}

#[test]
fn progress_waits_for_files_of_its_own_request_alone() {
    let (engine, encoding, release) = Engine::held();
    let ((mut first, _), (mut second, _)) = (engine.ask(1, 3, 1), engine.ask(2, 2, 0));
    assert_eq!(encoding.recv_timeout(LIMIT), Ok(1));
    engine.wait_for("2 drawn");
    let steps = |responses: &mut Responses| {
        let said = iter::from_fn(|| responses.try_recv().ok());
        said.filter(|response| matches!(response, GenerationResponse::Progress(_))).count()
    };
    assert_eq!((steps(&mut first), steps(&mut second)), (2, 2), "the preview comes before step 3");
    drop(release);
    engine.end();
    assert_eq!(
        (transcript(first), transcript(second)),
        (vec!["preview 0".to_owned(), "step 3".to_owned(), "complete".to_owned()], vec!["complete".to_owned()])
    );
}

#[test]
fn previews_keep_their_place_between_the_steps() {
    let (engine, encoding, release) = Engine::held();
    let (responses, _) = engine.ask(1, 4, 3);
    engine.wait_for("1 drawn");
    for _ in 0..4 {
        encoding.recv_timeout(LIMIT).unwrap();
        release.send(()).unwrap();
    }
    engine.end();
    assert_eq!(transcript(responses), ["step 1", "preview 0", "step 2", "preview 1", "step 3", "preview 2", "step 4", "complete"]);
}

#[test]
fn an_encoder_that_fails_costs_one_request() {
    let fault = |color, metadata: Option<&ImageMetadata>| match (color, metadata) {
        (1, Some(_)) => panic!("a bug in the encoder"),
        (2, Some(_)) => Err(GenerationError::Encoding("no such luck".to_owned())),
        _ => Ok(()),
    };
    let engine = Engine::start(Box::new(fault));
    let all = [1, 2, 3].map(|color| engine.ask(color, 2, 1).0);
    engine.end();
    let before = ["step 1", "preview 0", "step 2"];
    for (responses, end) in
        all.into_iter().zip(["the generation panicked: a bug in the encoder", "the picture could not be encoded: no such luck", "complete"])
    {
        let said = transcript(responses);
        assert_eq!((&said[..3], &*said[3]), (&before.map(str::to_owned)[..], end));
    }
}

#[test]
fn a_preview_that_fails_ends_its_request() {
    let fault = |color, metadata: Option<&ImageMetadata>| {
        assert!(u32::from(color) != ENDLESS || metadata.is_some(), "a bug in the encoder");
        Ok(())
    };
    let engine = Engine::start(Box::new(fault));
    let ((bad, _), (good, _)) = (engine.ask(ENDLESS, 4, 3), engine.ask(2, 1, 0));
    engine.end();
    assert_eq!(transcript(bad), ["step 1", "the generation panicked: a bug in the encoder"]);
    assert_eq!(transcript(good), ["step 1", "complete"]);
}

#[test]
fn what_nobody_waits_for_is_not_encoded() {
    let (engine, encoding, release) = Engine::held();
    let (first, _) = engine.ask(1, 1, 0);
    assert_eq!(encoding.recv_timeout(LIMIT), Ok(1));
    let ((gone, _), (cancelled, cancellation), (last, _)) = (engine.ask(2, 1, 0), engine.ask(3, 2, 1), engine.ask(4, 1, 0));
    engine.wait_for("3 drawn");
    drop(gone);
    cancellation.cancel();
    drop(release);
    engine.end();
    assert_eq!(encoding.iter().collect::<Vec<_>>(), [4]);
    assert_eq!(transcript(cancelled), ["step 1", "step 2", "the request was cancelled"]);
    assert_eq!([first, last].map(transcript), [["step 1", "complete"]; 2]);
}

#[test]
fn the_engine_ends_when_all_is_written() {
    let (engine, encoding, release) = Engine::held();
    let (responses, _) = engine.ask(1, 1, 0);
    let (next, _) = engine.ask(2, 1, 0);
    encoding.recv_timeout(LIMIT).unwrap();
    engine.wait_for("2 drawn");
    drop(engine.queue);
    assert!(!engine.thread.is_finished(), "the loop is over, and a picture is written");
    drop(release);
    engine.thread.join().unwrap();
    assert_eq!([responses, next].map(transcript), [["step 1", "complete"]; 2]);
}

#[test]
fn the_worker_is_busy_until_the_last_picture_is_written() {
    let (engine, encoding, release) = Engine::held();
    let (mut responses, _) = engine.ask(1, 1, 0);
    encoding.recv_timeout(LIMIT).unwrap();
    // A pulse that rests is never silent.
    while engine.pulse.silence() == Duration::ZERO {
        thread::yield_now();
    }
    drop(release);
    while !matches!(responses.blocking_recv(), Some(GenerationResponse::Complete(_))) {}
    assert_eq!(engine.pulse.silence(), Duration::ZERO);
    engine.end();
}

#[test]
fn an_engine_that_waited_for_room_goes_on() {
    let (engine, _encoding, release) = Engine::held();
    let all: Vec<Responses> = (1..=10).map(|color| engine.ask(color, 1, 0).0).collect();
    engine.wait_for(&format!("{} drawn", MOST_PIXELS + 1));
    drop(release);
    engine.end();
    assert_eq!(all.into_iter().map(transcript).collect::<Vec<_>>(), [["step 1", "complete"]; 10]);
}
