//! The controller's side: finds the home of what a call is about and passes it on. No rules, no locks, no state.

mod directory;
mod placement;

pub use directory::Directory;
pub use placement::{FABRIC_KEY, NO_FABRIC, NODE_KEY, Requirement, Seat, Segments, place};

use crate::home::{
    Capacity, CapacityQuery, Changed, CreateSnapshot, CreateVolume, Created, Expanded, GrantRequest, Granted, Home,
    Page, Snapshot, SnapshotFilter, Source, Volume,
};
use crate::telemetry::{PoolFigures, VolumeExtents};
use crate::types::{
    Bytes, CapacityRange, Error, Failure, Kind, NodeId, ObjectUuid, PoolId, Result, SnapshotId, VolumeId,
};

/// So many images are named in the metrics: those that are near the limit of cloning.
const MOST_EXTENTS: usize = 100;

/// Passes calls to homes. All methods block.
#[derive(Debug)]
pub struct Router {
    directory: Directory,
}

impl Router {
    /// For these homes.
    #[must_use]
    pub fn new(directory: Directory) -> Self {
        Self { directory }
    }

    /// The homes and nodes it knows.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Makes a volume where the requirement, the class and the source allow, or finds it where a try before made it.
    ///
    /// # Errors
    /// As [`Home::create_volume`]; `NoCapacity` when no allowed home has room or the pool; `AlreadyExists` when the
    /// volume is on a node that the requirement leaves out.
    pub fn create_volume(&self, request: &CreateVolume, requirement: &Requirement) -> Result<Created<Volume>, Failure> {
        let placed = self.placed(request, requirement);
        // The one home that may have it sees that itself.
        let sees_itself = placed.is_ok() && self.directory.homes().count() < 2;
        if !sees_itself && let Some(home) = self.made_before(&request.name)? {
            return self.made_on(home, request, requirement);
        }
        let homes = placed?;
        let mut refusals = Vec::new();
        for node in &homes {
            match self.directory.home_on(node)?.create_volume(request) {
                Err(Failure::Clean(error)) if passes_on(&error, request) => refusals.push((node, error)),
                answer => return answer,
            }
        }
        Err(Failure::Clean(no_home_had_room(refusals)))
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
        if source_pool(request).is_some_and(|pool| !home.pools().contains(&pool)) {
            return other("and its content source is not the one asked for");
        }
        home.create_volume(request)
    }

    /// The home that has a volume of this name.
    fn made_before(&self, name: &str) -> Result<Option<&dyn Home>, Failure> {
        let uuid = ObjectUuid::of_volume(name);
        for home in self.directory.homes() {
            for pool in home.pools() {
                match home.volume(&VolumeId { pool, uuid }) {
                    Ok(_) => return Ok(Some(home)),
                    Err(error) if error.kind() == Kind::NotFound => {}
                    Err(error) => {
                        let sentence = format!("whether node {} has volume {name:?} already is not known", home.node());
                        return Err(Failure::Dirty(error.context(sentence)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Deletes a volume.
    ///
    /// # Errors
    /// As [`Home::delete_volume`]; `Unavailable` when its pool is not served.
    pub fn delete_volume(&self, id: &VolumeId) -> Result<Changed> {
        self.directory.home_of(id.pool)?.delete_volume(id)
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
        let pages = self.directory.homes().map(|home| home.volumes(after, limit).map_err(|error| silent(home, error)));
        Ok(merged(pages.collect::<Result<_>>()?, limit, |volume| volume.id))
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
        self.directory.home_of(id.pool)?.revoke(id, node)
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
        let uuid = ObjectUuid::of_snapshot(&request.name);
        for other in self.directory.homes().filter(|other| other.node() != home.node()) {
            for pool in other.pools() {
                match other.snapshot(&SnapshotId { pool, uuid }) {
                    Ok(_) => {
                        return Err(Failure::Clean(Error::new(
                            Kind::AlreadyExists,
                            format!(
                                "snapshot {:?} exists on node {}, of another volume; delete it or ask for another name",
                                request.name,
                                other.node()
                            ),
                        )));
                    }
                    Err(error) if error.kind() == Kind::NotFound => {}
                    Err(error) => {
                        let sentence =
                            format!("whether node {} has snapshot {:?} is not known", other.node(), request.name);
                        return Err(Failure::Dirty(error.context(sentence)));
                    }
                }
            }
        }
        home.create_snapshot(request)
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// As [`Home::delete_snapshot`]; `Unavailable` when its pool is not served.
    pub fn delete_snapshot(&self, id: &SnapshotId) -> Result<Changed> {
        self.directory.home_of(id.pool)?.delete_snapshot(id)
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
        let ask = |home: &dyn Home| home.snapshots(filter, after, limit).map_err(|error| silent(home, error));
        Ok(merged(self.directory.homes().map(ask).collect::<Result<_>>()?, limit, |snapshot| snapshot.id))
    }

    /// What could still be made in a topology: room of all its homes together, sizes of the best of them.
    ///
    /// # Errors
    /// As [`Home::capacity`].
    pub fn capacity(&self, query: &CapacityQuery, topology: Option<&Segments>) -> Result<Capacity> {
        let mut total: Option<Capacity> = None;
        for home in self.directory.homes_in(topology) {
            let here = home.capacity(query)?;
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
        let mut figures = Vec::new();
        for home in self.directory.homes() {
            let reports = home
                .report()
                .map_err(|error| error.context(format!("the pools of node {} cannot be read", home.node())))?;
            figures.extend(reports.into_iter().map(|report| PoolFigures {
                pool: report.name.to_string(),
                id: report.id.to_string(),
                kind: report.kind.to_owned(),
                node: home.node().to_string(),
                total: report.room.total.get(),
                available: report.available.get(),
                promised: report.promised.get(),
                provisioned: report.provisioned.get(),
                inodes: report.room.inodes,
                inodes_free: report.room.inodes_free,
                volumes: report.volumes,
                snapshots: report.snapshots,
            }));
        }
        Ok(figures)
    }

    /// The images in the most pieces, for metrics.
    ///
    /// # Errors
    /// As [`Home::extents`].
    pub fn extents(&self) -> Result<Vec<VolumeExtents>> {
        let mut all = Vec::new();
        for home in self.directory.homes() {
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
