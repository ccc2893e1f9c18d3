//! The `--pool` argument: `NAME=file:DIR`.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use crate::types::{Error, Kind, PoolName, Result};

/// A pool as the configuration describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// The name that users give it. It must be the name in the pool's own pool.json.
    pub name: PoolName,
    /// Its kind and location.
    pub kind: PoolKind,
}

/// The kinds of pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// Image files in a directory.
    File {
        /// An absolute path without `.` and `..`, not `/`.
        root: PathBuf,
        /// The filesystems that the directory may be on.
        ground: BackingFs,
    },
}

/// The filesystems that a pool's directory may be on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackingFs {
    /// XFS, ext4 and btrfs: their guarantees were tested.
    #[default]
    Known,
    /// FUSE too. For tests only: it is unknown what such a filesystem keeps after a power loss.
    FuseForTests,
}

impl PoolSpec {
    /// A pool of image files in `root` on one of the known filesystems.
    ///
    /// # Errors
    /// `InvalidArgument` when the path is not absolute, is `/`, or holds `.` or `..`.
    pub fn file(name: PoolName, root: &Path) -> Result<Self> {
        let plain = root.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !root.is_absolute() || !plain || root.parent().is_none() {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!(
                    "pool {name}: {:?} cannot be the directory of a pool; set an absolute path below /, without \".\" and \"..\", such as /var/lib/holdfast/pool",
                    root.display()
                ),
            ));
        }
        Ok(Self { name, kind: PoolKind::File { root: root.components().collect(), ground: BackingFs::Known } })
    }

    /// Its location, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        let PoolKind::File { root, .. } = &self.kind;
        root.display().to_string()
    }

    /// The same pool, with FUSE allowed. For tests only.
    #[must_use]
    pub fn on_fuse_for_tests(self) -> Self {
        let PoolKind::File { root, .. } = self.kind;
        Self { name: self.name, kind: PoolKind::File { root, ground: BackingFs::FuseForTests } }
    }
}

/// As the user wrote it: `NAME=file:DIR`.
impl fmt::Display for PoolSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=file:{}", self.name, self.place())
    }
}

/// From `NAME=file:DIR`. Every error is `InvalidArgument`.
impl FromStr for PoolSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |reason: &str| {
            Error::new(
                Kind::InvalidArgument,
                format!(
                    "pool {text:?} is not valid: {reason}; write NAME=file:DIR, such as default=file:/var/lib/holdfast/pool"
                ),
            )
        };
        let (name, place) = text.split_once('=').ok_or_else(|| refused("it has no '='"))?;
        let (kind, place) = place.split_once(':').ok_or_else(|| refused("the kind and its ':' are missing"))?;
        let name: PoolName = name.parse()?;
        match kind {
            "file" if place.is_empty() => Err(refused("the directory is missing")),
            "file" => Self::file(name, Path::new(place)),
            "lvm" | "rbd" => Err(refused(&format!("{kind} pools are not in this release"))),
            _ => Err(refused(&format!("{kind:?} is not a kind of pool"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pool_survives_the_round_trip() {
        let spec: PoolSpec = "default=file:/var/lib//holdfast/".parse().unwrap();
        assert_eq!(spec.to_string(), "default=file:/var/lib/holdfast");
        assert_eq!(spec.to_string().parse::<PoolSpec>().unwrap(), spec);
        let with_colon: PoolSpec = "a=file:/x:y=z".parse().unwrap();
        assert_eq!(with_colon.to_string(), "a=file:/x:y=z");
    }

    #[test]
    fn what_is_no_pool_says_why_and_what_to_write() {
        for (text, why) in [
            ("default", "no '='"),
            ("default=/var/lib", "the kind and its"),
            ("default=zfs:/tank", "not a kind"),
            ("default=lvm:vg0", "not in this release"),
            ("default=file:", "missing"),
            ("default=file:var/lib", "absolute"),
            ("default=file:/", "below /"),
            ("default=file:/var/../etc", "\"..\""),
            ("Default=file:/var", "not a pool name"),
            ("=file:/var", "not a pool name"),
        ] {
            let error = text.parse::<PoolSpec>().unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{text}");
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_root_that_leaves_its_room(text in "[a-z]{1,3}=file:[/.a-z:=]{0,20}") {
            if let Ok(spec) = text.parse::<PoolSpec>() {
                let PoolKind::File { root, .. } = spec.kind;
                prop_assert!(root.is_absolute() && root.parent().is_some());
                prop_assert!(root.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_))));
            }
        }
    }
}
