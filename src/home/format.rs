//! Format once (docs/design.md section 8): the part of the home node. The node runs mkfs; the home node decides whether
//! it may, and records it.
//!
//! ```text
//!            use_raw
//!   never ──────────────▶ raw                        permanent
//!     │ begin_format: blank, proven by allocation
//!     ▼
//!   formatting{planned} ─┐ begin_format again: device gone, image blanked, proven blank, new planned UUID
//!     │          ▲───────┘
//!     │ end_format(planned)
//!     ▼
//!   formatted{uuid}                                  permanent; only now it is mounted
//! ```

use tracing::info;
use uuid::Uuid;

use super::attachment::usable_raw;
use super::create::describe;
use super::local::Shared;
use super::record::{AttachPath, Attachment, Record, VolumeRecord};
use super::state::PoolState;
use super::{DeviceAddress, FormatState, Formatting, ReadOnly};
use crate::export::ControllerIds;
use crate::fs::{probe, signature};
use crate::os::Dhchap;
use crate::pool::Blankness;
use crate::types::{Error, FsType, Kind, NodeId, Result, VolumeId};

impl Shared {
    /// Permits a mkfs.
    ///
    /// Steps, and what a crash after each leaves:
    /// 0. for another node: its export ended. Its client has deleted its controller; what it sent before cannot come
    ///    later. A crash leaves the attachment without an export; `open` creates it again under its old names.
    /// 1. `never`: no other process has the device (O_EXCL), and the image is blank by allocation: nothing.
    ///    `formatting`: the device is detached, which proves that no earlier mkfs writes to it, and the image is
    ///    blanked: still `formatting`; the next stage does it again.
    /// 2. record `formatting{fs, planned_uuid}`, durable, with the new names of the export: the next stage finishes it
    ///    or does it again.
    /// 3. the device, active, or its export: the same.
    pub(super) fn begin_format(&self, id: &VolumeId, node: &NodeId, fs: FsType) -> Result<Formatting> {
        let state = self.pool(id.pool)?;
        let lock = self.lock_volume(id, "begin-format")?;
        let mut record = self.ready_volume(id)?;
        record.changeable()?;
        let attachment = record.granted_to(node)?;
        if attachment.read_only == ReadOnly::Yes || attachment.access.read_only() {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {id} has no filesystem yet, and a read-only attachment never formats it: use it once in a pod that can write"
                ),
            ));
        }
        match record.format.known {
            FormatState::Raw | FormatState::Formatted { .. } => return Err(not_blank(&record)),
            FormatState::Never | FormatState::Formatting { .. } => {
                let client = if has_key(record.granted_to(node)?) { Dhchap::Yes } else { Dhchap::No };
                self.renamed_export(state, &mut record, node, client)?;
            }
        }
        match record.format.known {
            FormatState::Never => self.nobody_writes(state, &record)?,
            FormatState::Formatting { .. } => {
                if let Some(held) = self.release_device(state, id.uuid)? {
                    return Err(Error::new(
                        Kind::Busy,
                        format!(
                            "formatting of volume {id} was interrupted and {held}, perhaps by a mkfs of an earlier run of the driver; retry when it has ended"
                        ),
                    ));
                }
                state.pool.blank(id.uuid, &record.geometry())?;
            }
            FormatState::Raw | FormatState::Formatted { .. } => return Err(not_blank(&record)),
        }
        if let Blankness::DataAt(offset) = state.pool.blankness(id.uuid)? {
            return Err(self.not_proved_blank(state, &record, offset));
        }
        let planned_uuid = Uuid::new_v4();
        record.format.known = FormatState::Formatting { fs, planned_uuid };
        self.store_volume(&mut record)?;
        info!(volume = %record.handle, fs = %fs, uuid = %planned_uuid, "formatting begins");
        let attachment = record.granted_to(node)?;
        let at = match attachment.path {
            AttachPath::Local => {
                let device = state.devices()?.activate(id.uuid, &record.geometry())?;
                lock.works_on(&device.path.display());
                DeviceAddress::Local { device: device.path }
            }
            AttachPath::NvmeTcp => self.exported(state, &record, attachment, ControllerIds::default())?,
        };
        Ok(Formatting { at, planned_uuid })
    }

    /// The error says what was found, at which offset, and what to do.
    fn not_proved_blank(&self, state: &PoolState, record: &VolumeRecord, offset: u64) -> Error {
        let shown = || {
            let device = state.devices().ok()?.active(record.uuid).ok().flatten()?;
            let device = self.os.open_device(&device.path).ok()?;
            let contents = probe::probe(&self.os, &device).ok()?;
            Some(signature::describe(&self.os, &device, &contents))
        };
        let shown = shown().unwrap_or_else(|| "content that cannot be read".to_owned());
        Error::new(
            Kind::Precondition,
            format!(
                "volume {} has never been formatted, but its image is not blank: there is data at byte {offset}, and it contains {shown}. \
                 It is not formatted, and nothing was written. If you need the data, copy it from volumes/{}/data in pool {}; otherwise delete the volume and create a new one",
                record.id(),
                record.uuid,
                state.pool.identity().place
            ),
        )
    }

    /// Writes in flight must have ended before the blank check: no other process may have the device.
    fn nobody_writes(&self, state: &PoolState, record: &VolumeRecord) -> Result<()> {
        let Some(device) = state.devices()?.active(record.uuid)? else { return Ok(()) };
        let said = || format!("open {}", device.path.display());
        let context = |source: std::io::Error| Error::new(Kind::Internal, said()).because(source);
        match self.os.open_exclusive(&device.path).map_err(context)? {
            Some(held) => self.os.flush_device(&held).map_err(context),
            None => Err(Error::new(
                Kind::InUse,
                format!(
                    "volume {} was never formatted, but {} is in use, so it is not formatted now; stop the processes that use it, then retry",
                    record.id(),
                    device.path.display()
                ),
            )),
        }
    }

    /// Records that the planned filesystem exists. One step.
    pub(super) fn end_format(&self, id: &VolumeId, node: &NodeId, fs_uuid: Uuid) -> Result<()> {
        let _lock = self.lock_volume(id, "end-format")?;
        let mut record = self.ready_volume(id)?;
        record.changeable()?;
        record.granted_to(node)?;
        match record.format.known {
            FormatState::Formatting { fs, planned_uuid } if planned_uuid == fs_uuid => {
                record.format.known = FormatState::Formatted { fs, uuid: fs_uuid };
                self.store_volume(&mut record)?;
                info!(volume = %record.handle, fs = %fs, uuid = %fs_uuid, "formatted");
                Ok(())
            }
            FormatState::Formatted { uuid, .. } if uuid == fs_uuid => Ok(()),
            _ => Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {id} {}: formatting with UUID {fs_uuid} did not begin here",
                    describe(record.format.known)
                ),
            )),
        }
    }

    /// Records the first use as a raw block device. One step. A raw device cannot show what a field of a later release
    /// says about its bytes, so it is not used while its record needs a newer reader.
    pub(super) fn use_raw(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        let _lock = self.lock_volume(id, "use-raw")?;
        let mut record = self.ready_volume(id)?;
        record.granted_to(node)?;
        usable_raw(&record)?;
        match record.format.known {
            FormatState::Raw => Ok(()),
            FormatState::Never => {
                record.format.known = FormatState::Raw;
                self.store_volume(&mut record)?;
                info!(volume = %record.handle, "the volume is a raw block device from now on");
                Ok(())
            }
            FormatState::Formatting { .. } | FormatState::Formatted { .. } => Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {id} {}: it cannot be used as a raw block device; use volumeMode: Filesystem",
                    describe(record.format.known)
                ),
            )),
        }
    }
}

/// Whether the export of an attachment authenticates its client, which can do so then.
fn has_key(attachment: &Attachment) -> bool {
    attachment.export.as_ref().is_some_and(|export| export.key.is_some())
}

fn not_blank(record: &VolumeRecord) -> Error {
    Error::new(
        Kind::Precondition,
        format!("volume {} {}: it is never formatted again", record.id(), describe(record.format.known)),
    )
}
