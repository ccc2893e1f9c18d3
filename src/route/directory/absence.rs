//! What is not there: silent nodes, pools that nobody serves, and why, in words that name the next step.

use std::time::Duration;

use super::{Directory, Entry, State};
use crate::home::Health;
use crate::types::{Error, Kind, NodeId, PoolId};

impl Directory {
    /// What keeps a known pool from being served, if anything does and it is not lost.
    pub(super) fn unserved(&self, state: &State, pool: PoolId, entry: Option<&Entry>) -> Option<Error> {
        let serving: Vec<_> = self.serving_pool(state, pool);
        if let [(one, _), (other, _), ..] = serving.as_slice() {
            return Some(Error::new(
                Kind::Unavailable,
                format!(
                    "nodes {one} and {other} both say that they serve pool {pool}: one of them has a copy of its disks; stop one of the two"
                ),
            ));
        }
        if let [(node, member)] = serving.as_slice() {
            let since = self.silence(member)?;
            return (!self.is_lost(pool, node)).then(|| silent(node, since));
        }
        let entry = entry?;
        if self.is_lost(pool, &entry.node) {
            return None;
        }
        if quarantined(state, pool, entry) {
            return Some(Error::new(
                Kind::Unavailable,
                format!(
                    "pool {pool} ({}) on node {} is in quarantine since it was declared lost; look at it and readmit it: holdfast pools readmit {pool}",
                    entry.name, entry.node
                ),
            ));
        }
        Some(match state.members.get(&entry.node) {
            Some(_) => Error::new(
                Kind::Unavailable,
                format!(
                    "node {} does not serve pool {pool} ({}){}, and no other node does; give it its disks back, or if they are gone for good name the pool in lostHomes",
                    entry.node,
                    entry.name,
                    match state.as_remembered(pool) {
                        said if said.is_empty() => " any more".to_owned(),
                        said => said,
                    }
                ),
            ),
            None => Error::new(
                Kind::Unavailable,
                format!(
                    "node {}, the home of pool {pool} ({}), has not been heard since this controller started, and was last heard {}{}; start it, or if it never returns name it in lostHomes",
                    entry.node,
                    entry.name,
                    entry.ago(),
                    state.as_remembered(pool)
                ),
            ),
        })
    }

    /// Why something that exists may not be told of: silent nodes and missing pools, a sentence each.
    #[must_use]
    pub fn unheard(&self) -> Vec<String> {
        let state = self.read();
        let silent_nodes = state.members.iter().filter_map(|(node, member)| Some(silent(node, self.silence(member)?)));
        let missing = state.known.iter().filter(|(pool, _)| !state.serving.contains_key(pool));
        let missing = missing.filter_map(|(pool, entry)| self.unserved(&state, *pool, Some(entry)));
        let cut = self.left_out(&state);
        silent_nodes.chain(missing).chain(cut).map(|error| error.to_string()).collect()
    }

    /// That not all pools are known: a node that is heard names more than can be kept.
    pub(super) fn left_out(&self, state: &State) -> Option<Error> {
        let heard = state.members.iter().filter(|(_, member)| self.silence(member).is_none());
        let cut = |(node, member): (&NodeId, &super::Member)| {
            let left_out = member.last.as_ref().map_or(0, |last| last.left_out);
            (left_out > 0).then(|| (node.clone(), left_out))
        };
        let (node, left_out) = heard.filter_map(cut).next()?;
        Some(Error::new(
            Kind::Unavailable,
            format!(
                "node {node} names {left_out} pools more than a controller keeps ({}): what is in them is not known; look at directory.json in its state directory, and whether somebody has its key",
                super::MOST_KNOWN
            ),
        ))
    }

    /// Pools that are known and not served now, lost ones among them.
    #[must_use]
    pub fn missing(&self) -> Vec<Entry> {
        let state = self.read();
        let served = |pool: &PoolId| {
            let nodes = state.serving.get(pool).into_iter().flatten();
            nodes.filter_map(|node| state.members.get(node)).any(|member| self.silence(member).is_none())
        };
        state.known.values().filter(|entry| !served(&entry.pool)).cloned().collect()
    }
}

/// Whether the node that had a pool last keeps it out of use.
pub(super) fn quarantined(state: &State, pool: PoolId, entry: &Entry) -> bool {
    let last = state.members.get(&entry.node).and_then(|member| member.last.as_ref());
    last.is_some_and(|last| {
        let of_pool = last.heartbeat.pools.iter().find(|known| known.id == pool);
        of_pool.is_some_and(|pool| matches!(pool.health, Health::Quarantined(_)))
    })
}

pub(super) fn silent(node: &NodeId, since: Duration) -> Error {
    Error::new(
        Kind::Unavailable,
        format!(
            "node {node} has not been heard for {} s; wait for it, look whether holdfast runs there, or if it never returns name it in lostHomes",
            since.as_secs()
        ),
    )
}

pub(super) fn nobody(pool: PoolId) -> Error {
    Error::new(
        Kind::Unavailable,
        format!(
            "pool {pool} is served by no node now: start its node; if its disks were moved, start holdfast where they are: it says what to change"
        ),
    )
}
