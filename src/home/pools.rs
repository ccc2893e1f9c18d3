//! The pools of a home node. Each is opened, served, closed and reopened independently, and none waits for another.

use std::collections::btree_map::Entry;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{error, info, warn};

use super::local::Shared;
use super::slot::{ConfiguredPool, Slot};
use super::state::PoolState;
use super::{Changed, Fabric, Health, LocalHome};
use crate::os::Os;
use crate::pool::{Cloning, FirstUse, Pool};
use crate::types::{Error, Kind, NodeId, PoolId, PoolName, Result};

/// How long the start waits for a pool whose disk does not answer.
const OPENING: Duration = Duration::from_secs(10);
/// How long a query or an open of a pool may take before the pool counts as one that does not answer.
pub(super) const ANSWERING: Duration = Duration::from_secs(2);
/// How often a pool without requests is checked, in case it disappeared.
const LOOKING: Duration = Duration::from_secs(5);

/// The state of a configured pool, opened or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolCondition {
    /// The name that users give it.
    pub name: PoolName,
    /// Its location.
    pub place: String,
    /// Its id, once it is known.
    pub id: Option<PoolId>,
    /// Its state.
    pub health: Health,
}

impl LocalHome {
    /// Starts to serve pools, each independently: a pool that cannot be opened does not block the others.
    /// [`LocalHome::find_pools`] tries it again. With a fabric, volumes that are attached to other nodes are exported
    /// again.
    ///
    /// # Errors
    /// The error of the first pool, where no pool can be opened and waiting would not help; `InvalidArgument` for two
    /// pools with the same name.
    pub fn start(os: Os, node: NodeId, pools: Vec<ConfiguredPool>, fabric: Option<Fabric>) -> Result<Self> {
        let home = Self::of_slots(os, node, pools.into_iter().map(Slot::new).collect(), fabric)?;
        let (tell, told) = mpsc::channel();
        for index in 0..home.shared.slots.len() {
            let (shared, tell) = (Arc::clone(&home.shared), tell.clone());
            let begun = thread::Builder::new().name("open".to_owned()).spawn(move || {
                if let Some(slot) = shared.slots.get(index) {
                    let first = slot.known.map_or(FirstUse::Make, |known| FirstUse::Wait(Some(known)));
                    let opened = shared.try_open(index, first, OPENING);
                    slot.tried(&opened);
                }
                // The receiver is gone when another pool's error stopped the start.
                let _ = tell.send(());
            });
            begun.map_err(|error| Error::new(Kind::Internal, "cannot start a thread to open a pool").because(error))?;
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

    /// Tries the pools that are not served and whose next attempt is due: those that were never opened, and those that
    /// disappeared. Returns the time until the next attempt, and whether a pool is served now that was not before. An
    /// attempt that does not end at once continues in its own thread.
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
                // A directory that is empty now may be a mount point whose disk is not mounted yet.
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

    /// The state of every configured pool. A pool that does not answer does not delay the others.
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

    /// Every configured pool as text, for the log line at start.
    #[must_use]
    pub fn described(&self) -> Vec<String> {
        let in_words = |(slot, condition): (&Slot, PoolCondition)| match condition.health {
            Health::Served(report) => {
                let cloning = slot.state().map_or(Cloning::None, |state| state.pool.abilities().cloning).word();
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
    /// Opens a pool and starts to serve it; `limit` is how long the caller waits.
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

    /// Removes incomplete objects of a pool, reads its records into its ledger, and serves it. The copies of an earlier
    /// run are registered before it is served, so that their sources cannot be attached.
    pub(super) fn take_in(self: &Arc<Self>, index: usize, pool: Arc<dyn Pool>) -> Result<()> {
        let Some(slot) = self.slots.get(index) else { return Ok(()) };
        let identity = pool.identity().clone();
        let entering = || self.entering.lock().unwrap_or_else(PoisonError::into_inner);
        // Of two copies of a pool, the second is rejected, whichever is opened first.
        match entering().entry(identity.id) {
            Entry::Vacant(vacant) => vacant.insert(identity.place.clone()),
            Entry::Occupied(other) => {
                return Err(Error::new(
                    Kind::InvalidArgument,
                    format!(
                        "{} has the same id {} as another pool on this node, at {}: one is a copy of the other; remove the copy",
                        identity.place,
                        identity.id,
                        other.get()
                    ),
                ));
            }
        };
        // An object that cannot be removed has no name and blocks nothing; doctor lists it.
        if let Err(error) = pool.sweep() {
            error!(pool = %identity.name, error = %error.chain(), "remnants of deleted objects could not be removed; the next start tries again");
        }
        let state = PoolState::new(pool, slot.limits);
        let read = if state.pool.quarantined().is_none() { self.read_in(&state) } else { Ok(Vec::new()) };
        let copies = read.inspect_err(|_| drop(entering().remove(&identity.id)))?;
        self.go_on(copies);
        // Only this code sets it, and a slot that has it is not opened again.
        let _ = slot.state.set(state);
        Ok(())
    }

    /// Checks whether an open pool is present, and reopens it if it disappeared.
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
            // Its records may be older ones: they are counted before space is reserved.
            if state.pool.quarantined().is_none() {
                let copies = shared.read_in(state).map_err(plain)?;
                shared.go_on(copies);
            }
            state.to_read.store(false, Ordering::SeqCst);
            warn!(pool = %state.pool.identity().name, "a pool that had disappeared is served again");
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
        let report = slot.reporting.ask("reading its state", ANSWERING, move || {
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
