//! Calls that do not come back: their own volume is told what goes on and since when, all others go on, and what was
//! under way is finished when they do come back, not begun again. Children of the real process: tests/blackbox/hangs.rs.

use std::thread;
use std::time::Duration;

use super::operations::{granted, used};
use super::world::{Answer, BLOCK, EXT4, World, thick};
use holdfast::os::Call;
use holdfast::testing::scratch::PoolFs;
use holdfast::types::{Kind, Result};

/// Holds one call of `work` on the volume `v`, and looks around meanwhile. `words`: what the next caller is told.
fn hold(world: &World, call: Call, target: &str, work: impl FnOnce() -> Result<()> + Send + 'static, words: &[&str]) {
    world.hand().watch();
    world.hand().hold(call, target);
    let stuck = thread::spawn(work);
    world.hand().wait_for_held();
    thread::sleep(Duration::from_millis(1100));
    let refused = |answer: Answer| {
        let error = answer.unwrap_err();
        assert_eq!(error.failure.error().kind(), Kind::Busy, "{error:?}");
        error.failure.error().to_string()
    };
    for said in [refused(world.stage("v", EXT4)), refused(world.unstage("v"))] {
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert!((1..60).any(|age| said.contains(&format!(" {age} s"))), "no age: {said}");
    }
    world.create("o", thick(16, BLOCK), None).unwrap();
    world.grant("o", BLOCK).unwrap();
    world.stage("o", BLOCK).unwrap();
    world.unstage("o").unwrap();
    world.revoke("o").unwrap();
    world.delete("o").unwrap();
    world.hand().release();
    stuck.join().unwrap().unwrap();
}

fn count(world: &World, program: &str) -> usize {
    world.hand().made().iter().filter(|(call, what)| *call == Call::Exec && what.starts_with(program)).count()
}

fn stage(world: &World) -> impl FnOnce() -> Result<()> + Send + 'static {
    let (node, request) = (world.node(), world.stage_request("v", EXT4));
    move || node.stage(&request).map(drop)
}

fn end(world: &World) {
    world.unstage("v").unwrap();
    world.revoke("v").unwrap();
    world.delete("v").unwrap();
}

#[test]
fn a_mkfs_that_hangs_is_run_once() {
    let world = World::new(PoolFs::Xfs, 512);
    granted(&world, thick(16, EXT4)).unwrap();
    hold(&world, Call::Exec, "mkfs.ext4", stage(&world), &["NodeStageVolume"]);
    world.stage("v", EXT4).unwrap();
    assert_eq!(count(&world, "mkfs.ext4"), 1);
    end(&world);
}

#[test]
fn a_mount_that_hangs_is_named_and_mounted_once() {
    let world = World::new(PoolFs::Xfs, 512);
    granted(&world, thick(16, EXT4)).unwrap();
    hold(&world, Call::Mount, "staging-v", stage(&world), &["NodeStageVolume", "mount on", "staging-v"]);
    world.stage("v", EXT4).unwrap();
    assert_eq!((count(&world, "mkfs.ext4"), world.os.mounts().unwrap().depth(&world.staging("v"))), (1, 1));
    end(&world);
}

#[test]
fn an_unmount_that_hangs_is_named_and_the_data_stays() {
    let world = World::new(PoolFs::Xfs, 512);
    used(&world, thick(16, EXT4));
    let (node, id, staging) = (world.node(), world.id("v"), world.staging("v"));
    let unstage = move || node.unstage(&id, &staging).map(drop);
    hold(&world, Call::Unmount, "staging-v", unstage, &["NodeUnstageVolume", "umount on", "staging-v"]);
    world.stage("v", EXT4).unwrap();
    super::operations::file_is_whole(&world.staging("v"));
    assert_eq!(count(&world, "mkfs.ext4"), 0);
    end(&world);
}
