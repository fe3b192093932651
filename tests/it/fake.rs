//! The real server and the real engine around a pipeline that does what its prompt says.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use image::RgbImage;
use metrics_exporter_prometheus::PrometheusHandle;
use sd_worker::{
    backend::{
        Demand, Generation, GenerationEngine, GenerationError, GenerationRequest, GenerationResponse, Interrupt, ModelDefaults, ModelInfo,
        Pipeline, Pulse, RequestDefaults, RequestQueue, StepKind,
    },
    common::{ModelFamily, ModelVariant, Refresh, Sampler, Schedule},
    http::{self, Access, Admission, AppState, ConnectionLimits, Lifecycle, RunLimits, Runs},
    schedulers::SchedulerConfig,
};
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{mpsc::UnboundedReceiver, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// The least time that a step of the prompt "slow" takes.
pub(crate) const SLOW_STEP: Duration = Duration::from_millis(20);

/// A pipeline that does what the prompt says, records what it is asked for, and draws gray pictures.
#[derive(Default)]
pub(crate) struct FakePipeline {
    /// Held by a test while a step of the prompt "hang" hangs.
    gate: Mutex<()>,
    /// The prompts of all requests that were begun.
    pub(crate) begun: Mutex<Vec<String>>,
    /// The prompts of each pass through the network.
    passes: Mutex<Vec<Vec<String>>>,
    pub(crate) steps: AtomicUsize,
    /// The prompts of all generations that finished.
    pub(crate) finished: Mutex<Vec<String>>,
    /// The client of the request "leave at step 3".
    client: Mutex<Option<UnboundedReceiver<GenerationResponse>>>,
    /// Requests that come during the first step of the request "invite".
    pub(crate) guests: Mutex<Option<(RequestQueue, Vec<GenerationRequest>)>>,
}

impl FakePipeline {
    /// One whose request "leave at step 3" drops these responses then.
    pub(crate) fn with_client(responses: UnboundedReceiver<GenerationResponse>) -> Self {
        Self { client: Mutex::new(Some(responses)), ..Self::default() }
    }

    /// Makes the prompt "hang" hang until the returned sender is dropped.
    pub(crate) fn hold(self: &Arc<Self>) -> mpsc::Sender<()> {
        let pipeline = Arc::clone(self);
        let ((hold, held), (release, is_released)) = (mpsc::channel(), mpsc::channel());
        thread::spawn(move || {
            let _held = pipeline.gate.lock().unwrap();
            hold.send(()).unwrap();
            is_released.recv()
        });
        held.recv().unwrap();
        release
    }

    /// In each pass, the prompts.
    pub(crate) fn passes(&self) -> Vec<String> {
        self.passes.lock().unwrap().iter().map(|prompts| prompts.join(" + ")).collect()
    }
}

pub(crate) struct FakeGeneration {
    pipeline: Arc<FakePipeline>,
    prompt: String,
    demand: Arc<Demand>,
    /// The steps between full ones.
    interval: Option<usize>,
    done: usize,
    client: CancellationToken,
}

impl Pipeline for FakePipeline {
    type Generation = FakeGeneration;

    fn begin(self: &Arc<Self>, request: &GenerationRequest, _: Interrupt) -> Result<FakeGeneration, GenerationError> {
        // The parts after an `AND` only add samples.
        let prompt = request.order.prompt.as_str().split(" AND ").next().unwrap_or_default().to_owned();
        self.begun.lock().unwrap().push(prompt.clone());
        assert_ne!(prompt, "panic at begin");
        if prompt == "fail" {
            return Err(GenerationError::Tokenizer("no such luck".to_owned()));
        }
        let (demand, client) = (Arc::clone(&request.order.demand), request.cancellation.clone());
        let interval = request.order.config.options.cache.and_then(|cache| match cache.refresh() {
            Refresh::Interval(steps) => Some(steps),
            Refresh::Threshold(_) => None,
        });
        Ok(FakeGeneration { pipeline: Arc::clone(self), prompt, demand, interval, done: 0, client })
    }

    fn model_id(&self) -> &'static str {
        "fake"
    }

    fn picture_work(&self) -> u64 {
        2 * info().defaults.size.pixels()
    }
}

impl Generation for FakeGeneration {
    /// Whose it is.
    type Context = Vec<String>;
    /// What it was asked about.
    type Output = (String, usize);

    fn kind(&self) -> StepKind {
        self.kind_of(self.done)
    }

    fn kinds_to_come(&self) -> Vec<StepKind> {
        (self.done..self.demand.steps()).map(|step| self.kind_of(step)).collect()
    }

    fn total_steps(&self) -> usize {
        self.demand.steps()
    }

    fn join(generations: &[&Self]) -> Result<Vec<String>, GenerationError> {
        Ok(generations.iter().map(|generation| generation.prompt.clone()).collect())
    }

    fn predict(generations: &[&Self], context: &Vec<String>, _: Interrupt) -> Result<Vec<(String, usize)>, GenerationError> {
        assert_eq!(*context, Self::join(generations)?, "what was joined is of those who are here");
        assert!(generations.iter().all(|generation| generation.kind() == generations[0].kind()), "a pass is of one kind");
        generations[0].pipeline.passes.lock().unwrap().push(context.clone());
        for generation in generations {
            let step = generation.done + 1;
            assert!(generation.prompt != "panic at step 2" || step < 2, "a bug in step {step}");
            if generation.prompt == "fail at step 2" && step == 2 {
                return Err(candle_core::Error::msg("no such luck").into());
            }
        }
        Ok(generations.iter().map(|generation| (generation.prompt.clone(), generation.done)).collect())
    }

    fn prepare(&mut self, _: Interrupt) -> Result<(), GenerationError> {
        Ok(())
    }

    fn update(&mut self, output: (String, usize)) -> Result<(), GenerationError> {
        assert_eq!(output, (self.prompt.clone(), self.done), "an answer of one's own, to what one is now");
        self.done += 1;
        self.pipeline.steps.fetch_add(1, Ordering::SeqCst);
        match (self.prompt.as_str(), self.done) {
            ("panic", _) => panic!("as the prompt said"),
            ("panic after step 2", 2) => panic!("a bug after step 2"),
            ("nan", _) => return Err(GenerationError::NotANumber),
            ("out of memory", _) => return Err(candle_core::Error::msg("CUDA_ERROR_OUT_OF_MEMORY").into()),
            ("hang", _) => drop(self.pipeline.gate.lock()),
            ("slow", _) => thread::sleep(SLOW_STEP),
            ("cancel at step 3", 3) => self.client.cancel(),
            ("leave at step 3", 3) => drop(self.pipeline.client.lock().unwrap().take()),
            ("invite", _) => {
                if let Some((queue, guests)) = self.pipeline.guests.lock().unwrap().take() {
                    for guest in guests {
                        queue.add_request(guest).unwrap();
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn preview(&self, _: Interrupt) -> Result<RgbImage, GenerationError> {
        Ok(RgbImage::new(8, 8))
    }

    fn finish(self, _: Interrupt) -> Result<RgbImage, GenerationError> {
        self.pipeline.finished.lock().unwrap().push(self.prompt);
        let size = self.demand.size;
        Ok(RgbImage::from_pixel(size.width(), size.height(), image::Rgb([128; 3])))
    }

    fn warnings(&self) -> Vec<String> {
        vec![format!("only a fake of {}", self.prompt)]
    }
}

impl FakeGeneration {
    fn kind_of(&self, step: usize) -> StepKind {
        let is_shallow = self.interval.is_some_and(|interval| !step.is_multiple_of(interval));
        StepKind { is_shallow, ..self.demand.kind(step) }
    }
}

/// A server in this process, on a real socket.
pub(crate) struct FakeWorker {
    address: SocketAddr,
    pipeline: Arc<FakePipeline>,
    pub(crate) admission: Admission,
}

impl FakeWorker {
    pub(crate) async fn start(capacity: u32) -> Self {
        Self::start_with(capacity, Duration::from_mins(10)).await
    }

    /// The same, with another limit for silent clients.
    pub(crate) async fn start_with(capacity: u32, patience: Duration) -> Self {
        let (queue, requests) = RequestQueue::new();
        let (pipeline, pulse, admission) = (Arc::new(FakePipeline::default()), Pulse::default(), Admission::new(capacity));
        // The engine's thread ends with the queue, which the server holds.
        drop(GenerationEngine::new(Arc::clone(&pipeline), requests).with_pulse(pulse.clone()).start());
        let (_, lifecycle) = watch::channel(Lifecycle::Ready(Arc::new(info())));
        let state = AppState {
            queue,
            lifecycle,
            admission: admission.clone(),
            runs: Runs::new(RunLimits { keep: Duration::from_mins(1), most: 10, bytes: 1 << 30 }),
            access: Access::default(),
            client_timeout: patience,
            max_batch: 1,
            pulse,
            watchdog: Some(Duration::from_millis(1)),
            metrics: recorder(),
            shutdown: CancellationToken::new(),
            stop: CancellationToken::new(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = ConnectionLimits { patience, most: 100 };
        tokio::spawn(http::serve(listener, http::router(state), limits, CancellationToken::new()));
        Self { address, pipeline, admission }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Makes the prompt "hang" hang until the returned sender is dropped.
    pub(crate) fn hold(&self) -> mpsc::Sender<()> {
        self.pipeline.hold()
    }

    /// A request for pictures on a connection of its own; aborting its task closes the connection.
    pub(crate) fn request(&self, body: &Value) -> reqwest::RequestBuilder {
        reqwest::Client::new().post(self.url("/v1/images/generations")).json(body)
    }

    /// Sends a request, and waits until the engine has begun its first picture.
    pub(crate) async fn begin(&self, request: reqwest::RequestBuilder) -> JoinHandle<reqwest::Result<reqwest::Response>> {
        let before = self.begun().len();
        let task = tokio::spawn(request.send());
        while self.begun().len() == before {
            tokio::task::yield_now().await;
        }
        task
    }

    /// The prompts of all generations that were begun.
    pub(crate) fn begun(&self) -> Vec<String> {
        self.pipeline.begun.lock().unwrap().clone()
    }

    /// The prompts of all generations that finished.
    pub(crate) fn finished(&self) -> Vec<String> {
        self.pipeline.finished.lock().unwrap().clone()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        reqwest::Client::new().post(self.url(path)).json(body).send().await.unwrap()
    }
}

/// A process has one recorder.
fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER.get_or_init(|| http::install_recorder().unwrap()).clone()
}

pub(crate) fn info() -> ModelInfo {
    let defaults = ModelDefaults {
        own_size_only: false,
        size: "64x64".parse().unwrap(),
        steps: "2".parse().unwrap(),
        guidance_scale: "4".parse().unwrap(),
        sampler: Sampler::Euler,
        schedule: Schedule::Default,
    };
    let (id, device) = ("fake".to_owned(), "cpu".to_owned());
    ModelInfo {
        id,
        family: ModelFamily::Sd1,
        variant: ModelVariant::Base,
        embeds_guidance: false,
        device,
        dtype: "f32",
        compute: Some("f32"),
        max_pixels: 1 << 20,
        size_multiple: 8,
        max_steps: 1000,
        embeddings: Vec::new(),
        max_clip_skip: 12,
        defaults,
        requests: RequestDefaults::default(),
        scheduler: SchedulerConfig::default(),
        adapters: None,
        controls: None,
        ip_adapter: None,
        upscalers: Arc::default(),
        has_tiny_decoder: false,
    }
}
