//! The contract of [`Pool`], run against real pools. What a case expects follows from [`Pool::abilities`], never from a
//! name. A new pool kind or decorator runs the same cases: add one line at the end of this file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::{
    Ability, ActiveDevice, Blankness, Cloning, Continue, Deactivated, Fill, Geometry, Object, ObjectKind, Pool,
    Progress,
};
use crate::os::{Os, Program};
use crate::testing::scratch::{PoolFs, Scratch};
use crate::types::{Bytes, Error, Failure, Kind, MIB, ObjectUuid, Provisioning};

const RECORD: &[u8] = b"{\"schema\":1}";

fn uuid(name: &str) -> ObjectUuid {
    ObjectUuid::of_volume(name)
}

fn volume(name: &str) -> Object {
    Object::Volume(uuid(name))
}

fn snapshot(name: &str) -> Object {
    Object::Snapshot(ObjectUuid::of_snapshot(name))
}

fn geometry(mib: u64, provisioning: Provisioning) -> Geometry {
    Geometry { size: Bytes::mib(mib), block_size: 4096, provisioning }
}

/// Each provisioning that the pool supports.
fn provisionings(pool: &dyn Pool) -> Vec<Provisioning> {
    match pool.abilities().thick {
        Ability::Yes => vec![Provisioning::Thick, Provisioning::Thin],
        Ability::No => vec![Provisioning::Thin],
    }
}

fn make(pool: &dyn Pool, object: Object, mib: u64, provisioning: Provisioning) {
    pool.create(object, &geometry(mib, provisioning), Fill::Blank, RECORD).unwrap();
}

fn write(device: &ActiveDevice, offset: u64, content: &[u8]) {
    let file = OpenOptions::new().write(true).open(&device.path).unwrap();
    file.write_all_at(content, offset).unwrap();
    file.sync_all().unwrap();
}

fn read(device: &ActiveDevice, offset: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    File::open(&device.path).unwrap().read_exact_at(&mut content, offset).unwrap();
    content
}

/// Writes to a volume that is not active.
fn put(pool: &dyn Pool, name: &str, geometry: &Geometry, offset: u64, content: &[u8]) {
    let device = pool.local().activate(uuid(name), geometry).unwrap();
    write(&device, offset, content);
    assert_eq!(pool.local().deactivate(uuid(name)).unwrap(), Deactivated::Gone);
}

/// Reads from a volume that is not active.
fn get(pool: &dyn Pool, name: &str, geometry: &Geometry, offset: u64, bytes: usize) -> Vec<u8> {
    let device = pool.local().activate(uuid(name), geometry).unwrap();
    let content = read(&device, offset, bytes);
    assert_eq!(pool.local().deactivate(uuid(name)).unwrap(), Deactivated::Gone);
    content
}

fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> Kind {
    result.unwrap_err().kind()
}

fn clean(result: Result<(), Failure>) -> Kind {
    match result.unwrap_err() {
        Failure::Clean(error) => error.kind(),
        Failure::Dirty(error) => panic!("not clean: {}", error.chain()),
    }
}

fn nothing_is_left(pool: &dyn Pool) {
    assert_eq!(pool.list(ObjectKind::Volume).unwrap(), []);
    assert_eq!(pool.list(ObjectKind::Snapshot).unwrap(), []);
    assert_eq!(pool.strays().unwrap(), []);
}

/// Stores the reports and stops after a number of them.
struct Reports {
    seen: Mutex<Vec<(u64, u64)>>,
    stop_after: usize,
}

impl Reports {
    fn stopping_after(stop_after: usize) -> Self {
        Self { seen: Mutex::new(Vec::new()), stop_after }
    }

    fn seen(&self) -> Vec<(u64, u64)> {
        self.seen.lock().unwrap().clone()
    }
}

impl Progress for Reports {
    fn step(&self, done: Bytes, total: Bytes) -> Continue {
        let mut seen = self.seen.lock().unwrap();
        seen.push((done.get(), total.get()));
        if seen.len() >= self.stop_after { Continue::No } else { Continue::Yes }
    }
}

fn an_object_lives_from_create_to_remove(pool: &dyn Pool) {
    for object in [volume("a"), snapshot("a")] {
        let class = if object == volume("a") { ObjectKind::Volume } else { ObjectKind::Snapshot };
        assert_eq!(pool.read_record(object).unwrap(), None);
        assert_eq!(pool.facts(object).unwrap(), None);
        make(pool, object, 8, Provisioning::Thin);
        assert_eq!(pool.list(class).unwrap(), [object.uuid()]);
        assert_eq!(pool.text(object), RECORD);
        assert_eq!(pool.facts(object).unwrap().unwrap().size, Bytes::mib(8));
        pool.write(object, b"new").unwrap();
        assert_eq!(pool.text(object), b"new");
        assert_eq!(pool.strays().unwrap(), []);
        pool.sweep().unwrap();
        assert_eq!(pool.list(class).unwrap(), [object.uuid()]);
        pool.remove(object).unwrap();
        pool.remove(object).unwrap();
        nothing_is_left(pool);
        make(pool, object, 8, Provisioning::Thin);
        pool.remove(object).unwrap();
    }
}

fn what_does_not_exist_is_not_found(pool: &dyn Pool) {
    let (a, wanted) = (uuid("a"), geometry(8, Provisioning::Thin));
    assert_eq!(kind(pool.write(volume("a"), b"x")), Kind::NotFound);
    assert_eq!(kind(pool.local().activate(a, &wanted)), Kind::NotFound);
    assert_eq!(kind(pool.grow(a, &wanted)), Kind::NotFound);
    assert_eq!(kind(pool.blank(a, &wanted)), Kind::NotFound);
    assert_eq!(kind(pool.blankness(a)), Kind::NotFound);
    assert_eq!(kind(pool.extents(volume("a"))), Kind::NotFound);
    assert_eq!(kind(pool.extent_count(volume("a"))), Kind::NotFound);
    assert_eq!(pool.local().active(a).unwrap(), None);
    assert_eq!(pool.local().deactivate(a).unwrap(), Deactivated::Gone);
    pool.remove(volume("a")).unwrap();
    nothing_is_left(pool);
}

fn what_is_there_is_not_made_again(pool: &dyn Pool) {
    make(pool, volume("a"), 8, Provisioning::Thin);
    let again = pool.create(volume("a"), &geometry(16, Provisioning::Thin), Fill::Blank, b"other");
    assert_eq!(clean(again), Kind::AlreadyExists);
    assert_eq!(pool.text(volume("a")), RECORD);
    assert_eq!(pool.facts(volume("a")).unwrap().unwrap().size, Bytes::mib(8));
}

fn what_cannot_be_made_is_refused_and_leaves_nothing(pool: &dyn Pool) {
    let refuse = |wanted: Geometry| clean(pool.create(volume("a"), &wanted, Fill::Blank, RECORD));
    let thin = geometry(8, Provisioning::Thin);
    for size in [0, MIB - 1, MIB + 512, u64::MAX / MIB * MIB] {
        assert_eq!(refuse(Geometry { size: Bytes::new(size), ..thin }), Kind::OutOfRange, "{size}");
    }
    assert_eq!(refuse(Geometry { block_size: 1000, ..thin }), Kind::Unsupported);
    if pool.abilities().thick == Ability::No {
        assert_eq!(refuse(geometry(8, Provisioning::Thick)), Kind::Unsupported);
    }
    nothing_is_left(pool);
}

fn a_full_pool_refuses_cleanly_and_keeps_what_it_has(pool: &dyn Pool) {
    if pool.abilities().thick == Ability::No {
        return;
    }
    make(pool, volume("a"), 64, Provisioning::Thick);
    let wanted = geometry(64, Provisioning::Thick);
    put(pool, "a", &wanted, 0, b"kept");
    let before = pool.room().unwrap();
    let too_much = geometry(before.total.get() / MIB, Provisioning::Thick);
    assert_eq!(clean(pool.create(volume("b"), &too_much, Fill::Blank, RECORD)), Kind::NoCapacity);
    assert_eq!(pool.list(ObjectKind::Volume).unwrap(), [uuid("a")]);
    assert_eq!(pool.strays().unwrap(), []);
    assert!(pool.room().unwrap().available.get() + 4 * MIB >= before.available.get(), "space leaked");
    assert_eq!(kind(pool.grow(uuid("a"), &too_much)), Kind::NoCapacity);
    assert_eq!(get(pool, "a", &wanted, 0, 4), b"kept");
}

fn one_byte_in_the_last_sector_is_not_blank(pool: &dyn Pool) {
    for provisioning in provisionings(pool) {
        let wanted = geometry(16, provisioning);
        make(pool, volume("a"), 16, provisioning);
        assert_eq!(pool.blankness(uuid("a")).unwrap(), Blankness::Proven);
        let device = pool.local().activate(uuid("a"), &wanted).unwrap();
        assert_eq!(pool.blankness(uuid("a")).unwrap(), Blankness::Proven);
        assert_eq!(read(&device, 0, 16 << 20), vec![0; 16 << 20]);
        assert_eq!(pool.blankness(uuid("a")).unwrap(), Blankness::Proven, "reading makes no data");
        // Left in the device's cache on purpose.
        let file = OpenOptions::new().write(true).open(&device.path).unwrap();
        file.write_all_at(&[1], (16 << 20) - 1).unwrap();
        assert!(matches!(pool.blankness(uuid("a")).unwrap(), Blankness::DataAt(at) if at > 8 << 20));
        drop(file);
        assert_eq!(kind(pool.blank(uuid("a"), &wanted)), Kind::InUse);
        assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
        assert!(matches!(pool.blankness(uuid("a")).unwrap(), Blankness::DataAt(_)));
        pool.blank(uuid("a"), &wanted).unwrap();
        pool.blank(uuid("a"), &wanted).unwrap();
        assert_eq!(pool.blankness(uuid("a")).unwrap(), Blankness::Proven);
        assert_eq!(get(pool, "a", &wanted, (16 << 20) - 4096, 4096), vec![0; 4096]);
        thick_is_thick(pool, &wanted);
        pool.remove(volume("a")).unwrap();
    }
}

/// Volume `a` is fully allocated if it is thick, and is not if it is thin.
fn thick_is_thick(pool: &dyn Pool, wanted: &Geometry) {
    let allocated = pool.facts(volume("a")).unwrap().unwrap().allocated;
    match wanted.provisioning {
        Provisioning::Thick => assert!(allocated >= wanted.size, "{allocated} of {}", wanted.size),
        Provisioning::Thin => assert!(allocated < wanted.size, "{allocated} of {}", wanted.size),
    }
}

fn discards_reach_thin_images_only(pool: &dyn Pool) {
    // Thick first: a device number it used must pass discards on again afterwards.
    for provisioning in provisionings(pool) {
        let wanted = geometry(16, provisioning);
        make(pool, volume("a"), 16, provisioning);
        thick_is_thick(pool, &wanted);
        let device = pool.local().activate(uuid("a"), &wanted).unwrap();
        write(&device, 0, &vec![7; 16 << 20]);
        let os = Os::new();
        let discard = Program::find("blkdiscard", &device.path, Duration::from_secs(20)).unwrap();
        let output = os.run(&discard.arg(device.path.display().to_string())).unwrap();
        assert_eq!(output.success(), provisioning == Provisioning::Thin, "{}", output.summary());
        thick_is_thick(pool, &wanted);
        assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
        pool.remove(volume("a")).unwrap();
    }
}

fn a_clone_is_independent_of_its_source(pool: &dyn Pool) {
    for provisioning in provisionings(pool) {
        let wanted = geometry(16, provisioning);
        make(pool, volume("a"), 16, provisioning);
        let device = pool.local().activate(uuid("a"), &wanted).unwrap();
        write(&device, MIB, b"old");
        let cut = pool.create(snapshot("s"), &wanted, Fill::Clone(volume("a")), RECORD);
        let Cloning::Instant { .. } = pool.abilities().cloning else {
            assert_eq!(clean(cut), Kind::Unsupported);
            assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
            pool.remove(volume("a")).unwrap();
            nothing_is_left(pool);
            continue;
        };
        cut.unwrap();
        write(&device, MIB, b"new");
        assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
        let larger = geometry(24, provisioning);
        pool.create(volume("b"), &larger, Fill::Clone(snapshot("s")), RECORD).unwrap();
        assert_eq!(pool.facts(volume("b")).unwrap().unwrap().size, larger.size);
        let smaller = pool.create(volume("c"), &geometry(8, provisioning), Fill::Clone(snapshot("s")), RECORD);
        assert_eq!(clean(smaller), Kind::OutOfRange);
        let of_nothing = pool.create(volume("c"), &wanted, Fill::Clone(snapshot("none")), RECORD);
        assert_eq!(clean(of_nothing), Kind::NotFound);
        pool.remove(snapshot("s")).unwrap();
        assert_eq!(get(pool, "b", &larger, MIB, 3), b"old");
        assert_eq!(get(pool, "b", &larger, 16 << 20, 8 << 20), vec![0; 8 << 20]);
        put(pool, "b", &larger, MIB, b"own");
        assert_eq!(get(pool, "a", &wanted, MIB, 3), b"new");
        pool.remove(volume("a")).unwrap();
        assert_eq!(get(pool, "b", &larger, MIB, 3), b"own");
        pool.remove(volume("b")).unwrap();
        nothing_is_left(pool);
    }
}

fn a_clone_of_a_blank_volume_is_blank(pool: &dyn Pool) {
    if pool.abilities().cloning == Cloning::Copy {
        return;
    }
    for provisioning in provisionings(pool) {
        make(pool, volume("a"), 16, provisioning);
        pool.create(volume("b"), &geometry(16, provisioning), Fill::Clone(volume("a")), RECORD).unwrap();
        assert_eq!(pool.blankness(uuid("b")).unwrap(), Blankness::Proven);
        pool.remove(volume("a")).unwrap();
        pool.remove(volume("b")).unwrap();
    }
}

fn a_copy_resumes_where_it_was_stopped(pool: &dyn Pool) {
    let wanted = geometry(160, Provisioning::Thin);
    let end = (160 << 20) - 4096;
    make(pool, volume("a"), 160, Provisioning::Thin);
    let device = pool.local().activate(uuid("a"), &wanted).unwrap();
    let pattern: Vec<u8> = (0..70_u32 << 20).map(|i| (i >> 12).to_le_bytes()[0] | 1).collect();
    write(&device, 0, &pattern);
    write(&device, end, &[9; 4096]);
    assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
    make(pool, volume("b"), 160, Provisioning::Thin);
    let first = Reports::stopping_after(1);
    pool.copy(volume("a"), volume("b"), Bytes::ZERO, &first).unwrap();
    let (done, total) = first.seen()[0];
    assert!(first.seen().len() == 1 && done < total && total == 160 << 20, "{:?}", first.seen());
    let rest = Reports::stopping_after(usize::MAX);
    pool.copy(volume("a"), volume("b"), Bytes::new(done), &rest).unwrap();
    assert_eq!(*rest.seen().last().unwrap(), (total, total));
    assert!(rest.seen().iter().all(|(at, _)| *at > done), "{:?}", rest.seen());
    let device = pool.local().activate(uuid("b"), &wanted).unwrap();
    assert!(read(&device, 0, pattern.len()) == pattern, "the data differs");
    assert_eq!(read(&device, 70 << 20, 4096), [0; 4096]);
    assert_eq!(read(&device, end, 4096), [9; 4096]);
    assert_eq!(pool.local().deactivate(uuid("b")).unwrap(), Deactivated::Gone);
    assert!(pool.facts(volume("b")).unwrap().unwrap().allocated < Bytes::mib(100), "holes were filled");
    make(pool, volume("c"), 8, Provisioning::Thin);
    assert_eq!(kind(pool.copy(volume("a"), volume("c"), Bytes::ZERO, &rest)), Kind::OutOfRange);
}

fn a_copy_of_a_blank_volume_is_blank(pool: &dyn Pool) {
    for provisioning in provisionings(pool) {
        make(pool, volume("a"), 16, provisioning);
        make(pool, volume("b"), 16, provisioning);
        let reports = Reports::stopping_after(usize::MAX);
        pool.copy(volume("a"), volume("b"), Bytes::ZERO, &reports).unwrap();
        assert_eq!(reports.seen(), [(16 << 20, 16 << 20)]);
        assert_eq!(pool.blankness(uuid("b")).unwrap(), Blankness::Proven);
        pool.remove(volume("a")).unwrap();
        pool.remove(volume("b")).unwrap();
    }
}

fn an_erased_volume_reads_as_zeroes_to_its_end(pool: &dyn Pool) {
    let provisioning = pool.abilities().default_provisioning;
    let wanted = geometry(96, provisioning);
    make(pool, volume("a"), 96, provisioning);
    put(pool, "a", &wanted, 0, b"secret");
    put(pool, "a", &wanted, (96 << 20) - 6, b"secret");
    let device = pool.local().activate(uuid("a"), &wanted).unwrap();
    assert_eq!(kind(pool.erase(volume("a"), Bytes::ZERO, &Reports::stopping_after(9))), Kind::InUse);
    assert_eq!(read(&device, 0, 6), b"secret");
    assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
    let first = Reports::stopping_after(1);
    pool.erase(volume("a"), Bytes::ZERO, &first).unwrap();
    assert_eq!(get(pool, "a", &wanted, (96 << 20) - 6, 6), b"secret");
    let rest = Reports::stopping_after(usize::MAX);
    pool.erase(volume("a"), Bytes::new(first.seen()[0].0), &rest).unwrap();
    assert_eq!(rest.seen(), [(96 << 20, 96 << 20)]);
    assert_eq!(get(pool, "a", &wanted, 0, 96 << 20), vec![0; 96 << 20]);
}

fn a_volume_is_one_device_however_often_it_is_activated(pool: &dyn Pool) {
    let os = Os::new();
    for block_size in [512, 4096] {
        let wanted = Geometry { block_size, ..geometry(16, pool.abilities().default_provisioning) };
        pool.create(volume("a"), &wanted, Fill::Blank, RECORD).unwrap();
        assert_eq!(pool.local().active(uuid("a")).unwrap(), None);
        let device = pool.local().activate(uuid("a"), &wanted).unwrap();
        assert_eq!(pool.local().activate(uuid("a"), &wanted).unwrap(), device);
        assert_eq!(pool.local().active(uuid("a")).unwrap().as_ref(), Some(&device));
        let node = os.open_device(&device.path).unwrap();
        assert_eq!(os.device_size(&node).unwrap(), 16 << 20);
        assert_eq!(os.device_block_size(&node).unwrap(), block_size);
        drop(node);
        write(&device, 0, b"data");
        assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
        assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
        assert_eq!(pool.local().active(uuid("a")).unwrap(), None);
        assert_eq!(get(pool, "a", &wanted, 0, 4), b"data");
        pool.remove(volume("a")).unwrap();
    }
}

fn an_image_shorter_than_its_record_is_not_activated(pool: &dyn Pool) {
    make(pool, volume("a"), 8, Provisioning::Thin);
    assert_eq!(kind(pool.local().activate(uuid("a"), &geometry(9, Provisioning::Thin))), Kind::Corrupt);
    assert_eq!(pool.local().active(uuid("a")).unwrap(), None);
}

fn a_device_in_use_stays(pool: &dyn Pool) {
    let provisioning = pool.abilities().default_provisioning;
    let wanted = geometry(16, provisioning);
    make(pool, volume("a"), 16, provisioning);
    let device = pool.local().activate(uuid("a"), &wanted).unwrap();
    write(&device, 0, b"data");
    let holder = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device.path).unwrap();
    assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Held);
    assert_eq!(pool.local().active(uuid("a")).unwrap().as_ref(), Some(&device));
    assert_eq!(kind(pool.remove(volume("a"))), Kind::InUse);
    assert_eq!(read(&device, 0, 4), b"data");
    assert_eq!(pool.text(volume("a")), RECORD);
    drop(holder);
    assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
    assert_eq!(get(pool, "a", &wanted, 0, 4), b"data");
}

/// A raw block device in a pod is open without O_EXCL. After a rejected detach it must not disappear when the pod
/// closes it.
fn a_device_held_plainly_does_not_vanish_later(pool: &dyn Pool) {
    let provisioning = pool.abilities().default_provisioning;
    let wanted = geometry(16, provisioning);
    make(pool, volume("a"), 16, provisioning);
    let device = pool.local().activate(uuid("a"), &wanted).unwrap();
    let holder = OpenOptions::new().read(true).write(true).open(&device.path).unwrap();
    assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Held);
    drop(holder);
    let os = Os::new();
    let status = os.loop_status(os.loop_of(device.number).unwrap().unwrap()).unwrap().unwrap();
    assert!(!status.autoclear && status.direct_io, "{status:?}");
    write(&device, 0, b"data");
    assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
    assert_eq!(get(pool, "a", &wanted, 0, 4), b"data");
}

fn an_active_volume_is_not_removed(pool: &dyn Pool) {
    make(pool, volume("a"), 8, Provisioning::Thin);
    pool.local().activate(uuid("a"), &geometry(8, Provisioning::Thin)).unwrap();
    assert_eq!(kind(pool.remove(volume("a"))), Kind::InUse);
    assert_eq!(pool.list(ObjectKind::Volume).unwrap(), [uuid("a")]);
    assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
    pool.remove(volume("a")).unwrap();
}

fn a_volume_grows_under_its_users(pool: &dyn Pool) {
    let os = Os::new();
    for provisioning in provisionings(pool) {
        let (small, large) = (geometry(16, provisioning), geometry(32, provisioning));
        make(pool, volume("a"), 16, provisioning);
        pool.local().resize(uuid("a"), &small).unwrap();
        let device = pool.local().activate(uuid("a"), &small).unwrap();
        write(&device, 0, b"data");
        let node = os.open_device(&device.path).unwrap();
        assert_eq!(kind(pool.local().resize(uuid("a"), &large)), Kind::Internal);
        pool.grow(uuid("a"), &large).unwrap();
        pool.grow(uuid("a"), &small).unwrap();
        assert_eq!(os.device_size(&node).unwrap(), 16 << 20);
        pool.local().resize(uuid("a"), &large).unwrap();
        assert_eq!(os.device_size(&node).unwrap(), 32 << 20);
        assert_eq!(pool.facts(volume("a")).unwrap().unwrap().size, large.size);
        thick_is_thick(pool, &large);
        assert_eq!(read(&device, 0, 4), b"data");
        // A crash between grow and resize: the next activation resizes the device.
        let larger = geometry(48, provisioning);
        pool.grow(uuid("a"), &larger).unwrap();
        assert_eq!(pool.local().activate(uuid("a"), &large).unwrap(), device);
        assert_eq!(os.device_size(&node).unwrap(), 48 << 20);
        drop(node);
        assert_eq!(pool.local().deactivate(uuid("a")).unwrap(), Deactivated::Gone);
        pool.remove(volume("a")).unwrap();
    }
}

fn many_volumes_keep_to_themselves(pool: &dyn Pool) {
    let wanted = geometry(4, Provisioning::Thin);
    let names: Vec<String> = (0..12).map(|i| format!("v{i}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(move || {
                make(pool, volume(name), 4, Provisioning::Thin);
                let device = pool.local().activate(uuid(name), &wanted).unwrap();
                write(&device, 0, name.as_bytes());
            });
        }
    });
    assert_eq!(pool.list(ObjectKind::Volume).unwrap().len(), names.len());
    assert!(pool.list(ObjectKind::Volume).unwrap().is_sorted());
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(move || {
                let device = pool.local().active(uuid(name)).unwrap().unwrap();
                assert_eq!(read(&device, 0, name.len()), name.as_bytes());
                assert_eq!(pool.local().deactivate(uuid(name)).unwrap(), Deactivated::Gone);
                pool.remove(volume(name)).unwrap();
            });
        }
    });
    nothing_is_left(pool);
}

fn room_and_extents_tell_what_is_taken(pool: &dyn Pool) {
    let before = pool.room().unwrap();
    assert!(before.available <= before.total && before.available > Bytes::ZERO);
    assert_eq!(before.inodes.is_some(), before.inodes_free.is_some());
    let provisioning = pool.abilities().default_provisioning;
    make(pool, volume("a"), 64, provisioning);
    put(pool, "a", &geometry(64, provisioning), 0, &[1; 4096]);
    let extents = pool.extents(volume("a")).unwrap();
    assert!(extents.extents >= 1 && extents.exclusive >= 4096 && extents.shared == 0, "{extents:?}");
    assert_eq!(pool.extent_count(volume("a")).unwrap(), extents.extents);
    if provisioning == Provisioning::Thick {
        assert!(extents.unwritten >= 60 << 20, "{extents:?}");
        assert!(pool.room().unwrap().available.get() + (64 << 20) <= before.available.get() + MIB);
    }
}

fn a_pool_says_who_and_where_it_is(pool: &dyn Pool) {
    let identity = pool.identity();
    assert_eq!((identity.name.as_str(), identity.home.as_str()), ("default", "node-1"));
    assert!(Path::new(&identity.place).is_absolute());
    nothing_is_left(pool);
}

/// Every case on every kind of pool.
macro_rules! contract {
    ($($case:ident)*) => {
        contract!(@ xfs, PoolFs::Xfs; $($case)*);
        contract!(@ xfs_without_reflink, PoolFs::XfsWithoutReflink; $($case)*);
        contract!(@ ext4, PoolFs::Ext4; $($case)*);
        contract!(@ btrfs, PoolFs::Btrfs; $($case)*);
    };
    (@ $kind:ident, $ground:expr; $($case:ident)*) => {
        mod $kind {
            use super::*;

            $(#[test]
            fn $case() {
                let scratch = Scratch::new($ground);
                super::$case(&*scratch.pool());
            })*
        }
    };
}

contract! {
    an_object_lives_from_create_to_remove
    what_does_not_exist_is_not_found
    what_is_there_is_not_made_again
    what_cannot_be_made_is_refused_and_leaves_nothing
    a_full_pool_refuses_cleanly_and_keeps_what_it_has
    one_byte_in_the_last_sector_is_not_blank
    discards_reach_thin_images_only
    a_clone_is_independent_of_its_source
    a_clone_of_a_blank_volume_is_blank
    a_copy_resumes_where_it_was_stopped
    a_copy_of_a_blank_volume_is_blank
    an_erased_volume_reads_as_zeroes_to_its_end
    a_volume_is_one_device_however_often_it_is_activated
    an_image_shorter_than_its_record_is_not_activated
    a_device_in_use_stays
    a_device_held_plainly_does_not_vanish_later
    an_active_volume_is_not_removed
    a_volume_grows_under_its_users
    many_volumes_keep_to_themselves
    room_and_extents_tell_what_is_taken
    a_pool_says_who_and_where_it_is
}
