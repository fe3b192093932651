//! The number of compute threads, as asked for or as the process may use. The tests count them by name from outside.

use std::{
    fs,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::support::{Worker, binary};

fn threads(pid: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path().join("comm"));
    tasks.filter(|name| fs::read_to_string(name).is_ok_and(|name| name.starts_with("sd-worker-"))).count()
}

/// The number of a ready worker's threads, and its log.
fn ready(command: Command, args: &[&str]) -> (usize, String) {
    let mut worker = Worker::listening_as(command, args);
    assert_eq!(worker.event()["event"], "ready");
    let count = threads(worker.pid());
    worker.signal("TERM");
    worker.wait();
    (count, worker.stderr())
}

#[test]
fn a_number_of_threads_can_be_asked_for() {
    let (count, log) = ready(binary(), &["--threads", "5"]);
    assert_eq!(count, 5);
    assert!(log.contains("threads=5"), "{log}");
    let mut command = binary();
    command.env("SD_WORKER_THREADS", "3");
    assert_eq!(ready(command, &[]).0, 3);
}

/// More threads than there is work for would wait for each other.
#[test]
fn a_number_far_beyond_the_cpus_is_bounded() {
    let (count, log) = ready(binary(), &["--threads", "1024"]);
    let most = 8 * std::thread::available_parallelism().unwrap().get();
    assert_eq!(count, most.min(1024));
    assert!(most >= 1024 || log.contains("1024 threads are more than the CPUs of this process can serve"), "{log}");
}

#[test]
fn without_a_number_there_are_as_many_as_the_process_may_use() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let first = allowed.split([',', '-']).next().unwrap();
    let mut command = Command::new("taskset");
    command.args(["-c", first, env!("CARGO_BIN_EXE_sd-worker")]).stdin(Stdio::null()).env_remove("RAYON_NUM_THREADS");
    let (count, log) = ready(command, &[]);
    assert_eq!(count, 1);
    assert!(log.contains("threads=1 "), "{log}");
}

#[test]
fn a_picture_without_a_server_takes_as_many() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = binary();
    command.args(["generate", "a", "--steps", "1000", "--threads", "7", "-o"]).arg(folder.path().join("a.png"));
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    let mut count = 0;
    while count < 7 && started.elapsed() < Duration::from_mins(1) && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(5));
        count = threads(child.id());
    }
    let _ = child.kill();
    child.wait().unwrap();
    assert_eq!(count, 7);
}
