//! Snapshots, clones and restores, with reflinks and by copying.

use super::super::record::{CopyRecord, CopySource, Phase, SnapshotRecord};
use super::super::state::Key;
use super::*;

both_ways! {
    a_snapshot_outlives_its_source_and_a_restore_may_be_larger,
    copies_inherit_the_format_and_none_is_cut_while_formatting,
    without_reflinks_an_attached_volume_is_not_cut_and_says_what_to_do,
    a_copy_holds_its_source_off_shows_not_ready_and_can_be_deleted_under_way,
    a_copy_that_was_stopped_and_not_deleted_still_holds_its_source_off,
    a_copy_cut_off_by_a_crash_goes_on_in_the_next_life,
    a_volume_whose_growth_was_cut_off_is_snapshotted_and_cloned_whole,
    a_copy_whose_record_says_more_than_there_is_begins_anew,
    an_erase_whose_record_says_more_than_there_is_begins_anew,
}

fn a_snapshot_outlives_its_source_and_a_restore_may_be_larger(way: Way) {
    for rig in [Rig::on(way, Scratch::new(PoolFs::Xfs)), Rig::on(way, Scratch::new(PoolFs::Ext4))] {
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

/// A retry of a create reads the record, and the copy may end before the retry decides to resume it.
#[test]
fn a_complete_copy_never_runs_again_over_what_was_written_since() {
    let rig = Rig::on(Way::InProcess, Scratch::new(PoolFs::Ext4));
    let source = rig.create("a", 32).id;
    rig.write(&source, 5 << 20, b"before");
    let request = snapshot_of("s", source);
    let snapshot = rig.home.create_snapshot(&request).unwrap().into_inner();
    let restored = until_made(&rig, &from("r", 32, Source::Snapshot(snapshot.id))).id;
    rig.write(&restored, 5 << 20, b"newer!");
    let shared = &rig.local.shared;
    let copy = CopyRecord { from: CopySource::Snapshot(snapshot.id.uuid), done: Bytes::ZERO, total: Bytes::mib(32) };
    let target = Key::from(restored);
    shared.start_copy(target, copy);
    while shared.copies.percent_into(target).is_some() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(rig.read(&restored, 5 << 20, 6), b"newer!");
    assert_eq!(rig.home.delete_volume(&restored).unwrap(), Changed::Yes, "nothing is copied into it");

    // The space of a copy is not reserved again after its end.
    let reserved = || rig.home.report().unwrap()[0].promised;
    let before = reserved();
    let ready = shared.snapshot_record(&snapshot.id).unwrap().unwrap();
    let copy = CopyRecord { from: CopySource::Volume(source.uuid), done: Bytes::ZERO, total: Bytes::mib(32) };
    let stale = SnapshotRecord { phase: Phase::Creating, copy: Some(Part::new(copy)), ..ready };
    let answer = shared.existing_snapshot(&stale, &request).unwrap().into_inner();
    assert_eq!((answer.copy, reserved()), (CopyState::Ready, before));
    assert_eq!(rig.home.delete_snapshot(&snapshot.id).unwrap(), Changed::Yes);
}

fn copies_inherit_the_format_and_none_is_cut_while_formatting(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
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
    let raw = rig.home.create_volume(&as_block).unwrap().into_inner();
    assert_eq!(raw.format, FormatState::Raw, "its user may write anything: it is never mounted again");
    assert!(matches!(rig.home.create_volume(&as_block), Ok(Created::Existing(again)) if again == raw));
    let back = from("d", 32, Source::Volume(raw.id));
    assert_eq!(clean(rig.home.create_volume(&back)), Kind::InvalidArgument);
    let mut both = back.capabilities.clone();
    both.push(block);
    let both = CreateVolume { capabilities: both, ..from("e", 32, Source::Volume(source)) };
    assert_eq!(clean(rig.home.create_volume(&both)), Kind::InvalidArgument);
    assert_eq!(rig.home.volume(&source).unwrap().format, clone.format);
}

fn without_reflinks_an_attached_volume_is_not_cut_and_says_what_to_do(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Ext4));
    let id = rig.create("a", 32).id;
    rig.grant(&id);
    let failure = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap_err();
    let Failure::Clean(error) = failure else { panic!("dirty") };
    assert_eq!(error.kind(), Kind::Precondition);
    assert!(error.to_string().contains("Stop the pods") && error.to_string().contains("XFS"), "{error}");
    assert_eq!(clean(rig.home.create_volume(&from("c", 32, Source::Volume(id)))), Kind::Precondition);
    assert!(rig.home.snapshots(&SnapshotFilter::default(), None, 0).unwrap().entries.is_empty());
}

fn a_copy_holds_its_source_off_shows_not_ready_and_can_be_deleted_under_way(way: Way) {
    let gate = Arc::new(Gate::default());
    let os = Os::intercepted(Box::new(Gated(Arc::clone(&gate))));
    let rig = Rig::with(way, os, Scratch::new(PoolFs::Ext4), SpaceLimits::default());
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

/// A copy that may resume must find its source unchanged: otherwise half of it is older than the rest.
fn a_copy_that_was_stopped_and_not_deleted_still_holds_its_source_off(way: Way) {
    let (gate, unwritable) = (Arc::new(Gate::default()), Arc::new(Mutex::new(None)));
    let os = Os::intercepted(Box::new(Unwritable(Gated(Arc::clone(&gate)), Arc::clone(&unwritable))));
    let rig = Rig::with(way, os, Scratch::new(PoolFs::Ext4), SpaceLimits::default());
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
    let scratch = Scratch::new(PoolFs::Ext4);
    let rig = Rig::with(way, os, scratch, SpaceLimits::default());
    let id = rig.create("a", 32).id;
    rig.write(&id, 3 << 20, b"data");
    let snapshot = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap().into_inner().id;
    // The next run finds the record as a crash would leave it: `creating`, with a copy.
    let record = rig.pool.text(Object::Snapshot(snapshot.uuid));
    gate.set(true);
    ready(&rig, snapshot);
    rig.pool.write(Object::Snapshot(snapshot.uuid), &record).unwrap();
    let rig = rig.again();
    ready(&rig, snapshot);
    let restored = until_made(&rig, &from("r", 32, Source::Snapshot(snapshot)));
    assert_eq!(rig.read(&restored.id, 3 << 20, 4), b"data");
}

fn a_volume_whose_growth_was_cut_off_is_snapshotted_and_cloned_whole(way: Way) {
    for ground in [PoolFs::Xfs, PoolFs::Ext4] {
        let rig = Rig::on(way, Scratch::new(ground));
        let id = rig.create("v", 16).id;
        // The state after a crash in step 3 of the expansion: the record says 16 MiB.
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

fn a_copy_whose_record_says_more_than_there_is_begins_anew(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Ext4));
    let id = rig.create("a", 32).id;
    rig.write(&id, 3 << 20, b"data");
    let snapshot = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap().into_inner().id;
    let object = Object::Snapshot(snapshot.uuid);
    let mut record: serde_json::Value = serde_json::from_slice(&rig.pool.text(object)).unwrap();
    record["phase"] = "creating".into();
    record["copy"] =
        serde_json::json!({ "from": { "volume": id.uuid.to_string() }, "done": u64::MAX, "total": 32 << 20 });
    rig.pool.write(object, &serde_json::to_vec(&record).unwrap()).unwrap();
    let image = rig.scratch.root().join("snapshots").join(snapshot.uuid.to_string()).join("data");
    OpenOptions::new().write(true).open(image).unwrap().write_all_at(&[0; 4], 3 << 20).unwrap();
    let rig = rig.again();
    ready(&rig, snapshot);
    let restored = until_made(&rig, &from("r", 32, Source::Snapshot(snapshot)));
    assert_eq!(rig.read(&restored.id, 3 << 20, 4), b"data");
}

fn an_erase_whose_record_says_more_than_there_is_begins_anew(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let parameters = VolumeParameters { on_delete: OnDelete::Zero, ..VolumeParameters::default() };
    let id = rig.home.create_volume(&CreateVolume { parameters, ..request("a", 16) }).unwrap().into_inner().id;
    rig.write(&id, 3 << 20, b"data");
    let object = Object::Volume(id.uuid);
    let mut record: serde_json::Value = serde_json::from_slice(&rig.pool.text(object)).unwrap();
    record["phase"] = "deleting".into();
    record["erased"] = u64::MAX.into();
    rig.pool.write(object, &serde_json::to_vec(&record).unwrap()).unwrap();
    let held = std::fs::File::open(rig.image(&id)).unwrap();
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::Yes);
    let mut bytes = [1; 4];
    held.read_exact_at(&mut bytes, 3 << 20).unwrap();
    assert_eq!(bytes, [0; 4]);
}
