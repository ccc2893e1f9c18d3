//! Which home serves which pool: looked up at each call, because pools move between nodes and handles do not change.
//!
//! In `standalone` there is one home, which is always there. A controller knows only what nodes tell it: each heartbeat
//! says what its node serves, and what the node was told before of all the others, so that a controller that has just
//! started learns of homes that are silent now. Nothing here is written to a disk, and nothing is concluded from
//! silence: a pool that nobody serves still has its volumes.

mod absence;
mod heartbeat;

pub use heartbeat::{Entry, Heartbeat, Rhythm, Seen, Silence};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tracing::{info, warn};

use self::absence::{nobody, quarantined, silent};
use super::owned::{OwnedHome, Pools};
use super::placement::{NO_FABRIC, Seat, Segments};
use crate::home::{Health, Home, PoolReport};
use crate::os::{Stopwatch, Timestamp};
use crate::telemetry::{HomeFigures, HomeState};
use crate::types::{Error, Kind, NodeId, PoolId, PoolName, Result};
use crate::wire::Complaints;

/// Pools that are kept in mind because somebody remembers them, in number and in bytes: the answer to each heartbeat has them all.
pub const MOST_KNOWN: usize = 8192;
const MOST_KNOWN_BYTES: usize = 2 << 20;
/// Pools that one node may have had since this controller started.
const MOST_OF_NODE: usize = 1024;
/// Clocks of machines may differ by so much: what was heard later than that from now on was not heard then.
const SKEW: Duration = Duration::from_secs(300);

/// What a human declared lost: a node with all its pools, or one pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// Every pool that was last served by this node.
    Node(NodeId),
    /// This pool, wherever it was.
    Pool(PoolId),
}

/// Who answers for a pool.
pub enum Answering {
    /// Its home.
    Home(Arc<dyn Home>),
    /// Nobody ever again: a human declared it lost.
    Nobody,
}

/// How a home is dialled: the node that must answer, and where.
pub type Dial = Box<dyn Fn(&NodeId, &str) -> Result<Arc<dyn Home>> + Send + Sync>;

/// The homes there are and the nodes that are known.
pub struct Directory {
    kind: Roles,
    state: RwLock<State>,
    complaints: Complaints,
}

/// What the directory is made of.
enum Roles {
    /// Homes that are always there, and the node that serves the calls, if one of them does.
    Fixed { serving: Option<NodeId>, others: BTreeSet<NodeId> },
    /// Homes on nodes, which make themselves known.
    Controller { dial: Dial, rhythm: Rhythm, lost: BTreeSet<Lost>, since: Stopwatch },
}

#[derive(Default)]
struct State {
    members: BTreeMap<NodeId, Member>,
    known: BTreeMap<PoolId, Entry>,
    /// The nodes that say they serve a pool, silent ones among them: the other way round than in `members`.
    serving: BTreeMap<PoolId, BTreeSet<NodeId>>,
    /// Who remembers a pool that was not heard here.
    hearsay: BTreeMap<PoolId, NodeId>,
    known_bytes: usize,
}

impl State {
    /// Keeps where a pool is, or was.
    fn know(&mut self, entry: Entry) -> Option<Entry> {
        self.known_bytes += entry.size();
        let before = self.known.insert(entry.pool, entry);
        self.known_bytes -= before.as_ref().map_or(0, Entry::size);
        before
    }

    /// Keeps what a node has now, in place of what it had.
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

    /// Who says so of a pool that was not heard here, for messages.
    fn as_remembered(&self, pool: PoolId) -> String {
        self.hearsay.get(&pool).map_or_else(String::new, |node| format!(", as node {node} remembers"))
    }
}

/// A node that was heard in this life.
struct Member {
    home: Arc<dyn Home>,
    seat: Seat,
    pools: BTreeSet<PoolId>,
    /// The same, as its answers are checked by.
    owned: Pools,
    last: Option<Last>,
}

/// The last heartbeat.
struct Last {
    heartbeat: Heartbeat,
    /// How many pools that it remembers are not kept.
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
    /// One home that is all there is, and serves the calls itself.
    #[must_use]
    pub fn standalone(home: Arc<dyn Home>, pools: impl IntoIterator<Item = PoolId>) -> Self {
        let serving = Some(home.node().clone());
        Self::fixed(serving, [(home, pools.into_iter().collect())])
    }

    /// Homes with their pools that are always there; none of them serves the calls.
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
        Self { kind, state: RwLock::new(state), complaints: Complaints::default() }
    }

    /// The same with nodes that have no pool of their own but may use volumes, where homes are always there.
    #[must_use]
    pub fn with_nodes(mut self, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        if let Roles::Fixed { others, .. } = &mut self.kind {
            others.extend(nodes);
        }
        self
    }

    /// A controller's: empty until nodes are heard.
    #[must_use]
    pub fn of_controller(dial: Dial, rhythm: Rhythm, lost: BTreeSet<Lost>) -> Self {
        let kind = Roles::Controller { dial, rhythm, lost, since: Stopwatch::start() };
        Self { kind, state: RwLock::default(), complaints: Complaints::default() }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a heartbeat in. The answer is what the node keeps on its disk, and which of its pools were declared lost.
    ///
    /// # Errors
    /// `InvalidArgument` for an endpoint that is none, and for a node that names ever more pools.
    pub fn hear(&self, heartbeat: Heartbeat) -> Result<(Vec<Entry>, Vec<PoolId>)> {
        let Roles::Controller { dial, .. } = &self.kind else { return Ok((Vec::new(), Vec::new())) };
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
                        again = before.is_some(), "node heard");
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
        Ok((state.known.values().cloned().collect(), lost))
    }

    /// Takes in what a node was told before of others; how many pools are left out. What was heard here is newer than what a node
    /// remembers, whatever the clocks of machines say. A time that has not come yet is taken for one that is not known: anybody
    /// else's word is better.
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
            warn!(%node, early, "it says of pools that they were heard at a time that has not come yet: that time is not used; look at the clocks of that node and of the controllers");
        }
        if left_out > 0 && self.complaints.may_say(node.as_str(), "left out").is_some() {
            warn!(%node, left_out, most = MOST_KNOWN, "it names more pools of others than are kept: look whether somebody has its key");
        }
        left_out
    }

    /// Takes in what a node has itself.
    fn learn(&self, state: &mut State, heartbeat: &Heartbeat, now: Timestamp) -> Result<()> {
        let node = &heartbeat.node;
        // What another node remembers of this one does not count: it may be invented.
        let own = |entry: &Entry| entry.node == *node && !state.hearsay.contains_key(&entry.pool);
        let is_new = |pool: PoolId| state.known.get(&pool).is_none_or(|known| !own(known));
        let new = heartbeat.pools.iter().filter(|pool| is_new(pool.id)).count();
        if new > 0 && new + state.known.values().filter(|entry| own(entry)).count() > MOST_OF_NODE {
            let message = format!(
                "node {node} has named more than {MOST_OF_NODE} pools since this controller started: it is not heard any more; look whether somebody has its key, then restart the controllers"
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
                warn!(pool = %pool.id, from = %before.node, to = %node, "a pool is on another node now");
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

    /// Since when a member is silent, if it is.
    fn silence(&self, member: &Member) -> Option<Duration> {
        let (Roles::Controller { rhythm, .. }, Some(last)) = (&self.kind, &member.last) else { return None };
        let since = last.since.elapsed();
        (since > rhythm.patience()).then_some(since)
    }

    /// Whether enough was heard to say what exists and what does not.
    ///
    /// # Errors
    /// `Unavailable` for a controller in its first two intervals, and for one that heard no node at all.
    pub fn settled(&self) -> Result<()> {
        let Roles::Controller { .. } = &self.kind else { return Ok(()) };
        if let Some(starting) = self.starting() {
            return Err(starting);
        }
        if self.read().members.is_empty() {
            return Err(Error::new(
                Kind::Unavailable,
                "no node has made itself known to this controller; is holdfast node running, and does its --controllers name this controller?",
            ));
        }
        Ok(())
    }

    /// What a controller in its first two intervals says: it has not heard all nodes yet.
    fn starting(&self) -> Option<Error> {
        let Roles::Controller { rhythm, since, .. } = &self.kind else { return None };
        let left = rhythm.settling().checked_sub(since.elapsed())?;
        Some(Error::new(
            Kind::Unavailable,
            format!(
                "this controller has just started and still waits to hear from the nodes; ask again in {} s",
                left.as_secs() + 1
            ),
        ))
    }

    /// Whether a node exists: heard, or said by another to have had a pool.
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

    /// The node that serves the calls, if it is a home.
    #[must_use]
    pub fn serving(&self) -> Option<&NodeId> {
        match &self.kind {
            Roles::Fixed { serving, .. } => serving.as_ref(),
            Roles::Controller { .. } => None,
        }
    }

    /// Every home that can be asked now, in the order of their nodes.
    #[must_use]
    pub fn heard(&self) -> Vec<Arc<dyn Home>> {
        let state = self.read();
        let heard = state.members.values().filter(|member| self.silence(member).is_none());
        heard.map(|member| Arc::clone(&member.home)).collect()
    }

    /// Every home, for a list that has to be whole.
    ///
    /// # Errors
    /// `Unavailable` naming a node that is silent and since when, or a pool nobody serves; see [`Directory::settled`].
    pub fn all(&self) -> Result<Vec<Arc<dyn Home>>> {
        self.settled()?;
        let state = self.read();
        let partial = |error: Error| error.context("the list would be incomplete, so none is given");
        if let Some(error) = self.left_out(&state) {
            return Err(partial(error));
        }
        for (pool, entry) in &state.known {
            // Out of use since it was declared lost: in no list until a human has looked at it.
            if quarantined(&state, *pool, entry) {
                continue;
            }
            if let Some(error) = self.unserved(&state, *pool, Some(entry)) {
                return Err(partial(error));
            }
        }
        // Every pool was answered for: a silent node that is left has none, lost ones, or some that are another's now.
        let heard = state.members.values().filter(|member| self.silence(member).is_none());
        Ok(heard.map(|member| Arc::clone(&member.home)).collect())
    }

    /// Where homes are, silent ones among them: what a home may have, no other home can deny. Without what was declared
    /// lost.
    #[must_use]
    pub fn seats(&self) -> Vec<Seat> {
        let state = self.read();
        // The home that serves the calls says itself which pools it has by now.
        let there = |member: &&Member| {
            let serves = matches!(&self.kind, Roles::Fixed { serving: Some(node), .. } if *node == member.seat.node);
            serves || member.pools.iter().any(|pool| !self.is_lost(*pool, &member.seat.node))
        };
        let mut seats: BTreeMap<_, _> =
            state.members.values().filter(there).map(|member| (&member.seat.node, member.seat.clone())).collect();
        for (pool, entry) in &state.known {
            // Not heard since this controller started, or heard and without its pool: that still has its volumes.
            if !self.is_lost(*pool, &entry.node) {
                seats.entry(&entry.node).or_insert_with(|| match state.members.get(&entry.node) {
                    Some(member) => member.seat.clone(),
                    None => Seat { node: entry.node.clone(), segments: Segments::of_node(&entry.node, NO_FABRIC) },
                });
            }
        }
        seats.into_values().collect()
    }

    /// Why a pool that a node had last is not served now, if there is one and it is not lost; of this name, if one is given.
    #[must_use]
    pub fn unserved_on(&self, node: &NodeId, name: Option<&PoolName>) -> Option<Error> {
        let state = self.read();
        let had = |entry: &Entry| entry.node == *node && name.is_none_or(|name| entry.name == *name);
        let mut had = state.known.iter().filter(|(_, entry)| had(entry));
        had.find_map(|(pool, entry)| self.unserved(&state, *pool, Some(entry)))
    }

    /// Every home with its state, for metrics. One that is silent and has nothing any more, because another node serves
    /// its pools, is left out.
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
                HomeState::Doubled
            } else if had.iter().any(|(pool, entry)| quarantined(&state, *pool, entry)) {
                HomeState::Quarantined
            } else if is_silent || had.iter().any(|(pool, _)| served.is_none_or(|served| !served.contains(pool))) {
                HomeState::Silent
            } else {
                HomeState::Heard
            };
            let age = |entry: &Entry| entry.heard.age();
            let heard = last.map(|last| last.since.elapsed());
            let heard = heard.or_else(|| had.iter().map(|(_, entry)| age(entry)).min()).unwrap_or_default();
            Some(HomeFigures { node: node.to_string(), state: home, heard })
        };
        nodes.into_iter().filter_map(figures).collect()
    }

    /// The figures of the pools of every node inside a topology (all without one), from heartbeats that are not too
    /// old; `None` where there are no heartbeats and the home is to be asked.
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
    /// `Unavailable` when there is none, or it is silent.
    pub fn home_on(&self, node: &NodeId) -> Result<Arc<dyn Home>> {
        let state = self.read();
        match state.members.get(node) {
            Some(member) => match self.silence(member) {
                None => Ok(Arc::clone(&member.home)),
                Some(since) => Err(silent(node, since)),
            },
            None => Err(Error::new(
                Kind::Unavailable,
                format!("node {node} serves no pools now; wait for it, or start holdfast there"),
            )),
        }
    }

    /// Who answers for a pool now.
    ///
    /// # Errors
    /// `Unavailable`, never `NotFound`: a pool nobody serves still has its volumes. It names the node and since when.
    pub fn answering(&self, pool: PoolId) -> Result<Answering> {
        let state = self.read();
        let entry = state.known.get(&pool);
        let node = entry.map(|entry| &entry.node);
        if let Roles::Controller { lost, .. } = &self.kind
            && (lost.contains(&Lost::Pool(pool)) || node.is_some_and(|node| lost.contains(&Lost::Node(node.clone()))))
        {
            // What only others remember is no word of its home: that has its time to say otherwise.
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

    /// The nodes that say they serve a pool. One that is silent does not count where another says so now: its disks were
    /// moved away and claimed, or it would not be another's.
    fn serving_pool<'a>(&self, state: &'a State, pool: PoolId) -> Vec<(&'a NodeId, &'a Member)> {
        let nodes = state.serving.get(&pool).into_iter().flatten();
        let said: Vec<_> = nodes.filter_map(|node| state.members.get_key_value(node)).collect();
        // The home that serves the calls itself says why it does not serve a pool, or not yet.
        if let (Roles::Fixed { serving: Some(node), .. }, true) = (&self.kind, said.is_empty()) {
            return state.members.get_key_value(node).into_iter().collect();
        }
        let heard: Vec<_> = said.iter().copied().filter(|(_, member)| self.silence(member).is_none()).collect();
        if heard.is_empty() { said } else { heard }
    }

    /// The home that serves a pool now.
    ///
    /// # Errors
    /// `Unavailable` as [`Directory::answering`]; also for a pool that was declared lost.
    pub fn home_of(&self, pool: PoolId) -> Result<Arc<dyn Home>> {
        match self.answering(pool)? {
            Answering::Home(home) => Ok(home),
            Answering::Nobody => Err(Error::new(
                Kind::Unavailable,
                format!(
                    "pool {pool} was declared lost (lostHomes in the controller's configuration): what was in it can only be deleted"
                ),
            )),
        }
    }

    /// The home that has a pool, served or in quarantine.
    ///
    /// # Errors
    /// `Precondition` for a pool that is declared lost here; `Unavailable` when the node that had it last is not heard.
    pub fn holder(&self, pool: PoolId) -> Result<Arc<dyn Home>> {
        let node = self.read().known.get(&pool).map(|entry| entry.node.clone()).ok_or_else(|| nobody(pool))?;
        if self.is_lost(pool, &node) {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "pool {pool} on node {node} is declared lost in the configuration of this controller; take it out of lostHomes of every controller first"
                ),
            ));
        }
        self.home_on(&node)
    }

    /// Every node heard in this life.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        let state = self.read();
        let seen = state.members.values().filter_map(|member| {
            let last = member.last.as_ref()?;
            let silence = if self.silence(member).is_some() { Silence::Silent } else { Silence::Heard };
            Some(Seen { heartbeat: last.heartbeat.clone(), heard: last.at, silence })
        });
        seen.collect()
    }
}
