//! The directory as a node keeps it on its disk, so that what is where is known when every controller is down, and to a
//! controller that has just started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::os::{Os, Timestamp};
use crate::route::Entry;
use crate::types::{Error, Kind, NodeId, OsContext, PoolId, PoolName, Result};

/// The schema this release writes and reads.
const SCHEMA: u32 = 1;

/// The file `directory.json` in the node's state directory.
#[derive(Debug)]
pub struct Card {
    os: Os,
    path: PathBuf,
    entries: Vec<Entry>,
    /// When each pool was heard, as the file has it.
    written: BTreeMap<PoolId, Timestamp>,
}

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

impl Card {
    /// The card in a directory; empty where there is none. One that cannot be read is told in the log and replaced by
    /// what the controllers say: nothing depends on it but how soon silent homes are known again.
    ///
    /// # Errors
    /// `NotFound` when the directory does not exist; `Internal` when it cannot be looked at.
    pub fn open(os: &Os, directory: &Path) -> Result<Self> {
        let shown = directory.display();
        if os.identity(directory).at(|| format!("look at {shown}"))?.is_none() {
            return Err(Error::new(
                Kind::NotFound,
                format!("the state directory {shown} does not exist; make it: mkdir -p {shown}"),
            ));
        }
        let path = directory.join("directory.json");
        let entries = match Self::read(os, &path) {
            Ok(entries) => entries,
            Err(error) => {
                warn!(error = error.chain(), "the directory of pools on this node's disk is begun anew");
                Vec::new()
            }
        };
        Ok(Self { os: os.clone(), path, written: heard(&entries), entries })
    }

    fn read(os: &Os, path: &Path) -> Result<Vec<Entry>> {
        let Some(text) = os.read_plain(path).at(|| format!("read {}", path.display()))? else { return Ok(Vec::new()) };
        let stored: Stored = serde_json::from_slice(&text).map_err(|error| {
            Error::new(Kind::Corrupt, format!("{} is not a directory of pools", path.display())).because(error)
        })?;
        if stored.schema > SCHEMA {
            let message = format!("{} has schema {}, this release reads {SCHEMA}", path.display(), stored.schema);
            return Err(Error::new(Kind::Unsupported, message));
        }
        let entry = |Line { pool, name, node, endpoint, heard }| Entry { pool, name, node, endpoint, heard };
        Ok(stored.pools.into_iter().map(entry).collect())
    }

    /// What is known.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Takes in what a controller said. It is written when it says something new of where a pool is, or half an hour
    /// after the last writing: that a pool was heard again is no reason to write.
    ///
    /// # Errors
    /// Those of writing the file.
    pub fn learn(&mut self, said: Vec<Entry>) -> Result<()> {
        const OLD: std::time::Duration = std::time::Duration::from_secs(1800);
        let mut write = false;
        for entry in said {
            match self.entries.iter_mut().find(|known| known.pool == entry.pool) {
                Some(known) if known.heard >= entry.heard => {}
                Some(known) => {
                    let moved =
                        known.node != entry.node || known.endpoint != entry.endpoint || known.name != entry.name;
                    let written = self.written.get(&entry.pool).map_or(0, |written| written.as_nanos());
                    let later = entry.heard.as_nanos().saturating_sub(written);
                    if moved {
                        info!(pool = %entry.pool, node = %entry.node, endpoint = entry.endpoint, "where a pool is");
                    }
                    write |= moved || u128::from(later) > OLD.as_nanos();
                    // Remembered at once: a controller that starts judges by what it is told.
                    *known = entry;
                }
                None => {
                    info!(pool = %entry.pool, node = %entry.node, endpoint = entry.endpoint, "where a pool is");
                    self.entries.push(entry);
                    write = true;
                }
            }
        }
        if write { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        self.entries.sort_by_key(|entry| entry.pool);
        let line = |entry: &Entry| Line {
            pool: entry.pool,
            name: entry.name.clone(),
            node: entry.node.clone(),
            endpoint: entry.endpoint.clone(),
            heard: entry.heard,
        };
        let stored = Stored { schema: SCHEMA, pools: self.entries.iter().map(line).collect() };
        let path = self.path.display();
        let mut text = serde_json::to_vec_pretty(&stored)
            .map_err(|error| Error::new(Kind::Internal, format!("write {path} as JSON")).because(error))?;
        text.push(b'\n');
        self.os.replace_file(&self.path, &text).at(|| format!("write {path}"))?;
        self.written = heard(&self.entries);
        Ok(())
    }
}

fn heard(entries: &[Entry]) -> BTreeMap<PoolId, Timestamp> {
    entries.iter().map(|entry| (entry.pool, entry.heard)).collect()
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
        let mut card = Card::open(&Os::new(), directory.path()).unwrap();
        card.learn(vec![entry(A, "node-a", 10)]).unwrap();
        card.learn(vec![entry(A, "node-b", 20)]).unwrap();
        card.learn(vec![entry(A, "node-a", 15)]).unwrap();
        let card = Card::open(&Os::new(), directory.path()).unwrap();
        assert_eq!(card.entries(), [entry(A, "node-b", 20)]);
    }

    #[test]
    fn hearing_a_pool_again_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut card = Card::open(&Os::new(), directory.path()).unwrap();
        card.learn(vec![entry(A, "node-a", 10)]).unwrap();
        let path = directory.path().join("directory.json");
        std::fs::remove_file(&path).unwrap();
        card.learn(vec![entry(A, "node-a", 5_000_000_000)]).unwrap();
        assert!(!path.exists());
        // Not written, and told all the same.
        assert_eq!(card.entries(), [entry(A, "node-a", 5_000_000_000)]);
        for heard in (1..1800).map(|second| second * 1_000_000_000) {
            card.learn(vec![entry(A, "node-a", heard)]).unwrap();
        }
        assert!(!path.exists(), "small steps add up to none");
        card.learn(vec![entry(A, "node-a", 2_000_000_000_000)]).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn a_damaged_card_is_begun_anew_and_a_missing_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("directory.json"), "{").unwrap();
        assert!(Card::open(&Os::new(), directory.path()).unwrap().entries().is_empty());
        let error = Card::open(&Os::new(), &directory.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("mkdir"), "{error}");
    }
}
