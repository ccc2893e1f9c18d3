//! Runs a call's work on a thread of its own. tonic drops a handler's future when its client disconnects. The work is
//! not affected: it owns its locks, finishes, and logs its result.

use std::time::Duration;

use tonic::{Request, Response, Status};
use tracing::{debug, error, info, warn};

use super::call::Begun;
use super::concern::Concern;
use super::rpc::Rpc;
use super::status;
use crate::types::{Failure, Kind};
use crate::wire::{self, Ended};

/// WorkerPool at once, including those whose caller went away or whose answer was not yet read; one more is refused, and so
/// is one of a pool that has half of them. The runtime has threads for twice as many.
pub(super) const MOST_WORKS: usize = 256;

/// The works of this server's calls. Cheap to clone; clones share the count.
#[derive(Clone, Debug)]
pub(crate) struct WorkerPool(wire::WorkerPool);

impl WorkerPool {
    /// Empty.
    pub(crate) fn new() -> Self {
        Self(wire::WorkerPool::new(MOST_WORKS))
    }

    /// Waits until none is left, at most `grace`; returns how many are.
    pub(crate) async fn ended(&self, grace: Duration) -> usize {
        self.0.ended(grace).await
    }

    /// Decodes, does and encodes one call on its own thread.
    pub(super) async fn run<M, R, E, F>(&self, rpc: Rpc, request: Request<M>, work: F) -> Result<Response<R>, Status>
    where
        M: Concern + Send + 'static,
        R: Send + 'static,
        E: Into<Failure>,
        F: FnOnce(M) -> Result<R, E> + Send + 'static,
    {
        let deadline = Begun::mark(&request);
        let slot = self.0.slot(request.get_ref().share()).map_err(|crowd| status::crowded(rpc, &crowd))?;
        let message = request.into_inner();
        let work = move || {
            let answer = work(message).map_err(Into::into);
            answer.map_err(|failure| {
                log(&failure);
                status::of(rpc, &failure)
            })
        };
        let mut response = match self.0.run_in(&slot, rpc.name(), deadline, work).await {
            Ended::Done(answer) => Response::new(answer?),
            Ended::Panicked | Ended::Crowded(_) => return Err(status::panicked(rpc)),
        };
        response.extensions_mut().insert(slot);
        Ok(response)
    }
}

/// Logs a call's error, with its meaning and not its code; nothing else does.
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
