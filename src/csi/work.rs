//! Runs a call's work on a thread of its own. tonic drops a handler's future when its client goes away; the work does
//! not notice: it owns its locks, ends, and says how it ended in the log.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tonic::{Request, Response, Status};
use tracing::{Span, debug, error, info, warn};

use super::call::Begun;
use super::rpc::Rpc;
use super::status;
use crate::types::{Failure, Kind};

/// Works at once, with those whose caller went away and those whose answer was not taken yet; one more is refused. The
/// runtime has threads for twice as many.
pub(super) const MOST_WORKS: usize = 256;

/// The works under way. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub(super) struct Works {
    running: Arc<watch::Sender<usize>>,
    slots: Arc<AtomicUsize>,
}

/// The right to one of [`MOST_WORKS`] works, free when the last clone is dropped: the work has one, its answer another.
#[derive(Clone, Debug)]
pub(super) struct Slot(#[expect(dead_code, reason = "its drop is what it is for")] Arc<Taken>);

#[derive(Debug)]
struct Taken(Arc<AtomicUsize>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One work that counts until it ends.
struct Counted(Arc<watch::Sender<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running = running.saturating_sub(1));
    }
}

impl Works {
    /// None yet.
    pub(super) fn new() -> Self {
        Self { running: Arc::new(watch::Sender::new(0)), slots: Arc::default() }
    }

    fn slot(&self) -> Option<Slot> {
        let taken = Taken(Arc::clone(&self.slots));
        (self.slots.fetch_add(1, Ordering::SeqCst) < MOST_WORKS).then(|| Slot(Arc::new(taken)))
    }

    fn count(&self) -> Counted {
        self.running.send_modify(|running| *running += 1);
        Counted(Arc::clone(&self.running))
    }

    /// Waits until none is left, at most `grace`; how many are.
    pub(super) async fn ended(&self, grace: Duration) -> usize {
        let mut running = self.running.subscribe();
        match tokio::time::timeout(grace, running.wait_for(|running| *running == 0)).await {
            Ok(_) => 0,
            Err(_) => *self.running.borrow(),
        }
    }

    /// Decodes, does and encodes one call on its own thread.
    pub(super) async fn run<M, R, E, F>(&self, rpc: Rpc, request: Request<M>, work: F) -> Result<Response<R>, Status>
    where
        M: Send + 'static,
        R: Send + 'static,
        E: Into<Failure>,
        F: FnOnce(M) -> Result<R, E> + Send + 'static,
    {
        Begun::mark(&request);
        let Some(slot) = self.slot() else { return Err(status::crowded(rpc, MOST_WORKS)) };
        let message = request.into_inner();
        let (tell, told) = oneshot::channel();
        let working = slot.clone();
        let (span, counted) = (Span::current(), self.count());
        tokio::task::spawn_blocking(move || {
            let (_counted, _working) = (counted, working);
            let _in_span = span.enter();
            let ended = catch_unwind(AssertUnwindSafe(|| work(message).map_err(Into::into)));
            let answer = match ended {
                Ok(Ok(response)) => Ok(response),
                Ok(Err(failure)) => {
                    log(&failure);
                    Err(status::of(rpc, &failure))
                }
                Err(panic) => {
                    error!(
                        reason = reason_of(&*panic),
                        "{} panicked; what it began is finished by the next try",
                        rpc.name()
                    );
                    Err(status::panicked(rpc))
                }
            };
            let code = answer.as_ref().err().map_or(tonic::Code::Ok, Status::code);
            if tell.send(answer).is_err() {
                info!(?code, "{} ended after its caller had gone away", rpc.name());
            }
        });
        let mut response = told.await.unwrap_or_else(|_| Err(status::panicked(rpc))).map(Response::new)?;
        response.extensions_mut().insert(slot);
        Ok(response)
    }
}

/// What a panic said.
pub(super) fn reason_of(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no reason")
}

/// The one place that logs a call's error, with its meaning and not its code.
fn log(failure: &Failure) {
    let left = match failure {
        Failure::Clean(_) => "nothing",
        Failure::Dirty(_) => "unfinished work",
    };
    let (said, kind) = (failure.error().chain(), failure.error().kind());
    match kind {
        Kind::Internal | Kind::Corrupt => error!(?kind, left, "{said}"),
        Kind::NoCapacity | Kind::InUse | Kind::Precondition | Kind::Denied | Kind::Unavailable | Kind::Timeout => {
            warn!(?kind, left, "{said}");
        }
        Kind::AlreadyExists | Kind::InvalidArgument | Kind::OutOfRange | Kind::Unsupported => {
            info!(?kind, left, "{said}");
        }
        Kind::NotFound | Kind::Busy => debug!(?kind, left, "{said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_when_work_and_answer_are_done_with_it() {
        let works = Works::new();
        let slots: Vec<_> = (0..MOST_WORKS).map(|_| works.slot().unwrap()).collect();
        let answer = slots[0].clone();
        assert!(works.slot().is_none());
        drop(slots);
        assert_eq!(works.slots.load(Ordering::SeqCst), 1);
        drop(answer);
        assert_eq!(works.slots.load(Ordering::SeqCst), 0);
    }
}
