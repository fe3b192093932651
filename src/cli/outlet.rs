//! stdout and stderr. A pipe that nobody reads, or a full disk, does not stop the worker.

use std::{
    io::{self, Write},
    mem,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SendError, Sender, channel},
    },
    thread::Builder,
    time::Duration,
};

use super::Failure;

/// How long a line may wait for a reader to make room.
const GRACE: Duration = Duration::from_secs(1);

static STDOUT: LazyLock<Outlet> = LazyLock::new(|| Outlet::new(|| Box::new(io::stdout())));
static STDERR: LazyLock<Outlet> = LazyLock::new(|| Outlet::new(|| Box::new(io::stderr())));

/// A stream with a thread that writes to it.
#[derive(Debug)]
pub struct Outlet {
    open: fn() -> Box<dyn Write>,
    queue: Sender<Item>,
    is_stuck: AtomicBool,
}

#[derive(Debug)]
enum Item {
    Line(String),
    /// Answered once everything before it is written, with the first error since the last flush.
    Flush(Sender<io::Result<()>>),
}

/// Output for programs.
#[must_use]
pub fn stdout() -> &'static Outlet {
    &STDOUT
}

/// Output for people.
#[must_use]
pub fn stderr() -> &'static Outlet {
    &STDERR
}

/// Waits until a command's output is written. A reader that closes the pipe early has read enough.
///
/// # Errors
/// When the output cannot be written, or its reader makes no room in time.
pub fn printed() -> Result<(), Failure> {
    match stdout().flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output { path: "stdout".into(), source: error }),
        _ => Ok(()),
    }
}

impl Outlet {
    fn new(open: fn() -> Box<dyn Write>) -> Self {
        let (queue, items) = channel();
        // If the system refuses the thread, the queue has no receiver, and lines are written directly.
        let _ = Builder::new().name("outlet".to_owned()).spawn(move || write_all(&mut *open(), &items));
        Self { open, queue, is_stuck: AtomicBool::new(false) }
    }

    /// Writes a line as soon as there is room for it.
    pub fn line(&self, text: impl Into<String>) {
        if let Err(SendError(Item::Line(line))) = self.queue.send(Item::Line(text.into() + "\n")) {
            let _ = (self.open)().write_all(line.as_bytes());
        }
    }

    /// Waits a while until all lines are written.
    ///
    /// # Errors
    /// When a line could not be written, or the reader makes no room.
    pub fn flush(&self) -> io::Result<()> {
        let (sender, written) = channel();
        if self.queue.send(Item::Flush(sender)).is_err() {
            return (self.open)().flush();
        }
        // A reader that has once let the time pass is not waited for again.
        let grace = if self.is_stuck.load(Ordering::Relaxed) { Duration::ZERO } else { GRACE };
        written.recv_timeout(grace).unwrap_or_else(|_| {
            self.is_stuck.store(true, Ordering::Relaxed);
            Err(io::Error::new(io::ErrorKind::TimedOut, "its reader makes no room for more"))
        })
    }
}

fn write_all(stream: &mut dyn Write, items: &Receiver<Item>) {
    let mut outcome = Ok(());
    for item in items {
        match item {
            Item::Line(line) => outcome = outcome.and(stream.write_all(line.as_bytes()).and_then(|()| stream.flush())),
            Item::Flush(sender) => drop(sender.send(mem::replace(&mut outcome, Ok(())))),
        }
    }
}
