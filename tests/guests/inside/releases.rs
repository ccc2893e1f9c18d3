//! The release before, which knows no device-mapper, and this one on the same pool (docs/operations.md, "Upgrade and
//! downgrade").

use tonic::Code;

use super::{none_left, number_of};
use crate::harness::{MIB, PoolFs, Release, Use, World, check_chunks, device_size, refused, write_chunk};

/// The major number of loop devices.
const LOOP: u64 = 7;

fn replace(world: &mut World) {
    assert_eq!(world.terminate(), 0);
    world.release = world.release.other();
    world.start();
}

#[test]
#[ignore = "in a guest: make guests"]
fn a_raw_block_volume_is_upgraded_and_downgraded() {
    let mut world = World::stopped(PoolFs::Ext4, 1 << 30);
    world.release = Release::Before;
    world.start();
    let vol = world.create("vol", Use::Block);
    let path = world.attach(&vol).unwrap();
    write_chunk(Use::Block, &path, 0, 1);
    let number = number_of(&path);
    assert_eq!(number.major, LOOP);

    // Upgraded under its pod it stays a loop device, for all its pods, also when it grows.
    replace(&mut world);
    world.attach(&vol).unwrap();
    let second = world.bind(&vol, "second").unwrap();
    assert_eq!((number_of(&path), number_of(&second)), (number, number));
    check_chunks(Use::Block, &second, &[1]);
    world.expand(&vol, 32 * MIB).unwrap();
    world.node_expand(&vol, 32 * MIB).unwrap();
    assert_eq!(device_size(&path), 32 * MIB);
    none_left();
    world.unbind(&vol, "second").unwrap();
    world.detach(&vol);

    // Its next stage gives it a device-mapper device.
    world.attach(&vol).unwrap();
    let number = number_of(&path);
    assert_ne!(number.major, LOOP);
    check_chunks(Use::Block, &path, &[1]);
    write_chunk(Use::Block, &path, 1, 2);

    // A downgrade before its pod ended: release 0.1.0 refuses to end it, and changes nothing.
    replace(&mut world);
    refused(world.unbind(&vol, "pod"), &[Code::FailedPrecondition]);
    refused(world.unstage(&vol), &[Code::FailedPrecondition]);
    refused(world.delete(&vol), &[Code::FailedPrecondition]);
    assert_eq!(number_of(&path), number);
    check_chunks(Use::Block, &path, &[1, 2]);
    replace(&mut world);
    world.attach(&vol).unwrap();
    assert_eq!(number_of(&path), number);
    check_chunks(Use::Block, &path, &[1, 2]);
    world.detach(&vol);
    none_left();

    // A downgrade after its pod ended.
    replace(&mut world);
    world.attach(&vol).unwrap();
    assert_eq!(number_of(&path).major, LOOP);
    check_chunks(Use::Block, &path, &[1, 2]);
    world.detach(&vol);
    replace(&mut world);
    check_chunks(Use::Block, &world.attach(&vol).unwrap(), &[1, 2]);
    world.detach(&vol);
    world.delete(&vol).unwrap();
    none_left();
    world.finish();
}
