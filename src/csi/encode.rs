//! Our types as CSI answers.

use std::collections::HashMap;

use super::proto;
use crate::home::{CopyState, Snapshot, Source, Volume};
use crate::os::Timestamp;
use crate::route::Segments;

/// A volume that can be used in `segments`. `source` is the source as the request named it; without a request, the source
/// is named by its handle.
pub(super) fn volume(
    volume: &Volume,
    segments: &Segments,
    source: Option<proto::VolumeContentSource>,
) -> proto::Volume {
    proto::Volume {
        capacity_bytes: volume.size.to_i64(),
        volume_id: volume.id.born_on(&volume.birth_home).to_string(),
        volume_context: HashMap::new(),
        content_source: source.or_else(|| volume.source.map(content_source)),
        accessible_topology: vec![topology(segments)],
    }
}

fn content_source(source: Source) -> proto::VolumeContentSource {
    use proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
    let named = match source {
        Source::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
        Source::Volume(id) => Type::Volume(VolumeSource { volume_id: id.to_string() }),
    };
    proto::VolumeContentSource { r#type: Some(named) }
}

/// A topology.
pub(super) fn topology(segments: &Segments) -> proto::Topology {
    proto::Topology { segments: segments.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect() }
}

/// The nodes a volume is attached to.
pub(super) fn published(volume: &Volume) -> Vec<String> {
    volume.published.iter().map(ToString::to_string).collect()
}

/// A snapshot.
pub(super) fn snapshot(snapshot: &Snapshot) -> proto::Snapshot {
    proto::Snapshot {
        size_bytes: snapshot.size.to_i64(),
        snapshot_id: snapshot.id.born_on(&snapshot.birth_home).to_string(),
        source_volume_id: snapshot.source.born_on(&snapshot.source_birth_home).to_string(),
        creation_time: Some(timestamp(snapshot.cut)),
        ready_to_use: snapshot.copy == CopyState::Ready,
        group_snapshot_id: String::new(),
        accessible_topology: Vec::new(),
    }
}

fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.seconds(), nanos: at.nanos() }
}
