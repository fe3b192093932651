//! What of the engine nobody sees from outside.

mod writing;

use std::{
    pin::pin,
    sync::Mutex,
    task::{Context, Wake, Waker},
};

use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::backend::{GenerationRequest, GenerationResponse, Order};

fn request() -> (GenerationRequest, UnboundedReceiver<GenerationResponse>) {
    let (response_tx, responses) = mpsc::unbounded_channel();
    (GenerationRequest { response_tx, ..GenerationRequest::unheard(Order::plain("a fox", 1)) }, responses)
}

fn begun(request: GenerationRequest) -> Turn {
    Turn::new(request, Running::default().begin())
}

/// Writes down its name when it is woken.
struct Note(&'static str, Arc<Mutex<Vec<&'static str>>>);

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.1.lock().unwrap().push(self.0);
    }
}

/// Who hears the answer may ask again at once, and finds no place taken by what is over.
#[test]
fn a_place_is_free_before_the_answer_is_there() {
    let (notes, places) = (Arc::default(), Arc::new(Semaphore::new(1)));
    let waker = |name| Waker::from(Arc::new(Note(name, Arc::clone(&notes))));
    let (mut request, mut responses) = request();
    request.place = Arc::clone(&places).try_acquire_owned().ok();
    let mut place = pin!(places.acquire());
    assert!(place.as_mut().poll(&mut Context::from_waker(&waker("place"))).is_pending());
    assert!(responses.poll_recv(&mut Context::from_waker(&waker("answer"))).is_pending());
    begun(request).conclude(Err(GenerationError::AllBlack));
    assert_eq!(*notes.lock().unwrap(), ["place", "answer"]);
}

/// Between two layers of a pass, as the networks ask.
#[test]
fn a_pass_is_given_up_when_nobody_waits_for_any_of_its_pictures() {
    let ((one, one_responses), (other, other_responses)) = (request(), request());
    let (one, other) = (begun(one), begun(other));
    let is_interrupted = || attempt(&[&one, &other], &Pulse::default(), |interrupt| Ok(interrupt.is_asked())).unwrap();
    assert!(!is_interrupted());
    drop(one_responses);
    assert!(!is_interrupted(), "the other one still waits");
    drop(other_responses);
    assert!(is_interrupted());
}

/// A cancelled order for ten pictures would else keep nine places until nine others are drawn.
#[test]
fn requests_that_nobody_waits_for_leave_at_once_whatever_their_turn() {
    let (first, last) = (Order::plain("first", 1), Order::plain("last", 1));
    let mut waiting = Waiting::default();
    let mut add = |order: &Order| {
        let (response_tx, responses) = mpsc::unbounded_channel();
        waiting.add(GenerationRequest { response_tx, ..GenerationRequest::unheard(order.clone()) });
        responses
    };
    let held: Vec<_> = [&first, &last, &last, &first].map(&mut add).into();
    drop(add(&first));
    drop(add(&last));
    let gone =
        |waiting: &mut Waiting| waiting.take_unwanted().iter().map(|request| request.order.prompt.as_str().to_owned()).collect::<Vec<_>>();
    assert_eq!(gone(&mut waiting), ["first", "last"]);
    assert_eq!(waiting.next().map(|request| request.order.prompt.as_str()), Some("first"));
    drop(held);
    assert_eq!(gone(&mut waiting).len(), 4);
    assert!(waiting.next().is_none());
}
