//! What mountinfo says of a volume: which mounts show its device. The volume's device is what `attach` proves it to be; a
//! mount shows it by device number, never by a name.
//!
//! The device is looked for when a mount is met that may show it, after the table was read: where nothing is mounted at a
//! path, that is known without it.

use std::cell::OnceCell;
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

/// Filesystems without a block device have numbers of this major (include/uapi/linux/major.h, `UNNAMED_MAJOR`).
const UNNAMED_MAJOR: u64 = 0;

/// The mounts at one moment, as one volume's workflow sees them.
pub(super) struct Mounts<'a> {
    node: &'a Node,
    volume: &'a VolumeId,
    /// Looked for once.
    devices: OnceCell<Devices>,
    table: MountTable,
}

/// What shows a volume.
#[derive(Clone, Copy, Debug)]
struct Devices {
    /// The volume's device.
    device: Option<DevNum>,
    /// The device-mapper device over it, which pods have then.
    linear: Option<DevNum>,
}

impl Node {
    /// The mounts, for questions about a volume.
    pub(super) fn mounts<'a>(&'a self, volume: &'a VolumeId) -> Result<Mounts<'a>> {
        let table = self.os.mounts().at(|| "read the table of mounts")?;
        Ok(Mounts { node: self, volume, devices: OnceCell::new(), table })
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

    fn devices(&self) -> Result<Devices> {
        if let Some(known) = self.devices.get() {
            return Ok(*known);
        }
        let linear = self.node.linear.device(self.volume)?.map(|device| device.number);
        let found = Devices { device: self.node.attach.device_of(self.volume)?, linear };
        Ok(*self.devices.get_or_init(|| found))
    }

    /// How a mount shows this volume; `None` when it is something else's.
    ///
    /// # Errors
    /// Those of looking for the volume's device.
    pub(super) fn shows(&self, entry: &MountEntry) -> Result<Option<Shown>> {
        let bound = self.table.bound_device(entry);
        if entry.device.major == UNNAMED_MAJOR && bound.is_none() {
            return Ok(None);
        }
        if let Some(view) = bound.filter(|bound| self.node.views.device_of(self.volume) == Some(*bound)) {
            return Ok(Some(Shown::View(view)));
        }
        let Devices { device: Some(device), linear } = self.devices()? else { return Ok(None) };
        if entry.device == device {
            return Ok(Some(Shown::Filesystem(device)));
        }
        let is_bound = bound.is_some_and(|bound| bound == device || Some(bound) == linear);
        Ok(is_bound.then_some(Shown::Device(device)))
    }

    /// Whether pods have the volume's loop device itself.
    ///
    /// # Errors
    /// Those of [`Mounts::shows`].
    pub(super) fn is_bound_as_loop(&self) -> Result<bool> {
        let device = self.devices()?.device;
        let bound = |entry| device.is_some() && self.table.bound_device(entry) == device;
        Ok(self.table.entries().iter().any(bound))
    }

    /// The device whose node a mount binds, if it does.
    pub(super) fn bound_device(&self, entry: &MountEntry) -> Option<DevNum> {
        self.table.bound_device(entry)
    }

    /// The volume's mount at a path, which must not be anything else's.
    ///
    /// # Errors
    /// `kind` when another thing is mounted there, or the volume's mount is covered by one on a directory above; those of
    /// [`Mounts::shows`].
    pub(super) fn ours(&self, path: &Path, kind: Kind) -> Result<Option<(&MountEntry, Shown)>> {
        let entry = match self.table.seen(path) {
            Seen::Mount(entry) => entry,
            Seen::Covered { hidden, by } if self.shows(hidden)?.is_some() => {
                return Err(covered(self.volume, path, by, kind));
            }
            Seen::Covered { .. } | Seen::Nothing => return Ok(None),
        };
        match self.shows(entry)? {
            Some(shown) => Ok(Some((entry, shown))),
            None => Err(Error::new(
                kind,
                format!(
                    "{} is mounted at {}, and that is not volume {}; nothing was changed; unmount it if it does not belong there",
                    entry.source,
                    path.display(),
                    self.volume
                ),
            )),
        }
    }

    /// Every mount that shows the volume, but those that cover the same place as the one at `but`.
    ///
    /// # Errors
    /// Those of [`Mounts::shows`].
    pub(super) fn others(&self, but: &[&Path]) -> Result<Vec<(&MountEntry, Shown)>> {
        let left_out: Vec<_> =
            but.iter().filter_map(|path| self.at(path)).map(|entry| self.table.covers(entry)).collect();
        let mut others = Vec::new();
        for entry in self.table.entries() {
            if let Some(shown) = self.shows(entry)?
                && !left_out.contains(&self.table.covers(entry))
            {
                others.push((entry, shown));
            }
        }
        Ok(others)
    }
}

/// A list of mount points for a message.
pub(super) fn places(entries: &[(&MountEntry, Shown)]) -> String {
    entries.iter().map(|(entry, _)| entry.mount_point.display().to_string()).collect::<Vec<_>>().join(", ")
}
