//! Records of a later release: accepted for attach and detach, and not changed otherwise.

use std::fs;

use holdfast::csi::proto as p;
use tonic::Code;

use crate::harness::{
    MIB, PoolFs, Use, Vol, World, check_tree, checksum, create_request, driver_binary, refused, try_run, write_tree,
};

use super::everything;

/// Rewrites a record as a later release would have left it.
fn from_the_future(world: &World, vol: &Vol, edit: impl Fn(&mut serde_json::Value)) {
    let mut record = world.record(vol);
    record["schema"] = 99.into();
    record["min_reader"] = 99.into();
    record["a_field_of_the_future"] = serde_json::json!({"kept": [1, 2, 3]});
    edit(&mut record);
    fs::write(world.image(vol).with_file_name("volume.json"), record.to_string()).unwrap();
}

#[test]
fn a_newer_record_is_attached_and_detached_and_otherwise_left_alone() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    write_tree(&world.attach(&vol).unwrap(), 1);
    world.detach(&vol);
    from_the_future(&world, &vol, |_| {});
    world.crash();
    check_tree(&world.attach(&vol).unwrap(), 1);
    write_tree(&world.target(&vol, "pod"), 2);
    world.detach(&vol);
    let record = world.record(&vol);
    assert_eq!(record["a_field_of_the_future"]["kept"][2], 3, "a field that is not known was dropped");
    assert_eq!((&record["schema"], &record["min_reader"]), (&99.into(), &99.into()));
    let before = everything(world.image(&vol).parent().unwrap());
    let answers = [
        refused(world.delete(&vol), &[Code::FailedPrecondition]),
        refused(world.expand(&vol, 64 * MIB), &[Code::FailedPrecondition]),
    ];
    for said in answers {
        assert!(said.contains(vol.uuid()) && said.contains("newer") && said.contains("upgrade"), "{said}");
    }
    assert_eq!(everything(world.image(&vol).parent().unwrap()), before);
    check_tree(&world.attach(&vol).unwrap(), 1);
    world.detach(&vol);
    from_the_future(&world, &vol, |record| record["min_reader"] = 1.into());
    world.finish();
}

#[test]
fn a_newer_record_that_was_growing_is_not_grown() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    write_tree(&world.attach(&vol).unwrap(), 1);
    world.detach(&vol);
    from_the_future(&world, &vol, |record| record["target_size"] = (64 * MIB).into());
    check_tree(&world.attach(&vol).unwrap(), 1);
    world.detach(&vol);
    let record = world.record(&vol);
    assert_eq!((&record["size"], &record["target_size"]), (&(32 * MIB).into(), &(64 * MIB).into()), "it was changed");
    assert_eq!(fs::metadata(world.image(&vol)).unwrap().len(), 32 << 20, "its image was changed");
    from_the_future(&world, &vol, |record| record["min_reader"] = 1.into());
    world.finish();
}

#[test]
fn a_newer_record_never_formatted_is_not_formatted() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    from_the_future(&world, &vol, |_| {});
    let before = checksum(&world.image(&vol));
    world.publish(&vol).unwrap();
    let said = refused(world.stage(&vol), &[Code::FailedPrecondition]);
    assert!(said.contains("newer") && said.contains("upgrade"), "{said}");
    assert_eq!(checksum(&world.image(&vol)), before);
    assert_eq!(world.record(&vol)["format"]["state"], "never");
    from_the_future(&world, &vol, |record| record["min_reader"] = 1.into());
    world.finish();
}

#[test]
fn a_newer_record_in_words_not_known_says_so() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    let old = fs::read(world.image(&vol).with_file_name("volume.json")).unwrap();
    from_the_future(&world, &vol, |record| record["format"] = serde_json::json!({"state": "sharded", "shards": 4}));
    for _ in 0..2 {
        let before = everything(world.image(&vol).parent().unwrap());
        for said in [
            refused(world.publish(&vol), &[Code::FailedPrecondition]),
            refused(world.delete(&vol), &[Code::FailedPrecondition]),
        ] {
            assert!(said.contains("newer") && said.contains("upgrade"), "{said}");
        }
        let again = create_request("vol", Use::Ext4, 32 * MIB);
        let status = world.create_volume(again).unwrap_err();
        assert!(!matches!(status.code(), Code::Internal | Code::Unknown), "final without being so: {status:?}");
        assert_eq!(everything(world.image(&vol).parent().unwrap()), before);
        world.crash();
    }
    fs::write(world.image(&vol).with_file_name("volume.json"), old).unwrap();
    world.finish();
}

#[test]
fn a_newer_pool_is_not_served() {
    let mut world = World::new(PoolFs::Xfs);
    world.create("vol", Use::Ext4);
    assert_eq!(world.terminate(), 0);
    let file = world.pool.join("pool.json");
    let old = fs::read(&file).unwrap();
    let mut pool: serde_json::Value = serde_json::from_slice(&old).unwrap();
    pool["schema"] = 99.into();
    fs::write(&file, pool.to_string()).unwrap();
    let before = everything(&world.pool);
    let arguments = world.arguments();
    let refused = try_run(driver_binary(), &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("schema 99"), "{} {}", refused.stdout, refused.stderr);
    let after: Vec<_> = everything(&world.pool);
    assert_eq!(after, before);
    fs::write(&file, old).unwrap();
    world.start();
    assert_eq!(world.list_volumes(p::ListVolumesRequest::default()).unwrap().entries.len(), 1);
    world.finish();
}
