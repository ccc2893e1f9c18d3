//! A configured pool of a home node, opened or not yet, and when it is tried again.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tracing::debug;

use super::patient::Patient;
use super::state::PoolState;
use super::{PoolReport, SpaceLimits};
use crate::os::Stopwatch;
use crate::pool::{FirstUse, Pool};
use crate::types::{Error, Kind, NodeId, PoolId, PoolName, Result};

/// The pauses between two attempts to open or reopen a pool: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Opens a pool: called until it succeeds. A new pool is created only at start.
pub type OpenPool = Arc<dyn Fn(FirstUse) -> Result<Arc<dyn Pool>> + Send + Sync>;

/// A configured pool.
#[derive(Clone)]
pub struct ConfiguredPool {
    /// The name that users give it.
    pub name: PoolName,
    /// Its location, for messages.
    pub place: String,
    /// Its id, if this node served it before: then no new pool is created in its place.
    pub known: Option<PoolId>,
    /// Its space limits.
    pub limits: SpaceLimits,
    /// How it is opened.
    pub open: OpenPool,
}

/// A configured pool, opened or not yet.
pub(super) struct Slot {
    pub(super) name: PoolName,
    pub(super) place: String,
    pub(super) known: Option<PoolId>,
    pub(super) limits: SpaceLimits,
    pub(super) open: Option<OpenPool>,
    pub(super) state: OnceLock<PoolState>,
    pub(super) opening: Patient<Result<(), (Kind, String)>>,
    pub(super) reporting: Patient<Result<PoolReport, (Kind, String)>>,
    retry: Mutex<Retry>,
}

/// When the next attempt is due.
pub(super) struct Retry {
    pub(super) since: Stopwatch,
    pub(super) pause: Duration,
    /// Why the last attempt failed; `None` if none failed.
    pub(super) failed: Option<(Kind, String)>,
}

impl Slot {
    pub(super) fn new(configured: ConfiguredPool) -> Self {
        let ConfiguredPool { name, place, known, limits, open } = configured;
        Self { open: Some(open), ..Self::empty(name, place, known, limits) }
    }

    /// For a pool that is open.
    pub(super) fn opened(pool: &dyn Pool, limits: SpaceLimits) -> Self {
        let identity = pool.identity();
        Self::empty(identity.name.clone(), identity.place.clone(), Some(identity.id), limits)
    }

    fn empty(name: PoolName, place: String, known: Option<PoolId>, limits: SpaceLimits) -> Self {
        Self {
            name,
            place,
            known,
            limits,
            open: None,
            state: OnceLock::new(),
            opening: Patient::default(),
            reporting: Patient::default(),
            retry: Mutex::new(Retry { since: Stopwatch::start(), pause: Duration::ZERO, failed: None }),
        }
    }

    /// The pool, once it is open.
    pub(super) fn state(&self) -> Option<&PoolState> {
        self.state.get()
    }

    /// Its id, if it is known.
    pub(super) fn id(&self) -> Option<PoolId> {
        self.state().map(|state| state.pool.identity().id).or(self.known)
    }

    /// Why it is not open.
    pub(super) fn not_open(&self, node: &NodeId) -> Error {
        let (kind, reason) = match &self.retry().failed {
            Some((kind, reason)) => (*kind, reason.clone()),
            None => (Kind::Unavailable, "it is being opened".to_owned()),
        };
        debug!(pool = %self.name, ?kind, "a request needs a pool that is not open");
        Error::new(
            Kind::Unavailable,
            format!(
                "pool {} at {} on node {node} is not served: {reason}. The driver keeps trying to open it",
                self.name, self.place
            ),
        )
    }

    /// Checks that the open pool is present; if not, it is looked for soon.
    pub(super) fn present(&self, state: &PoolState) -> Result<()> {
        let present = state.pool.present();
        if present.is_err() {
            let mut retry = self.retry();
            if retry.failed.is_none() {
                retry.pause = FIRST_PAUSE;
            }
        }
        present
    }

    pub(super) fn retry(&self) -> std::sync::MutexGuard<'_, Retry> {
        self.retry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the result of an attempt; true when it differs from the last one.
    pub(super) fn tried(&self, outcome: &Result<(), (Kind, String)>) -> bool {
        let mut retry = self.retry();
        retry.since = Stopwatch::start();
        match outcome {
            Ok(()) => {
                retry.pause = LONGEST_PAUSE;
                retry.failed.take().is_some()
            }
            Err(failed) => {
                retry.pause = (retry.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                retry.failed.replace(failed.clone()).as_ref() != Some(failed)
            }
        }
    }
}
