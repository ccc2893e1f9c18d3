//! What mountinfo says of a volume: which mounts show its device. The volume's device is what `attach` proves it to be; a
//! mount shows it by device number, never by a name.

use std::path::Path;

use super::Node;
use crate::os::{DevNum, MountEntry, MountTable};
use crate::types::{Error, Kind, OsContext, Result, VolumeId};

/// How a mount shows a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// The filesystem on this device is mounted.
    Filesystem(DevNum),
    /// The node of this device is bound to a file.
    Device(DevNum),
}

/// The mounts at one moment, as one volume's workflow sees them.
pub(super) struct Mounts<'a> {
    volume: &'a VolumeId,
    /// The volume's device now.
    device: Option<DevNum>,
    /// The device-mapper device over it, which pods have then.
    linear: Option<DevNum>,
    table: MountTable,
}

impl Node {
    /// The mounts, and which device is the volume's.
    pub(super) fn mounts<'a>(&self, volume: &'a VolumeId) -> Result<Mounts<'a>> {
        let table = self.os.mounts().at(|| "read the table of mounts")?;
        let linear = self.linear.device(volume)?.map(|device| device.number);
        Ok(Mounts { volume, device: self.attach.device_of(volume)?, linear, table })
    }
}

impl Mounts<'_> {
    /// The topmost mount at a resolved path.
    pub(super) fn at(&self, path: &Path) -> Option<&MountEntry> {
        self.table.at(path)
    }

    /// How a mount shows this volume; `None` when it is something else's.
    pub(super) fn shows(&self, entry: &MountEntry) -> Option<Shown> {
        let device = self.device?;
        if entry.device == device {
            return Some(Shown::Filesystem(device));
        }
        let bound = self.table.bound_device(entry)?;
        (bound == device || Some(bound) == self.linear).then_some(Shown::Device(device))
    }

    /// Whether a mount binds the node of some device: at a volume's own target, one that is not the volume's device is
    /// a device that went away, and may show another volume by now.
    pub(super) fn binds_a_node(&self, entry: &MountEntry) -> bool {
        let covered = entry.fs_type == "devtmpfs" && entry.root != Path::new("/");
        covered || self.table.bound_device(entry).is_some()
    }

    /// The volume's mount at a path, which must not be anything else's.
    ///
    /// # Errors
    /// `kind` when another thing is mounted there.
    pub(super) fn ours(&self, path: &Path, kind: Kind) -> Result<Option<(&MountEntry, Shown)>> {
        let Some(entry) = self.at(path) else { return Ok(None) };
        match self.shows(entry) {
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
