//! Expansion, reserved space, and its release.

use super::*;

both_ways! {
    growth_is_idempotent_never_shrinks_and_a_cut_off_one_is_finished,
    growth_under_an_open_device_reaches_it,
    promises_are_kept_before_new_ones_are_made,
    the_bytes_of_a_zeroing_class_are_gone_before_the_name_is,
    a_full_pool_without_its_reserve_can_be_emptied,
    what_a_thin_volume_discards_is_promised_again,
}

fn growth_is_idempotent_never_shrinks_and_a_cut_off_one_is_finished(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
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
    let text = rig.pool.text(object);
    let mut record = VolumeRecord::decode(object, id.pool, &text).unwrap();
    record.target_size = Some(Bytes::mib(96));
    rig.pool.write(object, &record.encode().unwrap()).unwrap();
    let rig = rig.again();
    rig.grant(&id);
    assert_eq!(rig.home.open(&id, &node()).unwrap().size, Bytes::mib(96));
    assert_eq!(rig.home.volume(&id).unwrap().size, Bytes::mib(96));
    rig.home.revoke(&id, None).unwrap();
}

fn growth_under_an_open_device_reaches_it(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let id = rig.create("a", 32).id;
    rig.grant(&id);
    let DeviceAddress::Local { device } = rig.home.open(&id, &node()).unwrap().at else { panic!("a local volume") };
    let held = rig.os.open_device(&device).unwrap();
    rig.home.expand(&id, &CapacityRange { required: Some(Bytes::mib(64)), limit: None }).unwrap();
    assert_eq!(rig.os.device_size(&held).unwrap(), Bytes::mib(64).get());
    drop(held);
    rig.home.revoke(&id, None).unwrap();
}

fn promises_are_kept_before_new_ones_are_made(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let all = rig.home.capacity(&CapacityQuery::default()).unwrap().available;
    // A little less: the space that XFS itself uses for them is not known in advance.
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
    // XFS frees the blocks of an unlinked file a moment later.
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
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let parameters = VolumeParameters { on_delete: OnDelete::Zero, ..Default::default() };
    let id = rig.home.create_volume(&CreateVolume { parameters, ..request("a", 32) }).unwrap().into_inner().id;
    rig.write(&id, 7 << 20, b"secret");
    let image = std::fs::File::open(rig.image(&id)).unwrap();
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::Yes);
    let mut bytes = [1; 6];
    image.read_exact_at(&mut bytes, 7 << 20).unwrap();
    assert_eq!(bytes, [0; 6]);
}

fn a_full_pool_without_its_reserve_can_be_emptied(way: Way) {
    let (gate, unwritable) = (Arc::new(Gate::default()), Arc::new(Mutex::new(None)));
    gate.set(true);
    let os = Os::intercepted(Box::new(Unwritable(Gated(gate), Arc::clone(&unwritable))));
    let rig = Rig::with(way, os, Scratch::new(PoolFs::Xfs), SpaceLimits::default());
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

fn what_a_thin_volume_discards_is_promised_again(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let parameters = VolumeParameters { provisioning: Some(Provisioning::Thin), ..Default::default() };
    let id = rig.home.create_volume(&CreateVolume { parameters, ..request("a", 64) }).unwrap().into_inner().id;
    // Other software uses the filesystem too: the actual free space counts.
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
