//! Promise 8: no printed message contains a secret or a mount flag.

use std::collections::{BTreeSet, HashMap};

use prost::Message as _;
use prost_reflect::{Cardinality, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use super::descriptors;
use crate::csi::proto;

const MARK: &str = "marked-4711";

fn sensitive(field: &FieldDescriptor) -> bool {
    let secret =
        field.options().extensions().any(|(one, value)| one.name() == "csi_secret" && value.as_bool() == Some(true));
    // Context values of a request may carry tokens (KEP-5538).
    let context = field.parent_message().name().ends_with("Request") && field.name().ends_with("_context");
    secret || context || field.name() == "mount_flags"
}

/// Whether a message can hold something sensitive, itself or inside.
fn carries(message: &MessageDescriptor) -> bool {
    message.fields().any(|field| {
        let inside = match field.kind() {
            Kind::Message(inner) if inner.package_name() == "csi.v1" && !field.is_map() => carries(&inner),
            _ => false,
        };
        inside || sensitive(&field)
    })
}

/// A message with every field set; sensitive fields carry the mark.
fn filled(descriptor: &MessageDescriptor) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        let text = if sensitive(&field) { MARK } else { "plain" };
        let value = match field.kind() {
            _ if field.is_map() => {
                // Keys of a context are shown, keys of secrets are not.
                let key = if field.name().ends_with("_context") { "key" } else { text };
                Value::Map(HashMap::from([(MapKey::String(key.into()), Value::String(text.into()))]))
            }
            Kind::String => Value::String(text.into()),
            Kind::Message(inner) => Value::Message(filled(&inner)),
            scalar => Value::default_value(&scalar),
        };
        let list = field.cardinality() == Cardinality::Repeated && !field.is_map();
        message.set_field(&field, if list { Value::List(vec![value]) } else { value });
    }
    message
}

macro_rules! printed {
    ($($kind:ty : $name:literal),* $(,)?) => {{
        let pool = descriptors();
        let mut seen = BTreeSet::new();
        $({
            let descriptor = pool.get_message_by_name(concat!("csi.v1.", $name)).unwrap();
            let bytes = filled(&descriptor).encode_to_vec();
            assert!(bytes.windows(MARK.len()).any(|part| part == MARK.as_bytes()), "{} carries nothing", $name);
            let message = <$kind>::decode(bytes.as_slice()).unwrap();
            for text in [format!("{message:?}"), format!("{message:#?}")] {
                assert!(!text.contains(MARK), "{text}");
            }
            seen.insert($name.to_owned());
        })*
        seen
    }};
}

#[test]
fn no_message_prints_a_secret_a_token_or_a_mount_flag() {
    let printed = printed! {
        proto::CreateVolumeRequest: "CreateVolumeRequest",
        proto::DeleteVolumeRequest: "DeleteVolumeRequest",
        proto::ControllerPublishVolumeRequest: "ControllerPublishVolumeRequest",
        proto::ControllerUnpublishVolumeRequest: "ControllerUnpublishVolumeRequest",
        proto::ValidateVolumeCapabilitiesRequest: "ValidateVolumeCapabilitiesRequest",
        proto::ValidateVolumeCapabilitiesResponse: "ValidateVolumeCapabilitiesResponse",
        proto::ControllerListVolumeHealthRequest: "ControllerListVolumeHealthRequest",
        proto::ControllerGetVolumeHealthRequest: "ControllerGetVolumeHealthRequest",
        proto::ControllerModifyVolumeRequest: "ControllerModifyVolumeRequest",
        proto::GetCapacityRequest: "GetCapacityRequest",
        proto::CreateSnapshotRequest: "CreateSnapshotRequest",
        proto::DeleteSnapshotRequest: "DeleteSnapshotRequest",
        proto::ListSnapshotsRequest: "ListSnapshotsRequest",
        proto::GetSnapshotRequest: "GetSnapshotRequest",
        proto::ControllerExpandVolumeRequest: "ControllerExpandVolumeRequest",
        proto::NodeStageVolumeRequest: "NodeStageVolumeRequest",
        proto::NodePublishVolumeRequest: "NodePublishVolumeRequest",
        proto::NodeExpandVolumeRequest: "NodeExpandVolumeRequest",
        proto::NodeGetStorageHealthRequest: "NodeGetStorageHealthRequest",
        proto::NodeGetStorageHealthResponse: "NodeGetStorageHealthResponse",
        proto::CreateVolumeGroupSnapshotRequest: "CreateVolumeGroupSnapshotRequest",
        proto::DeleteVolumeGroupSnapshotRequest: "DeleteVolumeGroupSnapshotRequest",
        proto::GetVolumeGroupSnapshotRequest: "GetVolumeGroupSnapshotRequest",
        proto::GetMetadataAllocatedRequest: "GetMetadataAllocatedRequest",
        proto::GetMetadataDeltaRequest: "GetMetadataDeltaRequest",
        proto::VolumeCapability: "VolumeCapability",
        proto::volume_capability::MountVolume: "VolumeCapability.MountVolume",
        proto::validate_volume_capabilities_response::Confirmed: "ValidateVolumeCapabilitiesResponse.Confirmed",
        proto::node_get_storage_health_response::StorageBackendHealth: "NodeGetStorageHealthResponse.StorageBackendHealth",
    };
    let sensitive: BTreeSet<_> = descriptors()
        .all_messages()
        .filter(|message| message.package_name() == "csi.v1" && !message.is_map_entry() && carries(message))
        .map(|message| message.full_name().trim_start_matches("csi.v1.").to_owned())
        .collect();
    assert_eq!(printed, sensitive, "every message that can carry something is printed above");
}
