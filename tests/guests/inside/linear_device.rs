//! The device-mapper device over a loop device by itself: leftovers of crashes, other users, and differences between
//! kernels.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast::home::Changed;
use holdfast::linear::Linear;
use holdfast::os::{Call, DevNum, Discard, DmMode, DmTarget, Interceptor, LoopAccess, LoopConfig, LoopStatus, Os};
use holdfast::types::{Bytes, Kind, VolumeId};

use super::{OURS, attack, none_left, number_of};
use crate::harness::{PoolFs, Scratch, check_device, run, try_run, write_device};

/// A loop device of the test's own over a file of 16 MiB on a scratch filesystem.
fn loop_device(scratch: &Scratch, name: &str) -> (LoopStatus, DevNum, PathBuf) {
    let path = scratch.root().join(name);
    let image = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    image.set_len(16 << 20).unwrap();
    let config = LoopConfig {
        block_size: 4096,
        name: name.to_owned(),
        owner: name.to_owned(),
        discard: Discard::On,
        access: LoopAccess::Writable,
    };
    let device = Os::new().loop_attach(&image, &path, &config).unwrap();
    let status = Os::new().loop_status(device).unwrap().unwrap();
    (status, number_of(&device.path()), device.path())
}

fn volume(name: &str) -> VolumeId {
    let uuid = holdfast::types::ObjectUuid::of_volume(name);
    format!("hf1_00000000000000ab_{uuid}").parse().unwrap()
}

const SIZE: Bytes = Bytes::new(16 << 20);

#[test]
#[ignore = "in a guest: make guests"]
fn what_a_crash_leaves_is_finished_or_removed() {
    let scratch = Scratch::new(PoolFs::Ext4, 256 << 20);
    let (status, below, _) = loop_device(&scratch, "image");
    let os = Os::new();
    let linear = Linear::new(os.clone());
    let id = volume("a");
    let (name, uuid) = (linear.name(&id), format!("{OURS}{}-{}", id.pool, id.uuid));
    let target = |start: u64, length: u64| DmTarget {
        start,
        length,
        kind: "linear".into(),
        parameters: format!("{below} {start}"),
    };
    let whole = [target(0, 32760), target(32760, 8)];
    let steps: [&dyn Fn(); 3] = [
        &|| {
            os.dm_create(&name, &uuid).unwrap();
        },
        &|| os.dm_load(&uuid, &whole, DmMode::Writable).unwrap(),
        &|| os.dm_resume(&uuid).unwrap(),
    ];
    for crash_after in 0..=steps.len() {
        for finish in [true, false] {
            steps[..crash_after].iter().for_each(|step| step());
            let left = linear.all().unwrap();
            // Kernels from 5.15 have a device in sysfs once it had a table.
            let is_shown = usize::from(crash_after >= 2);
            assert_eq!(left.iter().map(|(volume, _)| *volume).collect::<Vec<_>>(), vec![id; is_shown]);
            assert_eq!(linear.device(&id).unwrap().is_some(), crash_after == 3, "only a live table counts");
            if finish {
                let made = linear.ensure(&id, below, SIZE).unwrap();
                assert_eq!(linear.ensure(&id, below, SIZE).unwrap(), made);
                assert_eq!(linear.volume_of(made.number).unwrap(), Some(id));
                assert_eq!(linear.device(&id).unwrap(), Some(made));
            }
            let removed = if finish || crash_after > 0 { Changed::Yes } else { Changed::No };
            assert_eq!(linear.release(&id).unwrap(), removed, "after {crash_after}");
            assert_eq!(linear.release(&id).unwrap(), Changed::No);
            none_left();
            assert!(os.devices_above(below).unwrap().is_empty());
        }
    }
    // An expansion interrupted before its table was live.
    linear.ensure(&id, below, Bytes::new(8 << 20)).unwrap();
    os.dm_load(&uuid, &whole, DmMode::Writable).unwrap();
    assert_eq!(linear.device(&id).unwrap().unwrap().size, Bytes::new(8 << 20));
    assert_eq!(linear.resize(&id, below, SIZE).unwrap(), Changed::Yes);
    assert_eq!(linear.resize(&id, below, SIZE).unwrap(), Changed::No);
    assert_eq!(linear.device(&id).unwrap().unwrap().size, SIZE);
    linear.release(&id).unwrap();
    assert!(os.loop_clear(&status).unwrap());
}

/// Lets one call fail, before its effect or after it.
struct Failing {
    seen: Arc<AtomicUsize>,
    at: usize,
    after: bool,
}

impl Failing {
    fn os(at: usize, after: bool) -> (Os, Arc<AtomicUsize>) {
        let seen = Arc::new(AtomicUsize::new(0));
        (Os::intercepted(Box::new(Self { seen: Arc::clone(&seen), at, after })), seen)
    }

    fn answer(&self, fails: bool) -> std::io::Result<()> {
        if fails { Err(std::io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
}

impl Interceptor for Failing {
    fn before(&self, _: Call, _: &str) -> std::io::Result<()> {
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        self.answer(number == self.at && !self.after)
    }

    fn after(&self, _: Call, _: &str) -> std::io::Result<()> {
        self.answer(self.seen.load(Ordering::Relaxed) == self.at + 1 && self.after)
    }
}

#[test]
#[ignore = "in a guest: make guests"]
fn any_call_may_fail_and_a_retry_ends_the_same() {
    let scratch = Scratch::new(PoolFs::Ext4, 256 << 20);
    let (status, below, _) = loop_device(&scratch, "image");
    let (id, half) = (volume("a"), Bytes::new(8 << 20));
    let mut failed = 0;
    for after in [false, true] {
        for at in 0.. {
            let (os, seen) = Failing::os(at, after);
            let linear = Linear::new(os);
            let mut twice = |work: &dyn Fn() -> holdfast::types::Result<()>| {
                if work().is_err() {
                    failed += 1;
                    work().unwrap();
                }
            };
            twice(&|| linear.ensure(&id, below, half).map(drop));
            twice(&|| linear.resize(&id, below, SIZE).map(drop));
            let device = linear.device(&id).or_else(|_| linear.device(&id)).unwrap().unwrap();
            assert_eq!(device.size, SIZE, "call {at}");
            assert_eq!(Os::new().devices_below(device.number).unwrap(), [below]);
            twice(&|| linear.release(&id).map(drop));
            none_left();
            if seen.load(Ordering::Relaxed) <= at {
                break;
            }
        }
    }
    assert!(failed > 20, "{failed}");
    assert!(Os::new().loop_clear(&status).unwrap());
}

#[test]
#[ignore = "in a guest: make guests"]
fn a_device_that_is_open_or_not_ours_stays_as_it_is() {
    let scratch = Scratch::new(PoolFs::Ext4, 256 << 20);
    let (status, below, node) = loop_device(&scratch, "image");
    let (other_status, other, _) = loop_device(&scratch, "other");
    let os = Os::new();
    let linear = Linear::new(os.clone());
    let (a, b) = (volume("a"), volume("b"));
    let made = linear.ensure(&a, below, SIZE).unwrap();
    let path = os.device_node(made.number).unwrap();
    assert_eq!(number_of(&path), made.number);

    // The loop device has its user, which is visible to every other process that wants it exclusively.
    assert!(os.open_exclusive(&node).unwrap().is_none());
    assert!(!os.loop_clear(&status).unwrap());
    let refused = |result: holdfast::types::Result<_>| result.unwrap_err().kind();
    assert_eq!(refused(linear.ensure(&a, other, SIZE)), Kind::InUse);
    assert_eq!(refused(linear.ensure(&a, below, Bytes::new(8 << 20))), Kind::Corrupt);
    let open = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert_eq!(linear.release(&a).unwrap_err().kind(), Kind::InUse);
    assert_eq!(linear.device(&a).unwrap(), Some(made));
    drop(open);

    // A mount of the loop device prevents the creation of its volume's device.
    run("/usr/sbin/mkfs.ext4", &["-q", &format!("/dev/loop{}", other.minor)]);
    let point = scratch.path().join("point");
    fs::create_dir(&point).unwrap();
    run("/usr/bin/mount", &[&format!("/dev/loop{}", other.minor), point.to_str().unwrap()]);
    assert_eq!(refused(linear.ensure(&b, other, SIZE)), Kind::InUse);
    run("/usr/bin/umount", &[point.to_str().unwrap()]);
    linear.ensure(&b, other, SIZE).unwrap();

    // A leftover node in /dev, a missing one, and another file in its place.
    fs::remove_file(&path).unwrap();
    assert_eq!(number_of(&os.device_node(made.number).unwrap()), made.number);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    assert!(os.device_node(made.number).is_err());
    fs::remove_file(&path).unwrap();

    // A foreign table under the volume's uuid is left alone, and suspended devices are resumed.
    let uuid = format!("{OURS}{}-{}", a.pool, a.uuid);
    let whole = DmTarget { start: 0, length: 32768, kind: "linear".into(), parameters: format!("{below} 0") };
    os.dm_load(&uuid, &[whole], DmMode::Writable).unwrap();
    os.dm_resume(&uuid).unwrap();
    assert_eq!(refused(linear.ensure(&a, below, SIZE)), Kind::Corrupt);
    assert_eq!(linear.device(&a).unwrap_err().kind(), Kind::Corrupt);
    linear.release(&a).unwrap();
    linear.release(&b).unwrap();
    none_left();
    assert!(os.loop_clear(&status).unwrap() && os.loop_clear(&other_status).unwrap());
}

#[test]
#[ignore = "in a guest: make guests"]
fn a_device_that_only_reads_refuses_writes() {
    let scratch = Scratch::new(PoolFs::Ext4, 256 << 20);
    let (status, below, node) = loop_device(&scratch, "image");
    write_device(&node, 1, 0, 2);
    let os = Os::new();
    let linear = Linear::new(os.clone());
    let reading = linear.read_only();
    let id = volume("a");
    let writable = linear.ensure(&id, below, SIZE).unwrap();
    let made = reading.ensure(&id, below, SIZE).unwrap();
    assert_ne!(made.number, writable.number, "one volume may have both");
    assert_eq!((reading.volume_of(made.number).unwrap(), linear.volume_of(made.number).unwrap()), (Some(id), None));
    assert!(os.device_refuses_writes(made.number).unwrap() && !os.device_refuses_writes(writable.number).unwrap());
    let path = os.device_node(made.number).unwrap();
    check_device(&path, 1, 0, 2);
    let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| {
        file.write_all(&[7; 4096])?;
        file.sync_all()
    });
    assert!(written.is_err());
    let discarded = try_run("/usr/bin/busybox", &["blkdiscard", path.to_str().unwrap()]);
    assert_ne!(discarded.code, Some(0));
    check_device(&path, 1, 0, 2);
    assert_eq!(attack::succeeds_with(&path), Vec::<String>::new(), "the loop device's controls");
    assert_eq!(reading.release(&id).unwrap(), Changed::Yes);
    assert!(linear.device(&id).unwrap().is_some(), "the other one stays");
    linear.release(&id).unwrap();
    assert!(os.loop_clear(&status).unwrap());
}

/// Why the table has two targets: a property of kernels; the test fails if it changes.
#[test]
#[ignore = "in a guest: make guests"]
fn one_target_would_hand_the_loop_device_s_controls_through() {
    let scratch = Scratch::new(PoolFs::Ext4, 256 << 20);
    let (status, below, node) = loop_device(&scratch, "image");
    let os = Os::new();
    let target = |start: u64, length: u64| DmTarget {
        start,
        length,
        kind: "linear".into(),
        parameters: format!("{below} {start}"),
    };
    let number = os.dm_create("test", "TEST-1").unwrap();
    let allowed = |table: &[DmTarget]| {
        os.dm_load("TEST-1", table, DmMode::Writable).unwrap();
        os.dm_resume("TEST-1").unwrap();
        attack::succeeds_with(&os.device_node(number).unwrap())
    };
    assert_eq!(allowed(&[target(0, 32760), target(32760, 8)]), Vec::<String>::new());
    let through_one = allowed(&[target(0, 32768)]);
    assert!(through_one.iter().any(|name| name == "LOOP_CLR_FD"), "{through_one:?}");
    os.dm_remove("TEST-1").unwrap();
    // It was marked for removal with its last user, and is gone.
    assert_eq!(os.loop_status(status.device).unwrap(), None);
    drop(node);
}
