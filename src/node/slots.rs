//! Limits concurrent mkfs: each one uses memory and writes, and a node that starts a hundred pods starts a hundred
//! stages.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::os::{Os, Stopwatch};
use crate::types::{Error, Kind, Result};

/// How long a stage waits for its turn before the caller must retry: less than kubelet's two minutes.
const PATIENCE: Duration = Duration::from_secs(60);
/// When no slot was taken or released for this long, the holders are stuck: a mkfs takes a second or two. A waiter then
/// continues, because a stuck child blocks only its own volume.
const STUCK: Duration = Duration::from_secs(10);

/// A counting semaphore whose waiters give up, or continue when the holders are stuck.
#[derive(Debug)]
pub(super) struct Slots {
    free: Mutex<Free>,
    freed: Condvar,
    count: u32,
    stuck: Duration,
}

#[derive(Debug)]
struct Free {
    /// Free slots.
    slots: u32,
    /// The time since a slot was last taken or released.
    moved: Stopwatch,
}

/// Releases its slot when it is dropped.
#[derive(Debug)]
pub(super) struct Slot<'a>(&'a Slots);

impl Slots {
    pub(super) fn new(count: u32) -> Self {
        Self::stuck_after(count, STUCK)
    }

    fn stuck_after(count: u32, stuck: Duration) -> Self {
        Self { free: Mutex::new(Free { slots: count, moved: Stopwatch::start() }), freed: Condvar::new(), count, stuck }
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// `Busy`, naming the running operations, when no slot became free.
    pub(super) fn take(&self, os: &Os) -> Result<Slot<'_>> {
        self.take_within(os, PATIENCE)
    }

    fn take_within(&self, os: &Os, patience: Duration) -> Result<Slot<'_>> {
        let watch = Stopwatch::start();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while free.slots == 0 {
            let (left, moves) =
                (patience.saturating_sub(watch.elapsed()), self.stuck.saturating_sub(free.moved.elapsed()));
            if moves.is_zero() {
                // One extra slot replaces a stuck one.
                free.slots = 1;
                break;
            }
            if left.is_zero() {
                let ongoing: Vec<_> = os.activity().list().iter().map(ToString::to_string).collect();
                return Err(Error::new(
                    Kind::Busy,
                    format!("too many mkfs processes run at the same time: {}; retry", ongoing.join(", ")),
                ));
            }
            free = self.freed.wait_timeout(free, left.min(moves)).unwrap_or_else(PoisonError::into_inner).0;
        }
        free.slots -= 1;
        free.moved = Stopwatch::start();
        Ok(Slot(self))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.slots = self.0.count.min(free.slots + 1);
        free.moved = Stopwatch::start();
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_waits_and_is_told_why() {
        let (os, slots) = (Os::new(), Slots::new(1));
        let held = slots.take(&os).unwrap();
        let _mkfs = os.activity().enter("mkfs.ext4", "/dev/loop7", Some(4711));
        let error = slots.take_within(&os, Duration::from_millis(20)).unwrap_err();
        assert!(error.kind() == Kind::Busy && error.to_string().contains("4711"), "{error}");
        drop(held);
        assert!(slots.take(&os).is_ok());
    }

    #[test]
    fn a_stuck_holder_is_made_up_for_and_its_return_makes_no_extra_slot() {
        let (os, slots) = (Os::new(), Slots::stuck_after(1, Duration::from_millis(20)));
        let stuck = slots.take(&os).unwrap();
        let next = slots.take_within(&os, Duration::from_secs(10)).unwrap();
        drop(next);
        drop(stuck);
        let _one = slots.take(&os).unwrap();
        assert_eq!(slots.free.lock().unwrap().slots, 0);
    }
}
