//! The node's only thread that changes the NVMe target. Some changes wait in the kernel, unkillable, under locks of the
//! whole target: a second one would wait too, and its caller would not know for what.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use crate::os::{Os, Stopwatch};
use crate::types::{Error, Kind, Result};

/// States of a job: it runs only if its caller still waits when its turn comes.
const WAITING: u8 = 0;
const STARTED: u8 = 1;
const ABANDONED: u8 = 2;

type Job = Box<dyn FnOnce() + Send>;

/// The running job.
#[derive(Clone, Debug)]
struct Current {
    what: &'static str,
    export: String,
    since: Stopwatch,
}

/// Runs jobs one after another.
#[derive(Debug)]
pub(super) struct Worker {
    os: Os,
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    current: Arc<Mutex<Option<Current>>>,
}

impl Worker {
    pub(super) fn new(os: Os) -> Self {
        Self { os, queue: Mutex::default(), current: Arc::default() }
    }

    /// Runs a job for an export and waits for its result. A job that has begun continues after the limit; one that has
    /// not is dropped.
    ///
    /// # Errors
    /// The job's own; `Busy` at the limit, naming the job that runs; `Internal`.
    pub(super) fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        export: &str,
        limit: Duration,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let state = Arc::new(AtomicU8::new(WAITING));
        let (answer, answered) = mpsc::sync_channel(1);
        let (os, current, own) = (self.os.clone(), Arc::clone(&self.current), Arc::clone(&state));
        let name = export.to_owned();
        let boxed = Box::new(move || {
            if own.compare_exchange(WAITING, STARTED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                return;
            }
            let _listed = os.activity().enter(&format!("nvmet: {what}"), &name, None);
            set(&current, Some(Current { what, export: name.clone(), since: Stopwatch::start() }));
            let result = catch_unwind(AssertUnwindSafe(job));
            set(&current, None);
            if let Ok(result) = result {
                // The caller may have stopped waiting.
                let _ = answer.send(result);
            }
        });
        self.send(boxed)?;
        match answered.recv_timeout(limit) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(Error::new(Kind::Internal, format!("{what} of export {export} ended without a result; retry")))
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let begun =
                    state.compare_exchange(WAITING, ABANDONED, Ordering::SeqCst, Ordering::SeqCst) == Err(STARTED);
                // It may have finished in between.
                answered.try_recv().unwrap_or_else(|_| Err(self.late(what, export, begun, limit)))
            }
        }
    }

    fn late(&self, what: &str, export: &str, begun: bool, limit: Duration) -> Error {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let why = match current {
            _ if begun => format!("{what} of export {export} has not finished after {} s", limit.as_secs()),
            Some(current) => format!(
                "{what} of export {export} has not begun: the NVMe target of this node is busy with `{}` of export {} for {} s",
                current.what,
                current.export,
                current.since.elapsed().as_secs()
            ),
            None => format!("{what} of export {export} has not begun after {} s", limit.as_secs()),
        };
        Error::new(Kind::Busy, format!("{why}; retry (`holdfast doctor` on this node lists what the kernel works on)"))
    }

    fn send(&self, job: Job) -> Result<()> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = match queue.take() {
            Some(sender) => sender,
            None => {
                let (sender, jobs) = mpsc::channel::<Job>();
                let started = thread::Builder::new()
                    .name("nvmet".to_owned())
                    .spawn(move || jobs.into_iter().for_each(|job| job()));
                started.map_err(|error| {
                    Error::new(Kind::Internal, "cannot start the thread for the NVMe target").because(error)
                })?;
                sender
            }
        };
        let sent = sender.send(job);
        *queue = sent.is_ok().then_some(sender);
        sent.map_err(|_| Error::new(Kind::Internal, "the thread for the NVMe target has ended; retry"))
    }
}

fn set(current: &Mutex<Option<Current>>, value: Option<Current>) {
    *current.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_caller_that_cannot_wait_is_told_what_runs_and_its_job_never_begins() {
        let worker = Worker::new(Os::new());
        let (release, released) = mpsc::channel::<()>();
        let stuck = worker.run("disable the namespace", "a", MOMENT, move || {
            released.recv().unwrap();
            Ok(())
        });
        assert_eq!(stuck.unwrap_err().kind(), Kind::Busy);
        let error = worker.run("create", "b", MOMENT, || -> Result<()> { panic!("nobody waits for it") }).unwrap_err();
        assert!(
            error.kind() == Kind::Busy && error.to_string().contains("`disable the namespace` of export a"),
            "{error}"
        );
        let activity = worker.os.activity().list();
        assert!(activity.iter().any(|entry| entry.what == "nvmet: disable the namespace" && entry.target == "a"));
        release.send(()).unwrap();
        assert_eq!(worker.run("create", "b", LONG, || Ok(7)).unwrap(), 7);
        // A job that panics is an error of its caller alone.
        let panicked = worker.run("create", "b", LONG, || -> Result<()> { panic!("on purpose") });
        assert_eq!(panicked.unwrap_err().kind(), Kind::Internal);
        assert_eq!(worker.run("create", "b", LONG, || Ok(8)).unwrap(), 8);
    }
}
