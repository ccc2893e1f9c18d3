//! The controller's side: finds the home of what a call is about and passes it on. No rules, no locks, no state.

#[cfg(test)]
mod burst;
mod directory;
#[cfg(test)]
mod lying;
mod owned;
mod placement;
mod questions;

pub use directory::{Answering, Dial, Directory, Entry, Heartbeat, Lost, MOST_KNOWN, Rhythm, Seen, Silence};
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
use crate::os::Deadline;
use crate::telemetry::{PoolFigures, VolumeExtents};
use crate::types::{
    Bytes, CapacityRange, Error, Failure, Kind, NodeId, ObjectUuid, PoolId, Result, SnapshotId, VolumeId,
};

/// How long homes are asked for everything they have.
const LOOKING: Duration = Duration::from_secs(20);
/// So many images are named in the metrics: those that are near the limit of cloning.
const MOST_EXTENTS: usize = 100;

/// What there is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Volumes that can be used.
    pub volumes: Vec<Volume>,
    /// Snapshots, ready or not.
    pub snapshots: Vec<Snapshot>,
    /// Why some may be missing, a sentence each.
    pub unheard: Vec<String>,
}

/// Passes calls to homes. All methods block.
#[derive(Debug)]
pub struct Router {
    directory: Directory,
    questions: Questions,
}

impl Router {
    /// For these homes.
    #[must_use]
    pub fn new(directory: Directory) -> Self {
        Self { directory, questions: Questions::default() }
    }

    /// The homes and nodes it knows.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Makes a volume where the requirement, the class and the source allow, or finds it where a try before made it.
    ///
    /// # Errors
    /// As [`Home::create_volume`]; `NoCapacity` when every allowed home said that it has no room or not the pool;
    /// `Unavailable` when one of them could not be asked; `AlreadyExists` when the volume is on a node that the requirement
    /// leaves out.
    pub fn create_volume(&self, request: &CreateVolume, requirement: &Requirement) -> Result<Created<Volume>, Failure> {
        self.directory.settled()?;
        let placed = self.placed(request, requirement);
        // The one home that may have it sees that itself.
        let sees_itself = placed.is_ok() && self.directory.heard().len() < 2;
        let mut mute = Mute::new();
        if !sees_itself {
            let made;
            (made, mute) = self.made_before(&request.name)?;
            if let Some(home) = made {
                return self.made_on(&*home, request, requirement);
            }
        }
        let homes = placed?;
        // Each home sees itself what it has when it is its turn. One behind it that is heard and does not say may have
        // the volume from a try before.
        if let Some((node, error)) = homes.iter().skip(1).find_map(|node| mute.remove_entry(node)) {
            let sentence = format!("node {node} does not say whether it has volume {:?} already", request.name);
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
            // It says so of the pools it serves; a try before may have been in one that it lost.
            match self.directory.unserved_on(node, request.parameters.pool.as_ref()) {
                Some(lost) => {
                    silent.get_or_insert(lost);
                }
                None if passes_on(&error, request) => {}
                None => return Err(Failure::Clean(error)),
            }
            refusals.push((node, error));
        }
        // What a silent home may have from a try before is not to be forgotten.
        match silent {
            Some(error) => Err(Failure::Dirty(error)),
            None => Err(Failure::Clean(no_home_had_room(refusals))),
        }
    }

    /// The homes to try for a new volume, in order.
    fn placed(&self, request: &CreateVolume, requirement: &Requirement) -> Result<Vec<NodeId>> {
        let source_home = match source_pool(request) {
            None => None,
            Some(pool) => Some(self.directory.home_of(pool)?.node().clone()),
        };
        let (seats, serving) = (self.directory.seats(), self.directory.serving());
        place(requirement, &seats, request.parameters.placement, source_home.as_ref(), serving)
    }

    /// Asks the home that has a volume of this name whether it is the one that is meant.
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
        if !seats.iter().any(|seat| seat.node == *home.node() && requirement.allows(&seat.segments)) {
            return other("which this request does not allow");
        }
        if let Some(pool) = source_pool(request)
            && self.directory.home_of(pool)?.node() != home.node()
        {
            return other("and its content source is not the one asked for");
        }
        home.create_volume(request)
    }

    /// The home that has a volume of this name, and the nodes that were asked and did not say: all that are heard are
    /// asked, at once, and as long as they answer anybody (`questions.rs`). A silent one that might have it holds nothing up where the volume may be made on
    /// others; if it has, `doctor` shows the volume twice.
    ///
    /// Nodes are asked by the name's uuid. One that says yes has to show the volume with its name, which the uuid does not tell:
    /// a node that says yes to everything cannot. What is being made or deleted is not shown; its home tells when it is asked to
    /// make it, and it keeps no other from that.
    fn made_before(&self, name: &str) -> Result<(Option<Arc<dyn Home>>, Mute), Failure> {
        let uuid = ObjectUuid::of_volume(name);
        let (found, mute) =
            self.ask_all(|home| shown(home, name, home.find_volume(uuid)?, |id| Ok(home.volume(id)?.name)))?;
        Ok((first_by_pool(name, found, |id| id.pool), mute))
    }

    /// As [`Router::made_before`], of a snapshot.
    fn cut_before(&self, name: &str) -> Result<Option<Arc<dyn Home>>, Failure> {
        let uuid = ObjectUuid::of_snapshot(name);
        let (found, _) =
            self.ask_all(|home| shown(home, name, home.find_snapshot(uuid)?, |id| Ok(home.snapshot(id)?.name)))?;
        Ok(first_by_pool(name, found, |id| id.pool))
    }

    /// The answer to a CreateVolume that this release refuses for its words; see [`Error::unless_made`].
    pub fn refused_volume(&self, name: &str, error: Error) -> Failure {
        let uuid = ObjectUuid::of_volume(name);
        self.refused(&format!("volume {name:?}"), error, |home| home.find_volume(uuid))
    }

    /// As [`Router::refused_volume`], of a CreateSnapshot.
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
            // As for a list: every home has to say so.
            let homes = self.directory.all()?;
            let answers = asked(homes, Deadline::after(ASKING), ask);
            let of_node =
                |(home, answer): (Arc<dyn Home>, Result<Vec<I>>)| answer.map_err(|error| silent(&*home, error));
            Ok(answers.into_iter().map(of_node).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        })
    }

    /// What every home has of a name, and the nodes that did not say.
    fn ask_all<I: Send>(
        &self,
        ask: impl Fn(&dyn Home) -> Result<Vec<I>> + Sync,
    ) -> Result<(Vec<Has<I>>, Mute), Failure> {
        let (mut found, mut mute) = (Vec::new(), Mute::new());
        let in_turn = |home: &dyn Home| self.questions.ask(home.node(), || ask(home));
        for (home, answer) in asked(self.directory.heard(), None, in_turn) {
            match answer {
                Ok(ids) if ids.is_empty() => {}
                Ok(ids) => found.push((home, ids)),
                Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Timeout) => {
                    warn!(node = %home.node(), error = %error.chain(), "does not say whether it has the name already");
                    mute.insert(home.node().clone(), error);
                }
                Err(error) => {
                    let sentence = format!("whether node {} has the name already is not known", home.node());
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

    /// Volumes of all homes in the order of (pool, uuid).
    ///
    /// # Errors
    /// `Unavailable` when one home does not answer: never a partial list.
    pub fn volumes(&self, after: Option<VolumeId>, limit: usize) -> Result<Page<Volume, VolumeId>> {
        let pages = self.pages(|home| home.volumes(after, limit))?;
        Ok(merged(pages, limit, |volume| volume.id))
    }

    /// Grants a volume to a node.
    ///
    /// # Errors
    /// As [`Home::grant`]; `NotFound` for a node nobody knows.
    pub fn grant(&self, id: &VolumeId, request: &GrantRequest) -> Result<Granted> {
        let home = self.directory.home_of(id.pool)?;
        if !self.directory.knows(&request.node) {
            home.volume(id)?;
            return Err(Error::new(Kind::NotFound, format!("node {} does not exist for this driver", request.node)));
        }
        home.grant(id, request)
    }

    /// Takes a node's grant back, or all.
    ///
    /// # Errors
    /// As [`Home::revoke`]; `Unavailable` when its pool is not served.
    pub fn revoke(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<Changed> {
        match self.directory.answering(id.pool)? {
            Answering::Home(home) => home.revoke(id, node),
            Answering::Nobody => Ok(given_up(&id, "detached")),
        }
    }

    /// Grows a volume.
    ///
    /// # Errors
    /// As [`Home::expand`]; `Unavailable` when its pool is not served.
    pub fn expand(&self, id: &VolumeId, range: &CapacityRange) -> Result<Expanded> {
        self.directory.home_of(id.pool)?.expand(id, range)
    }

    /// Makes a snapshot where its source is.
    ///
    /// # Errors
    /// As [`Home::create_snapshot`]; `Unavailable` when the pool is not served; `AlreadyExists` when another home has
    /// a snapshot of this name.
    pub fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Created<Snapshot>, Failure> {
        let home = self.directory.home_of(request.source.pool)?;
        // One home sees that itself.
        if self.directory.heard().len() > 1
            && let Some(other) = self.cut_before(&request.name)?
            && other.node() != home.node()
        {
            return Err(Failure::Clean(Error::new(
                Kind::AlreadyExists,
                format!(
                    "snapshot {:?} exists on node {}, of another volume; delete it or ask for another name",
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

    /// Snapshots of all homes in the order of (pool, uuid), or of the one home of the source asked for.
    ///
    /// # Errors
    /// `Unavailable` when one home does not answer: never a partial list.
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

    /// A page of every home.
    fn pages<T: Send>(&self, ask: impl Fn(&dyn Home) -> Result<T> + Sync) -> Result<Vec<T>> {
        let answers = asked(self.directory.all()?, None, ask);
        answers.into_iter().map(|(home, page)| page.map_err(|error| silent(&*home, error))).collect()
    }

    /// Everything that every home has, for people. Homes that do not answer are named, and the rest is told.
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

    /// What is wrong in the nodes' own pools, for people; and why some of it may be missing, a sentence each.
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

    /// Takes a pool out of the quarantine it was put in when it was declared lost.
    ///
    /// # Errors
    /// `Precondition` while it is still declared lost here; `Unavailable` when its node is not heard; as
    /// [`Home::readmit`].
    pub fn readmit(&self, pool: PoolId) -> Result<Changed> {
        self.directory.holder(pool)?.readmit(pool)
    }

    /// What could still be made in a topology: room of all its homes together, sizes of the best of them. Where there
    /// are heartbeats it comes from them, and a silent home has no room.
    ///
    /// # Errors
    /// As [`Home::capacity`].
    pub fn capacity(&self, query: &CapacityQuery, topology: Option<&Segments>) -> Result<Capacity> {
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
                available: sum.available.saturating_add(here.available),
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
                    let context = || format!("the pools of node {} cannot be read", home.node());
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

    /// The images in the most pieces, for metrics.
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

/// What metrics say of a pool.
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

/// The pool of what a volume is filled from.
fn source_pool(request: &CreateVolume) -> Option<PoolId> {
    request.source.map(|(Source::Volume(VolumeId { pool, .. }) | Source::Snapshot(SnapshotId { pool, .. }))| pool)
}

/// Whether the next home may be tried: this one has no room, or not the pool a blank volume asks for.
fn passes_on(error: &Error, request: &CreateVolume) -> bool {
    match error.kind() {
        Kind::NoCapacity => true,
        Kind::NotFound => request.source.is_none(),
        _ => false,
    }
}

/// One error out of what every home said.
fn no_home_had_room(mut refusals: Vec<(&NodeId, Error)>) -> Error {
    if refusals.len() == 1
        && let Some((_, only)) = refusals.pop()
    {
        return only.with_kind(Kind::NoCapacity);
    }
    let said: Vec<_> = refusals.iter().map(|(node, error)| format!("{node}: {}", error.chain())).collect();
    Error::new(Kind::NoCapacity, format!("no node has room for the volume: {}", said.join("; ")))
}

/// Nodes that are heard and did not say whether they have a name, and why.
type Mute = BTreeMap<NodeId, Error>;

/// A home with what it has of a name.
type Has<I> = (Arc<dyn Home>, Vec<I>);

/// Asks homes at once, each in a thread of its own where there are several. A home that does not answer in time is left
/// to itself: it holds up its own thread.
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
            let panicked = || Err(Error::new(Kind::Internal, "asking a home ended unexpectedly"));
            asking.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
        }),
    };
    homes.into_iter().zip(answers).collect()
}

/// What a home says that it has of a name, if it shows it all under that name.
fn shown<I: fmt::Display>(
    home: &dyn Home,
    name: &str,
    ids: Vec<I>,
    look: impl Fn(&I) -> Result<String>,
) -> Result<Vec<I>> {
    for id in &ids {
        let unproven = |why: &str| {
            let node = home.node();
            Error::new(Kind::Unavailable, format!("node {node} says that it has {id} and {why}"))
        };
        match look(id) {
            Ok(there) if there == name => {}
            Ok(_) => return Err(unproven("shows it under another name: it is not believed")),
            Err(error) => return Err(unproven("does not show it: it is being made or deleted").because(error)),
        }
    }
    Ok(ids)
}

/// The home of the name's object; of several, the one in the smallest pool id, so that every controller says the same.
fn first_by_pool<I>(name: &str, found: Vec<Has<I>>, pool: impl Fn(&I) -> PoolId) -> Option<Arc<dyn Home>> {
    if found.len() > 1 {
        let nodes: Vec<_> = found.iter().map(|(home, _)| home.node().as_str()).collect();
        warn!(name, nodes = nodes.join(", "), "one name exists on several nodes; holdfast doctor lists them");
    }
    let first = found.into_iter().min_by_key(|(_, ids)| ids.iter().map(&pool).min());
    first.map(|(home, _)| home)
}

/// The answer for something in a pool that a human declared lost.
fn given_up(id: &dyn fmt::Display, done: &str) -> Changed {
    warn!(%id, "{done} without its home, which was declared lost (lostHomes)");
    Changed::No
}

fn silent(home: &dyn Home, error: Error) -> Error {
    error.with_kind(Kind::Unavailable).context(format!("node {}", home.node()))
}

/// One page out of one from each home, each in the order of its keys.
fn merged<T, K: Ord + Copy>(pages: Vec<Page<T, K>>, limit: usize, key: impl Fn(&T) -> K) -> Page<T, K> {
    // Behind the last key a home gave there may be more of its own: nothing later belongs on this page.
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
        // Each home gave its first two; what lies behind the cut is asked for again after the token.
        assert_eq!(merged(vec![page(&[1, 5], Some(5)), page(&[2, 3], Some(3))], 2, |k| *k), page(&[1, 2], Some(2)));
        assert_eq!(merged(vec![page(&[1, 5], Some(5)), page(&[2, 9], None)], 0, |k| *k), page(&[1, 2, 5], Some(5)));
        assert_eq!(merged(vec![page(&[1], None), page(&[2], None)], 1, |k| *k), page(&[1], Some(1)));
        assert_eq!(merged(vec![page(&[1], None), page(&[], None)], 1, |k| *k), page(&[1], None));
        assert_eq!(merged(vec![], 3, |k: &u32| *k), page(&[], None));
    }
}
