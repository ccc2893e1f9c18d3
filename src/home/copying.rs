//! Background copies in pools without instant clones. Each has one thread and resumes after a restart.
//!
//! While a copy runs, its target is `creating`, and only the copy's thread writes that record. Its source cannot be
//! attached (a volume) or deleted (a snapshot): every operation on a source calls [`super::copies::Copies::reading`] under the
//! source's lock, and a copy is registered under that lock too. A copy that stopped before its end stays registered and
//! keeps its source locked: it may resume and must find the source unchanged. The entry is removed when the copy is
//! complete, or when its target's record is `deleting`.
//!
//! Steps, and what a crash after each leaves:
//! 1. the blank target with its record `creating`, `copy{from, done: 0}` (by create): resumed at start.
//! 2. a piece copied and durable, then `copy.done` written: resumed from the last `done`; pieces are copied again.
//! 3. for a thick target, holes allocated; record `ready` without `copy`: complete.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use super::copies::{Copy, RETRY_FIRST, runs};
use super::local::Shared;
use super::record::{CopyRecord, Phase, Record};
use super::state::Key;
use crate::pool::{Continue, Progress};
use crate::types::{Bytes, Error, Kind, Result};

/// The longest pause before the next attempt of a failed copy.
const RETRY_MOST: Duration = Duration::from_secs(60);
/// How long the call that began a copy waits for it before it answers that the copy is running.
pub(super) const COPY_WAIT: Duration = Duration::from_secs(2);

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
