//! The volume calls. All block.

use std::collections::HashMap;

use tracing::{Span, debug, field, warn};

use crate::csi::decode::{self, CapacityOf, Unpublish};
use crate::csi::{encode, proto as pb};
use crate::home::{Changed, Created, GrantRequest, NodeExpansion, Volume};
use crate::route::Router;
use crate::types::{Failure, Kind, Named, Provisioning, Result, VolumeId, id_of_ours};

/// The result of a call for a volume, with the volume named in its error.
pub(super) fn of<T>(id: VolumeId, result: Result<T>) -> Result<T> {
    result.map_err(|error| Named::volume(id, None).in_error(error))
}

/// Adds the volume to every log line of the call.
pub(in crate::csi) fn in_span(id: &VolumeId) {
    Span::current().record("volume", field::display(id));
}

pub(super) fn create(router: &Router, request: pb::CreateVolumeRequest) -> Result<pb::CreateVolumeResponse, Failure> {
    let name = request.name.clone();
    // A later release may have accepted the request and created the volume: then the CO must not forget it.
    let asked = decode::create_volume(request).map_err(|error| router.refused_volume(&name, error))?;
    Span::current().record("name", &asked.request.name);
    let created = router.create_volume(&asked.request, &asked.requirement)?;
    let (Created::New(volume) | Created::Existing(volume)) = &created;
    in_span(&volume.id);
    if let Created::New(volume) = &created {
        debug!(size = %volume.size, home = %volume.home, "volume created");
        if asked.discards && volume.provisioning == Provisioning::Thick {
            warn!(
                "mountOptions of the StorageClass include discard, which has no effect: the volume is thick and \
                 keeps its blocks; remove discard or set provisioning: thin"
            );
        }
    }
    let volume = created.into_inner();
    Ok(pb::CreateVolumeResponse { volume: Some(encode::volume(&volume, &router.topology_of(&volume), asked.source)) })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
pub(super) fn delete(router: &Router, request: pb::DeleteVolumeRequest) -> Result<pb::DeleteVolumeResponse> {
    // Not a handle of this driver: such a volume never existed here, so it is already deleted.
    if let Some(id) = id_of_ours(decode::required("volume_id", &request.volume_id)?)? {
        in_span(&id);
        if of(id, router.delete_volume(&id))? == Changed::Yes {
            debug!("volume deleted");
        }
    }
    Ok(pb::DeleteVolumeResponse {})
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
pub(super) fn publish(
    router: &Router,
    request: pb::ControllerPublishVolumeRequest,
) -> Result<pb::ControllerPublishVolumeResponse> {
    let asked = decode::publish(&request)?;
    in_span(&asked.volume);
    Span::current().record("node", asked.node.as_str());
    asked.asked.checked()?;
    let (mode, access) = (asked.asked.mode, asked.asked.access);
    let grant = GrantRequest { node: asked.node, mode, access, read_only: asked.read_only };
    let granted = of(asked.volume, router.grant(&asked.volume, &grant))?;
    if granted.changed == Changed::Yes {
        debug!(epoch = granted.epoch, "volume attached");
    }
    let publish_context =
        HashMap::from([("home".to_owned(), granted.home.to_string()), ("epoch".to_owned(), granted.epoch.to_string())]);
    Ok(pb::ControllerPublishVolumeResponse { publish_context })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
pub(super) fn unpublish(
    router: &Router,
    request: pb::ControllerUnpublishVolumeRequest,
) -> Result<pb::ControllerUnpublishVolumeResponse> {
    let (id, node) = match decode::unpublish(&request)? {
        Unpublish::NotOurs => return Ok(pb::ControllerUnpublishVolumeResponse {}),
        Unpublish::Everywhere(id) => (id, None),
        Unpublish::From(id, node) => (id, Some(node)),
    };
    in_span(&id);
    if let Some(node) = &node {
        Span::current().record("node", node.as_str());
    }
    match of(id, router.revoke(&id, node.as_ref())) {
        Ok(Changed::Yes) => debug!("volume detached"),
        Ok(Changed::No) => {}
        // A deleted volume is attached nowhere (spec, ControllerUnpublishVolume).
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(pb::ControllerUnpublishVolumeResponse {})
}

pub(super) fn validate(
    router: &Router,
    request: pb::ValidateVolumeCapabilitiesRequest,
) -> Result<pb::ValidateVolumeCapabilitiesResponse> {
    let asked = decode::validate(&request)?;
    in_span(&asked.volume);
    let volume = of(asked.volume, router.volume(&asked.volume))?;
    let verdict = asked.verdict.and_then(|all| all.iter().try_for_each(|one| confirmed(&volume, one)));
    Ok(match verdict {
        Ok(()) => pb::ValidateVolumeCapabilitiesResponse {
            confirmed: Some(pb::validate_volume_capabilities_response::Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: HashMap::new(),
            }),
            message: String::new(),
        },
        Err(error) => pb::ValidateVolumeCapabilitiesResponse { confirmed: None, message: error.chain() },
    })
}

/// Whether the volume was created for the requested capability.
fn confirmed(volume: &Volume, asked: &decode::RequestedCapability) -> Result<()> {
    asked.checked()?;
    volume.mode_of(asked.mode).map(drop)
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
pub(super) fn list(router: &Router, request: pb::ListVolumesRequest) -> Result<pb::ListVolumesResponse> {
    use pb::list_volumes_response::{Entry, VolumeStatus};
    let asked = decode::list_volumes(&request)?;
    let page = router.volumes(asked.after, asked.limit)?;
    let entry = |volume: &Volume| Entry {
        volume: Some(encode::volume(volume, &router.topology_of(volume), None)),
        status: Some(VolumeStatus { published_node_ids: encode::published(volume) }),
    };
    let entries = page.entries.iter().map(entry).collect();
    Ok(pb::ListVolumesResponse { entries, next_token: page.next.map_or_else(String::new, |id| id.to_string()) })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
pub(super) fn get(router: &Router, request: pb::ControllerGetVolumeRequest) -> Result<pb::ControllerGetVolumeResponse> {
    use pb::controller_get_volume_response::VolumeStatus;
    let id = decode::required("volume_id", &request.volume_id)?.parse()?;
    in_span(&id);
    let volume = of(id, router.volume(&id))?;
    Ok(pb::ControllerGetVolumeResponse {
        volume: Some(encode::volume(&volume, &router.topology_of(&volume), None)),
        status: Some(VolumeStatus { published_node_ids: encode::published(&volume) }),
    })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
pub(super) fn capacity(router: &Router, request: pb::GetCapacityRequest) -> Result<pb::GetCapacityResponse> {
    let CapacityOf::Query(query, topology) = decode::capacity(&request)? else {
        return Ok(pb::GetCapacityResponse::default());
    };
    let capacity = router.capacity(&query, topology.as_ref())?;
    Ok(pb::GetCapacityResponse {
        available_capacity: capacity.available.to_i64(),
        maximum_volume_size: Some(capacity.largest.to_i64()),
        minimum_volume_size: Some(capacity.smallest.to_i64()),
    })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
pub(super) fn expand(
    router: &Router,
    request: pb::ControllerExpandVolumeRequest,
) -> Result<pb::ControllerExpandVolumeResponse> {
    let asked = decode::expand(&request)?;
    in_span(&asked.volume);
    let expanded = of(asked.volume, router.expand(&asked.volume, &asked.range))?;
    if expanded.changed == Changed::Yes {
        debug!(size = %expanded.size, "volume expanded");
    }
    Ok(pb::ControllerExpandVolumeResponse {
        capacity_bytes: expanded.size.to_i64(),
        node_expansion_required: expanded.node_expansion == NodeExpansion::Needed,
    })
}
