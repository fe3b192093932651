//! Several requests at a time.

use tokio::sync::Semaphore;

use super::*;

type Responses = UnboundedReceiver<GenerationResponse>;

/// Requests of so many steps each.
fn requests<const N: usize>(all: [(&str, i64); N]) -> ([GenerationRequest; N], [Responses; N]) {
    let (requests, responses): (Vec<_>, Vec<_>) = all.into_iter().map(|(prompt, steps)| request(prompt, steps, 0)).unzip();
    (requests.try_into().unwrap(), responses.try_into().unwrap())
}

async fn serve<const N: usize>(max_batch: usize, requests: [GenerationRequest; N]) -> Arc<FakePipeline> {
    serve_with_guests(max_batch, requests, []).await
}

async fn serve_with_guests<const N: usize, const M: usize>(
    max_batch: usize,
    requests: [GenerationRequest; N],
    guests: [GenerationRequest; M],
) -> Arc<FakePipeline> {
    let pipeline = Arc::new(FakePipeline::default());
    serve_together(max_batch, &pipeline, requests.into(), guests.into()).await;
    pipeline
}

/// What is said to who is not disturbed by others.
fn undisturbed(prompt: &str, steps: usize) -> Vec<String> {
    let steps = (1..=steps).map(|step| format!("step {step}/{steps}"));
    steps.chain([format!("complete, only a fake of {prompt}")]).collect()
}

#[tokio::test]
async fn who_has_finished_makes_room_for_who_is_next() {
    let (all, responses) = requests([("a", 2), ("b", 3), ("c", 2), ("d", 1)]);
    let pipeline = serve(2, all).await;
    assert_eq!(pipeline.passes(), ["a + b", "a + b", "b + c", "c + d"]);
    for (responses, (prompt, steps)) in responses.into_iter().zip([("a", 2), ("b", 3), ("c", 2), ("d", 1)]) {
        assert_eq!(transcript(responses), undisturbed(prompt, steps));
    }
}

#[tokio::test]
async fn who_comes_later_joins_at_the_next_step() {
    let (first, first_responses) = requests([("invite", 3)]);
    let (guests, guests_responses) = requests([("b", 3), ("c", 1), ("d", 1)]);
    let pipeline = serve_with_guests(3, first, guests).await;
    assert_eq!(pipeline.passes(), ["invite", "invite + b + c", "invite + b + d", "b"]);
    assert_eq!(first_responses.map(transcript), [undisturbed("invite", 3)]);
    assert_eq!(guests_responses.map(transcript), [undisturbed("b", 3), undisturbed("c", 1), undisturbed("d", 1)]);
}

#[tokio::test]
async fn one_at_a_time_is_one_at_a_time() {
    let (all, _responses) = requests([("a", 2), ("b", 1)]);
    assert_eq!(serve(1, all).await.passes(), ["a", "a", "b"]);
    let (all, _responses) = requests([("a", 2), ("b", 1)]);
    assert_eq!(serve(0, all).await.passes(), ["a", "a", "b"], "less than one is one");
}

#[tokio::test]
async fn another_shape_waits_for_all_before_it_and_is_not_overtaken() {
    let (mut all, responses) = requests([("a", 1), ("b", 3), ("large", 2), ("c", 1)]);
    all[2].order = order("large", 2, wide);
    let pipeline = serve(3, all).await;
    assert_eq!(pipeline.passes(), ["a + b", "b", "b", "large", "large", "c"]);
    assert_eq!(responses.map(transcript), [("a", 1), ("b", 3), ("large", 2), ("c", 1)].map(|(prompt, steps)| undisturbed(prompt, steps)));
}

#[tokio::test]
async fn another_shape_that_nobody_waits_for_holds_nobody_up() {
    let (mut all, mut responses) = requests([("a", 2), ("gone", 2), ("late", 2), ("b", 1)]);
    for other in &mut all[1..3] {
        other.order = order(other.order.prompt.as_str(), 2, wide);
    }
    responses[1].close();
    all[2].latest_start = Some(Instant::now());
    let pipeline = serve(3, all).await;
    assert_eq!(pipeline.passes(), ["a + b", "a"]);
    let [_, gone, late, _] = responses;
    assert_eq!(transcript(gone), Vec::<String>::new());
    assert_eq!(transcript(late), ["error: its turn did not come in the time that the client waits"]);
}

#[tokio::test]
async fn what_is_too_late_by_the_time_it_fits_is_not_begun() {
    let (first, _first_responses) = requests([("invite", 2)]);
    let (mut guests, [responses]) = requests([("late", 1)]);
    guests[0].order = order("late", 1, wide);
    guests[0].latest_start = Some(Instant::now());
    let pipeline = serve_with_guests(2, first, guests).await;
    assert_eq!(*pipeline.begun.lock().unwrap(), ["invite"]);
    assert_eq!(transcript(responses), ["error: its turn did not come in the time that the client waits"]);
}

#[tokio::test]
async fn who_cancels_leaves_the_others_at_it() {
    let (all, [a, cancelled, b]) = requests([("a", 5), ("cancel at step 3", 5), ("b", 4)]);
    let pipeline = serve(3, all).await;
    let together = "a + cancel at step 3 + b";
    assert_eq!(pipeline.passes(), [together, together, together, "a + b", "a"]);
    assert_eq!(transcript(cancelled), ["step 1/5", "step 2/5", "step 3/5", "error: the request was cancelled"]);
    assert_eq!([transcript(a), transcript(b)], [undisturbed("a", 5), undisturbed("b", 4)]);
}

#[tokio::test]
async fn who_leaves_in_the_last_step_costs_no_decoding() {
    let ([leaving, other], [client, other_client]) = requests([("leave at step 3", 3), ("b", 3)]);
    let pipeline = Arc::new(FakePipeline::with_client(client));
    serve_together(2, &pipeline, vec![leaving, other], Vec::new()).await;
    assert_eq!(pipeline.finished.lock().unwrap().len(), 1);
    assert_eq!(transcript(other_client), undisturbed("b", 3));
}

#[tokio::test]
async fn what_goes_wrong_costs_who_is_to_blame() {
    let before = "step 1/4";
    for (culprit, said, end) in [
        ("panic at step 2", &[before][..], "error: the generation panicked: a bug in step 2"),
        ("fail at step 2", &[before], "error: the model failed"),
        ("panic after step 2", &[before], "error: the generation panicked: a bug after step 2"),
        ("panic at begin", &[], "error: the generation panicked: "),
        ("fail", &[], "error: the prompt could not be read: no such luck"),
    ] {
        let (all, [a, bad, b]) = requests([("a", 3), (culprit, 4), ("b", 2)]);
        let pipeline = serve(3, all).await;
        assert_eq!([transcript(a), transcript(b)], [undisturbed("a", 3), undisturbed("b", 2)], "{culprit}");
        let mut lines = transcript(bad);
        let last = lines.pop().unwrap();
        assert!(last.starts_with(end), "{last}");
        assert_eq!(lines, said, "{culprit}");
        assert_eq!(pipeline.finished.lock().unwrap().len(), 2);
    }
}

#[tokio::test]
async fn progress_says_how_many_took_a_step_together() {
    let (all, [mut a, _b]) = requests([("a", 2), ("b", 1)]);
    serve(2, all).await;
    let mut sizes = Vec::new();
    while let Ok(response) = a.try_recv() {
        if let GenerationResponse::Progress(progress) = response {
            sizes.push(progress.batch_size);
        }
    }
    assert_eq!(sizes, [2, 1]);
}

/// Requests for the pictures of an order.
fn pictures(order: &Order, count: u32) -> Vec<GenerationRequest> {
    (0..count).map(|index| of_order(order.picture(index))).map(|(request, responses)| hold(request, responses)).collect()
}

/// A request that is wanted to the end of the test.
fn hold(request: GenerationRequest, responses: Responses) -> GenerationRequest {
    std::mem::forget(responses);
    request
}

fn one(order: Order) -> GenerationRequest {
    let (request, responses) = of_order(order);
    hold(request, responses)
}

fn together<const N: usize>(orders: [Vec<GenerationRequest>; N]) -> Vec<GenerationRequest> {
    orders.into_iter().flatten().collect()
}

#[tokio::test]
async fn orders_take_turns_picture_by_picture() {
    let begun = |max_batch, requests: Vec<GenerationRequest>, guests| async move {
        let pipeline = Arc::new(FakePipeline::default());
        serve_together(max_batch, &pipeline, requests, guests).await;
        pipeline.begun.lock().unwrap().join(" ")
    };
    let of = |prompt: &str, count| pictures(&order(prompt, 1, |_| {}), count);
    // One that comes during the first picture of another order waits for the rest of that one, and for one more.
    assert_eq!(begun(1, of("invite", 4), of("b", 1)).await, "invite invite b invite invite");
    assert_eq!(begun(1, together([of("a", 3), of("b", 2), of("c", 1)]), Vec::new()).await, "a b c a b a");
    assert_eq!(begun(2, together([of("a", 3), of("b", 2), of("c", 1)]), Vec::new()).await, "a b c a b a");
    // Orders of one prompt are different orders.
    assert_eq!(begun(1, together([of("a", 2), of("b", 1), of("a", 2)]), Vec::new()).await, "a b a a a");
}

#[tokio::test]
async fn a_pass_is_of_one_kind_and_goes_to_the_oldest_picture() {
    let late_guidance = |config: &mut SamplingConfig| {
        guided(config);
        config.options.guidance_interval = Some("0.5,1".parse().unwrap());
    };
    let passes = |orders: Vec<Order>| async move {
        let pipeline = Arc::new(FakePipeline::default());
        serve_together(2, &pipeline, orders.into_iter().map(one).collect(), Vec::new()).await;
        pipeline.passes()
    };
    let plain = |prompt| order(prompt, 4, |_| {});
    let (guided, late) = (|prompt| order(prompt, 4, guided), |prompt| order(prompt, 4, late_guidance));
    assert_eq!(passes(vec![late("a"), late("b")]).await, ["a + b"; 4], "both change from one kind to the other");
    assert_eq!(passes(vec![late("a"), plain("b")]).await, ["a + b", "a + b", "a", "a", "b", "b"]);
    assert_eq!(passes(vec![plain("a"), late("b")]).await, ["a + b", "a + b", "a", "a", "b", "b"]);
    assert_eq!(passes(vec![guided("a"), late("b")]).await, ["a", "a", "a", "a", "b", "b", "b", "b"]);
}

#[tokio::test]
async fn full_and_shallow_steps_share_no_pass() {
    let cached = |prompt, steps, interval: &str| {
        let cache = format!("deep,interval={interval}").parse().unwrap();
        order(prompt, steps, move |config| config.options.cache = Some(cache))
    };
    let passes = |orders: Vec<Order>, guests: Vec<Order>| async move {
        let pipeline = Arc::new(FakePipeline::default());
        let requests = |orders: Vec<Order>| orders.into_iter().map(one).collect();
        serve_together(2, &pipeline, requests(orders), requests(guests)).await;
        pipeline.passes()
    };
    let plain = |prompt, steps| order(prompt, steps, |_| {});
    assert_eq!(passes(vec![cached("a", 4, "2"), cached("b", 4, "2")], vec![]).await, ["a + b"; 4]);
    assert_eq!(passes(vec![cached("a", 4, "2"), plain("b", 4)], vec![]).await, ["a + b", "a", "a + b", "a", "b", "b"]);
    assert_eq!(passes(vec![cached("a", 4, "2"), cached("b", 4, "3")], vec![]).await, ["a + b", "a + b", "a", "a + b", "b"]);
    // A request is begun when its first step, a full one, goes with the next pass.
    let late = passes(vec![cached("invite", 4, "2")], vec![plain("b", 1)]).await;
    assert_eq!(late, ["invite", "invite", "invite + b", "invite"]);
}

#[tokio::test]
async fn a_pass_has_room_for_fewer_large_pictures() {
    let passes = |orders: Vec<Order>| async move {
        let pipeline = Arc::new(FakePipeline::default());
        serve_together(3, &pipeline, orders.into_iter().map(one).collect(), Vec::new()).await;
        pipeline.passes()
    };
    let large = |prompt, width| {
        order(prompt, 1, move |config| {
            guided(config);
            config.size = ImageSize::new(width, 64).unwrap();
        })
    };
    assert_eq!(passes(["a", "b", "c"].map(|prompt| large(prompt, 64)).into()).await, ["a + b + c"]);
    assert_eq!(passes(["a", "b", "c"].map(|prompt| large(prompt, 128)).into()).await, ["a", "b", "c"], "two would be four of three");
    assert_eq!(passes(["a", "b", "c"].map(|prompt| large(prompt, 96)).into()).await, ["a + b", "c"]);
    assert_eq!(passes(["a", "b"].map(|prompt| large(prompt, 512)).into()).await, ["a", "b"], "one alone is always served");
}

/// The places of a cancelled order are free at once, not one for each picture that others wait for.
#[tokio::test]
async fn an_order_that_nobody_waits_for_leaves_while_others_are_drawn() {
    let (pipeline, places) = (Arc::new(FakePipeline::default()), Arc::new(Semaphore::new(3)));
    let release = pipeline.hold();
    let gone = (0..3).map(|index| {
        let (mut request, responses) = of_order(order("gone", 1, |_| {}).picture(index));
        drop(responses);
        request.place = Arc::clone(&places).try_acquire_owned().ok();
        request
    });
    let requests = [one(order("hang", 1, |_| {}))].into_iter().chain(gone).collect();
    let engine = tokio::spawn({
        let pipeline = Arc::clone(&pipeline);
        async move { serve_together(1, &pipeline, requests, Vec::new()).await }
    });
    let all = tokio::time::timeout(Duration::from_mins(1), places.acquire_many(3)).await;
    assert!(all.is_ok(), "they wait for a picture that hangs");
    drop(release);
    engine.await.unwrap();
    assert_eq!(*pipeline.begun.lock().unwrap(), ["hang"]);
}
