//! What is going on in children and in kernel calls that may never return: named, dated, listed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Stopwatch;

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
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let key = table.next;
        table.next += 1;
        let entry = Entry { what: what.to_owned(), target: target.to_owned(), pid, since: Stopwatch::start() };
        table.ongoing.insert(key, entry);
        ActivityGuard { activity: self.clone(), key }
    }

    /// Everything under way, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Ongoing> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let view = |entry: &Entry| Ongoing {
            what: entry.what.clone(),
            target: entry.target.clone(),
            pid: entry.pid,
            age: entry.since.elapsed(),
        };
        table.ongoing.values().map(view).collect()
    }

    /// What is under way on one target: a device, an image or a mount point.
    #[must_use]
    pub fn on(&self, target: &str) -> Vec<Ongoing> {
        let mut all = self.list();
        all.retain(|ongoing| ongoing.target == target);
        all
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
