//! The real binary as users start it, on a free port.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A running `sd-worker serve`. Killed when dropped.
pub(crate) struct Worker {
    child: Child,
    stdout: BufReader<ChildStdout>,
    port: u16,
    /// Reuses its connections, since waiting for a metric asks often.
    client: reqwest::Client,
    /// The folder of its model, if the worker has a model of its own.
    model: Option<tempfile::TempDir>,
}

/// The built-in model without its limit of size, so that large pictures take long.
pub(crate) fn unlimited_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(Path::new("src/builtin_model/model"), folder.path());
    edit(&folder.path().join("generation_config.json"), |json| json["own_size_only"] = false.into());
    folder
}

/// A copy of the small test model, to be changed.
pub(crate) fn copy_of_tiny() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(Path::new("tests/parity/tiny"), folder.path());
    folder
}

/// Copies a folder with everything in it.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Changes a JSON file.
pub(crate) fn edit(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    change(&mut json);
    fs::write(file, json.to_string()).unwrap();
}

/// The binary under test.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-worker"));
    command.stdin(Stdio::null());
    command
}

impl Worker {
    /// Starts a worker and waits until it is ready.
    pub(crate) fn ready(args: &[&str]) -> Self {
        let mut worker = Self::listening(args);
        let event = worker.event();
        assert_eq!(event["event"], "ready");
        worker
    }

    /// Starts a worker of the [`unlimited_model`] and waits until it is ready.
    pub(crate) fn unlimited(args: &[&str]) -> Self {
        let model = unlimited_model();
        let mut worker = Self::ready(&[args, &["--model", model.path().to_str().unwrap()]].concat());
        worker.model = Some(model);
        worker
    }

    /// Starts a worker and waits until its socket is bound.
    pub(crate) fn listening(args: &[&str]) -> Self {
        Self::listening_as(binary(), args)
    }

    /// The same with another command that runs the binary.
    pub(crate) fn listening_as(mut command: Command, args: &[&str]) -> Self {
        let mut child = command.args(["serve", "--port", "0"]).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut worker = Self { child, stdout, port: 0, client: reqwest::Client::new(), model: None };
        let event = worker.event();
        assert_eq!(event["event"], "listening");
        worker.port = event["port"].as_u64().unwrap().try_into().unwrap();
        worker
    }

    /// The next line on stdout.
    pub(crate) fn event(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no event but {line:?}: {}", self.stderr()))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn address(&self) -> (&'static str, u16) {
        ("127.0.0.1", self.port)
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    pub(crate) async fn post(&self, body: &Value) -> reqwest::Response {
        self.client.post(self.url("/v1/images/generations")).json(body).send().await.unwrap()
    }

    /// Requests pictures, which must succeed, and returns the answer.
    pub(crate) async fn generate(&self, body: &Value) -> Value {
        let response = self.post(body).await;
        let (status, answer) = (response.status(), response.json::<Value>().await.unwrap());
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The value of a metric, or 0 if it has none yet.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0.0)
    }

    /// Waits until a metric satisfies `will_do`. Only after minutes is that given up.
    pub(crate) async fn wait_for_metric(&self, name: &str, will_do: impl Fn(f64) -> bool) {
        let started = Instant::now();
        while !will_do(self.metric(name).await) {
            assert!(started.elapsed() < Duration::from_mins(3), "{name} stays at {}", self.metric(name).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends a request on a connection of its own, and waits until the engine works on it. Aborting the task closes the connection.
    pub(crate) async fn start(&self, body: &Value) -> JoinHandle<reqwest::Response> {
        let request = reqwest::Client::new().post(self.url("/v1/images/generations")).json(body);
        let task = tokio::spawn(async { request.send().await.unwrap() });
        self.wait_for_metric("sdw_requests_running", |value| value > 0.0).await;
        assert!(!task.is_finished());
        task
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Whether the process has ended.
    pub(crate) fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Closes the worker's stdin.
    pub(crate) fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Closes the reading end of the worker's stderr.
    pub(crate) fn close_stderr(&mut self) {
        drop(self.child.stderr.take());
    }

    /// Kills the worker, and returns the rest of its stderr.
    pub(crate) fn stderr(&mut self) -> String {
        let _ = self.child.kill();
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Draws requests side by side on `worker`, and compares each with what `single` draws of it alone. Returns how many passes those side by
/// side took, and of how many pictures' steps.
pub(crate) async fn compare_batches(single: &Worker, worker: Worker, requests: &[Value]) -> (f64, f64) {
    let worker = Arc::new(worker);
    let client = |request: &Value| {
        let (worker, request) = (Arc::clone(&worker), request.clone());
        tokio::spawn(async move { worker.generate(&request).await["data"].clone() })
    };
    let clients: Vec<_> = requests.iter().map(client).collect();
    for (client, request) in clients.into_iter().zip(requests) {
        assert!(client.await.unwrap() == single.generate(request).await["data"], "{request}");
    }
    (worker.metric("sdw_batch_size_count").await, worker.metric("sdw_batch_size_sum").await)
}

/// The smallest real request.
pub(crate) fn small(prompt: &str) -> Value {
    steps(prompt, 2)
}

/// A request that takes long enough to be observed while it runs.
pub(crate) fn long(prompt: &str) -> Value {
    steps(prompt, 1000)
}

/// A small request with so many steps. It names every setting for which models have defaults.
pub(crate) fn steps(prompt: &str, steps: u32) -> Value {
    json!({ "prompt": prompt, "steps": steps, "seed": 1, "size": "64x64", "guidance_scale": 4, "sampler": "ddim", "schedule": "default" })
}

/// The picture in an answer's base64.
pub(crate) fn picture(data: &Value) -> image::DynamicImage {
    image::load_from_memory(&bytes(data)).unwrap()
}

/// The file in an answer's base64.
pub(crate) fn bytes(data: &Value) -> Vec<u8> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    BASE64_STANDARD.decode(data["b64_json"].as_str().unwrap()).unwrap()
}
