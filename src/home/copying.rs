//! Background copies in pools without reflinks. Each has one thread and resumes after a restart.
//!
//! While a copy runs, its target is `creating`, and only the copy's thread writes that record. Its source cannot be
//! attached (a volume) or deleted (a snapshot): every operation on a source calls [`Copies::reading`] under the
//! source's lock, and a copy is registered under that lock too. A copy that stopped before its end stays registered and
//! keeps its source locked: it may resume and must find the source unchanged. The entry is removed when the copy is
//! complete, or when its target's record is `deleting`.
//!
//! Steps, and what a crash after each leaves:
//! 1. the blank target with its record `creating`, `copy{from, done: 0}` (by create): resumed at start.
//! 2. a piece copied and durable, then `copy.done` written: resumed from the last `done`; pieces are copied again.
//! 3. for a thick target, holes allocated; record `ready` without `copy`: complete.

use std::collections::HashMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use super::local::{Key, Shared};
use super::record::{CopyRecord, Phase, Record};
use crate::pool::{Continue, Progress};
use crate::types::{Bytes, Error, Kind, Named, PoolId, Result};

/// How many copies run at the same time in one pool.
const AT_ONCE: usize = 2;
/// How long a failed copy waits before the next attempt: the first time, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(60);
/// How long a delete waits until a cancelled copy has ended its piece.
const CANCEL_WAIT: Duration = Duration::from_secs(10);
/// How long the call that began a copy waits for it before it answers that the copy is running.
pub(super) const COPY_WAIT: Duration = Duration::from_secs(2);

/// All running copies, and the limit on how many run at once.
#[derive(Default)]
pub(super) struct Copies {
    table: Mutex<HashMap<Key, Arc<Copy>>>,
    ended: Condvar,
    running: Mutex<HashMap<PoolId, usize>>,
    turn: Condvar,
}

/// One copy.
struct Copy {
    source: Key,
    done: AtomicU64,
    total: u64,
    cancelled: AtomicBool,
    /// Whether its thread ended before the copy was complete.
    stopped: AtomicBool,
    /// Whether its thread has tried once.
    tried: AtomicBool,
}

impl Copy {
    fn runs(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    fn percent(&self) -> u8 {
        let done = self.done.load(Ordering::Relaxed);
        let percent = u128::from(done) * 100 / u128::from(self.total.max(1));
        u8::try_from(percent).unwrap_or(100).min(99)
    }
}

impl Copies {
    /// The percentage of the copy into `target`, if one is running.
    pub(super) fn percent_into(&self, target: Key) -> Option<u8> {
        self.lock().get(&target).filter(|copy| copy.runs()).map(|copy| copy.percent())
    }

    /// A copy from `source` that is running or may resume, as text for a person.
    fn reading(&self, source: Key, described: impl Fn(Key) -> Named) -> Option<String> {
        let (target, percent, runs) = {
            let table = self.lock();
            let (target, copy) = table.iter().find(|(_, copy)| copy.source == source)?;
            (*target, copy.percent(), copy.runs())
        };
        let target = described(target);
        Some(if runs {
            format!("is being copied into {target}: {percent} % done; retry")
        } else {
            format!(
                "was being copied into {target}, which stopped at {percent} %: create {target} again to resume it, or delete it"
            )
        })
    }

    /// Waits until a copy into one of `targets` has ended: false when none is running, or none ended within `limit`.
    pub(super) fn wait(&self, targets: &[Key], limit: Duration) -> bool {
        let table = self.lock();
        let running: Vec<Key> = targets.iter().filter(|key| runs(&table, **key)).copied().collect();
        if running.is_empty() {
            return false;
        }
        let all_run = |table: &mut HashMap<Key, Arc<Copy>>| running.iter().all(|key| runs(table, *key));
        let (_table, waited) =
            self.ended.wait_timeout_while(table, limit, all_run).unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Copy>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the copy into `target` and waits until its thread has ended. The copy keeps its source until
    /// [`Copies::forget`].
    pub(super) fn cancel(&self, target: Key) -> Result<()> {
        let mut table = self.lock();
        if let Some(copy) = table.get(&target) {
            copy.cancelled.store(true, Ordering::Relaxed);
        }
        self.turn.notify_all();
        self.ended.notify_all();
        while runs(&table, target) {
            let (back, waited) = self.ended.wait_timeout(table, CANCEL_WAIT).unwrap_or_else(PoisonError::into_inner);
            table = back;
            if waited.timed_out() && runs(&table, target) {
                return Err(Error::new(Kind::Busy, format!("{target}: the copy into it is stopping; retry")));
            }
        }
        Ok(())
    }

    /// Stops all copies without waiting: their process counts as killed.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn abandon(&self) {
        self.lock().values().for_each(|copy| copy.cancelled.store(true, Ordering::Relaxed));
        self.turn.notify_all();
        self.ended.notify_all();
    }

    /// The copy into `target` never resumes: its source is released.
    pub(super) fn forget(&self, target: Key) {
        self.lock().remove(&target);
    }

    /// Records that the thread of a copy has ended.
    fn leave(&self, target: Key, copy: &Copy, complete: bool) {
        let mut table = self.lock();
        if complete {
            table.remove(&target);
        } else {
            copy.stopped.store(true, Ordering::Relaxed);
        }
        self.ended.notify_all();
    }

    /// Waits for its turn; false when the copy was cancelled.
    fn take_turn(&self, pool: PoolId, copy: &Copy) -> bool {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.get(&pool).is_some_and(|running| *running >= AT_ONCE) {
            if copy.cancelled.load(Ordering::Relaxed) {
                return false;
            }
            running = self.turn.wait_timeout(running, RETRY_FIRST).unwrap_or_else(PoisonError::into_inner).0;
        }
        *running.entry(pool).or_default() += 1;
        true
    }

    fn give_turn(&self, pool: PoolId) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = running.get_mut(&pool) {
            *running = running.saturating_sub(1);
        }
        drop(running);
        self.turn.notify_all();
    }

    /// Waits before the next attempt; ends early when cancelled.
    fn pause(&self, copy: &Copy, pause: Duration) {
        let table = self.lock();
        if !copy.cancelled.load(Ordering::Relaxed) {
            drop(self.ended.wait_timeout(table, pause).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Shared {
    /// Starts (or resumes) a copy in its own thread. The caller holds the locks of source and target, or the home node
    /// is not serving yet.
    pub(super) fn start_copy(self: &Arc<Self>, target: Key, record: CopyRecord) {
        // `done` cannot be more than the total: the record is then wrong, and the copy starts again.
        let done = if record.done <= record.total { record.done } else { Bytes::ZERO };
        let copy = Arc::new(Copy {
            source: Key::new(target.pool(), record.from.object()),
            done: AtomicU64::new(done.get()),
            total: record.total.get(),
            cancelled: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            tried: AtomicBool::new(false),
        });
        {
            let mut table = self.copies.lock();
            if runs(&table, target) {
                return;
            }
            table.insert(target, Arc::clone(&copy));
        }
        let work = {
            let (shared, copy) = (Arc::clone(self), Arc::clone(&copy));
            move || {
                let complete = shared.copy_until_done(target, &copy);
                shared.copies.leave(target, &copy, complete);
            }
        };
        if let Err(error) = thread::Builder::new().name("copy".to_owned()).spawn(work) {
            // The copy is not running then: the next create or start tries again.
            warn!(target = %target, error = %error, "cannot start a thread for a copy; a retry of its request starts it");
            self.copies.leave(target, &copy, false);
        }
    }

    /// Tries until the copy is complete; false when it was cancelled.
    fn copy_until_done(self: &Arc<Self>, target: Key, copy: &Copy) -> bool {
        let mut pause = RETRY_FIRST;
        while !copy.cancelled.load(Ordering::Relaxed) {
            // The pool will be served soon.
            if self.opened(target.pool()).is_none() {
                self.copies.pause(copy, RETRY_FIRST);
                continue;
            }
            if !self.copies.take_turn(target.pool(), copy) {
                return false;
            }
            // A panic must not keep the turn or the source for ever: it is handled as any other error.
            let attempt = panic::catch_unwind(AssertUnwindSafe(|| self.copy_once(target, copy)));
            let panicked = |_| Err(Error::new(Kind::Internal, "the copy's thread panicked"));
            let result = attempt.unwrap_or_else(panicked);
            self.copies.give_turn(target.pool());
            match result {
                Ok(complete) => return complete,
                Err(error) => {
                    warn!(target = %target, percent = copy.percent(), error = target.named().in_text(&error.chain()), "a copy failed; the driver retries it");
                    self.copies.pause(copy, pause);
                    pause = (pause * 2).min(RETRY_MOST);
                }
            }
        }
        false
    }

    fn copy_once(self: &Arc<Self>, target: Key, copy: &Copy) -> Result<bool> {
        let state = self.pool(target.pool())?;
        let tried = copy.tried.swap(true, Ordering::Relaxed);
        if !self.is_unfinished(target)? {
            if tried {
                self.settle_finished(target)?;
            }
            return Ok(true);
        }
        let start = Bytes::new(copy.done.load(Ordering::Relaxed));
        let progress = Report { shared: self, target, copy };
        self.check_image(state, copy.source, Bytes::new(copy.total))?;
        state.pool.copy(copy.source.object(), target.object(), start, &progress)?;
        if copy.cancelled.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.finish_copy(target)?;
        info!(target = %target, bytes = copy.total, "copy complete");
        Ok(true)
    }

    /// Whether a target still waits for its copy. The caller that started this copy read the record before: an earlier
    /// copy may have ended since, and the target may have been written by its user. Only one copy of a target is
    /// registered at a time, and it leaves after its record, so the record is final here.
    fn is_unfinished(&self, target: Key) -> Result<bool> {
        Ok(match target {
            Key::Volume(id) => self.volume_record(&id)?.is_some_and(|record| record.copy_to_resume().is_some()),
            Key::Snapshot(id) => self.snapshot_record(&id)?.is_some_and(|record| record.copy_to_resume().is_some()),
        })
    }

    /// An earlier attempt wrote the last record and got an error after the effect: makes it durable, and corrects the
    /// ledger. Others may change the record by now, so under the target's lock.
    fn settle_finished(&self, target: Key) -> Result<()> {
        let state = self.pool(target.pool())?;
        let _lock = self.locks.try_lock(&target, "the end of a copy")?;
        match target {
            Key::Volume(id) => {
                let Some(mut record) = self.volume_record(&id)? else { return Ok(()) };
                self.store_volume(&mut record)?;
                state.ledger.enter(target.object(), state.claim_of_volume(&record));
            }
            Key::Snapshot(id) => {
                let Some(mut record) = self.snapshot_record(&id)? else { return Ok(()) };
                self.store_snapshot(&mut record)?;
                state.ledger.enter(target.object(), state.claim_of_snapshot(&record));
            }
        }
        Ok(())
    }

    /// Step 3.
    fn finish_copy(self: &Arc<Self>, target: Key) -> Result<()> {
        let state = self.pool(target.pool())?;
        match target {
            Key::Volume(id) => {
                let Some(mut record) = self.volume_record(&id)? else { return Ok(()) };
                state.pool.grow(id.uuid, &record.geometry())?;
                record.phase = Phase::Ready;
                record.copy = None;
                self.store_volume(&mut record)?;
                state.ledger.enter(target.object(), state.claim_of_volume(&record));
            }
            Key::Snapshot(id) => {
                let Some(mut record) = self.snapshot_record(&id)? else { return Ok(()) };
                record.phase = Phase::Ready;
                record.copy = None;
                self.store_snapshot(&mut record)?;
                state.ledger.enter(target.object(), state.claim_of_snapshot(&record));
            }
        }
        Ok(())
    }

    /// The error for an object whose copy is not complete.
    pub(super) fn still_copying(&self, target: Key) -> Error {
        let percent = self.copies.percent_into(target).unwrap_or_default();
        Error::new(Kind::Busy, format!("{} is being copied: {percent} % done; retry", self.described(target)))
    }

    /// Returns an error for an operation that the source of a copy does not allow.
    pub(super) fn not_copied_from(&self, source: Key) -> Result<()> {
        match self.copies.reading(source, |key| self.described(key)) {
            None => Ok(()),
            Some(said) => Err(Error::new(Kind::Busy, format!("{} {said}", self.described(source)))),
        }
    }
}

/// Whether a copy into `target` is running.
fn runs(table: &HashMap<Key, Arc<Copy>>, target: Key) -> bool {
    table.get(&target).is_some_and(|copy| copy.runs())
}

/// Writes the progress into the record and checks for a cancel.
struct Report<'a> {
    shared: &'a Arc<Shared>,
    target: Key,
    copy: &'a Copy,
}

impl Progress for Report<'_> {
    fn step(&self, done: Bytes, _total: Bytes) -> Continue {
        self.copy.done.store(done.get(), Ordering::Relaxed);
        if self.copy.cancelled.load(Ordering::Relaxed) {
            return Continue::No;
        }
        // If the record cannot be written, only the progress since the last write is lost.
        if let Err(error) = self.write(done) {
            warn!(target = %self.target, error = self.target.named().in_text(&error.chain()), "cannot record the progress of a copy; after a restart it resumes from an earlier point");
        }
        Continue::Yes
    }
}

impl Report<'_> {
    fn write(&self, done: Bytes) -> Result<()> {
        match self.target {
            Key::Volume(id) => {
                if let Some(mut record) = self.shared.volume_record(&id)? {
                    if let Some(copy) = &mut record.copy {
                        copy.known.done = done;
                    }
                    self.shared.store_volume(&mut record)?;
                }
            }
            Key::Snapshot(id) => {
                if let Some(mut record) = self.shared.snapshot_record(&id)? {
                    if let Some(copy) = &mut record.copy {
                        copy.known.done = done;
                    }
                    self.shared.store_snapshot(&mut record)?;
                }
            }
        }
        Ok(())
    }
}
