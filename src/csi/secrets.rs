//! Debug of every message that carries a secret or mount flags (build.rs lists them): it names the field and never
//! shows the content. Each message is destructured, so a new field is a compile error here.

use std::collections::HashMap;
use std::fmt;

use super::proto;

/// Stands for a map of secrets: shows how many, never which.
struct Hidden(usize);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} hidden)", self.0)
    }
}

/// Stands for a context map: its values may carry tokens (KEP-5538), so only the keys are shown.
struct Keys<'a>(&'a HashMap<String, String>);

impl fmt::Debug for Keys<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut keys: Vec<_> = self.0.keys().collect();
        keys.sort();
        keys.fmt(f)
    }
}

macro_rules! redacting_debug {
    ($($message:ident { $($shown:ident),* ; $($keys:ident),* ; $($hidden:ident),* })*) => {
        $(impl fmt::Debug for proto::$message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let Self { $($shown,)* $($keys,)* $($hidden,)* } = self;
                f.debug_struct(stringify!($message))
                    $(.field(stringify!($shown), $shown))*
                    $(.field(stringify!($keys), &Keys($keys)))*
                    $(.field(stringify!($hidden), &Hidden($hidden.len())))*
                    .finish()
            }
        })*
    };
}

redacting_debug! {
    CreateVolumeRequest {
        name, capacity_range, volume_capabilities, parameters, volume_content_source, accessibility_requirements,
        mutable_parameters; ; secrets
    }
    DeleteVolumeRequest { volume_id; ; secrets }
    ControllerPublishVolumeRequest { volume_id, node_id, volume_capability, readonly; volume_context; secrets }
    ControllerUnpublishVolumeRequest { volume_id, node_id; ; secrets }
    ValidateVolumeCapabilitiesRequest {
        volume_id, volume_capabilities, parameters, mutable_parameters; volume_context; secrets
    }
    ControllerListVolumeHealthRequest { max_entries, starting_token; ; secrets }
    ControllerGetVolumeHealthRequest { volume_id; ; secrets }
    ControllerModifyVolumeRequest { volume_id, mutable_parameters; ; secrets }
    CreateSnapshotRequest { source_volume_id, name, parameters, accessibility_requirements; ; secrets }
    DeleteSnapshotRequest { snapshot_id; ; secrets }
    ListSnapshotsRequest { max_entries, starting_token, source_volume_id, snapshot_id; ; secrets }
    GetSnapshotRequest { snapshot_id; ; secrets }
    ControllerExpandVolumeRequest { volume_id, capacity_range, volume_capability; ; secrets }
    NodeStageVolumeRequest {
        volume_id, staging_target_path, volume_capability; publish_context, volume_context; secrets
    }
    NodePublishVolumeRequest {
        volume_id, staging_target_path, target_path, volume_capability, readonly; publish_context, volume_context;
        secrets
    }
    NodeExpandVolumeRequest {
        volume_id, volume_path, capacity_range, staging_target_path, volume_capability; ; secrets
    }
    NodeGetStorageHealthRequest { ; ; secrets }
    CreateVolumeGroupSnapshotRequest { name, source_volume_ids, parameters; ; secrets }
    DeleteVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids; ; secrets }
    GetVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids; ; secrets }
    GetMetadataAllocatedRequest { snapshot_id, starting_offset, max_results; ; secrets }
    GetMetadataDeltaRequest { base_snapshot_id, target_snapshot_id, starting_offset, max_results; ; secrets }
}

impl fmt::Debug for proto::volume_capability::MountVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fs_type, mount_flags, volume_mount_group } = self;
        f.debug_struct("MountVolume")
            .field("fs_type", fs_type)
            .field("volume_mount_group", volume_mount_group)
            .field("mount_flags", &Hidden(mount_flags.len()))
            .finish()
    }
}
