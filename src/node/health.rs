//! NodeGetVolumeHealth: what keeps a volume that is in use here from working.
//!
//! The sentences are for the users of pods. CSI 1.13 has this call in place of the volume condition of NodeGetVolumeStats.
//! Kubelet shows its answer in the status of the pod, if the feature gate CSIVolumeHealth is on.

use std::path::Path;

use super::Node;
use super::mounts::Shown;
use crate::fs;
use crate::route::{STALLED, Trouble, TroubleKind};
use crate::types::{Result, VolumeId};

/// A problem of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How much of the volume still works.
    pub state: Usable,
    /// One word for programs.
    pub reason: &'static str,
    /// One sentence for people.
    pub message: String,
}

/// How much of a volume with a problem still works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usable {
    /// It can be read.
    Partly,
    /// Reads and writes wait or fail.
    No,
}

impl Node {
    /// The problems of a volume that is in use on this node (NodeGetVolumeHealth). Takes no lock. `path` is where it is
    /// published or staged, if the caller says so. A connection that broke less than [`STALLED`] ago is no problem yet.
    ///
    /// # Errors
    /// `NotFound` when exactly this path is not a mount of this volume; `Internal` when the kernel cannot be read.
    pub fn health(&self, volume: &VolumeId, path: Option<&Path>) -> Result<Vec<Problem>> {
        let connections = self.connections()?.unwrap_or_default();
        if let Some(trouble) = connections.troubles.iter().find(|trouble| trouble.volume == *volume) {
            // Its filesystem would not answer, and has no reason of its own.
            return Ok(self.problem(trouble).into_iter().collect());
        }
        let Some(path) = path else { return Ok(Vec::new()) };
        let (resolved, shown) = self.used_at(volume, path)?;
        let Shown::Filesystem(_) = shown else { return Ok(Vec::new()) };
        let mounts = self.mounts(volume)?;
        let stopped = mounts.at(&resolved).and_then(|entry| fs::stopped(&self.os, &[entry]));
        let problem = stopped.map(|why| Problem {
            state: if why.is_readable() { Usable::Partly } else { Usable::No },
            reason: "FilesystemStopped",
            message: format!(
                "the filesystem of {} {why}: stop every pod that uses it, so that it is checked before the next mount",
                self.named(volume)
            ),
        });
        Ok(problem.into_iter().collect())
    }

    fn problem(&self, trouble: &Trouble) -> Option<Problem> {
        if matches!(trouble.kind, TroubleKind::Stalled { .. }) && trouble.since.age() < STALLED {
            return None;
        }
        let home = self.homes.of(trouble.volume.pool).ok();
        Some(Problem {
            state: Usable::No,
            reason: trouble.reason(),
            message: trouble.sentence(&self.named(&trouble.volume), home.as_ref().map(|home| home.node())),
        })
    }
}
