//! So many mkfs at once: each takes memory and writes, and a node that starts a hundred pods starts a hundred stages.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::os::{Os, Stopwatch};
use crate::types::{Error, Kind, Result};

/// How long a stage waits for its turn before it tells the caller to ask again: less than kubelet's two minutes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A counting semaphore whose waiters give up.
#[derive(Debug)]
pub(super) struct Slots {
    free: Mutex<u32>,
    freed: Condvar,
}

/// Holds its slot while it lives.
#[derive(Debug)]
pub(super) struct Slot<'a>(&'a Slots);

impl Slots {
    pub(super) fn new(count: u32) -> Self {
        Self { free: Mutex::new(count), freed: Condvar::new() }
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// `Busy`, naming what is under way, when none became free.
    pub(super) fn take(&self, os: &Os) -> Result<Slot<'_>> {
        self.take_within(os, PATIENCE)
    }

    fn take_within(&self, os: &Os, patience: Duration) -> Result<Slot<'_>> {
        let watch = Stopwatch::start();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            let left = patience.saturating_sub(watch.elapsed());
            if left.is_zero() {
                let ongoing: Vec<_> = os.activity().list().iter().map(ToString::to_string).collect();
                return Err(Error::new(
                    Kind::Busy,
                    format!("too many filesystems are being made at once: {}; ask again", ongoing.join(", ")),
                ));
            }
            free = self.freed.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *free -= 1;
        Ok(Slot(self))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
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
}
