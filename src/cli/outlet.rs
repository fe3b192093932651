//! stdout and stderr, which may be pipes that nobody reads, or files on a full disk: neither stops a worker.

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

/// How long a line may wait for whoever holds the stream to make room for it.
const GRACE: Duration = Duration::from_secs(1);

static STDOUT: LazyLock<Outlet> = LazyLock::new(|| Outlet::new(|| Box::new(io::stdout())));
static STDERR: LazyLock<Outlet> = LazyLock::new(|| Outlet::new(|| Box::new(io::stderr())));

/// A stream that a thread of its own writes to.
#[derive(Debug)]
pub struct Outlet {
    open: fn() -> Box<dyn Write>,
    queue: Sender<Item>,
    is_stuck: AtomicBool,
}

#[derive(Debug)]
enum Item {
    Line(String),
    /// Answered once everything before it is written, with the first error since the last.
    Flush(Sender<io::Result<()>>),
}

/// Where programs read what the worker says.
#[must_use]
pub fn stdout() -> &'static Outlet {
    &STDOUT
}

/// Where people read what the worker says.
#[must_use]
pub fn stderr() -> &'static Outlet {
    &STDERR
}

/// Waits until what a command printed on stdout is written. A reader that closed its end has read what it wanted.
///
/// # Errors
/// When it cannot be written, or nobody makes room for it in time.
pub fn printed() -> Result<(), Failure> {
    match stdout().flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output { path: "stdout".into(), source: error }),
        _ => Ok(()),
    }
}

impl Outlet {
    fn new(open: fn() -> Box<dyn Write>) -> Self {
        let (queue, items) = channel();
        // Where the system refuses a thread, nobody holds the other end of the queue.
        let _ = Builder::new().name("outlet".to_owned()).spawn(move || write_all(&mut *open(), &items));
        Self { open, queue, is_stuck: AtomicBool::new(false) }
    }

    /// Writes a line, as soon as there is room for it.
    pub fn line(&self, text: impl Into<String>) {
        if let Err(SendError(Item::Line(line))) = self.queue.send(Item::Line(text.into() + "\n")) {
            let _ = (self.open)().write_all(line.as_bytes());
        }
    }

    /// Waits for a while until all lines are written.
    ///
    /// # Errors
    /// When one could not be written, or nobody makes room for it.
    pub fn flush(&self) -> io::Result<()> {
        let (sender, written) = channel();
        if self.queue.send(Item::Flush(sender)).is_err() {
            return (self.open)().flush();
        }
        // Whoever did not read in all that time is not waited for again.
        let grace = if self.is_stuck.load(Ordering::Relaxed) { Duration::ZERO } else { GRACE };
        written.recv_timeout(grace).unwrap_or_else(|_| {
            self.is_stuck.store(true, Ordering::Relaxed);
            Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads it, and it has no more room"))
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
