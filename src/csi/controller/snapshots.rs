//! The snapshot calls. All block.

use tracing::{Span, debug, field};

use crate::csi::decode::{self, ListSnapshots};
use crate::csi::{encode, proto as pb};
use crate::home::{Changed, Created, Page, Snapshot, SnapshotFilter};
use crate::route::Router;
use crate::types::{Failure, Kind, Named, Result, SnapshotId, VolumeId, id_of_ours};

/// The result of a call for a snapshot, with the snapshot named in its error.
fn of<T>(id: SnapshotId, result: Result<T>) -> Result<T> {
    result.map_err(|error| Named::snapshot(id).in_error(error))
}

fn in_span(id: &SnapshotId) {
    Span::current().record("snapshot", field::display(id));
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
pub(super) fn create(
    router: &Router,
    request: pb::CreateSnapshotRequest,
) -> Result<pb::CreateSnapshotResponse, Failure> {
    let asked = decode::create_snapshot(&request).map_err(|error| router.refused_snapshot(&request.name, error))?;
    Span::current().record("name", &asked.name).record("volume", field::display(&asked.source));
    let created = router.create_snapshot(&asked)?;
    let (Created::New(snapshot) | Created::Existing(snapshot)) = &created;
    in_span(&snapshot.id);
    if let Created::New(snapshot) = &created {
        debug!(size = %snapshot.size, home = %snapshot.home, "snapshot created");
    }
    Ok(pb::CreateSnapshotResponse { snapshot: Some(encode::snapshot(&created.into_inner())) })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
pub(super) fn delete(router: &Router, request: pb::DeleteSnapshotRequest) -> Result<pb::DeleteSnapshotResponse> {
    // Not a handle of this driver: such a snapshot never existed here, so it is already deleted.
    if let Some(id) = id_of_ours(decode::required("snapshot_id", &request.snapshot_id)?)? {
        in_span(&id);
        if of(id, router.delete_snapshot(&id))? == Changed::Yes {
            debug!("snapshot deleted");
        }
    }
    Ok(pb::DeleteSnapshotResponse {})
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
pub(super) fn get(router: &Router, request: pb::GetSnapshotRequest) -> Result<pb::GetSnapshotResponse> {
    let id = decode::required("snapshot_id", &request.snapshot_id)?.parse()?;
    in_span(&id);
    Ok(pb::GetSnapshotResponse { snapshot: Some(encode::snapshot(&of(id, router.snapshot(&id))?)) })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
pub(super) fn list(router: &Router, request: pb::ListSnapshotsRequest) -> Result<pb::ListSnapshotsResponse> {
    use pb::list_snapshots_response::Entry;
    let page = match decode::list_snapshots(&request)? {
        ListSnapshots::NotOurs => Page { entries: Vec::new(), next: None },
        ListSnapshots::One(id, source) => Page { entries: one(router, &id, source)?, next: None },
        ListSnapshots::Page(asked, source) => router.snapshots(&SnapshotFilter { source }, asked.after, asked.limit)?,
    };
    let entries = page.entries.iter().map(|one| Entry { snapshot: Some(encode::snapshot(one)) }).collect();
    Ok(pb::ListSnapshotsResponse { entries, next_token: page.next.map_or_else(String::new, |id| id.to_string()) })
}

/// One snapshot as a list: empty when it does not exist or has another source.
fn one(router: &Router, id: &SnapshotId, source: Option<VolumeId>) -> Result<Vec<Snapshot>> {
    match of(*id, router.snapshot(id)) {
        Ok(snapshot) if source.is_none_or(|source| snapshot.source == source) => Ok(vec![snapshot]),
        Ok(_) => Ok(Vec::new()),
        Err(error) if error.kind() == Kind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
