//! Publishes a raw block volume to pods with read-only access. They use the volume's read-only view, which exists as
//! long as one of them uses it ([`ReadOnlyViews`](crate::attach::ReadOnlyViews)).

use super::Node;
use super::mounts::Shown;
use super::publish::Source;
use crate::attach::Attached;
use crate::home::Changed;
use crate::os::MountFlags;
use crate::types::{Error, Kind, OsContext, Result, VolumeId};

impl Node {
    /// Creates the volume's view if it has none, and bind-mounts it. After an error a view without a pod is removed
    /// again.
    ///
    /// # Errors
    /// `Busy` while another call creates or removes the view; those of `ReadOnlyViews::ensure` and of `bind`.
    pub(super) fn publish_view(
        &self,
        volume: &VolumeId,
        attached: &Attached,
        block_size: u32,
        bind: impl FnOnce(&Source) -> Result<Changed>,
    ) -> Result<Changed> {
        let _lock = self.viewing.try_lock(volume, "NodePublishVolume")?;
        let published = self.views.ensure(volume, attached, block_size).and_then(|number| {
            let path = self
                .os
                .device_node(number)
                .at(|| format!("find the device node of block device {number} of volume {volume}"))?;
            self.refuses_writes(volume, number)?;
            if let Some(view) = self.views.loop_device(volume) {
                match self.home(volume)?.give_view(volume, &self.id, &view) {
                    // A home node on another machine knows nothing of this machine's devices.
                    Err(error) if error.kind() == Kind::Unsupported => {}
                    given => given?,
                }
            }
            bind(&Source { path, flags: MountFlags::default(), shown: Shown::View(number) })
        });
        published.map_err(|error| match self.drop_view_if_unbound(volume) {
            Ok(()) => error,
            Err(undo) => error.and_undo_failed(&undo),
        })
    }

    /// Removes the volume's view after its last pod. If another call creates or removes the view at the same time, that
    /// call decides. The unstage removes a view that remains.
    ///
    /// # Errors
    /// `InUse` when a process has it open; `Internal`.
    pub(super) fn drop_unused_view(&self, volume: &VolumeId) -> Result<()> {
        if !self.views.has(volume) {
            return Ok(());
        }
        let Ok(_lock) = self.viewing.try_lock(volume, "NodeUnpublishVolume") else { return Ok(()) };
        match self.drop_view_if_unbound(volume) {
            // The pod's path is removed anyway, and the unstage tries again.
            Err(error) if error.kind() == Kind::InUse => {
                tracing::warn!(%volume, error = error.chain(), "cannot remove the read-only device of a volume after its last pod; the unstage removes it");
                Ok(())
            }
            dropped => dropped,
        }
    }

    fn drop_view_if_unbound(&self, volume: &VolumeId) -> Result<()> {
        if let Some(view) = self.views.device_of(volume) {
            let table = self.os.mounts().at(|| "read the mount table")?;
            if table.entries().iter().any(|entry| table.bound_device(entry) == Some(view)) {
                return Ok(());
            }
        }
        self.views.release(volume).map(drop)
    }

    /// Checks that the kernel rejects writes to the device. A read-only pod gets no other device.
    fn refuses_writes(&self, volume: &VolumeId, number: crate::os::DevNum) -> Result<()> {
        if self.os.device_refuses_writes(number).at(|| format!("read whether block device {number} is read-only"))? {
            return Ok(());
        }
        Err(Error::new(
            Kind::Internal,
            format!(
                "block device {number}, the read-only device of volume {volume}, is writable; no pod gets it; retry"
            ),
        ))
    }
}
