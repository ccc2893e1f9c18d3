//! What mountinfo says of a volume: which mounts show its device, told by the loop device's own name, never by stat(2).

use std::path::{Path, PathBuf};

use super::removal::covered;
use crate::os::{DevNum, LoopDevice, MountEntry, MountTable, Os, Seen};
use crate::types::{Error, Kind, OsContext, Result, VolumeId};

/// How a mount shows a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The filesystem on this loop device is mounted.
    Filesystem(LoopDevice),
    /// The device node of this loop device is bound to a file.
    Device(LoopDevice),
}

impl Shown {
    pub(super) fn device(self) -> LoopDevice {
        match self {
            Self::Filesystem(device) | Self::Device(device) => device,
        }
    }
}

/// The mounts at one moment.
pub(super) struct Mounts<'a> {
    os: &'a Os,
    table: MountTable,
}

impl<'a> Mounts<'a> {
    pub(super) fn read(os: &'a Os) -> Result<Self> {
        let table = os.mounts().at(|| "read the table of mounts")?;
        Ok(Self { os, table })
    }

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
    pub(super) fn shows(&self, entry: &MountEntry, volume: &VolumeId) -> Result<Option<Shown>> {
        let Some(shown) = self.device_of(entry)? else { return Ok(None) };
        let device = shown.device();
        let status = self.os.loop_status(device).at(|| format!("ask {} what it shows", device.path().display()))?;
        Ok(status.filter(|status| status.name == volume.uuid.to_string()).map(|_| shown))
    }

    /// The volume's mount at a path, which must not be anything else's.
    ///
    /// # Errors
    /// `kind` when another thing is mounted there, or the volume's mount is covered by one on a directory above.
    pub(super) fn ours(&self, path: &Path, volume: &VolumeId, kind: Kind) -> Result<Option<(&MountEntry, Shown)>> {
        let entry = match self.table.seen(path) {
            Seen::Mount(entry) => entry,
            Seen::Covered { hidden, by } if self.shows(hidden, volume)?.is_some() => {
                return Err(covered(volume, path, by, kind));
            }
            Seen::Covered { .. } | Seen::Nothing => return Ok(None),
        };
        match self.shows(entry, volume)? {
            Some(shown) => Ok(Some((entry, shown))),
            None => Err(Error::new(
                kind,
                format!(
                    "{} is mounted at {}, and that is not volume {volume}; nothing was changed; unmount it if it does not belong there",
                    entry.source,
                    path.display()
                ),
            )),
        }
    }

    /// Every mount that uses a loop device, but those that cover the same place as the one at `but`.
    pub(super) fn others(&self, device: LoopDevice, but: &[&Path]) -> Result<Vec<&MountEntry>> {
        let left_out: Vec<_> =
            but.iter().filter_map(|path| self.at(path)).map(|entry| self.table.covers(entry)).collect();
        let mut found = Vec::new();
        for entry in self.table.entries() {
            let uses = self.device_of(entry)?.is_some_and(|shown| shown.device() == device);
            if uses && !left_out.contains(&self.table.covers(entry)) {
                found.push(entry);
            }
        }
        Ok(found)
    }

    fn device_of(&self, entry: &MountEntry) -> Result<Option<Shown>> {
        let device = self.os.loop_of(entry.device).at(|| format!("look up block device {}", entry.device))?;
        let bound = || node_name(&entry.root).and_then(LoopDevice::named).map(Shown::Device);
        Ok(device.map(Shown::Filesystem).or_else(bound))
    }
}

/// `loopN` of the root of a bound device node: `/loopN` of a devtmpfs, `/dev/loopN` of a root filesystem.
fn node_name(root: &Path) -> Option<&str> {
    let root = root.to_str()?;
    root.strip_prefix("/dev/").or_else(|| root.strip_prefix('/')).filter(|name| !name.contains('/'))
}

/// A list of mount points for a message.
pub(super) fn places(entries: &[&MountEntry]) -> String {
    entries.iter().map(|entry| entry.mount_point.display().to_string()).collect::<Vec<_>>().join(", ")
}
