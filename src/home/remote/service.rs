//! [`HomeService`]: the server of a home node for other nodes and controllers. Each call runs on its own thread and
//! continues when its caller is gone.

use std::fmt;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::concern::Concern;
use super::proto::home_server::{Home as HomeRpcs, HomeServer};
use super::proto::{self as pb};
use super::{decode, door, encode};
use crate::home::{Home, SnapshotFilter};
use crate::telemetry::HomeMetrics;
use crate::tls::{Peer, Role, admit};
use crate::types::{Error, Failure, Kind, NodeId, ObjectUuid, Result, VolumeId};
use crate::wire::{self, Bounds, MostArriving, Turns, WorkerPool};

/// Concurrent calls of all callers.
const MOST_WORKS: usize = 256;
/// Concurrent calls of one node, whether or not it still waits for them.
const MOST_OF_NODE: usize = 16;
/// The largest request of a controller, in bytes.
const MOST_REQUEST: usize = 4 << 20;
/// Bytes of requests that are being received.
const MOST_ARRIVING: MostArriving = MostArriving { all: 64 << 20, of_one: 32 << 20 };

/// The gRPC service of one home node.
pub struct HomeService {
    home: Arc<dyn Home>,
    works: WorkerPool,
    of_nodes: Turns,
    metrics: HomeMetrics,
}

/// A call that a node makes for itself.
trait OfNode {
    /// The node that it is for.
    fn node(&self) -> &str;

    /// The volume.
    fn id(&self) -> &str;
}

macro_rules! of_node {
    ($($request:ident),*) => {
        $(impl OfNode for pb::$request {
            fn node(&self) -> &str {
                &self.node
            }

            fn id(&self) -> &str {
                &self.id
            }
        })*
    };
}

of_node!(OpenRequest, CloseRequest, BeginFormatRequest, EndFormatRequest, UseRawRequest);

impl fmt::Debug for HomeService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HomeService").field("node", self.home.node()).finish_non_exhaustive()
    }
}

type Answer<T> = std::result::Result<Response<T>, Status>;

impl HomeService {
    /// Serves this home: all calls for controllers, and for a node the calls for itself.
    #[must_use]
    pub fn new(home: Arc<dyn Home>) -> Self {
        Self { home, works: WorkerPool::new(MOST_WORKS), of_nodes: Turns::default(), metrics: HomeMetrics::default() }
    }

    /// The same, with metrics for its rejected calls.
    #[must_use]
    pub fn counted(self, metrics: HomeMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// The limits of the port on which it is served.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        Bounds::new(door::HomeDoor(self.metrics.clone()), MOST_ARRIVING)
    }

    /// The running calls, to wait for at shutdown.
    #[must_use]
    pub fn works(&self) -> WorkerPool {
        self.works.clone()
    }

    /// As a service of a server.
    #[must_use]
    pub fn into_server(self) -> HomeServer<Self> {
        HomeServer::new(self).max_decoding_message_size(MOST_REQUEST)
    }

    /// A call that only controllers may make.
    async fn all<Q, R, F>(&self, what: &'static str, request: Request<Q>, work: F) -> Answer<R>
    where
        Q: Concern + Send + 'static,
        R: Send + 'static,
        F: FnOnce(&dyn Home, Q) -> Result<R, Failure> + Send + 'static,
    {
        admit(&self.metrics, what, Peer::of(request.extensions()), &[Role::Controller])?;
        self.run(what, request.into_inner(), work).await
    }

    /// A call that a node makes for itself, for a volume that is attached to it. The attachment is checked before
    /// anything is locked or changed.
    async fn own<Q, R, F>(&self, what: &'static str, request: Request<Q>, work: F) -> Answer<R>
    where
        Q: OfNode + Concern + Send + 'static,
        R: Send + 'static,
        F: FnOnce(&dyn Home, VolumeId, NodeId, Q) -> Result<R> + Send + 'static,
    {
        let node = decode::node(request.get_ref().node()).map_err(|error| wire::status(&error.into()))?;
        let peer = Peer::of(request.extensions());
        let is_node = peer.as_ref().is_ok_and(|peer| !peer.is_controller());
        admit(&self.metrics, what, peer, &[Role::Controller, Role::Node(node.clone())])?;
        let turn = if is_node {
            let turn = self.of_nodes.take(&node.as_str().into(), MOST_OF_NODE);
            Some(turn.ok_or_else(|| wire::busy(what, MOST_OF_NODE))?)
        } else {
            None
        };
        self.run(what, request.into_inner(), move |home, message| {
            let _until_it_ends = turn;
            let id = volume_id(message.id())?;
            if is_node {
                attached(home, &id, &node)?;
            }
            Ok(work(home, id, node, message)?)
        })
        .await
    }

    async fn run<Q, R, F>(&self, what: &'static str, message: Q, work: F) -> Answer<R>
    where
        Q: Concern + Send + 'static,
        R: Send + 'static,
        F: FnOnce(&dyn Home, Q) -> Result<R, Failure> + Send + 'static,
    {
        let (home, share) = (Arc::clone(&self.home), message.share());
        wire::run(&self.works, what, share, move || work(&*home, message)).await
    }
}

/// The answer to a CreateVolume with values that this release rejects; see [`Error::unless_made`].
fn refused(home: &dyn Home, name: &str, error: Error) -> Failure {
    match error.kind() {
        Kind::InvalidArgument | Kind::Unsupported => {
            error.unless_made(&format!("volume {name:?}"), || home.find_volume(ObjectUuid::of_volume(name)))
        }
        _ => Failure::Clean(error),
    }
}

/// Checks that a volume is attached to a node.
fn attached(home: &dyn Home, id: &VolumeId, node: &NodeId) -> Result<()> {
    let is_attached = match home.volume(id) {
        Ok(volume) => volume.published.contains(node),
        Err(error) if error.kind() == Kind::NotFound => false,
        Err(error) => return Err(error),
    };
    if is_attached {
        return Ok(());
    }
    Err(Error::new(
        Kind::Precondition,
        format!("volume {id} is not attached to node {node}: attach it there (ControllerPublishVolume) first"),
    ))
}

fn volume_id(id: &str) -> Result<VolumeId> {
    decode::text(id)
}

#[tonic::async_trait]
impl HomeRpcs for HomeService {
    async fn create_volume(&self, request: Request<pb::CreateVolumeRequest>) -> Answer<pb::CreateVolumeReply> {
        self.all("CreateVolume", request, |home, message| {
            let name = message.name.clone();
            let request = decode::create_volume(message).map_err(|error| refused(home, &name, error))?;
            let (changed, volume) = encode::created(home.create_volume(&request)?);
            Ok(pb::CreateVolumeReply { volume: Some(encode::volume(volume)), changed: changed.into() })
        })
        .await
    }

    async fn delete_volume(&self, request: Request<pb::DeleteVolumeRequest>) -> Answer<pb::ChangedReply> {
        self.all("DeleteVolume", request, |home, message| {
            let changed = home.delete_volume(&volume_id(&message.id)?)?;
            Ok(pb::ChangedReply { changed: encode::changed(changed).into() })
        })
        .await
    }

    async fn get_volume(&self, request: Request<pb::GetVolumeRequest>) -> Answer<pb::Volume> {
        self.all("GetVolume", request, |home, message| Ok(encode::volume(home.volume(&volume_id(&message.id)?)?))).await
    }

    async fn find_volume(&self, request: Request<pb::FindVolumeRequest>) -> Answer<pb::FindVolumeReply> {
        self.all("FindVolume", request, |home, message| {
            let ids = home.find_volume(decode::text(&message.uuid)?)?;
            Ok(pb::FindVolumeReply { ids: ids.iter().map(ToString::to_string).collect() })
        })
        .await
    }

    async fn list_volumes(&self, request: Request<pb::ListVolumesRequest>) -> Answer<pb::ListVolumesReply> {
        self.all("ListVolumes", request, |home, message| {
            let page = home.volumes(decode::optional(&message.after)?, limit(message.limit))?;
            Ok(pb::ListVolumesReply {
                volumes: page.entries.into_iter().map(encode::volume).collect(),
                next: encode::after_volume(page.next),
            })
        })
        .await
    }

    async fn grant(&self, request: Request<pb::GrantRequest>) -> Answer<pb::GrantReply> {
        self.all("Grant", request, |home, message| {
            Ok(encode::granted(&home.grant_as(
                &volume_id(&message.id)?,
                &decode::grant(&message)?,
                message.generation,
            )?))
        })
        .await
    }

    async fn revoke(&self, request: Request<pb::RevokeRequest>) -> Answer<pb::ChangedReply> {
        self.all("Revoke", request, |home, message| {
            let node = decode::optional::<NodeId>(&message.node)?;
            let changed = home.revoke_as(&volume_id(&message.id)?, node.as_ref(), message.generation)?;
            Ok(pb::ChangedReply { changed: encode::changed(changed).into() })
        })
        .await
    }

    async fn open(&self, request: Request<pb::OpenRequest>) -> Answer<pb::OpenReply> {
        self.own("Open", request, |home, id, node, message| {
            Ok(encode::opened(&home.open_for(&id, &node, &decode::client(&message)?)?))
        })
        .await
    }

    async fn close(&self, request: Request<pb::CloseRequest>) -> Answer<pb::CloseReply> {
        self.own("Close", request, |home, id, node, _message| home.close(&id, &node).map(|()| pb::CloseReply {})).await
    }

    async fn begin_format(&self, request: Request<pb::BeginFormatRequest>) -> Answer<pb::BeginFormatReply> {
        self.own("BeginFormat", request, |home, id, node, message| {
            let formatting = home.begin_format(&id, &node, decode::fs_type(message.fs)?)?;
            Ok(pb::BeginFormatReply {
                at: Some(encode::coordinates(&formatting.at)),
                planned_uuid: formatting.planned_uuid.to_string(),
            })
        })
        .await
    }

    async fn end_format(&self, request: Request<pb::EndFormatRequest>) -> Answer<pb::EndFormatReply> {
        self.own("EndFormat", request, |home, id, node, message| {
            home.end_format(&id, &node, decode::fs_uuid(&message.fs_uuid)?).map(|()| pb::EndFormatReply {})
        })
        .await
    }

    async fn use_raw(&self, request: Request<pb::UseRawRequest>) -> Answer<pb::UseRawReply> {
        self.own("UseRaw", request, |home, id, node, _message| home.use_raw(&id, &node).map(|()| pb::UseRawReply {}))
            .await
    }

    async fn create_snapshot(&self, request: Request<pb::CreateSnapshotRequest>) -> Answer<pb::CreateSnapshotReply> {
        self.all("CreateSnapshot", request, |home, message| {
            let (changed, snapshot) = encode::created(home.create_snapshot(&decode::create_snapshot(message)?)?);
            Ok(pb::CreateSnapshotReply { snapshot: Some(encode::snapshot(snapshot)), changed: changed.into() })
        })
        .await
    }

    async fn delete_snapshot(&self, request: Request<pb::DeleteSnapshotRequest>) -> Answer<pb::ChangedReply> {
        self.all("DeleteSnapshot", request, |home, message| {
            let changed = home.delete_snapshot(&decode::text(&message.id)?)?;
            Ok(pb::ChangedReply { changed: encode::changed(changed).into() })
        })
        .await
    }

    async fn get_snapshot(&self, request: Request<pb::GetSnapshotRequest>) -> Answer<pb::Snapshot> {
        self.all("GetSnapshot", request, |home, message| {
            Ok(encode::snapshot(home.snapshot(&decode::text(&message.id)?)?))
        })
        .await
    }

    async fn find_snapshot(&self, request: Request<pb::FindSnapshotRequest>) -> Answer<pb::FindSnapshotReply> {
        self.all("FindSnapshot", request, |home, message| {
            let ids = home.find_snapshot(decode::text(&message.uuid)?)?;
            Ok(pb::FindSnapshotReply { ids: ids.iter().map(ToString::to_string).collect() })
        })
        .await
    }

    async fn list_snapshots(&self, request: Request<pb::ListSnapshotsRequest>) -> Answer<pb::ListSnapshotsReply> {
        self.all("ListSnapshots", request, |home, message| {
            let filter = SnapshotFilter { source: decode::optional(&message.source)? };
            let page = home.snapshots(&filter, decode::optional(&message.after)?, limit(message.limit))?;
            Ok(pb::ListSnapshotsReply {
                snapshots: page.entries.into_iter().map(encode::snapshot).collect(),
                next: encode::after_snapshot(page.next),
            })
        })
        .await
    }

    async fn expand(&self, request: Request<pb::ExpandRequest>) -> Answer<pb::ExpandReply> {
        self.all("Expand", request, |home, message| {
            let expanded = home.expand(&volume_id(&message.id)?, &decode::range(message.range))?;
            Ok(pb::ExpandReply {
                size: expanded.size.get(),
                node_expansion: encode::node_expansion(expanded.node_expansion).into(),
                changed: encode::changed(expanded.changed).into(),
            })
        })
        .await
    }

    async fn get_capacity(&self, request: Request<pb::GetCapacityRequest>) -> Answer<pb::GetCapacityReply> {
        self.all("GetCapacity", request, |home, message| {
            let capacity = home.capacity(&decode::capacity_query(message)?)?;
            Ok(pb::GetCapacityReply {
                available: capacity.available.get(),
                largest: capacity.largest.get(),
                smallest: capacity.smallest.get(),
            })
        })
        .await
    }

    async fn list_extents(&self, request: Request<pb::ListExtentsRequest>) -> Answer<pb::ListExtentsReply> {
        self.all("ListExtents", request, |home, _message| {
            let extents = home.extents()?.into_iter().map(|(id, extents)| (id.to_string(), extents)).collect();
            Ok(pb::ListExtentsReply { extents })
        })
        .await
    }

    async fn report(&self, request: Request<pb::ReportRequest>) -> Answer<pb::ReportReply> {
        self.all("Report", request, |home, _message| {
            Ok(pb::ReportReply { pools: home.report()?.iter().map(encode::pool).collect() })
        })
        .await
    }

    async fn list_exports(&self, request: Request<pb::ListExportsRequest>) -> Answer<pb::ListExportsReply> {
        const WHAT: &str = "ListExports";
        let node = decode::node(&request.get_ref().node).map_err(|error| wire::status(&error.into()))?;
        let peer = Peer::of(request.extensions());
        admit(&self.metrics, WHAT, peer, &[Role::Controller, Role::Node(node.clone())])?;
        let turn = self.of_nodes.take(&node.as_str().into(), MOST_OF_NODE);
        let turn = turn.ok_or_else(|| wire::busy(WHAT, MOST_OF_NODE))?;
        self.run(WHAT, request.into_inner(), move |home, message| {
            let _until_it_ends = turn;
            let pool = decode::text(&message.pool)?;
            let subsystems = home.exports(&node, pool)?.iter().map(ToString::to_string).collect();
            Ok(pb::ListExportsReply { subsystems })
        })
        .await
    }

    async fn readmit(&self, request: Request<pb::ReadmitRequest>) -> Answer<pb::ChangedReply> {
        self.all("Readmit", request, |home, message| {
            let changed = home.readmit(decode::text(&message.pool)?)?;
            Ok(pb::ChangedReply { changed: encode::changed(changed).into() })
        })
        .await
    }

    async fn examine(&self, request: Request<pb::ExamineRequest>) -> Answer<pb::ExamineReply> {
        self.all("Examine", request, |home, _message| {
            Ok(pb::ExamineReply { findings: home.examine()?.into_iter().map(encode::finding).collect() })
        })
        .await
    }
}

fn limit(said: u64) -> usize {
    usize::try_from(said).unwrap_or(usize::MAX)
}
