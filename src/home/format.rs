//! Format once (docs/design.md section 8): the home's half. The node makes filesystems; the home decides whether one may be
//! made, and remembers.
//!
//! ```text
//!            use_raw
//!   never ──────────────▶ raw                        for good
//!     │ begin_format: blank, proven by allocation
//!     ▼
//!   formatting{planned} ─┐ begin_format again: device gone, image blanked, proven blank, new planned UUID
//!     │          ▲───────┘
//!     │ end_format(planned)
//!     ▼
//!   formatted{uuid}                                  for good; mounted only from here on
//! ```

use tracing::info;
use uuid::Uuid;

use super::create::describe;
use super::grant::granted_to;
use super::local::{PoolState, Shared};
use super::record::{Record, VolumeRecord};
use super::{Coordinates, FormatState, Formatting, ReadOnly};
use crate::fs::{probe, signature};
use crate::pool::Blankness;
use crate::types::{Error, FsType, Kind, NodeId, Result, VolumeId};

impl Shared {
    /// Allows a mkfs.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. `never`: nobody else has the device (O_EXCL), blank by allocation: nothing.
    ///    `formatting`: the device is taken away, which proves that no mkfs of a former life writes to it, and the
    ///    image is blanked: still `formatting`; the next stage does it again.
    /// 2. record `formatting{fs, planned_uuid}`, durable: the next stage finishes it or does it again.
    /// 3. the device, active: the same.
    pub(super) fn begin_format(&self, id: &VolumeId, node: &NodeId, fs: FsType) -> Result<Formatting> {
        let state = self.pool(id.pool)?;
        let lock = self.lock_volume(id, "begin-format")?;
        let mut record = self.ready_volume(id)?;
        record.changeable()?;
        let attachment = granted_to(&record, node)?;
        if attachment.read_only == ReadOnly::Yes || attachment.access.read_only() {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {id} has no filesystem yet and is attached read-only, which never formats: attach it writable once first"
                ),
            ));
        }
        match record.format.known {
            FormatState::Never => self.nobody_writes(state, &record)?,
            FormatState::Formatting { .. } => {
                if let Some(held) = self.release_device(state, id.uuid)? {
                    return Err(Error::new(
                        Kind::Busy,
                        format!(
                            "volume {id} was left half formatted and {held}: perhaps a mkfs of a former life; ask again when it has ended"
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
        self.store_volume(&record)?;
        info!(volume = %record.handle, fs = %fs, uuid = %planned_uuid, "formatting begins");
        let device = state.pool.activate(id.uuid, &record.geometry())?;
        lock.works_on(&device.path.display());
        Ok(Formatting { at: Coordinates::Local { device: device.path }, planned_uuid })
    }

    /// Says what was found and where, and what can be done about it.
    fn not_proved_blank(&self, state: &PoolState, record: &VolumeRecord, offset: u64) -> Error {
        let shown = || {
            let device = state.pool.active(record.uuid).ok().flatten()?;
            let device = self.os.open_device(&device.path).ok()?;
            let contents = probe::probe(&self.os, &device).ok()?;
            Some(signature::describe(&self.os, &device, &contents))
        };
        let shown = shown().unwrap_or_else(|| "something that cannot be read".to_owned());
        Error::new(
            Kind::Precondition,
            format!(
                "volume {} has never been formatted, but its image is not blank: there is data at byte {offset}, and it shows {shown}. \
                 It is not formatted and nothing was written. If the data is wanted, copy it from volumes/{}/data in pool {}; if not, delete the volume and make a new one",
                record.id(),
                record.uuid,
                state.pool.identity().place
            ),
        )
    }

    /// Writes in flight must have ended before blankness is looked at: nobody but us may have the device.
    fn nobody_writes(&self, state: &PoolState, record: &VolumeRecord) -> Result<()> {
        let Some(device) = state.pool.active(record.uuid)? else { return Ok(()) };
        let said = || format!("open {}", device.path.display());
        let context = |source: std::io::Error| Error::new(Kind::Internal, said()).because(source);
        match self.os.open_exclusive(&device.path).map_err(context)? {
            Some(held) => self.os.flush_device(&held).map_err(context),
            None => Err(Error::new(
                Kind::InUse,
                format!(
                    "volume {} was never formatted, but {} is in use: it is not formatted",
                    record.id(),
                    device.path.display()
                ),
            )),
        }
    }

    /// Records that the planned filesystem is there. One step.
    pub(super) fn end_format(&self, id: &VolumeId, node: &NodeId, fs_uuid: Uuid) -> Result<()> {
        let _lock = self.lock_volume(id, "end-format")?;
        let mut record = self.ready_volume(id)?;
        record.changeable()?;
        granted_to(&record, node)?;
        match record.format.known {
            FormatState::Formatting { fs, planned_uuid } if planned_uuid == fs_uuid => {
                record.format.known = FormatState::Formatted { fs, uuid: fs_uuid };
                self.store_volume(&record)?;
                info!(volume = %record.handle, fs = %fs, uuid = %fs_uuid, "formatted");
                Ok(())
            }
            FormatState::Formatted { uuid, .. } if uuid == fs_uuid => Ok(()),
            _ => Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {id} {}: a filesystem with UUID {fs_uuid} was not begun here",
                    describe(record.format.known)
                ),
            )),
        }
    }

    /// Records the first use as a raw block device. One step. Nothing on a raw device shows what a field of a later
    /// release says of its bytes, so it is not given out while its record needs a newer reader.
    pub(super) fn use_raw(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        let _lock = self.lock_volume(id, "use-raw")?;
        let mut record = self.ready_volume(id)?;
        granted_to(&record, node)?;
        usable_raw(&record)?;
        match record.format.known {
            FormatState::Raw => Ok(()),
            FormatState::Never => {
                record.format.known = FormatState::Raw;
                self.store_volume(&record)?;
                info!(volume = %record.handle, "used as a raw block device from now on");
                Ok(())
            }
            FormatState::Formatting { .. } | FormatState::Formatted { .. } => Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {id} {}: it is not given out as a raw block device; use it as a mount",
                    describe(record.format.known)
                ),
            )),
        }
    }
}

/// Whether this release may give a volume out as a raw block device.
pub(super) fn usable_raw(record: &VolumeRecord) -> Result<()> {
    let sentence = || format!("volume {} is not given out as a raw block device", record.id());
    record.changeable().map_err(|error| error.context(sentence()))
}

fn not_blank(record: &VolumeRecord) -> Error {
    Error::new(
        Kind::Precondition,
        format!("volume {} {}: it is never formatted again", record.id(), describe(record.format.known)),
    )
}
