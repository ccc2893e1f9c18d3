//! One operation at a time on one object. A second one fails at once, with the running operation, its age, and the
//! child process it waits for. It is never queued behind an operation that may hang.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use crate::os::{Activity, Stopwatch};
use crate::types::{Error, Kind, Result};

/// Keyed try-locks. Cheap to clone; clones share the table.
#[derive(Debug)]
pub struct Locks<K: Eq + Hash> {
    table: Arc<Mutex<HashMap<K, Holder>>>,
    activity: Activity,
}

/// The operation that holds a key.
#[derive(Debug)]
struct Holder {
    operation: &'static str,
    since: Stopwatch,
    /// The thread that does the work: the operation waits for what this thread waits for.
    thread: ThreadId,
    /// The device, image or mount point whose child processes and kernel calls belong to this operation.
    target: String,
    share: Share,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    Alone,
    With(usize),
}

impl<K: Eq + Hash + Clone + Display> Locks<K> {
    /// An empty table; `activity` lists the child processes of a holder.
    #[must_use]
    pub fn new(activity: Activity) -> Self {
        Self { table: Arc::default(), activity }
    }

    /// Locks a key exclusively for one operation.
    ///
    /// # Errors
    /// `Busy`, with the running operation, its age, and the child process or kernel call it waits for.
    pub fn try_lock(&self, key: &K, operation: &'static str) -> Result<LockGuard<K>> {
        self.take(key, operation, Share::Alone)
    }

    /// Locks a key shared: together with other shared locks, but not with an exclusive one.
    ///
    /// # Errors
    /// As [`Locks::try_lock`].
    pub fn try_share(&self, key: &K, operation: &'static str) -> Result<LockGuard<K>> {
        self.take(key, operation, Share::With(1))
    }

    fn take(&self, key: &K, operation: &'static str, share: Share) -> Result<LockGuard<K>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        match table.get_mut(key) {
            None => {
                let holder = Holder {
                    operation,
                    since: Stopwatch::start(),
                    thread: thread::current().id(),
                    target: String::new(),
                    share,
                };
                table.insert(key.clone(), holder);
            }
            Some(Holder { share: Share::With(count), .. }) if share != Share::Alone => *count += 1,
            Some(holder) => return Err(self.busy(key, operation, holder)),
        }
        Ok(LockGuard { table: Arc::clone(&self.table), key: key.clone() })
    }

    fn busy(&self, key: &K, operation: &'static str, holder: &Holder) -> Error {
        let age = holder.since.elapsed().as_secs();
        let children = self.activity.on(&holder.target, holder.thread);
        let waits: String = children.iter().map(|ongoing| format!(", waiting for {ongoing}")).collect();
        Error::new(
            Kind::Busy,
            format!("{key}: {operation} must wait: {} has been running for {age} s{waits}; retry", holder.operation),
        )
    }
}

impl<K: Eq + Hash> Clone for Locks<K> {
    fn clone(&self) -> Self {
        Self { table: Arc::clone(&self.table), activity: self.activity.clone() }
    }
}

/// Holds its key until it is dropped; it moves into the thread that does the work.
#[derive(Debug)]
pub struct LockGuard<K: Eq + Hash> {
    table: Arc<Mutex<HashMap<K, Holder>>>,
    key: K,
}

impl<K: Eq + Hash> LockGuard<K> {
    /// Sets the object of the current work: child processes and kernel calls on it appear in the errors of waiting
    /// operations.
    pub fn works_on(&self, target: &impl fmt::Display) {
        if let Some(holder) = self.table.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&self.key) {
            holder.target = target.to_string();
        }
    }
}

impl<K: Eq + Hash> Drop for LockGuard<K> {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Holder { share: Share::With(count), .. }) = table.get_mut(&self.key)
            && *count > 1
        {
            *count -= 1;
            return;
        }
        table.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_what_the_first_does_and_in_which_child() {
        let activity = Activity::default();
        let locks = Locks::new(activity.clone());
        let held = locks.try_lock(&"volume 1", "NodeStageVolume").unwrap();
        held.works_on(&"/dev/loop7");
        let _child = activity.enter("mkfs.ext4", "/dev/loop7", Some(4711));
        let error = locks.try_lock(&"volume 1", "NodeUnstageVolume").unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        for word in ["volume 1", "NodeStageVolume", "mkfs.ext4", "4711"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(locks.try_lock(&"volume 2", "NodeStageVolume").is_ok());
        drop(held);
        assert!(locks.try_lock(&"volume 1", "NodeUnstageVolume").is_ok());
    }

    #[test]
    fn shared_holders_keep_a_lone_one_out_until_the_last_is_gone() {
        let locks = Locks::new(Activity::default());
        let one = locks.try_share(&1, "publish").unwrap();
        let two = locks.try_share(&1, "publish").unwrap();
        drop(one);
        assert!(locks.try_lock(&1, "unstage").is_err());
        drop(two);
        let alone = locks.try_lock(&1, "unstage").unwrap();
        assert!(locks.try_share(&1, "publish").is_err());
        drop(alone);
    }
}
