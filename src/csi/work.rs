//! Runs a call's work on a thread of its own. tonic drops a handler's future when its client goes away; the work does
//! not notice: it owns its locks, ends, and says how it ended in the log.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tonic::{Request, Response, Status};
use tracing::{Span, debug, error, info, warn};

use super::call::Begun;
use super::rpc::Rpc;
use super::status;
use crate::types::{Failure, Kind};

/// The works under way. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub(super) struct Works {
    running: Arc<watch::Sender<usize>>,
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
        Self { running: Arc::new(watch::Sender::new(0)) }
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
        let message = request.into_inner();
        let (tell, told) = oneshot::channel();
        let (span, counted) = (Span::current(), self.count());
        tokio::task::spawn_blocking(move || {
            let _counted = counted;
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
        told.await.unwrap_or_else(|_| Err(status::panicked(rpc))).map(Response::new)
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
        Kind::NoCapacity | Kind::InUse | Kind::Precondition | Kind::Unavailable | Kind::Timeout => {
            warn!(?kind, left, "{said}");
        }
        Kind::AlreadyExists | Kind::InvalidArgument | Kind::OutOfRange | Kind::Unsupported => {
            info!(?kind, left, "{said}");
        }
        Kind::NotFound | Kind::Busy => debug!(?kind, left, "{said}"),
    }
}
