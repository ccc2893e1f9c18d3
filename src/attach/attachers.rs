//! All ways to attach volumes of a node.

use std::sync::Arc;

use super::{Attach, Attached, Local, NvmeTcp, Wanted};
use crate::home::DeviceAddress;
use crate::os::DevNum;
use crate::types::{Error, Kind, Result, VolumeId};

/// Attaches by the device's address. The other questions go to each way, because the kernel alone answers them: a volume
/// is detached and found also when nobody knows any more how it was attached.
pub struct Attachers {
    local: Local,
    nvme_tcp: Option<Arc<NvmeTcp>>,
}

impl Attachers {
    /// With the ways of this node.
    #[must_use]
    pub fn new(local: Local) -> Self {
        Self { local, nvme_tcp: None }
    }

    /// The same, and volumes that other nodes export.
    #[must_use]
    pub fn with_nvme_tcp(self, nvme_tcp: Arc<NvmeTcp>) -> Self {
        Self { nvme_tcp: Some(nvme_tcp), ..self }
    }

    /// Connections first: they end with a volume's detaching on this node alone, whatever the home node says to it.
    fn all(&self) -> impl Iterator<Item = &dyn Attach> {
        let nvme_tcp = self.nvme_tcp.iter().map(|way| -> &dyn Attach { way.as_ref() });
        nvme_tcp.chain(std::iter::once::<&dyn Attach>(&self.local))
    }

    fn first<T>(&self, ask: impl Fn(&dyn Attach) -> Result<Option<T>>) -> Result<Option<T>> {
        for way in self.all() {
            if let Some(found) = ask(way)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

impl Attach for Attachers {
    fn attach(&self, volume: &VolumeId, wanted: &Wanted) -> Result<Attached> {
        match (&wanted.at, &self.nvme_tcp) {
            (DeviceAddress::Local { .. }, _) => self.local.attach(volume, wanted),
            (DeviceAddress::NvmeTcp(_), Some(way)) => way.attach(volume, wanted),
            (DeviceAddress::NvmeTcp(_), None) => Err(Error::new(
                Kind::Unsupported,
                format!("volume {volume} is exported by another node, and this node cannot use exports"),
            )),
        }
    }

    fn detach(&self, volume: &VolumeId) -> Result<()> {
        self.all().try_for_each(|way| way.detach(volume))
    }

    fn device_of(&self, volume: &VolumeId) -> Result<Option<DevNum>> {
        self.first(|way| way.device_of(volume))
    }

    fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>> {
        self.first(|way| way.volume_of(device))
    }
}
