//! The pools of a home: each is opened, served, lost and found again on its own, and none waits for another.

use std::collections::btree_map::Entry;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::local::{PoolState, Shared};
use super::patient::Patient;
use super::{Changed, Health, LocalHome, PoolReport, SpaceLimits};
use crate::os::{Os, Stopwatch};
use crate::pool::{Cloning, FirstUse, Pool};
use crate::types::{Error, Kind, NodeId, PoolId, PoolName, Result};

/// How long the start waits for a pool whose disk does not answer.
const OPENING: Duration = Duration::from_secs(10);
/// How long a pool may take to say how it is, or to be opened, before it counts as one that does not answer.
pub(super) const ANSWERING: Duration = Duration::from_secs(2);
/// The pauses between two tries to open a pool, or to find it again: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How long a pool that went away may go unnoticed, where nobody asks for it.
const LOOKING: Duration = Duration::from_secs(5);

/// How a pool is opened: called until it succeeds. A new one is made at the start only.
pub type OpenPool = Arc<dyn Fn(FirstUse) -> Result<Arc<dyn Pool>> + Send + Sync>;

/// A pool a home is to serve.
#[derive(Clone)]
pub struct ConfiguredPool {
    /// What people call it.
    pub name: PoolName,
    /// Where it is, for messages.
    pub place: String,
    /// Its id, where this node served it before: then no pool is made in its stead.
    pub known: Option<PoolId>,
    /// What may be given out.
    pub limits: SpaceLimits,
    /// How it is opened.
    pub open: OpenPool,
}

/// How one configured pool is, whether it was opened or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolCondition {
    /// What people call it.
    pub name: PoolName,
    /// Where it is.
    pub place: String,
    /// Its id, once it is known.
    pub id: Option<PoolId>,
    /// How it is.
    pub health: Health,
}

/// A configured pool, opened or not yet.
pub(super) struct Slot {
    pub(super) name: PoolName,
    place: String,
    known: Option<PoolId>,
    limits: SpaceLimits,
    open: Option<OpenPool>,
    state: OnceLock<PoolState>,
    opening: Patient<Result<(), (Kind, String)>>,
    reporting: Patient<Result<PoolReport, (Kind, String)>>,
    retry: Mutex<Retry>,
}

/// When the next try is due.
struct Retry {
    since: Stopwatch,
    pause: Duration,
    /// Why the last one failed; `None` while there was none.
    failed: Option<(Kind, String)>,
}

impl Slot {
    pub(super) fn new(configured: ConfiguredPool) -> Self {
        let ConfiguredPool { name, place, known, limits, open } = configured;
        Self { open: Some(open), ..Self::empty(name, place, known, limits) }
    }

    /// Of a pool that is open.
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

    /// Its id, as far as it is known.
    pub(super) fn id(&self) -> Option<PoolId> {
        self.state().map(|state| state.pool.identity().id).or(self.known)
    }

    /// Why it is not open.
    pub(super) fn not_open(&self, node: &NodeId) -> Error {
        let (kind, reason) = match &self.retry().failed {
            Some((kind, reason)) => (*kind, reason.clone()),
            None => (Kind::Unavailable, "it is being opened".to_owned()),
        };
        debug!(pool = %self.name, ?kind, "asked for while it is not open");
        Error::new(
            Kind::Unavailable,
            format!(
                "pool {} at {} on node {node} is not served: {reason}. The driver tries to open it again and again",
                self.name, self.place
            ),
        )
    }

    /// Whether the open pool is there; one that is not is looked for soon.
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

    fn retry(&self) -> std::sync::MutexGuard<'_, Retry> {
        self.retry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in how a try ended; true when that is news.
    fn tried(&self, outcome: &Result<(), (Kind, String)>) -> bool {
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

impl LocalHome {
    /// Takes charge of pools, each on its own: one that cannot be opened keeps no other from being served. It is tried
    /// again by [`LocalHome::find_pools`].
    ///
    /// # Errors
    /// Of the first pool, where none can be opened and no waiting would change that; `InvalidArgument` for two pools of
    /// one name.
    pub fn start(os: Os, node: NodeId, pools: Vec<ConfiguredPool>) -> Result<Self> {
        let home = Self::of_slots(os, node, pools.into_iter().map(Slot::new).collect())?;
        let (tell, told) = mpsc::channel();
        for index in 0..home.shared.slots.len() {
            let (shared, tell) = (Arc::clone(&home.shared), tell.clone());
            let begun = thread::Builder::new().name("open".to_owned()).spawn(move || {
                if let Some(slot) = shared.slots.get(index) {
                    let first = slot.known.map_or(FirstUse::Make, |known| FirstUse::Wait(Some(known)));
                    let opened = shared.try_open(index, first, OPENING);
                    slot.tried(&opened);
                }
                // Nobody listens any more when another pool kept the process from starting.
                let _ = tell.send(());
            });
            begun.map_err(|error| Error::new(Kind::Internal, "no thread to open a pool with").because(error))?;
        }
        drop(tell);
        while told.recv().is_ok() {}
        let shared = &home.shared;
        let nothing = !shared.slots.is_empty() && shared.slots.iter().all(|slot| slot.state().is_none());
        let failed: Vec<_> = shared.slots.iter().filter_map(|slot| slot.retry().failed.clone()).collect();
        let waits = |kind: Kind| matches!(kind, Kind::Unavailable | Kind::Timeout);
        if nothing
            && !failed.iter().any(|(kind, _)| waits(*kind))
            && let Some((kind, reason)) = failed.into_iter().next()
        {
            return Err(Error::new(kind, reason));
        }
        for slot in shared.slots.iter().filter(|slot| slot.state().is_none()) {
            error!(pool = %slot.name, "{}", slot.not_open(&shared.node));
        }
        Ok(home)
    }

    /// Tries the pools that are not served and whose next try is due: those that were never opened, and those that went
    /// away. Returns how long the next try is off, and whether a pool is served now that was not; each try has a thread of
    /// its own where it does not end at once.
    pub fn find_pools(&self) -> (Duration, Changed) {
        let (mut next, mut changed) = (LOOKING, Changed::No);
        for (index, slot) in self.shared.slots.iter().enumerate() {
            let left = {
                let retry = slot.retry();
                retry.pause.saturating_sub(retry.since.elapsed())
            };
            if !left.is_zero() {
                next = next.min(left);
                continue;
            }
            let outcome = match slot.state() {
                // A directory that is empty now may be a mount point whose disk is on its way.
                None => self.shared.try_open(index, FirstUse::Wait(slot.known), ANSWERING),
                Some(_) => self.shared.try_find(index),
            };
            let news = slot.tried(&outcome);
            match outcome {
                Ok(()) if news => {
                    info!(pool = %slot.name, place = slot.place, "pool is served");
                    changed = Changed::Yes;
                }
                Err((_, reason)) if news => error!(pool = %slot.name, place = slot.place, reason, "pool is not served"),
                _ => {}
            }
        }
        (next, changed)
    }

    /// How every configured pool is. One that does not answer costs no other its answer.
    #[must_use]
    pub fn conditions(&self) -> Vec<PoolCondition> {
        let shared = &self.shared;
        let of = |(index, slot): (usize, &Slot)| PoolCondition {
            name: slot.name.clone(),
            place: slot.place.clone(),
            id: slot.id(),
            health: shared.health_of(index, slot),
        };
        shared.slots.iter().enumerate().map(of).collect()
    }

    /// Every configured pool in words, for the line that says what is served.
    #[must_use]
    pub fn described(&self) -> Vec<String> {
        let in_words = |(slot, condition): (&Slot, PoolCondition)| match condition.health {
            Health::Served(report) => {
                let cloning = match slot.state().map(|state| state.pool.abilities().cloning) {
                    Some(Cloning::Reflink { .. }) => "reflink",
                    Some(Cloning::Copy) | None => "copy",
                };
                let (kind, place, room) = (&report.kind, &report.place, &report.room);
                format!("{} ({kind} in {place}, {cloning}, {} of {} free)", slot.name, room.available, room.total)
            }
            Health::Quarantined(_) => format!("{} (in {}, in quarantine)", slot.name, slot.place),
            Health::Failing(_) => format!("{} (in {}, not served)", slot.name, slot.place),
        };
        self.shared.slots.iter().zip(self.conditions()).map(in_words).collect()
    }
}

impl Shared {
    /// Opens a pool and takes it in; `limit` is how long that may take before somebody else has to look again.
    fn try_open(self: &Arc<Self>, index: usize, first: FirstUse, limit: Duration) -> Result<(), (Kind, String)> {
        let (shared, plain) = (Arc::clone(self), |error: Error| (error.kind(), error.chain()));
        let Some(slot) = self.slots.get(index) else { return Ok(()) };
        let Some(open) = slot.open.clone() else { return Ok(()) };
        let opening = move || {
            let pool = open(first).map_err(plain)?;
            shared.take_in(index, pool).map_err(plain)
        };
        slot.opening.ask("opening it", limit, opening).map_err(plain)?
    }

    /// Sweeps a pool, reads its records into its ledger, and serves it. The copies a former life began are entered before
    /// it is served, so that nobody attaches what they read.
    pub(super) fn take_in(self: &Arc<Self>, index: usize, pool: Arc<dyn Pool>) -> Result<()> {
        let Some(slot) = self.slots.get(index) else { return Ok(()) };
        let identity = pool.identity().clone();
        let entering = || self.entering.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two copies the second is found out, whichever is read first.
        match entering().entry(identity.id) {
            Entry::Vacant(vacant) => vacant.insert(identity.place.clone()),
            Entry::Occupied(other) => {
                return Err(Error::new(
                    Kind::InvalidArgument,
                    format!(
                        "{} has the id {} of another pool here, at {}: one is a copy of the other; remove the copy",
                        identity.place,
                        identity.id,
                        other.get()
                    ),
                ));
            }
        };
        // What cannot be swept has no name and is in nobody's way; doctor lists it.
        if let Err(error) = pool.sweep() {
            error!(pool = %identity.name, error = %error.chain(), "something that was removed before is still there");
        }
        let state = PoolState::new(pool, slot.limits);
        let read = if state.pool.quarantined().is_none() { self.read_in(&state) } else { Ok(Vec::new()) };
        let copies = read.inspect_err(|_| drop(entering().remove(&identity.id)))?;
        self.go_on(copies);
        // Only this sets it, and a slot that has it is not opened again.
        let _ = slot.state.set(state);
        Ok(())
    }

    /// Looks whether an open pool is there, and takes it back when it was away.
    fn try_find(self: &Arc<Self>, index: usize) -> Result<(), (Kind, String)> {
        let (shared, plain) = (Arc::clone(self), |error: Error| (error.kind(), error.chain()));
        let Some(slot) = self.slots.get(index) else { return Ok(()) };
        let finding = move || {
            let Some(state) = shared.slots.get(index).and_then(Slot::state) else { return Ok(()) };
            if state.pool.present().is_ok() && !state.to_read.load(Ordering::SeqCst) {
                return Ok(());
            }
            state.pool.find_again().map_err(plain)?;
            state.to_read.store(true, Ordering::SeqCst);
            // Its records may be those of an earlier day; what they say is counted before room is given out.
            if state.pool.quarantined().is_none() {
                let copies = shared.read_in(state).map_err(plain)?;
                shared.go_on(copies);
            }
            state.to_read.store(false, Ordering::SeqCst);
            warn!(pool = %state.pool.identity().name, "a pool that was away is there again");
            Ok(())
        };
        slot.opening.ask("looking for it", ANSWERING, finding).map_err(plain)?
    }

    fn health_of(self: &Arc<Self>, index: usize, slot: &Slot) -> Health {
        let Some(state) = slot.state() else { return Health::Failing(slot.not_open(&self.node).chain()) };
        if let Some(since) = state.pool.quarantined() {
            return Health::Quarantined(since);
        }
        let (shared, plain) = (Arc::clone(self), |error: Error| (error.kind(), error.chain()));
        let report = slot.reporting.ask("telling how it is", ANSWERING, move || {
            let state = shared.slots.get(index).and_then(Slot::state);
            let state = state.ok_or_else(|| (Kind::Unavailable, "it is being opened".to_owned()))?;
            shared.report_one(state).map_err(plain)
        });
        match report.map_err(|error| error.context(format!("pool {} at {} does not answer", slot.name, slot.place))) {
            Ok(Ok(report)) => Health::Served(Box::new(report)),
            Ok(Err((_, reason))) => Health::Failing(reason),
            Err(error) => Health::Failing(error.chain()),
        }
    }
}
