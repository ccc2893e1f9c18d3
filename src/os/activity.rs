//! The running children and kernel calls that may never return: with name, age and list.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::Stopwatch;

/// A kernel call that is expected to be short is listed only after this time.
const SHORT: Duration = Duration::from_secs(1);

/// The table of running children and mount calls. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    ongoing: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    what: String,
    target: String,
    pid: Option<u32>,
    since: Stopwatch,
    thread: ThreadId,
    listed: Listed,
}

/// When an entry is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    AtOnce,
    WhenLong,
}

/// One running operation.
#[derive(Clone, Debug)]
pub struct Ongoing {
    /// The program or call, such as `mkfs.ext4` or `umount`.
    pub what: String,
    /// Its target, such as a device or mount point.
    pub target: String,
    /// Its process, for a child.
    pub pid: Option<u32>,
    /// Its age.
    pub age: Duration,
}

impl std::fmt::Display for Ongoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {} ", self.what, self.target)?;
        match self.pid {
            Some(pid) => write!(f, "(pid {pid}, for {} s)", self.age.as_secs()),
            None => write!(f, "(kernel call, for {} s)", self.age.as_secs()),
        }
    }
}

impl Activity {
    /// Adds an entry, which is removed when the guard is dropped.
    #[must_use]
    pub fn enter(&self, what: &str, target: &str, pid: Option<u32>) -> ActivityGuard {
        self.put(what.to_owned(), target.to_owned(), pid, Listed::AtOnce)
    }

    /// Adds a call that should be short: it is listed only after one second.
    #[must_use]
    pub(super) fn enter_short(&self, what: String, target: String) -> ActivityGuard {
        self.put(what, target, None, Listed::WhenLong)
    }

    fn put(&self, what: String, target: String, pid: Option<u32>, listed: Listed) -> ActivityGuard {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let key = table.next;
        table.next += 1;
        let thread = thread::current().id();
        table.ongoing.insert(key, Entry { what, target, pid, since: Stopwatch::start(), thread, listed });
        ActivityGuard { activity: self.clone(), key }
    }

    /// All running operations, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Ongoing> {
        self.pick(|_| true)
    }

    /// The running operations on one target (a device, an image or a mount point) or in one thread.
    #[must_use]
    pub fn on(&self, target: &str, thread: ThreadId) -> Vec<Ongoing> {
        self.pick(|entry| entry.thread == thread || (!target.is_empty() && entry.target == target))
    }

    fn pick(&self, chosen: impl Fn(&Entry) -> bool) -> Vec<Ongoing> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = |entry: &&Entry| entry.listed == Listed::AtOnce || entry.since.elapsed() >= SHORT;
        let view = |entry: &Entry| Ongoing {
            what: entry.what.clone(),
            target: entry.target.clone(),
            pid: entry.pid,
            age: entry.since.elapsed(),
        };
        table.ongoing.values().filter(|entry| chosen(entry)).filter(shown).map(view).collect()
    }
}

/// Removes its entry from the table when it is dropped.
#[derive(Debug)]
pub struct ActivityGuard {
    activity: Activity,
    key: u64,
}

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        self.activity.table.lock().unwrap_or_else(PoisonError::into_inner).ongoing.remove(&self.key);
    }
}
