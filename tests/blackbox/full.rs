//! A pool that another process filled to the last block and inode: existing volumes continue, are attached, detached
//! and deleted; nothing new is created.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tonic::Code;

use crate::harness::{
    Hog, MIB, PoolFs, Use, Vol, World, allocated, check_device, check_tree, create_request, driver_binary,
    empty_filesystem, fill_filesystem, is_dense, refused, try_run, write_device, write_tree,
};

/// Whether space for records is reserved.
fn reserve_is_whole(world: &World) -> bool {
    allocated(&world.pool.join("reserve")) >= 1 << 20
}

fn nothing_new_is_made(world: &World, source: &Vol) {
    refused(world.create_volume(create_request("new", Use::Block, MIB)), &[Code::ResourceExhausted]);
    // Without reflinks a volume in use is refused first.
    refused(world.try_snapshot("new", source), &[Code::ResourceExhausted, Code::FailedPrecondition]);
    refused(world.expand(source, source.size + MIB), &[Code::OutOfRange]);
    assert_eq!(world.capacity().available_capacity, 0);
}

fn goes_on(pool: PoolFs) {
    let mut world = World::sized(pool, 512 << 20);
    let used = world.create("used", Use::Ext4);
    let fresh = world.create("fresh", Use::Block);
    let doomed = world.create("doomed", Use::Ext4);
    let snapshot = world.snapshot("snap", &used);
    write_tree(&world.attach(&used).unwrap(), 1);
    assert!(reserve_is_whole(&world), "no reserve was made");
    let mut hog = Hog::fill(&world.scratch.root());
    // Detach, and attach again, more than once: each is a record.
    for _ in 0..3 {
        world.detach(&used);
        hog.take_blocks();
        match pool {
            // Thick: its filesystem has its space.
            PoolFs::Xfs | PoolFs::XfsWithoutReflink | PoolFs::Ext4 => check_tree(&world.attach(&used).unwrap(), 1),
            PoolFs::Btrfs => world.publish(&used).unwrap(),
        }
    }
    // The first attach of another, as a raw device.
    world.attach(&fresh).unwrap();
    world.detach(&fresh);
    // The driver starts in a full pool, and still has the space it needs.
    world.crash();
    if pool != PoolFs::Btrfs {
        check_tree(&world.target(&used, "pod"), 1);
        world.unbind(&used, "pod").unwrap();
        world.unstage(&used).unwrap();
    }
    world.crash();
    world.unpublish(&used).unwrap();
    nothing_new_is_made(&world, &used);
    // Deleting frees space, and still works.
    world.drop_snapshot(&snapshot.snapshot_id).unwrap();
    hog.take_blocks();
    world.delete(&doomed).unwrap();
    hog.take_blocks();
    world.publish(&used).unwrap();
    world.unpublish(&used).unwrap();
    drop(hog);
    world.delete(&fresh).unwrap();
    assert!(reserve_is_whole(&world), "there is space again, and the reserve is not restored");
    world.create("new", Use::Block);
    check_tree(&world.attach(&used).unwrap(), 1);
    world.finish();
}

#[test]
fn a_full_pool_attaches_detaches_and_deletes_on_xfs() {
    goes_on(PoolFs::Xfs);
}

#[test]
fn a_full_pool_attaches_detaches_and_deletes_on_ext4() {
    goes_on(PoolFs::Ext4);
}

#[test]
fn a_full_pool_attaches_detaches_and_deletes_on_btrfs() {
    goes_on(PoolFs::Btrfs);
}

/// Every byte of a volume in use, written again, durably, and read back; the small ones twice, with an fstrim between.
fn every_byte_is_written(path: &Path, vol: &Vol) {
    let rounds: &[u64] = if vol.kind == Use::Xfs { &[10] } else { &[10, 5000] };
    for seed in rounds.iter().copied() {
        match vol.kind {
            Use::Block => {
                let mib = u64::try_from(vol.size / MIB).unwrap();
                write_device(path, seed, 0, mib);
                check_device(path, seed, 0, mib);
            }
            Use::Ext4 | Use::Xfs => {
                let count = fill_filesystem(path, seed);
                assert!(count * 10 > u64::try_from(vol.size / MIB).unwrap() * 6, "only {count} MiB in {vol:?}");
                empty_filesystem(path, seed, count);
                try_run("/usr/sbin/fstrim", &[path.to_str().unwrap()]);
            }
        }
    }
}

fn thick_volumes_never_meet_it(pool: PoolFs) {
    let world = World::sized(pool, 2 << 30);
    let used: Vec<_> = Use::ALL.iter().map(|kind| world.create(&format!("{kind:?}").to_lowercase(), *kind)).collect();
    // One of them was never mounted before the pool is full: its filesystem is created then.
    let late = world.create("late", Use::Ext4);
    let paths: Vec<_> = used.iter().map(|vol| world.attach(vol).unwrap()).collect();
    for (vol, path) in used.iter().zip(&paths).filter(|(vol, _)| vol.kind != Use::Block) {
        write_tree(path, 1);
        try_run("/usr/sbin/fstrim", &[path.to_str().unwrap()]);
        assert!(is_dense(&world.image(vol)));
    }
    let mut hog = Hog::fill(&world.scratch.root());
    for (vol, path) in used.iter().zip(&paths) {
        every_byte_is_written(path, vol);
        hog.take_blocks();
    }
    every_byte_is_written(&world.attach(&late).unwrap(), &late);
    for (vol, path) in used.iter().zip(&paths).filter(|(vol, _)| vol.kind != Use::Block) {
        check_tree(path, 1);
        assert!(is_dense(&world.image(vol)), "{vol:?}");
    }
    nothing_new_is_made(&world, &used[0]);
    drop(hog);
    world.finish();
}

#[test]
fn thick_volumes_are_written_to_the_last_byte_in_a_full_pool_on_xfs() {
    thick_volumes_never_meet_it(PoolFs::Xfs);
}

#[test]
fn thick_volumes_are_written_to_the_last_byte_in_a_full_pool_on_ext4() {
    thick_volumes_never_meet_it(PoolFs::Ext4);
}

/// Filled from inside, with nothing else kept free: the space reserved for volumes that share blocks is there.
#[test]
fn what_is_promised_for_shared_blocks_is_there_to_the_last_byte() {
    let mut world = World::stopped(PoolFs::Xfs, 1 << 30);
    let file = world.scratch.path().join("holdfast.yaml");
    let text = format!("pools:\n  - name: test\n    path: {}\n    minFree: 0%\n", world.pool.display());
    std::fs::write(&file, text).unwrap();
    world.configure_by(&file);
    world.start();
    let raw = world.create_from(Use::Block, &create_request("raw", Use::Block, 64 * MIB));
    let mounted = world.create("mounted", Use::Ext4);
    let paths = [&raw, &mounted].map(|vol| world.attach(vol).unwrap());
    write_device(&paths[0], 1, 0, 64);
    write_tree(&paths[1], 1);
    let snapshots = [&raw, &mounted].map(|vol| world.snapshot(&format!("of-{}", vol.uuid()), vol));
    let restored = world.restore("restored", Use::Block, &snapshots[0].snapshot_id, raw.size);
    let clone = world.clone_of("clone", &mounted);
    for size in [64, 16, 4, 1] {
        for number in 0.. {
            let request = create_request(&format!("more-{size}-{number}"), Use::Block, size * MIB);
            if let Err(status) = world.create_volume(request) {
                refused(Err::<(), _>(status), &[Code::ResourceExhausted]);
                break;
            }
        }
    }
    assert_eq!(world.capacity().available_capacity, 0);
    for (vol, path) in [(&raw, &paths[0]), (&mounted, &paths[1])] {
        every_byte_is_written(path, vol);
    }
    for vol in [&restored, &clone] {
        every_byte_is_written(&world.attach(vol).unwrap(), vol);
    }
    check_tree(&paths[1], 1);
    world.finish();
}

/// The ledger limits only requests to the driver. Another process can take the space of shared blocks. Then the write
/// fails, at once and each time, doctor reports why, and the snapshot is unchanged.
#[test]
fn room_for_shared_blocks_is_not_held_against_others_and_that_is_said() {
    let world = World::sized(PoolFs::Xfs, 1 << 30);
    let vol = world.create("raw", Use::Block);
    let path = world.attach(&vol).unwrap();
    write_device(&path, 1, 0, 16);
    let snapshot = world.snapshot("snap", &vol);
    let doctor = || try_run(driver_binary(), &["doctor", "--pool", &format!("test=file:{}", world.pool.display())]);
    assert!(!doctor().stdout.contains("are reserved for snapshots"), "{:?}", doctor());
    let hog = Hog::fill(&world.scratch.root());
    for _ in 0..3 {
        write_durably(&path).unwrap_err();
    }
    assert!(doctor().stdout.contains("reserved for snapshots and volumes that share blocks"), "{:?}", doctor());
    drop(hog);
    write_device(&path, 50, 0, 16);
    let restored = world.restore("restored", Use::Block, &snapshot.snapshot_id, vol.size);
    check_device(&world.attach(&restored).unwrap(), 1, 0, 16);
    check_device(&path, 50, 0, 16);
    world.finish();
}

fn write_durably(path: &Path) -> std::io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.write_all_at(&[7; 1 << 20], 0)?;
    file.sync_all()
}

/// btrfs pools are thin only, by the user's choice. The error occurs not once but each time.
#[test]
fn a_volume_of_a_full_btrfs_pool_sees_the_error_at_every_fsync() {
    let world = World::sized(PoolFs::Btrfs, 1 << 30);
    let vol = world.create("raw", Use::Block);
    let path = world.attach(&vol).unwrap();
    write_durably(&path).unwrap();
    let second = world.create("second", Use::Block);
    let other = world.attach(&second).unwrap();
    let hog = Hog::fill(&world.scratch.root());
    for _ in 0..3 {
        write_durably(&other).unwrap_err();
    }
    drop(hog);
    write_durably(&other).unwrap();
    world.finish();
}

/// ext4 creates its inodes with the filesystem; XFS creates them of blocks, btrfs does not count them.
#[test]
fn inodes_taken_from_outside_refuse_what_is_new_and_nothing_else() {
    let world = World::sized(PoolFs::Ext4, 512 << 20);
    let vol = world.create("vol", Use::Ext4);
    let path = world.attach(&vol).unwrap();
    write_tree(&path, 1);
    let hog = Hog::inodes(&world.scratch.root());
    let (free, total) = world.statfs();
    assert!(free > total / 2, "it is the blocks that are gone");
    nothing_new_is_made(&world, &vol);
    every_byte_is_written(&path, &vol);
    world.detach(&vol);
    check_tree(&world.attach(&vol).unwrap(), 1);
    world.detach(&vol);
    drop(hog);
    world.create("new", Use::Block);
    world.finish();
}
