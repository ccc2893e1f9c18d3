//! Records that are wrong or missing: every call for their volume is refused, nothing is touched, and it works again
//! with the restored record.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use holdfast::csi::proto as p;
use nix::sys::stat::Mode;
use tonic::{Code, Status};

use crate::harness::{MIB, PoolFs, Use, Vol, World, check_tree, create_request, refused, write_tree};

use super::{Neighbour, everything};

/// A way to damage a record, given its path.
type Spoil = (&'static str, fn(&Path));

/// A call's name and the call.
type Call<'a> = (&'static str, &'a dyn Fn() -> Result<(), Status>);

fn edit(record: &Path, change: impl Fn(&mut serde_json::Value)) {
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    change(&mut value);
    fs::write(record, value.to_string()).unwrap();
}

fn cut(record: &Path, keep: impl Fn(usize) -> usize) {
    let text = fs::read(record).unwrap();
    fs::write(record, &text[..keep(text.len())]).unwrap();
}

const SPOILT: &[Spoil] = &[
    ("missing", |record| fs::remove_file(record).unwrap()),
    ("empty", |record| fs::write(record, "").unwrap()),
    ("one byte", |record| cut(record, |_| 1)),
    ("half", |record| cut(record, |length| length / 2)),
    ("without its last brace", |record| cut(record, |length| length - 3)),
    ("zeroes", |record| fs::write(record, vec![0; 900]).unwrap()),
    ("two records", |record| {
        let text = fs::read(record).unwrap();
        fs::write(record, [text.clone(), text].concat()).unwrap();
    }),
    ("binary", |record| fs::write(record, [0xff, 0xfe, 0x00, 0x9f]).unwrap()),
    ("too large", |record| fs::write(record, vec![b' '; 2 << 20]).unwrap()),
    ("deeply nested", |record| fs::write(record, "[".repeat(500_000)).unwrap()),
    ("not an object", |record| fs::write(record, "[]").unwrap()),
    ("an empty object", |record| fs::write(record, "{}").unwrap()),
    ("no format", |record| edit(record, |value| drop(value.as_object_mut().unwrap().remove("format")))),
    ("a format state unknown", |record| edit(record, |value| value["format"]["state"] = "blank".into())),
    ("a format without UUID", |record| {
        edit(record, |value| value["format"] = serde_json::json!({"state": "formatted"}))
    }),
    ("a phase unknown", |record| edit(record, |value| value["phase"] = "gone".into())),
    ("another uuid", |record| {
        edit(record, |value| value["uuid"] = "6b0dbb8c-3b67-5ad0-9f0f-000000000001".into());
    }),
    ("a path for a uuid", |record| edit(record, |value| value["uuid"] = "../../../etc".into())),
    ("another pool", |record| edit(record, |value| value["pool"] = "00000000000000ab".into())),
    ("a negative size", |record| edit(record, |value| value["size"] = (-1).into())),
    ("a size in words", |record| edit(record, |value| value["size"] = "32Mi".into())),
    ("a symbolic link", |record| {
        fs::rename(record, record.with_file_name("moved.json")).unwrap();
        symlink("moved.json", record).unwrap();
    }),
    ("a symbolic link to nothing", |record| {
        fs::remove_file(record).unwrap();
        symlink("/nonexistent", record).unwrap();
    }),
    ("a directory", |record| {
        fs::remove_file(record).unwrap();
        fs::create_dir(record).unwrap();
    }),
    ("a pipe", |record| {
        fs::remove_file(record).unwrap();
        nix::unistd::mkfifo(record, Mode::S_IRWXU).unwrap();
    }),
];

fn remove(path: &Path) {
    let _ = fs::remove_dir(path);
    let _ = fs::remove_file(path);
    let _ = fs::remove_file(path.with_file_name("moved.json"));
}

/// The error in place of a list: the object, the next step, no repetition, and no blame of the node.
fn is_said_once(said: &str, uuid: &str, name: &str) {
    for word in ["incomplete", "holdfast doctor"] {
        assert_eq!(said.matches(word).count(), 1, "{name}: {word}: {said}");
    }
    assert!(
        said.contains(uuid) && !said.contains("does not answer") && !said.contains("is unreachable"),
        "{name}: {said}"
    );
}

/// Every call that could change or use a volume. None may do it, or answer that it did.
fn every_call_is_refused(world: &World, vol: &Vol, name: &str) {
    let before = everything(&world.pool.join("volumes").join(vol.uuid()));
    let again = create_request("victim", vol.kind, vol.size);
    let calls: [Call<'_>; 6] = [
        ("CreateVolume", &|| world.create_volume(again.clone()).map(drop)),
        ("ControllerPublishVolume", &|| world.publish(vol)),
        ("NodeStageVolume", &|| world.stage(vol)),
        ("ControllerExpandVolume", &|| world.expand(vol, 64 * MIB).map(drop)),
        ("CreateSnapshot", &|| world.try_snapshot("of-victim", vol).map(drop)),
        ("DeleteVolume", &|| world.delete(vol)),
    ];
    for (call, ask) in calls {
        let Err(status) = ask() else { panic!("{name}: {call} was answered with success") };
        let said = status.message();
        // A create knows the name only: the record that has the handle cannot be read.
        let named = said.contains(vol.uuid()) || (call == "CreateVolume" && said.contains("volume \"victim\""));
        assert!(named, "{name}: {call} must name the volume: {status:?}");
        let final_codes = [Code::Internal, Code::Unknown, Code::NotFound];
        if call.starts_with("Create") {
            assert!(!final_codes.contains(&status.code()), "{name}: {call} is final and is not done: {status:?}");
        }
        assert_ne!(status.code(), Code::NotFound, "{name}: {call}: it is there: {status:?}");
    }
    // In a list without it, the attacher would treat it as deleted.
    let said = refused(world.list_volumes(p::ListVolumesRequest::default()), &[Code::Unavailable]);
    is_said_once(&said, vol.uuid(), name);
    assert_eq!(everything(&world.pool.join("volumes").join(vol.uuid())), before, "{name}: something was changed");
    assert_eq!(world.snapshot_ids(), Vec::<String>::new(), "{name}");
}

#[test]
fn a_record_that_lies_is_refused_untouched_and_its_volume_comes_back_with_it() {
    let mut world = World::new(PoolFs::Xfs);
    let mut neighbour = Neighbour::new(&world);
    let vol = world.create("victim", Use::Ext4);
    write_tree(&world.attach(&vol).unwrap(), 5);
    world.detach(&vol);
    let record = world.image(&vol).with_file_name("volume.json");
    let pristine = fs::read(&record).unwrap();
    for (number, (name, spoil)) in SPOILT.iter().enumerate() {
        spoil(&record);
        every_call_is_refused(&world, &vol, name);
        if number % 4 == 0 {
            neighbour.goes_on(&world);
            world.crash();
            every_call_is_refused(&world, &vol, name);
        }
        remove(&record);
        fs::write(&record, &pristine).unwrap();
        let path = world.attach(&vol).unwrap_or_else(|status| panic!("{name}, put back: {status:?}"));
        check_tree(&path, 5);
        world.detach(&vol);
    }
    eprintln!(
        "records that lie: {} records, each asked by 6 calls, and every fourth again after a restart",
        SPOILT.len()
    );
    world.finish();
}

#[test]
fn swapped_directories_are_refused_on_both_sides() {
    let mut world = World::new(PoolFs::Xfs);
    let vols = ["one", "two"].map(|name| world.create(name, Use::Ext4));
    for (vol, seed) in vols.iter().zip(1..) {
        write_tree(&world.attach(vol).unwrap(), seed);
        world.detach(vol);
    }
    let place = |vol: &Vol| world.pool.join("volumes").join(vol.uuid());
    let (one, two, aside) = (place(&vols[0]), place(&vols[1]), world.scratch.root().join("aside"));
    let swap = || {
        fs::rename(&one, &aside).unwrap();
        fs::rename(&two, &one).unwrap();
        fs::rename(&aside, &two).unwrap();
    };
    swap();
    for _ in 0..2 {
        let before = everything(&world.pool.join("volumes"));
        for vol in &vols {
            let said = world.publish(vol).unwrap_err();
            assert!(said.message().contains(vol.uuid()), "{said:?}");
            world.delete(vol).unwrap_err();
        }
        assert_eq!(everything(&world.pool.join("volumes")), before);
        world.crash();
    }
    swap();
    for (vol, seed) in vols.iter().zip(1..) {
        check_tree(&world.attach(vol).unwrap(), seed);
    }
    world.finish();
}

#[test]
fn a_symbolic_link_in_place_of_a_volume_is_not_followed() {
    let mut world = World::new(PoolFs::Xfs);
    let mut neighbour = Neighbour::new(&world);
    let vol = world.create("victim", Use::Ext4);
    write_tree(&world.attach(&vol).unwrap(), 5);
    world.detach(&vol);
    let (place, aside) = (world.pool.join("volumes").join(vol.uuid()), world.scratch.root().join("aside"));
    fs::rename(&place, &aside).unwrap();
    symlink(&aside, &place).unwrap();
    let before = everything(&aside);
    for _ in 0..2 {
        every_call_is_refused(&world, &vol, "a symbolic link");
        assert_eq!(everything(&aside), before);
        neighbour.goes_on(&world);
        world.crash();
    }
    fs::remove_file(&place).unwrap();
    fs::rename(&aside, &place).unwrap();
    check_tree(&world.attach(&vol).unwrap(), 5);
    world.finish();
}

#[test]
fn a_snapshot_s_record_that_lies_is_refused_untouched() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("source", Use::Ext4);
    write_tree(&world.attach(&vol).unwrap(), 5);
    world.detach(&vol);
    let snapshot = world.snapshot("snap", &vol);
    let place = world.pool.join("snapshots").join(snapshot.snapshot_id.split('_').nth(2).unwrap());
    let record = place.join("snapshot.json");
    let pristine = fs::read(&record).unwrap();
    for (name, spoil) in SPOILT {
        spoil(&record);
        {
            let before = everything(&place);
            let mut request = create_request("restored", Use::Ext4, vol.size);
            request.volume_content_source = crate::harness::calls::from_snapshot(&snapshot.snapshot_id);
            let answers = [
                world.create_volume(request).map(drop),
                world.drop_snapshot(&snapshot.snapshot_id),
                world
                    .get_snapshot(p::GetSnapshotRequest {
                        snapshot_id: snapshot.snapshot_id.clone(),
                        ..Default::default()
                    })
                    .map(drop),
                world.try_snapshot("snap", &vol).map(drop),
            ];
            let said = refused(world.list_snapshots(p::ListSnapshotsRequest::default()), &[Code::Unavailable]);
            is_said_once(&said, place.file_name().unwrap().to_str().unwrap(), name);
            for answer in answers {
                let status = answer.expect_err(name);
                assert_ne!(status.code(), Code::NotFound, "{name}: it is there: {status:?}");
            }
            assert_eq!(everything(&place), before, "{name}: something was changed");
            assert_eq!(world.volume_ids().len(), 1, "{name}: something was made");
        }
        remove(&record);
        fs::write(&record, &pristine).unwrap();
    }
    world.crash();
    check_tree(&world.attach(&world.restore("restored", Use::Ext4, &snapshot.snapshot_id, vol.size)).unwrap(), 5);
    world.finish();
}
