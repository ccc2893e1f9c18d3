//! Interrupted mkfs: by a power cut, by a disk that fails, and by the death of the driver that started it.

use std::path::Path;
use std::time::Duration;

use holdfast::csi::proto::node_client::NodeClient;
use tonic::Code;

use crate::harness::{
    HeldTool, PoolFs, Scratch, Use, Vol, World, await_that, check_tree, refused, run, superblock_uuid, write_tree,
};

use super::layer::{DiskMemory, Fault, Layer};
use super::log::Left;
use super::recorded;

/// The position of an image on the disk of the pool, in bytes.
pub(super) fn place(image: &Path) -> std::ops::Range<u64> {
    let said = run("/usr/sbin/filefrag", &["-v", "-b4096", image.to_str().unwrap()]);
    let numbers = |line: &str| -> Option<(u64, u64)> {
        let physical = line.split(':').nth(2)?;
        let (from, to) = physical.split_once("..")?;
        Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
    };
    let extents: Vec<_> = said.lines().filter_map(numbers).collect();
    let from = extents.iter().map(|extent| extent.0).min().expect(&said);
    let to = extents.iter().map(|extent| extent.1).max().unwrap();
    from * 4096..(to + 1) * 4096
}

/// Once staged, it has one filesystem, the recorded one, and keeps what is written to it.
fn works(world: &World, vol: &Vol, what: &str) {
    world.publish(vol).unwrap();
    world.retried("NodeStage", || match world.stage(vol) {
        Err(status) if status.code() != Code::Aborted => panic!("{what}: {status:?}"),
        answer => answer,
    });
    let path = world.bind(vol, "pod").unwrap();
    let format = world.record(vol)["format"].clone();
    assert_eq!(format["state"], "formatted", "{what}");
    assert_eq!(format["uuid"], superblock_uuid(&world.image(vol)).to_string(), "{what}");
    write_tree(&path, 1);
    world.detach(vol);
    check_tree(&world.attach(vol).unwrap(), 1);
    assert_eq!(world.record(vol)["format"], format, "{what}: formatted again");
    world.detach(vol);
}

pub(super) fn calls(held: &HeldTool) -> usize {
    held.calls().iter().filter(|call| call.contains("/dev/loop")).count()
}

fn a_mkfs_cut_off_by_the_power_is_made_once(pool: PoolFs, kind: Use) {
    let (world, layer, _) = recorded(pool, 2 << 30);
    let vol = world.create("vol", kind);
    world.publish(&vol).unwrap();
    let (from, flush) = (layer.requests(), layer.flushes());
    world.stage(&vol).unwrap();
    let (to, last) = (layer.requests(), layer.flushes());
    world.finish();
    let log = layer.into_log();
    let bytes: usize = log.written(from..to);
    let (cut, torn) = (30, 1);
    // In the order of the writes and, as on a disk with a cache, any of those since the last flush.
    let in_order = (0..cut).map(|point| Left::Bytes(from, bytes * point / (cut - 1)));
    let points: Vec<_> =
        in_order.chain((flush..last).flat_map(|flush| (0..torn).map(move |seed| Left::Torn(flush, seed)))).collect();
    let mut states = std::collections::BTreeMap::<String, usize>::new();
    for left in &points {
        let ground = DiskMemory::new();
        let disk = ground.path().join("disk");
        log.build(*left, &disk);
        let mut world = World::over(Scratch::over(&disk, pool));
        let held = HeldTool::new(&world.scratch, if kind == Use::Xfs { "mkfs.xfs" } else { "mkfs.ext4" });
        world.start();
        let state = world.record(&vol)["format"]["state"].as_str().unwrap().to_owned();
        works(&world, &vol, &format!("{left:?} of {bytes} bytes, {state}"));
        let allowed = usize::from(state != "formatted");
        assert!(calls(&held) <= allowed, "{left:?}, {state}: mkfs ran {} times", calls(&held));
        *states.entry(state).or_default() += 1;
        world.finish();
    }
    assert!(states["formatting"] >= 20, "{states:?}: choose more points");
    eprintln!(
        "mkfs.{} cut off by the power, pool on {pool:?}: {} points over {bytes} bytes, {states:?}",
        kind.fs_type(),
        points.len()
    );
}

#[test]
fn mkfs_ext4_cut_off_by_the_power_is_made_once() {
    a_mkfs_cut_off_by_the_power_is_made_once(PoolFs::Xfs, Use::Ext4);
}

#[test]
fn mkfs_xfs_cut_off_by_the_power_is_made_once() {
    a_mkfs_cut_off_by_the_power_is_made_once(PoolFs::Ext4, Use::Xfs);
}

/// The bytes that mkfs writes, measured with a complete run.
fn bytes_of_mkfs(world: &World, layer: &Layer, kind: Use) -> u64 {
    let vol = world.create("measure", kind);
    world.publish(&vol).unwrap();
    layer.fault(Some(Fault::FailWrites(place(&world.image(&vol)), u64::MAX)));
    world.stage(&vol).unwrap();
    let written = layer.written();
    layer.fault(None);
    world.unstage(&vol).unwrap();
    world.unpublish(&vol).unwrap();
    world.delete(&vol).unwrap();
    written
}

#[test]
fn a_mkfs_whose_disk_fails_is_an_error_and_made_once_when_it_works_again() {
    let (world, layer, _) = recorded(PoolFs::Xfs, 2 << 30);
    for kind in Use::FILESYSTEMS {
        let bytes = bytes_of_mkfs(&world, &layer, kind);
        let (wanted, mut failed, mut unfinished) = (24, 0, 0);
        for point in 0..wanted {
            let what = format!("{} failing after {} of {bytes} bytes", kind.fs_type(), bytes * point / wanted);
            let vol = world.create(&format!("{}-{point}", kind.fs_type()), kind);
            world.publish(&vol).unwrap();
            layer.fault(Some(Fault::FailWrites(place(&world.image(&vol)), bytes * point / wanted)));
            if let Err(status) = world.stage(&vol) {
                failed += 1;
                assert!(
                    status.message().contains(vol.uuid()) || status.message().contains("mkfs"),
                    "{what}: {status:?}"
                );
                // Once it is formatted and recorded, the mount fails.
                unfinished += u64::from(world.record(&vol)["format"]["state"] == "formatting");
            }
            assert!(layer.hits() > 0, "{what}: nothing failed");
            layer.fault(None);
            works(&world, &vol, &what);
            world.delete(&vol).unwrap();
        }
        assert_eq!(failed, wanted, "a failed write was answered with success");
        assert!(unfinished >= 20, "{unfinished}: choose more points");
        eprintln!("mkfs.{} with a failing disk: {unfinished} of {wanted} points over {bytes} bytes", kind.fs_type());
    }
    world.finish();
    layer.into_log();
}

#[test]
fn a_mkfs_of_a_killed_driver_never_writes_beside_a_second_one() {
    let (mut world, layer, _) = recorded(PoolFs::Xfs, 2 << 30);
    for (kind, tool) in [(Use::Ext4, "mkfs.ext4"), (Use::Xfs, "mkfs.xfs")] {
        let held = HeldTool::new(&world.scratch, tool);
        let vol = world.create(tool, kind);
        world.publish(&vol).unwrap();
        layer.fault(Some(Fault::HoldWrites(place(&world.image(&vol)), 16 << 10)));
        let request = world.stage_request(&vol);
        let mut client = NodeClient::new(world.channel());
        let _stage = world.spawn(async move { client.node_stage_volume(request).await });
        await_that("mkfs writes and is not answered", Duration::from_secs(30), || layer.hits() > 0);
        let call = held.calls().pop().unwrap();
        let (pid, device) =
            (call.split(' ').next().unwrap().to_owned(), call.split(' ').next_back().unwrap().to_owned());
        world.kill9();
        // Killed with its parent, but in the kernel until the disk answers: it still holds the device.
        world.start();
        let mut client = NodeClient::new(world.channel());
        let request = world.stage_request(&vol);
        let second = world.spawn(async move { client.node_stage_volume(request).await });
        let other = world.create(&format!("other-{tool}"), Use::Ext4);
        write_tree(&world.attach(&other).unwrap(), 1);
        world.detach(&other);
        if second.is_finished() {
            let said = refused(world.block_on(second).unwrap(), &[Code::Aborted]);
            assert!(said.contains(vol.uuid()), "{said}");
        }
        let beside = held.calls().iter().filter(|call| call.ends_with(&device)).count();
        assert_eq!(beside, 1, "a second mkfs beside the first: {:?}", held.calls());
        layer.fault(None);
        let gone = || !Path::new("/proc").join(&pid).exists();
        await_that("the first mkfs ends, its parent dead", Duration::from_secs(30), gone);
        works(&world, &vol, tool);
    }
    world.finish();
    layer.into_log();
}
