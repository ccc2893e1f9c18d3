//! Tests for image files only: the directory, its owner, its strays, loop devices of other software.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::{
    Blankness, Cloning, Continue, Deactivated, Fill, FirstUse, Geometry, Object, ObjectKind, Pool, PoolSpec, Progress,
    open,
};
use super::FilePool;
use crate::os::{Call, Discard, Interceptor, LoopAccess, LoopConfig, MountFlags, Os};
use crate::testing::scratch::{Disk, PoolFs, Scratch, home, run, spec};
use crate::types::{Bytes, Error, Failure, Kind, MIB, NodeId, ObjectUuid, Provisioning};

fn uuid() -> ObjectUuid {
    ObjectUuid::of_volume("a")
}

pub(super) const THICK: Geometry =
    Geometry { size: Bytes::mib(16), block_size: 4096, provisioning: Provisioning::Thick };

pub(super) fn volume() -> Object {
    Object::Volume(uuid())
}

pub(super) fn make(pool: &dyn Pool) {
    pool.create(volume(), &THICK, Fill::Blank, b"{}").unwrap();
}

fn data(scratch: &Scratch) -> std::path::PathBuf {
    scratch.root().join(format!("volumes/{}/data", uuid()))
}

pub(super) fn refused<T>(result: Result<T, Error>, kind: Kind, words: &[&str]) {
    let Err(error) = result else { panic!("it was not refused: {words:?}") };
    assert_eq!(error.kind(), kind, "{}", error.chain());
    for word in words {
        assert!(error.chain().contains(word), "{word:?} is not in: {}", error.chain());
    }
}

pub(super) fn try_open(scratch: &Scratch) -> Result<(), Error> {
    open(scratch.os(), &spec(&scratch.root()), &home()).map(drop)
}

/// Puts the directory back in place when it is checked.
struct Arriving {
    aside: PathBuf,
    place: PathBuf,
}

impl Interceptor for Arriving {
    fn before(&self, call: Call, target: &str) -> io::Result<()> {
        if call == Call::Identity && Path::new(target) == self.place {
            let _not_aside = fs::rename(&self.aside, &self.place);
        }
        Ok(())
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_volume_that_is_made_between_two_looks_has_not_lost_its_record() {
    let scratch = Scratch::new(PoolFs::Xfs);
    let place = scratch.root().join(format!("volumes/{}", uuid()));
    let aside = scratch.root().join("aside");
    let os = Os::intercepted(Box::new(Arriving { aside: aside.clone(), place: place.clone() }));
    let pool = open(&os, &spec(&scratch.root()), &home()).unwrap();
    make(&*pool);
    fs::rename(&place, &aside).unwrap();
    assert_eq!(pool.text(volume()), b"{}");
    fs::remove_file(place.join("volume.json")).unwrap();
    refused(pool.read_record(volume()), Kind::Corrupt, &["has no record", "restore it"]);
}

struct Quiet;

impl Progress for Quiet {
    fn step(&self, _done: Bytes, _total: Bytes) -> Continue {
        Continue::Yes
    }
}

#[test]
fn a_pool_keeps_its_id_and_has_one_owner() {
    let scratch = Scratch::new(PoolFs::Ext4);
    let pool = scratch.pool();
    let id = pool.identity().id;
    refused(try_open(&scratch), Kind::InUse, &["another running process", "stop"]);
    drop(pool);
    assert_eq!(scratch.pool().identity().id, id);
}

#[test]
fn a_view_beside_the_owner_sees_everything_and_changes_nothing() {
    let scratch = Scratch::new(PoolFs::Xfs);
    let pool = scratch.pool();
    make(&*pool);
    let device = pool.local().activate(uuid(), &THICK).unwrap();
    let view: Arc<dyn Pool> = FilePool::view(scratch.os(), &scratch.root()).unwrap();
    assert_eq!(view.identity(), pool.identity());
    assert_eq!(view.abilities(), pool.abilities());
    assert_eq!(view.list(ObjectKind::Volume).unwrap(), [uuid()]);
    assert_eq!(view.text(volume()), b"{}");
    assert_eq!(view.facts(volume()).unwrap(), pool.facts(volume()).unwrap());
    assert_eq!(view.local().active(uuid()).unwrap().as_ref(), Some(&device));
    assert_eq!(view.blankness(uuid()).unwrap(), Blankness::Proven);
    assert_eq!(view.extents(volume()).unwrap(), pool.extents(volume()).unwrap());
    assert_eq!(view.strays().unwrap(), []);
    view.room().unwrap();
    let words: &[&str] = &["only for reading", "driver"];
    refused(view.write(volume(), b"x"), Kind::Unsupported, words);
    refused(view.remove(volume()), Kind::Unsupported, words);
    refused(view.sweep(), Kind::Unsupported, words);
    refused(view.grow(uuid(), &THICK), Kind::Unsupported, words);
    refused(view.blank(uuid(), &THICK), Kind::Unsupported, words);
    refused(view.erase(volume(), Bytes::ZERO, &Quiet), Kind::Unsupported, words);
    refused(view.copy(volume(), volume(), Bytes::ZERO, &Quiet), Kind::Unsupported, words);
    refused(view.local().activate(uuid(), &THICK), Kind::Unsupported, words);
    refused(view.local().resize(uuid(), &THICK), Kind::Unsupported, words);
    refused(view.local().deactivate(uuid()), Kind::Unsupported, words);
    let created = view.create(Object::Snapshot(uuid()), &THICK, Fill::Blank, b"{}");
    assert!(matches!(created, Err(Failure::Clean(error)) if error.kind() == Kind::Unsupported));
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Gone);
    drop(pool);
    assert_eq!(view.list(ObjectKind::Volume).unwrap(), [uuid()]);
}

#[test]
fn a_view_needs_a_pool() {
    let scratch = Scratch::new(PoolFs::Ext4);
    refused(FilePool::view(scratch.os(), &scratch.root()), Kind::NotFound, &["no pool", "pool.json"]);
    assert!(fs::read_dir(scratch.root()).unwrap().all(|entry| entry.unwrap().file_name() == "lost+found"));
}

#[test]
fn a_pool_is_made_in_an_empty_directory_only() {
    let scratch = Scratch::new(PoolFs::Ext4);
    let missing = scratch.root().join("missing");
    refused(open(scratch.os(), &spec(&missing), &home()).map(drop), Kind::NotFound, &["mkdir -p", "missing"]);
    fs::write(scratch.root().join("holiday.jpg"), b"x").unwrap();
    refused(try_open(&scratch), Kind::Precondition, &["not empty", "holiday.jpg"]);
    assert!(!scratch.root().join("lock").exists(), "nothing is written into a directory that is refused");
    let file = scratch.root().join("holiday.jpg");
    refused(open(scratch.os(), &spec(&file), &home()).map(drop), Kind::InvalidArgument, &["not a directory"]);
    fs::remove_file(file).unwrap();
    fs::create_dir(scratch.root().join("volumes")).unwrap();
    fs::write(scratch.root().join("pool.json.tmp"), b"half").unwrap();
    try_open(&scratch).unwrap();
}

#[test]
fn a_pool_of_another_node_or_name_is_refused_and_says_what_to_do() {
    let scratch = Scratch::new(PoolFs::Ext4);
    try_open(&scratch).unwrap();
    let other: NodeId = "node-2".parse().unwrap();
    let foreign = open(scratch.os(), &spec(&scratch.root()), &other).map(drop);
    refused(foreign, Kind::Precondition, &["node-1", "node-2", "holdfast pools claim --node-name node-2"]);
    let renamed = PoolSpec::file("fast".parse().unwrap(), &scratch.root()).unwrap();
    let renamed = open(scratch.os(), &renamed, &home()).map(drop);
    refused(renamed, Kind::Precondition, &["default", "fast", "\"name\"", "pool.json"]);
    let path = scratch.root().join("pool.json");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("\"schema\": 1", "\"schema\": 2")).unwrap();
    refused(try_open(&scratch), Kind::Unsupported, &["schema 2", "later"]);
    fs::write(&path, "{}").unwrap();
    refused(try_open(&scratch), Kind::Corrupt, &["pool.json"]);
    fs::write(&path, &good).unwrap();
    fs::remove_dir(scratch.root().join("snapshots")).unwrap();
    refused(try_open(&scratch), Kind::Corrupt, &["snapshots", "mounted"]);
    fs::create_dir(scratch.root().join("snapshots")).unwrap();
    try_open(&scratch).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), good, "opening changes nothing");
}

#[test]
fn a_filesystem_that_keeps_no_promises_is_refused() {
    let os = Os::new();
    os.own_mounts().unwrap();
    let directory = tempfile::tempdir().unwrap();
    os.mount(Path::new("none"), directory.path(), "tmpfs", MountFlags::default(), "size=16m").unwrap();
    let opened = open(&os, &spec(directory.path()), &home()).map(drop);
    refused(opened, Kind::Unsupported, &["tmpfs", "XFS, ext4 or btrfs"]);
    assert!(os.unmount(directory.path()).unwrap());
    refused(open(&os, &spec(Path::new("/proc/sys")), &home()).map(drop), Kind::Unsupported, &["0x9fa0"]);
}

#[test]
fn what_a_filesystem_can_do_is_tried_not_believed() {
    for (ground, reflink, thick) in [
        (PoolFs::Xfs, true, true),
        (PoolFs::XfsWithoutReflink, false, true),
        (PoolFs::Ext4, false, true),
        (PoolFs::Btrfs, true, false),
    ] {
        let scratch = Scratch::new(ground);
        let abilities = scratch.pool().abilities();
        assert_eq!(abilities.cloning != Cloning::Copy, reflink, "{ground:?}");
        assert_eq!(abilities.default_provisioning == Provisioning::Thick, thick, "{ground:?}");
        assert_eq!(FilePool::view(scratch.os(), &scratch.root()).unwrap().abilities(), abilities, "{ground:?}");
    }
}

#[test]
fn growing_fills_holes_that_somebody_punched() {
    for ground in [PoolFs::Xfs, PoolFs::XfsWithoutReflink, PoolFs::Ext4] {
        let scratch = Scratch::new(ground);
        let pool = scratch.pool();
        make(&*pool);
        let path = data(&scratch);
        let image = scratch.os().open_image(&path).unwrap().unwrap();
        scratch.os().punch_hole(&image, &path, 4 << 20, 8 << 20).unwrap();
        drop(image);
        assert!(pool.facts(volume()).unwrap().unwrap().allocated < Bytes::mib(10));
        pool.grow(uuid(), &THICK).unwrap();
        assert!(pool.facts(volume()).unwrap().unwrap().allocated >= Bytes::mib(16));
        assert_eq!(pool.facts(volume()).unwrap().unwrap().size, Bytes::mib(16));
        assert_eq!(pool.blankness(uuid()).unwrap(), Blankness::Proven);
    }
}

#[test]
fn an_image_is_never_reached_through_a_symbolic_link() {
    let scratch = Scratch::new(PoolFs::Ext4);
    let pool = scratch.pool();
    make(&*pool);
    let elsewhere = scratch.root().join("elsewhere");
    fs::rename(data(&scratch), &elsewhere).unwrap();
    symlink(&elsewhere, data(&scratch)).unwrap();
    assert!(pool.local().activate(uuid(), &THICK).is_err());
    assert!(pool.grow(uuid(), &THICK).is_err());
    assert!(pool.blankness(uuid()).is_err());
    fs::remove_file(data(&scratch)).unwrap();
    fs::rename(&elsewhere, data(&scratch)).unwrap();
    let directory = scratch.root().join(format!("volumes/{}", uuid()));
    fs::rename(&directory, &elsewhere).unwrap();
    symlink(&elsewhere, &directory).unwrap();
    assert!(pool.read_record(volume()).is_err());
    assert!(pool.write(volume(), b"x").is_err());
    assert!(pool.local().activate(uuid(), &THICK).is_err());
    assert!(pool.remove(volume()).is_err());
    assert_eq!(fs::read(elsewhere.join("volume.json")).unwrap(), b"{}");
    // A removal removes the link and never its target.
    fs::remove_file(&directory).unwrap();
    fs::rename(&elsewhere, &directory).unwrap();
    fs::rename(data(&scratch), &elsewhere).unwrap();
    symlink(&elsewhere, data(&scratch)).unwrap();
    pool.remove(volume()).unwrap();
    assert!(!directory.exists() && elsewhere.exists());
}

#[test]
fn sweeping_removes_what_has_no_name_and_nothing_else() {
    let scratch = Scratch::new(PoolFs::Ext4);
    let pool = scratch.pool();
    make(&*pool);
    let root = scratch.root();
    let precious = root.join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), b"x").unwrap();
    for name in [".tmp-1", "volumes/.tmp-2", "snapshots/.tmp-3", "trash/volume-4"] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("data"), b"x").unwrap();
    }
    symlink(&precious, root.join("volumes/.tmp-link")).unwrap();
    pool.sweep().unwrap();
    for name in [".tmp-1", "volumes/.tmp-2", "snapshots/.tmp-3", "trash/volume-4", "volumes/.tmp-link"] {
        assert!(root.join(name).symlink_metadata().is_err(), "{name}");
    }
    assert!(precious.join("file").exists());
    assert_eq!(pool.list(ObjectKind::Volume).unwrap(), [uuid()]);
    // Files of other software are kept and do not block the rest.
    fs::create_dir_all(root.join("trash/a/deep/er")).unwrap();
    fs::create_dir(root.join("trash/b")).unwrap();
    pool.sweep().unwrap();
    assert!(!root.join("trash/a").exists() && !root.join("trash/b").exists());
    let kept: Vec<_> = fs::read_dir(root.join("foreign")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(kept.len() == 1 && kept[0].join("deep/er").is_dir(), "{kept:?}");
    // A file that cannot be removed is an error and does not block the rest.
    fs::create_dir_all(root.join("trash/c/deep/er")).unwrap();
    fs::create_dir(root.join("trash/d")).unwrap();
    fs::remove_dir_all(root.join("foreign")).unwrap();
    fs::write(root.join("foreign"), b"x").unwrap();
    assert!(pool.sweep().is_err());
    assert!(!root.join("trash/d").exists());
}

#[test]
fn what_does_not_belong_and_an_object_without_image_are_strays() {
    let scratch = Scratch::new(PoolFs::Ext4);
    let pool = scratch.pool();
    make(&*pool);
    assert_eq!(pool.strays().unwrap(), []);
    let root = scratch.root();
    let other = ObjectUuid::of_volume("b");
    fs::create_dir(root.join(format!("volumes/{other}"))).unwrap();
    fs::write(root.join("volumes/notes.txt"), b"x").unwrap();
    fs::write(root.join("readme"), b"x").unwrap();
    fs::write(root.join(format!("volumes/{}/extra", uuid())), b"x").unwrap();
    let strays = pool.strays().unwrap();
    let found = |end: &str| strays.iter().any(|stray| stray.place.ends_with(end));
    assert!(found(&other.to_string()) && found("notes.txt") && found("readme") && found("extra"), "{strays:?}");
    assert_eq!(strays.len(), 4);
    let mut both = [uuid(), other];
    both.sort_unstable();
    assert_eq!(pool.list(ObjectKind::Volume).unwrap(), both, "one without a record is not passed over");
    refused(pool.read_record(Object::Volume(other)), Kind::Corrupt, &["volume.json", "backup"]);
}

fn foreign_config(name: &str) -> LoopConfig {
    LoopConfig {
        block_size: 4096,
        name: name.to_owned(),
        owner: name.to_owned(),
        discard: Discard::Off,
        access: LoopAccess::Writable,
    }
}

fn foreign(scratch: &Scratch, name: &str) -> crate::os::LoopDevice {
    let image = scratch.os().open_image(&data(scratch)).unwrap().unwrap();
    scratch.os().loop_attach(&image, &data(scratch), &foreign_config(name)).unwrap()
}

fn clear(scratch: &Scratch, device: crate::os::LoopDevice) {
    let status = scratch.os().loop_status(device).unwrap().unwrap();
    assert!(scratch.os().loop_clear(&status).unwrap());
}

#[test]
fn a_loop_device_of_somebody_else_is_named_and_left_alone() {
    let scratch = Scratch::new(PoolFs::Ext4);
    let pool = scratch.pool();
    make(&*pool);
    let device = foreign(&scratch, "mine");
    let name = device.path().display().to_string();
    let words: &[&str] = &[&name, "Holdfast did not attach it", "losetup -d"];
    refused(pool.local().activate(uuid(), &THICK), Kind::Precondition, words);
    refused(pool.local().deactivate(uuid()), Kind::Precondition, words);
    refused(pool.local().active(uuid()), Kind::Precondition, words);
    refused(pool.remove(volume()), Kind::Precondition, words);
    assert!(pool.strays().unwrap().iter().any(|stray| stray.place == name));
    clear(&scratch, device);
    pool.local().activate(uuid(), &THICK).unwrap();
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Gone);
}

/// A device number of a thick image never passes on discards again. There may be more numbers than attempts.
#[test]
fn a_thin_image_is_attached_however_many_thick_ones_had_the_free_numbers() {
    let scratch = Scratch::new(PoolFs::Ext4);
    let pool = scratch.pool();
    make(&*pool);
    let os = scratch.os();
    let thick: Vec<_> = (0..80).map(|_| foreign(&scratch, "mine")).collect();
    for device in &thick {
        os.loop_set_discard(*device, Discard::Off).unwrap();
    }
    for device in thick {
        clear(&scratch, device);
    }
    let image = os.open_image(&data(&scratch)).unwrap().unwrap();
    let config = LoopConfig {
        block_size: 4096,
        name: "mine".to_owned(),
        owner: "mine".to_owned(),
        discard: Discard::On,
        access: LoopAccess::Writable,
    };
    let device = os.loop_attach(&image, &data(&scratch), &config).unwrap();
    clear(&scratch, device);
}

#[test]
fn a_thin_image_on_the_number_of_a_thick_one_passes_on_discards() {
    let scratch = Scratch::new(PoolFs::Ext4);
    let pool = scratch.pool();
    make(&*pool);
    let os = scratch.os();
    let attach = |discard| {
        let image = os.open_image(&data(&scratch)).unwrap().unwrap();
        let config = LoopConfig { discard, ..foreign_config("mine") };
        os.loop_attach(&image, &data(&scratch), &config).unwrap()
    };
    let most = |device: crate::os::LoopDevice| {
        let name = device.path().file_name().unwrap().to_str().unwrap().to_owned();
        let most = fs::read_to_string(format!("/sys/block/{name}/queue/discard_max_bytes")).unwrap();
        most.trim().parse::<u64>().unwrap()
    };
    // Another test may take the number in between.
    while {
        let thick = attach(Discard::Off);
        os.loop_set_discard(thick, Discard::Off).unwrap();
        assert_eq!(most(thick), 0);
        // Its owner gets the number again.
        os.reserve_loop(thick, "mine");
        clear(&scratch, thick);
        let thin = attach(Discard::On);
        os.loop_set_discard(thin, Discard::On).unwrap();
        let passed_on = most(thin);
        clear(&scratch, thin);
        os.release_loops("mine");
        assert!(thin != thick || passed_on > 0, "{thin:?}");
        thin != thick
    } {}
}

#[test]
fn a_device_whose_offset_a_pod_changed_is_not_handed_out() {
    let scratch = Scratch::new(PoolFs::Xfs);
    let pool = scratch.pool();
    make(&*pool);
    let device = pool.local().activate(uuid(), &THICK).unwrap();
    let held = scratch.os().open_exclusive(&device.path).unwrap().unwrap();
    scratch.os().shift_loop(&device.path, 4096).unwrap();
    refused(pool.local().activate(uuid(), &THICK), Kind::InUse, &["changed its offset", "is in use"]);
    refused(pool.local().resize(uuid(), &THICK), Kind::Internal, &["changed its offset"]);
    assert_eq!(pool.local().active(uuid()).unwrap().as_ref(), Some(&device), "it is still this volume's");
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Held);
    drop(held);
    let anew = pool.local().activate(uuid(), &THICK).unwrap();
    assert_ne!(anew.diskseq, device.diskseq);
    let number = scratch.os().loop_of(anew.number).unwrap().unwrap();
    assert_eq!(scratch.os().loop_view(number).unwrap().unwrap().offset, 0);
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Gone);
}

#[test]
fn two_loop_devices_over_one_image_are_an_error_and_both_can_be_taken_away() {
    let scratch = Scratch::new(PoolFs::Ext4);
    let pool = scratch.pool();
    make(&*pool);
    foreign(&scratch, &uuid().to_string());
    foreign(&scratch, &uuid().to_string());
    refused(pool.local().activate(uuid(), &THICK), Kind::Corrupt, &["are both attached", "/dev/loop"]);
    refused(pool.local().active(uuid()), Kind::Corrupt, &["are both attached"]);
    assert_eq!(pool.strays().unwrap().len(), 1);
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Gone);
    assert_eq!(pool.local().active(uuid()).unwrap(), None);
}

#[test]
fn an_attached_device_is_found_again_by_a_new_process() {
    let scratch = Scratch::new(PoolFs::Xfs);
    let pool = scratch.pool();
    make(&*pool);
    let device = pool.local().activate(uuid(), &THICK).unwrap();
    drop(pool);
    let pool = scratch.pool();
    assert_eq!(pool.local().activate(uuid(), &THICK).unwrap(), device);
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Gone);
}

#[test]
fn a_device_is_taken_away_without_image_and_record() {
    let scratch = Scratch::new(PoolFs::Ext4);
    let pool = scratch.pool();
    make(&*pool);
    let device = pool.local().activate(uuid(), &THICK).unwrap();
    fs::remove_dir_all(scratch.root().join(format!("volumes/{}", uuid()))).unwrap();
    assert_eq!(pool.local().active(uuid()).unwrap().as_ref(), Some(&device));
    let strays = pool.strays().unwrap();
    assert!(strays.iter().any(|stray| stray.place == device.path.display().to_string()), "{strays:?}");
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Gone);
    assert_eq!(pool.local().active(uuid()).unwrap(), None);
    assert_eq!(pool.strays().unwrap(), []);
}

/// Which devices were asked what is behind them.
#[derive(Clone, Default)]
struct QueriedDevices(Arc<Mutex<BTreeSet<String>>>);

impl Interceptor for QueriedDevices {
    fn before(&self, call: Call, target: &str) -> io::Result<()> {
        if call == Call::LoopStatus {
            self.0.lock().unwrap().insert(target.to_owned());
        }
        Ok(())
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_loop_device_is_asked_but_those_over_its_volumes() {
    let scratch = Scratch::new(PoolFs::Xfs);
    let asked = QueriedDevices::default();
    let pool = open(&Os::intercepted(Box::new(asked.clone())), &spec(&scratch.root()), &home()).unwrap();
    // No other test has a volume of this uuid. A device that is not its is there: the scratch filesystem's.
    let uuid = ObjectUuid::of_volume(&pool.identity().id.to_string());
    pool.create(Object::Volume(uuid), &THICK, Fill::Blank, b"{}").unwrap();
    let device = pool.local().activate(uuid, &THICK).unwrap();
    assert_eq!(pool.local().active(uuid).unwrap().as_ref(), Some(&device));
    assert_eq!(pool.local().volume_of(device.number).unwrap(), Some(uuid));
    assert_eq!(pool.local().deactivate(uuid).unwrap(), Deactivated::Gone);
    assert_eq!(pool.local().active(uuid).unwrap(), None);
    pool.remove(Object::Volume(uuid)).unwrap();
    assert_eq!(*asked.0.lock().unwrap(), BTreeSet::from([device.path.display().to_string()]));
}

#[test]
fn a_mounted_volume_is_held_and_its_image_stays() {
    let scratch = Scratch::new(PoolFs::Xfs);
    let pool = scratch.pool();
    make(&*pool);
    let device = pool.local().activate(uuid(), &THICK).unwrap();
    run(scratch.os(), "mkfs.ext4", ["-q", device.path.to_str().unwrap()]);
    let point = scratch.beside("point");
    fs::create_dir(&point).unwrap();
    scratch.os().mount(&device.path, &point, "ext4", MountFlags::default(), "").unwrap();
    fs::write(point.join("file"), b"data").unwrap();
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Held);
    refused(pool.remove(volume()), Kind::InUse, &["detach"]);
    assert_eq!(fs::read(point.join("file")).unwrap(), b"data");
    assert_eq!(pool.local().activate(uuid(), &THICK).unwrap(), device);
    // losetup -d of a mounted device only sets autoclear: the driver clears it again.
    run(scratch.os(), "losetup", ["-d", device.path.to_str().unwrap()]);
    let number = scratch.os().loop_of(device.number).unwrap().unwrap();
    let marked = || scratch.os().loop_view(number).unwrap().unwrap().autoclear;
    assert!(marked());
    assert_eq!(pool.local().activate(uuid(), &THICK).unwrap(), device);
    assert!(!marked());
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Held);
    assert!(scratch.os().unmount(&point).unwrap());
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Gone);
    pool.remove(volume()).unwrap();
}

#[test]
fn a_device_of_another_block_size_is_made_anew_when_idle() {
    let scratch = Scratch::new(PoolFs::Ext4);
    let pool = scratch.pool();
    make(&*pool);
    let image = scratch.os().open_image(&data(&scratch)).unwrap().unwrap();
    let config = LoopConfig {
        block_size: 512,
        name: uuid().to_string(),
        owner: uuid().to_string(),
        discard: Discard::Off,
        access: LoopAccess::Writable,
    };
    scratch.os().loop_attach(&image, &data(&scratch), &config).unwrap();
    drop(image);
    let device = pool.local().activate(uuid(), &THICK).unwrap();
    let node = scratch.os().open_device(&device.path).unwrap();
    assert_eq!(scratch.os().device_block_size(&node).unwrap(), 4096);
    drop(node);
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Gone);
}

#[test]
fn a_source_of_too_many_extents_is_not_cloned() {
    let scratch = Scratch::new(PoolFs::Xfs);
    let name = "default".parse().unwrap();
    let mut pool =
        FilePool::open(scratch.os(), &name, &scratch.root(), super::super::BackingFs::Known, &home(), FirstUse::Make)
            .unwrap();
    let thin = Geometry { provisioning: Provisioning::Thin, ..THICK };
    pool.create(volume(), &thin, Fill::Blank, b"{}").unwrap();
    let path = data(&scratch);
    let image = scratch.os().open_image(&path).unwrap().unwrap();
    for mib in [0, 4, 8, 12] {
        scratch.os().write_zeroes(&image, &path, mib << 20, 1 << 20).unwrap();
    }
    drop(image);
    let extents = pool.extent_count(volume()).unwrap();
    assert!(extents >= 4, "{extents}");
    let mut clone = |max_extents| {
        Arc::get_mut(&mut pool).unwrap().abilities.cloning = Cloning::Instant { max_extents };
        pool.create(Object::Snapshot(uuid()), &thin, Fill::Clone(volume()), b"{}")
    };
    match clone(extents - 1) {
        Err(Failure::Clean(error)) => {
            let limit = (extents - 1).to_string();
            refused(Err::<(), _>(error), Kind::Precondition, &[&extents.to_string(), &limit, "defragment"]);
        }
        other => panic!("{other:?}"),
    }
    clone(extents).unwrap();
    assert_eq!(pool.extents(volume()).unwrap().exclusive, 0, "every byte is shared with the snapshot");
}

#[test]
fn a_full_pool_opens_and_volumes_can_be_deleted() {
    for ground in [PoolFs::Xfs, PoolFs::Ext4, PoolFs::Btrfs] {
        let scratch = Scratch::new(ground);
        let pool = scratch.pool();
        let abilities = pool.abilities();
        pool.create(volume(), &Geometry { provisioning: Provisioning::Thin, ..THICK }, Fill::Blank, b"{}").unwrap();
        drop(pool);
        let filler = scratch.root().join("filler");
        let file = scratch.os().create_image(&filler).unwrap();
        let mut bytes = 256 << 20;
        let mut offset = 0;
        while bytes >= 4096 {
            match scratch.os().write_zeroes(&file, &filler, offset, bytes).and_then(|()| file.sync_all()) {
                Ok(()) => offset += bytes,
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
                    bytes /= 2;
                }
            }
        }
        drop(file);
        let pool = scratch.pool();
        assert_eq!(pool.abilities(), abilities, "{ground:?}");
        let created = pool.create(Object::Snapshot(uuid()), &THICK, Fill::Blank, b"{}");
        assert!(matches!(created, Err(Failure::Clean(_))), "{created:?}");
        pool.remove(volume()).unwrap();
        assert_eq!(pool.list(ObjectKind::Volume).unwrap(), []);
    }
}

#[test]
fn a_volume_without_direct_io_is_not_attached() {
    let scratch = Scratch::on(PoolFs::Ext4, Disk { block_size: 4096, ..Disk::of(512 * MIB) });
    let pool = scratch.pool();
    let small_blocks = Geometry { block_size: 512, ..THICK };
    pool.create(volume(), &small_blocks, Fill::Blank, b"{}").unwrap();
    refused(pool.local().activate(uuid(), &small_blocks), Kind::Precondition, &["direct I/O", "move the pool"]);
    assert_eq!(pool.local().active(uuid()).unwrap(), None);
    pool.local().activate(uuid(), &THICK).unwrap();
    assert_eq!(pool.local().deactivate(uuid()).unwrap(), Deactivated::Gone);
}
