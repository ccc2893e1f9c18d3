//! The mounts of a volume from mountinfo. `attach` verifies which device is the volume's; a mount belongs to the volume
//! by device number, never by name.

use std::path::{Path, PathBuf};

use super::Node;
use super::removal::covered;
use crate::os::{DevNum, MountEntry, MountTable, Seen};
use crate::types::{Error, Kind, OsContext, Result, VolumeId};

/// How a mount belongs to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The filesystem on this device is mounted.
    Filesystem(DevNum),
    /// A device node is bind-mounted on a file: that of the volume's own device, or of the device on top of it.
    Device(DevNum),
    /// The device node of the volume's read-only view is bind-mounted on a file.
    View(DevNum),
}

/// The mount table at one moment, for the workflow of one volume.
pub(super) struct Mounts<'a> {
    volume: &'a VolumeId,
    /// The volume's device.
    device: Option<DevNum>,
    /// The device-mapper device over it, which pods then use.
    linear: Option<DevNum>,
    /// The device of its read-only pods.
    view: Option<DevNum>,
    table: MountTable,
}

impl Node {
    /// The mounts, and the volume's device.
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

    /// The place that a mount covers, see [`MountTable::covers`].
    pub(super) fn covers(&self, entry: &MountEntry) -> (DevNum, PathBuf) {
        self.table.covers(entry)
    }

    /// How many mounts are stacked at a resolved path.
    pub(super) fn depth(&self, path: &Path) -> usize {
        self.table.depth(path)
    }

    /// How a mount belongs to this volume; `None` for any other mount.
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

    /// Whether pods use the volume's loop device directly.
    pub(super) fn is_bound_as_loop(&self) -> bool {
        let bound = |entry| self.device.is_some() && self.table.bound_device(entry) == self.device;
        self.table.entries().iter().any(bound)
    }

    /// The device whose node a mount binds, if it binds one.
    pub(super) fn bound_device(&self, entry: &MountEntry) -> Option<DevNum> {
        self.table.bound_device(entry)
    }

    /// The volume's mount at a path. No other mount may be there.
    ///
    /// # Errors
    /// `kind` when something else is mounted there, or a mount on a parent directory covers the volume's mount.
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

    /// Every mount of the volume, except those that cover the same place as the mounts at `but`.
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
