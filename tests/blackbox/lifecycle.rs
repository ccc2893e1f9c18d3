//! A volume's whole lifecycle, as a filesystem and raw, on every kind of pool: the content is compared byte for byte.

use std::fs;

use holdfast::csi::proto as p;

use crate::harness::{
    MIB, PoolFs, Use, Vol, World, check_device, check_tree, is_dense, mounts, write_device, write_tree,
};

fn write(world: &World, vol: &Vol, seed: u64) {
    let path = world.target(vol, "pod");
    match vol.kind {
        Use::Block => write_device(&path, seed, 3 * 4096, 5),
        Use::Ext4 | Use::Xfs => write_tree(&path, seed),
    }
}

fn check(world: &World, vol: &Vol, seed: u64) {
    let path = world.target(vol, "pod");
    match vol.kind {
        Use::Block => check_device(&path, seed, 3 * 4096, 5),
        Use::Ext4 | Use::Xfs => check_tree(&path, seed),
    }
}

fn content_survives_everything(pool: PoolFs) {
    let mut world = World::new(pool);
    let volumes = Use::ALL.map(|kind| world.create(&format!("data-{}", kind.fs_type()), kind));
    for vol in &volumes {
        world.attach(vol).unwrap();
        write(&world, vol, 1);
        check(&world, vol, 1);
        world.detach(vol);
        world.attach(vol).unwrap();
        check(&world, vol, 1);
    }
    world.crash();
    for vol in &volumes {
        check(&world, vol, 1);
        // The CO repeats calls; nothing is mounted twice, nothing changes.
        world.attach(vol).unwrap();
        assert_eq!(mounts().depth(&world.target(vol, "pod")), 1);
        check(&world, vol, 1);
        world.detach(vol);
        world.attach(vol).unwrap();
        check(&world, vol, 1);
        world.detach(vol);
    }
    world.reinstall();
    for vol in &volumes {
        world.attach(vol).unwrap();
        check(&world, vol, 1);
        world.detach(vol);
        world.delete(vol).unwrap();
        world.delete(vol).unwrap();
        assert!(!world.volume_ids().contains(&vol.id));
    }
    world.finish();
}

#[test]
fn content_survives_restage_kill_and_a_fresh_install_on_xfs() {
    content_survives_everything(PoolFs::Xfs);
}

#[test]
fn content_survives_restage_kill_and_a_fresh_install_on_ext4() {
    content_survives_everything(PoolFs::Ext4);
}

#[test]
fn content_survives_restage_kill_and_a_fresh_install_on_btrfs() {
    content_survives_everything(PoolFs::Btrfs);
}

#[test]
fn each_step_repeated_is_ok_and_changes_nothing() {
    let world = World::new(PoolFs::Xfs);
    for kind in Use::ALL {
        let name = format!("vol-{}", kind.fs_type());
        let vol = world.create(&name, kind);
        let again = world.create(&name, kind);
        assert_eq!((&vol.id, vol.size), (&again.id, again.size));
        for _ in 0..3 {
            world.publish(&vol).unwrap();
        }
        for _ in 0..3 {
            world.stage(&vol).unwrap();
        }
        for _ in 0..3 {
            world.bind(&vol, "pod").unwrap();
        }
        assert_eq!(mounts().depth(&world.target(&vol, "pod")), 1, "mounts are stacked");
        assert!(mounts().depth(&world.staging(&vol)) <= 1, "mounts are stacked");
        for _ in 0..3 {
            world.unbind(&vol, "pod").unwrap();
        }
        assert!(!world.target(&vol, "pod").exists(), "what publish made, unpublish removes");
        for _ in 0..3 {
            world.unstage(&vol).unwrap();
        }
        assert!(world.staging(&vol).exists(), "the staging directory is the CO's");
        for _ in 0..3 {
            world.unpublish(&vol).unwrap();
        }
        for _ in 0..3 {
            world.delete(&vol).unwrap();
        }
    }
    world.finish();
}

#[test]
fn truth_lives_with_the_data_a_fresh_install_lists_the_same() {
    let mut world = World::new(PoolFs::Xfs);
    let never = world.create("never", Use::Ext4);
    let formatted = world.create("formatted", Use::Ext4);
    let raw = world.create("raw", Use::Block);
    for vol in [&formatted, &raw] {
        world.attach(vol).unwrap();
        write(&world, vol, 7);
    }
    let snapshot = world.snapshot("snap", &formatted);
    world.detach(&raw);
    world.unbind(&formatted, "pod").unwrap();
    world.unstage(&formatted).unwrap();
    let restored = world.restore("restored", Use::Ext4, &snapshot.snapshot_id, 48 * MIB);
    let all = |world: &World| {
        let volumes = world.list_volumes(p::ListVolumesRequest::default()).unwrap();
        let snapshots = world.list_snapshots(p::ListSnapshotsRequest::default()).unwrap();
        let states = [&never, &formatted, &raw, &restored].map(|vol| world.record(vol)["format"].clone());
        (volumes, snapshots, states)
    };
    let before = all(&world);
    assert_eq!(before.0.entries.len(), 4);
    let published = before.0.entries.iter().find(|entry| entry.volume.as_ref().unwrap().volume_id == formatted.id);
    assert_eq!(published.unwrap().status.as_ref().unwrap().published_node_ids, [world.node.clone()]);
    world.reinstall();
    assert_eq!(all(&world), before);
    for vol in [&formatted, &raw] {
        world.attach(vol).unwrap();
        check(&world, vol, 7);
    }
    world.attach(&restored).unwrap();
    check_tree(&world.target(&restored, "pod"), 7);
    world.finish();
}

#[test]
fn a_pool_not_copied_whole_is_not_served_as_if_it_were() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("one", Use::Ext4);
    let other = world.create("other", Use::Ext4);
    world.terminate();
    let record = world.pool.join("volumes").join(vol.uuid()).join("volume.json");
    let whole = fs::read(&record).unwrap();
    fs::write(&record, &whole[..whole.len() / 2]).unwrap();
    world.start();
    // In a list without it, the attacher would treat it as deleted.
    assert!(world.list_volumes(p::ListVolumesRequest::default()).is_err());
    assert!(world.attach(&vol).is_err());
    assert!(world.delete(&vol).is_err(), "what cannot be read is not deleted");
    assert!(world.image(&vol).exists());
    world.attach(&other).unwrap();
    world.detach(&other);
    fs::write(&record, whole).unwrap();
    world.crash();
    world.attach(&vol).unwrap();
    world.finish();
}

#[test]
fn a_thick_volume_is_dense_from_birth_and_a_thin_one_is_not() {
    let world = World::new(PoolFs::Xfs);
    let thick = world.create("thick", Use::Xfs);
    assert!(is_dense(&world.image(&thick)));
    let mut request = crate::harness::create_request("thin", Use::Xfs, Use::Xfs.size());
    request.parameters.insert("provisioning".into(), "thin".into());
    let thin = world.try_create(Use::Xfs, &request).unwrap();
    assert!(!is_dense(&world.image(&thin)));
    world.finish();
}
