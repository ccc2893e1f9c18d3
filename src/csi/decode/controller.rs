//! The requests of the Controller service.

use std::collections::HashMap;

use super::{
    DEFAULT_FS, MAX_NODE_ID, RequestedCapability, bounded, invalid, missing, name, range, required, some_range,
    supported,
};
use crate::csi::proto;
use crate::fs::MkfsOptions;
use crate::home::{self, CapacityQuery, ReadOnly, Source};
use crate::route::{Requirement, Segments};
use crate::types::{
    CapacityRange, Error, Kind, NodeId, Provisioning, Result, SnapshotId, VolumeId, VolumeMode, VolumeParameters,
    id_of_ours,
};

/// The most entries of a page: a list without a limit still fits a message of 4 MiB.
const MAX_PAGE: usize = 4000;
/// Keys the external-snapshotter adds with --extra-create-metadata.
const SNAPSHOT_METADATA: [&str; 3] = [
    "csi.storage.k8s.io/volumesnapshot/name",
    "csi.storage.k8s.io/volumesnapshot/namespace",
    "csi.storage.k8s.io/volumesnapshotcontent/name",
];

/// CreateVolume.
#[derive(Debug)]
pub(in crate::csi) struct NewVolume {
    /// The request to the home node.
    pub(in crate::csi) request: home::CreateVolume,
    /// Where the volume may be.
    pub(in crate::csi) requirement: Requirement,
    /// The source as the request names it, for the answer.
    pub(in crate::csi) source: Option<proto::VolumeContentSource>,
    /// Whether its filesystem is to be mounted with `discard`, which a thick volume ignores.
    pub(in crate::csi) discards: bool,
}

/// # Errors
/// `InvalidArgument`; `NotFound` for a source that is no handle of this driver.
pub(in crate::csi) fn create_volume(request: proto::CreateVolumeRequest) -> Result<NewVolume> {
    let volume_name = name("name", &request.name)?;
    if request.volume_capabilities.is_empty() {
        return Err(missing("volume_capabilities"));
    }
    let asked = request.volume_capabilities.iter().map(|one| supported(Some(one))).collect::<Result<Vec<_>>>()?;
    let range = range(request.capacity_range.as_ref())?;
    let parameters = parameters(&request.parameters)?;
    if !request.mutable_parameters.is_empty() {
        return Err(invalid(
            "mutable_parameters are not supported: this driver has no VolumeAttributesClass parameters",
        ));
    }
    let own = parameters.fs_type.unwrap_or(DEFAULT_FS);
    let mut capabilities = Vec::new();
    let mut only = parameters.fs_type;
    let mut discards = false;
    for one in &asked {
        let (capability, options) = one.resolved(own)?;
        discards |= options.discards();
        if let VolumeMode::Mount(fs) = capability.mode {
            if *only.get_or_insert(fs) != fs {
                return Err(invalid(
                    "volume_capabilities and parameters name two filesystems; a volume has only one; set one fstype \
                     in the StorageClass",
                ));
            }
            MkfsOptions::parse(fs, &parameters.mkfs_options)?;
        }
        if !capabilities.contains(&capability) {
            capabilities.push(capability);
        }
    }
    if discards && parameters.provisioning == Some(Provisioning::Thick) {
        return Err(invalid(
            "the StorageClass sets provisioning: thick and mountOptions: [discard], which exclude each other: a \
             thick volume keeps its blocks; remove discard, or set provisioning: thin",
        ));
    }
    let requirement = requirement(request.accessibility_requirements.as_ref())?;
    let content = request.volume_content_source.as_ref().map(source).transpose()?;
    let request_source = request.volume_content_source;
    Ok(NewVolume {
        request: home::CreateVolume { name: volume_name, range, capabilities, parameters, source: content },
        requirement,
        source: request_source,
        discards,
    })
}

fn parameters(raw: &HashMap<String, String>) -> Result<VolumeParameters> {
    bounded("parameters", raw)?;
    VolumeParameters::parse(raw)
}

fn source(value: &proto::VolumeContentSource) -> Result<Source> {
    use proto::volume_content_source::Type;
    match &value.r#type {
        None => Err(missing("volume_content_source.type")),
        Some(Type::Snapshot(snapshot)) => {
            required("volume_content_source.snapshot.snapshot_id", &snapshot.snapshot_id)?.parse().map(Source::Snapshot)
        }
        Some(Type::Volume(volume)) => {
            required("volume_content_source.volume.volume_id", &volume.volume_id)?.parse().map(Source::Volume)
        }
    }
}

fn segments(topology: &proto::Topology) -> Result<Segments> {
    bounded("topology segments", &topology.segments)?;
    if topology.segments.is_empty() {
        return Err(invalid("a topology of the request has no segments"));
    }
    Ok(Segments::new(topology.segments.clone()))
}

fn requirement(value: Option<&proto::TopologyRequirement>) -> Result<Requirement> {
    let Some(value) = value else { return Ok(Requirement::default()) };
    let all = |list: &[proto::Topology]| list.iter().map(segments).collect::<Result<Vec<_>>>();
    Ok(Requirement { requisite: all(&value.requisite)?, preferred: all(&value.preferred)? })
}

/// ControllerPublishVolume.
#[derive(Debug)]
pub(in crate::csi) struct Publish {
    /// The volume.
    pub(in crate::csi) volume: VolumeId,
    /// The node.
    pub(in crate::csi) node: NodeId,
    /// The capability.
    pub(in crate::csi) asked: RequestedCapability,
    /// Whether it is used read-only.
    pub(in crate::csi) read_only: ReadOnly,
}

/// # Errors
/// `InvalidArgument`; `NotFound` for an id that is no handle of this driver or a node that cannot exist.
pub(in crate::csi) fn publish(request: &proto::ControllerPublishVolumeRequest) -> Result<Publish> {
    let volume = required("volume_id", &request.volume_id)?;
    let node = node_id(required("node_id", &request.node_id)?)?;
    let asked = supported(request.volume_capability.as_ref())?;
    bounded("volume_context", &request.volume_context)?;
    let read_only = if request.readonly { ReadOnly::Yes } else { ReadOnly::No };
    let volume = volume.parse()?;
    let node = node.ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            format!("node {:?} does not exist: it is not a valid node id of this driver", request.node_id),
        )
    })?;
    Ok(Publish { volume, node, asked, read_only })
}

/// A node's id; `None` for a text that cannot be one.
fn node_id(text: &str) -> Result<Option<NodeId>> {
    if text.len() > MAX_NODE_ID {
        return Err(invalid(format!("node_id has {} bytes; at most {MAX_NODE_ID} are allowed", text.len())));
    }
    Ok(text.parse().ok())
}

/// ControllerUnpublishVolume.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::csi) enum Unpublish {
    /// An id or node that cannot be ours: nothing is attached.
    NotOurs,
    /// From all nodes.
    Everywhere(VolumeId),
    /// From one node.
    From(VolumeId, NodeId),
}

/// # Errors
/// `InvalidArgument`; `Unavailable` for an id of a later release.
pub(in crate::csi) fn unpublish(request: &proto::ControllerUnpublishVolumeRequest) -> Result<Unpublish> {
    let volume = required("volume_id", &request.volume_id)?;
    let node = node_id(&request.node_id)?;
    Ok(match (id_of_ours(volume)?, node) {
        (Some(volume), _) if request.node_id.is_empty() => Unpublish::Everywhere(volume),
        (Some(volume), Some(node)) => Unpublish::From(volume, node),
        (None, _) | (Some(_), None) => Unpublish::NotOurs,
    })
}

/// ValidateVolumeCapabilities.
#[derive(Debug)]
pub(in crate::csi) struct Validate {
    /// The volume.
    pub(in crate::csi) volume: VolumeId,
    /// The capabilities to check, or why they can never be served.
    pub(in crate::csi) verdict: Result<Vec<RequestedCapability>>,
}

/// # Errors
/// `InvalidArgument` for a malformed request; a well-formed one that cannot be served is in the verdict.
pub(in crate::csi) fn validate(request: &proto::ValidateVolumeCapabilitiesRequest) -> Result<Validate> {
    let volume = required("volume_id", &request.volume_id)?;
    if request.volume_capabilities.is_empty() {
        return Err(missing("volume_capabilities"));
    }
    bounded("volume_context", &request.volume_context)?;
    bounded("parameters", &request.parameters)?;
    let mut verdict = Ok(Vec::new());
    for one in &request.volume_capabilities {
        match (super::asked(Some(one)), &mut verdict) {
            (Ok(asked), Ok(all)) => all.push(asked),
            (Err(error), Ok(_)) if error.kind() == Kind::Unsupported => verdict = Err(error),
            (Err(error), _) if error.kind() != Kind::Unsupported => return Err(error),
            (Ok(_) | Err(_), _) => {}
        }
    }
    if verdict.is_ok() && !request.mutable_parameters.is_empty() {
        verdict = Err(invalid("mutable_parameters are not supported"));
    }
    if verdict.is_ok()
        && let Err(error) = VolumeParameters::parse(&request.parameters)
    {
        verdict = Err(error);
    }
    Ok(Validate { volume: volume.parse()?, verdict })
}

/// One page of a list.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::csi) struct ListOf<K> {
    /// The last key of the page before.
    pub(in crate::csi) after: Option<K>,
    /// The most entries; never zero.
    pub(in crate::csi) limit: usize,
}

fn list<K: std::str::FromStr>(max_entries: i32, token: &str) -> Result<ListOf<K>> {
    let limit = match usize::try_from(max_entries) {
        Ok(0) => MAX_PAGE,
        Ok(limit) => limit.min(MAX_PAGE),
        Err(_) => return Err(invalid(format!("max_entries is negative: {max_entries}"))),
    };
    let after = match token {
        "" => None,
        // `Busy` is ABORTED, CSI's answer to a token that is not valid (any more).
        token => Some(token.parse().map_err(|_| {
            Error::new(Kind::Busy, "starting_token is not a token of this list; start the list again without a token")
        })?),
    };
    Ok(ListOf { after, limit })
}

/// # Errors
/// `InvalidArgument`; `Busy` for a bad token.
pub(in crate::csi) fn list_volumes(request: &proto::ListVolumesRequest) -> Result<ListOf<VolumeId>> {
    list(request.max_entries, &request.starting_token)
}

/// ListSnapshots.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::csi) enum ListSnapshots {
    /// An id in the filter cannot be ours: the list is empty.
    NotOurs,
    /// The one snapshot, if it exists and has the source, if one is given.
    One(SnapshotId, Option<VolumeId>),
    /// A page of all snapshots, or of one source.
    Page(ListOf<SnapshotId>, Option<VolumeId>),
}

/// # Errors
/// `InvalidArgument`; `Busy` for a bad token; `Unavailable` for an id of a later release.
pub(in crate::csi) fn list_snapshots(request: &proto::ListSnapshotsRequest) -> Result<ListSnapshots> {
    let page = list(request.max_entries, &request.starting_token)?;
    let source = match request.source_volume_id.as_str() {
        "" => None,
        id => match id_of_ours(id)? {
            Some(source) => Some(source),
            None => return Ok(ListSnapshots::NotOurs),
        },
    };
    Ok(match request.snapshot_id.as_str() {
        "" => ListSnapshots::Page(page, source),
        id => id_of_ours(id)?.map_or(ListSnapshots::NotOurs, |id| ListSnapshots::One(id, source)),
    })
}

/// GetCapacity.
#[derive(Debug)]
pub(in crate::csi) enum CapacityOf {
    /// The requested capabilities cannot be served: the capacity for such volumes is zero.
    Nothing,
    /// The query for the home nodes, and the topology.
    Query(CapacityQuery, Option<Segments>),
}

/// # Errors
/// `InvalidArgument`.
pub(in crate::csi) fn capacity(request: &proto::GetCapacityRequest) -> Result<CapacityOf> {
    bounded("parameters", &request.parameters)?;
    // CreateVolume refuses a wrong StorageClass with an error that the claim shows. If GetCapacity refused it, every
    // node would seem to be full, and the pod's events would say so for ever.
    let parameters = VolumeParameters::readable(&request.parameters);
    let own = parameters.fs_type.unwrap_or(DEFAULT_FS);
    let mut capabilities = Vec::new();
    for one in &request.volume_capabilities {
        match super::asked(Some(one)) {
            Ok(asked) => capabilities.push(asked.resolved(own)?.0),
            Err(error) if error.kind() == Kind::Unsupported => return Ok(CapacityOf::Nothing),
            Err(error) => return Err(error),
        }
    }
    let topology = request.accessible_topology.as_ref().filter(|topology| !topology.segments.is_empty());
    let topology = topology.map(segments).transpose()?;
    Ok(CapacityOf::Query(
        CapacityQuery {
            pool: parameters.pool,
            capabilities,
            provisioning: parameters.provisioning,
            access: parameters.access,
        },
        topology,
    ))
}

/// # Errors
/// `InvalidArgument`; `NotFound` for a source that is no handle of this driver.
pub(in crate::csi) fn create_snapshot(request: &proto::CreateSnapshotRequest) -> Result<home::CreateSnapshot> {
    let name = name("name", &request.name)?;
    let source = required("source_volume_id", &request.source_volume_id)?;
    bounded("parameters", &request.parameters)?;
    if let Some(unknown) = request.parameters.keys().find(|key| !SNAPSHOT_METADATA.contains(&key.as_str())) {
        return Err(invalid(format!(
            "parameter {unknown:?} is unknown; a VolumeSnapshotClass of this driver has no parameters; remove it"
        )));
    }
    Ok(home::CreateSnapshot { name, source: source.parse()? })
}

/// ControllerExpandVolume.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::csi) struct Expand {
    /// The volume.
    pub(in crate::csi) volume: VolumeId,
    /// The new size.
    pub(in crate::csi) range: CapacityRange,
}

/// # Errors
/// `InvalidArgument`; `NotFound` for an id that is no handle of this driver.
pub(in crate::csi) fn expand(request: &proto::ControllerExpandVolumeRequest) -> Result<Expand> {
    let volume = required("volume_id", &request.volume_id)?;
    let range = some_range(request.capacity_range.as_ref())?;
    if request.volume_capability.is_some() {
        supported(request.volume_capability.as_ref())?;
    }
    Ok(Expand { volume: volume.parse()?, range })
}

#[cfg(test)]
mod tests;
