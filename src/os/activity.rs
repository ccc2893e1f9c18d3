//! What is going on in children and in kernel calls that may never return: named, dated, listed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::Stopwatch;

/// A kernel call that is expected to be short is listed only when it is not.
const SHORT: Duration = Duration::from_secs(1);

/// The table of ongoing children and mount calls. Cheap to clone.
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

/// When an entry is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    AtOnce,
    WhenLong,
}

/// One thing that is going on.
#[derive(Clone, Debug)]
pub struct Ongoing {
    /// The program or call, such as `mkfs.ext4` or `umount`.
    pub what: String,
    /// What it works on, such as a device or mount point.
    pub target: String,
    /// Its process, for a child.
    pub pid: Option<u32>,
    /// For how long.
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
    /// Enters something; it leaves when the guard is dropped.
    #[must_use]
    pub fn enter(&self, what: &str, target: &str, pid: Option<u32>) -> ActivityGuard {
        self.put(what.to_owned(), target.to_owned(), pid, Listed::AtOnce)
    }

    /// Enters a call that should be short: it is listed only once it has lasted a second.
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

    /// Everything under way, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Ongoing> {
        self.pick(|_| true)
    }

    /// What is under way on one target (a device, an image or a mount point) or in one thread.
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

/// Keeps its entry in the table while it lives.
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
