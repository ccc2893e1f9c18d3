//! The reserved space of a pool (docs/design.md section 9). In memory only: rebuilt from the records at start.
//!
//! There are two figures for each object. *Reserved* is the most that it may take; the pool's size limits the sum.
//! *Promised* is the part that the filesystem has not yet allocated, and is kept free. It shrinks when an image is
//! written or its sharing ends, and grows when a thin image is discarded. It is counted again when the count is old,
//! and before a request is rejected because of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::SpaceLimits;
use crate::os::Stopwatch;
use crate::pool::{FreeSpace, Object, Pool};
use crate::types::{Bytes, Error, Failure, Kind, MIB, Provisioning, Result};

/// Fewer free inodes than this are never used: a volume takes three.
const MIN_INODES_FREE: u64 = 64;

/// How many images are counted again whenever the available space is requested.
const FEW_DEBTORS: usize = 256;

/// An older count is made again before space is reserved.
const STALE: Duration = Duration::from_secs(10);

/// The ledger of one pool.
pub(super) struct Ledger {
    pool: Arc<dyn Pool>,
    limits: SpaceLimits,
    entries: Mutex<HashMap<Object, Entry>>,
    counted: Mutex<Stopwatch>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    reserved: Bytes,
    promised: Bytes,
    debt: Debt,
}

impl Entry {
    /// Whether the unallocated part of its reservation may have changed by now.
    fn owes(&self) -> bool {
        match self.debt {
            Debt::None | Debt::Overcommitted => false,
            Debt::Unallocated => true,
            Debt::Shared => self.promised > Bytes::ZERO,
        }
    }
}

/// How much of an object's reservation the filesystem has not allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Debt {
    /// None: everything is allocated and not shared.
    None,
    /// The part that is not allocated yet (thin images, running copies).
    Unallocated,
    /// The part that is shared with another image and needs new space when either is written.
    Shared,
    /// None, whatever is missing: a thin image of an overcommitted pool has no guaranteed space.
    Overcommitted,
}

/// The space that an object may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// The most it can take.
    pub(super) size: Bytes,
    /// How its reservation counts once the object exists.
    pub(super) debt: Debt,
}

/// Sums over a ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Sum of all reservations.
    pub(super) reserved: Bytes,
    /// Sum of all reserved and not yet allocated bytes.
    pub(super) promised: Bytes,
    /// Sum of the sizes of volumes.
    pub(super) provisioned: Bytes,
    /// Number of volumes.
    pub(super) volumes: u64,
    /// Number of snapshots.
    pub(super) snapshots: u64,
}

/// A reservation for an object that is being created. It is released when dropped, except after [`Reservation::keep`]
/// or [`Reservation::settle`].
pub(super) struct Reservation<'a> {
    ledger: &'a Ledger,
    object: Object,
    before: Option<Entry>,
    debt: Debt,
    kept: Kept,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Yes,
    NotYet,
}

impl Ledger {
    /// An empty ledger.
    pub(super) fn new(pool: Arc<dyn Pool>, limits: SpaceLimits) -> Self {
        Self { pool, limits, entries: Mutex::default(), counted: Mutex::new(Stopwatch::start()) }
    }

    /// How a reservation counts for a provisioning.
    pub(super) fn debt_of(&self, provisioning: Provisioning, otherwise: Debt) -> Debt {
        match provisioning {
            Provisioning::Thin if !self.limits.overcommit.is_honest() => Debt::Overcommitted,
            Provisioning::Thin if otherwise == Debt::None => Debt::Unallocated,
            Provisioning::Thin | Provisioning::Thick => otherwise,
        }
    }

    /// Registers an object found at start; its unallocated part is counted from its image.
    pub(super) fn enter(&self, object: Object, claim: Claim) {
        let promised = self.owed(object, claim);
        self.lock().insert(object, Entry { reserved: claim.size, promised, debt: claim.debt });
    }

    /// Whether an object is registered: created here, found at start, or being created.
    pub(super) fn has(&self, object: Object) -> bool {
        self.lock().contains_key(&object)
    }

    /// Removes an object.
    pub(super) fn forget(&self, object: Object) {
        self.lock().remove(&object);
    }

    /// Reserves space for an object, new or growing, if it fits.
    ///
    /// # Errors
    /// `NoCapacity`, with the requested and the available space.
    pub(super) fn reserve(&self, object: Object, claim: Claim) -> Result<Reservation<'_>> {
        if self.stale() {
            self.count_again();
        }
        match self.try_reserve(object, claim) {
            Err(error) if error.kind() == Kind::NoCapacity && self.count_again() => self.try_reserve(object, claim),
            result => result,
        }
    }

    fn stale(&self) -> bool {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > STALE
    }

    fn try_reserve(&self, object: Object, claim: Claim) -> Result<Reservation<'_>> {
        let mut entries = self.lock();
        // Under the lock: a reservation removed by `keep` and the space its image took are then seen together.
        let room = self.pool.room()?;
        let before = entries.get(&object).copied();
        let more = claim.size.saturating_sub(before.map_or(Bytes::ZERO, |entry| entry.reserved));
        let available = self.available_in(&room, &entries, claim.debt);
        if more > available {
            let identity = self.pool.identity();
            return Err(Error::new(
                Kind::NoCapacity,
                format!(
                    "pool {} on {} has {available} available for new volumes, but {object} needs {more}: free or add space, lower minFree ({}) or raise overcommit ({}) of that pool",
                    identity.name, identity.home, self.limits.min_free, self.limits.overcommit
                ),
            ));
        }
        // Until the space is allocated, all of it is promised.
        let owed = if claim.debt == Debt::Overcommitted { Bytes::ZERO } else { more };
        let promised = before.map_or(Bytes::ZERO, |entry| entry.promised).saturating_add(owed);
        entries.insert(object, Entry { reserved: claim.size, promised, debt: claim.debt });
        Ok(Reservation { ledger: self, object, before, debt: claim.debt, kept: Kept::NotYet })
    }

    /// The available space for new volumes of a provisioning; never negative.
    ///
    /// # Errors
    /// `Internal` when statfs fails.
    pub(super) fn available(&self, provisioning: Provisioning) -> Result<Bytes> {
        let debt = self.debt_of(provisioning, Debt::None);
        let entries = self.lock();
        let room = self.pool.room()?;
        Ok(self.available_in(&room, &entries, debt))
    }

    fn available_in(&self, room: &FreeSpace, entries: &HashMap<Object, Entry>, debt: Debt) -> Bytes {
        let min_free = self.limits.min_free.of(room.total);
        let totals = sum(entries);
        let by_filesystem = room.available.saturating_sub(min_free).saturating_sub(totals.promised);
        let by_promise =
            self.limits.overcommit.times(room.total.saturating_sub(min_free)).saturating_sub(totals.reserved);
        let no_inodes = match (room.inodes, room.inodes_free) {
            (Some(all), Some(free)) => free < MIN_INODES_FREE.max(all / 100).min(all / 2),
            _ => false,
        };
        // Promised space must exist, with minFree on top; an overcommitted thin volume only needs some space at first.
        let least = if debt == Debt::Overcommitted { by_promise } else { by_filesystem.min(by_promise) };
        let enough = by_filesystem > Bytes::ZERO && !no_inodes;
        if enough { Bytes::new(least.get() / MIB * MIB) } else { Bytes::ZERO }
    }

    /// Sums of all entries.
    pub(super) fn totals(&self) -> Totals {
        sum(&self.lock())
    }

    /// [`Ledger::count_again`] for a figure that is requested often. With many images it counts only when the last
    /// count is [`STALE`], as for a reservation.
    pub(super) fn count_lately(&self) {
        let debtors = self.lock().values().filter(|entry| entry.owes()).count();
        if debtors <= FEW_DEBTORS || self.stale() {
            self.count_again();
        }
    }

    /// Counts again how much of their reservations the images have not allocated; true when the sum shrank. Unallocated
    /// space is counted in both directions: a discard frees allocated space.
    pub(super) fn count_again(&self) -> bool {
        *self.counted.lock().unwrap_or_else(PoisonError::into_inner) = Stopwatch::start();
        let debtors: Vec<(Object, Entry)> =
            self.lock().iter().filter(|(_, entry)| entry.owes()).map(|(object, entry)| (*object, *entry)).collect();
        let mut shrank = false;
        for (object, entry) in debtors {
            let owed = self.owed(object, Claim { size: entry.reserved, debt: entry.debt });
            if let Some(now) = self.lock().get_mut(&object)
                && now.reserved == entry.reserved
                && (owed < now.promised || entry.debt == Debt::Unallocated)
            {
                shrank |= owed < now.promised;
                now.promised = owed;
            }
        }
        shrank
    }

    /// What an image has not allocated of its claim; all of it when this cannot be determined.
    fn owed(&self, object: Object, claim: Claim) -> Bytes {
        match claim.debt {
            Debt::None | Debt::Overcommitted => Bytes::ZERO,
            Debt::Unallocated => {
                let facts = self.pool.facts(object).ok().flatten();
                claim.size.saturating_sub(facts.map_or(Bytes::ZERO, |facts| facts.allocated))
            }
            Debt::Shared => {
                let exclusive = self.pool.extents(object).map_or(0, |extents| extents.exclusive);
                claim.size.saturating_sub(Bytes::new(exclusive))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Object, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation<'_> {
    /// The result of creating the object: the entry is kept if the object exists, and released if nothing exists. If
    /// that is unknown, all of it stays promised until a retry registers what it finds, or a delete removes the entry.
    pub(super) fn settle(self, made: Result<(), Failure>) -> Result<(), Failure> {
        match &made {
            Ok(()) => self.keep(),
            Err(Failure::Clean(_)) => {}
            Err(Failure::Dirty(_)) => self.doubt(),
        }
        made
    }

    /// It is unknown whether the object exists: all of it stays promised.
    pub(super) fn doubt(mut self) {
        self.kept = Kept::Yes;
    }

    /// The object exists: its entry stays, and the space that the image has allocated is no longer promised.
    pub(super) fn keep(mut self) {
        self.kept = Kept::Yes;
        let mut claim = None;
        if let Some(entry) = self.ledger.lock().get(&self.object) {
            claim = Some(Claim { size: entry.reserved, debt: self.debt });
        }
        if let Some(claim) = claim {
            let owed = self.ledger.owed(self.object, claim);
            if let Some(entry) = self.ledger.lock().get_mut(&self.object) {
                entry.promised = owed;
            }
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if self.kept == Kept::NotYet {
            let mut entries = self.ledger.lock();
            match self.before {
                Some(before) => entries.insert(self.object, before),
                None => entries.remove(&self.object),
            };
        }
    }
}

fn sum(entries: &HashMap<Object, Entry>) -> Totals {
    let mut totals = Totals::default();
    for (object, entry) in entries {
        totals.reserved = totals.reserved.saturating_add(entry.reserved);
        totals.promised = totals.promised.saturating_add(entry.promised);
        match object {
            Object::Volume(_) => {
                totals.volumes += 1;
                totals.provisioned = totals.provisioned.saturating_add(entry.reserved);
            }
            Object::Snapshot(_) => totals.snapshots += 1,
        }
    }
    totals
}
