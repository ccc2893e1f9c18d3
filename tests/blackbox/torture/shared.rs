//! The state shared by the callers and the killer, and the figures of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};

/// What a caller has between two steps: this must exist, and nothing else.
#[derive(Clone, Debug, Default)]
pub(super) struct Stand {
    /// Handles.
    pub(super) volumes: BTreeSet<String>,
    pub(super) snapshots: BTreeSet<String>,
    /// The uuids of volumes with a device.
    pub(super) devices: BTreeSet<String>,
    /// Staging and target paths with a mount.
    pub(super) mounts: BTreeSet<PathBuf>,
}

/// Shared by all threads of a run.
pub(super) struct Shared {
    /// Held for reading by a caller during a step; for writing while all pause.
    pub(super) gate: RwLock<()>,
    /// Incremented at every start of the driver.
    pub(super) life: AtomicUsize,
    /// Callers delete what they have and end.
    pub(super) ending: AtomicBool,
    /// Something failed: callers end at once.
    pub(super) stop: AtomicBool,
    pub(super) stands: Mutex<Vec<Stand>>,
    pub(super) figures: Mutex<Figures>,
    /// The call each caller waits for.
    in_flight: Mutex<Vec<Option<&'static str>>>,
}

/// One kind of call.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Calls {
    pub(super) answered: usize,
    pub(super) repeated: usize,
    pub(super) cut: usize,
}

/// A run in numbers.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) calls: BTreeMap<&'static str, Calls>,
    /// Why calls were repeated.
    pub(super) reasons: BTreeMap<String, usize>,
    pub(super) starts_cut: usize,
    pub(super) volumes: BTreeMap<&'static str, usize>,
    pub(super) thin: usize,
    pub(super) snapshots: usize,
    pub(super) filled: usize,
    pub(super) growths: usize,
    pub(super) checks: usize,
    pub(super) bytes: u64,
    pub(super) rests: usize,
    /// mkfs processes that ran when their driver was killed.
    pub(super) mkfs_cut: usize,
    /// What a killed driver left half created or half removed, and the next start removed.
    pub(super) swept: usize,
    pub(super) deletes_refused: usize,
}

impl Shared {
    pub(super) fn new(callers: usize) -> Self {
        Self {
            gate: RwLock::new(()),
            life: AtomicUsize::new(0),
            ending: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            stands: Mutex::new(vec![Stand::default(); callers]),
            figures: Mutex::default(),
            in_flight: Mutex::new(vec![None; callers]),
        }
    }

    /// A caller begins to wait for a call, or has its answer.
    pub(super) fn waits(&self, caller: usize, rpc: Option<&'static str>) {
        self.in_flight.lock().unwrap()[caller] = rpc;
    }

    /// The driver is killed now.
    pub(super) fn killed(&self) {
        let waiting = self.in_flight.lock().unwrap().clone();
        let mut figures = self.figures.lock().unwrap();
        for rpc in waiting.into_iter().flatten() {
            figures.calls.entry(rpc).or_default().cut += 1;
        }
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.figures.lock().unwrap());
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |which: fn(&Calls) -> usize| self.calls.values().map(which).sum::<usize>();
        writeln!(f, "  {:<24}{:>10}{:>10}{:>10}", "call", "answered", "repeated", "cut")?;
        for (rpc, calls) in &self.calls {
            writeln!(f, "  {rpc:<24}{:>10}{:>10}{:>10}", calls.answered, calls.repeated, calls.cut)?;
        }
        let (answered, repeated, cut) = (sum(|c| c.answered), sum(|c| c.repeated), sum(|c| c.cut));
        writeln!(f, "  {:<24}{answered:>10}{repeated:>10}{cut:>10}", "all")?;
        let list = |map: Vec<(String, usize)>| {
            map.into_iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "  repeated after: {}", list(self.reasons.clone().into_iter().collect()))?;
        let volumes = self.volumes.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
        writeln!(
            f,
            "  volumes: {}; {} of them thin, {} from a snapshot or volume; {} snapshots, {} growths; {} starts cut",
            list(volumes),
            self.thin,
            self.filled,
            self.snapshots,
            self.growths,
            self.starts_cut
        )?;
        write!(
            f,
            "  {} mkfs cut by a kill; {} names swept at a start\n  {} content checks, {:.1} MiB; {} deletes of used volumes refused; {} times all at rest and compared; 0 lost, 0 leaked",
            self.mkfs_cut,
            self.swept,
            self.checks,
            f64::from(u32::try_from(self.bytes >> 10).unwrap()) / 1024.0,
            self.deletes_refused,
            self.rests
        )
    }
}
