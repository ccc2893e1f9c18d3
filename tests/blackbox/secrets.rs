//! Secrets and mount flags appear nowhere: not in logs at any level, errors, arguments of processes, files of the pool,
//! or metrics.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::csi::proto::volume_capability::{AccessType, MountVolume};

use crate::harness::{HeldTool, MIB, PoolFs, Use, World, capability, create_request, run};
use crate::observability::http;

const SECRET: &str = "xyzzy-marked-secret";
const FLAG: &str = "xyzzy-marked-flag";

fn secrets() -> HashMap<String, String> {
    HashMap::from([("password".into(), SECRET.into()), (format!("key-{SECRET}"), "x".into())])
}

fn marked(text: &str) -> bool {
    text.contains("xyzzy")
}

fn look_through(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        assert!(!marked(&path.display().to_string()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            look_through(&path);
        } else if kind.is_file() && entry.metadata().unwrap().len() < 1 << 20 {
            assert!(!marked(&String::from_utf8_lossy(&fs::read(&path).unwrap())), "in {}", path.display());
        }
    }
}

fn look_at_processes() {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        for text in [arguments, environment] {
            assert!(!marked(&String::from_utf8_lossy(&text)), "in process {:?}", entry.file_name());
        }
    }
}

fn unmarked_lines(log: &str) {
    for line in log.lines() {
        assert!(!marked(line), "in the log: {line}");
    }
}

fn nowhere_in_what_is_written(format: &str) {
    let arguments = ["--log-level", "trace", "--log-format", format];
    let mut world = World::with_arguments(PoolFs::Xfs, 4 << 30, &arguments);
    let held = HeldTool::new(&world.scratch, "mkfs.ext4");
    let mut said: Vec<String> = Vec::new();
    let mut failed = |status: tonic::Status| said.push(format!("{status:?}"));
    let flagged = p::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: "ext4".into(),
            mount_flags: vec![FLAG.into(), format!("context={SECRET}")],
            ..MountVolume::default()
        })),
        ..capability(Use::Ext4)
    };
    // Every call, once successful and once failing, with marks in every place for secrets and flags.
    let mut create = create_request("vol", Use::Ext4, 32 * MIB);
    create.secrets = secrets();
    let vol = world.try_create(Use::Ext4, &create).unwrap();
    for change in [
        (|r: &mut p::CreateVolumeRequest| r.name.clear()) as fn(&mut p::CreateVolumeRequest),
        |r| r.capacity_range = Some(p::CapacityRange { required_bytes: 64 * MIB, limit_bytes: 0 }),
        |r| r.parameters = HashMap::from([("unknown".into(), "x".into())]),
    ] {
        let mut bad = create.clone();
        change(&mut bad);
        failed(world.create_volume(bad).unwrap_err());
    }
    let bad = p::CreateVolumeRequest { volume_capabilities: vec![flagged.clone()], ..create.clone() };
    failed(world.create_volume(bad).unwrap_err());
    for (volume_id, capability) in [(&vol.id, capability(Use::Ext4)), (&"fake".to_owned(), flagged.clone())] {
        let validate = p::ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.clone(),
            volume_capabilities: vec![capability.clone()],
            secrets: secrets(),
            ..Default::default()
        };
        let _ = world.validate_volume_capabilities(validate).map_err(&mut failed);
        let publish = p::ControllerPublishVolumeRequest {
            volume_id: volume_id.clone(),
            node_id: world.node.clone(),
            volume_capability: Some(capability),
            secrets: secrets(),
            ..Default::default()
        };
        let _ = world.controller_publish_volume(publish).map_err(&mut failed);
    }
    let bad = p::NodeStageVolumeRequest {
        secrets: secrets(),
        volume_capability: Some(flagged.clone()),
        ..world.stage_request(&vol)
    };
    failed(world.node_stage_volume(bad).unwrap_err());
    held.hold();
    let stage = p::NodeStageVolumeRequest { secrets: secrets(), ..world.stage_request(&vol) };
    let (mut client, request) = (holdfast::csi::proto::node_client::NodeClient::new(world.channel()), stage.clone());
    let staged = world.spawn(async move { client.node_stage_volume(request).await });
    held.wait_for_call(1);
    look_at_processes();
    failed(world.node_stage_volume(stage).unwrap_err());
    held.let_go();
    world.block_on(staged).unwrap().unwrap();
    let bind = p::NodePublishVolumeRequest { secrets: secrets(), ..world.bind_request(&vol, "pod") };
    world.node_publish_volume(bind.clone()).unwrap();
    failed(world.node_publish_volume(p::NodePublishVolumeRequest { readonly: true, ..bind.clone() }).unwrap_err());
    failed(
        world
            .node_publish_volume(p::NodePublishVolumeRequest { volume_capability: Some(flagged), ..bind })
            .unwrap_err(),
    );
    let expand = p::NodeExpandVolumeRequest {
        volume_id: vol.id.clone(),
        volume_path: "/nowhere".into(),
        secrets: secrets(),
        ..Default::default()
    };
    failed(world.node_expand_volume(expand).unwrap_err());
    let snapshot = p::CreateSnapshotRequest {
        source_volume_id: vol.id.clone(),
        name: "snap".into(),
        secrets: secrets(),
        ..Default::default()
    };
    let id = world.create_snapshot(snapshot.clone()).unwrap().snapshot.unwrap().snapshot_id;
    failed(
        world.create_snapshot(p::CreateSnapshotRequest { source_volume_id: "fake".into(), ..snapshot }).unwrap_err(),
    );
    world.list_snapshots(p::ListSnapshotsRequest { secrets: secrets(), ..Default::default() }).unwrap();
    let list = p::ListSnapshotsRequest { secrets: secrets(), starting_token: "nonsense".into(), ..Default::default() };
    failed(world.list_snapshots(list).unwrap_err());
    for snapshot_id in [id.clone(), "fake".into()] {
        let get = p::GetSnapshotRequest { snapshot_id, secrets: secrets() };
        let _ = world.get_snapshot(get).map_err(&mut failed);
    }
    for capacity_range in [Some(p::CapacityRange { required_bytes: 40 * MIB, limit_bytes: 0 }), None] {
        let expand = p::ControllerExpandVolumeRequest {
            volume_id: vol.id.clone(),
            capacity_range,
            secrets: secrets(),
            ..Default::default()
        };
        let _ = world.controller_expand_volume(expand).map_err(&mut failed);
    }
    let modify =
        p::ControllerModifyVolumeRequest { volume_id: vol.id.clone(), secrets: secrets(), ..Default::default() };
    failed(world.controller_modify_volume(modify).unwrap_err());
    let unpublish = p::ControllerUnpublishVolumeRequest {
        volume_id: vol.id.clone(),
        node_id: world.node.clone(),
        secrets: secrets(),
    };
    // Its own node still uses it: the attachment may end, and nothing else.
    world.controller_unpublish_volume(unpublish).unwrap();
    let delete = p::DeleteVolumeRequest { volume_id: vol.id.clone(), secrets: secrets() };
    failed(world.delete_volume(delete).unwrap_err());
    world.delete_snapshot(p::DeleteSnapshotRequest { snapshot_id: id, secrets: secrets() }).unwrap();

    for text in &said {
        assert!(!marked(text), "in an error: {text}");
    }
    look_through(&world.pool);
    look_at_processes();
    let metrics = http(&world.metrics, "/metrics", Duration::from_secs(5)).1;
    assert!(metrics.contains("CreateVolume") && !marked(&metrics), "{metrics}");
    let log = world.log();
    assert!(log.contains("CreateVolume"), "nothing was logged, so nothing was proved");
    unmarked_lines(&log);
    assert!(!held.calls().iter().any(|call| marked(call)));
    world.terminate();
    world.start();
    assert!(!marked(&world.log()));
    world.finish();
}

#[test]
fn secrets_and_mount_flags_are_nowhere_with_text_logs() {
    nowhere_in_what_is_written("text");
}

#[test]
fn secrets_and_mount_flags_are_nowhere_with_json_logs() {
    nowhere_in_what_is_written("json");
}

/// A message of one call that does not decode, or is too long: the refusal repeats none of it.
fn undecodable(world: &World, path: &'static str, field: u8) -> tonic::Status {
    // A map entry with a marked key and a value that is not UTF-8.
    let (key, value) = (SECRET.as_bytes(), b"xyzzy\xff\xfe");
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
    let entry = [&[0x0a, length(key)], key, &[0x12, length(value)], value].concat();
    let message = [&[field << 3 | 2, length(&entry)], entry.as_slice()].concat();
    let mut grpc = tonic::client::Grpc::new(world.channel());
    let path = http::uri::PathAndQuery::from_static(path);
    world.block_on(async {
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<Wire, p::ProbeResponse>::default();
        grpc.unary(tonic::Request::new(Wire(message)), path, codec).await.unwrap_err()
    })
}

/// Bytes that are sent as they are.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wire(Vec<u8>);

impl prost::Message for Wire {
    fn encode_raw(&self, buf: &mut impl prost::bytes::BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        _: u32,
        _: prost::encoding::WireType,
        _: &mut impl prost::bytes::Buf,
        _: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[test]
fn what_fails_late_or_is_no_request_repeats_nothing() {
    let mut world = World::with_arguments(PoolFs::Xfs, 4 << 30, &["--log-level", "trace"]);
    let mut said: Vec<String> = Vec::new();
    let contexts = || HashMap::from([("token".to_owned(), SECRET.to_owned())]);
    // Bytes that do not decode, in the secrets of every call that has some.
    let fields = [
        ("/csi.v1.Controller/CreateVolume", 5),
        ("/csi.v1.Controller/DeleteVolume", 2),
        ("/csi.v1.Controller/ControllerPublishVolume", 5),
        ("/csi.v1.Controller/ControllerUnpublishVolume", 3),
        ("/csi.v1.Controller/ValidateVolumeCapabilities", 5),
        ("/csi.v1.Controller/CreateSnapshot", 3),
        ("/csi.v1.Controller/DeleteSnapshot", 2),
        ("/csi.v1.Controller/ListSnapshots", 5),
        ("/csi.v1.Controller/GetSnapshot", 2),
        ("/csi.v1.Controller/ControllerExpandVolume", 3),
        ("/csi.v1.Node/NodeStageVolume", 5),
        ("/csi.v1.Node/NodePublishVolume", 7),
        ("/csi.v1.Node/NodeExpandVolume", 6),
    ];
    for (path, field) in fields {
        let status = undecodable(&world, path, field);
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{path}: {status:?}");
        said.push(format!("{status:?}"));
    }
    let vol = world.create("vol", Use::Ext4);
    let unknown = p::ControllerModifyVolumeRequest { secrets: secrets(), ..Default::default() };
    said.push(format!("{:?}", world.controller_modify_volume(unknown).unwrap_err()));
    let huge = HashMap::from([("key".to_owned(), SECRET.repeat(300_000))]);
    let huge = p::DeleteVolumeRequest { volume_id: vol.id.clone(), secrets: huge };
    said.push(format!("{:?}", world.delete_volume(huge).unwrap_err()));
    let with_context = p::ControllerPublishVolumeRequest {
        volume_id: vol.id.clone(),
        volume_context: contexts(),
        ..Default::default()
    };
    said.push(format!("{:?}", world.controller_publish_volume(with_context).unwrap_err()));
    world.publish(&vol).unwrap();

    // The tools fail: killed, and missing what they need.
    let stage = || p::NodeStageVolumeRequest {
        secrets: secrets(),
        publish_context: contexts(),
        volume_context: contexts(),
        ..world.stage_request(&vol)
    };
    run("/usr/bin/mount", &["--bind", "/bin/false", "/usr/sbin/mke2fs"]);
    said.push(format!("{:?}", world.node_stage_volume(stage()).unwrap_err()));
    run("/usr/bin/umount", &["/usr/sbin/mke2fs"]);
    world.node_stage_volume(stage()).unwrap();
    world.unstage(&vol).unwrap();
    // A flag that is allowed and marked reaches the kernel, which has no SELinux or does not know the type.
    let label = p::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: "ext4".into(),
            mount_flags: vec!["context=\"system_u:object_r:xyzzy_t:s0\"".into()],
            ..MountVolume::default()
        })),
        ..capability(Use::Ext4)
    };
    let labelled = p::NodeStageVolumeRequest { volume_capability: Some(label.clone()), ..stage() };
    match world.node_stage_volume(labelled) {
        Ok(_) => world.unstage(&vol).unwrap(),
        Err(status) => said.push(format!("{status:?}")),
    }
    // Everybody who takes a capability is given the label.
    let expand = p::ControllerExpandVolumeRequest {
        volume_id: vol.id.clone(),
        capacity_range: Some(p::CapacityRange { required_bytes: i64::MAX, limit_bytes: 0 }),
        volume_capability: Some(label.clone()),
        secrets: secrets(),
    };
    said.push(format!("{:?}", world.controller_expand_volume(expand).unwrap_err()));
    let expand = p::NodeExpandVolumeRequest {
        volume_id: vol.id.clone(),
        volume_path: world.target(&vol, "pod").to_str().unwrap().into(),
        volume_capability: Some(label.clone()),
        secrets: secrets(),
        ..Default::default()
    };
    said.push(format!("{:?}", world.node_expand_volume(expand).unwrap_err()));
    let capacity = p::GetCapacityRequest { volume_capabilities: vec![label.clone()], ..Default::default() };
    let _ = world.get_capacity(capacity).map_err(|status| said.push(format!("{status:?}")));
    let publish = p::NodePublishVolumeRequest {
        publish_context: contexts(),
        volume_context: contexts(),
        secrets: secrets(),
        volume_capability: Some(label),
        ..world.bind_request(&vol, "pod")
    };
    said.push(format!("{:?}", world.node_publish_volume(publish).unwrap_err()));
    look_at_processes();

    for text in &said {
        assert!(!marked(text), "in an error: {text}");
    }
    look_through(&world.pool);
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert!(!marked(&http(&world.metrics, path, Duration::from_secs(5)).1), "{path}");
    }
    let log = world.log();
    assert!(log.contains("NodeStageVolume"), "nothing was logged, so nothing was proved");
    unmarked_lines(&log);
    world.kill9();
    look_through(&world.pool);
    world.start();
    unmarked_lines(&world.log());
    world.finish();
}
