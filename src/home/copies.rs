//! The copies that run, and how many may run at once (`copying.rs`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::state::Key;
use crate::types::{Error, Kind, Named, PoolId, Result};

/// How many copies run at the same time in one pool.
const AT_ONCE: usize = 2;
/// How long a failed copy waits before the next attempt: the first time.
pub(super) const RETRY_FIRST: Duration = Duration::from_millis(100);
/// How long a delete waits until a cancelled copy has ended its piece.
const CANCEL_WAIT: Duration = Duration::from_secs(10);

/// All running copies, and the limit on how many run at once.
#[derive(Default)]
pub(super) struct Copies {
    table: Mutex<HashMap<Key, Arc<Copy>>>,
    pub(super) ended: Condvar,
    running: Mutex<HashMap<PoolId, usize>>,
    turn: Condvar,
}

/// One copy.
pub(super) struct Copy {
    pub(super) source: Key,
    /// Bytes.
    pub(super) done: AtomicU64,
    /// Bytes.
    pub(super) total: u64,
    pub(super) cancelled: AtomicBool,
    /// Whether its thread ended before the copy was complete.
    pub(super) stopped: AtomicBool,
    /// Whether its thread has tried once.
    pub(super) tried: AtomicBool,
}

impl Copy {
    pub(super) fn runs(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn percent(&self) -> u8 {
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
    pub(super) fn reading(&self, source: Key, described: impl Fn(Key) -> Named) -> Option<String> {
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

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Copy>>> {
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
    pub(super) fn leave(&self, target: Key, copy: &Copy, complete: bool) {
        let mut table = self.lock();
        if complete {
            table.remove(&target);
        } else {
            copy.stopped.store(true, Ordering::Relaxed);
        }
        self.ended.notify_all();
    }

    /// Waits for its turn; false when the copy was cancelled.
    pub(super) fn take_turn(&self, pool: PoolId, copy: &Copy) -> bool {
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

    pub(super) fn give_turn(&self, pool: PoolId) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = running.get_mut(&pool) {
            *running = running.saturating_sub(1);
        }
        drop(running);
        self.turn.notify_all();
    }

    /// Waits before the next attempt; ends early when cancelled.
    pub(super) fn pause(&self, copy: &Copy, pause: Duration) {
        let table = self.lock();
        if !copy.cancelled.load(Ordering::Relaxed) {
            drop(self.ended.wait_timeout(table, pause).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

pub(super) fn runs(table: &HashMap<Key, Arc<Copy>>, target: Key) -> bool {
    table.get(&target).is_some_and(|copy| copy.runs())
}
