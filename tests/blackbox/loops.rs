//! Loop devices are shared by the whole machine: what a pod, an administrator or a broken disk does to one affects no
//! other volume.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tonic::Code;

use crate::harness::{
    PoolFs, Use, World, check_device, check_tree, driver_binary, refused, run, try_run, write_device, write_tree,
};

fn number(path: &Path) -> u64 {
    fs::metadata(path).unwrap().rdev()
}

fn doctor(world: &World) -> String {
    try_run(driver_binary(), &["doctor", "--pool", &format!("test=file:{}", world.pool.display())]).stdout
}

/// LOOP_CLR_FD needs no capability, only a descriptor, which the pod has.
fn clear(path: &Path) {
    run("/usr/sbin/losetup", &["-d", path.to_str().unwrap()]);
}

#[test]
fn a_pod_that_clears_its_device_sees_no_other_volume_after_a_kill() {
    let mut world = World::new(PoolFs::Xfs);
    let first = world.create("first", Use::Block);
    let path = world.attach(&first).unwrap();
    write_device(&path, 1, 0, 2);
    assert!(!doctor(&world).contains("published at"), "{}", doctor(&world));
    clear(&path);
    world.crash();
    let said = doctor(&world);
    assert!(said.contains("published at") && said.contains(path.to_str().unwrap()), "{said}");
    for kind in [Use::Ext4, Use::Block] {
        let next = world.create(&format!("next-{}", kind.fs_type()), kind);
        let other = world.attach(&next).unwrap();
        match kind {
            Use::Block => assert_ne!(number(&other), number(&path)),
            Use::Ext4 | Use::Xfs => assert_ne!(fs::metadata(&other).unwrap().dev(), number(&path)),
        }
        world.detach(&next);
        world.delete(&next).unwrap();
    }
    // The pod ends: its stale path is removed, and the next one has the data.
    world.unbind(&first, "pod").unwrap();
    world.stage(&first).unwrap();
    check_device(&world.bind(&first, "pod").unwrap(), 1, 0, 2);
    world.detach(&first);
    world.delete(&first).unwrap();
    world.finish();
}

#[test]
fn a_device_that_was_marked_to_go_outlives_an_upgrade() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Block);
    let path = world.attach(&vol).unwrap();
    write_device(&path, 1, 0, 2);
    clear(&path);
    assert_eq!(world.terminate(), 0);
    check_device(&path, 1, 0, 2);
    world.start();
    write_device(&path, 2, 0, 2);
    world.detach(&vol);
    check_device(&world.attach(&vol).unwrap(), 2, 0, 2);
    world.finish();
}

/// LOOP_GET_STATUS64 of a loop device whose filesystem was shut down is EIO; the nodes in /dev of some are missing.
#[test]
fn a_dead_loop_device_of_another_program_stops_nothing() {
    let world = World::new(PoolFs::Xfs);
    let disk = world.scratch.path().join("dead.img");
    fs::File::create(&disk).unwrap().set_len(320 << 20).unwrap();
    PoolFs::Xfs.make(&disk);
    let dead = world.scratch.path().join("dead");
    fs::create_dir(&dead).unwrap();
    run("/usr/bin/mount", &["-o", "loop", disk.to_str().unwrap(), dead.to_str().unwrap()]);
    let file = dead.join("image");
    fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    run("/usr/sbin/losetup", &["-f", file.to_str().unwrap()]);
    let listed = run("/usr/sbin/losetup", &["-n", "-O", "NAME", "-j", file.to_str().unwrap()]);
    let device = listed.trim().to_owned();
    run("/usr/sbin/xfs_io", &["-x", "-c", "shutdown", dead.to_str().unwrap()]);
    for kind in Use::ALL {
        let vol = world.create(&format!("vol-{}", kind.fs_type()), kind);
        let path = world.attach(&vol).unwrap();
        match kind {
            Use::Block => write_device(&path, 1, 0, 2),
            Use::Ext4 | Use::Xfs => write_tree(&path, 1),
        }
        assert!(doctor(&world).contains("ok"), "{}", doctor(&world));
        world.detach(&vol);
        let path = world.attach(&vol).unwrap();
        match kind {
            Use::Block => check_device(&path, 1, 0, 2),
            Use::Ext4 | Use::Xfs => check_tree(&path, 1),
        }
        refused(world.delete(&vol), &[Code::FailedPrecondition]);
        world.detach(&vol);
        world.delete(&vol).unwrap();
    }
    run("/usr/sbin/losetup", &["-d", &device]);
    run("/usr/bin/umount", &[dead.to_str().unwrap()]);
    fs::remove_file(disk).unwrap();
    world.finish();
}
