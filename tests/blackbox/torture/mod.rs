//! SIGKILL at random moments under callers that retry: nothing that was acknowledged is lost, nothing is leaked.
//!
//! A run consists of many driver processes, each from its start to its kill. The callers store their answers and what
//! they fsynced, continue through all processes with seeded choices, and compare at every step. Now and then all pause,
//! and the machine is compared with what they have. `make torture N=1000`; `HOLDFAST_TORTURE_SEED=` repeats the choices
//! of a run, as far as races can be repeated.

mod caller;
mod content;
mod dice;
mod shared;
mod volume;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast::os::Stopwatch;

use crate::harness::{PoolFs, World, driver_binary, loops_on, mounts, others_here, tools_here, try_run};

use caller::Caller;
use dice::Dice;
use shared::{Shared, Stand};

const CALLERS: usize = 8;
/// These callers abandon a call after a moment and retry while its work may continue.
const IMPATIENT: usize = 2;
const MOMENT: Duration = Duration::from_millis(40);
const LONG: Duration = Duration::from_secs(60);
/// After so many kills all callers pause once.
const REST: usize = 10;
/// Tools that may finish when the driver dies.
const OUTLIVING: [&str; 2] = ["e2fsck", "resize2fs"];
const POOL: u64 = 32 << 30;

/// `make torture N=` sets the number of kills in a run.
fn lives() -> usize {
    std::env::var("HOLDFAST_TORTURE_LIVES").map_or(150, |text| text.parse().expect("a number of lives"))
}

fn seed() -> u64 {
    std::env::var("HOLDFAST_TORTURE_SEED")
        .map_or_else(|_| uuid::Uuid::new_v4().as_u64_pair().0 >> 32, |text| text.parse().expect("a number"))
}

/// The callers' threads; in any case they end before the driver and its filesystem are removed.
struct Crowd {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn new(world: &World, pool: PoolFs, seed: u64) -> Self {
        let shared = Arc::new(Shared::new(CALLERS));
        let threads = (0..CALLERS).map(|number| {
            let first = if number < IMPATIENT { MOMENT } else { LONG };
            let seed = seed ^ (u64::try_from(number).unwrap() + 1) << 32;
            let caller =
                Caller::new(number, [first, LONG].map(|time| world.caller(time)), pool, seed, Arc::clone(&shared));
            std::thread::spawn(move || caller.live())
        });
        Self { threads: threads.collect(), shared: Arc::clone(&shared) }
    }

    /// No caller has failed.
    fn is_well(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// The callers delete everything and end.
    fn end(mut self) -> Arc<Shared> {
        self.shared.ending.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            if let Err(cause) = thread.join() {
                panic!("a caller failed: {}", cause.downcast_ref::<String>().map_or("see above", String::as_str));
            }
        }
        Arc::clone(&self.shared)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Compares everything on the machine with what the callers have between two steps.
fn compare(world: &mut World, stands: &[Stand]) {
    let all = |part: fn(&Stand) -> &BTreeSet<String>| -> BTreeSet<&str> {
        stands.iter().flat_map(part).map(String::as_str).collect()
    };
    fn uuids<'a>(handles: &BTreeSet<&'a str>) -> Vec<&'a str> {
        let mut uuids: Vec<_> = handles.iter().map(|handle| handle.split('_').nth(2).unwrap()).collect();
        uuids.sort_unstable();
        uuids
    }
    let (volumes, snapshots) = (all(|stand| &stand.volumes), all(|stand| &stand.snapshots));
    assert_eq!(world.volume_ids().iter().map(String::as_str).collect::<BTreeSet<_>>(), volumes, "volumes listed");
    assert_eq!(world.snapshot_ids().iter().map(String::as_str).collect::<BTreeSet<_>>(), snapshots, "snapshots listed");
    assert_eq!(world.in_pool("volumes"), uuids(&volumes), "volumes in the pool");
    assert_eq!(world.in_pool("snapshots"), uuids(&snapshots), "snapshots in the pool");
    assert_eq!(world.in_pool("trash"), Vec::<String>::new(), "in the trash");

    let mut loops: Vec<_> = loops_on(world.scratch.device()).into_iter().map(|status| status.name).collect();
    loops.sort();
    let devices: Vec<_> = all(|stand| &stand.devices).into_iter().collect();
    assert_eq!(loops, devices, "loop devices");

    let table = mounts();
    let below = table.entries().iter().map(|entry| entry.mount_point.clone());
    let mut mounted: Vec<_> =
        below.filter(|point| point.starts_with(world.scratch.path()) && *point != world.scratch.root()).collect();
    mounted.sort();
    let expected: BTreeSet<_> = stands.iter().flat_map(|stand| stand.mounts.iter().cloned()).collect();
    assert_eq!(mounted, expected.into_iter().collect::<Vec<_>>(), "mounts");

    let driver = world.daemon().pid();
    assert_eq!(others_here(Some(driver)), Vec::<String>::new(), "processes");
    let pool = format!("test=file:{}", world.pool.display());
    let doctor = try_run(driver_binary(), &["doctor", "--pool", &pool]);
    assert_eq!(doctor.code, Some(0), "doctor: {doctor:?}");
}

/// An entry without a name of its own in the pool: its path, its inode, and its change time, because inode numbers are
/// soon reused.
type Nameless = (PathBuf, u64, i64, i64);

/// What is being created or removed in the pool.
fn nameless(world: &World) -> BTreeSet<Nameless> {
    let mut found = BTreeSet::new();
    for part in ["", "volumes", "snapshots", "trash"] {
        for name in world.in_pool(part) {
            let path = world.pool.join(part).join(&name);
            if (part == "trash" || name.starts_with(".tmp-"))
                && let Ok(entry) = fs::symlink_metadata(&path)
            {
                found.insert((path, entry.ino(), entry.ctime(), entry.ctime_nsec()));
            }
        }
    }
    found
}

/// When the driver is killed: so long after its start, or after it serves; or in the middle of an operation.
enum Kill {
    FromStart(Duration),
    Serving(Duration),
    InMkfs,
    HalfMade,
}

/// How long to wait for the middle of an operation.
const MIDDLE: Duration = Duration::from_secs(2);

fn kill(dice: &Dice) -> Kill {
    let ms = Duration::from_millis;
    match dice.below(10) {
        0 => Kill::FromStart(dice.moment(ms(30))),
        1..=2 => Kill::Serving(dice.moment(ms(60))),
        3..=5 => Kill::Serving(dice.moment(ms(500))),
        6 => Kill::InMkfs,
        7 => Kill::HalfMade,
        _ => Kill::Serving(dice.moment(ms(2000))),
    }
}

/// Whether it occurred.
fn await_middle(comes: impl Fn() -> bool) -> bool {
    let watch = Stopwatch::start();
    while watch.elapsed() < MIDDLE {
        if comes() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// The driver serves, and the leftovers of its predecessor are gone.
fn serves(world: &mut World, shared: &Shared, left: &BTreeSet<Nameless>) {
    world.await_ready();
    let still: Vec<_> = nameless(world).intersection(left).cloned().collect();
    assert_eq!(still, [], "LEAKED: there before the start, and after it");
    shared.count(|figures| figures.swept += left.len());
}

fn torture(pool: PoolFs, lives: usize) {
    let seed = seed();
    eprintln!("HOLDFAST_TORTURE_SEED={seed}: {lives} lives on {pool:?}");
    let watch = Stopwatch::start();
    let mut world = World::stopped(pool, POOL);
    let dice = Dice::new(seed);
    let crowd = Crowd::new(&world, pool, seed);
    let shared = Arc::clone(&crowd.shared);
    for life in 1..=lives {
        let left = nameless(&world);
        world.launch();
        shared.life.store(life, Ordering::SeqCst);
        match kill(&dice) {
            Kill::FromStart(moment) => {
                std::thread::sleep(moment);
                shared.count(|figures| figures.starts_cut += 1);
            }
            Kill::Serving(moment) => {
                serves(&mut world, &shared, &left);
                std::thread::sleep(moment);
            }
            Kill::InMkfs => {
                serves(&mut world, &shared, &left);
                let met = await_middle(|| !tools_here("mkfs.").is_empty());
                shared.count(|figures| figures.mkfs_cut += usize::from(met));
            }
            Kill::HalfMade => {
                serves(&mut world, &shared, &left);
                await_middle(|| !nameless(&world).is_empty());
            }
        }
        if life % REST == 0 {
            world.await_ready();
            let _all = shared.gate.write().unwrap();
            if crowd.is_well() {
                let stands = shared.stands.lock().unwrap().clone();
                compare(&mut world, &stands);
                shared.count(|figures| figures.rests += 1);
            }
        }
        shared.killed();
        world.kill9();
        let alive: Vec<_> =
            tools_here("mkfs.").into_iter().filter(|tool| !tool.is_killed).map(|tool| tool.process).collect();
        assert_eq!(alive, Vec::<String>::new(), "LEAKED: outlives its driver");
        // Not always, so that the next driver meets what the kernel still finishes.
        if dice.one_in(2) {
            let mut left = others_here(None);
            left.retain(|process| !OUTLIVING.iter().any(|tool| process.contains(tool)));
            assert_eq!(left, Vec::<String>::new(), "outlived their parent");
        }
        if !crowd.is_well() {
            break;
        }
    }
    world.start();
    drop(crowd.end());
    compare(&mut world, &shared.stands.lock().unwrap());
    assert!(!world.log().contains("panicked"), "the driver panicked: {}", world.log_path().display());
    world.finish();
    let figures = shared.figures.lock().unwrap();
    let seconds = watch.elapsed().as_secs();
    eprintln!(
        "{lives} lives, {CALLERS} callers, pool on {pool:?}, {seconds} s, HOLDFAST_TORTURE_SEED={seed}\n{figures}"
    );
}

#[test]
fn killed_at_random_moments_on_xfs_nothing_is_lost_or_leaked() {
    torture(PoolFs::Xfs, lives() - lives() / 5);
}

#[test]
fn killed_at_random_moments_on_ext4_nothing_is_lost_or_leaked() {
    torture(PoolFs::Ext4, lives() / 5);
}
