//! The end of an export. After it, nothing that the other node sent can reach the volume: only then may another node
//! use it (promise 3).

use std::time::Duration;

use tracing::info;

use super::export::export_of;
use super::local::Shared;
use super::record::{AttachPath, Attachment, GrantState, VolumeRecord};
use super::state::PoolState;
use crate::export::Remains;
use crate::os::{Deadline, Timestamp};
use crate::pool::Stable;
use crate::types::{Error, Kind, Result};

/// How long requests in flight may take to end: less than the callers' deadlines, so that they get the reason.
const DRAINING: Duration = Duration::from_secs(8);

impl Shared {
    /// Ends the exports of attachments.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. record `revoking`, durable: `open` refuses the node; the next detach or start continues.
    /// 2. the export ended ([`crate::export::Export::fence`]): as after 1.
    /// 3. the image no longer synchronous: as after 1. The caller then removes the attachment from the record.
    ///
    /// # Errors
    /// `Busy` when requests in flight do not end: the attachment stays `revoking`, and no other node gets the volume.
    pub(super) fn fence_all(
        &self,
        state: &PoolState,
        record: &mut VolumeRecord,
        ends: impl Fn(&Attachment) -> bool,
    ) -> Result<()> {
        let of_export = |one: &Attachment| one.path == AttachPath::NvmeTcp && ends(one);
        if record.attachments.iter().any(|one| of_export(one) && one.state == GrantState::Granted) {
            for one in record.attachments.iter_mut().filter(|one| of_export(one)) {
                one.state = GrantState::Revoking;
                one.revoking_since = Some(Timestamp::now());
            }
            self.store_volume(record)?;
        }
        let ended: Vec<_> = record.attachments.iter().filter(|one| of_export(one)).cloned().collect();
        ended.iter().for_each(|attachment| self.count_attachment(record, attachment));
        ended.iter().try_for_each(|attachment| self.fence(state, record, attachment))
    }

    /// Steps 2 and 3, for one attachment. Its port stays taken until the record is stored without it.
    pub(super) fn fence(&self, state: &PoolState, record: &VolumeRecord, attachment: &Attachment) -> Result<()> {
        let (nqn, export) = export_of(record, attachment)?;
        let fabric = self.fabric()?;
        let remains = Remains { host: Some(export.host), listen: Some(fabric.at(export.port)) };
        let deadlines = [Deadline::current(), Deadline::after(DRAINING)];
        let deadline = deadlines.into_iter().flatten().min();
        let deadline = deadline.ok_or_else(|| Error::new(Kind::Internal, "this machine's clock has no time left"))?;
        fabric.export.fence(&nqn, &remains, deadline)?;
        fabric.use_up(nqn);
        state.devices()?.set_stable(record.uuid, Stable::No)?;
        info!(volume = %record.handle, node = %attachment.node, epoch = attachment.epoch, "the node can no longer write to the volume");
        Ok(())
    }

    /// The ports of attachments that ended, once the record is stored without them.
    pub(super) fn give_back_ports(&self, record: &VolumeRecord, ended: &[Attachment]) {
        let Some(fabric) = &self.fabric else { return };
        for export in ended.iter().filter_map(|one| one.export.as_ref()) {
            fabric.give_back(export.port, record.id());
            fabric.attached.leave(record.id());
        }
    }
}
