//! A pool that somebody filled from outside to the last block and inode: what is there goes on, is attached, detached
//! and deleted; nothing new is made.

use tonic::Code;

use crate::harness::{Hog, MIB, PoolFs, Use, World, allocated, check_tree, create_request, refused, write_tree};

/// Whether the room for records is held.
fn reserve_is_whole(world: &World) -> bool {
    allocated(&world.pool.join("reserve")) >= 1 << 20
}

fn nothing_new_is_made(world: &World, source: &crate::harness::Vol) {
    refused(world.create_volume(create_request("new", Use::Block, MIB)), &[Code::ResourceExhausted]);
    refused(world.try_snapshot("new", source), &[Code::ResourceExhausted]);
    refused(world.expand(source, source.size + MIB), &[Code::ResourceExhausted]);
    assert_eq!(world.capacity().available_capacity, 0);
}

fn goes_on(pool: PoolFs) {
    let mut world = World::sized(pool, 1 << 30);
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
            // Thick: its filesystem finds its room.
            PoolFs::Xfs | PoolFs::Ext4 => check_tree(&world.attach(&used).unwrap(), 1),
            PoolFs::Btrfs => world.publish(&used).unwrap(),
        }
    }
    // The first attach of another, as a raw device.
    world.attach(&fresh).unwrap();
    world.detach(&fresh);
    // The driver starts in a full pool, and still has what it needs.
    world.crash();
    if pool != PoolFs::Btrfs {
        check_tree(&world.target(&used, "pod"), 1);
        world.unbind(&used, "pod").unwrap();
        world.unstage(&used).unwrap();
    }
    world.crash();
    world.unpublish(&used).unwrap();
    nothing_new_is_made(&world, &used);
    // Deleting makes room, and is no less possible.
    world.drop_snapshot(&snapshot.snapshot_id).unwrap();
    hog.take_blocks();
    world.delete(&doomed).unwrap();
    hog.take_blocks();
    world.publish(&used).unwrap();
    world.unpublish(&used).unwrap();
    drop(hog);
    world.delete(&fresh).unwrap();
    assert!(reserve_is_whole(&world), "there is room again, and the reserve is not back");
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
