//! Reads the pools and their devices and mounts while a driver may be running. Shared by `pools`, `volumes` and `doctor`.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast::attach::Linear;
use holdfast::config::{self, PoolConfig};
use holdfast::home::record::VolumeRecord;
use holdfast::home::{Survey, survey};
use holdfast::os::{DevNum, MountEntry, MountTable, Os};
use holdfast::pool::file::FilePool;
use holdfast::pool::{ActiveDevice, Pool};
use holdfast::types::{ObjectUuid, VolumeId};

use super::PoolArguments;
use super::asked::{ControllerArguments, ControllerConnection};
use super::output::Format;

/// Arguments of every command that inspects pools.
#[derive(Args, Clone, Debug)]
pub(crate) struct LookArguments {
    #[command(flatten)]
    pools: PoolArguments,
    #[command(flatten)]
    controller: ControllerArguments,
    /// The output format.
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    pub(crate) output: Format,
}

impl LookArguments {
    /// The controller to ask instead, if one was named.
    ///
    /// # Errors
    /// Those of [`ControllerArguments::asked`].
    pub(crate) fn controller(&self) -> Result<Option<ControllerConnection>> {
        if self.pools.is_empty() {
            return self.controller.asked();
        }
        if self.controller.is_explicit() {
            bail!(
                "--controller shows the whole cluster, --pool and --config show pools of this machine; drop one of the two"
            );
        }
        Ok(None)
    }

    /// The pools to inspect.
    ///
    /// # Errors
    /// Those of [`config::pools`].
    pub(crate) fn pools(&self) -> Result<Vec<PoolConfig>> {
        Ok(config::pools(&self.pools.flags(), &self.pools.file()?)?)
    }
}

/// The state of the kernel: the mounts at one moment.
pub(crate) struct Kernel {
    pub(crate) mounts: MountTable,
    /// The names of the device-mapper devices over volumes' loop devices.
    linear: Vec<(VolumeId, String)>,
}

impl Kernel {
    /// Reads it.
    ///
    /// # Errors
    /// Those of reading /proc.
    pub(crate) fn look(os: &Os) -> Result<Self> {
        let mut linear = Vec::new();
        let writable = Linear::new(os.clone());
        for kind in [writable.read_only(), writable] {
            linear.extend(kind.all()?.into_iter().map(|(volume, _)| (volume, kind.name(&volume))));
        }
        Ok(Self { mounts: os.mounts().context("read the mounts")?, linear })
    }

    /// Where a device is mounted or bound.
    pub(crate) fn mounts_of(&self, device: DevNum) -> Vec<&MountEntry> {
        let shows = |entry: &&MountEntry| entry.device == device || self.mounts.bound_device(entry) == Some(device);
        self.mounts.entries().iter().filter(shows).collect()
    }

    /// The device-mapper devices over a volume's loop device.
    pub(crate) fn linear_of(&self, volume: &VolumeId) -> Vec<&str> {
        self.linear.iter().filter(|(of, _)| of == volume).map(|(_, name)| name.as_str()).collect()
    }

    /// The type of the filesystem of a directory.
    pub(crate) fn filesystem_of(&self, path: &Path) -> Option<&str> {
        let entries = self.mounts.entries().iter().rev().filter(|entry| path.starts_with(&entry.mount_point));
        entries.max_by_key(|entry| entry.mount_point.as_os_str().len()).map(|entry| entry.fs_type.as_str())
    }
}

/// One inspected pool.
pub(crate) struct PoolView {
    /// Its configuration.
    pub(crate) config: PoolConfig,
    /// The pool, opened read-only.
    pub(crate) pool: Arc<dyn Pool>,
    /// Its records and space.
    pub(crate) survey: Survey,
    /// The loop devices of its volumes' images.
    pub(crate) devices: Vec<(ObjectUuid, ActiveDevice)>,
}

impl PoolView {
    /// Opens a pool read-only.
    ///
    /// # Errors
    /// There is no pool, or it cannot be read.
    pub(crate) fn open(os: &Os, config: &PoolConfig) -> Result<Self> {
        let pool: Arc<dyn Pool> = FilePool::view(os, config.root())?;
        let survey = survey(Arc::clone(&pool), config.limits)?;
        let devices = pool.active_devices()?;
        Ok(Self { config: config.clone(), pool, survey, devices })
    }

    /// Opens every pool.
    ///
    /// # Errors
    /// That of the first pool that cannot be opened.
    pub(crate) fn open_all(os: &Os, arguments: &LookArguments) -> Result<(Vec<Self>, Kernel)> {
        let kernel = Kernel::look(os)?;
        let pools = arguments.pools()?;
        let views = pools.iter().map(|config| Self::open(os, config)).collect::<Result<_>>()?;
        Ok((views, kernel))
    }

    /// The current loop device of a volume.
    pub(crate) fn device_of(&self, volume: ObjectUuid) -> Option<&ActiveDevice> {
        self.devices.iter().find(|(uuid, _)| *uuid == volume).map(|(_, device)| device)
    }
}

/// The claim of a volume, `namespace/name`, if the provisioner passed it.
pub(crate) fn claim_of(record: &VolumeRecord) -> Option<String> {
    let of = |key: &str| record.attributes.get(&format!("csi.storage.k8s.io/pvc/{key}"));
    Some(format!("{}/{}", of("namespace")?, of("name")?))
}
