//! What is missing: unreachable nodes and pools that no node serves, with errors that name the reason and the next
//! step.

use std::time::Duration;

use super::{Directory, Entry, State};
use crate::home::Health;
use crate::types::{Error, Kind, NodeId, PoolId};

impl Directory {
    /// Why a known pool that is not declared lost is not served; `None` if it is.
    pub(super) fn unserved(&self, state: &State, pool: PoolId, entry: Option<&Entry>) -> Option<Error> {
        let serving: Vec<_> = self.serving_pool(state, pool);
        if let [(one, _), (other, _), ..] = serving.as_slice() {
            return Some(Error::new(
                Kind::Unavailable,
                format!(
                    "nodes {one} and {other} both report pool {pool}: one of them has a copy of its disks; stop \
                     holdfast node on the one with the copy"
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
                    "pool {pool} ({}) on node {} is in quarantine since it was declared lost; check its volumes, \
                     then run holdfast pools readmit {pool}",
                    entry.name, entry.node
                ),
            ));
        }
        Some(match state.members.get(&entry.node) {
            Some(_) => Error::new(
                Kind::Unavailable,
                format!(
                    "node {} does not serve pool {pool} ({}){}, and no other node does; bring its disks back to that \
                     node, or if they are gone for good, add the pool to lostHomes",
                    entry.node,
                    entry.name,
                    match state.as_remembered(pool) {
                        said if said.is_empty() => " any more".to_owned(),
                        said => said,
                    }
                ),
            ),
            // Its next heartbeat may report it: reports of other nodes are not enough to decide that it is missing.
            None => self.starting().unwrap_or_else(|| {
                Error::new(
                    Kind::Unavailable,
                    format!(
                        "node {}, the home node of pool {pool} ({}), has sent no heartbeat since this controller \
                         started; its last heartbeat was {}{}; start it, or if it never returns, add it to lostHomes",
                        entry.node,
                        entry.name,
                        entry.ago(),
                        state.as_remembered(pool)
                    ),
                )
            }),
        })
    }

    /// Why existing objects may be missing from a list: unreachable nodes and missing pools, one sentence each.
    #[must_use]
    pub fn unheard(&self) -> Vec<String> {
        let state = self.read();
        let silent_nodes = state.members.iter().filter_map(|(node, member)| Some(silent(node, self.silence(member)?)));
        let missing = state.known.iter().filter(|(pool, _)| !state.serving.contains_key(pool));
        let missing = missing.filter_map(|(pool, entry)| self.unserved(&state, *pool, Some(entry)));
        let cut = self.left_out(&state);
        silent_nodes.chain(missing).chain(cut).map(|error| error.to_string()).collect()
    }

    /// The error when not all pools are known: a reachable node reports more than the controller keeps.
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
                "node {node} reports {left_out} pools more than a controller keeps ({}): their volumes are unknown; \
                 check directory.json in its state directory, and whether its key was stolen",
                super::MOST_KNOWN
            ),
        ))
    }

    /// Pools that are known and not served now, including lost ones.
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

/// Whether the node that had a pool last keeps it in quarantine.
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
            "node {node} is unreachable: its last heartbeat was {} s ago; wait for it, check that holdfast runs \
             there, or if it never returns, add it to lostHomes",
            since.as_secs()
        ),
    )
}

pub(super) fn nobody(pool: PoolId) -> Error {
    Error::new(
        Kind::Unavailable,
        format!(
            "no node serves pool {pool} now; start its node, or if its disks were moved, start holdfast on the node \
             that has them and follow its log"
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{Heartbeat, Rhythm};
    use super::*;
    use crate::os::Timestamp;

    #[test]
    fn a_controller_that_just_started_judges_no_node() {
        // The node that reports the other one is not dialled in this test.
        let dial = |node: &NodeId, _: &str| Err(Error::new(Kind::Unavailable, format!("{node} is not dialled here")));
        let rhythm = Rhythm { interval: Duration::from_millis(200) };
        let directory = Directory::of_controller(Box::new(dial), rhythm, BTreeSet::new());
        let pool: PoolId = "00000000000000aa".parse().unwrap();
        let heard = Timestamp::now().as_nanos() - 591_000_000_000;
        let known = Entry {
            pool,
            name: "default".parse().unwrap(),
            node: "node-b".parse().unwrap(),
            endpoint: "node-b:9811".to_owned(),
            heard: Timestamp::from_nanos(heard),
        };
        let heartbeat = Heartbeat {
            node: "node-a".parse().unwrap(),
            boot_id: String::new(),
            version: String::new(),
            endpoint: "node-a:9811".to_owned(),
            fabric: "none".to_owned(),
            pools: Vec::new(),
            known: vec![known],
            left_out: 0,
            connections: None,
        };
        directory.hear(heartbeat).unwrap_err();
        let said = || directory.home_of(pool).map(drop).unwrap_err().to_string();
        let early = said();
        assert!(early.contains("has just started") && !early.contains("lostHomes"), "{early}");
        std::thread::sleep(rhythm.settling());
        let late = said();
        assert!(late.contains("node-b") && late.contains("591 s ago"), "{late}");
    }
}
