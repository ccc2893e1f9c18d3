//! Which home node serves which pool: looked up at each call, because pools move between nodes and handles do not
//! change.
//!
//! In `standalone` there is one home node, which is always there. A controller knows only what nodes report. Each
//! heartbeat names the pools that its node serves, and the directory entries that the node has stored. So a controller
//! that has just started learns of home nodes that are unreachable now. Nothing is written to disk here. An unreachable
//! node is never treated as lost: a pool that no node serves still has its volumes.

mod absence;
mod heartbeat;

pub use heartbeat::{Connections, Entry, Heartbeat, Rhythm, STALLED, Seen, Silence, Trouble, TroubleKind};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tracing::{info, warn};

use self::absence::{nobody, quarantined, silent};
use super::owned::{OwnedHome, Pools};
use super::placement::{NO_FABRIC, Seat, Segments};
use crate::home::{Health, Home, Homes, PoolHealth, PoolReport};
use crate::os::{Stopwatch, Timestamp};
use crate::telemetry::{HomeFigures, HomeState};
use crate::types::{Error, Kind, NodeId, PoolId, PoolName, Result};
use crate::wire::RateLimitedLog;

/// The most pools that are kept because a node has them in its directory, in number and in bytes: the answer to each
/// heartbeat contains them all.
pub const MOST_KNOWN: usize = 8192;
const MOST_KNOWN_BYTES: usize = 2 << 20;
/// The most pools that one node may have had since this controller started.
const MOST_OF_NODE: usize = 1024;
/// The clocks of machines may differ by so much: a time later than that is not used.
const SKEW: Duration = Duration::from_secs(300);

/// What a controller tells a node that sent a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The last known node of each pool.
    pub directory: Vec<Entry>,
    /// The node's own pools that were declared lost.
    pub lost: Vec<PoolId>,
    /// Those of other nodes.
    pub lost_elsewhere: Vec<PoolId>,
}

/// What an operator declared lost: a node with all its pools, or one pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// Every pool that was last served by this node.
    Node(NodeId),
    /// This pool, on any node.
    Pool(PoolId),
}

/// The answer to which node serves a pool.
pub enum Answering {
    /// Its home node.
    Home(Arc<dyn Home>),
    /// None, for good: an operator declared it lost.
    Nobody,
}

/// How a home node is dialled: the node that must answer, and its address.
pub type Dial = Box<dyn Fn(&NodeId, &str) -> Result<Arc<dyn Home>> + Send + Sync>;

/// The home nodes and the other known nodes.
pub struct Directory {
    kind: Roles,
    state: RwLock<State>,
    complaints: RateLimitedLog,
}

/// The source of the directory.
enum Roles {
    /// Home nodes that are always there, and the node that serves the calls, if one of them does.
    Fixed { serving: Option<NodeId>, others: BTreeSet<NodeId> },
    /// Home nodes that register themselves by heartbeats.
    Controller { dial: Dial, rhythm: Rhythm, lost: BTreeSet<Lost>, since: Stopwatch },
}

#[derive(Default)]
struct State {
    members: BTreeMap<NodeId, Member>,
    known: BTreeMap<PoolId, Entry>,
    /// The nodes that report a pool, unreachable ones included: the inverse of `members`.
    serving: BTreeMap<PoolId, BTreeSet<NodeId>>,
    /// The node that reported a pool of which no heartbeat arrived here.
    hearsay: BTreeMap<PoolId, NodeId>,
    known_bytes: usize,
}

impl State {
    /// Stores where a pool is, or was.
    fn know(&mut self, entry: Entry) -> Option<Entry> {
        self.known_bytes += entry.size();
        let before = self.known.insert(entry.pool, entry);
        self.known_bytes -= before.as_ref().map_or(0, Entry::size);
        before
    }

    /// Stores what a node has now, in place of what it had.
    fn join(&mut self, member: Member) {
        let node = member.seat.node.clone();
        let before = self.members.get(&node).map(|before| before.pools.clone()).unwrap_or_default();
        for pool in before.difference(&member.pools) {
            if let Some(nodes) = self.serving.get_mut(pool) {
                nodes.remove(&node);
                if nodes.is_empty() {
                    self.serving.remove(pool);
                }
            }
        }
        for pool in &member.pools {
            self.serving.entry(*pool).or_default().insert(node.clone());
        }
        self.members.insert(node, member);
    }

    /// The node that reported a pool without a heartbeat here, for messages.
    fn as_remembered(&self, pool: PoolId) -> String {
        self.hearsay.get(&pool).map_or_else(String::new, |node| format!(", according to the directory of node {node}"))
    }
}

/// A node that sent a heartbeat to this process.
struct Member {
    home: Arc<dyn Home>,
    seat: Seat,
    pools: BTreeSet<PoolId>,
    /// The same, used to check its answers.
    owned: Pools,
    last: Option<Last>,
}

/// The last heartbeat.
struct Last {
    heartbeat: Heartbeat,
    /// How many entries of its directory are not kept.
    left_out: usize,
    at: Timestamp,
    since: Stopwatch,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.read();
        let homes: Vec<_> = state.members.keys().collect();
        f.debug_struct("Directory").field("homes", &homes).finish_non_exhaustive()
    }
}

impl Directory {
    /// One home node, which serves the calls itself.
    #[must_use]
    pub fn standalone(home: Arc<dyn Home>, pools: impl IntoIterator<Item = PoolId>) -> Self {
        let serving = Some(home.node().clone());
        Self::fixed(serving, [(home, pools.into_iter().collect())])
    }

    /// Home nodes with their pools that are always there; none of them serves the calls.
    pub fn of_homes(homes: impl IntoIterator<Item = (Arc<dyn Home>, Vec<PoolId>)>) -> Self {
        Self::fixed(None, homes)
    }

    fn fixed(serving: Option<NodeId>, homes: impl IntoIterator<Item = (Arc<dyn Home>, Vec<PoolId>)>) -> Self {
        let member = |(home, pools): (Arc<dyn Home>, Vec<PoolId>)| {
            let node = home.node().clone();
            let segments = Segments::of_node(&node, NO_FABRIC);
            let seat = Seat { node: node.clone(), segments };
            Member { home, seat, pools: pools.into_iter().collect(), owned: Pools::default(), last: None }
        };
        let mut state = State::default();
        homes.into_iter().map(member).for_each(|member| state.join(member));
        let kind = Roles::Fixed { serving, others: BTreeSet::new() };
        Self { kind, state: RwLock::new(state), complaints: RateLimitedLog::default() }
    }

    /// The same with nodes that have no pool but may use volumes, where the home nodes are always there.
    #[must_use]
    pub fn with_nodes(mut self, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        if let Roles::Fixed { others, .. } = &mut self.kind {
            others.extend(nodes);
        }
        self
    }

    /// The directory of a controller: empty until heartbeats arrive.
    #[must_use]
    pub fn of_controller(dial: Dial, rhythm: Rhythm, lost: BTreeSet<Lost>) -> Self {
        let kind = Roles::Controller { dial, rhythm, lost, since: Stopwatch::start() };
        Self { kind, state: RwLock::default(), complaints: RateLimitedLog::default() }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Processes a heartbeat. Returns the entries that the node stores on its disk, and those of its pools that are
    /// declared lost.
    ///
    /// # Errors
    /// `InvalidArgument` for an invalid endpoint, and for a node that reports more and more pools.
    pub fn hear(&self, heartbeat: Heartbeat) -> Result<Told> {
        let Roles::Controller { dial, .. } = &self.kind else { return Ok(Told::default()) };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let (now, node) = (Timestamp::now(), heartbeat.node.clone());
        let left_out = self.remember(&mut state, &heartbeat, now);
        let served: BTreeSet<PoolId> = heartbeat
            .pools
            .iter()
            .filter(|pool| !matches!(pool.health, Health::Quarantined(_)))
            .map(|pool| pool.id)
            .collect();
        self.learn(&mut state, &heartbeat, now)?;
        let same =
            |member: &Member| member.last.as_ref().is_some_and(|last| last.heartbeat.endpoint == heartbeat.endpoint);
        let (home, owned) = match state.members.get(&node) {
            Some(member) if same(member) => {
                member.owned.set(&served);
                (Arc::clone(&member.home), member.owned.clone())
            }
            before => {
                if before.is_none() || self.complaints.may_say(node.as_str(), "heard again").is_some() {
                    info!(%node, endpoint = heartbeat.endpoint, version = heartbeat.version, pools = served.len(),
                        again = before.is_some(), "node registered");
                }
                let owned = Pools::of(&served);
                let home: Arc<dyn Home> = Arc::new(OwnedHome::new(dial(&node, &heartbeat.endpoint)?, owned.clone()));
                (home, owned)
            }
        };
        let seat = Seat { node: node.clone(), segments: Segments::of_node(&node, &heartbeat.fabric) };
        let lost = heartbeat.pools.iter().map(|pool| pool.id).filter(|pool| self.is_lost(*pool, &node)).collect();
        let heartbeat = Heartbeat { known: Vec::new(), ..heartbeat };
        let last = Some(Last { heartbeat, left_out, at: now, since: Stopwatch::start() });
        state.join(Member { home, seat, pools: served, owned, last });
        let elsewhere =
            state.known.values().filter(|entry| entry.node != node && self.is_lost(entry.pool, &entry.node));
        let lost_elsewhere = elsewhere.map(|entry| entry.pool).collect();
        Ok(Told { directory: state.known.values().cloned().collect(), lost, lost_elsewhere })
    }

    /// Processes the directory entries of a node; returns how many pools are left out. A heartbeat received here is
    /// newer than an entry, whatever the clocks say. A time in the future counts as unknown: any other node's entry is
    /// better.
    fn remember(&self, state: &mut State, heartbeat: &Heartbeat, now: Timestamp) -> usize {
        let latest = now.as_nanos().saturating_add(u64::try_from(SKEW.as_nanos()).unwrap_or(u64::MAX));
        let (mut left_out, mut early) = (heartbeat.left_out, 0_usize);
        for entry in &heartbeat.known {
            if state.serving.contains_key(&entry.pool) {
                continue;
            }
            let heard = if entry.heard.as_nanos() > latest {
                early += 1;
                Timestamp::from_nanos(0)
            } else {
                entry.heard.min(now)
            };
            match state.known.get(&entry.pool) {
                Some(known) if known.heard >= heard && known.heard <= now => continue,
                Some(_) => {}
                None if state.known.len() >= MOST_KNOWN || state.known_bytes + entry.size() > MOST_KNOWN_BYTES => {
                    left_out += 1;
                    continue;
                }
                None => {}
            }
            state.know(Entry { heard, ..entry.clone() });
            state.hearsay.insert(entry.pool, heartbeat.node.clone());
        }
        let node = &heartbeat.node;
        if early > 0 && self.complaints.may_say(node.as_str(), "early").is_some() {
            warn!(
                %node, early,
                "the node's directory has heartbeat times in the future: they are not used; check the clocks of that \
                 node and of the controllers"
            );
        }
        if left_out > 0 && self.complaints.may_say(node.as_str(), "left out").is_some() {
            warn!(
                %node, left_out, most = MOST_KNOWN,
                "the node's directory names more pools of other nodes than are kept; check whether its key was stolen"
            );
        }
        left_out
    }

    /// Processes the node's own pools.
    fn learn(&self, state: &mut State, heartbeat: &Heartbeat, now: Timestamp) -> Result<()> {
        let node = &heartbeat.node;
        // Entries of other nodes about this one do not count: they may be invented.
        let own = |entry: &Entry| entry.node == *node && !state.hearsay.contains_key(&entry.pool);
        let is_new = |pool: PoolId| state.known.get(&pool).is_none_or(|known| !own(known));
        let new = heartbeat.pools.iter().filter(|pool| is_new(pool.id)).count();
        if new > 0 && new + state.known.values().filter(|entry| own(entry)).count() > MOST_OF_NODE {
            let message = format!(
                "node {node} has reported more than {MOST_OF_NODE} pools since this controller started: its \
                 heartbeats are refused; check whether its key was stolen, then restart the controllers"
            );
            if self.complaints.may_say(node.as_str(), "pools").is_some() {
                warn!("{message}");
            }
            return Err(Error::new(Kind::InvalidArgument, message));
        }
        for pool in &heartbeat.pools {
            let entry = Entry {
                pool: pool.id,
                name: pool.name.clone(),
                node: node.clone(),
                endpoint: heartbeat.endpoint.clone(),
                heard: now,
            };
            state.hearsay.remove(&pool.id);
            if let Some(before) = state.know(entry)
                && before.node != *node
                && self.complaints.may_say(&format!("{node} {}", pool.id), "moved").is_some()
            {
                warn!(pool = %pool.id, from = %before.node, to = %node, "a pool has moved to another node");
            }
        }
        Ok(())
    }

    fn is_lost(&self, pool: PoolId, node: &NodeId) -> bool {
        match &self.kind {
            Roles::Fixed { .. } => false,
            Roles::Controller { lost, .. } => {
                lost.contains(&Lost::Pool(pool)) || lost.contains(&Lost::Node(node.clone()))
            }
        }
    }

    /// How long a member has been unreachable; `None` if it is reachable.
    fn silence(&self, member: &Member) -> Option<Duration> {
        let (Roles::Controller { rhythm, .. }, Some(last)) = (&self.kind, &member.last) else { return None };
        let since = last.since.elapsed();
        (since > rhythm.patience()).then_some(since)
    }

    /// Whether enough heartbeats arrived to decide what exists.
    ///
    /// # Errors
    /// `Unavailable` for a controller in its first two intervals, and for one that received no heartbeat at all.
    pub fn settled(&self) -> Result<()> {
        let Roles::Controller { .. } = &self.kind else { return Ok(()) };
        if let Some(starting) = self.starting() {
            return Err(starting);
        }
        if self.read().members.is_empty() {
            return Err(Error::new(
                Kind::Unavailable,
                "no node has registered with this controller; check that holdfast node runs and that its \
                 --controllers names this controller",
            ));
        }
        Ok(())
    }

    /// The error of a controller in its first two intervals: it has not received the heartbeats of all nodes yet.
    fn starting(&self) -> Option<Error> {
        let Roles::Controller { rhythm, since, .. } = &self.kind else { return None };
        let left = rhythm.settling().checked_sub(since.elapsed())?;
        Some(Error::new(
            Kind::Unavailable,
            format!(
                "this controller has just started and waits for the heartbeats of the nodes; retry in {} s",
                left.as_secs() + 1
            ),
        ))
    }

    /// Whether a node is known: it sent a heartbeat, or another node has an entry of it.
    #[must_use]
    pub fn knows(&self, node: &NodeId) -> bool {
        if let Roles::Fixed { others, .. } = &self.kind
            && others.contains(node)
        {
            return true;
        }
        let state = self.read();
        state.members.contains_key(node) || state.known.values().any(|entry| entry.node == *node)
    }

    /// The node that serves the calls, if it is a home node.
    #[must_use]
    pub fn serving(&self) -> Option<&NodeId> {
        match &self.kind {
            Roles::Fixed { serving, .. } => serving.as_ref(),
            Roles::Controller { .. } => None,
        }
    }

    /// Every reachable home node, in the order of their node ids.
    #[must_use]
    pub fn heard(&self) -> Vec<Arc<dyn Home>> {
        let state = self.read();
        let heard = state.members.values().filter(|member| self.silence(member).is_none());
        heard.map(|member| Arc::clone(&member.home)).collect()
    }

    /// Every home node, for a list that must be complete.
    ///
    /// # Errors
    /// `Unavailable` naming an unreachable node and its last heartbeat, or a pool that no node serves; see
    /// [`Directory::settled`].
    pub fn all(&self) -> Result<Vec<Arc<dyn Home>>> {
        self.settled()?;
        let state = self.read();
        let partial = |error: Error| error.context("the list would be incomplete and is not returned");
        if let Some(error) = self.left_out(&state) {
            return Err(partial(error));
        }
        for (pool, entry) in &state.known {
            // In quarantine since it was declared lost: in no list until an operator has readmitted it.
            if quarantined(&state, *pool, entry) {
                continue;
            }
            if let Some(error) = self.unserved(&state, *pool, Some(entry)) {
                return Err(partial(error));
            }
        }
        // Every pool is accounted for: an unreachable node that is left has none, lost ones, or some that another node
        // serves.
        let heard = state.members.values().filter(|member| self.silence(member).is_none());
        Ok(heard.map(|member| Arc::clone(&member.home)).collect())
    }

    /// The topology of the home nodes, unreachable ones included: no home node knows what another one may have. Without
    /// those declared lost.
    #[must_use]
    pub fn seats(&self) -> Vec<Seat> {
        let state = self.read();
        // The home node that serves the calls knows its pools itself.
        let there = |member: &&Member| {
            let serves = matches!(&self.kind, Roles::Fixed { serving: Some(node), .. } if *node == member.seat.node);
            serves || member.pools.iter().any(|pool| !self.is_lost(*pool, &member.seat.node))
        };
        let mut seats: BTreeMap<_, _> =
            state.members.values().filter(there).map(|member| (&member.seat.node, member.seat.clone())).collect();
        for (pool, entry) in &state.known {
            // No heartbeat since this controller started, or one without the pool: the pool still has its volumes.
            if !self.is_lost(*pool, &entry.node) {
                seats.entry(&entry.node).or_insert_with(|| match state.members.get(&entry.node) {
                    Some(member) => member.seat.clone(),
                    None => Seat { node: entry.node.clone(), segments: Segments::of_node(&entry.node, NO_FABRIC) },
                });
            }
        }
        seats.into_values().collect()
    }

    /// Why a pool (of this name, if one is given) that a node had last is not served now; `None` if it is served or
    /// lost.
    #[must_use]
    pub fn unserved_on(&self, node: &NodeId, name: Option<&PoolName>) -> Option<Error> {
        let state = self.read();
        let had = |entry: &Entry| entry.node == *node && name.is_none_or(|name| entry.name == *name);
        let mut had = state.known.iter().filter(|(_, entry)| had(entry));
        had.find_map(|(pool, entry)| self.unserved(&state, *pool, Some(entry)))
    }

    /// Every home node with its state, for metrics. An unreachable one that has no pool any more, because other nodes
    /// serve its pools, is left out.
    #[must_use]
    pub fn homes(&self) -> Vec<HomeFigures> {
        let Roles::Controller { lost, .. } = &self.kind else { return Vec::new() };
        let state = self.read();
        let mut pools = BTreeMap::<&NodeId, Vec<(PoolId, &Entry)>>::new();
        for (pool, entry) in &state.known {
            pools.entry(&entry.node).or_default().push((*pool, entry));
        }
        let nodes: BTreeSet<&NodeId> = state.members.keys().chain(pools.keys().copied()).collect();
        let figures = |node: &NodeId| {
            let (member, had) = (state.members.get(node), pools.get(node).map_or(&[][..], Vec::as_slice));
            let last = member.and_then(|member| member.last.as_ref());
            let is_silent = member.is_none_or(|member| self.silence(member).is_some());
            if is_silent && had.is_empty() {
                return None;
            }
            let served = member.map(|member| &member.pools);
            let home = if had.iter().any(|(pool, _)| self.is_lost(*pool, node))
                || lost.contains(&Lost::Node(node.clone()))
            {
                HomeState::Lost
            } else if served.is_some_and(|pools| pools.iter().any(|pool| self.serving_pool(&state, *pool).len() > 1)) {
                HomeState::Conflict
            } else if had.iter().any(|(pool, entry)| quarantined(&state, *pool, entry)) {
                HomeState::Quarantined
            } else if is_silent || had.iter().any(|(pool, _)| served.is_none_or(|served| !served.contains(pool))) {
                HomeState::Unreachable
            } else {
                HomeState::Reachable
            };
            let age = |entry: &Entry| entry.heard.age();
            let heard = last.map(|last| last.since.elapsed());
            let heard = heard.or_else(|| had.iter().map(|(_, entry)| age(entry)).min()).unwrap_or_default();
            Some(HomeFigures { node: node.to_string(), state: home, heard })
        };
        nodes.into_iter().filter_map(figures).collect()
    }

    /// The figures of the pools of every node in a topology (of all without one), from recent heartbeats; `None` where
    /// there are no heartbeats and the home node has to be queried.
    #[must_use]
    pub fn figures_in(&self, topology: Option<&Segments>) -> Option<Vec<(NodeId, Vec<PoolReport>)>> {
        let Roles::Controller { rhythm, .. } = &self.kind else { return None };
        let state = self.read();
        let inside = state
            .members
            .values()
            .filter(|member| topology.is_none_or(|topology| topology.covers(&member.seat.segments)));
        let fresh =
            inside.filter_map(|member| member.last.as_ref()).filter(|last| last.since.elapsed() < rhythm.fresh());
        let reports = |last: &Last| {
            let served = last.heartbeat.pools.iter().filter_map(|pool| match &pool.health {
                Health::Served(report) if !self.is_lost(pool.id, &last.heartbeat.node) => Some((**report).clone()),
                _ => None,
            });
            (last.heartbeat.node.clone(), served.collect())
        };
        Some(fresh.map(reports).collect())
    }

    /// The home on a node.
    ///
    /// # Errors
    /// `Unavailable` when there is none, or it is unreachable.
    pub fn home_on(&self, node: &NodeId) -> Result<Arc<dyn Home>> {
        let state = self.read();
        match state.members.get(node) {
            Some(member) => match self.silence(member) {
                None => Ok(Arc::clone(&member.home)),
                Some(since) => Err(silent(node, since)),
            },
            None => Err(Error::new(
                Kind::Unavailable,
                format!("node {node} serves no pool now; wait for it, or start holdfast there"),
            )),
        }
    }

    /// The node that serves a pool now.
    ///
    /// # Errors
    /// `Unavailable`, never `NotFound`: a pool that no node serves still has its volumes. It names the node and its
    /// last heartbeat.
    pub fn answering(&self, pool: PoolId) -> Result<Answering> {
        let state = self.read();
        let entry = state.known.get(&pool);
        let node = entry.map(|entry| &entry.node);
        if let Roles::Controller { lost, .. } = &self.kind
            && (lost.contains(&Lost::Pool(pool)) || node.is_some_and(|node| lost.contains(&Lost::Node(node.clone()))))
        {
            // An entry of another node does not count until its own home node had the time to report.
            if !lost.contains(&Lost::Pool(pool))
                && state.hearsay.contains_key(&pool)
                && let Some(starting) = self.starting()
            {
                return Err(starting);
            }
            return Ok(Answering::Nobody);
        }
        if let Some(error) = self.unserved(&state, pool, entry) {
            return Err(error);
        }
        match self.serving_pool(&state, pool).first() {
            Some((_, member)) => Ok(Answering::Home(Arc::clone(&member.home))),
            None => Err(self.settled().err().unwrap_or_else(|| nobody(pool))),
        }
    }

    /// The nodes that report a pool. An unreachable one does not count if a reachable one reports it: its disks were
    /// moved there and claimed.
    fn serving_pool<'a>(&self, state: &'a State, pool: PoolId) -> Vec<(&'a NodeId, &'a Member)> {
        let nodes = state.serving.get(&pool).into_iter().flatten();
        let said: Vec<_> = nodes.filter_map(|node| state.members.get_key_value(node)).collect();
        // The home node that serves the calls itself knows why it does not serve a pool, or not yet.
        if let (Roles::Fixed { serving: Some(node), .. }, true) = (&self.kind, said.is_empty()) {
            return state.members.get_key_value(node).into_iter().collect();
        }
        let heard: Vec<_> = said.iter().copied().filter(|(_, member)| self.silence(member).is_none()).collect();
        if heard.is_empty() { said } else { heard }
    }

    /// The home node that serves a pool now.
    ///
    /// # Errors
    /// `Unavailable` as [`Directory::answering`]; also for a pool that was declared lost.
    pub fn home_of(&self, pool: PoolId) -> Result<Arc<dyn Home>> {
        match self.answering(pool)? {
            Answering::Home(home) => Ok(home),
            Answering::Nobody => Err(Error::new(
                Kind::Unavailable,
                format!(
                    "pool {pool} was declared lost (lostHomes in the controller's configuration): its volumes and \
                     snapshots can only be deleted"
                ),
            )),
        }
    }

    /// The home node that has a pool, served or in quarantine.
    ///
    /// # Errors
    /// `Precondition` for a pool that is declared lost here; `Unavailable` when the node that had it last is
    /// unreachable.
    pub fn holder(&self, pool: PoolId) -> Result<Arc<dyn Home>> {
        let node = self.read().known.get(&pool).map(|entry| entry.node.clone()).ok_or_else(|| nobody(pool))?;
        if self.is_lost(pool, &node) {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "pool {pool} on node {node} is declared lost in the configuration of this controller; remove it \
                     from lostHomes of every controller first"
                ),
            ));
        }
        self.home_on(&node)
    }

    /// Every node that sent a heartbeat to this process, or whose home node is in it.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        if let Roles::Fixed { .. } = &self.kind {
            return self.heard().iter().map(|home| asked_now(&**home)).collect();
        }
        let state = self.read();
        let seen = state.members.values().filter_map(|member| {
            let last = member.last.as_ref()?;
            let silence = if self.silence(member).is_some() { Silence::Silent } else { Silence::Heard };
            Some(Seen { heartbeat: last.heartbeat.clone(), heard: last.at, silence })
        });
        seen.collect()
    }
}

/// What a home node in this process would report: it sends no heartbeats.
fn asked_now(home: &dyn Home) -> Seen {
    let pools = home.report().unwrap_or_default().into_iter().map(|report| PoolHealth {
        id: report.id,
        name: report.name.clone(),
        health: Health::Served(Box::new(report)),
    });
    let heartbeat = Heartbeat {
        node: home.node().clone(),
        boot_id: String::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        endpoint: String::new(),
        fabric: NO_FABRIC.to_owned(),
        pools: pools.collect(),
        known: Vec::new(),
        left_out: 0,
        connections: None,
    };
    Seen { heartbeat, heard: Timestamp::now(), silence: Silence::Heard }
}

impl Homes for Directory {
    fn of(&self, pool: PoolId) -> Result<Arc<dyn Home>> {
        self.home_of(pool)
    }
}
