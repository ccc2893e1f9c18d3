//! Snapshots, restores and clones: independent of their source, mounted beside it, never torn.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::csi::proto::controller_client::ControllerClient;
use tonic::Code;

use crate::harness::calls::{from_snapshot, from_volume};
use crate::harness::{
    Frozen, MIB, PoolFs, Use, Vol, World, await_that, check_device, check_tree, create_request, fs_size, refused,
    superblock_uuid, write_device, write_tree,
};

/// A snapshot of a mounted volume, restored beside it, while both are written to.
fn restore_beside_the_source(pool: PoolFs, kind: Use) {
    let world = World::new(pool);
    let source = world.create("source", kind);
    let path = world.attach(&source).unwrap();
    write_tree(&path, 1);
    let reflinks = pool != PoolFs::Ext4;
    if !reflinks {
        world.detach(&source);
    }
    let snapshot = world.snapshot("snap", &source);
    if !reflinks {
        world.attach(&source).unwrap();
    }
    assert_eq!((snapshot.source_volume_id.as_str(), snapshot.size_bytes), (source.id.as_str(), source.size));
    assert!(snapshot.creation_time.is_some());
    write_tree(&path, 2);
    let restored = world.restore("restored", kind, &snapshot.snapshot_id, source.size);
    let beside = world.attach(&restored).unwrap();
    check_tree(&beside, 1);
    assert!(!beside.join("tree-2").exists(), "written after the cut");
    write_tree(&beside, 3);
    check_tree(&path, 1);
    check_tree(&path, 2);
    assert!(!path.join("tree-3").exists(), "a write to the restore reached its source");
    let uuids = [&source, &restored].map(|vol| superblock_uuid(&world.image(vol)));
    assert_eq!(uuids[0], uuids[1], "the UUID is not ours to change");
    world.detach(&restored);
    world.detach(&source);
    check_tree(&world.attach(&restored).unwrap(), 3);
    world.finish();
}

#[test]
fn spec_482_an_xfs_restore_mounts_beside_its_source_on_xfs() {
    restore_beside_the_source(PoolFs::Xfs, Use::Xfs);
}

#[test]
fn an_ext4_restore_mounts_beside_its_source_on_xfs() {
    restore_beside_the_source(PoolFs::Xfs, Use::Ext4);
}

#[test]
fn spec_482_an_xfs_restore_mounts_beside_its_source_on_ext4() {
    restore_beside_the_source(PoolFs::Ext4, Use::Xfs);
}

#[test]
fn an_ext4_restore_mounts_beside_its_source_on_ext4() {
    restore_beside_the_source(PoolFs::Ext4, Use::Ext4);
}

#[test]
fn a_restore_mounts_beside_its_source_on_btrfs() {
    restore_beside_the_source(PoolFs::Btrfs, Use::Xfs);
}

fn kubernetes_116647_a_larger_restore_has_the_larger_filesystem(pool: PoolFs) {
    let world = World::new(pool);
    for kind in Use::FILESYSTEMS {
        let source = world.create(&format!("source-{}", kind.fs_type()), kind);
        let path = world.attach(&source).unwrap();
        write_tree(&path, 1);
        let small = fs_size(&path);
        world.detach(&source);
        let snapshot = world.snapshot(&format!("snap-{}", kind.fs_type()), &source);
        let size = source.size + 100 * MIB;
        let restored = world.restore(&format!("restored-{}", kind.fs_type()), kind, &snapshot.snapshot_id, size);
        let mut request = create_request(&format!("clone-{}", kind.fs_type()), kind, size);
        request.volume_content_source = from_volume(&source);
        let clone = world.create_from(kind, &request);
        for vol in [restored, clone] {
            assert_eq!(vol.size, size);
            let path = world.attach(&vol).unwrap();
            check_tree(&path, 1);
            assert!(fs_size(&path) > small + 80 * (1 << 20), "{} is still {}", vol.id, fs_size(&path));
        }
    }
    world.finish();
}

#[test]
fn a_larger_restore_has_the_larger_filesystem_on_xfs() {
    kubernetes_116647_a_larger_restore_has_the_larger_filesystem(PoolFs::Xfs);
}

#[test]
fn a_larger_restore_has_the_larger_filesystem_on_ext4() {
    kubernetes_116647_a_larger_restore_has_the_larger_filesystem(PoolFs::Ext4);
}

#[test]
fn a_restore_smaller_than_its_snapshot_is_refused() {
    let world = World::new(PoolFs::Xfs);
    let source = world.create("source", Use::Ext4);
    let snapshot = world.snapshot("snap", &source);
    for origin in [from_snapshot(&snapshot.snapshot_id), from_volume(&source)] {
        let mut request = create_request("small", Use::Ext4, source.size - MIB);
        request.volume_content_source = origin;
        refused(world.create_volume(request), &[Code::OutOfRange]);
    }
    assert_eq!(world.in_pool("volumes").len(), 1);
    // Without a requested size, the source's size is used.
    let mut request = create_request("same", Use::Ext4, 0);
    request.capacity_range = None;
    request.volume_content_source = from_snapshot(&snapshot.snapshot_id);
    assert_eq!(world.create_from(Use::Ext4, &request).size, source.size);
    world.finish();
}

#[test]
fn a_snapshot_outlives_its_source_and_a_restore_outlives_its_snapshot() {
    for pool in PoolFs::ALL {
        let mut world = World::new(pool);
        let source = world.create("source", Use::Ext4);
        write_tree(&world.attach(&source).unwrap(), 1);
        world.detach(&source);
        let snapshot = world.snapshot("snap", &source);
        let clone = world.clone_of("clone", &source);
        world.delete(&source).unwrap();
        world.crash();
        assert_eq!(world.snapshot_ids(), [snapshot.snapshot_id.as_str()]);
        let restored = world.restore("restored", Use::Ext4, &snapshot.snapshot_id, source.size);
        world.drop_snapshot(&snapshot.snapshot_id).unwrap();
        world.drop_snapshot(&snapshot.snapshot_id).unwrap();
        assert_eq!(world.in_pool("snapshots"), Vec::<String>::new());
        for vol in [restored, clone] {
            check_tree(&world.attach(&vol).unwrap(), 1);
        }
        // The name is free again, and a new volume with it has nothing of the old one.
        let again = world.create("source", Use::Ext4);
        assert!(!world.attach(&again).unwrap().join("tree-1").exists());
        world.finish();
    }
}

#[test]
fn raw_volumes_are_snapshotted_and_cloned_byte_for_byte() {
    for pool in [PoolFs::Xfs, PoolFs::Ext4] {
        let world = World::new(pool);
        let source = world.create("source", Use::Block);
        let path = world.attach(&source).unwrap();
        write_device(&path, 1, 0, 16);
        world.detach(&source);
        let snapshot = world.snapshot("snap", &source);
        let clone = world.clone_of("clone", &source);
        write_device(&world.attach(&source).unwrap(), 50, 0, 16);
        let restored = world.restore("restored", Use::Block, &snapshot.snapshot_id, 20 * MIB);
        for vol in [&restored, &clone] {
            check_device(&world.attach(vol).unwrap(), 1, 0, 16);
        }
        let device = fs::File::open(world.target(&restored, "pod")).unwrap();
        let end = nix::unistd::lseek64(&device, 0, nix::unistd::Whence::SeekEnd).unwrap();
        assert_eq!(end, 20 * MIB, "the device has the size asked for");
        drop(device);
        world.finish();
    }
}

#[test]
fn a_snapshot_is_the_same_at_every_retry() {
    let mut world = World::new(PoolFs::Xfs);
    let (one, two) = (world.create("one", Use::Ext4), world.create("two", Use::Ext4));
    let first = world.snapshot("snap", &one);
    assert_eq!(world.try_snapshot("snap", &one).unwrap(), first);
    world.crash();
    assert_eq!(world.try_snapshot("snap", &one).unwrap(), first);
    let said = refused(world.try_snapshot("snap", &two), &[Code::AlreadyExists]);
    assert!(said.contains("snap"), "{said}");
    let got =
        world.get_snapshot(p::GetSnapshotRequest { snapshot_id: first.snapshot_id.clone(), ..Default::default() });
    assert_eq!(got.unwrap().snapshot.unwrap(), first);
    world.finish();
}

#[test]
fn a_torn_copy_is_not_made_an_attached_volume_on_ext4_is_refused() {
    let world = World::new(PoolFs::Ext4);
    let vol = world.create("vol", Use::Ext4);
    let path = world.attach(&vol).unwrap();
    write_tree(&path, 1);
    let said = refused(world.try_snapshot("snap", &vol), &[Code::FailedPrecondition]).to_lowercase();
    assert!(said.contains("reflink") || said.contains("xfs"), "one remedy is another pool: {said}");
    assert!(said.contains("detach") || said.contains("stop") || said.contains("unpublish"), "the other is now: {said}");
    let mut request = create_request("clone", Use::Ext4, vol.size);
    request.volume_content_source = from_volume(&vol);
    refused(world.create_volume(request), &[Code::FailedPrecondition]);
    assert_eq!((world.in_pool("snapshots").len(), world.in_pool("volumes").len()), (0, 1), "something was left");
    check_tree(&path, 1);
    // An attached volume may change.
    world.unbind(&vol, "pod").unwrap();
    world.unstage(&vol).unwrap();
    refused(world.try_snapshot("snap", &vol), &[Code::FailedPrecondition]);
    world.unpublish(&vol).unwrap();
    world.snapshot("snap", &vol);
    world.finish();
}

/// A raw volume on ext4 with enough content to make copying take a while.
fn slow_to_copy(world: &World) -> Vol {
    let vol = world.try_create(Use::Block, &create_request("big", Use::Block, 256 * MIB)).unwrap();
    write_device(&world.attach(&vol).unwrap(), 1, 0, 256);
    world.detach(&vol);
    vol
}

fn percent(said: &str) {
    let digits = said.split('%').next().unwrap().trim_end().chars().rev().take_while(char::is_ascii_digit).count();
    assert!(said.contains('%') && digits > 0, "no percentage: {said}");
}

#[test]
fn a_copied_snapshot_is_not_ready_holds_the_source_and_is_resumed_after_kill() {
    let mut world = World::sized(PoolFs::Ext4, 6 << 30);
    let vol = slow_to_copy(&world);
    let mut client = ControllerClient::new(world.channel());
    let request =
        p::CreateSnapshotRequest { source_volume_id: vol.id.clone(), name: "snap".into(), ..Default::default() };
    let call = world.spawn(async move { client.create_snapshot(request).await });
    await_that("the snapshot is cut", Duration::from_secs(10), || {
        world.in_pool("snapshots").iter().any(|name| !name.starts_with('.'))
    });
    // Nothing changes while the pool's filesystem is frozen, so the state now is the middle of the copy.
    let frozen = Frozen::new(&world.scratch.root());
    let first = world.block_on(call).unwrap().unwrap().into_inner().snapshot.unwrap();
    let get =
        || world.get_snapshot(p::GetSnapshotRequest { snapshot_id: first.snapshot_id.clone(), ..Default::default() });
    assert!(!first.ready_to_use && !get().unwrap().snapshot.unwrap().ready_to_use, "the copy was too quick to be seen");
    percent(&refused(world.publish(&vol), &[Code::Aborted]));
    let mut request = create_request("early", Use::Block, vol.size);
    request.volume_content_source = from_snapshot(&first.snapshot_id);
    percent(&refused(world.create_volume(request.clone()), &[Code::Aborted]));
    assert_eq!(world.delete(&vol).unwrap_err().code(), Code::Aborted);
    world.daemon().signal(nix::sys::signal::Signal::SIGKILL);
    drop(frozen);
    world.kill9();
    world.start();
    let ready = world.snapshot("snap", &vol);
    assert_eq!((&ready.snapshot_id, &ready.creation_time), (&first.snapshot_id, &first.creation_time));
    world.publish(&vol).unwrap();
    let restored = world.create_from(Use::Block, &request);
    check_device(&world.attach(&restored).unwrap(), 1, 0, 256);
    world.finish();
}

#[test]
fn a_copied_clone_is_aborted_with_percent_until_done_and_survives_kill() {
    let mut world = World::sized(PoolFs::Ext4, 6 << 30);
    let vol = slow_to_copy(&world);
    let mut request = create_request("clone", Use::Block, vol.size);
    request.volume_content_source = from_volume(&vol);
    let (mut client, again) = (ControllerClient::new(world.channel()), request.clone());
    let call = world.spawn(async move { client.create_volume(again).await });
    await_that("the clone is begun", Duration::from_secs(10), || {
        world.in_pool("volumes").iter().filter(|name| !name.starts_with('.')).count() == 2
    });
    let frozen = Frozen::new(&world.scratch.root());
    let status = world.block_on(call).unwrap().unwrap_err();
    percent(&refused(Err::<(), _>(status), &[Code::Aborted]));
    percent(&refused(world.create_volume(request.clone()), &[Code::Aborted]));
    world.daemon().signal(nix::sys::signal::Signal::SIGKILL);
    drop(frozen);
    world.kill9();
    world.start();
    let clone = world.create_from(Use::Block, &request);
    check_device(&world.attach(&clone).unwrap(), 1, 0, 256);
    check_device(&world.attach(&vol).unwrap(), 1, 0, 256);
    world.finish();
}

#[test]
fn a_copy_goes_on_after_restart_without_being_asked() {
    let mut world = World::sized(PoolFs::Ext4, 6 << 30);
    let vol = slow_to_copy(&world);
    let mut client = ControllerClient::new(world.channel());
    let request =
        p::CreateSnapshotRequest { source_volume_id: vol.id.clone(), name: "snap".into(), ..Default::default() };
    let _call = world.spawn(async move { client.create_snapshot(request).await });
    await_that("the snapshot is cut", Duration::from_secs(10), || {
        world.in_pool("snapshots").iter().any(|name| !name.starts_with('.'))
    });
    world.kill9();
    let record = world.pool.join("snapshots").join(&world.in_pool("snapshots")[0]).join("snapshot.json");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    assert_eq!(record["phase"], "creating", "the copy was too quick to be cut off");
    world.start();
    await_that("the copy is complete", Duration::from_secs(60), || {
        let snapshot_id = record["handle"].as_str().unwrap().to_owned();
        let request = p::GetSnapshotRequest { snapshot_id, ..Default::default() };
        world.get_snapshot(request).unwrap().snapshot.unwrap().ready_to_use
    });
    world.finish();
}

#[test]
fn snapshots_are_listed_by_filter_and_in_pages() {
    let world = World::new(PoolFs::Xfs);
    let (one, two) = (world.create("one", Use::Ext4), world.create("two", Use::Ext4));
    let of_one: HashSet<_> = (0..5).map(|n| world.snapshot(&format!("one-{n}"), &one).snapshot_id).collect();
    let of_two = world.snapshot("two-0", &two).snapshot_id;
    let list = |request: p::ListSnapshotsRequest| {
        let answer = world.list_snapshots(request).unwrap();
        let ids: Vec<_> = answer.entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id).collect();
        (ids, answer.next_token)
    };
    let base = p::ListSnapshotsRequest::default;
    let (ids, _) = list(p::ListSnapshotsRequest { source_volume_id: one.id.clone(), ..base() });
    assert_eq!(ids.into_iter().collect::<HashSet<_>>(), of_one);
    assert_eq!(list(p::ListSnapshotsRequest { snapshot_id: of_two.clone(), ..base() }).0, [of_two.as_str()]);
    let gone = "0123456789abcdef0123456789abcdef";
    let of_two_uuid = of_two.split('_').nth(2).unwrap();
    for (snapshot, volume) in [
        ("nothing".into(), "nothing".into()),
        (of_two.replacen(of_two_uuid, gone, 1), two.id.replacen(two.uuid(), gone, 1)),
    ] {
        assert!(list(p::ListSnapshotsRequest { snapshot_id: snapshot, ..base() }).0.is_empty());
        assert!(list(p::ListSnapshotsRequest { source_volume_id: volume, ..base() }).0.is_empty());
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let (ids, next) = list(p::ListSnapshotsRequest { max_entries: 2, starting_token: token, ..base() });
        assert!(ids.len() <= 2);
        // A token survives the removal of the object it was created from.
        if seen.is_empty() {
            world.drop_snapshot(ids.last().unwrap()).unwrap();
        }
        seen.extend(ids);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 6, "{seen:?}");
    for token in ["nonsense", "-1", "%%%"] {
        let answer = world.list_snapshots(p::ListSnapshotsRequest { starting_token: token.into(), ..base() });
        refused(answer, &[Code::Aborted]);
    }
    refused(world.list_snapshots(p::ListSnapshotsRequest { max_entries: -1, ..base() }), &[Code::InvalidArgument]);
    world.finish();
}

/// Every byte may be read, and written too: so the filesystem is not trusted any more, and is never mounted again.
#[test]
fn a_filesystem_restored_as_a_raw_device_is_raw_for_good() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    let pod = world.attach(&vol).unwrap();
    write_tree(&pod, 1);
    let snapshot = world.snapshot("cut", &vol);
    let raw = world.restore("raw", Use::Block, &snapshot.snapshot_id, vol.size);
    let device = world.attach(&raw).unwrap();
    assert_eq!(superblock_uuid(&device), superblock_uuid(&world.image(&vol)));
    assert_eq!(world.record(&raw)["format"]["state"], "raw");
    write_device(&device, 2, 0, 4);
    world.detach(&raw);
    let as_mount = raw.used_as(Use::Ext4);
    let refusal = world.publish(&as_mount).and_then(|()| world.stage(&as_mount));
    refused(refusal, &[Code::InvalidArgument, Code::FailedPrecondition]);
    world.unpublish(&raw).unwrap();
    check_device(&world.attach(&raw).unwrap(), 2, 0, 4);
    let mut back = create_request("back", Use::Ext4, raw.size);
    back.volume_content_source = from_volume(&raw);
    refused(world.create_volume(back), &[Code::InvalidArgument]);
    let again = world.restore("again", Use::Ext4, &snapshot.snapshot_id, vol.size);
    check_tree(&world.attach(&again).unwrap(), 1);
    check_tree(&pod, 1);
    world.finish();
}
