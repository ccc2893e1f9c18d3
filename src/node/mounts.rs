//! The mounts of a volume from mountinfo. A mount belongs to the volume by its source, which the driver gave it
//! (`source.rs`), or by the number of the device that `attach` verified. Other programs and older releases give a mount
//! another source.
//!
//! The device is looked up after the table was read, and only for a mount that may belong to it. If nothing is mounted at
//! a path, no lookup is needed.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use super::removal::covered;
use super::{Node, source};
use crate::attach::Attach;
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

/// Filesystems without a block device have numbers of this major (include/uapi/linux/major.h, `UNNAMED_MAJOR`).
const UNNAMED_MAJOR: u64 = 0;

/// The mount table at one moment, for the workflow of one volume.
pub(super) struct Mounts<'a> {
    node: &'a Node,
    volume: &'a VolumeId,
    source: PathBuf,
    /// Looked up once.
    devices: OnceCell<Devices>,
    table: MountTable,
}

/// The devices of a volume.
#[derive(Clone, Copy, Debug)]
struct Devices {
    /// The volume's device.
    device: Option<DevNum>,
    /// The device-mapper device over it, which pods then use.
    linear: Option<DevNum>,
}

impl Node {
    /// The mount table, for the workflow of a volume.
    pub(super) fn mounts<'a>(&'a self, volume: &'a VolumeId) -> Result<Mounts<'a>> {
        let table = self.os.mounts().at(|| "read the mount table")?;
        Ok(Mounts { node: self, volume, source: source::of(volume), devices: OnceCell::new(), table })
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

    fn devices(&self) -> Result<Devices> {
        if let Some(known) = self.devices.get() {
            return Ok(*known);
        }
        let linear = self.node.linear.device(self.volume)?.map(|device| device.number);
        let found = Devices { device: self.node.attach.device_of(self.volume)?, linear };
        Ok(*self.devices.get_or_init(|| found))
    }

    /// How a mount belongs to this volume; `None` for any other mount.
    ///
    /// # Errors
    /// Those of looking up the volume's device.
    pub(super) fn shows(&self, entry: &MountEntry) -> Result<Option<Shown>> {
        let bound = self.table.bound_device(entry);
        if entry.device.major == UNNAMED_MAJOR && bound.is_none() {
            return Ok(None);
        }
        if bound.is_none() && entry.has_source(&self.source) {
            return Ok(Some(Shown::Filesystem(entry.device)));
        }
        if let Some(view) = bound.filter(|bound| self.node.views.device_of(self.volume) == Some(*bound)) {
            return Ok(Some(Shown::View(view)));
        }
        let Devices { device, linear } = self.devices()?;
        let Some(device) = device else {
            // A connection to another node that ended: the device over it stays until the volume is unstaged.
            return Ok(bound.filter(|bound| Some(*bound) == linear).map(Shown::Device));
        };
        if entry.device == device {
            return Ok(Some(Shown::Filesystem(device)));
        }
        match bound {
            Some(bound) if bound == device || Some(bound) == linear => Ok(Some(Shown::Device(device))),
            Some(bound) if self.node.views.shows(self.volume, bound, device)? => Ok(Some(Shown::View(bound))),
            _ => Ok(None),
        }
    }

    /// Whether a filesystem is mounted from a device that is no longer the volume's: the device is gone, and the mount
    /// only has its source.
    ///
    /// # Errors
    /// Those of looking up the volume's device.
    pub(super) fn is_left_over(&self, shown: Shown) -> Result<bool> {
        match shown {
            Shown::Filesystem(device) => Ok(self.devices()?.device != Some(device)),
            Shown::Device(_) | Shown::View(_) => Ok(false),
        }
    }

    /// Whether pods use the volume's loop device directly.
    ///
    /// # Errors
    /// Those of [`Mounts::shows`].
    pub(super) fn is_bound_as_loop(&self) -> Result<bool> {
        let device = self.devices()?.device;
        let bound = |entry| device.is_some() && self.table.bound_device(entry) == device;
        Ok(self.table.entries().iter().any(bound))
    }

    /// The device whose node a mount binds, if it binds one.
    pub(super) fn bound_device(&self, entry: &MountEntry) -> Option<DevNum> {
        self.table.bound_device(entry)
    }

    /// The volume's mount at a path. No other mount may be there.
    ///
    /// # Errors
    /// `kind` when something else is mounted there, or a mount on a parent directory covers the volume's mount; those of
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
                    "{} is mounted at {} instead of volume {}; nothing was changed; unmount it if it does not belong there",
                    entry.source,
                    path.display(),
                    self.volume
                ),
            )),
        }
    }

    /// Every mount of the volume, except those that cover the same place as the mounts at `but`.
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
