//! Tells the staging mounts of a volume from its published mounts. A volume may be staged at several paths, and each
//! can be unstaged alone.
//!
//! A staging mount and its bind mount at a pod's path look alike in mountinfo. Two things distinguish them: the paths
//! that the CO named as staging paths since this process started, and for older mounts the peer groups. Each staging
//! mount starts a peer group, and a bind mount of it joins the group.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Node;
use super::mounts::{Mounts, Shown, places};
use crate::os::MountEntry;
use crate::types::{Error, Kind, Result, VolumeId};

/// The staging paths that the CO named.
#[derive(Debug, Default)]
pub(super) struct Stagings {
    known: Mutex<HashMap<VolumeId, Known>>,
}

/// The staging paths of one volume.
#[derive(Clone, Debug, Default)]
struct Known {
    /// From stage or publish requests.
    staged: BTreeSet<PathBuf>,
    /// From unstage requests only.
    unstaged: BTreeSet<PathBuf>,
}

impl Stagings {
    /// Records a staging path from a stage or publish request.
    pub(super) fn name(&self, volume: &VolumeId, path: &Path) {
        self.with(|known| known.entry(*volume).or_default().staged.insert(path.to_owned()));
    }

    /// Records a staging path from an unstage request. Used only if no stage and no publish request named one.
    fn claim(&self, volume: &VolumeId, path: &Path) {
        self.with(|known| {
            let known = known.entry(*volume).or_default();
            if known.staged.is_empty() {
                known.unstaged.insert(path.to_owned());
            }
        });
    }

    /// Removes a staging path.
    pub(super) fn forget(&self, volume: &VolumeId, path: &Path) {
        self.with(|all| {
            let Some(known) = all.get_mut(volume) else { return };
            known.staged.remove(path);
            known.unstaged.remove(path);
            if known.staged.is_empty() && known.unstaged.is_empty() {
                all.remove(volume);
            }
        });
    }

    fn of(&self, volume: &VolumeId) -> Known {
        self.with(|known| known.get(volume).cloned().unwrap_or_default())
    }

    fn with<T>(&self, run: impl FnOnce(&mut HashMap<VolumeId, Known>) -> T) -> T {
        run(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What remains of a volume's mounts besides the one at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The volume is also staged elsewhere.
    Staged,
    /// Nothing.
    Nothing,
}

impl Node {
    /// Checks that no pod uses the volume, so that its staging mount at a path may be removed.
    ///
    /// # Errors
    /// `InUse` naming where it is published.
    pub(super) fn unpublished(&self, volume: &VolumeId, staging: &Path) -> Result<Left> {
        let mounts = self.mounts(volume)?;
        let Some((entry, _)) = mounts.ours(staging, Kind::Precondition)? else {
            self.unused(volume)?;
            return Ok(Left::Nothing);
        };
        let others = mounts.others(&[staging])?;
        if others.is_empty() {
            return Ok(Left::Nothing);
        }
        if entry.shared.is_none() {
            // For a mount that is older than this process and has no peer group, only the CO knows what it is.
            self.stagings.claim(volume, staging);
        }
        let stagings = self.staging_mounts(&mounts, volume)?;
        let is_staging = |entry: &MountEntry| stagings.contains(&mounts.covers(entry));
        let published: Vec<_> = if is_staging(entry) {
            others.into_iter().filter(|(other, _)| !is_staging(other)).collect()
        } else {
            others
        };
        if published.is_empty() {
            return Ok(Left::Staged);
        }
        Err(Error::new(
            Kind::InUse,
            format!("volume {volume} is still published at {}; unpublish it there first", places(&published)),
        ))
    }

    /// The published mounts of a volume: all but its staging mounts. The caller has recorded its own staging path.
    ///
    /// # Errors
    /// Those of [`Mounts::shows`].
    pub(super) fn published<'t>(
        &self,
        mounts: &'t Mounts<'_>,
        volume: &VolumeId,
    ) -> Result<Vec<(&'t MountEntry, Shown)>> {
        let stagings = self.staging_mounts(mounts, volume)?;
        let all = mounts.others(&[])?;
        Ok(all.into_iter().filter(|(other, _)| !stagings.contains(&mounts.covers(other))).collect())
    }

    /// The places that the staging mounts of a volume cover.
    fn staging_mounts(&self, mounts: &Mounts<'_>, volume: &VolumeId) -> Result<Vec<Covered>> {
        let known = self.stagings.of(volume);
        let named = |path: &Path| known.staged.contains(path) || known.unstaged.contains(path);
        let mut groups = BTreeSet::new();
        let mut found = Vec::new();
        for (entry, shown) in mounts.others(&[])? {
            if !matches!(shown, Shown::Filesystem(_)) {
                continue;
            }
            let begins_a_group = entry.shared.is_some_and(|group| groups.insert(group));
            if begins_a_group || named(&entry.mount_point) {
                found.push(mounts.covers(entry));
            }
        }
        Ok(found)
    }
}

/// The place that a mount covers: the filesystem below it, and the path in that filesystem.
type Covered = (crate::os::DevNum, PathBuf);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ObjectUuid, PoolId};

    #[test]
    fn an_unstage_names_a_path_only_for_a_volume_without_one() {
        let stagings = Stagings::default();
        let pool: PoolId = "00000000000000ab".parse().unwrap();
        let [volume, other] = ["a", "b"].map(|name| VolumeId::new(pool, ObjectUuid::of_volume(name)));
        let [old, staged, pod] = ["/old", "/staged", "/pod"].map(Path::new);
        let known = |volume| {
            let Known { staged, unstaged } = stagings.of(volume);
            [staged, unstaged].map(|paths| paths.into_iter().collect::<Vec<_>>())
        };
        stagings.claim(&volume, old);
        stagings.name(&other, pod);
        assert_eq!(known(&volume), [vec![], vec![old.to_owned()]]);
        stagings.name(&volume, staged);
        stagings.claim(&volume, pod);
        assert_eq!(known(&volume), [vec![staged.to_owned()], vec![old.to_owned()]]);
        stagings.forget(&volume, staged);
        assert_eq!(known(&volume), [vec![], vec![old.to_owned()]]);
        stagings.forget(&volume, old);
        stagings.forget(&volume, old);
        // Nothing is kept of a volume without a path, and the others keep theirs.
        assert_eq!(stagings.with(|all| all.keys().copied().collect::<Vec<_>>()), [other]);
        assert_eq!(known(&other), [vec![pod.to_owned()], vec![]]);
    }
}
