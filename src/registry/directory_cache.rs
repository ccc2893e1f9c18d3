//! The directory of pools that a node keeps on its disk. It says where each pool is when every controller is down, and
//! tells it to a controller that has just started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::os::{Os, Timestamp};
use crate::route::{Entry, MOST_KNOWN};
use crate::types::{Error, Kind, NodeId, OsContext, PoolId, PoolName, Result};

/// The schema this release writes and reads.
const SCHEMA: u32 = 1;

/// The file `directory.json` in the node's state directory.
#[derive(Debug)]
pub struct DirectoryCache {
    os: Os,
    path: PathBuf,
    entries: BTreeMap<PoolId, Entry>,
    /// When the last heartbeat of each was, according to the file.
    written: BTreeMap<PoolId, Timestamp>,
}

/// The largest file: a longer one is not read (`Os::read_plain`).
const LARGEST: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Stored {
    schema: u32,
    pools: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    pool: PoolId,
    name: PoolName,
    node: NodeId,
    endpoint: String,
    heard: Timestamp,
}

impl DirectoryCache {
    /// The directory file in a directory; empty where there is none. An unreadable file is logged and replaced by what
    /// the controllers report: it only decides how soon unreachable home nodes are known again.
    ///
    /// # Errors
    /// `NotFound` when the directory does not exist; `Internal` when it cannot be accessed.
    pub fn open(os: &Os, directory: &Path) -> Result<Self> {
        let shown = directory.display();
        if os.identity(directory).at(|| format!("access {shown}"))?.is_none() {
            return Err(Error::new(
                Kind::NotFound,
                format!("the state directory {shown} does not exist; create it: mkdir -p {shown}"),
            ));
        }
        let path = directory.join("directory.json");
        let read = match Self::read(os, &path) {
            Ok(entries) => entries,
            Err(error) => {
                warn!(
                    error = error.chain(),
                    "the directory of pools on this node's disk cannot be used and is replaced by a new one"
                );
                Vec::new()
            }
        };
        let written = read.iter().map(|entry| (entry.pool, entry.heard)).collect();
        let entries = read.into_iter().map(|entry| (entry.pool, entry)).collect();
        Ok(Self { os: os.clone(), path, entries, written })
    }

    fn read(os: &Os, path: &Path) -> Result<Vec<Entry>> {
        let Some(text) = os.read_plain(path).at(|| format!("read {}", path.display()))? else { return Ok(Vec::new()) };
        let stored: Stored = serde_json::from_slice(&text).map_err(|error| {
            Error::new(Kind::Corrupt, format!("{} is not a valid directory of pools", path.display())).because(error)
        })?;
        if stored.schema > SCHEMA {
            let message =
                format!("{} has schema {}, but this release reads only schema {SCHEMA}", path.display(), stored.schema);
            return Err(Error::new(Kind::Unsupported, message));
        }
        let entry = |Line { pool, name, node, endpoint, heard }| Entry { pool, name, node, endpoint, heard };
        Ok(stored.pools.into_iter().map(entry).collect())
    }

    /// All entries.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.values().cloned().collect()
    }

    /// The node that is known to have a pool, and its `HOST:PORT`.
    #[must_use]
    pub fn location_of(&self, pool: PoolId) -> Option<(NodeId, String)> {
        self.entries.get(&pool).map(|entry| (entry.node.clone(), entry.endpoint.clone()))
    }

    /// The pools that a node is known to have: a controller received its heartbeat with them, and no later one of
    /// another node.
    #[must_use]
    pub fn pools_of(&self, node: &NodeId) -> Vec<(PoolName, PoolId)> {
        // The latest first: a pool that was replaced by one of the same name is still known.
        let mut of_node: Vec<_> = self.entries.values().filter(|entry| entry.node == *node).collect();
        of_node.sort_by_key(|entry| std::cmp::Reverse(entry.heard));
        of_node.into_iter().map(|entry| (entry.name.clone(), entry.pool)).collect()
    }

    /// Stores the entries of a controller. The file is written when an entry is new or a pool has moved, or half an
    /// hour after the last write: a newer heartbeat alone is no reason to write. A later time wins, and a time in the
    /// future wins over nothing: a clock was wrong.
    ///
    /// # Errors
    /// Those of writing the file.
    pub fn learn(&mut self, said: Vec<Entry>) -> Result<()> {
        const OLD: std::time::Duration = std::time::Duration::from_secs(1800);
        let (now, mut write) = (Timestamp::now(), false);
        for entry in said.into_iter().take(MOST_KNOWN) {
            let known = self.entries.get(&entry.pool);
            if known.is_some_and(|known| known.heard >= entry.heard && known.heard <= now) {
                continue;
            }
            let moved = known.is_none_or(|known| {
                known.node != entry.node || known.endpoint != entry.endpoint || known.name != entry.name
            });
            if moved {
                info!(pool = %entry.pool, node = %entry.node, endpoint = entry.endpoint, "location of a pool");
            }
            let written = self.written.get(&entry.pool).map_or(0, |at| at.as_nanos());
            let later = entry.heard.as_nanos().saturating_sub(written);
            write |= moved || u128::from(later) > OLD.as_nanos();
            self.entries.insert(entry.pool, entry);
        }
        if write { self.write() } else { Ok(()) }
    }

    /// Removes the entries with the oldest heartbeats, until so many are left.
    fn keep(&mut self, most: usize) {
        let left_out = self.entries.len().saturating_sub(most);
        if left_out == 0 {
            return;
        }
        let mut by_age: Vec<_> = self.entries.values().map(|entry| (entry.heard, entry.pool)).collect();
        by_age.sort_unstable();
        for (_, pool) in by_age.into_iter().take(left_out) {
            self.entries.remove(&pool);
        }
        warn!(left_out, most, "more pools are known than can be stored: those with the oldest heartbeats are left out");
    }

    fn text(&self) -> Result<Vec<u8>> {
        let line = |entry: &Entry| Line {
            pool: entry.pool,
            name: entry.name.clone(),
            node: entry.node.clone(),
            endpoint: entry.endpoint.clone(),
            heard: entry.heard,
        };
        let stored = Stored { schema: SCHEMA, pools: self.entries.values().map(line).collect() };
        serde_json::to_vec(&stored).map_err(|error| {
            Error::new(Kind::Internal, format!("write {} as JSON", self.path.display())).because(error)
        })
    }

    fn write(&mut self) -> Result<()> {
        self.keep(MOST_KNOWN);
        let mut text = self.text()?;
        while text.len() >= LARGEST && !self.entries.is_empty() {
            self.keep(self.entries.len() * 7 / 8);
            text = self.text()?;
        }
        text.push(b'\n');
        self.os.replace_file(&self.path, &text).at(|| format!("write {}", self.path.display()))?;
        self.written = self.entries.values().map(|entry| (entry.pool, entry.heard)).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pool: &str, node: &str, heard: u64) -> Entry {
        Entry {
            pool: pool.parse().unwrap(),
            name: "default".parse().unwrap(),
            node: node.parse().unwrap(),
            endpoint: format!("{node}:9810"),
            heard: Timestamp::from_nanos(heard),
        }
    }

    const A: &str = "00000000000000aa";

    #[test]
    fn what_was_learnt_is_there_in_the_next_life_and_the_older_word_does_not_win() {
        let directory = tempfile::tempdir().unwrap();
        let mut card = DirectoryCache::open(&Os::new(), directory.path()).unwrap();
        card.learn(vec![entry(A, "node-a", 10)]).unwrap();
        card.learn(vec![entry(A, "node-b", 20)]).unwrap();
        card.learn(vec![entry(A, "node-a", 15)]).unwrap();
        let card = DirectoryCache::open(&Os::new(), directory.path()).unwrap();
        assert_eq!(card.entries(), [entry(A, "node-b", 20)]);
    }

    #[test]
    fn hearing_a_pool_again_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut card = DirectoryCache::open(&Os::new(), directory.path()).unwrap();
        card.learn(vec![entry(A, "node-a", 10)]).unwrap();
        let path = directory.path().join("directory.json");
        std::fs::remove_file(&path).unwrap();
        card.learn(vec![entry(A, "node-a", 5_000_000_000)]).unwrap();
        assert!(!path.exists());
        card.learn(vec![entry(A, "node-a", 2_000_000_000_000)]).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn a_damaged_card_is_begun_anew_and_a_missing_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("directory.json"), "{").unwrap();
        assert!(DirectoryCache::open(&Os::new(), directory.path()).unwrap().entries().is_empty());
        let error = DirectoryCache::open(&Os::new(), &directory.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("mkdir"), "{error}");
    }

    #[test]
    fn a_time_that_has_not_come_wins_over_nothing_and_the_latest_is_told_without_writing() {
        let directory = tempfile::tempdir().unwrap();
        let mut card = DirectoryCache::open(&Os::new(), directory.path()).unwrap();
        let now = Timestamp::now().as_nanos();
        card.learn(vec![entry(A, "liar", u64::MAX - 1)]).unwrap();
        card.learn(vec![entry(A, "node-a", now - 1_000)]).unwrap();
        card.learn(vec![entry(A, "node-a", now)]).unwrap();
        assert_eq!(card.entries(), [entry(A, "node-a", now)]);
        let card = DirectoryCache::open(&Os::new(), directory.path()).unwrap();
        assert_eq!(card.entries(), [entry(A, "node-a", now - 1_000)]);
    }

    #[test]
    fn more_pools_than_can_be_kept_do_not_cost_those_that_were_heard_last() {
        let directory = tempfile::tempdir().unwrap();
        let mut card = DirectoryCache::open(&Os::new(), directory.path()).unwrap();
        let long =
            |n: u64| Entry { endpoint: format!("{}:1", "x".repeat(250)), ..entry(&format!("{n:016x}"), "b", n + 1) };
        let count = u64::try_from(MOST_KNOWN).unwrap();
        card.learn((0..count).map(long).collect()).unwrap();
        card.learn((count..count + 5).map(long).collect()).unwrap();
        let card = DirectoryCache::open(&Os::new(), directory.path()).unwrap();
        let kept = card.entries();
        assert!(kept.len() > 1000 && kept.len() < MOST_KNOWN, "{}", kept.len());
        assert_eq!(kept.last().map(|entry| entry.heard.as_nanos()), Some(count + 5));
    }
}
