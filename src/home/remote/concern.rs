//! The pool that a call between nodes and controllers is for; as in `csi::concern`.

use super::proto as pb;
use crate::wire::Share;

/// A request message of a call.
pub(super) trait Concern {
    /// The share of the worker pool that the call uses.
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

macro_rules! of_all {
    ($($message:ident)*) => {
        $(impl Concern for pb::$message {
            fn share(&self) -> Share {
                Share::of_all()
            }
        })*
    };
}

of_handle! { id:
    DeleteVolumeRequest GetVolumeRequest GrantRequest RevokeRequest OpenRequest CloseRequest BeginFormatRequest
    EndFormatRequest UseRawRequest DeleteSnapshotRequest GetSnapshotRequest ExpandRequest
}
of_handle! { source: CreateSnapshotRequest }
of_all! {
    FindVolumeRequest FindSnapshotRequest ListVolumesRequest ListSnapshotsRequest ListExtentsRequest ReportRequest
    ExamineRequest
}

impl Concern for pb::CreateVolumeRequest {
    fn share(&self) -> Share {
        use pb::source::Source;
        match self.source.as_ref().and_then(|source| source.source.as_ref()) {
            Some(Source::Snapshot(id) | Source::Volume(id)) => Share::of_handle(id),
            None => Share::of_pool_named(self.parameters.get("pool").map_or("", String::as_str)),
        }
    }
}

impl Concern for pb::ReadmitRequest {
    fn share(&self) -> Share {
        Share::of_pool_named(&self.pool)
    }
}

impl Concern for pb::ListExportsRequest {
    fn share(&self) -> Share {
        Share::of_pool_named(&self.pool)
    }
}

impl Concern for pb::GetCapacityRequest {
    fn share(&self) -> Share {
        Share::of_pool_named(&self.pool)
    }
}
