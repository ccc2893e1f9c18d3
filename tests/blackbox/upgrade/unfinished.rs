//! What one release had begun when it was killed, the other one finishes or undoes.

use std::time::Duration;

use holdfast::csi::proto as p;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Status;

use super::run_by;
use crate::harness::calls::{from_snapshot, from_volume};
use crate::harness::{
    HeldTool, MIB, PoolFs, Release, Use, Vol, World, check_chunks, check_device, create_request, is_dense, write_chunk,
    write_device,
};

/// Moments of a kill after the beginning of a call. An even number, so that both releases are killed at each.
const MOMENTS: [u64; 4] = [0, 2, 7, 25];

fn start_other(world: &mut World) {
    world.release = world.release.other();
    world.start();
}

/// Kills the driver some milliseconds after a call began, starts the other release, and repeats the call until it
/// succeeds.
fn interrupted<T>(world: &mut World, after: u64, call: impl Fn(&World) -> Result<T, Status>) -> T {
    let pid = Pid::from_raw(world.daemon().pid().try_into().unwrap());
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(after));
        kill(pid, Signal::SIGKILL).unwrap();
    });
    let _ = call(world);
    killer.join().unwrap();
    world.kill9();
    start_other(world);
    world.retried("the call that was interrupted", || call(world))
}

/// A raw volume has so much that a copy of it takes a while.
fn written(world: &World, vol: &Vol, seed: u64) {
    let path = world.attach(vol).unwrap();
    match vol.kind {
        Use::Block => write_device(&path, seed, 0, 12),
        Use::Ext4 | Use::Xfs => write_chunk(vol.kind, &path, 0, seed),
    }
    world.detach(vol);
}

fn checked(world: &World, vol: &Vol, seed: u64) {
    let path = world.attach(vol).unwrap();
    match vol.kind {
        Use::Block => check_device(&path, seed, 0, 12),
        Use::Ext4 | Use::Xfs => check_chunks(vol.kind, &path, &[seed]),
    }
    world.detach(vol);
}

/// One volume's lifecycle; each call is interrupted after so long.
fn life(world: &mut World, kind: Use, after: u64) {
    let request = create_request("vol", kind, kind.size());
    let mut vol = interrupted(world, after, |world| world.try_create(kind, &request));
    assert!(is_dense(&world.image(&vol)), "a thick volume");
    interrupted(world, after, |world| world.publish(&vol));
    interrupted(world, after, |world| world.stage(&vol));
    interrupted(world, after, |world| world.unstage(&vol));
    interrupted(world, after, |world| world.unpublish(&vol));
    written(world, &vol, 1);
    let size = vol.size + 16 * MIB;
    vol.size = interrupted(world, after, |world| world.expand(&vol, size)).capacity_bytes;
    assert_eq!(vol.size, size);
    let cut = interrupted(world, after, |world| world.try_snapshot("cut", &vol)).snapshot_id;
    let ready = world.snapshot("cut", &vol);
    assert_eq!(ready.snapshot_id, cut);
    for (name, source) in [("restored", from_snapshot(&cut)), ("cloned", from_volume(&vol))] {
        let request = p::CreateVolumeRequest { volume_content_source: source, ..create_request(name, kind, size) };
        let copy = interrupted(world, after, |world| world.try_create(kind, &request));
        checked(world, &copy, 1);
        interrupted(world, after, |world| world.delete(&copy));
    }
    checked(world, &vol, 1);
    interrupted(world, after, |world| world.drop_snapshot(&cut));
    interrupted(world, after, |world| world.delete(&vol));
    assert_eq!((world.volume_ids(), world.snapshot_ids()), (Vec::new(), Vec::new()));
}

fn lives(pool: PoolFs, kinds: [Use; 2]) {
    let mut world = run_by(Release::Before, pool);
    for kind in kinds {
        for after in MOMENTS {
            life(&mut world, kind, after);
        }
    }
    world.finish();
}

#[test]
fn what_one_release_had_begun_the_other_finishes_on_xfs() {
    lives(PoolFs::Xfs, [Use::Ext4, Use::Xfs]);
}

/// Without reflinks snapshots and copies take long, and resume.
#[test]
fn what_one_release_had_begun_the_other_finishes_on_ext4() {
    lives(PoolFs::Ext4, [Use::Block, Use::Ext4]);
}

#[test]
fn a_mkfs_that_one_release_began_the_other_begins_again() {
    for release in Release::ALL {
        let mut world = run_by(release, PoolFs::Xfs);
        for kind in Use::FILESYSTEMS {
            world.release = release;
            let vol = world.create(kind.fs_type(), kind);
            world.publish(&vol).unwrap();
            let held = HeldTool::new(&world.scratch, &format!("mkfs.{}", kind.fs_type()));
            held.hold();
            let (channel, request) = (world.channel(), world.stage_request(&vol));
            let mut client = holdfast::csi::proto::node_client::NodeClient::new(channel);
            let cut = world.spawn(async move { client.node_stage_volume(request).await });
            held.wait_for_call(1);
            assert!(world.record(&vol)["format"].to_string().contains("formatting"), "{}", world.record(&vol));
            world.kill9();
            assert!(world.block_on(cut).unwrap().is_err());
            held.let_go();
            start_other(&mut world);
            world.retried("NodeStage", || world.stage(&vol));
            assert!(world.record(&vol)["format"].to_string().contains("formatted"), "{}", world.record(&vol));
            write_chunk(kind, &world.bind(&vol, "pod").unwrap(), 0, 1);
            world.kill9();
            start_other(&mut world);
            check_chunks(kind, &world.attach(&vol).unwrap(), &[1]);
            world.detach(&vol);
            checked(&world, &vol, 1);
            assert_eq!(held.calls().len(), 2, "{:?}", held.calls());
        }
        world.finish();
    }
}
