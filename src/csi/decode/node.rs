//! The requests of the Node service.

use std::collections::HashMap;
use std::path::PathBuf;

use super::{RequestedCapability, bounded, invalid, known_path, optional_path, path, range, required, supported};
use crate::csi::proto;
use crate::home::ReadOnly;
use crate::node::ExpandRequest;
use crate::types::{Result, VolumeId};

/// Set by kubelet on volumes written into a pod's spec.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// NodeStageVolume.
#[derive(Debug)]
pub(in crate::csi) struct NodeStage {
    /// The volume.
    pub(in crate::csi) volume: VolumeId,
    /// The staging path.
    pub(in crate::csi) staging: PathBuf,
    /// The capability.
    pub(in crate::csi) asked: RequestedCapability,
}

/// # Errors
/// `InvalidArgument`; `NotFound` for an id that is no handle of this driver.
pub(in crate::csi) fn node_stage(request: &proto::NodeStageVolumeRequest) -> Result<NodeStage> {
    let volume = required("volume_id", &request.volume_id)?;
    let staging = path("staging_target_path", &request.staging_target_path)?;
    let asked = supported(request.volume_capability.as_ref())?;
    bounded("publish_context", &request.publish_context)?;
    bounded("volume_context", &request.volume_context)?;
    Ok(NodeStage { volume: volume.parse()?, staging, asked })
}

/// # Errors
/// `InvalidArgument`; `NotFound` for an id that is no handle of this driver.
pub(in crate::csi) fn node_unstage(request: &proto::NodeUnstageVolumeRequest) -> Result<(VolumeId, PathBuf)> {
    let volume = required("volume_id", &request.volume_id)?;
    let staging = path("staging_target_path", &request.staging_target_path)?;
    Ok((volume.parse()?, staging))
}

/// NodePublishVolume.
#[derive(Debug)]
pub(in crate::csi) struct NodePublish {
    /// The volume.
    pub(in crate::csi) volume: VolumeId,
    /// The staging path, if the CO gives it.
    pub(in crate::csi) staging: Option<PathBuf>,
    /// The path of the pod.
    pub(in crate::csi) target: PathBuf,
    /// The capability.
    pub(in crate::csi) asked: RequestedCapability,
    /// Whether this pod only reads.
    pub(in crate::csi) read_only: ReadOnly,
}

/// # Errors
/// `InvalidArgument`; `NotFound` for an id that is no handle of this driver.
pub(in crate::csi) fn node_publish(request: &proto::NodePublishVolumeRequest) -> Result<NodePublish> {
    let volume = required("volume_id", &request.volume_id)?;
    let target = path("target_path", &request.target_path)?;
    let asked = supported(request.volume_capability.as_ref())?;
    let staging = optional_path("staging_target_path", &request.staging_target_path)?;
    bounded("publish_context", &request.publish_context)?;
    bounded("volume_context", &request.volume_context)?;
    refuse_ephemeral(&request.volume_context)?;
    let read_only = if request.readonly { ReadOnly::Yes } else { ReadOnly::No };
    Ok(NodePublish { volume: volume.parse()?, staging, target, asked, read_only })
}

fn refuse_ephemeral(context: &HashMap<String, String>) -> Result<()> {
    if context.get(EPHEMERAL).is_some_and(|value| value == "true") {
        return Err(invalid(
            "inline ephemeral volumes (csi: in a pod's volumes) are not supported; use a generic ephemeral volume \
             (ephemeral: volumeClaimTemplate:)",
        ));
    }
    Ok(())
}

/// # Errors
/// `InvalidArgument`; `NotFound` for an id that is no handle of this driver.
pub(in crate::csi) fn node_unpublish(request: &proto::NodeUnpublishVolumeRequest) -> Result<(VolumeId, PathBuf)> {
    let volume = required("volume_id", &request.volume_id)?;
    let target = path("target_path", &request.target_path)?;
    Ok((volume.parse()?, target))
}

/// # Errors
/// `InvalidArgument` for a missing field; `NotFound` for an id or a path that cannot be ours.
pub(in crate::csi) fn node_stats(request: &proto::NodeGetVolumeStatsRequest) -> Result<(VolumeId, PathBuf)> {
    let volume = required("volume_id", &request.volume_id)?;
    let looked_at = known_path("volume_path", &request.volume_path)?;
    Ok((volume.parse()?, looked_at))
}

/// The volume, and where it is published or staged, if the orchestrator says so.
///
/// # Errors
/// `InvalidArgument` for a missing id; `NotFound` for an id or a path that cannot be ours.
pub(in crate::csi) fn node_health(request: &proto::NodeGetVolumeHealthRequest) -> Result<(VolumeId, Option<PathBuf>)> {
    let volume = required("volume_id", &request.volume_id)?;
    let mut paths =
        [("volume_publish_path", &request.volume_publish_path), ("staging_target_path", &request.staging_target_path)]
            .into_iter();
    let given = paths.find(|(_, path)| !path.is_empty());
    let path = given.map(|(field, path)| known_path(field, path)).transpose()?;
    Ok((volume.parse()?, path))
}

/// # Errors
/// `InvalidArgument` for a missing or malformed field; `NotFound` for an id or a path that cannot be ours.
pub(in crate::csi) fn node_expand(request: &proto::NodeExpandVolumeRequest) -> Result<ExpandRequest> {
    let volume = required("volume_id", &request.volume_id)?;
    required("volume_path", &request.volume_path)?;
    let range = range(request.capacity_range.as_ref())?;
    let staging = optional_path("staging_target_path", &request.staging_target_path)?;
    if request.volume_capability.is_some() {
        supported(request.volume_capability.as_ref())?;
    }
    let path = known_path("volume_path", &request.volume_path)?;
    Ok(ExpandRequest { volume: volume.parse()?, path, staging, range })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::proto::volume_capability::{AccessMode, AccessType, MountVolume};
    use crate::types::{Error, Kind};

    const HANDLE: &str = "hf1_00000000000000aa_0123456789abcdef0123456789abcdef_n1";

    fn capability() -> Option<proto::VolumeCapability> {
        Some(proto::VolumeCapability {
            access_mode: Some(AccessMode { mode: 7 }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        })
    }

    fn stage() -> proto::NodeStageVolumeRequest {
        proto::NodeStageVolumeRequest {
            volume_id: HANDLE.into(),
            staging_target_path: "/staging/globalmount".into(),
            volume_capability: capability(),
            ..Default::default()
        }
    }

    fn publish() -> proto::NodePublishVolumeRequest {
        proto::NodePublishVolumeRequest {
            volume_id: HANDLE.into(),
            staging_target_path: "/staging/globalmount".into(),
            target_path: "/pods/x/mount".into(),
            volume_capability: capability(),
            ..Default::default()
        }
    }

    fn said<T: std::fmt::Debug>(result: Result<T>) -> (Kind, String) {
        result.map_err(|error: Error| (error.kind(), error.to_string())).unwrap_err()
    }

    macro_rules! refused {
        ($decode:expr, $good:expr, $($field:ident: $bad:expr => $kind:ident $word:literal),* $(,)?) => {{
            assert!($decode(&$good).is_ok());
            $({
                let mut bad = $good;
                bad.$field = $bad;
                let (kind, text) = said($decode(&bad));
                assert!(kind == Kind::$kind && text.contains($word), "{}: {kind:?} {text}", stringify!($field));
            })*
        }};
    }

    fn big() -> HashMap<String, String> {
        HashMap::from([("k".into(), "v".repeat(5000))])
    }

    #[test]
    fn every_field_of_every_node_request() {
        refused!(node_stage, stage(),
            volume_id: String::new() => InvalidArgument "volume_id",
            volume_id: "fake".into() => NotFound "fake",
            staging_target_path: String::new() => InvalidArgument "staging_target_path",
            staging_target_path: "a/b".into() => InvalidArgument "absolute",
            volume_capability: None => InvalidArgument "volume_capability",
            publish_context: big() => InvalidArgument "publish_context",
            volume_context: big() => InvalidArgument "volume_context",
        );
        refused!(node_unstage,
            proto::NodeUnstageVolumeRequest { volume_id: HANDLE.into(), staging_target_path: "/s/g".into() },
            volume_id: String::new() => InvalidArgument "volume_id",
            volume_id: "fake".into() => NotFound "fake",
            staging_target_path: String::new() => InvalidArgument "staging_target_path",
        );
        refused!(node_publish, publish(),
            volume_id: String::new() => InvalidArgument "volume_id",
            volume_id: "fake".into() => NotFound "fake",
            target_path: String::new() => InvalidArgument "target_path",
            target_path: "/a/../b".into() => InvalidArgument "target_path",
            staging_target_path: "s".into() => InvalidArgument "staging_target_path",
            volume_capability: None => InvalidArgument "volume_capability",
            publish_context: big() => InvalidArgument "publish_context",
            volume_context: HashMap::from([(EPHEMERAL.into(), "true".into())]) => InvalidArgument "ephemeral",
        );
        refused!(node_unpublish,
            proto::NodeUnpublishVolumeRequest { volume_id: HANDLE.into(), target_path: "/p".into() },
            volume_id: String::new() => InvalidArgument "volume_id",
            volume_id: "fake".into() => NotFound "fake",
            target_path: String::new() => InvalidArgument "target_path",
        );
        refused!(node_stats,
            proto::NodeGetVolumeStatsRequest { volume_id: HANDLE.into(), volume_path: "/p".into(), ..Default::default() },
            volume_id: String::new() => InvalidArgument "volume_id",
            volume_id: "fake".into() => NotFound "fake",
            volume_path: String::new() => InvalidArgument "volume_path",
            volume_path: "some/path".into() => NotFound "some/path",
        );
        refused!(node_health,
            proto::NodeGetVolumeHealthRequest { volume_id: HANDLE.into(), volume_publish_path: "/p".into(), ..Default::default() },
            volume_id: String::new() => InvalidArgument "volume_id",
            volume_id: "fake".into() => NotFound "fake",
            volume_publish_path: "some/path".into() => NotFound "some/path",
        );
        refused!(node_expand,
            proto::NodeExpandVolumeRequest { volume_id: HANDLE.into(), volume_path: "/p".into(), ..Default::default() },
            volume_id: String::new() => InvalidArgument "volume_id",
            volume_id: "fake".into() => NotFound "fake",
            volume_path: String::new() => InvalidArgument "volume_path",
            volume_path: "some/path".into() => NotFound "some/path",
            capacity_range: Some(proto::CapacityRange { required_bytes: -1, limit_bytes: 0 }) => InvalidArgument "negative",
            staging_target_path: "s".into() => InvalidArgument "staging_target_path",
            volume_capability: Some(proto::VolumeCapability::default()) => InvalidArgument "access_type",
        );
    }

    #[test]
    fn what_may_be_left_out() {
        let decoded = node_publish(&proto::NodePublishVolumeRequest {
            staging_target_path: String::new(),
            readonly: true,
            ..publish()
        })
        .unwrap();
        assert_eq!((decoded.staging, decoded.read_only), (None, ReadOnly::Yes));
    }
}
