//! What a pool has promised (docs/design.md section 9). In memory only: rebuilt from the records at start.
//!
//! Two figures for each object. *Reserved* is what it may come to, and bounds the sum of all by the pool's size.
//! *Promised* is the part of it the filesystem has not yet taken, and is kept free. It shrinks as an image is written
//! or its sharing ends, and grows when a thin image is discarded: it is counted again when the count is old, and before
//! anything is refused for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::SpaceLimits;
use crate::os::Stopwatch;
use crate::pool::{Object, Pool, Room};
use crate::types::{Bytes, Error, Failure, Kind, MIB, Provisioning, Result};

/// Free inodes under this are kept: a volume takes three.
const MIN_INODES_FREE: u64 = 64;

/// So many images are looked at whenever the available space is asked for.
const FEW_DEBTORS: usize = 256;

/// A count older than this is made again before room is given out.
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
    /// Whether its image may have kept more or less of the promise by now.
    fn owes(&self) -> bool {
        match self.debt {
            Debt::None | Debt::UsersWord => false,
            Debt::Unallocated => true,
            Debt::Shared => self.promised > Bytes::ZERO,
        }
    }
}

/// How far an image's promise has been kept by the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Debt {
    /// All of it: allocated and its own.
    None,
    /// What is not allocated yet (thin images, copies under way).
    Unallocated,
    /// What is shared with another image and costs new space when either is written.
    Shared,
    /// Nothing, whatever is missing: a thin image of an overcommitted pool is the user's word, not ours.
    UsersWord,
}

/// What an object may come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// The most it can take.
    pub(super) size: Bytes,
    /// How its promise stands once it is made.
    pub(super) debt: Debt,
}

/// Sums over a ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Sum of all reservations.
    pub(super) reserved: Bytes,
    /// Sum of all promises not yet kept.
    pub(super) promised: Bytes,
    /// Sum of the sizes of volumes.
    pub(super) provisioned: Bytes,
    /// Number of volumes.
    pub(super) volumes: u64,
    /// Number of snapshots.
    pub(super) snapshots: u64,
}

/// A reservation for something being made; given back when dropped, unless [`Reservation::keep`]
/// or [`Reservation::settle`] say otherwise.
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

    /// How a promise stands by provisioning.
    pub(super) fn debt_of(&self, provisioning: Provisioning, otherwise: Debt) -> Debt {
        match provisioning {
            Provisioning::Thin if !self.limits.overcommit.is_honest() => Debt::UsersWord,
            Provisioning::Thin if otherwise == Debt::None => Debt::Unallocated,
            Provisioning::Thin | Provisioning::Thick => otherwise,
        }
    }

    /// Enters an object found at start, its promise counted from its image.
    pub(super) fn enter(&self, object: Object, claim: Claim) {
        let promised = self.owed(object, claim);
        self.lock().insert(object, Entry { reserved: claim.size, promised, debt: claim.debt });
    }

    /// Whether an object was entered: made here, found at start, or in the making.
    pub(super) fn has(&self, object: Object) -> bool {
        self.lock().contains_key(&object)
    }

    /// Strikes an object out.
    pub(super) fn forget(&self, object: Object) {
        self.lock().remove(&object);
    }

    /// Reserves room for an object, new or growing, if it fits.
    ///
    /// # Errors
    /// `NoCapacity` naming what is asked and what is there.
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
        // Under the lock: a promise struck out by `keep` and the room its image took are then seen together.
        let room = self.pool.room()?;
        let before = entries.get(&object).copied();
        let more = claim.size.saturating_sub(before.map_or(Bytes::ZERO, |entry| entry.reserved));
        let available = self.available_in(&room, &entries, claim.debt);
        if more > available {
            let identity = self.pool.identity();
            return Err(Error::new(
                Kind::NoCapacity,
                format!(
                    "pool {} on {} has {available} left for new volumes, and {object} needs {more}: free or add space, or lower minFree ({}) or raise overcommit ({}) of that pool",
                    identity.name, identity.home, self.limits.min_free, self.limits.overcommit
                ),
            ));
        }
        // Until its space is really taken, all of it is owed.
        let owed = if claim.debt == Debt::UsersWord { Bytes::ZERO } else { more };
        let promised = before.map_or(Bytes::ZERO, |entry| entry.promised).saturating_add(owed);
        entries.insert(object, Entry { reserved: claim.size, promised, debt: claim.debt });
        Ok(Reservation { ledger: self, object, before, debt: claim.debt, kept: Kept::NotYet })
    }

    /// What new volumes of a provisioning may still take; never negative.
    ///
    /// # Errors
    /// `Internal` when the filesystem cannot be asked.
    pub(super) fn available(&self, provisioning: Provisioning) -> Result<Bytes> {
        let debt = self.debt_of(provisioning, Debt::None);
        let entries = self.lock();
        let room = self.pool.room()?;
        Ok(self.available_in(&room, &entries, debt))
    }

    fn available_in(&self, room: &Room, entries: &HashMap<Object, Entry>, debt: Debt) -> Bytes {
        let min_free = self.limits.min_free.of(room.total);
        let totals = sum(entries);
        let by_filesystem = room.available.saturating_sub(min_free).saturating_sub(totals.promised);
        let by_promise =
            self.limits.overcommit.times(room.total.saturating_sub(min_free)).saturating_sub(totals.reserved);
        let no_inodes = match (room.inodes, room.inodes_free) {
            (Some(all), Some(free)) => free < MIN_INODES_FREE.max(all / 100).min(all / 2),
            _ => false,
        };
        // What is owed must really be there, and minFree on top; the user's word needs only some room to begin with.
        let least = if debt == Debt::UsersWord { by_promise } else { by_filesystem.min(by_promise) };
        let enough = by_filesystem > Bytes::ZERO && !no_inodes;
        if enough { Bytes::new(least.get() / MIB * MIB) } else { Bytes::ZERO }
    }

    /// Sums of all entries.
    pub(super) fn totals(&self) -> Totals {
        sum(&self.lock())
    }

    /// [`Ledger::count_again`] for a figure that is asked for often: where many images would have to be looked at, only
    /// when the last count is [`STALE`], as it is for giving out room.
    pub(super) fn count_lately(&self) {
        let debtors = self.lock().values().filter(|entry| entry.owes()).count();
        if debtors <= FEW_DEBTORS || self.stale() {
            self.count_again();
        }
    }

    /// Asks the images of all debtors how much of their promise is kept by now; true when the sum shrank. What is
    /// unallocated is counted both ways: a discard takes allocation back.
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

    /// What an image still owes of its claim; all of it when that cannot be told.
    fn owed(&self, object: Object, claim: Claim) -> Bytes {
        match claim.debt {
            Debt::None | Debt::UsersWord => Bytes::ZERO,
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
    /// What came of making the object: kept when it is there, given back when nothing is. Where that cannot be told
    /// all of it stays owed, until a retry enters what it finds or a delete strikes it out.
    pub(super) fn settle(self, made: Result<(), Failure>) -> Result<(), Failure> {
        match &made {
            Ok(()) => self.keep(),
            Err(Failure::Clean(_)) => {}
            Err(Failure::Dirty(_)) => self.doubt(),
        }
        made
    }

    /// What was made cannot be told: all of it stays owed.
    pub(super) fn doubt(mut self) {
        self.kept = Kept::Yes;
    }

    /// The object is made: its entry stays, and what the image has taken from the filesystem is no longer owed.
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
