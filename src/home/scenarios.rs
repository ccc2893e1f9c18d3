//! The rules against real pools: image files on XFS with reflink and on ext4 without.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use super::record::{Record, VolumeRecord};
use super::remote::loopback::Loopback;
use super::*;
use crate::os::{Call, Interceptor, Os};
use crate::pool::scratch::{Ground, Scratch, spec};
use crate::pool::{self, Class, Object, Pool};
use crate::types::*;

const NODE: &str = "node-1";

/// How the home is asked.
#[derive(Clone, Copy)]
enum Way {
    InProcess,
    OverGrpc,
}

impl Way {
    fn to(self, local: LocalHome) -> (Arc<dyn Home>, Option<Loopback>) {
        match self {
            Self::InProcess => (Arc::new(local), None),
            Self::OverGrpc => {
                let wire = Loopback::new(Arc::new(local));
                (wire.home(), Some(wire))
            }
        }
    }
}

/// Every scenario, asked both ways.
macro_rules! both_ways {
    ($($scenario:ident,)+) => {
        mod in_process {
            $(#[test] fn $scenario() { super::$scenario(super::Way::InProcess); })+
        }
        mod over_grpc {
            $(#[test] fn $scenario() { super::$scenario(super::Way::OverGrpc); })+
        }
    };
}

both_ways! {
    a_retried_create_meets_its_own_first_try_and_another_request_is_refused,
    one_name_is_one_volume_also_when_two_pools_are_asked_at_once,
    an_attached_volume_is_not_deleted_and_a_detached_one_is_once,
    one_writer,
    a_grant_stays_while_its_device_is_held_and_the_next_has_a_higher_number,
    formatted_once_and_never_again,
    a_foreign_byte_anywhere_forbids_the_format,
    a_written_zero_is_data_too,
    read_only_never_formats_and_raw_stays_raw,
    a_snapshot_outlives_its_source_and_a_restore_may_be_larger,
    copies_inherit_the_format_and_none_is_cut_while_formatting,
    without_reflinks_an_attached_volume_is_not_cut_and_says_what_to_do,
    a_copy_holds_its_source_off_shows_not_ready_and_can_be_deleted_under_way,
    a_copy_that_was_stopped_and_not_deleted_still_holds_its_source_off,
    a_copy_cut_off_by_a_crash_goes_on_in_the_next_life,
    growth_is_idempotent_never_shrinks_and_a_cut_off_one_is_finished,
    growth_under_an_open_device_reaches_it,
    promises_are_kept_before_new_ones_are_made,
    the_bytes_of_a_zeroing_class_are_gone_before_the_name_is,
    a_damaged_record_is_refused_alone_and_fails_the_list,
    a_missing_or_short_image_is_never_opened,
    a_cut_image_is_never_made_long_again,
    a_full_pool_without_its_reserve_can_be_emptied,
    pages_follow_each_other_and_survive_the_loss_of_their_token,
    what_a_thin_volume_discards_is_promised_again,
    a_volume_whose_growth_was_cut_off_is_snapshotted_and_cloned_whole,
}

struct Rig {
    way: Way,
    _devices: Devices,
    home: Arc<dyn Home>,
    wire: Option<Loopback>,
    local: LocalHome,
    pool: Arc<dyn Pool>,
    os: Os,
    scratch: Scratch,
}

/// Takes every device away at the end of a life.
struct Devices(Arc<dyn Pool>);

impl Drop for Devices {
    fn drop(&mut self) {
        for uuid in self.0.list(Class::Volume).unwrap_or_default() {
            let _ = self.0.deactivate(uuid);
        }
    }
}

impl Rig {
    fn on(way: Way, scratch: Scratch) -> Self {
        Self::with(way, Os::new(), scratch, SpaceLimits::default())
    }

    fn with(way: Way, os: Os, scratch: Scratch, limits: SpaceLimits) -> Self {
        let pool = pool::open(&os, &spec(&scratch.root()), &node()).unwrap();
        let local = LocalHome::open(os.clone(), node(), vec![(Arc::clone(&pool), limits)]).unwrap();
        let (home, wire) = way.to(local.clone());
        Self { way, _devices: Devices(Arc::clone(&pool)), home, wire, local, pool, os, scratch }
    }

    /// Another life of the daemon on the same pool.
    fn again(self) -> Self {
        let Self { way, _devices, home, wire, local, pool, scratch, .. } = self;
        drop((home, wire));
        // A copy's thread may still be on its way out, with the pool's lock.
        while Arc::strong_count(&local.shared) > 1 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        drop((_devices, local, pool));
        Self::on(way, scratch)
    }

    fn image(&self, id: &VolumeId) -> PathBuf {
        self.scratch.root().join("volumes").join(id.uuid.to_string()).join("data")
    }

    fn write(&self, id: &VolumeId, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.image(id)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
        file.sync_all().unwrap();
    }

    fn read(&self, id: &VolumeId, offset: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        std::fs::File::open(self.image(id)).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn create(&self, name: &str, mib: u64) -> Volume {
        self.home.create_volume(&request(name, mib)).unwrap().into_inner()
    }

    fn grant(&self, id: &VolumeId) {
        self.home.grant(id, &grant()).unwrap();
    }
}

fn node() -> NodeId {
    NODE.parse().unwrap()
}

fn request(name: &str, mib: u64) -> CreateVolume {
    CreateVolume {
        name: name.to_owned(),
        range: CapacityRange { required: Some(Bytes::mib(mib)), limit: None },
        capabilities: vec![Capability {
            mode: VolumeMode::Mount(FsType::Ext4),
            access: AccessMode::SingleNodeMultiWriter,
        }],
        parameters: VolumeParameters::default(),
        source: None,
    }
}

fn from(name: &str, mib: u64, source: Source) -> CreateVolume {
    CreateVolume { source: Some(source), ..request(name, mib) }
}

fn grant() -> GrantRequest {
    GrantRequest {
        node: node(),
        mode: VolumeMode::Mount(FsType::Ext4),
        access: AccessMode::SingleNodeMultiWriter,
        read_only: ReadOnly::No,
    }
}

fn snapshot_of(name: &str, source: VolumeId) -> CreateSnapshot {
    CreateSnapshot { name: name.to_owned(), source }
}

fn clean(result: Result<Created<Volume>, Failure>) -> Kind {
    match result.unwrap_err() {
        Failure::Clean(error) => error.kind(),
        Failure::Dirty(error) => panic!("dirty: {}", error.chain()),
    }
}

fn a_retried_create_meets_its_own_first_try_and_another_request_is_refused(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let first = rig.create("a", 32);
    assert_eq!(rig.home.create_volume(&request("a", 32)).unwrap(), Created::Existing(first.clone()));
    assert_eq!(clean(rig.home.create_volume(&request("a", 33))), Kind::AlreadyExists);
    let other = CreateVolume {
        parameters: VolumeParameters { provisioning: Some(Provisioning::Thin), ..Default::default() },
        ..request("a", 32)
    };
    assert_eq!(clean(rig.home.create_volume(&other)), Kind::AlreadyExists);
    let block = Capability { mode: VolumeMode::Block, access: AccessMode::SingleNodeWriter };
    assert_eq!(
        clean(rig.home.create_volume(&CreateVolume { capabilities: vec![block], ..request("a", 32) })),
        Kind::AlreadyExists
    );
    let rig = rig.again();
    assert_eq!(rig.home.volumes(None, 0).unwrap().entries, vec![first]);
}

/// Holds every new image until it is let go.
struct Slow(Arc<Gate>);

impl Interceptor for Slow {
    fn before(&self, call: Call, _target: &str) -> io::Result<()> {
        if call == Call::CreateImage {
            let open = self.0.open.lock().unwrap();
            drop(self.0.changed.wait_while(open, |open| !*open).unwrap());
        }
        Ok(())
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}

fn one_name_is_one_volume_also_when_two_pools_are_asked_at_once(way: Way) {
    let gate = Arc::new(Gate::default());
    let os = Os::intercepted(Box::new(Slow(Arc::clone(&gate))));
    let grounds = [Scratch::new(Ground::Xfs), Scratch::new(Ground::Ext4)];
    gate.set(true);
    let named = |name: &str, scratch: &Scratch| {
        let spec = format!("{name}=file:{}", scratch.root().display()).parse().unwrap();
        (pool::open(&os, &spec, &node()).unwrap(), SpaceLimits::default())
    };
    let pools = vec![named("one", &grounds[0]), named("two", &grounds[1])];
    let (home, _wire) = way.to(LocalHome::open(os.clone(), node(), pools).unwrap());
    gate.set(false);
    let in_pool = |name: &str| {
        let parameters = VolumeParameters { pool: Some(name.parse().unwrap()), ..VolumeParameters::default() };
        CreateVolume { parameters, ..request("a", 32) }
    };
    let (first, other) = (Arc::clone(&home), in_pool("one"));
    let creating = std::thread::spawn(move || first.create_volume(&other));
    std::thread::sleep(std::time::Duration::from_millis(100));
    let failure = home.create_volume(&in_pool("two"));
    gate.set(true);
    assert!(creating.join().unwrap().is_ok());
    assert!(matches!(failure.unwrap_err(), Failure::Dirty(error) if error.kind() == Kind::Busy));
    assert_eq!(clean(home.create_volume(&in_pool("two"))), Kind::AlreadyExists);
}

fn an_attached_volume_is_not_deleted_and_a_detached_one_is_once(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let id = rig.create("a", 32).id;
    rig.grant(&id);
    assert_eq!(rig.home.delete_volume(&id).unwrap_err().kind(), Kind::InUse);
    assert_eq!(rig.home.volume(&id).unwrap().published, vec![node()]);
    assert_eq!(rig.home.revoke(&id, None).unwrap(), Changed::Yes);
    assert_eq!(rig.home.revoke(&id, None).unwrap(), Changed::No);
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::Yes);
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::No);
    assert_eq!(rig.home.volume(&id).unwrap_err().kind(), Kind::NotFound);
    assert!(!rig.image(&id).exists());
}

fn one_writer(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let id = rig.create("a", 32).id;
    assert_eq!(rig.home.open(&id, &node()).unwrap_err().kind(), Kind::Precondition);
    rig.grant(&id);
    assert_eq!(rig.home.grant(&id, &grant()).unwrap().changed, Changed::No);
    let elsewhere = GrantRequest { node: "node-2".parse().unwrap(), ..grant() };
    let error = rig.home.grant(&id, &elsewhere).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    assert!(error.to_string().contains(NODE), "{error}");
    let read_only = GrantRequest { read_only: ReadOnly::Yes, ..grant() };
    assert_eq!(rig.home.grant(&id, &read_only).unwrap_err().kind(), Kind::AlreadyExists);
    assert_eq!(rig.home.open(&id, &"node-2".parse().unwrap()).unwrap_err().kind(), Kind::Precondition);
}

fn a_grant_stays_while_its_device_is_held_and_the_next_has_a_higher_number(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let id = rig.create("a", 32).id;
    rig.grant(&id);
    let opened = rig.home.open(&id, &node()).unwrap();
    let Coordinates::Local { device } = opened.at;
    let held = rig.os.open_exclusive(&device).unwrap().unwrap();
    let error = rig.home.revoke(&id, Some(&node())).unwrap_err();
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains(&*device.to_string_lossy()), "{error}");
    assert_eq!(rig.home.close(&id, &node()).unwrap_err().kind(), Kind::InUse);
    drop(held);
    rig.home.close(&id, &node()).unwrap();
    assert_eq!(rig.home.revoke(&id, Some(&node())).unwrap(), Changed::Yes);
    assert_eq!(rig.pool.active(id.uuid).unwrap(), None);
    assert_eq!(rig.home.grant(&id, &grant()).unwrap().epoch, opened.epoch + 1);
}

fn formatted_once_and_never_again(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let id = rig.create("a", 32).id;
    rig.grant(&id);
    let first = rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap();
    rig.write(&id, 4096, b"half a mkfs");
    let second = rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap();
    assert_ne!(first.planned_uuid, second.planned_uuid);
    assert_eq!(rig.read(&id, 4096, 11), vec![0; 11]);
    assert_eq!(rig.home.end_format(&id, &node(), first.planned_uuid).unwrap_err().kind(), Kind::Precondition);
    rig.home.end_format(&id, &node(), second.planned_uuid).unwrap();
    rig.home.end_format(&id, &node(), second.planned_uuid).unwrap();
    assert_eq!(rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err().kind(), Kind::Precondition);
    assert_eq!(rig.home.use_raw(&id, &node()).unwrap_err().kind(), Kind::Precondition);
    rig.home.revoke(&id, None).unwrap();
    let rig = rig.again();
    assert_eq!(
        rig.home.volume(&id).unwrap().format,
        FormatState::Formatted { fs: FsType::Ext4, uuid: second.planned_uuid }
    );
}

fn a_foreign_byte_anywhere_forbids_the_format(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let size = Bytes::mib(32).get();
    for (name, offset) in [("first", 0), ("middle", size / 2 + 513), ("last", size - 1)] {
        let id = rig.create(name, 32).id;
        rig.grant(&id);
        rig.write(&id, offset, b"x");
        let error = rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err();
        assert_eq!(error.kind(), Kind::Precondition, "{}", error.chain());
        assert_eq!(rig.read(&id, offset, 1), b"x");
        assert_eq!(rig.home.volume(&id).unwrap().format, FormatState::Never);
    }
}

fn a_written_zero_is_data_too(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let id = rig.create("zero", 32).id;
    rig.grant(&id);
    rig.write(&id, 1 << 20, &[0; 4096]);
    assert_eq!(rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err().kind(), Kind::Precondition);
}

fn read_only_never_formats_and_raw_stays_raw(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let id = rig.create("a", 32).id;
    rig.home.grant(&id, &GrantRequest { read_only: ReadOnly::Yes, ..grant() }).unwrap();
    assert_eq!(rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err().kind(), Kind::Precondition);
    let id = rig.create("b", 32).id;
    rig.home.grant(&id, &GrantRequest { mode: VolumeMode::Block, ..grant() }).unwrap();
    rig.home.use_raw(&id, &node()).unwrap();
    rig.home.use_raw(&id, &node()).unwrap();
    assert_eq!(rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err().kind(), Kind::Precondition);
}

fn a_snapshot_outlives_its_source_and_a_restore_may_be_larger(way: Way) {
    for rig in [Rig::on(way, Scratch::new(Ground::Xfs)), Rig::on(way, Scratch::new(Ground::Ext4))] {
        let source = rig.create("a", 32).id;
        rig.write(&source, 5 << 20, b"before");
        let snapshot = rig.home.create_snapshot(&snapshot_of("s", source)).unwrap().into_inner();
        assert_eq!(snapshot.copy, CopyState::Ready, "a small copy is complete in the first answer");
        rig.write(&source, 5 << 20, b"after!");
        let retried = rig.home.create_snapshot(&snapshot_of("s", source)).unwrap();
        assert_eq!(retried, Created::Existing(snapshot.clone()));
        assert_eq!(rig.home.delete_volume(&source).unwrap(), Changed::Yes);
        let rig = rig.again();
        let restored = until_made(&rig, &from("r", 48, Source::Snapshot(snapshot.id)));
        assert_eq!(restored.size, Bytes::mib(48));
        assert_eq!(rig.read(&restored.id, 5 << 20, 6), b"before");
        let small = from("small", 16, Source::Snapshot(snapshot.id));
        assert_eq!(clean(rig.home.create_volume(&small)), Kind::OutOfRange);
        assert_eq!(rig.home.delete_snapshot(&snapshot.id).unwrap(), Changed::Yes);
        assert_eq!(rig.read(&restored.id, 5 << 20, 6), b"before");
        let gone = from("late", 48, Source::Snapshot(snapshot.id));
        assert_eq!(clean(rig.home.create_volume(&gone)), Kind::NotFound);
    }
}

/// Waits for a snapshot that is copied.
fn ready(rig: &Rig, id: SnapshotId) -> Snapshot {
    for _ in 0..500 {
        let snapshot = rig.home.snapshot(&id).unwrap();
        if snapshot.copy == CopyState::Ready {
            return snapshot;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{id} is never ready");
}

/// Retries a create as the provisioner does.
fn until_made(rig: &Rig, request: &CreateVolume) -> Volume {
    for _ in 0..500 {
        match rig.home.create_volume(request) {
            Ok(created) => return created.into_inner(),
            Err(Failure::Dirty(error)) if error.kind() == Kind::Busy => {}
            Err(failure) => panic!("{}", failure.error().chain()),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} is never made", request.name);
}

fn copies_inherit_the_format_and_none_is_cut_while_formatting(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let source = rig.create("a", 32).id;
    let fresh = rig.home.create_volume(&from("fresh", 32, Source::Volume(source))).unwrap().into_inner();
    rig.grant(&fresh.id);
    assert!(
        rig.home.begin_format(&fresh.id, &node(), FsType::Ext4).is_ok(),
        "a clone of a never-used claim can be formatted"
    );
    rig.grant(&source);
    let planned = rig.home.begin_format(&source, &node(), FsType::Ext4).unwrap().planned_uuid;
    let busy = rig.home.create_snapshot(&snapshot_of("s", source)).unwrap_err();
    assert!(matches!(busy, Failure::Dirty(ref error) if error.kind() == Kind::Busy));
    rig.home.end_format(&source, &node(), planned).unwrap();
    let clone = rig.home.create_volume(&from("b", 32, Source::Volume(source))).unwrap().into_inner();
    assert_eq!(clone.format, FormatState::Formatted { fs: FsType::Ext4, uuid: planned });
    let block = Capability { mode: VolumeMode::Block, access: AccessMode::SingleNodeWriter };
    let as_block = CreateVolume { capabilities: vec![block], ..from("c", 32, Source::Volume(source)) };
    assert_eq!(clean(rig.home.create_volume(&as_block)), Kind::InvalidArgument);
}

fn without_reflinks_an_attached_volume_is_not_cut_and_says_what_to_do(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Ext4));
    let id = rig.create("a", 32).id;
    rig.grant(&id);
    let failure = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap_err();
    let Failure::Clean(error) = failure else { panic!("dirty") };
    assert_eq!(error.kind(), Kind::Precondition);
    assert!(error.to_string().contains("Stop the pods") && error.to_string().contains("XFS"), "{error}");
    assert_eq!(clean(rig.home.create_volume(&from("c", 32, Source::Volume(id)))), Kind::Precondition);
    assert!(rig.home.snapshots(&SnapshotFilter::default(), None, 0).unwrap().entries.is_empty());
}

/// Holds every copy_file_range until it is let go.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, open: bool) {
        *self.open.lock().unwrap() = open;
        self.changed.notify_all();
    }
}

struct Gated(Arc<Gate>);

impl Interceptor for Gated {
    fn before(&self, call: Call, _target: &str) -> io::Result<()> {
        if call == Call::CopyRange {
            let open = self.0.open.lock().unwrap();
            drop(self.0.changed.wait_while(open, |open| !*open).unwrap());
        }
        Ok(())
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}

fn a_copy_holds_its_source_off_shows_not_ready_and_can_be_deleted_under_way(way: Way) {
    let gate = Arc::new(Gate::default());
    let os = Os::intercepted(Box::new(Gated(Arc::clone(&gate))));
    let rig = Rig::with(way, os, Scratch::new(Ground::Ext4), SpaceLimits::default());
    let id = rig.create("a", 32).id;
    rig.write(&id, 3 << 20, b"data");
    let snapshot = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap().into_inner();
    assert!(matches!(snapshot.copy, CopyState::Copying { .. }));
    let error = rig.home.grant(&id, &grant()).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains('%'), "{error}");
    assert_eq!(rig.home.delete_volume(&id).unwrap_err().kind(), Kind::Busy);
    assert_eq!(
        rig.home.expand(&id, &CapacityRange { required: Some(Bytes::mib(64)), limit: None }).unwrap_err().kind(),
        Kind::Busy
    );
    let restore = rig.home.create_volume(&from("r", 32, Source::Snapshot(snapshot.id)));
    assert!(matches!(restore.unwrap_err(), Failure::Dirty(error) if error.kind() == Kind::Busy));
    let home = rig.home.clone();
    let deleting = std::thread::spawn(move || home.delete_snapshot(&snapshot.id));
    std::thread::sleep(std::time::Duration::from_millis(50));
    gate.set(true);
    assert_eq!(deleting.join().unwrap().unwrap(), Changed::Yes);
    assert!(rig.home.snapshots(&SnapshotFilter::default(), None, 0).unwrap().entries.is_empty());
    rig.grant(&id);
}

/// Fails every write of a record with this error while there is one.
struct Unwritable(Gated, Arc<Mutex<Option<i32>>>);

impl Interceptor for Unwritable {
    fn before(&self, call: Call, target: &str) -> io::Result<()> {
        let a_record = target.contains(".json") || target.ends_with("/reserve");
        if let (Call::WriteFile, true, Some(error)) = (call, a_record, *self.1.lock().unwrap()) {
            return Err(io::Error::from_raw_os_error(error));
        }
        self.0.before(call, target)
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}

/// Whoever may go on with a copy must find the source as it was: else half of it is older than the rest.
fn a_copy_that_was_stopped_and_not_deleted_still_holds_its_source_off(way: Way) {
    let (gate, unwritable) = (Arc::new(Gate::default()), Arc::new(Mutex::new(None)));
    let os = Os::intercepted(Box::new(Unwritable(Gated(Arc::clone(&gate)), Arc::clone(&unwritable))));
    let rig = Rig::with(way, os, Scratch::new(Ground::Ext4), SpaceLimits::default());
    let id = rig.create("a", 32).id;
    rig.write(&id, 3 << 20, b"data");
    let snapshot = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap().into_inner().id;
    *unwritable.lock().unwrap() = Some(libc::EIO);
    let home = rig.home.clone();
    let deleting = std::thread::spawn(move || home.delete_snapshot(&snapshot));
    std::thread::sleep(std::time::Duration::from_millis(50));
    gate.set(true);
    deleting.join().unwrap().unwrap_err();
    *unwritable.lock().unwrap() = None;

    let error = rig.home.grant(&id, &grant()).unwrap_err();
    assert!(error.kind() == Kind::Busy && error.to_string().contains("delete it"), "{error}");
    assert_eq!(rig.home.delete_volume(&id).unwrap_err().kind(), Kind::Busy);
    rig.home.create_snapshot(&snapshot_of("s", id)).unwrap();
    ready(&rig, snapshot);
    rig.grant(&id);
    let restored = until_made(&rig, &from("r", 32, Source::Snapshot(snapshot)));
    assert_eq!(rig.read(&restored.id, 3 << 20, 4), b"data");
    assert_eq!(rig.home.delete_snapshot(&snapshot).unwrap(), Changed::Yes);
}

fn a_copy_cut_off_by_a_crash_goes_on_in_the_next_life(way: Way) {
    let gate = Arc::new(Gate::default());
    let os = Os::intercepted(Box::new(Gated(Arc::clone(&gate))));
    let scratch = Scratch::new(Ground::Ext4);
    let rig = Rig::with(way, os, scratch, SpaceLimits::default());
    let id = rig.create("a", 32).id;
    rig.write(&id, 3 << 20, b"data");
    let snapshot = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap().into_inner().id;
    // The next life finds the record as a crash would leave it: `creating`, with a copy.
    let record = rig.pool.read_record(Object::Snapshot(snapshot.uuid)).unwrap().unwrap();
    gate.set(true);
    ready(&rig, snapshot);
    rig.pool.write_record(Object::Snapshot(snapshot.uuid), &record).unwrap();
    let rig = rig.again();
    ready(&rig, snapshot);
    let restored = until_made(&rig, &from("r", 32, Source::Snapshot(snapshot)));
    assert_eq!(rig.read(&restored.id, 3 << 20, 4), b"data");
}

fn growth_is_idempotent_never_shrinks_and_a_cut_off_one_is_finished(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let id = rig.create("a", 32).id;
    let to = |mib| CapacityRange { required: Some(Bytes::mib(mib)), limit: None };
    assert_eq!(rig.home.expand(&id, &to(64)).unwrap().size, Bytes::mib(64));
    assert_eq!(rig.home.expand(&id, &to(64)).unwrap().changed, Changed::No);
    assert_eq!(rig.home.expand(&id, &to(16)).unwrap().size, Bytes::mib(64));
    let limit = CapacityRange { required: None, limit: Some(Bytes::mib(32)) };
    assert_eq!(rig.home.expand(&id, &limit).unwrap_err().kind(), Kind::OutOfRange);
    let error = rig.home.expand(&id, &to(1 << 20)).unwrap_err();
    assert_eq!(error.kind(), Kind::NoCapacity);
    assert_eq!(rig.home.volume(&id).unwrap().size, Bytes::mib(64));

    let object = Object::Volume(id.uuid);
    let text = rig.pool.read_record(object).unwrap().unwrap();
    let mut record = VolumeRecord::decode(object, id.pool, &text).unwrap();
    record.target_size = Some(Bytes::mib(96));
    rig.pool.write_record(object, &record.encode().unwrap()).unwrap();
    let rig = rig.again();
    rig.grant(&id);
    assert_eq!(rig.home.open(&id, &node()).unwrap().size, Bytes::mib(96));
    assert_eq!(rig.home.volume(&id).unwrap().size, Bytes::mib(96));
    rig.home.revoke(&id, None).unwrap();
}

fn growth_under_an_open_device_reaches_it(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let id = rig.create("a", 32).id;
    rig.grant(&id);
    let Coordinates::Local { device } = rig.home.open(&id, &node()).unwrap().at;
    let held = rig.os.open_device(&device).unwrap();
    rig.home.expand(&id, &CapacityRange { required: Some(Bytes::mib(64)), limit: None }).unwrap();
    assert_eq!(rig.os.device_size(&held).unwrap(), Bytes::mib(64).get());
    drop(held);
    rig.home.revoke(&id, None).unwrap();
}

fn promises_are_kept_before_new_ones_are_made(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let all = rig.home.capacity(&CapacityQuery::default()).unwrap().available;
    // Less a little: what XFS itself takes for them is not told in advance.
    let half = all.get() / (1 << 20) / 2 - 3;
    let a = rig.create("a", half).id;
    let left = rig.home.capacity(&CapacityQuery::default()).unwrap().available;
    assert!(left.get() <= all.get() - half * (1 << 20), "{left} of {all}");
    // A snapshot of a thick volume reserves its full size although it takes nothing yet.
    rig.home.create_snapshot(&snapshot_of("s", a)).unwrap();
    assert!(rig.home.capacity(&CapacityQuery::default()).unwrap().available < Bytes::mib(16));
    assert_eq!(clean(rig.home.create_volume(&request("b", half))), Kind::NoCapacity);
    let failure = rig.home.create_snapshot(&snapshot_of("s2", a)).unwrap_err();
    assert!(matches!(failure, Failure::Clean(ref error) if error.kind() == Kind::NoCapacity));
    let rig = rig.again();
    assert_eq!(clean(rig.home.create_volume(&request("b", half))), Kind::NoCapacity);
    for snapshot in rig.home.snapshots(&SnapshotFilter::default(), None, 0).unwrap().entries {
        rig.home.delete_snapshot(&snapshot.id).unwrap();
    }
    assert_eq!(rig.home.capacity(&CapacityQuery::default()).unwrap().available, left);
    rig.home.delete_volume(&a).unwrap();
    // XFS gives the blocks of an unlinked file back a moment later.
    let mut again = Bytes::ZERO;
    for _ in 0..200 {
        again = rig.home.capacity(&CapacityQuery::default()).unwrap().available;
        if all.get() - again.get() <= 4 << 20 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    panic!("{again} of {all}");
}

fn the_bytes_of_a_zeroing_class_are_gone_before_the_name_is(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let parameters = VolumeParameters { on_delete: OnDelete::Zero, ..Default::default() };
    let id = rig.home.create_volume(&CreateVolume { parameters, ..request("a", 32) }).unwrap().into_inner().id;
    rig.write(&id, 7 << 20, b"secret");
    let image = std::fs::File::open(rig.image(&id)).unwrap();
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::Yes);
    let mut bytes = [1; 6];
    image.read_exact_at(&mut bytes, 7 << 20).unwrap();
    assert_eq!(bytes, [0; 6]);
}

fn a_damaged_record_is_refused_alone_and_fails_the_list(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let (bad, good) = (rig.create("bad", 32).id, rig.create("good", 32).id);
    let object = Object::Volume(bad.uuid);
    let text = rig.pool.read_record(object).unwrap().unwrap();
    rig.pool.write_record(object, &text[..text.len() / 2]).unwrap();
    let rig = rig.again();
    assert_eq!(rig.home.volume(&bad).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(rig.home.delete_volume(&bad).unwrap_err().kind(), Kind::Corrupt);
    assert!(matches!(rig.home.create_volume(&request("bad", 32)).unwrap_err(), Failure::Dirty(_)));
    rig.grant(&good);
    rig.home.revoke(&good, None).unwrap();
    let error = rig.home.volumes(None, 0).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.chain().contains(&bad.uuid.to_string()), "{}", error.chain());
    assert!(rig.image(&bad).exists());
}

fn a_missing_or_short_image_is_never_opened(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let id = rig.create("a", 32).id;
    rig.grant(&id);
    OpenOptions::new().write(true).open(rig.image(&id)).unwrap().set_len(31 << 20).unwrap();
    let error = rig.home.open(&id, &node()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(std::fs::metadata(rig.image(&id)).unwrap().len(), 31 << 20);
    std::fs::remove_file(rig.image(&id)).unwrap();
    assert_eq!(rig.home.open(&id, &node()).unwrap_err().kind(), Kind::Corrupt);
}

fn a_cut_image_is_never_made_long_again(way: Way) {
    for ground in [Ground::Xfs, Ground::Ext4] {
        let rig = Rig::on(way, Scratch::new(ground));
        let cut = |path: &std::path::Path, mib: u64| {
            OpenOptions::new().write(true).open(path).unwrap().set_len(mib << 20).unwrap();
        };
        let length = |path: &std::path::Path| std::fs::metadata(path).unwrap().len() >> 20;
        let id = rig.create("a", 32).id;
        let image = rig.image(&id);
        cut(&image, 16);
        let larger = CapacityRange { required: Some(Bytes::mib(64)), limit: None };
        let error = rig.home.expand(&id, &larger).unwrap_err();
        assert!(error.kind() == Kind::Corrupt && error.to_string().contains("16777216"), "{error}");
        let failure = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap_err();
        assert_eq!(failure.error().kind(), Kind::Corrupt);
        assert_eq!(clean(rig.home.create_volume(&from("c", 64, Source::Volume(id)))), Kind::Corrupt);
        assert_eq!(length(&image), 16, "what is lost is not replaced by zeroes");
        cut(&image, 32);
        let snapshot = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap().into_inner().id;
        ready(&rig, snapshot);
        cut(&rig.scratch.root().join("snapshots").join(snapshot.uuid.to_string()).join("data"), 16);
        assert_eq!(clean(rig.home.create_volume(&from("r", 64, Source::Snapshot(snapshot)))), Kind::Corrupt);
        assert_eq!(rig.home.delete_snapshot(&snapshot).unwrap(), Changed::Yes);
    }
}

fn a_full_pool_without_its_reserve_can_be_emptied(way: Way) {
    let (gate, unwritable) = (Arc::new(Gate::default()), Arc::new(Mutex::new(None)));
    gate.set(true);
    let os = Os::intercepted(Box::new(Unwritable(Gated(gate), Arc::clone(&unwritable))));
    let rig = Rig::with(way, os, Scratch::new(Ground::Xfs), SpaceLimits::default());
    let id = rig.create("a", 32).id;
    let snapshot = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap().into_inner().id;
    *unwritable.lock().unwrap() = Some(libc::ENOSPC);
    let error = rig.home.grant(&id, &grant()).unwrap_err();
    assert!(error.kind() == Kind::NoCapacity && error.chain().contains("is full"), "{}", error.chain());
    assert_eq!(rig.home.delete_snapshot(&snapshot).unwrap(), Changed::Yes);
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::Yes);
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::No);
    assert!(!rig.image(&id).exists());
}

fn pages_follow_each_other_and_survive_the_loss_of_their_token(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    for n in 0..5 {
        rig.create(&format!("v{n}"), 16);
    }
    let first = rig.home.volumes(None, 2).unwrap();
    let token = first.next.unwrap();
    rig.home.delete_volume(&token).unwrap();
    let second = rig.home.volumes(Some(token), 2).unwrap();
    let third = rig.home.volumes(second.next, 2).unwrap();
    assert_eq!((first.entries.len(), second.entries.len(), third.entries.len()), (2, 2, 1));
    assert_eq!(third.next, None);
    let mut ids: Vec<_> = [first.entries, second.entries, third.entries].concat().iter().map(|v| v.id).collect();
    ids.dedup();
    assert_eq!(ids.len(), 5);
}

fn what_a_thin_volume_discards_is_promised_again(way: Way) {
    let rig = Rig::on(way, Scratch::new(Ground::Xfs));
    let parameters = VolumeParameters { provisioning: Some(Provisioning::Thin), ..Default::default() };
    let id = rig.home.create_volume(&CreateVolume { parameters, ..request("a", 64) }).unwrap().into_inner().id;
    // Somebody else uses the filesystem too: what is really free is what counts.
    std::fs::write(rig.scratch.root().join("foreign"), vec![1; 128 << 20]).unwrap();
    rig.write(&id, 0, &vec![1; 32 << 20]);
    let available = || rig.home.capacity(&CapacityQuery::default()).unwrap().available;
    let before = available();
    let file = OpenOptions::new().write(true).open(rig.image(&id)).unwrap();
    rig.os.punch_hole(&file, &rig.image(&id), 0, 64 << 20).unwrap();
    file.sync_all().unwrap();
    let after = available();
    assert!(after <= before.saturating_add(Bytes::mib(2)), "{after} after {before}");
}

fn a_volume_whose_growth_was_cut_off_is_snapshotted_and_cloned_whole(way: Way) {
    for ground in [Ground::Xfs, Ground::Ext4] {
        let rig = Rig::on(way, Scratch::new(ground));
        let id = rig.create("v", 16).id;
        // What is left when the process is gone after step 3 of the growth: the record says 16 MiB.
        OpenOptions::new().write(true).open(rig.image(&id)).unwrap().set_len(20 << 20).unwrap();
        rig.write(&id, 18 << 20, b"beyond");
        let snapshot = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap().into_inner();
        assert_eq!((snapshot.size, snapshot.copy), (Bytes::mib(16), CopyState::Ready), "{ground:?}");
        for (name, source) in [("restored", Source::Snapshot(snapshot.id)), ("cloned", Source::Volume(id))] {
            let request = CreateVolume { source: Some(source), ..request(name, 16) };
            let made = rig.home.create_volume(&request).unwrap().into_inner();
            assert_eq!(made.size, Bytes::mib(16), "{ground:?} {name}");
            assert_eq!(rig.read(&made.id, 18 << 20, 6), b"beyond", "{ground:?} {name}");
        }
    }
}
