//! What mountinfo says of a volume: which mounts show its device. The volume's device is what `attach` proves it to be; a
//! mount shows it by device number, never by a name.

use std::path::{Path, PathBuf};

use super::Node;
use super::removal::covered;
use crate::os::{DevNum, MountEntry, MountTable, Seen};
use crate::types::{Error, Kind, OsContext, Result, VolumeId};

/// How a mount shows a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The filesystem on this device is mounted.
    Filesystem(DevNum),
    /// The node of this device is bound to a file: of the volume's own device, whichever lies on top.
    Device(DevNum),
    /// The node of the volume's read-only view is bound to a file.
    View(DevNum),
}

/// The mounts at one moment, as one volume's workflow sees them.
pub(super) struct Mounts<'a> {
    volume: &'a VolumeId,
    /// The volume's device now.
    device: Option<DevNum>,
    /// The device-mapper device over it, which pods have then.
    linear: Option<DevNum>,
    /// The device of its pods that only read.
    view: Option<DevNum>,
    table: MountTable,
}

impl Node {
    /// The mounts, and which device is the volume's.
    pub(super) fn mounts<'a>(&self, volume: &'a VolumeId) -> Result<Mounts<'a>> {
        let table = self.os.mounts().at(|| "read the mount table")?;
        let linear = self.linear.device(volume)?.map(|device| device.number);
        let view = self.views.device_of(volume);
        Ok(Mounts { volume, device: self.attach.device_of(volume)?, linear, view, table })
    }
}

impl Mounts<'_> {
    /// The topmost mount at a resolved path.
    pub(super) fn at(&self, path: &Path) -> Option<&MountEntry> {
        self.table.at(path)
    }

    /// What a mount covers, see [`MountTable::covers`].
    pub(super) fn covers(&self, entry: &MountEntry) -> (DevNum, PathBuf) {
        self.table.covers(entry)
    }

    /// How many mounts are stacked at a resolved path.
    pub(super) fn depth(&self, path: &Path) -> usize {
        self.table.depth(path)
    }

    /// How a mount shows this volume; `None` when it is something else's.
    pub(super) fn shows(&self, entry: &MountEntry) -> Option<Shown> {
        let device = self.device?;
        if entry.device == device {
            return Some(Shown::Filesystem(device));
        }
        let bound = self.table.bound_device(entry)?;
        if Some(bound) == self.view {
            return Some(Shown::View(bound));
        }
        (bound == device || Some(bound) == self.linear).then_some(Shown::Device(device))
    }

    /// Whether pods have the volume's loop device itself.
    pub(super) fn is_bound_as_loop(&self) -> bool {
        let bound = |entry| self.device.is_some() && self.table.bound_device(entry) == self.device;
        self.table.entries().iter().any(bound)
    }

    /// The device whose node a mount binds, if it does.
    pub(super) fn bound_device(&self, entry: &MountEntry) -> Option<DevNum> {
        self.table.bound_device(entry)
    }

    /// The volume's mount at a path, which must not be anything else's.
    ///
    /// # Errors
    /// `kind` when another thing is mounted there, or the volume's mount is covered by one on a directory above.
    pub(super) fn ours(&self, path: &Path, kind: Kind) -> Result<Option<(&MountEntry, Shown)>> {
        let entry = match self.table.seen(path) {
            Seen::Mount(entry) => entry,
            Seen::Covered { hidden, by } if self.shows(hidden).is_some() => {
                return Err(covered(self.volume, path, by, kind));
            }
            Seen::Covered { .. } | Seen::Nothing => return Ok(None),
        };
        match self.shows(entry) {
            Some(shown) => Ok(Some((entry, shown))),
            None => Err(Error::new(
                kind,
                format!(
                    "{} is mounted at {} instead of volume {}; nothing was changed; unmount it if it does not belong there",
                    entry.source,
                    path.display(),
                    self.volume
                ),
            )),
        }
    }

    /// Every mount that shows the volume, but those that cover the same place as the one at `but`.
    pub(super) fn others(&self, but: &[&Path]) -> Vec<(&MountEntry, Shown)> {
        let left_out: Vec<_> =
            but.iter().filter_map(|path| self.at(path)).map(|entry| self.table.covers(entry)).collect();
        let shown = |entry| Some((entry, self.shows(entry)?));
        let all = self.table.entries().iter().filter_map(shown);
        all.filter(|(entry, _)| !left_out.contains(&self.table.covers(entry))).collect()
    }
}

/// A list of mount points for a message.
pub(super) fn places(entries: &[(&MountEntry, Shown)]) -> String {
    entries.iter().map(|(entry, _)| entry.mount_point.display().to_string()).collect::<Vec<_>>().join(", ")
}
