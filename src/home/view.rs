//! Reads a node's pools, and their devices and mounts, while a driver may be running. Writes nothing.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::{SpaceLimits, Survey, survey};
use crate::export::{Export, ExportState, Nvmet};
use crate::linear::Linear;
use crate::os::{DevNum, MountEntry, MountTable, Os};
use crate::pool::{self, ActiveDevice, Pool, PoolSpec};
use crate::types::{ObjectUuid, OsContext, PoolName, Result, VolumeId};

/// The root directory of kubelet.
pub(super) const KUBELET: &str = "/var/lib/kubelet";

/// How long the kernel may take to list its exports.
const EXPORTS: Duration = Duration::from_secs(2);

/// Why kubelet and pods would not see the mounts of this process; `None` if they do, or if there is no kubelet.
///
/// # Errors
/// `Internal` when the mounts cannot be read.
pub fn unseen_by_kubelet(os: &Os) -> Result<Option<String>> {
    let Ok(Some(_)) = os.entry(Path::new(KUBELET)) else { return Ok(None) };
    let pods = Path::new(KUBELET).join("pods");
    let seen = os.visibility(&pods).at(|| format!("check the visibility of mounts at {}", pods.display()))?;
    Ok(seen.problem())
}

/// The state of the kernel: the mounts at one moment.
#[derive(Debug)]
pub struct Kernel {
    pub(super) mounts: MountTable,
    /// The names of the device-mapper devices over volumes' loop devices.
    linear: Vec<(VolumeId, String)>,
    /// The exports of its NVMe target; `None` if they are not known.
    pub(super) exports: Option<Vec<ExportState>>,
}

impl Kernel {
    /// Reads it.
    ///
    /// # Errors
    /// `Internal` when the mounts or the device-mapper devices cannot be read.
    pub fn look(os: &Os) -> Result<Self> {
        // The ports of exports matter only for changes.
        Self::look_with(os, Some(Arc::new(Nvmet::new(os.clone(), 0..=0))))
    }

    /// The same, with the exports of this process. Exports that cannot be read in time are not known: the NVMe target
    /// waits for a disk then, and the finding about that disk is the one that matters.
    pub(super) fn look_with(os: &Os, export: Option<Arc<dyn Export>>) -> Result<Self> {
        let mut linear = Vec::new();
        let writable = Linear::new(os.clone());
        for kind in [writable.read_only(), writable] {
            linear.extend(kind.all()?.into_iter().map(|(volume, _)| (volume, kind.name(&volume))));
        }
        let exports = export.and_then(exports_in_time);
        Ok(Self { mounts: os.mounts().at(|| "read the mounts")?, linear, exports })
    }

    /// Where a device is mounted or bound.
    #[must_use]
    pub fn mounts_of(&self, device: DevNum) -> Vec<&MountEntry> {
        let shows = |entry: &&MountEntry| entry.device == device || self.mounts.bound_device(entry) == Some(device);
        self.mounts.entries().iter().filter(shows).collect()
    }

    /// The device-mapper devices over a volume's loop device.
    pub(super) fn linear_of(&self, volume: &VolumeId) -> Vec<&str> {
        self.linear.iter().filter(|(of, _)| of == volume).map(|(_, name)| name.as_str()).collect()
    }

    /// The type of the filesystem of a directory.
    #[must_use]
    pub fn filesystem_of(&self, path: &Path) -> Option<&str> {
        let entries = self.mounts.entries().iter().rev().filter(|entry| path.starts_with(&entry.mount_point));
        entries.max_by_key(|entry| entry.mount_point.as_os_str().len()).map(|entry| entry.fs_type.as_str())
    }
}

/// The exports of the kernel; `None` if it does not answer in time, or not at all.
fn exports_in_time(export: Arc<dyn Export>) -> Option<Vec<ExportState>> {
    let (answer, answered) = mpsc::sync_channel(1);
    let ask = move || drop(answer.send(export.exports()));
    thread::Builder::new().name("list-exports".to_owned()).spawn(ask).ok()?;
    let exports = answered.recv_timeout(EXPORTS).ok()?;
    exports.inspect_err(|error| tracing::warn!(error = error.chain(), "the exports cannot be listed")).ok()
}

/// A pool as it is now.
pub struct PoolView {
    /// Its name in the configuration.
    pub name: PoolName,
    /// Its space limits.
    pub limits: SpaceLimits,
    /// The pool, opened read-only.
    pub pool: Arc<dyn Pool>,
    /// Its records and space.
    pub survey: Survey,
    /// The loop devices of its volumes' images.
    pub devices: Vec<(ObjectUuid, ActiveDevice)>,
}

impl fmt::Debug for PoolView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolView").field("pool", self.pool.identity()).finish_non_exhaustive()
    }
}

impl PoolView {
    /// Opens a pool read-only.
    ///
    /// # Errors
    /// Those of [`pool::view`]; `Internal` when it cannot be read.
    pub fn open(os: &Os, spec: &PoolSpec, limits: SpaceLimits) -> Result<Self> {
        Self::of(pool::view(os, spec)?, &spec.name, limits)
    }

    /// Reads a pool.
    ///
    /// # Errors
    /// `Internal` when it cannot be read.
    pub fn of(pool: Arc<dyn Pool>, name: &PoolName, limits: SpaceLimits) -> Result<Self> {
        let survey = survey(Arc::clone(&pool), limits)?;
        let devices = pool.devices().map_or_else(|| Ok(Vec::new()), |devices| devices.all())?;
        Ok(Self { name: name.clone(), limits, pool, survey, devices })
    }

    /// The current loop device of a volume.
    #[must_use]
    pub fn device_of(&self, volume: ObjectUuid) -> Option<&ActiveDevice> {
        self.devices.iter().find(|(uuid, _)| *uuid == volume).map(|(_, device)| device)
    }
}
