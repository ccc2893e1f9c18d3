//! Expansion: online, at the next stage, repeated, beyond the limits; no byte is lost.

use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::csi::proto::node_client::NodeClient;
use tonic::Code;

use crate::harness::{
    HeldTool, MIB, PoolFs, Use, World, await_that, can_grow_ext4_online, check_device, check_tree, device_size,
    fs_size, is_dense, refused, write_device, write_tree,
};

fn grows_while_mounted(pool: PoolFs, kind: Use) {
    let mut world = World::new(pool);
    let vol = world.create("vol", kind);
    let path = world.attach(&vol).unwrap();
    write_tree(&path, 1);
    let (before, size) = (fs_size(&path), vol.size + 100 * MIB);
    for _ in 0..2 {
        let answer = world.expand(&vol, size).unwrap();
        assert!(answer.capacity_bytes == size && answer.node_expansion_required, "{answer:?}");
    }
    check_tree(&path, 1);
    for _ in 0..2 {
        assert_eq!(world.node_expand(&vol, size).unwrap(), size);
    }
    assert!(fs_size(&path) > before + 80 * (1 << 20), "{}", fs_size(&path));
    write_tree(&path, 2);
    world.crash();
    world.detach(&vol);
    let path = world.attach(&vol).unwrap();
    check_tree(&path, 1);
    check_tree(&path, 2);
    if pool != PoolFs::Btrfs {
        assert!(is_dense(&world.image(&vol)), "a thick volume stays thick when it grows");
    }
    world.finish();
}

/// If resize2fs is interrupted, it leaves a superblock with a wrong checksum (fs/ext4.rs).
#[test]
fn a_resize_is_not_cut_off_by_the_driver_s_death() {
    if can_grow_ext4_online() {
        return;
    }
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    write_tree(&world.attach(&vol).unwrap(), 1);
    world.detach(&vol);
    world.expand(&vol, 64 * MIB).unwrap();
    let held = HeldTool::new(&world.scratch, "resize2fs");
    held.hold();
    world.publish(&vol).unwrap();
    let (mut client, request) = (NodeClient::new(world.channel()), world.stage_request(&vol));
    let cut = world.spawn(async move { client.node_stage_volume(request).await });
    let pid = held.wait_for_call(1);
    world.kill9();
    assert!(world.block_on(cut).unwrap().is_err());
    world.start();
    let alive = || std::path::Path::new("/proc").join(pid.to_string()).exists();
    assert!(alive(), "resize2fs was killed with the driver");
    held.let_go();
    await_that("resize2fs ends by itself", Duration::from_secs(30), || !alive());
    assert_eq!(ext4_blocks(&world.image(&vol)), 64 * 256, "it has done its work");
    world.retried("NodeStage", || world.stage(&vol));
    let path = world.bind(&vol, "pod").unwrap();
    check_tree(&path, 1);
    assert_eq!(held.calls().len(), 1, "there was nothing left to do: {:?}", held.calls());
    world.finish();
}

/// s_blocks_count_lo of an ext4 superblock.
fn ext4_blocks(image: &std::path::Path) -> u32 {
    let mut field = [0; 4];
    let file = std::fs::File::open(image).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut field, 1024 + 4).unwrap();
    u32::from_le_bytes(field)
}

/// A log recovery that begins at the second expansion meets headers of a group that the superblock on disk does not
/// know: the first expansion must be on disk before (fs/xfs.rs).
#[test]
fn an_xfs_that_grew_twice_in_a_row_is_mountable_in_a_snapshot() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Xfs);
    let path = world.attach(&vol).unwrap();
    // After a new mount its log is empty: only the expansion is recovered.
    world.detach(&vol);
    world.attach(&vol).unwrap();
    world.expand(&vol, vol.size + 32 * MIB).unwrap();
    world.node_expand(&vol, vol.size + 32 * MIB).unwrap();
    let grown = fs_size(&path);
    world.expand(&vol, vol.size + 64 * MIB).unwrap();
    match world.node_expand(&vol, vol.size + 64 * MIB) {
        Ok(_) => {}
        refusal => assert!(refused(refusal, &[Code::Aborted]).contains("30 s")),
    }
    for seed in 1..=3 {
        write_tree(&path, seed * 10);
    }
    let snapshot = world.snapshot("snap", &vol);
    let restored = world.restore("restored", Use::Xfs, &snapshot.snapshot_id, vol.size + 64 * MIB);
    let beside = world.attach(&restored).unwrap();
    check_tree(&beside, 10);
    check_tree(&beside, 30);
    // It is only delayed: the unmount writes the superblock.
    world.detach(&vol);
    world.attach(&vol).unwrap();
    assert_eq!(world.node_expand(&vol, vol.size + 64 * MIB).unwrap(), vol.size + 64 * MIB);
    assert!(fs_size(&path) > grown + 20 * (1 << 20), "{}", fs_size(&path));
    world.finish();
}

#[test]
fn xfs_grows_while_mounted_on_xfs() {
    grows_while_mounted(PoolFs::Xfs, Use::Xfs);
}

#[test]
fn xfs_grows_while_mounted_on_ext4() {
    grows_while_mounted(PoolFs::Ext4, Use::Xfs);
}

#[test]
fn xfs_grows_while_mounted_on_btrfs() {
    grows_while_mounted(PoolFs::Btrfs, Use::Xfs);
}

#[test]
fn ext4_grows_while_mounted_or_says_what_is_missing() {
    if can_grow_ext4_online() {
        return grows_while_mounted(PoolFs::Xfs, Use::Ext4);
    }
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    let path = world.attach(&vol).unwrap();
    write_tree(&path, 1);
    let before = fs_size(&path);
    let size = vol.size + 100 * MIB;
    world.expand(&vol, size).unwrap();
    let said = refused(world.node_expand(&vol, size), &[Code::FailedPrecondition]);
    assert!(said.contains("CAP_SYS_RESOURCE"), "{said}");
    check_tree(&path, 1);
    // Nothing is lost: the next stage grows the filesystem.
    world.detach(&vol);
    let path = world.attach(&vol).unwrap();
    check_tree(&path, 1);
    assert!(fs_size(&path) > before + 80 * (1 << 20), "{}", fs_size(&path));
    assert_eq!(world.node_expand(&vol, size).unwrap(), size);
    world.finish();
}

#[test]
fn the_filesystem_grows_at_the_next_stage() {
    for pool in PoolFs::ALL {
        let mut world = World::new(pool);
        for kind in Use::FILESYSTEMS {
            let vol = world.create(kind.fs_type(), kind);
            let path = world.attach(&vol).unwrap();
            write_tree(&path, 1);
            let before = fs_size(&path);
            world.detach(&vol);
            let size = vol.size + 100 * MIB;
            assert_eq!(world.expand(&vol, size).unwrap().capacity_bytes, size);
            world.crash();
            let path = world.attach(&vol).unwrap();
            check_tree(&path, 1);
            assert!(fs_size(&path) > before + 80 * (1 << 20), "{}", fs_size(&path));
            assert_eq!(world.node_expand(&vol, size).unwrap(), size);
        }
        world.finish();
    }
}

#[test]
fn a_claim_grown_before_its_first_use_is_formatted_whole() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    world.expand(&vol, 132 * MIB).unwrap();
    assert!(fs_size(&world.attach(&vol).unwrap()) > 100 * (1 << 20));
    world.finish();
}

#[test]
fn a_raw_volume_grows_while_it_is_used() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Block);
    let path = world.attach(&vol).unwrap();
    write_device(&path, 1, 0, 16);
    let answer = world.expand(&vol, 40 * MIB).unwrap();
    // What lies over the volume's device must follow: a device-mapper device, or the device of read-only pods
    // (aws-ebs#346, vsphere#2182).
    assert_eq!((answer.capacity_bytes, answer.node_expansion_required), (40 * MIB, true));
    assert_eq!(world.node_expand(&vol, 40 * MIB).unwrap(), 40 * MIB);
    assert_eq!(device_size(&path), 40 * MIB);
    check_device(&path, 1, 0, 16);
    write_device(&path, 60, 16 << 20, 24);
    check_device(&path, 60, 16 << 20, 24);
    world.finish();
}

#[test]
fn expanding_is_repeatable_and_a_smaller_target_is_told_the_real_size() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    assert_eq!(world.expand(&vol, 48 * MIB).unwrap().capacity_bytes, 48 * MIB);
    for size in [48 * MIB, 40 * MIB, 1] {
        assert_eq!(world.expand(&vol, size).unwrap().capacity_bytes, 48 * MIB);
    }
    // Rounded up to whole MiB, but never over the limit.
    assert_eq!(world.expand(&vol, 48 * MIB + 1).unwrap().capacity_bytes, 49 * MIB);
    let range = |required_bytes, limit_bytes| p::ControllerExpandVolumeRequest {
        volume_id: vol.id.clone(),
        capacity_range: Some(p::CapacityRange { required_bytes, limit_bytes }),
        ..Default::default()
    };
    refused(world.controller_expand_volume(range(50 * MIB + 1, 50 * MIB + 2)), &[Code::OutOfRange]);
    refused(world.controller_expand_volume(range(10 * MIB, 20 * MIB)), &[Code::OutOfRange]);
    refused(world.controller_expand_volume(range(60 * MIB, 55 * MIB)), &[Code::InvalidArgument, Code::OutOfRange]);
    refused(world.controller_expand_volume(range(-1, 0)), &[Code::InvalidArgument, Code::OutOfRange]);
    assert_eq!(world.expand(&vol, 1).unwrap().capacity_bytes, 49 * MIB);
    world.finish();
}

#[test]
fn an_expansion_that_does_not_fit_changes_nothing() {
    let world = World::sized(PoolFs::Xfs, 1 << 30);
    let vol = world.create("vol", Use::Xfs);
    let path = world.attach(&vol).unwrap();
    write_tree(&path, 1);
    let image = world.image(&vol);
    let before = (std::fs::metadata(&image).unwrap().len(), world.capacity());
    refused(world.expand(&vol, 2000 * MIB), &[Code::OutOfRange]);
    refused(world.expand(&vol, i64::MAX), &[Code::OutOfRange]);
    assert_eq!((std::fs::metadata(&image).unwrap().len(), world.capacity()), before);
    assert_eq!(world.expand(&vol, 1).unwrap().capacity_bytes, vol.size);
    // The user gives up and requests a smaller size (KEP-1790).
    let less = vol.size + 10 * MIB;
    assert_eq!(world.expand(&vol, less).unwrap().capacity_bytes, less);
    check_tree(&path, 1);
    world.finish();
}

#[test]
fn node_expand_at_a_strange_path_or_volume_is_not_found() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    world.attach(&vol).unwrap();
    let request = |volume_id: &str, volume_path: &str| p::NodeExpandVolumeRequest {
        volume_id: volume_id.into(),
        volume_path: volume_path.into(),
        ..Default::default()
    };
    refused(world.node_expand_volume(request(&vol.id, "some/path")), &[Code::NotFound]);
    refused(world.node_expand_volume(request(&vol.id, "/nowhere")), &[Code::NotFound]);
    refused(world.node_expand_volume(request(&vol.id, "/tmp")), &[Code::NotFound]);
    let path = world.target(&vol, "pod");
    refused(world.node_expand_volume(request("fake-vol-id", path.to_str().unwrap())), &[Code::NotFound]);
    // No range, no capability, no staging path: grow to the size of the device.
    world.node_expand_volume(request(&vol.id, path.to_str().unwrap())).unwrap();
    let staging = world.staging(&vol);
    world.node_expand_volume(request(&vol.id, staging.to_str().unwrap())).unwrap();
    world.finish();
}
