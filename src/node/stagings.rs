//! Which mounts of a volume are its staging mounts: it may be staged at several paths, and each can be taken away alone.
//!
//! A staging mount and its bind at a pod's path look alike in mountinfo. Two things tell them apart: the paths the CO
//! named as staging paths since this process began, and for what is older the peer groups: each staging mount begins a
//! group, and a bind of it joins the group.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Node;
use super::mounts::{Mounts, Shown, places};
use crate::os::MountEntry;
use crate::types::{Error, Kind, Result, VolumeId};

/// The staging paths the CO named.
#[derive(Debug, Default)]
pub(super) struct Stagings {
    known: Mutex<HashMap<VolumeId, Known>>,
}

/// Those of one volume.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Named when it was staged or published.
    staged: BTreeSet<PathBuf>,
    /// Named by an unstage alone.
    unstaged: BTreeSet<PathBuf>,
}

impl Stagings {
    /// The CO says that a volume is staged at this path.
    pub(super) fn name(&self, volume: &VolumeId, path: &Path) {
        self.with(|known| known.entry(*volume).or_default().staged.insert(path.to_owned()));
    }

    /// The CO wants a volume unstaged at this path. Believed only as long as no stage and no publish said more.
    fn claim(&self, volume: &VolumeId, path: &Path) {
        self.with(|known| {
            let known = known.entry(*volume).or_default();
            if known.staged.is_empty() {
                known.unstaged.insert(path.to_owned());
            }
        });
    }

    /// It is not staged there any more.
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

/// What of a volume's mounts is left beside the one at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// It is staged elsewhere too.
    Staged,
    /// Nothing.
    Nothing,
}

impl Node {
    /// Whether the staging mount of a volume at a path may be taken away: no pod uses the volume.
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
            // Only the CO knows what a mount is that is older than this process and belongs to no peer group.
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

    /// What of a volume's mounts is published: all but the staging mounts.
    ///
    /// # Errors
    /// Those of [`Mounts::shows`].
    pub(super) fn published<'t>(
        &self,
        mounts: &'t Mounts<'_>,
        volume: &VolumeId,
        staging: Option<&Path>,
    ) -> Result<Vec<(&'t MountEntry, Shown)>> {
        let but: Vec<&Path> = staging.into_iter().collect();
        let stagings = self.staging_mounts(mounts, volume)?;
        let others = mounts.others(&but)?;
        Ok(others.into_iter().filter(|(other, _)| !stagings.contains(&mounts.covers(other))).collect())
    }

    /// The places that staging mounts of a volume cover.
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

/// What a mount covers: the filesystem it lies on, and the path inside that.
type Covered = (crate::os::DevNum, PathBuf);
