//! Bad input in every request field: the code of the specification, a message, and nothing left behind.

use std::collections::HashMap;

use holdfast::csi::proto as p;
use holdfast::csi::proto::volume_capability::{AccessType, MountVolume};
use tonic::{Code, Status};

use crate::harness::calls::{from_snapshot, from_volume};
use crate::harness::{MIB, PoolFs, Use, World, capability, create_request, refused};

type Change<T> = fn(&mut T);

fn parameters(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

#[test]
fn create_volume_says_what_is_wrong_with_each_field() {
    let world = World::new(PoolFs::Xfs);
    let invalid: &[Code] = &[Code::InvalidArgument];
    let range: &[Code] = &[Code::InvalidArgument, Code::OutOfRange];
    let cases: &[(&str, &[Code], Change<p::CreateVolumeRequest>)] = &[
        ("no name", invalid, |r| r.name.clear()),
        ("a name too long", invalid, |r| r.name = "n".repeat(129)),
        ("a control character", invalid, |r| r.name = "a\0b".into()),
        ("no capability", invalid, |r| r.volume_capabilities.clear()),
        ("no access type", invalid, |r| r.volume_capabilities[0].access_type = None),
        ("no access mode", invalid, |r| r.volume_capabilities[0].access_mode = None),
        ("an access mode of the future", invalid, |r| {
            r.volume_capabilities[0].access_mode = Some(p::volume_capability::AccessMode { mode: 99 });
        }),
        ("a negative size", range, |r| {
            r.capacity_range = Some(p::CapacityRange { required_bytes: -1, limit_bytes: 0 })
        }),
        ("a negative limit", range, |r| {
            r.capacity_range = Some(p::CapacityRange { required_bytes: 0, limit_bytes: -1 })
        }),
        ("a limit below the size", range, |r| {
            r.capacity_range = Some(p::CapacityRange { required_bytes: 64 * MIB, limit_bytes: 32 * MIB });
        }),
        ("a limit below the filesystem's least", &[Code::OutOfRange], |r| {
            r.capacity_range = Some(p::CapacityRange { required_bytes: 0, limit_bytes: 1024 });
        }),
        ("an xfs too small to be", &[Code::OutOfRange], |r| {
            r.volume_capabilities = vec![capability(Use::Xfs)];
            r.capacity_range = Some(p::CapacityRange { required_bytes: 100 * MIB, limit_bytes: 200 * MIB });
        }),
        ("more than there ever is", &[Code::OutOfRange, Code::ResourceExhausted], |r| {
            r.capacity_range = Some(p::CapacityRange { required_bytes: i64::MAX, limit_bytes: 0 });
        }),
        ("an unknown filesystem", invalid, |r| {
            let mount = MountVolume { fs_type: "zfs".into(), ..MountVolume::default() };
            r.volume_capabilities[0].access_type = Some(AccessType::Mount(mount));
        }),
        ("two filesystems", invalid, |r| {
            r.volume_capabilities.push(capability(Use::Xfs));
            r.capacity_range = None;
        }),
        ("a mount group", invalid, |r| {
            let mount = MountVolume { volume_mount_group: "1000".into(), ..MountVolume::default() };
            r.volume_capabilities[0].access_type = Some(AccessType::Mount(mount));
        }),
        ("a source of neither kind", invalid, |r| {
            r.volume_content_source = Some(p::VolumeContentSource { r#type: None });
        }),
        ("a source without an id", &[Code::InvalidArgument, Code::NotFound], |r| {
            r.volume_content_source = from_snapshot("")
        }),
        ("a snapshot that is not there", &[Code::NotFound], |r| r.volume_content_source = from_snapshot("fake")),
        ("mutable parameters", invalid, |r| r.mutable_parameters = parameters(&[("iops", "1")])),
        ("a pool that is not there", &[Code::ResourceExhausted, Code::InvalidArgument, Code::NotFound], |r| {
            r.parameters = parameters(&[("pool", "nowhere")]);
        }),
        ("a pool that is a path", invalid, |r| r.parameters = parameters(&[("pool", "../../etc")])),
        ("thin with zero", invalid, |r| {
            r.parameters = parameters(&[("provisioning", "thin"), ("onDelete", "zero")]);
        }),
        ("forced mkfs", invalid, |r| r.parameters = parameters(&[("mkfsOptions", "-F")])),
        ("mkfs onto something else", invalid, |r| r.parameters = parameters(&[("mkfsOptions", "-d /etc /dev/vda")])),
        ("another filesystem than asked", invalid, |r| {
            r.parameters = parameters(&[("csi.storage.k8s.io/fstype", "xfs")]);
            r.capacity_range = None;
        }),
    ];
    for (what, codes, change) in cases {
        let mut request = create_request("vol", Use::Ext4, 32 * MIB);
        change(&mut request);
        let answer = world.create_volume(request);
        if answer.is_ok() {
            panic!("{what}: it was accepted");
        }
        eprintln!("{what}: {}", refused(answer, codes));
    }
    assert!(world.volume_ids().is_empty() && world.in_pool("volumes").is_empty(), "something was left");
    world.finish();
}

#[test]
fn mkfs_options_that_cannot_work_at_the_size_are_refused_at_create() {
    let world = World::new(PoolFs::Xfs);
    let with = |name: &str, kind: Use, options: &str| {
        let mut request = create_request(name, kind, kind.size());
        request.parameters = parameters(&[("mkfsOptions", options)]);
        request
    };
    for (kind, options) in [
        (Use::Ext4, "-J size=400"),
        (Use::Ext4, "-N 4000000"),
        (Use::Ext4, "-i 1024 -I 2048"),
        (Use::Xfs, "-l size=200m"),
    ] {
        let said = refused(world.create_volume(with("vol", kind, options)), &[Code::InvalidArgument]);
        assert!(said.contains(options) && said.contains("too "), "{said}");
    }
    assert!(world.volume_ids().is_empty() && world.in_pool("volumes").is_empty(), "something was left");
    let vol = world.create_from(Use::Ext4, &with("vol", Use::Ext4, "-J size=4 -I 512"));
    world.attach(&vol).unwrap();
    world.finish();
}

#[test]
fn an_unknown_parameter_names_the_nearest_known_one() {
    let world = World::new(PoolFs::Xfs);
    for (wrong, right) in [("provisoning", "provisioning"), ("Pool", "pool"), ("fstype", "csi.storage.k8s.io/fstype")] {
        let mut request = create_request("vol", Use::Ext4, 32 * MIB);
        request.parameters = parameters(&[(wrong, "thin")]);
        let said = refused(world.create_volume(request), &[Code::InvalidArgument]);
        assert!(said.contains(right), "{said}");
    }
    for (key, value) in [
        ("provisioning", "fat"),
        ("access", "remote"),
        ("placement", "x"),
        ("fsck", "true"),
        ("encryption", "luks2"),
        ("onDelete", "discard"),
    ] {
        let mut request = create_request("vol", Use::Ext4, 32 * MIB);
        request.parameters = parameters(&[(key, value)]);
        let said = refused(world.create_volume(request), &[Code::InvalidArgument]);
        assert!(said.contains(key), "{said}");
    }
    let mut request = create_request("vol", Use::Ext4, 32 * MIB);
    request.parameters = parameters(&[
        ("pool", "test"),
        ("access", "local"),
        ("provisioning", "thick"),
        ("placement", "selected"),
        ("csi.storage.k8s.io/fstype", "ext4"),
        ("mkfsOptions", "-i 8192"),
        ("fsck", "auto"),
        ("onDelete", "unlink"),
        ("encryption", "none"),
        ("csi.storage.k8s.io/pvc/name", "claim"),
    ]);
    let vol = world.try_create(Use::Ext4, &request).unwrap();
    world.attach(&vol).unwrap();
    world.finish();
}

#[test]
fn the_same_name_with_another_wish_already_exists() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    let snapshot = world.snapshot("snap", &vol);
    let cases: &[(&str, Change<p::CreateVolumeRequest>)] = &[
        ("larger", |r| r.capacity_range = Some(p::CapacityRange { required_bytes: 64 * MIB, limit_bytes: 0 })),
        ("smaller", |r| r.capacity_range = Some(p::CapacityRange { required_bytes: 16 * MIB, limit_bytes: 31 * MIB })),
        ("raw", |r| r.volume_capabilities = vec![capability(Use::Block)]),
        ("xfs", |r| r.volume_capabilities = vec![capability(Use::Xfs)]),
        ("thin", |r| r.parameters = parameters(&[("provisioning", "thin")])),
        ("zeroed", |r| r.parameters = parameters(&[("onDelete", "zero")])),
    ];
    for _ in 0..2 {
        for (what, change) in cases {
            let mut request = create_request("vol", Use::Ext4, 32 * MIB);
            change(&mut request);
            eprintln!("{what}: {}", refused(world.create_volume(request), &[Code::AlreadyExists]));
        }
        let mut request = create_request("vol", Use::Ext4, 32 * MIB);
        request.volume_content_source = from_snapshot(&snapshot.snapshot_id);
        refused(world.create_volume(request), &[Code::AlreadyExists]);
        // Compatible requests get the same volume.
        for (required_bytes, limit_bytes) in [(32 * MIB, 0), (1, 32 * MIB), (32 * MIB - 5, 0)] {
            let mut request = create_request("vol", Use::Ext4, 32 * MIB);
            request.capacity_range = Some(p::CapacityRange { required_bytes, limit_bytes });
            assert_eq!(world.try_create(Use::Ext4, &request).unwrap().id, vol.id);
        }
        world.crash();
    }
    assert_eq!(world.volume_ids().len(), 1);
    world.finish();
}

#[test]
fn names_are_the_callers_business() {
    let world = World::new(PoolFs::Xfs);
    let names = [
        "n".repeat(128),
        "../../../etc/passwd".into(),
        "ein Name \u{fc}ber \u{1f980}".into(),
        "-rf".into(),
        ".tmp-x".into(),
    ];
    let mut ids = Vec::new();
    for name in &names {
        let vol = world.create(name, Use::Block);
        assert!(vol.id.len() <= 128 && vol.id.is_ascii() && !vol.id.contains('/'), "{}", vol.id);
        assert_eq!(world.create(name, Use::Block).id, vol.id);
        let snapshot = world.snapshot(name, &vol);
        assert!(snapshot.snapshot_id.len() <= 128 && !snapshot.snapshot_id.contains('/'));
        ids.push(vol.id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), world.in_pool("volumes").len()), (names.len(), names.len()));
    world.finish();
}

#[test]
fn the_other_controller_calls_say_what_is_wrong() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    let (id, node) = (vol.id.clone(), world.node.clone());
    let invalid = &[Code::InvalidArgument];
    let missing = &[Code::NotFound];
    let said = |answer: Result<(), Status>, codes: &[Code]| drop(refused(answer, codes));

    let publish = |volume_id: &str, node_id: &str, capability: Option<p::VolumeCapability>| {
        let request = p::ControllerPublishVolumeRequest {
            volume_id: volume_id.into(),
            node_id: node_id.into(),
            volume_capability: capability,
            ..Default::default()
        };
        world.controller_publish_volume(request).map(drop)
    };
    let ext4 = || Some(capability(Use::Ext4));
    said(publish("", &node, ext4()), invalid);
    said(publish(&id, "", ext4()), invalid);
    said(publish(&id, &node, None), invalid);
    said(publish("fake-vol-id", &node, ext4()), missing);
    said(publish(&"x".repeat(500), &node, ext4()), missing);
    said(publish("../../etc/passwd", &node, ext4()), missing);
    said(publish(&id, "no such node", ext4()), missing);
    said(publish(&id, &"n".repeat(300), ext4()), &[Code::NotFound, Code::InvalidArgument]);

    let unpublish = |volume_id: &str| {
        let request = p::ControllerUnpublishVolumeRequest {
            volume_id: volume_id.into(),
            node_id: node.clone(),
            ..Default::default()
        };
        world.controller_unpublish_volume(request).map(drop)
    };
    said(unpublish(""), invalid);
    unpublish("fake-vol-id").unwrap();

    let delete = |volume_id: &str| {
        world.delete_volume(p::DeleteVolumeRequest { volume_id: volume_id.into(), ..Default::default() }).map(drop)
    };
    said(delete(""), invalid);
    for malformed in ["fake-vol-id", "hf1_", "../../etc", &id[..id.len().min(20)], "hf1_0123456789ABCDEF_x"] {
        delete(malformed).unwrap();
    }

    let validate = |volume_id: &str, capabilities: Vec<p::VolumeCapability>| {
        let request = p::ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.into(),
            volume_capabilities: capabilities,
            ..Default::default()
        };
        world.validate_volume_capabilities(request).map(drop)
    };
    said(validate("", vec![capability(Use::Ext4)]), invalid);
    said(validate(&id, Vec::new()), invalid);
    said(validate("fake-vol-id", vec![capability(Use::Ext4)]), missing);

    let get = |volume_id: &str| {
        world.controller_get_volume(p::ControllerGetVolumeRequest { volume_id: volume_id.into() }).map(drop)
    };
    said(get(""), invalid);
    said(get("fake-vol-id"), missing);

    let expand = |volume_id: &str, range: Option<p::CapacityRange>| {
        let request = p::ControllerExpandVolumeRequest {
            volume_id: volume_id.into(),
            capacity_range: range,
            ..Default::default()
        };
        world.controller_expand_volume(request).map(drop)
    };
    let range = Some(p::CapacityRange { required_bytes: 64 * MIB, limit_bytes: 0 });
    said(expand("", range), invalid);
    said(expand(&id, None), invalid);
    said(expand("fake-vol-id", range), missing);

    let snapshot = |source: &str, name: &str, pairs: &[(&str, &str)]| {
        let request = p::CreateSnapshotRequest {
            source_volume_id: source.into(),
            name: name.into(),
            parameters: parameters(pairs),
            ..Default::default()
        };
        world.create_snapshot(request).map(drop)
    };
    said(snapshot("", "snap", &[]), invalid);
    said(snapshot("fake-vol-id", "", &[]), invalid);
    said(snapshot(&id, &"n".repeat(129), &[]), invalid);
    said(snapshot(&id, "snap", &[("unknown", "x")]), invalid);
    said(snapshot("fake-vol-id", "snap", &[]), missing);

    let get = |snapshot_id: &str| {
        world.get_snapshot(p::GetSnapshotRequest { snapshot_id: snapshot_id.into(), ..Default::default() }).map(drop)
    };
    said(get(""), invalid);
    said(get("fake"), missing);
    said(get(&id), missing);
    said(world.drop_snapshot(""), invalid);
    world.drop_snapshot("fake").unwrap();
    // A volume's handle is not a snapshot's handle: the volume stays.
    world.drop_snapshot(&id).unwrap();
    assert_eq!(world.volume_ids(), [id]);
    assert!(world.in_pool("snapshots").is_empty());
    let mut request = create_request("clone", Use::Ext4, 32 * MIB);
    request.volume_content_source = from_volume(&vol);
    request.volume_capabilities = vec![capability(Use::Block)];
    // A filesystem's content as a raw device would bypass Kubernetes' guard on volume modes if the driver allowed it.
    drop(world.create_volume(request));
    world.finish();
}

#[test]
fn the_node_calls_say_what_is_wrong() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    world.publish(&vol).unwrap();
    let stage: &[(&str, &[Code], Change<p::NodeStageVolumeRequest>)] = &[
        ("no volume", &[Code::InvalidArgument], |r| r.volume_id.clear()),
        ("no path", &[Code::InvalidArgument], |r| r.staging_target_path.clear()),
        ("a relative path", &[Code::InvalidArgument], |r| r.staging_target_path = "a/b".into()),
        ("a path with ..", &[Code::InvalidArgument], |r| r.staging_target_path.push_str("/../../etc")),
        ("a path with NUL", &[Code::InvalidArgument], |r| r.staging_target_path.push('\0')),
        ("no capability", &[Code::InvalidArgument], |r| r.volume_capability = None),
        ("no access type", &[Code::InvalidArgument], |r| r.volume_capability.as_mut().unwrap().access_type = None),
        ("an unknown volume", &[Code::NotFound], |r| r.volume_id = "fake-vol-id".into()),
        ("a directory that is not there", &[Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound], |r| {
            r.staging_target_path.push_str("/nothing/here");
        }),
    ];
    for (what, codes, change) in stage {
        let mut request = world.stage_request(&vol);
        change(&mut request);
        let answer = world.node_stage_volume(request);
        assert!(answer.is_err(), "{what}: it was accepted");
        eprintln!("stage, {what}: {}", refused(answer, codes));
    }
    world.stage(&vol).unwrap();
    let publish: &[(&str, &[Code], Change<p::NodePublishVolumeRequest>)] = &[
        ("no volume", &[Code::InvalidArgument], |r| r.volume_id.clear()),
        ("no target", &[Code::InvalidArgument], |r| r.target_path.clear()),
        ("a relative target", &[Code::InvalidArgument], |r| r.target_path = "a/b".into()),
        ("a target with ..", &[Code::InvalidArgument], |r| r.target_path.push_str("/../../etc")),
        ("no capability", &[Code::InvalidArgument], |r| r.volume_capability = None),
        ("an unknown volume", &[Code::NotFound], |r| r.volume_id = "fake-vol-id".into()),
    ];
    for (what, codes, change) in publish {
        let mut request = world.bind_request(&vol, "pod");
        change(&mut request);
        let answer = world.node_publish_volume(request);
        assert!(answer.is_err(), "{what}: it was accepted");
        eprintln!("publish, {what}: {}", refused(answer, codes));
    }
    let unstage = |volume_id: &str, path: &str| {
        let request = p::NodeUnstageVolumeRequest { volume_id: volume_id.into(), staging_target_path: path.into() };
        world.node_unstage_volume(request)
    };
    refused(unstage("", "/x"), &[Code::InvalidArgument]);
    refused(unstage(&vol.id, ""), &[Code::InvalidArgument]);
    let unpublish = |volume_id: &str, path: &str| {
        let request = p::NodeUnpublishVolumeRequest { volume_id: volume_id.into(), target_path: path.into() };
        world.node_unpublish_volume(request)
    };
    refused(unpublish("", "/x"), &[Code::InvalidArgument]);
    refused(unpublish(&vol.id, ""), &[Code::InvalidArgument]);
    let expand = |volume_id: &str, path: &str| {
        let request =
            p::NodeExpandVolumeRequest { volume_id: volume_id.into(), volume_path: path.into(), ..Default::default() };
        world.node_expand_volume(request)
    };
    refused(expand("", "/x"), &[Code::InvalidArgument]);
    refused(expand(&vol.id, ""), &[Code::InvalidArgument]);
    world.finish();
}
