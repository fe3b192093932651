//! The real server and the real engine around a pipeline that does what its prompt says.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, mpsc},
    thread,
    time::Duration,
};

use image::RgbImage;
use metrics_exporter_prometheus::PrometheusHandle;
use sd_worker::{
    backend::{Generation, GenerationEngine, GenerationError, GenerationRequest, ModelDefaults, ModelInfo, Pipeline, Pulse, RequestQueue},
    common::{ModelFamily, ModelVariant, Sampler, Schedule},
    http::{self, Access, Admission, AppState, ConnectionLimits, Lifecycle, RunLimits, Runs},
    schedulers::SchedulerConfig,
};
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// The least time that a step of the prompt "slow" takes.
pub(crate) const SLOW_STEP: Duration = Duration::from_millis(20);

/// A pipeline that fails in the way its prompt names, or makes a grey picture.
#[derive(Default)]
pub(crate) struct FakePipeline {
    /// Held by a test while a step of the prompt "hang" hangs.
    gate: Mutex<()>,
    /// The prompts of all generations that were begun.
    begun: Mutex<Vec<String>>,
    /// The prompts of all generations that finished.
    finished: Mutex<Vec<String>>,
}

pub(crate) struct FakeGeneration {
    prompt: String,
    steps: usize,
    size: (u32, u32),
    pipeline: Arc<FakePipeline>,
}

impl Pipeline for FakePipeline {
    type Generation = FakeGeneration;
    type Shape = ();

    fn shape(&self, _: &GenerationRequest) {}

    fn begin(self: &Arc<Self>, request: &GenerationRequest) -> Result<FakeGeneration, GenerationError> {
        let (config, prompt) = (request.config, request.prompt.as_str().to_owned());
        let size = (config.size.width(), config.size.height());
        self.begun.lock().unwrap().push(prompt.clone());
        Ok(FakeGeneration { prompt, steps: config.steps.get(), size, pipeline: Arc::clone(self) })
    }

    fn model_id(&self) -> &'static str {
        "fake"
    }
}

impl Generation for FakeGeneration {
    type Context = ();
    type Output = ();

    fn total_steps(&self) -> usize {
        self.steps
    }

    fn join(_: &[&Self]) -> Result<(), GenerationError> {
        Ok(())
    }

    fn predict(generations: &[&Self], (): &()) -> Result<Vec<()>, GenerationError> {
        Ok(vec![(); generations.len()])
    }

    fn update(&mut self, (): ()) -> Result<(), GenerationError> {
        // The parts after an `AND` only add samples.
        match self.prompt.split(" AND ").next().unwrap_or_default() {
            "panic" => panic!("as the prompt said"),
            "nan" => Err(GenerationError::NotANumber),
            "out of memory" => Err(candle_core::Error::msg("CUDA_ERROR_OUT_OF_MEMORY").into()),
            "hang" => {
                drop(self.pipeline.gate.lock());
                Ok(())
            }
            "slow" => {
                thread::sleep(SLOW_STEP);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn preview(&self) -> Result<RgbImage, GenerationError> {
        Ok(RgbImage::new(8, 8))
    }

    fn finish(self) -> Result<RgbImage, GenerationError> {
        self.pipeline.finished.lock().unwrap().push(self.prompt);
        Ok(RgbImage::from_pixel(self.size.0, self.size.1, image::Rgb([128; 3])))
    }

    fn warnings(&self) -> Vec<String> {
        Vec::new()
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
        let pipeline = Arc::clone(&self.pipeline);
        let ((hold, held), (release, is_released)) = (mpsc::channel(), mpsc::channel());
        thread::spawn(move || {
            let _held = pipeline.gate.lock().unwrap();
            hold.send(()).unwrap();
            is_released.recv()
        });
        held.recv().unwrap();
        release
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

fn info() -> ModelInfo {
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
        max_pixels: 1 << 20,
        size_multiple: 8,
        max_steps: 1000,
        embeddings: Vec::new(),
        max_clip_skip: 12,
        defaults,
        scheduler: SchedulerConfig::default(),
    }
}
