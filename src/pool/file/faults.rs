//! The fault matrix: every system call of every operation fails once, before and after its effect. The operation is
//! then retried, as a caller would after an error or a crash. It must reach the same state as an undisturbed one.

use super::super::{
    Blankness, Cloning, Continue, Deactivated, Fill, Geometry, Object, ObjectKind, Pool, Progress, open,
};
use crate::os::Os;
use crate::testing::scratch::{PoolFs, Scratch, home, spec};
use crate::testing::{Disturbance, FaultInjector, Moment};
use crate::types::{Bytes, Error, Failure, Kind, ObjectUuid, Result};

struct Quiet;

impl Progress for Quiet {
    fn step(&self, _done: Bytes, _total: Bytes) -> Continue {
        Continue::Yes
    }
}

fn uuid() -> ObjectUuid {
    ObjectUuid::of_volume("a")
}

fn volume() -> Object {
    Object::Volume(uuid())
}

fn snapshot() -> Object {
    Object::Snapshot(ObjectUuid::of_snapshot("s"))
}

fn geometry(pool: &dyn Pool, mib: u64) -> Geometry {
    Geometry { size: Bytes::mib(mib), block_size: 4096, provisioning: pool.abilities().default_provisioning }
}

/// What is compared: everything that a caller can see.
fn state(pool: &dyn Pool) -> String {
    let seen = |class, object: &dyn Fn(ObjectUuid) -> Object| -> Vec<String> {
        let list = pool.list(class).unwrap();
        let one = |uuid| {
            let object = object(uuid);
            let size = pool.facts(object).unwrap().unwrap().size;
            format!("{object}: {:?} {size}", pool.read_record(object).unwrap())
        };
        list.into_iter().map(one).collect()
    };
    format!(
        "{:?} {:?} active {} strays {:?}",
        seen(ObjectKind::Volume, &Object::Volume),
        seen(ObjectKind::Snapshot, &Object::Snapshot),
        pool.local().active(uuid()).unwrap().is_some(),
        pool.strays().unwrap(),
    )
}

type Step = fn(&dyn Pool) -> Result<(), Failure>;

fn create(pool: &dyn Pool) -> Result<(), Failure> {
    let wanted = geometry(pool, 8);
    again_is_fine(pool.create(volume(), &wanted, Fill::Blank, b"{}"))
}

/// A snapshot, in whichever way the pool creates one.
fn cut(pool: &dyn Pool) -> Result<(), Failure> {
    let wanted = geometry(pool, 8);
    if let Cloning::Instant { .. } = pool.abilities().cloning {
        return again_is_fine(pool.create(snapshot(), &wanted, Fill::Clone(volume()), b"{}"));
    }
    again_is_fine(pool.create(snapshot(), &wanted, Fill::Blank, b"{}"))?;
    pool.copy(volume(), snapshot(), Bytes::ZERO, &Quiet).map_err(Failure::Dirty)
}

/// An error that comes after the object exists, and is not undone, appears as AlreadyExists in the retry.
fn again_is_fine(result: Result<(), Failure>) -> Result<(), Failure> {
    match result {
        Err(Failure::Clean(error)) if error.kind() == Kind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn remove(pool: &dyn Pool) -> Result<(), Failure> {
    pool.remove(snapshot())?;
    pool.remove(volume())?;
    Ok(())
}

fn write_record(pool: &dyn Pool) -> Result<(), Failure> {
    Ok(pool.write(volume(), b"new")?)
}

fn activate(pool: &dyn Pool) -> Result<(), Failure> {
    Ok(pool.local().activate(uuid(), &geometry(pool, 8)).map(drop)?)
}

fn grow(pool: &dyn Pool) -> Result<(), Failure> {
    let larger = geometry(pool, 12);
    Ok(pool.grow(uuid(), &larger).and_then(|()| pool.local().resize(uuid(), &larger))?)
}

fn deactivate(pool: &dyn Pool) -> Result<(), Failure> {
    match pool.local().deactivate(uuid())? {
        Deactivated::Gone => Ok(()),
        Deactivated::Held => Err(Error::new(Kind::InUse, "held").into()),
    }
}

fn blank(pool: &dyn Pool) -> Result<(), Failure> {
    pool.blank(uuid(), &geometry(pool, 8))?;
    assert_eq!(pool.blankness(uuid())?, Blankness::Proven);
    Ok(())
}

fn erase(pool: &dyn Pool) -> Result<(), Failure> {
    Ok(pool.erase(volume(), Bytes::ZERO, &Quiet)?)
}

fn sweep(pool: &dyn Pool) -> Result<(), Failure> {
    Ok(pool.sweep()?)
}

/// The lifecycle of a volume. Each step is disturbed in turn, from the state that the previous steps left.
const LIFE: &[(&str, Step, Step)] = &[
    ("create", create, remove),
    ("write record", write_record, nothing),
    ("blank", blank, nothing),
    ("erase", erase, nothing),
    ("clone", cut, remove_snapshot),
    ("activate", activate, deactivate),
    ("grow", grow, nothing),
    ("deactivate", deactivate, activate),
    ("sweep", sweep, nothing),
    ("remove", remove, rebuild),
];

fn nothing(_pool: &dyn Pool) -> Result<(), Failure> {
    Ok(())
}

fn remove_snapshot(pool: &dyn Pool) -> Result<(), Failure> {
    Ok(pool.remove(snapshot())?)
}

/// The state in which `remove` starts.
fn rebuild(pool: &dyn Pool) -> Result<(), Failure> {
    create(pool)?;
    write_record(pool)?;
    cut(pool)
}

fn disturb(ground: PoolFs) {
    let scratch = Scratch::new(ground);
    let hand = FaultInjector::default();
    let os = Os::intercepted(Box::new(hand.clone()));
    let pool = open(&os, &spec(&scratch.root()), &home()).unwrap();
    let pool = &*pool;
    for (name, step, reset) in LIFE {
        let before = state(pool);
        step(pool).unwrap();
        let expected = state(pool);
        let mut faults = 0;
        for moment in [Moment::Before, Moment::After] {
            for call in 0.. {
                reset(pool).unwrap();
                let start = state(pool);
                hand.arm(call, Disturbance::Once(moment, 0));
                let result = step(pool);
                if hand.disarm().is_none() {
                    result.unwrap();
                    break;
                }
                faults += 1;
                let at = format!("{name}, call {call}, {moment:?}: {:?}", result.as_ref().map_err(Failure::error));
                if let Err(Failure::Clean(error)) = &result
                    && matches!(*name, "create" | "clone")
                {
                    assert_eq!(state(pool), start, "not clean: {at}: {error:?}");
                }
                step(pool).unwrap_or_else(|failure| panic!("{at}: retry: {}", failure.error().chain()));
                assert_eq!(state(pool), expected, "{at}");
            }
        }
        assert!(faults >= 2, "{name} was never disturbed (from {before})");
        pool.sweep().unwrap();
        assert_eq!(state(pool), expected, "{name}");
    }
}

#[test]
fn a_volume_outlives_every_fault_on_xfs() {
    disturb(PoolFs::Xfs);
}

#[test]
fn a_volume_outlives_every_fault_on_ext4() {
    disturb(PoolFs::Ext4);
}

#[test]
fn a_volume_outlives_every_fault_on_btrfs() {
    disturb(PoolFs::Btrfs);
}

/// Opening fails at every call, then works. The id stays the same once pool.json is in place.
#[test]
fn opening_outlives_every_fault() {
    let hand = FaultInjector::default();
    let os = Os::intercepted(Box::new(hand.clone()));
    let scratch = Scratch::new(PoolFs::Xfs);
    let try_open = || open(&os, &spec(&scratch.root()), &home());
    let empty = || {
        for name in ["pool.json", "pool.json.tmp", "lock", "reserve"] {
            scratch.os().remove_file(&scratch.root().join(name)).unwrap();
        }
        for name in super::layout::DIRECTORIES {
            scratch.os().remove_dir(&scratch.root().join(name)).unwrap();
        }
    };
    for moment in [Moment::Before, Moment::After] {
        for call in 0.. {
            empty();
            hand.arm(call, Disturbance::Once(moment, 0));
            let first = try_open().map(|pool| pool.identity().id);
            if hand.disarm().is_none() {
                first.unwrap();
                break;
            }
            let second = try_open().unwrap_or_else(|error| panic!("call {call}: {}", error.chain()));
            assert!(first.is_err() || first.unwrap() == second.identity().id);
            assert_eq!(second.strays().unwrap(), []);
        }
    }
    let kept = try_open().unwrap().identity().id;
    for call in 0.. {
        hand.arm(call, Disturbance::Once(Moment::Before, 0));
        let _ = try_open();
        if hand.disarm().is_none() {
            break;
        }
        assert_eq!(try_open().unwrap().identity().id, kept);
    }
}
