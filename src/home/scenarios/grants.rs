//! Attachments: which node may use a volume, and when its device is handed out.

use super::*;

both_ways! {
    an_attached_volume_is_not_deleted_and_a_detached_one_is_once,
    one_writer,
    a_detached_volume_is_its_homes_while_the_device_is_held,
    a_mark_of_use_is_void_once_the_device_is_gone,
    the_number_of_a_raw_device_is_free_again_however_it_ends,
    a_clone_by_copy_waits_for_the_device_of_a_detached_volume,
    a_missing_or_short_image_is_never_opened,
    a_cut_image_is_never_made_long_again,
    a_record_that_counts_to_the_end_is_refused_and_the_home_goes_on,
}

fn a_record_that_counts_to_the_end_is_refused_and_the_home_goes_on(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let id = rig.create("a", 32).id;
    let object = Object::Volume(id.uuid);
    let mut record: serde_json::Value = serde_json::from_slice(&rig.pool.text(object)).unwrap();
    record["epoch"] = u64::MAX.into();
    let written = serde_json::to_vec(&record).unwrap();
    rig.pool.write(object, &written).unwrap();
    let error = rig.home.grant(&id, &grant()).unwrap_err();
    assert!(error.kind() == Kind::Corrupt && error.to_string().contains("damaged"), "{}", error.chain());
    assert_eq!(rig.pool.text(object), written);
    record["epoch"] = (u64::MAX - 1).into();
    rig.pool.write(object, &serde_json::to_vec(&record).unwrap()).unwrap();
    assert_eq!(rig.home.grant(&id, &grant()).unwrap().epoch, u64::MAX);
    assert_eq!(rig.home.revoke(&id, None).unwrap(), Changed::Yes);
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::Yes);
}

fn an_attached_volume_is_not_deleted_and_a_detached_one_is_once(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
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
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
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

fn opened(rig: &Rig, id: &VolumeId) -> std::path::PathBuf {
    let DeviceAddress::Local { device } = rig.home.open(id, &node()).unwrap().at else { panic!("a local volume") };
    device
}

fn marked(rig: &Rig, id: &VolumeId) -> bool {
    let text = rig.pool.text(Object::Volume(id.uuid));
    let record = VolumeRecord::decode(Object::Volume(id.uuid), id.pool, &text).unwrap();
    assert!(record.still_staged.is_none() || record.attachments.is_empty());
    record.still_staged.is_some()
}

fn a_detached_volume_is_its_homes_while_the_device_is_held(way: Way) {
    let mut rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let id = rig.create_for_both("a", 32).id;
    rig.grant(&id);
    let epoch = rig.home.open(&id, &node()).unwrap().epoch;
    let device = opened(&rig, &id);
    let held = rig.os.open_exclusive(&device).unwrap().unwrap();
    assert_eq!(rig.home.close(&id, &node()).unwrap_err().kind(), Kind::InUse);
    assert_eq!(rig.home.revoke(&id, Some(&node())).unwrap(), Changed::Yes);
    assert_eq!(rig.home.revoke(&id, Some(&node())).unwrap(), Changed::No);
    assert!(rig.home.volume(&id).unwrap().published.is_empty() && marked(&rig, &id));

    // The detach lasts, in this run and the next. Only the home node can continue to use it, and only as before.
    for _ in 0..2 {
        assert_eq!(rig.home.open(&id, &node()).unwrap_err().kind(), Kind::Precondition);
        let error = rig.home.delete_volume(&id).unwrap_err();
        assert!(error.kind() == Kind::InUse && error.to_string().contains(&*device.to_string_lossy()), "{error}");
        assert_eq!(rig.home.begin_format(&id, &node(), FsType::Ext4).unwrap_err().kind(), Kind::Precondition);
        let elsewhere = GrantRequest { node: "node-2".parse().unwrap(), ..grant() };
        assert_eq!(rig.home.grant(&id, &elsewhere).unwrap_err().kind(), Kind::Precondition);
        for other in [
            GrantRequest { read_only: ReadOnly::Yes, ..grant() },
            GrantRequest { mode: VolumeMode::Block.into(), ..grant() },
            GrantRequest { access: AccessMode::SingleNodeWriter, ..grant() },
        ] {
            let error = rig.home.grant(&id, &other).unwrap_err();
            assert!(error.kind() == Kind::Precondition && error.to_string().contains("still uses it"), "{error}");
        }
        assert!(rig.image(&id).exists() && marked(&rig, &id));
        rig = rig.again();
    }
    let again = rig.home.grant(&id, &grant()).unwrap();
    assert_eq!((again.epoch, again.changed), (epoch + 1, Changed::Yes));
    assert_eq!(opened(&rig, &id), device, "one image is on one device");
    assert!(!marked(&rig, &id));

    // When it is idle, it is like any other volume; the unstage cleans the record without an attachment.
    rig.home.revoke(&id, None).unwrap();
    assert!(marked(&rig, &id));
    drop(held);
    rig.home.close(&id, &node()).unwrap();
    assert!(!marked(&rig, &id));
    assert_eq!(rig.pool.local().active(id.uuid).unwrap(), None);
    assert_eq!(
        rig.home.grant(&id, &GrantRequest { mode: VolumeMode::Block.into(), ..grant() }).unwrap().epoch,
        epoch + 2
    );
    rig.home.revoke(&id, None).unwrap();
    rig.home.delete_volume(&id).unwrap();
}

fn a_mark_of_use_is_void_once_the_device_is_gone(way: Way) {
    let (gate, unwritable) = (Arc::new(Gate::default()), Arc::new(Mutex::new(None)));
    gate.set(true);
    let os = Os::intercepted(Box::new(Unwritable(Gated(gate), Arc::clone(&unwritable))));
    let rig = Rig::with(way, os, Scratch::new(PoolFs::Xfs), SpaceLimits::default());
    let used = |name: &str| {
        let id = rig.create(name, 32).id;
        rig.grant(&id);
        let held = rig.os.open_exclusive(&opened(&rig, &id)).unwrap().unwrap();
        rig.home.revoke(&id, None).unwrap();
        drop(held);
        // As after a restart of the machine.
        rig.pool.local().deactivate(id.uuid).unwrap();
        assert!(marked(&rig, &id));
        id
    };
    let other = GrantRequest { read_only: ReadOnly::Yes, ..grant() };
    assert_eq!(rig.home.grant(&used("granted"), &other).unwrap().changed, Changed::Yes);
    assert_eq!(rig.home.delete_volume(&used("deleted")).unwrap(), Changed::Yes);
    // A record that cannot be written does not block an unstage.
    let id = used("closed");
    *unwritable.lock().unwrap() = Some(libc::EIO);
    rig.home.close(&id, &node()).unwrap();
    assert!(marked(&rig, &id));
    *unwritable.lock().unwrap() = None;
    rig.home.close(&id, &node()).unwrap();
    assert!(!marked(&rig, &id));
}

fn the_number_of_a_raw_device_is_free_again_however_it_ends(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
    let id = rig.create_for_both("a", 32).id;
    let raw = GrantRequest { mode: VolumeMode::Block.into(), ..grant() };
    let number = || {
        rig.home.grant(&id, &raw).unwrap();
        let device = opened(&rig, &id);
        let number = crate::os::LoopDevice::named(device.file_name().unwrap().to_str().unwrap()).unwrap();
        assert!(rig.os.loop_owner(number).is_some(), "a pod may have its node");
        (number, device)
    };
    // Detached while the home node uses it, then unstaged.
    let (loop_device, path) = number();
    let held = rig.os.open_exclusive(&path).unwrap().unwrap();
    rig.home.revoke(&id, None).unwrap();
    assert!(marked(&rig, &id) && rig.os.loop_owner(loop_device).is_some());
    drop(held);
    rig.home.close(&id, &node()).unwrap();
    assert!(!marked(&rig, &id));
    assert_eq!(rig.os.loop_owner(loop_device), None, "after the unstage");
    // Unstaged, then detached.
    let (loop_device, _) = number();
    rig.home.close(&id, &node()).unwrap();
    assert!(rig.os.loop_owner(loop_device).is_some(), "still attached");
    rig.home.revoke(&id, None).unwrap();
    assert_eq!(rig.os.loop_owner(loop_device), None, "after the detach");
    rig.home.delete_volume(&id).unwrap();
}

fn a_clone_by_copy_waits_for_the_device_of_a_detached_volume(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Ext4));
    let id = rig.create("a", 32).id;
    rig.grant(&id);
    let held = rig.os.open_exclusive(&opened(&rig, &id)).unwrap().unwrap();
    rig.home.revoke(&id, None).unwrap();
    let failure = rig.home.create_snapshot(&snapshot_of("s", id)).unwrap_err();
    assert_eq!(failure.error().kind(), Kind::Precondition, "{}", failure.error());
    assert_eq!(clean(rig.home.create_volume(&from("c", 32, Source::Volume(id)))), Kind::Precondition);
    drop(held);
    ready(&rig, rig.home.create_snapshot(&snapshot_of("s", id)).unwrap().into_inner().id);
    until_made(&rig, &from("c", 32, Source::Volume(id)));
}

fn a_missing_or_short_image_is_never_opened(way: Way) {
    let rig = Rig::on(way, Scratch::new(PoolFs::Xfs));
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
    for ground in [PoolFs::Xfs, PoolFs::Ext4] {
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
