//! The pool that a call is about, read from the raw message: calls of a pool whose disk hangs must not use up all
//! threads. Nothing else depends on it, so an id that cannot be read gets a share of its own.

use super::proto as pb;
use crate::wire::Share;

/// The message of a call.
pub(super) trait Concern {
    /// The share of the worker limit that the call counts against.
    fn share(&self) -> Share;
}

macro_rules! of_handle {
    ($field:ident: $($message:ident)*) => {
        $(impl Concern for pb::$message {
            fn share(&self) -> Share {
                Share::of_handle(&self.$field)
            }
        })*
    };
}

of_handle! { volume_id:
    DeleteVolumeRequest ControllerPublishVolumeRequest ControllerUnpublishVolumeRequest
    ValidateVolumeCapabilitiesRequest ControllerExpandVolumeRequest ControllerGetVolumeRequest
    NodeStageVolumeRequest NodeUnstageVolumeRequest NodePublishVolumeRequest NodeUnpublishVolumeRequest
    NodeGetVolumeStatsRequest NodeGetVolumeHealthRequest NodeExpandVolumeRequest
}
of_handle! { source_volume_id: CreateSnapshotRequest }
of_handle! { snapshot_id: DeleteSnapshotRequest GetSnapshotRequest }

impl Concern for pb::CreateVolumeRequest {
    fn share(&self) -> Share {
        use pb::volume_content_source::Type;
        match self.volume_content_source.as_ref().and_then(|source| source.r#type.as_ref()) {
            Some(Type::Snapshot(source)) => Share::of_handle(&source.snapshot_id),
            Some(Type::Volume(source)) => Share::of_handle(&source.volume_id),
            None => Share::of_pool_named(self.parameters.get("pool").map_or("", String::as_str)),
        }
    }
}

impl Concern for pb::GetCapacityRequest {
    fn share(&self) -> Share {
        Share::of_pool_named(self.parameters.get("pool").map_or("", String::as_str))
    }
}

impl Concern for pb::ListVolumesRequest {
    fn share(&self) -> Share {
        Share::of_all()
    }
}

impl Concern for pb::ListSnapshotsRequest {
    fn share(&self) -> Share {
        match (self.snapshot_id.as_str(), self.source_volume_id.as_str()) {
            ("", "") => Share::of_all(),
            ("", volume) => Share::of_handle(volume),
            (snapshot, _) => Share::of_handle(snapshot),
        }
    }
}
