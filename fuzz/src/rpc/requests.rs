//! Requests from bytes: mostly of values that get far (ids of what there is, paths of the room), some of any value.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use arbitrary::{Result, Unstructured};
use holdfast::csi::proto as p;
use holdfast::csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use holdfast::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use prost::Message;

use super::room::{NODE, Room};

/// RequestedCapability by the target itself too.
pub const LIST_VOLUMES: &str = "/csi.v1.Controller/ListVolumes";
/// As above.
pub const LIST_SNAPSHOTS: &str = "/csi.v1.Controller/ListSnapshots";
/// In every secret; never in an answer.
pub const SECRET: &str = "xyzzy-marked-secret";

const NAMES: [&str; 4] = ["a", "b", "../../etc", "\u{fc} \u{1f980}"];
const MIB: i64 = 1 << 20;
const SIZES: [i64; 10] = [0, 1, MIB, 16 * MIB, 17 * MIB + 1, 32 * MIB, 300 * MIB, -1, i64::MAX, i64::MIN];
const KEYS: [(&str, &str); 10] = [
    ("provisioning", "thin"),
    ("provisioning", "thick"),
    ("onDelete", "zero"),
    ("fsck", "never"),
    ("mkfsOptions", "-i 8192"),
    ("mkfsOptions", "-F -U clear"),
    ("placement", "any"),
    ("pool", "test"),
    ("pool", "../x"),
    ("csi.storage.k8s.io/fstype", "xfs"),
];
const FLAGS: [&str; 8] = ["noatime", "ro", "discard", "commit=30", "nouuid", "noexec,nosuid", "norecovery", "\0,\""];

/// What earlier answers told.
pub struct Known {
    kubelet: PathBuf,
    volumes: Vec<String>,
    snapshots: Vec<String>,
    tokens: Vec<String>,
}

impl Known {
    /// Nothing yet.
    pub fn new(room: &Room) -> Self {
        Self { kubelet: room.kubelet(), volumes: Vec::new(), snapshots: Vec::new(), tokens: Vec::new() }
    }

    /// Remembers the ids of an answer.
    pub fn learn(&mut self, path: &str, answer: &[u8]) {
        match path {
            "/csi.v1.Controller/CreateVolume" => {
                let answer = p::CreateVolumeResponse::decode(answer).expect("an answer");
                self.volumes.extend(answer.volume.map(|volume| volume.volume_id));
            }
            "/csi.v1.Controller/CreateSnapshot" => {
                let answer = p::CreateSnapshotResponse::decode(answer).expect("an answer");
                self.snapshots.extend(answer.snapshot.map(|snapshot| snapshot.snapshot_id));
            }
            LIST_VOLUMES => {
                self.tokens.push(p::ListVolumesResponse::decode(answer).expect("an answer").next_token);
            }
            _ => {}
        }
    }

    /// Where pods find volumes.
    pub fn targets(&self) -> Vec<String> {
        (0..3).map(|i| self.inside(&format!("pods/{i}"))).collect()
    }

    /// Where volumes are staged.
    pub fn stagings(&self) -> Vec<String> {
        (0..2).map(|i| self.inside(&format!("stage-{i}"))).collect()
    }

    fn inside(&self, name: &str) -> String {
        self.kubelet.join(name).display().to_string()
    }

    fn volume(&self, input: &mut Unstructured) -> Result<String> {
        one_of(&self.volumes, input)
    }

    fn snapshot(&self, input: &mut Unstructured) -> Result<String> {
        one_of(&self.snapshots, input)
    }

    fn staging(&self, input: &mut Unstructured) -> Result<String> {
        self.path(&self.stagings(), input)
    }

    fn target(&self, input: &mut Unstructured) -> Result<String> {
        self.path(&self.targets(), input)
    }

    /// A path of the list; or one that is wrong, yet below the room if it is one at all.
    fn path(&self, good: &[String], input: &mut Unstructured) -> Result<String> {
        if input.ratio(7, 8)? {
            return Ok(input.choose(good)?.clone());
        }
        Ok(match input.int_in_range(0..=7)? {
            0 => String::new(),
            1 => "relative/path".into(),
            2 => format!("{}/../../decoy/inner", good[0]),
            3 => self.inside("link"),
            4 => format!("{}/", good[0]),
            5 => format!("{}\0x", good[0]),
            6 => self.inside(&"x/".repeat(3000)),
            _ => format!("{}/../{}", good[0], input.arbitrary::<&str>()?),
        })
    }
}

fn one_of(known: &[String], input: &mut Unstructured) -> Result<String> {
    if !known.is_empty() && input.ratio(7, 8)? {
        return Ok(input.choose(known)?.clone());
    }
    Ok(match input.int_in_range(0..=3)? {
        0 => String::new(),
        1 => "hf1_00112233445566aa_0123456789abcdef0123456789abcdef".into(),
        2 => "hfs1_00112233445566aa_0123456789abcdef0123456789abcdef".into(),
        _ => input.arbitrary()?,
    })
}

fn name(input: &mut Unstructured) -> Result<String> {
    if input.ratio(7, 8)? { Ok((*input.choose(&NAMES)?).into()) } else { input.arbitrary() }
}

fn range(input: &mut Unstructured) -> Result<Option<p::CapacityRange>> {
    let mut bytes = || if input.ratio(7, 8)? { Ok(*input.choose(&SIZES)?) } else { input.arbitrary() };
    let range = p::CapacityRange { required_bytes: bytes()?, limit_bytes: if bytes()? < 0 { bytes()? } else { 0 } };
    Ok(input.ratio(7, 8)?.then_some(range))
}

fn capability(input: &mut Unstructured) -> Result<Option<p::VolumeCapability>> {
    let access_type = match input.int_in_range(0..=8)? {
        0 => None,
        1..=3 => Some(AccessType::Block(BlockVolume {})),
        kind => {
            let fs_type = match kind {
                4 | 5 => "ext4".into(),
                6 => "xfs".into(),
                7 => String::new(),
                _ => input.arbitrary()?,
            };
            let mut mount_flags = Vec::new();
            for _ in 0..input.int_in_range(0..=2)? {
                mount_flags.push((*input.choose(&FLAGS)?).into());
            }
            Some(AccessType::Mount(MountVolume { fs_type, mount_flags, volume_mount_group: String::new() }))
        }
    };
    let mode = if input.ratio(7, 8)? { *input.choose(&[1, 1, 7, 6, 2])? } else { input.arbitrary()? };
    let capability = p::VolumeCapability { access_type, access_mode: Some(AccessMode { mode }) };
    Ok(input.ratio(15, 16)?.then_some(capability))
}

fn map(input: &mut Unstructured) -> Result<HashMap<String, String>> {
    let mut map = HashMap::new();
    for _ in 0..input.int_in_range(0..=2)? {
        let (key, value) = *input.choose(&KEYS)?;
        map.insert(key.into(), value.into());
        if input.ratio(1, 16)? {
            map.insert(input.arbitrary()?, input.arbitrary()?);
        }
    }
    Ok(map)
}

fn secrets() -> HashMap<String, String> {
    HashMap::from([(SECRET.to_owned(), SECRET.to_owned())])
}

fn node(input: &mut Unstructured) -> Result<String> {
    if input.ratio(7, 8)? { Ok(NODE.into()) } else { input.arbitrary() }
}

/// Whether every absolute path in a message is of the room. Bytes that were changed may spell another place of the
/// machine, and the driver goes where kubelet sends it.
pub fn stays(known: &Known, path: &str, message: &[u8]) -> bool {
    let paths = match path.strip_prefix("/csi.v1.Node/") {
        Some("NodeStageVolume") => p::NodeStageVolumeRequest::decode(message).map(|m| vec![m.staging_target_path]),
        Some("NodeUnstageVolume") => p::NodeUnstageVolumeRequest::decode(message).map(|m| vec![m.staging_target_path]),
        Some("NodePublishVolume") => {
            p::NodePublishVolumeRequest::decode(message).map(|m| vec![m.staging_target_path, m.target_path])
        }
        Some("NodeUnpublishVolume") => p::NodeUnpublishVolumeRequest::decode(message).map(|m| vec![m.target_path]),
        Some("NodeExpandVolume") => {
            p::NodeExpandVolumeRequest::decode(message).map(|m| vec![m.volume_path, m.staging_target_path])
        }
        Some("NodeGetVolumeStats") => {
            p::NodeGetVolumeStatsRequest::decode(message).map(|m| vec![m.volume_path, m.staging_target_path])
        }
        _ => return true,
    };
    let inside = |path: &String| !path.starts_with('/') || Path::new(path).starts_with(&known.kubelet);
    // What is no message is refused before anybody looks at a path.
    paths.map_or(true, |paths| paths.iter().all(inside))
}

/// A call's path and its message.
pub fn one(known: &Known, input: &mut Unstructured) -> Result<(&'static str, Vec<u8>)> {
    Ok(match input.int_in_range(0..=23)? {
        0..=2 => {
            let mut volume_capabilities = Vec::new();
            for _ in 0..=u8::from(input.ratio(1, 16)?) {
                volume_capabilities.extend(capability(input)?);
            }
            let volume_content_source = match input.int_in_range(0..=5)? {
                0 => Some(Type::Snapshot(SnapshotSource { snapshot_id: known.snapshot(input)? })),
                1 => Some(Type::Volume(VolumeSource { volume_id: known.volume(input)? })),
                _ => None,
            };
            let request = p::CreateVolumeRequest {
                name: name(input)?,
                capacity_range: range(input)?,
                volume_capabilities,
                parameters: map(input)?,
                secrets: secrets(),
                volume_content_source: volume_content_source
                    .map(|source| p::VolumeContentSource { r#type: Some(source) }),
                ..Default::default()
            };
            ("/csi.v1.Controller/CreateVolume", request.encode_to_vec())
        }
        3 => {
            let request = p::DeleteVolumeRequest { volume_id: known.volume(input)?, secrets: secrets() };
            ("/csi.v1.Controller/DeleteVolume", request.encode_to_vec())
        }
        4..=6 => {
            let request = p::ControllerPublishVolumeRequest {
                volume_id: known.volume(input)?,
                node_id: node(input)?,
                volume_capability: capability(input)?,
                readonly: input.ratio(1, 8)?,
                secrets: secrets(),
                ..Default::default()
            };
            ("/csi.v1.Controller/ControllerPublishVolume", request.encode_to_vec())
        }
        7 => {
            let request = p::ControllerUnpublishVolumeRequest {
                volume_id: known.volume(input)?,
                node_id: node(input)?,
                secrets: secrets(),
            };
            ("/csi.v1.Controller/ControllerUnpublishVolume", request.encode_to_vec())
        }
        8 => {
            let request = p::ValidateVolumeCapabilitiesRequest {
                volume_id: known.volume(input)?,
                volume_capabilities: capability(input)?.into_iter().collect(),
                parameters: map(input)?,
                ..Default::default()
            };
            ("/csi.v1.Controller/ValidateVolumeCapabilities", request.encode_to_vec())
        }
        9 => {
            let token = one_of(&known.tokens, input)?;
            let request = p::ListVolumesRequest { max_entries: input.arbitrary()?, starting_token: token };
            (LIST_VOLUMES, request.encode_to_vec())
        }
        10 => {
            let request = p::GetCapacityRequest {
                volume_capabilities: capability(input)?.into_iter().collect(),
                parameters: map(input)?,
                ..Default::default()
            };
            ("/csi.v1.Controller/GetCapacity", request.encode_to_vec())
        }
        11 => {
            let request = p::CreateSnapshotRequest {
                source_volume_id: known.volume(input)?,
                name: name(input)?,
                secrets: secrets(),
                ..Default::default()
            };
            ("/csi.v1.Controller/CreateSnapshot", request.encode_to_vec())
        }
        12 => {
            let request = p::DeleteSnapshotRequest { snapshot_id: known.snapshot(input)?, secrets: secrets() };
            ("/csi.v1.Controller/DeleteSnapshot", request.encode_to_vec())
        }
        13 => {
            let request = p::ListSnapshotsRequest {
                max_entries: input.arbitrary()?,
                source_volume_id: known.volume(input)?,
                snapshot_id: known.snapshot(input)?,
                ..Default::default()
            };
            (LIST_SNAPSHOTS, request.encode_to_vec())
        }
        14 => {
            let request = p::ControllerExpandVolumeRequest {
                volume_id: known.volume(input)?,
                capacity_range: range(input)?,
                volume_capability: capability(input)?,
                secrets: secrets(),
            };
            ("/csi.v1.Controller/ControllerExpandVolume", request.encode_to_vec())
        }
        15..=17 => {
            let request = p::NodeStageVolumeRequest {
                volume_id: known.volume(input)?,
                staging_target_path: known.staging(input)?,
                volume_capability: capability(input)?,
                secrets: secrets(),
                ..Default::default()
            };
            ("/csi.v1.Node/NodeStageVolume", request.encode_to_vec())
        }
        18 => {
            let request = p::NodeUnstageVolumeRequest {
                volume_id: known.volume(input)?,
                staging_target_path: known.staging(input)?,
            };
            ("/csi.v1.Node/NodeUnstageVolume", request.encode_to_vec())
        }
        19 | 20 => {
            let request = p::NodePublishVolumeRequest {
                volume_id: known.volume(input)?,
                staging_target_path: known.staging(input)?,
                target_path: known.target(input)?,
                volume_capability: capability(input)?,
                readonly: input.ratio(1, 8)?,
                secrets: secrets(),
                volume_context: map(input)?,
                ..Default::default()
            };
            ("/csi.v1.Node/NodePublishVolume", request.encode_to_vec())
        }
        21 => {
            let request =
                p::NodeUnpublishVolumeRequest { volume_id: known.volume(input)?, target_path: known.target(input)? };
            ("/csi.v1.Node/NodeUnpublishVolume", request.encode_to_vec())
        }
        22 => {
            let request = p::NodeExpandVolumeRequest {
                volume_id: known.volume(input)?,
                volume_path: known.target(input)?,
                staging_target_path: known.staging(input)?,
                capacity_range: range(input)?,
                volume_capability: capability(input)?,
                secrets: secrets(),
            };
            ("/csi.v1.Node/NodeExpandVolume", request.encode_to_vec())
        }
        _ => {
            let request = p::NodeGetVolumeStatsRequest {
                volume_id: known.volume(input)?,
                volume_path: known.target(input)?,
                ..Default::default()
            };
            ("/csi.v1.Node/NodeGetVolumeStats", request.encode_to_vec())
        }
    })
}
