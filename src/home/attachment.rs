//! Attachments of a volume: grant and revoke. At most one node can write (promise 3).

use tracing::info;

use super::answer::mode_among;
use super::export::export_of;
use super::local::Shared;
use super::part::Part;
use super::record::{AttachPath, Attachment, DeviceMark, GrantState, Record, VolumeRecord};
use super::state::PoolState;
use super::{Changed, GrantRequest, Granted};
use crate::export::ControllerIds;
use crate::os::Dhchap;
use crate::types::{Error, Kind, NodeId, Result, VolumeId, VolumeMode};

impl Shared {
    /// Attaches a volume to a node.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. for another node than this one: the device idle and detached, a port taken (memory): nothing.
    /// 2. the record written with the attachment, durable: for this node, done. For another node, the retry, `open`
    ///    and the next start continue.
    /// 3. for another node: its export ([`Shared::exported`]).
    pub(super) fn grant(&self, id: &VolumeId, request: &GrantRequest) -> Result<Granted> {
        let _lock = self.lock_volume(id, "ControllerPublishVolume")?;
        let mut record = self.ready_volume(id)?;
        let path = self.path_to(&record, &request.node)?;
        let mode = mode_among(&record.id(), &record.modes(), request.mode)?;
        self.not_copied_from(record.id().into())?;
        if let Some(attachment) = record.attachments.first() {
            if attachment.node != request.node || attachment.state != GrantState::Granted {
                return Err(Error::new(
                    Kind::Precondition,
                    format!("volume {id} is attached to node {}; detach it there first", attachment.node),
                ));
            }
            let same = attachment.mode == mode
                && attachment.access == request.access
                && attachment.read_only == request.read_only;
            if !same {
                return Err(Error::new(
                    Kind::AlreadyExists,
                    format!(
                        "volume {id} is attached to node {} with another capability; detach it first",
                        attachment.node
                    ),
                ));
            }
            let epoch = attachment.epoch;
            if attachment.path == AttachPath::NvmeTcp {
                self.exported(self.pool(id.pool)?, &record, attachment, ControllerIds::default())?;
            }
            return Ok(Granted { home: self.node.clone(), epoch, changed: Changed::No });
        }
        let epoch = record.next_epoch()?;
        // A pod may still have the device: its number stays reserved for the volume.
        let before = record.still_staged.clone();
        self.attach_again(self.pool(id.pool)?, &mut record, request, mode)?;
        let port = match path {
            AttachPath::Local => None,
            AttachPath::NvmeTcp => {
                // What the other node can do is known when it opens the volume.
                self.authenticates(&record, &request.node, Dhchap::Yes)?;
                self.idle_here(self.pool(id.pool)?, &record, &request.node)?;
                Some(self.fabric()?.take(record.id())?)
            }
        };
        let (nonce, export) = match port {
            None => (None, None),
            Some(port) => {
                let named = self.new_export(port, Dhchap::Yes);
                if named.is_err() {
                    self.fabric()?.give_back(port, record.id());
                }
                let (nonce, export) = named?;
                (Some(nonce), Some(Part::new(export)))
            }
        };
        let before_view = before.as_ref().and_then(|before| before.view.clone());
        record.epoch = epoch;
        record.ever_attached = true;
        record.attachments.push(Attachment {
            node: request.node.clone(),
            path,
            mode,
            access: request.access,
            read_only: request.read_only,
            epoch: record.epoch,
            state: GrantState::Granted,
            revoking_since: None,
            nonce,
            export,
            boot_id: before.as_ref().and_then(|before| before.boot_id),
            device: before
                .and_then(|before| before.device)
                .or_else(|| (mode == VolumeMode::Block && path == AttachPath::Local).then(DeviceMark::none)),
            view: before_view,
            unknown: serde_json::Map::new(),
        });
        if let Err(error) = self.store_volume(&mut record) {
            // An error may come after the effect: the port stays taken then.
            if let (Ok(Some(stored)), Some(port)) = (self.volume_record(id), port)
                && stored.attachments.is_empty()
            {
                self.fabric()?.give_back(port, record.id());
            }
            return Err(error);
        }
        info!(volume = %record.handle, node = %request.node, epoch = record.epoch, "volume attached");
        if let Some(attachment) = record.attachments.last().filter(|one| one.path == AttachPath::NvmeTcp) {
            self.fabric()?.is_new(export_of(&record, attachment)?.0);
            self.exported(self.pool(id.pool)?, &record, attachment, ControllerIds::default())?;
        }
        Ok(Granted { home: self.node.clone(), epoch: record.epoch, changed: Changed::Yes })
    }

    /// Whether this node uses a volume that another node is to get: an export works over a mounted device too.
    ///
    /// # Errors
    /// `Precondition` naming the user.
    fn idle_here(&self, state: &PoolState, record: &VolumeRecord, node: &NodeId) -> Result<()> {
        let Some(held) = self.release_device(state, record.uuid)? else { return Ok(()) };
        Err(Error::new(
            Kind::Precondition,
            format!(
                "volume {} cannot be attached to node {node}: its home node {} still uses it: {held}; delete the pods that use it there, then retry",
                record.id(),
                self.node
            ),
        ))
    }

    /// Removes an attachment. That of another node is fenced first ([`Shared::fence_all`]).
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. the device detached, if it is idle: the attachment stays without a device; `open` attaches the device again.
    /// 2. the record written without the attachment, and with `still_staged` if the home node uses the device
    ///    (`detached.rs`): done. A local device needs no state in between: its check and the record are under one lock.
    pub(super) fn revoke(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<Changed> {
        let state = self.pool(id.pool)?;
        let _lock = self.lock_volume(id, "ControllerUnpublishVolume")?;
        let Some(mut record) = self.volume_record(id)? else { return Ok(Changed::No) };
        let leaves = |attachment: &Attachment| node.is_none_or(|node| attachment.node == *node);
        self.fence_all(state, &mut record, leaves)?;
        let (ended, stay): (Vec<_>, Vec<_>) = record.attachments.drain(..).partition(leaves);
        let Some(last) = ended.last() else { return Ok(Changed::No) };
        record.attachments = stay;
        record.still_staged = None;
        let held = match self.release_device(state, id.uuid)? {
            None => self.still_bound(id, last)?,
            held => held,
        };
        let released = held.is_none();
        if let Some(held) = held {
            self.detach_in_use(&mut record, last, &held)?;
        }
        self.store_volume(&mut record)?;
        self.give_back_ports(&record, &ended);
        if released {
            state.devices()?.disclaim(id.uuid);
        }
        info!(volume = %record.handle, node = %self.node, grants = ended.len(), "volume detached");
        Ok(Changed::Yes)
    }
}

/// Whether this release may use a volume as a raw block device.
pub(super) fn usable_raw(record: &VolumeRecord) -> Result<()> {
    let sentence = || format!("volume {} is not used as a raw block device", record.id());
    record.changeable().map_err(|error| error.context(sentence()))
}
