//! pool.json identifies a pool. Only the owner writes it, when it creates the pool and when the fields change. Fields
//! of a newer release are kept.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::Cloning;
use super::filesystem::MAX_EXTENTS;
use super::layout::{Layout, POOL_FILE};
use crate::os::{Os, Timestamp};
use crate::types::{Error, Kind, NodeId, OsContext, PoolId, PoolName, Result};

/// The schema this release writes and reads.
const SCHEMA: u32 = 1;

/// The content of pool.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolFile {
    /// Schema of this file; a later one is an error.
    schema: u32,
    pub(super) id: PoolId,
    pub(super) name: PoolName,
    pub(super) home: NodeId,
    /// What the owner found when it last opened the pool. Read-only users must not test this themselves.
    pub(super) cloning: Found,
    /// Since when the pool is in quarantine: it was declared lost and came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) quarantined: Option<Timestamp>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

/// [`Cloning`] as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Found {
    Reflink,
    Copy,
}

impl From<Cloning> for Found {
    fn from(cloning: Cloning) -> Self {
        match cloning {
            Cloning::Instant { .. } => Self::Reflink,
            Cloning::Copy | Cloning::None => Self::Copy,
        }
    }
}

impl From<Found> for Cloning {
    fn from(found: Found) -> Self {
        match found {
            Found::Reflink => Self::Instant { max_extents: MAX_EXTENTS },
            Found::Copy => Self::Copy,
        }
    }
}

impl PoolFile {
    /// The content for a new pool.
    pub(super) fn new(name: &PoolName, home: &NodeId, cloning: Cloning) -> Self {
        Self {
            schema: SCHEMA,
            id: PoolId::random(),
            name: name.clone(),
            home: home.clone(),
            cloning: cloning.into(),
            quarantined: None,
            unknown: Map::new(),
        }
    }

    /// Reads it; `None` where no pool was created yet.
    ///
    /// # Errors
    /// Those of [`PoolFile::parse`].
    pub(super) fn read(os: &Os, layout: &Layout) -> Result<Option<Self>> {
        let path = layout.pool_file();
        let text = os.read_plain(&path).at(|| format!("read {}", path.display()))?;
        text.map(|text| Self::parse(&path, &text)).transpose()
    }

    /// Reads it where there must be a pool.
    ///
    /// # Errors
    /// `NotFound` where there is no pool; those of [`PoolFile::parse`].
    pub(super) fn present(os: &Os, layout: &Layout) -> Result<Self> {
        Self::read(os, layout)?.ok_or_else(|| {
            let root = layout.root().display();
            Error::new(
                Kind::NotFound,
                format!(
                    "there is no pool in {root}: it has no {POOL_FILE}; a node creates one when it first starts with --pool NAME=file:{root}"
                ),
            )
        })
    }

    /// Parses the text of a pool.json; `path` is for messages.
    ///
    /// # Errors
    /// `Corrupt` for a file that is not a pool.json; `Unsupported` for one of a later release.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let corrupt = |error| {
            Error::new(
                Kind::Corrupt,
                format!(
                    "{} is not a valid {POOL_FILE}; restore the original file of this pool: its id is part of every volume's handle",
                    path.display()
                ),
            )
            .because(error)
        };
        let Schema { schema } = serde_json::from_slice(text).map_err(corrupt)?;
        if schema > SCHEMA {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "{} has schema {schema}, but this release reads schemas up to {SCHEMA}; run the release that wrote it or a later one",
                    path.display()
                ),
            ));
        }
        serde_json::from_slice(text).map_err(corrupt)
    }

    /// The text to store, fields of later releases included.
    ///
    /// # Errors
    /// `Internal` if it cannot be serialised as JSON, which does not happen with these types.
    pub fn encode(&self, path: &Path) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::new(Kind::Internal, format!("write {} as JSON", path.display())).because(error))?;
        text.push(b'\n');
        Ok(text)
    }

    /// Writes it durably: after a crash the old or the new content is there.
    pub(super) fn write(&self, os: &Os, layout: &Layout) -> Result<()> {
        let path = layout.pool_file();
        os.replace_file(&path, &self.encode(&path)?).at(|| format!("write {}", path.display()))
    }

    /// Checks whether a driver on this node, configured with this name, may own the pool.
    ///
    /// # Errors
    /// `Precondition`, with the next step for the operator.
    pub(super) fn belongs(&self, layout: &Layout, name: &PoolName, home: &NodeId) -> Result<()> {
        if self.home != *home {
            let root = layout.root().display();
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "the pool in {root} belongs to node {}, but this is node {home}; if its disks stay here, run holdfast pools claim --node-name {home} --pool {name}=file:{root}",
                    self.home
                ),
            ));
        }
        self.is_called(layout, name)
    }

    /// Checks whether the pool has the configured name.
    pub(super) fn is_called(&self, layout: &Layout, name: &PoolName) -> Result<()> {
        let path = layout.pool_file();
        let path = path.display();
        if self.name != *name {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "the pool in {} has the name {}, but the configuration has {name}; configure it as {}, or set the field \"name\" in {path} to \"{name}\"",
                    layout.root().display(),
                    self.name,
                    self.name
                ),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_schema_one_reads_and_keeps_what_it_does_not_know() {
        let text = r#"{"schema":1,"id":"00000000000000ab","name":"default","home":"node-1","cloning":"reflink","colour":"blue"}"#;
        let file: PoolFile = serde_json::from_str(text).unwrap();
        assert_eq!(Cloning::from(file.cloning), Cloning::Instant { max_extents: MAX_EXTENTS });
        assert_eq!(serde_json::to_value(&file).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }
}
