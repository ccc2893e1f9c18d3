//! A downgrade from a later release: its objects are never reported as deleted, or forgotten. And sizes that are not
//! whole MiB, as claims have them.

use holdfast::csi::proto as p;
use tonic::{Code, Status};

use crate::harness::calls::{from_snapshot, from_volume};
use crate::harness::{MIB, PoolFs, Use, Vol, World, check_tree, create_request, refused, write_tree};

const IDS: &str = include_str!("../../src/types/fixtures/ids-of-a-later-release.txt");

#[test]
fn an_id_of_a_later_release_is_never_answered_as_gone() {
    let world = World::new(PoolFs::Xfs);
    let own = world.create("own", Use::Ext4);
    for id in IDS.lines() {
        let of = |what: &str, answer: Result<(), Status>| {
            let said = refused(answer, &[Code::Unavailable]);
            assert!(said.contains("later release"), "{what} {id}: {said}");
        };
        let vol = Vol {
            id: id.into(),
            kind: Use::Ext4,
            size: 32 * MIB,
            capability: own.capability.clone(),
            context: own.context.clone(),
        };
        of("DeleteVolume", world.delete(&vol));
        of("DeleteSnapshot", world.drop_snapshot(id));
        of("ControllerPublish", world.publish(&vol));
        of("ControllerUnpublish", world.unpublish(&vol));
        of("ControllerExpand", world.expand(&vol, 64 * MIB).map(drop));
        of("NodeStage", world.stage(&vol));
        of("NodeUnstage", world.unstage(&vol));
        of("NodePublish", world.bind(&vol, "pod").map(drop));
        of("NodeUnpublish", world.unbind(&vol, "pod"));
        of("CreateSnapshot", world.try_snapshot("s", &vol).map(drop));
        let get = p::ControllerGetVolumeRequest { volume_id: id.into() };
        of("ControllerGetVolume", world.controller_get_volume(get).map(drop));
        let validate = p::ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_capabilities: vec![own.capability.clone()],
            ..Default::default()
        };
        of("ValidateVolumeCapabilities", world.validate_volume_capabilities(validate).map(drop));
        for source in [from_snapshot(id), from_volume(&vol)] {
            let create =
                p::CreateVolumeRequest { volume_content_source: source, ..create_request("copy", Use::Ext4, 32 * MIB) };
            of("CreateVolume", world.create_volume(create).map(drop));
        }
        let filters = [
            p::ListSnapshotsRequest { snapshot_id: id.into(), ..Default::default() },
            p::ListSnapshotsRequest { source_volume_id: id.into(), ..Default::default() },
        ];
        for filter in filters {
            of("ListSnapshots", world.list_snapshots(filter).map(drop));
        }
    }
    // The harness knows volumes by the directories that it created for them.
    for part in ["stage", "pods"] {
        std::fs::remove_dir_all(world.scratch.path().join(part)).unwrap();
    }
    assert_eq!(world.volume_ids(), std::slice::from_ref(&own.id));
    world.finish();
}

#[test]
fn a_create_refused_for_its_words_is_not_final_where_its_name_exists() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    let snapshot = world.snapshot("snap", &vol);
    type Change = fn(&mut p::CreateVolumeRequest);
    let changes: [Change; 5] = [
        |r| drop(r.parameters.insert("replicas".into(), "3".into())),
        |r| drop(r.parameters.insert("encryption".into(), "luks2".into())),
        |r| drop(r.mutable_parameters.insert("iops".into(), "100".into())),
        |r| r.volume_capabilities[0].access_mode = Some(p::volume_capability::AccessMode { mode: 5 }),
        |r| drop(r.parameters.insert("pool".into(), "of-a-later-release".into())),
    ];
    for change in changes {
        let asked = |name: &str| {
            let mut request = create_request(name, Use::Ext4, 32 * MIB);
            change(&mut request);
            world.create_volume(request)
        };
        let said = refused(asked("vol"), &[Code::Aborted]);
        assert!(said.contains("exists already") && said.contains(vol.uuid()), "{said}");
        refused(asked("other"), &[Code::InvalidArgument, Code::ResourceExhausted]);
    }
    let cut = |name: &str| {
        let parameters = [("speed".to_owned(), "fast".to_owned())].into();
        let source_volume_id = vol.id.clone();
        world.create_snapshot(p::CreateSnapshotRequest {
            name: name.into(),
            source_volume_id,
            parameters,
            ..Default::default()
        })
    };
    let said = refused(cut("snap"), &[Code::Aborted]);
    assert!(said.contains("exists already") && said.contains("speed"), "{said}");
    refused(cut("other"), &[Code::InvalidArgument]);
    assert_eq!((world.volume_ids().len(), world.snapshot_ids()), (1, vec![snapshot.snapshot_id]));
    world.finish();
}

/// A request as the external-provisioner derives it from a claim: no limit.
fn claimed(
    name: &str,
    kind: Use,
    required_bytes: i64,
    source: Option<p::VolumeContentSource>,
) -> p::CreateVolumeRequest {
    p::CreateVolumeRequest {
        capacity_range: Some(p::CapacityRange { required_bytes, limit_bytes: 0 }),
        volume_content_source: source,
        ..create_request(name, kind, 0)
    }
}

fn any_size(pool: PoolFs) {
    let world = World::sized(pool, 3 << 30);
    let sizes =
        [(Use::Block, 1), (Use::Block, 10_000_001), (Use::Ext4, 1), (Use::Ext4, 40_000_000), (Use::Xfs, 320_000_000)];
    for (number, (kind, claim)) in sizes.into_iter().enumerate() {
        let named = |what: &str| format!("{what}-{number}");
        let source = world.create_from(kind, &claimed(&named("source"), kind, claim, None));
        assert!(source.size >= claim, "the provisioner deletes such a volume");
        let first = world.snapshot(&named("first"), &source);
        // external-provisioner: "requested volume size is less than the size for the source snapshot".
        assert!(claim >= first.size_bytes, "{kind:?} {claim}: {}", first.size_bytes);
        let restored =
            world.create_from(kind, &claimed(&named("restored"), kind, claim, from_snapshot(&first.snapshot_id)));
        let cloned = world.create_from(kind, &claimed(&named("cloned"), kind, claim, from_volume(&restored)));
        assert_eq!((restored.size, cloned.size), (source.size, source.size));
        let again = world.snapshot(&named("again"), &cloned);
        assert!(claim >= again.size_bytes, "{kind:?} {claim}: {}", again.size_bytes);
        if claim > 1 {
            let less = claimed(&named("less"), kind, first.size_bytes - 1, from_snapshot(&first.snapshot_id));
            let said = refused(world.create_volume(less), &[Code::OutOfRange]);
            assert!(said.contains(&first.size_bytes.to_string()) || kind == Use::Xfs, "{said}");
        }
        let grown = source.size + 1_000_001;
        let request = p::ControllerExpandVolumeRequest {
            volume_id: cloned.id.clone(),
            capacity_range: Some(p::CapacityRange { required_bytes: grown, limit_bytes: 0 }),
            ..Default::default()
        };
        assert!(world.controller_expand_volume(request).unwrap().capacity_bytes >= grown);
        let after = world.snapshot(&named("after"), &cloned);
        assert!(grown >= after.size_bytes && after.size_bytes > source.size, "{kind:?} {grown}: {}", after.size_bytes);
        let copy = world.create_from(kind, &claimed(&named("copy"), kind, grown, from_snapshot(&after.snapshot_id)));
        assert!(copy.size >= grown);
        for snapshot in [&first, &again, &after] {
            world.drop_snapshot(&snapshot.snapshot_id).unwrap();
        }
        for vol in [source, restored, cloned, copy] {
            world.delete(&vol).unwrap();
        }
    }
    world.finish();
}

#[test]
fn a_claim_of_any_size_is_restored_and_cloned_at_its_own_request() {
    any_size(PoolFs::Xfs);
}

#[test]
fn a_claim_of_any_size_is_copied_at_its_own_request_on_ext4() {
    any_size(PoolFs::Ext4);
}

#[test]
fn a_restore_at_the_claim_s_own_request_has_what_was_written() {
    let world = World::new(PoolFs::Xfs);
    let source = world.create_from(Use::Ext4, &claimed("source", Use::Ext4, 33_333_333, None));
    write_tree(&world.attach(&source).unwrap(), 1);
    let snapshot = world.snapshot("snap", &source);
    let restored =
        world.create_from(Use::Ext4, &claimed("restored", Use::Ext4, 33_333_333, from_snapshot(&snapshot.snapshot_id)));
    check_tree(&world.attach(&restored).unwrap(), 1);
    world.finish();
}
