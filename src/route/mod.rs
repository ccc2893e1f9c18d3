//! The controller's side: finds the home node of each request and forwards the request to it. It contains no rules,
//! locks or state.

#[cfg(test)]
mod burst;
mod directory;
#[cfg(test)]
mod lying;
#[cfg(test)]
mod network;
mod owned;
mod placement;
mod questions;

pub use directory::{
    Answering, Connections, Dial, Directory, Entry, Heartbeat, Lost, MOST_KNOWN, Rhythm, STALLED, Seen, Silence, Told,
    Trouble, TroubleKind,
};
pub use placement::{FABRIC_KEY, NO_FABRIC, NODE_KEY, Requirement, Seat, Segments, place};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tracing::{Span, warn};

use self::questions::{ASKING, Questions};
use crate::home::{
    Capacity, CapacityQuery, Changed, CreateSnapshot, CreateVolume, Created, Expanded, Finding, GrantRequest, Granted,
    Home, Page, PoolReport, Snapshot, SnapshotFilter, Source, Volume,
};
use crate::os::{Caller, Deadline};
use crate::telemetry::{PoolFigures, VolumeExtents};
use crate::types::{
    Access, Bytes, CapacityRange, Error, Failure, Kind, NodeId, ObjectUuid, PoolId, Result, SnapshotId, VolumeId,
};

/// How long home nodes may take to list everything they have.
const LOOKING: Duration = Duration::from_secs(20);
/// The metrics name at most so many images: the most fragmented ones, which are nearest to the limit of cloning.
const MOST_EXTENTS: usize = 100;

/// All volumes and snapshots, for the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Volumes that can be used.
    pub volumes: Vec<Volume>,
    /// Snapshots, ready or not.
    pub snapshots: Vec<Snapshot>,
    /// Why some may be missing, one sentence each.
    pub unheard: Vec<String>,
}

/// Forwards calls to home nodes. All methods block.
#[derive(Debug)]
pub struct Router {
    directory: Directory,
    questions: Questions,
}

/// The generation of a volume for a request that its home node then does or rejects. The caller is looked at after it was
/// read: a request of a caller that is gone could undo what another controller did for the next one.
///
/// # Errors
/// `Busy` when the caller does not wait any more; `Unavailable`, `Busy` and `Timeout` of the home node. Others are those of
/// the request itself.
fn generation_of(home: &dyn Home, id: &VolumeId) -> Result<Option<u64>> {
    let generation = match home.volume(id) {
        Ok(volume) => volume.generation,
        Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Busy | Kind::Timeout) => return Err(error),
        Err(_) => None,
    };
    // Other operations continue when their caller goes away.
    if generation.is_none() || Caller::waits() {
        return Ok(generation);
    }
    Err(Error::new(Kind::Busy, format!("the caller no longer waits for the answer; nothing was done for volume {id}")))
}

impl Router {
    /// With this directory.
    #[must_use]
    pub fn new(directory: Directory) -> Self {
        Self { directory, questions: Questions::default() }
    }

    /// The home nodes and the other nodes it knows.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Creates a volume where the requirement, the StorageClass and the source allow it, or finds the one that an
    /// earlier attempt created.
    ///
    /// # Errors
    /// As [`Home::create_volume`]; `NoCapacity` when every allowed home node reported that it lacks the space, the pool
    /// or what the StorageClass requires of the pool; `Unsupported` when that is the only home node; `Unavailable` when one of them cannot be queried; `AlreadyExists` when the volume is on a node that the
    /// requirement excludes.
    pub fn create_volume(&self, request: &CreateVolume, requirement: &Requirement) -> Result<Created<Volume>, Failure> {
        self.directory.settled()?;
        let placed = self.placed(request, requirement);
        // The only home node that may have it checks that itself.
        let sees_itself = placed.is_ok() && self.directory.heard().len() < 2;
        let mut mute = UnansweredNodes::new();
        if !sees_itself {
            let made;
            (made, mute) = self.made_before(&request.name)?;
            if let Some(home) = made {
                return self.made_on(&*home, request, requirement);
            }
        }
        let homes = placed?;
        // Each home node checks its own volumes when it is its turn. A later one that is reachable and does not answer
        // may have the volume from an earlier attempt.
        if let Some((node, error)) = homes.iter().skip(1).find_map(|node| mute.remove_entry(node)) {
            let sentence = format!("node {node} does not answer whether it already has volume {:?}", request.name);
            return Err(Failure::Dirty(error.with_kind(Kind::Unavailable).context(sentence)));
        }
        let (mut refusals, mut silent) = (Vec::new(), None);
        for node in &homes {
            let home = match self.directory.home_on(node) {
                Ok(home) => home,
                Err(error) => {
                    silent.get_or_insert(error);
                    continue;
                }
            };
            let error = match home.create_volume(request) {
                Err(Failure::Clean(error)) if error.kind() != Kind::AlreadyExists => error,
                answer => return answer,
            };
            // It answers only for the pools it serves; an earlier attempt may have used one that it lost.
            match self.directory.unserved_on(node, request.parameters.pool.as_ref()) {
                Some(lost) => {
                    silent.get_or_insert(lost);
                }
                None if passes_on(&error, request) => {}
                None => return Err(Failure::Clean(error)),
            }
            refusals.push((node, error));
        }
        // An unreachable home node may have the volume from an earlier attempt: the CO must not forget it.
        match silent {
            Some(error) => Err(Failure::Dirty(error)),
            None => Err(Failure::Clean(refused_by_all(refusals, self.directory.seats().len()))),
        }
    }

    /// The home nodes to try for a new volume, in order.
    fn placed(&self, request: &CreateVolume, requirement: &Requirement) -> Result<Vec<NodeId>> {
        let source_home = match source_pool(request) {
            None => None,
            Some(pool) => Some(self.directory.home_of(pool)?.node().clone()),
        };
        let (seats, serving) = (self.directory.seats(), self.directory.serving());
        let how = (request.parameters.placement, request.parameters.access);
        place(requirement, &seats, how, source_home.as_ref(), serving)
    }

    /// Asks the home node that has a volume of this name whether it matches the request.
    fn made_on(
        &self,
        home: &dyn Home,
        request: &CreateVolume,
        requirement: &Requirement,
    ) -> Result<Created<Volume>, Failure> {
        let other = |what: &str| {
            let message = format!("volume {:?} exists on node {}, {what}", request.name, home.node());
            Err(Failure::Clean(Error::new(Kind::AlreadyExists, message)))
        };
        let seats = self.directory.seats();
        if !seats
            .iter()
            .any(|seat| seat.node == *home.node() && requirement.allows(&seat.segments, request.parameters.access))
        {
            return other("which this request does not allow; delete that volume, or allow the node");
        }
        if let Some(pool) = source_pool(request)
            && self.directory.home_of(pool)?.node() != home.node()
        {
            return other("with another content source than this request names; delete it, or use another name");
        }
        home.create_volume(request)
    }

    /// The home node that has a volume of this name, and the nodes that did not answer. All reachable nodes are queried
    /// at the same time, and as long as they answer any query (`questions.rs`). An unreachable node that may have the
    /// volume does not block a volume that may be created on other nodes; if it has the volume, `doctor` lists both.
    ///
    /// The query names the uuid that follows from the name. A node that reports the volume must also show it with its
    /// name, which the uuid does not reveal: a node that answers yes to every query cannot. A volume that is being
    /// created or deleted is not shown. Its home node reports that when it is asked to create the volume, and blocks no
    /// other node.
    fn made_before(&self, name: &str) -> Result<(Option<Arc<dyn Home>>, UnansweredNodes), Failure> {
        let uuid = ObjectUuid::of_volume(name);
        let (found, mute) =
            self.ask_all(|home| shown(home, name, home.find_volume(uuid)?, |id| Ok(home.volume(id)?.name)))?;
        Ok((first_by_pool(name, found, |id| id.pool), mute))
    }

    /// As [`Router::made_before`], for a snapshot.
    fn cut_before(&self, name: &str) -> Result<Option<Arc<dyn Home>>, Failure> {
        let uuid = ObjectUuid::of_snapshot(name);
        let (found, _) =
            self.ask_all(|home| shown(home, name, home.find_snapshot(uuid)?, |id| Ok(home.snapshot(id)?.name)))?;
        Ok(first_by_pool(name, found, |id| id.pool))
    }

    /// The answer to a CreateVolume that this release refuses for its content; see [`Error::unless_made`].
    pub fn refused_volume(&self, name: &str, error: Error) -> Failure {
        let uuid = ObjectUuid::of_volume(name);
        self.refused(&format!("volume {name:?}"), error, |home| home.find_volume(uuid))
    }

    /// As [`Router::refused_volume`], for a CreateSnapshot.
    pub fn refused_snapshot(&self, name: &str, error: Error) -> Failure {
        let uuid = ObjectUuid::of_snapshot(name);
        self.refused(&format!("snapshot {name:?}"), error, |home| home.find_snapshot(uuid))
    }

    fn refused<I: Send + fmt::Display>(
        &self,
        object: &str,
        error: Error,
        ask: impl Fn(&dyn Home) -> Result<Vec<I>> + Sync,
    ) -> Failure {
        if error.kind() != Kind::InvalidArgument {
            return Failure::Clean(error);
        }
        error.unless_made(object, || {
            // As for a list: every home node must answer.
            let homes = self.directory.all()?;
            let answers = asked(homes, Deadline::after(ASKING), ask);
            let of_node =
                |(home, answer): (Arc<dyn Home>, Result<Vec<I>>)| answer.map_err(|error| silent(&*home, error));
            Ok(answers.into_iter().map(of_node).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        })
    }

    /// What every home node has under a name, and the nodes that did not answer.
    fn ask_all<I: Send>(
        &self,
        ask: impl Fn(&dyn Home) -> Result<Vec<I>> + Sync,
    ) -> Result<(Vec<Has<I>>, UnansweredNodes), Failure> {
        let (mut found, mut mute) = (Vec::new(), UnansweredNodes::new());
        let in_turn = |home: &dyn Home| self.questions.ask(home.node(), || ask(home));
        for (home, answer) in asked(self.directory.heard(), None, in_turn) {
            match answer {
                Ok(ids) if ids.is_empty() => {}
                Ok(ids) => found.push((home, ids)),
                Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Timeout) => {
                    warn!(
                        node = %home.node(), error = %error.chain(),
                        "the node does not answer whether the name already exists on it"
                    );
                    mute.insert(home.node().clone(), error);
                }
                Err(error) => {
                    let sentence = format!("cannot check whether the name already exists on node {}", home.node());
                    return Err(Failure::Dirty(error.context(sentence)));
                }
            }
        }
        Ok((found, mute))
    }

    /// Deletes a volume.
    ///
    /// # Errors
    /// As [`Home::delete_volume`]; `Unavailable` when its pool is not served.
    pub fn delete_volume(&self, id: &VolumeId) -> Result<Changed> {
        match self.directory.answering(id.pool)? {
            Answering::Home(home) => home.delete_volume(id),
            Answering::Nobody => Ok(given_up(&id, "deleted")),
        }
    }

    /// One volume.
    ///
    /// # Errors
    /// As [`Home::volume`]; `Unavailable` when its pool is not served.
    pub fn volume(&self, id: &VolumeId) -> Result<Volume> {
        self.directory.home_of(id.pool)?.volume(id)
    }

    /// Where a volume can be used.
    #[must_use]
    pub fn topology_of(&self, volume: &Volume) -> Segments {
        let local = || Segments::of_local_volume(&volume.home);
        match volume.access {
            Access::Local => local(),
            Access::Network => {
                let seats = self.directory.seats();
                let seat = seats.iter().find(|seat| seat.node == volume.home);
                // A home node that left its fabric exports nothing.
                seat.and_then(|seat| seat.segments.fabric()).map_or_else(local, Segments::of_network_volume)
            }
        }
    }

    /// Volumes of all home nodes in the order of (pool, uuid).
    ///
    /// # Errors
    /// `Unavailable` when one home node does not answer: never a partial list.
    pub fn volumes(&self, after: Option<VolumeId>, limit: usize) -> Result<Page<Volume, VolumeId>> {
        let pages = self.pages(|home| home.volumes(after, limit))?;
        Ok(merged(pages, limit, |volume| volume.id))
    }

    /// Attaches a volume to a node.
    ///
    /// # Errors
    /// As [`Home::grant`]; `NotFound` for an unknown node.
    pub fn grant(&self, id: &VolumeId, request: &GrantRequest) -> Result<Granted> {
        let home = self.directory.home_of(id.pool)?;
        if !self.directory.knows(&request.node) {
            home.volume(id)?;
            return Err(Error::new(Kind::NotFound, format!("node {} is unknown to this driver", request.node)));
        }
        let generation = generation_of(&*home, id)?;
        home.grant_as(id, request, generation)
    }

    /// Detaches a volume from a node, or from all nodes.
    ///
    /// # Errors
    /// As [`Home::revoke`]; `Unavailable` when its pool is not served.
    pub fn revoke(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<Changed> {
        match self.directory.answering(id.pool)? {
            Answering::Home(home) => {
                let generation = generation_of(&*home, id)?;
                home.revoke_as(id, node, generation)
            }
            Answering::Nobody => Ok(given_up(&id, "detached")),
        }
    }

    /// Expands a volume.
    ///
    /// # Errors
    /// As [`Home::expand`]; `Unavailable` when its pool is not served.
    pub fn expand(&self, id: &VolumeId, range: &CapacityRange) -> Result<Expanded> {
        self.directory.home_of(id.pool)?.expand(id, range)
    }

    /// Creates a snapshot on the home node of its source.
    ///
    /// # Errors
    /// As [`Home::create_snapshot`]; `Unavailable` when the pool is not served; `AlreadyExists` when another home node
    /// has a snapshot of this name.
    pub fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Created<Snapshot>, Failure> {
        let home = self.directory.home_of(request.source.pool)?;
        // A single home node checks that itself.
        if self.directory.heard().len() > 1
            && let Some(other) = self.cut_before(&request.name)?
            && other.node() != home.node()
        {
            return Err(Failure::Clean(Error::new(
                Kind::AlreadyExists,
                format!(
                    "snapshot {:?} already exists on node {}, of another volume; delete it or use another name",
                    request.name,
                    other.node()
                ),
            )));
        }
        home.create_snapshot(request)
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// As [`Home::delete_snapshot`]; `Unavailable` when its pool is not served.
    pub fn delete_snapshot(&self, id: &SnapshotId) -> Result<Changed> {
        match self.directory.answering(id.pool)? {
            Answering::Home(home) => home.delete_snapshot(id),
            Answering::Nobody => Ok(given_up(&id, "deleted")),
        }
    }

    /// One snapshot.
    ///
    /// # Errors
    /// As [`Home::snapshot`]; `Unavailable` when its pool is not served.
    pub fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        self.directory.home_of(id.pool)?.snapshot(id)
    }

    /// Snapshots of all home nodes in the order of (pool, uuid), or of the one home node of the requested source.
    ///
    /// # Errors
    /// `Unavailable` when one home node does not answer: never a partial list.
    pub fn snapshots(
        &self,
        filter: &SnapshotFilter,
        after: Option<SnapshotId>,
        limit: usize,
    ) -> Result<Page<Snapshot, SnapshotId>> {
        if let Some(source) = filter.source {
            return self.directory.home_of(source.pool)?.snapshots(filter, after, limit);
        }
        let pages = self.pages(|home| home.snapshots(filter, after, limit))?;
        Ok(merged(pages, limit, |snapshot| snapshot.id))
    }

    /// A page from every home node.
    fn pages<T: Send>(&self, ask: impl Fn(&dyn Home) -> Result<T> + Sync) -> Result<Vec<T>> {
        let answers = asked(self.directory.all()?, None, ask);
        answers.into_iter().map(|(home, page)| page.map_err(|error| silent(&*home, error))).collect()
    }

    /// All volumes and snapshots of all home nodes, for the command line. Nodes that do not answer are named, and the
    /// rest is listed.
    #[must_use]
    pub fn inventory(&self) -> Inventory {
        let mut found = Inventory::default();
        let ask = |home: &dyn Home| {
            Ok((home.volumes(None, 0)?.entries, home.snapshots(&SnapshotFilter::default(), None, 0)?.entries))
        };
        for (home, answer) in asked(self.directory.heard(), Deadline::after(LOOKING), ask) {
            match answer {
                Ok((volumes, snapshots)) => {
                    found.volumes.extend(volumes);
                    found.snapshots.extend(snapshots);
                }
                Err(error) => found.unheard.push(format!("node {}: {}", home.node(), error.chain())),
            }
        }
        found.unheard.extend(self.directory.unheard());
        found
    }

    /// Problems in the nodes' own pools, for the command line; and why some may be missing, one sentence each.
    #[must_use]
    pub fn findings(&self) -> (Vec<(NodeId, Finding)>, Vec<String>) {
        let (mut found, mut unheard) = (Vec::new(), Vec::new());
        for (home, answer) in asked(self.directory.heard(), Deadline::after(LOOKING), |home| home.examine()) {
            match answer {
                Ok(findings) => found.extend(findings.into_iter().map(|finding| (home.node().clone(), finding))),
                Err(error) => unheard.push(format!("node {}: {}", home.node(), error.chain())),
            }
        }
        unheard.extend(self.directory.unheard());
        (found, unheard)
    }

    /// Removes a pool that was declared lost from quarantine.
    ///
    /// # Errors
    /// `Precondition` while it is still declared lost here; `Unavailable` when its node is unreachable; as
    /// [`Home::readmit`].
    pub fn readmit(&self, pool: PoolId) -> Result<Changed> {
        self.directory.holder(pool)?.readmit(pool)
    }

    /// What can still be created in a topology: the free space of all its home nodes together, and the best sizes among
    /// them. A network volume that is used in the topology may be on any node of the fabric. With heartbeats it is computed from them, and an unreachable node has no capacity.
    ///
    /// # Errors
    /// As [`Home::capacity`].
    pub fn capacity(&self, query: &CapacityQuery, topology: Option<&Segments>) -> Result<Capacity> {
        let beyond = topology.map(Segments::beyond_node);
        let topology = match query.access {
            Access::Local => topology,
            Access::Network if topology.is_some_and(|topology| topology.fabric().is_some()) => beyond.as_ref(),
            // Without a fabric there are no network volumes; without a topology, some may be somewhere.
            Access::Network if topology.is_some() => {
                return Ok(Capacity { available: Bytes::ZERO, largest: Bytes::ZERO, smallest: query.smallest() });
            }
            Access::Network => None,
        };
        let here: Vec<Capacity> = match self.directory.figures_in(topology) {
            Some(figures) => figures.iter().map(|(_, pools)| Capacity::of_pools(pools, query)).collect(),
            None => {
                let inside = |home: &Arc<dyn Home>| {
                    let seats = self.directory.seats();
                    let seat = seats.iter().find(|seat| seat.node == *home.node());
                    topology.is_none_or(|topology| seat.is_some_and(|seat| topology.covers(&seat.segments)))
                };
                let homes = self.directory.heard();
                homes.iter().filter(|home| inside(home)).map(|home| home.capacity(query)).collect::<Result<_>>()?
            }
        };
        let mut total: Option<Capacity> = None;
        for here in here {
            total = Some(total.map_or(here, |sum| Capacity {
                available: match query.access {
                    Access::Local => sum.available.saturating_add(here.available),
                    // Every node of the fabric reports this: the sum would be there many times.
                    Access::Network => sum.available.max(here.available),
                },
                largest: sum.largest.max(here.largest),
                smallest: sum.smallest.min(here.smallest),
            }));
        }
        Ok(total.unwrap_or(Capacity { available: Bytes::ZERO, largest: Bytes::ZERO, smallest: Bytes::ZERO }))
    }

    /// The figures of every pool, for metrics and probes.
    ///
    /// # Errors
    /// As [`Home::report`], naming the node.
    pub fn figures(&self) -> Result<Vec<PoolFigures>> {
        let reported = match self.directory.figures_in(None) {
            Some(reported) => reported,
            None => {
                let ask = |home: &Arc<dyn Home>| {
                    let context = || format!("cannot read the pools of node {}", home.node());
                    Ok((home.node().clone(), home.report().map_err(|error| error.context(context()))?))
                };
                self.directory.heard().iter().map(ask).collect::<Result<_>>()?
            }
        };
        let figures = |(node, reports): (NodeId, Vec<PoolReport>)| {
            reports.into_iter().map(move |report| figures_of(&node, report))
        };
        Ok(reported.into_iter().flat_map(figures).collect())
    }

    /// The most fragmented images, for metrics.
    ///
    /// # Errors
    /// As [`Home::extents`].
    pub fn extents(&self) -> Result<Vec<VolumeExtents>> {
        let mut all = Vec::new();
        for home in self.directory.heard() {
            all.extend(home.extents()?);
        }
        all.sort_by_key(|(_, extents)| std::cmp::Reverse(*extents));
        all.truncate(MOST_EXTENTS);
        let shown = |(id, extents): (VolumeId, u64)| VolumeExtents {
            volume: id.to_string(),
            pool: id.pool.to_string(),
            extents,
        };
        Ok(all.into_iter().map(shown).collect())
    }
}

/// The metrics of a pool.
#[must_use]
pub fn figures_of(node: &NodeId, report: PoolReport) -> PoolFigures {
    PoolFigures {
        pool: report.name.to_string(),
        id: report.id.to_string(),
        kind: report.kind.into_owned(),
        node: node.to_string(),
        total: report.room.total.get(),
        available: report.available.get(),
        promised: report.promised.get(),
        provisioned: report.provisioned.get(),
        inodes: report.room.inodes,
        inodes_free: report.room.inodes_free,
        volumes: report.volumes,
        snapshots: report.snapshots,
        outage: None,
    }
}

/// The pool of a volume's content source.
fn source_pool(request: &CreateVolume) -> Option<PoolId> {
    request.source.map(|(Source::Volume(VolumeId { pool, .. }) | Source::Snapshot(SnapshotId { pool, .. }))| pool)
}

/// Whether the next home node may be tried: this one lacks the space, or it cannot have this blank volume in its pool.
fn passes_on(error: &Error, request: &CreateVolume) -> bool {
    match error.kind() {
        Kind::NoCapacity => true,
        Kind::NotFound | Kind::Unsupported => request.source.is_none(),
        _ => false,
    }
}

/// One error out of the refusals of all home nodes that were allowed. `seats` is the number of home nodes there are.
fn refused_by_all(mut refusals: Vec<(&NodeId, Error)>, seats: usize) -> Error {
    if refusals.len() == 1
        && let Some((_, only)) = refusals.pop()
    {
        // With another home node there is another choice for the scheduler; without, the request cannot succeed.
        return if only.kind() == Kind::Unsupported && seats < 2 { only } else { only.with_kind(Kind::NoCapacity) };
    }
    let said: Vec<_> = refusals.iter().map(|(node, error)| format!("{node}: {}", error.chain())).collect();
    let all_full = refusals.iter().all(|(_, error)| error.kind() == Kind::NoCapacity);
    let why = if all_full { "has enough free space for the volume" } else { "can create the volume" };
    Error::new(Kind::NoCapacity, format!("no node {why}: {}", said.join("; ")))
}

/// Reachable nodes that did not answer whether they have a name, with the reason.
type UnansweredNodes = BTreeMap<NodeId, Error>;

/// A home node with what it has under a name.
type Has<I> = (Arc<dyn Home>, Vec<I>);

/// Queries home nodes at the same time, each in a thread of its own if there are several. A home node that does not
/// answer in time blocks only its own thread.
fn asked<T: Send>(
    homes: Vec<Arc<dyn Home>>,
    deadline: Option<Deadline>,
    ask: impl Fn(&dyn Home) -> Result<T> + Sync,
) -> Vec<(Arc<dyn Home>, Result<T>)> {
    let (span, outer) = (Span::current(), Deadline::current());
    let one = |home: &Arc<dyn Home>| {
        let _in_span = span.enter();
        Deadline::scope(outer, || Deadline::scope(deadline, || ask(&**home)))
    };
    let answers: Vec<Result<T>> = match homes.as_slice() {
        [] => Vec::new(),
        [only] => vec![one(only)],
        several => thread::scope(|scope| {
            let one = &one;
            let asking: Vec<_> = several.iter().map(|home| scope.spawn(move || one(home))).collect();
            let panicked = || Err(Error::new(Kind::Internal, "the query of a home node panicked"));
            asking.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
        }),
    };
    homes.into_iter().zip(answers).collect()
}

/// What a home node has under a name, if it shows all of it with that name.
fn shown<I: fmt::Display>(
    home: &dyn Home,
    name: &str,
    ids: Vec<I>,
    look: impl Fn(&I) -> Result<String>,
) -> Result<Vec<I>> {
    for id in &ids {
        let unproven = |why: &str| {
            let node = home.node();
            Error::new(Kind::Unavailable, format!("node {node} reports that it has {id} and {why}"))
        };
        match look(id) {
            Ok(there) if there == name => {}
            Ok(_) => return Err(unproven("shows it under another name: its answer is not used")),
            Err(error) => {
                return Err(unproven("does not show it: it is being created or deleted; retry").because(error));
            }
        }
    }
    Ok(ids)
}

/// The home node of the object with this name; of several, the one with the smallest pool id, so that every controller
/// selects the same.
fn first_by_pool<I>(name: &str, found: Vec<Has<I>>, pool: impl Fn(&I) -> PoolId) -> Option<Arc<dyn Home>> {
    if found.len() > 1 {
        let nodes: Vec<_> = found.iter().map(|(home, _)| home.node().as_str()).collect();
        warn!(name, nodes = nodes.join(", "), "one name exists on several nodes; run holdfast doctor to list them");
    }
    let first = found.into_iter().min_by_key(|(_, ids)| ids.iter().map(&pool).min());
    first.map(|(home, _)| home)
}

/// The answer for an object in a pool that an operator declared lost.
fn given_up(id: &dyn fmt::Display, done: &str) -> Changed {
    warn!(%id, "{done} without its home node, which was declared lost (lostHomes)");
    Changed::No
}

fn silent(home: &dyn Home, error: Error) -> Error {
    error.with_kind(Kind::Unavailable).context(format!("node {}", home.node()))
}

/// One page out of one page of each home node, each in the order of its keys.
fn merged<T, K: Ord + Copy>(pages: Vec<Page<T, K>>, limit: usize, key: impl Fn(&T) -> K) -> Page<T, K> {
    // After its last key a home node may have more entries: nothing later belongs on this page.
    let bound = pages.iter().filter_map(|page| page.next).min();
    let mut entries: Vec<T> = pages.into_iter().flat_map(|page| page.entries).collect();
    entries.retain(|entry| bound.is_none_or(|bound| key(entry) <= bound));
    entries.sort_by_key(&key);
    let cut = limit != 0 && entries.len() > limit;
    if cut {
        entries.truncate(limit);
    }
    let next = if cut { entries.last().map(&key) } else { bound };
    Page { entries, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: &[u32], next: Option<u32>) -> Page<u32, u32> {
        Page { entries: keys.to_vec(), next }
    }

    #[test]
    fn pages_of_several_homes_become_one_in_order_and_none_is_lost() {
        assert_eq!(merged(vec![page(&[1, 5], None), page(&[2, 3], None)], 0, |k| *k), page(&[1, 2, 3, 5], None));
        // Each home node returned its first two; the token requests the rest again.
        assert_eq!(merged(vec![page(&[1, 5], Some(5)), page(&[2, 3], Some(3))], 2, |k| *k), page(&[1, 2], Some(2)));
        assert_eq!(merged(vec![page(&[1, 5], Some(5)), page(&[2, 9], None)], 0, |k| *k), page(&[1, 2, 5], Some(5)));
        assert_eq!(merged(vec![page(&[1], None), page(&[2], None)], 1, |k| *k), page(&[1], Some(1)));
        assert_eq!(merged(vec![page(&[1], None), page(&[], None)], 1, |k| *k), page(&[1], None));
        assert_eq!(merged(vec![], 3, |k: &u32| *k), page(&[], None));
    }
}
