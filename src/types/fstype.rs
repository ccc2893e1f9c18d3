//! The filesystems that a volume can have.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Error, Kind};

/// A filesystem that Holdfast makes, checks, mounts and grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext4, the default.
    Ext4,
    /// XFS.
    Xfs,
}

impl FsType {
    /// All of them, for tables and messages.
    pub const ALL: [Self; 2] = [Self::Ext4, Self::Xfs];

    /// The kernel's name, as in /proc/filesystems.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FsType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|fs| fs.as_str() == text).ok_or_else(|| {
            Error::new(Kind::InvalidArgument, format!("filesystem {text:?} is not supported; use ext4 or xfs"))
        })
    }
}
