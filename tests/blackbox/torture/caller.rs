//! A caller: it retries until it gets an answer, as the sidecars do, and stores the results.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast::os::Stopwatch;
use tonic::{Code, Status};

use crate::harness::{PoolFs, World};

use super::dice::Dice;
use super::shared::{Shared, Stand};
use super::volume::{Snapshot, Volume};

/// No call is repeated without success for longer than this, however often the driver is killed meanwhile.
const STUCK: Duration = Duration::from_secs(240);
/// After so many tries a caller waits longer for the answer, as kubelet and the sidecars do.
const CUTS: usize = 100;
/// The pause between a failed call and the next attempt.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// One of the callers; lives in a thread of its own.
pub(super) struct Caller {
    pub(super) number: usize,
    pub(super) world: World,
    /// The same with a long time limit, for a call that was cut too often: on a slow machine a call that finds nothing to do
    /// may take longer than an impatient caller waits, each time again.
    patient: World,
    pub(super) pool: PoolFs,
    pub(super) dice: Dice,
    pub(super) shared: Arc<Shared>,
    pub(super) volumes: Vec<Volume>,
    pub(super) snapshots: Vec<Snapshot>,
    /// The driver process in which all contents were last compared.
    checked: Cell<usize>,
}

/// Whether the same call is repeated: the connection broke, the caller's timeout passed (then the status is from this
/// side and has a source), or the driver requests it.
fn again(status: &Status) -> bool {
    status.source().is_some() || matches!(status.code(), Code::Aborted | Code::Unavailable)
}

fn reason(status: &Status) -> String {
    match (status.source(), status.code()) {
        (None, code) => format!("{code:?}").to_uppercase(),
        (Some(_), Code::Cancelled) => "ended patience".into(),
        (Some(_), _) => "lost connection".into(),
    }
}

impl Caller {
    pub(super) fn new(
        number: usize,
        [world, patient]: [World; 2],
        pool: PoolFs,
        seed: u64,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            number,
            world,
            patient,
            pool,
            dice: Dice::new(seed),
            shared,
            volumes: Vec::new(),
            snapshots: Vec::new(),
            checked: Cell::new(0),
        }
    }

    /// Step after step, until the end; then everything is deleted.
    pub(super) fn live(mut self) {
        while !self.shared.is_ending() {
            let shared = Arc::clone(&self.shared);
            let _step = shared.gate.read().unwrap();
            self.check_in_new_life();
            self.step();
            shared.stands.lock().unwrap()[self.number] = self.stand();
        }
        self.wind_up();
        let stand = self.stand();
        self.shared.stands.lock().unwrap()[self.number] = stand;
    }

    fn stand(&self) -> Stand {
        let used = |volume: &&Volume| volume.staged;
        Stand {
            volumes: self.volumes.iter().map(|volume| volume.vol.id.clone()).collect(),
            snapshots: self.snapshots.iter().map(|snapshot| snapshot.id.clone()).collect(),
            devices: self.volumes.iter().filter(used).map(|volume| volume.vol.uuid().to_owned()).collect(),
            mounts: self.volumes.iter().flat_map(|volume| volume.mounts(&self.world)).collect::<BTreeSet<_>>(),
        }
    }

    /// The same call with the same arguments until it is answered with OK; `between` runs between the attempts.
    pub(super) fn until_ok<T>(
        &self,
        rpc: &'static str,
        mut between: impl FnMut(),
        call: impl Fn(&World) -> Result<T, Status>,
    ) -> T {
        let watch = Stopwatch::start();
        for tries in 0.. {
            if self.shared.stop.load(Ordering::SeqCst) {
                std::panic::resume_unwind(Box::new("stopped"));
            }
            self.shared.waits(self.number, Some(rpc));
            let answer = call(if tries < CUTS { &self.world } else { &self.patient });
            self.shared.waits(self.number, None);
            match answer {
                Ok(value) => {
                    self.shared.count(|figures| figures.calls.entry(rpc).or_default().answered += 1);
                    return value;
                }
                Err(status) if again(&status) => {
                    assert!(watch.elapsed() < STUCK, "caller {}: {rpc} does not succeed: {status:?}", self.number);
                    self.shared.count(|figures| {
                        figures.calls.entry(rpc).or_default().repeated += 1;
                        *figures.reasons.entry(reason(&status)).or_default() += 1;
                    });
                }
                Err(status) => panic!("caller {}: {rpc}: {status:?}", self.number),
            }
            between();
            self.check_in_new_life();
            std::thread::sleep(PAUSE);
        }
        unreachable!("tries end with an answer")
    }

    /// A call whose answer is not stored; now and then it is repeated after success.
    pub(super) fn ask(&self, rpc: &'static str, call: impl Fn(&World) -> Result<(), Status>) {
        self.until_ok(rpc, || (), &call);
        if self.dice.one_in(8) {
            self.until_ok(rpc, || (), &call);
        }
    }

    /// After every start of the driver all mounted volumes are read, except one with a call in progress.
    fn check_in_new_life(&self) {
        let life = self.shared.life.load(Ordering::SeqCst);
        if self.checked.replace(life) != life {
            for volume in &self.volumes {
                self.check(volume);
            }
        }
    }

    /// Compares mounted volumes with what was fsynced.
    pub(super) fn check(&self, volume: &Volume) {
        for root in volume.roots(&self.world) {
            match volume.content.check(&root) {
                Ok(bytes) => self.shared.count(|figures| {
                    figures.checks += 1;
                    figures.bytes += bytes;
                }),
                Err(what) => panic!("LOST: caller {}, volume {} ({}): {what}", self.number, volume.name, volume.vol.id),
            }
        }
    }
}
