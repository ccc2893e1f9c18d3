//! The export of a volume that is attached to another node: how it is recorded, created, and created again after a
//! restart. `fence.rs` ends it.

use std::sync::PoisonError;

use tracing::{error, info, warn};
use uuid::Uuid;

use super::authentication::keyed;
use super::fabric::Fabric;
use super::local::Shared;
use super::record::{AttachPath, Attachment, ExportRecord, GrantState, Record, VolumeRecord};
use super::state::PoolState;
use super::{Client, ConnectionState, DeviceAddress, Renaming};
use crate::export::{ControllerIds, Spec, Support};
use crate::os::Dhchap;
use crate::pool::{Object, Stable};
use crate::types::{Access, DhchapKey, Error, HostNqn, Kind, NodeId, PoolId, Result, SubsystemNqn};

impl Shared {
    /// How a node may reach a volume.
    ///
    /// # Errors
    /// `Precondition` when it cannot, with the node that can; `Unsupported` when this node exports nothing.
    pub(super) fn path_to(&self, record: &VolumeRecord, node: &NodeId) -> Result<AttachPath> {
        if *node == self.node {
            return Ok(AttachPath::Local);
        }
        match record.access {
            Access::Local => Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {} is local to node {} and cannot be attached to node {node}: schedule the pod on {}",
                    record.id(),
                    self.node,
                    self.node
                ),
            )),
            Access::Network => self.fabric().map(|_| AttachPath::NvmeTcp),
        }
    }

    /// The exports of this node.
    ///
    /// # Errors
    /// `Precondition` where the node was started without any.
    pub(super) fn fabric(&self) -> Result<&Fabric> {
        self.fabric.as_ref().ok_or_else(|| {
            Error::new(
                Kind::Precondition,
                format!(
                    "node {} exports no volumes: start it with --fabric, on a kernel with nvmet and nvmet-tcp, or schedule the pod on it",
                    self.node
                ),
            )
        })
    }

    /// The names of a new export, in memory: the caller stores them with the attachment.
    ///
    /// # Errors
    /// `Internal` without random numbers for a key.
    pub(super) fn new_export(&self, port: u16, client: Dhchap) -> Result<(Uuid, ExportRecord)> {
        let key = match (self.fabric()?.export.support()?, client) {
            (Support::Yes(Dhchap::Yes), Dhchap::Yes) => Some(DhchapKey::random()?),
            _ => None,
        };
        Ok((Uuid::new_v4(), ExportRecord { port, host: HostNqn::random(), namespace: Uuid::new_v4(), key }))
    }

    /// The export for a node that opens its volume. With a live connection it is the export as it is. Otherwise what the
    /// node sent before is ended, so that none of it is written after this:
    /// - a node whose reads and writes wait for another connection gets the export again under the same names, so that they
    ///   go on. A crash leaves the attachment without an export, and the node asks again.
    /// - a node without a connection gets one that nobody was connected to: the one that was made for the attachment, the
    ///   first time, or one with new names.
    pub(super) fn export_for(
        &self,
        state: &PoolState,
        record: &mut VolumeRecord,
        node: &NodeId,
        client: &Client,
    ) -> Result<DeviceAddress> {
        let attachment = record.granted_to(node)?.clone();
        self.authenticates(record, node, client.authenticates)?;
        let (nqn, export) = export_of(record, &attachment)?;
        let same = client.connection.filter(|connection| connection.export == nqn).map(|connection| connection.state);
        if same.is_none() && client.renaming == Renaming::Refused {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {} was attached to node {node} again, so its lost connection is not made again; the node ends it",
                    record.id()
                ),
            ));
        }
        let is_unused = self.fabric()?.use_up(nqn);
        let fits = export.key.is_none() || client.authenticates == Dhchap::Yes;
        match same {
            Some(ConnectionState::Live) => return self.exported(state, record, &attachment, ControllerIds::default()),
            Some(ConnectionState::Waiting(controller)) => {
                self.fence(state, record, &attachment)?;
                let others = controller.map(ControllerIds::without).unwrap_or_default();
                info!(volume = %record.handle, %node, "the node lost its connection to the volume; all that it had sent has ended, and it may connect again");
                return self.exported(state, record, &attachment, others);
            }
            None if is_unused && fits => return self.exported(state, record, &attachment, ControllerIds::default()),
            None => {}
        }
        self.renamed_export(state, record, node, client.authenticates)?;
        self.store_volume(record)?;
        let attachment = record.granted_to(node)?.clone();
        self.exported(state, record, &attachment, ControllerIds::default())
    }

    /// Ends the export of an attachment that stays, so that nothing writes to the volume, and gives it new names: its
    /// earlier client finds nothing. In memory: the caller stores the record, and then calls [`Shared::exported`].
    ///
    /// # Errors
    /// Those of [`Shared::fence`].
    pub(super) fn renamed_export(
        &self,
        state: &PoolState,
        record: &mut VolumeRecord,
        node: &NodeId,
        client: Dhchap,
    ) -> Result<()> {
        let of_node = |one: &&mut Attachment| one.node == *node && one.path == AttachPath::NvmeTcp;
        let Some(attachment) = record.attachments.iter().find(|one| one.node == *node).cloned() else { return Ok(()) };
        let Some(export) = attachment.export.as_ref().filter(|_| attachment.path == AttachPath::NvmeTcp) else {
            return Ok(());
        };
        self.fence(state, record, &attachment)?;
        let (nonce, names) = self.new_export(export.port, client)?;
        let epoch = record.next_epoch()?;
        record.epoch = epoch;
        if let Some(place) = record.attachments.iter_mut().find(of_node) {
            (place.nonce, place.epoch) = (Some(nonce), epoch);
            if let Some(export) = &mut place.export {
                export.known = names;
            }
        }
        Ok(())
    }

    /// Creates the export of an attachment, or completes it, and returns its address.
    ///
    /// Steps, and what a crash after each leaves; every `open` repeats them all:
    /// 1. the device, active: idle.
    /// 2. its image synchronous, read back: slower, and otherwise the same.
    /// 3. the export, whose last step lets the client in ([`crate::export::Export::ensure`]).
    pub(super) fn exported(
        &self,
        state: &PoolState,
        record: &VolumeRecord,
        attachment: &Attachment,
        controllers: ControllerIds,
    ) -> Result<DeviceAddress> {
        let fabric = self.fabric()?;
        let (nqn, export) = export_of(record, attachment)?;
        keyed(record, export)?;
        // The volume is in the table of exports from now on, however this process came to know it.
        fabric.enter(export.port, record.id());
        self.count_attachment(record, attachment);
        let device = state.devices()?.activate(record.uuid, &record.geometry())?;
        state.devices()?.set_stable(record.uuid, Stable::Yes)?;
        let spec = Spec {
            subsystem: nqn,
            namespace: export.namespace,
            host: export.host,
            key: export.key.clone(),
            listen: fabric.at(export.port),
            device: device.path,
            number: device.number,
            controllers,
        };
        fabric.export.ensure(&spec)?;
        Ok(DeviceAddress::NvmeTcp(Box::new(spec.address())))
    }

    /// A record that was read: its port is taken. An export that is there is verified; one that is not, after a restart of
    /// this machine, is created when its node asks for it ([`Shared::export_for`]). The end of a detached one is
    /// continued. For each record when the home node starts or gets a pool back. The caller has locked the volume.
    pub(super) fn recall_export(&self, state: &PoolState, object: Object) {
        let Some(fabric) = &self.fabric else { return };
        // One that cannot be read was logged.
        let Ok(Some(mut record)) = state.record::<VolumeRecord>(object) else { return };
        let record = &mut record;
        let Some(attachment) = record.attachments.iter().find(|one| one.path == AttachPath::NvmeTcp).cloned() else {
            return;
        };
        self.count_attachment(record, &attachment);
        let recalled = match attachment.state {
            GrantState::Revoking => {
                if let Some(export) = &attachment.export {
                    fabric.enter(export.port, record.id());
                }
                self.fence(state, record, &attachment)
            }
            GrantState::Granted => self
                .own_port(fabric, record, attachment)
                .and_then(|attachment| self.verified_export(state, record, &attachment)),
        };
        if let Err(error) = recalled {
            error!(volume = %record.handle, error = record.named().in_text(&error.chain()), "the export of the volume could not be restored; its pods wait, and the next call for the volume tries again");
        }
    }

    fn verified_export(&self, state: &PoolState, record: &VolumeRecord, attachment: &Attachment) -> Result<()> {
        let (nqn, _) = export_of(record, attachment)?;
        if self.fabric()?.export.is_complete(&nqn)? {
            self.exported(state, record, attachment, ControllerIds::default())?;
            info!(volume = %record.handle, node = %attachment.node, "the volume is exported");
        }
        Ok(())
    }

    /// The attachment with a port that no other volume has: a pool from another machine may bring one that is taken.
    fn own_port(&self, fabric: &Fabric, record: &mut VolumeRecord, attachment: Attachment) -> Result<Attachment> {
        let Some(export) = attachment.export.clone() else { return Ok(attachment) };
        let Some(other) = fabric.enter(export.port, record.id()) else { return Ok(attachment) };
        let port = fabric.take(record.id())?;
        warn!(volume = %record.handle, taken = export.port, by = %other, port, "the port of this export belongs to another volume here; it gets another one, and its node must stage the volume again");
        let mut moved = attachment;
        if let Some(export) = &mut moved.export {
            export.known.port = port;
        }
        if let Some(place) = record.attachments.iter_mut().find(|one| one.epoch == moved.epoch) {
            *place = moved.clone();
        }
        self.store_volume(record).inspect_err(|_| fabric.give_back(port, record.id()))?;
        Ok(moved)
    }

    /// The exports of a node's attachments in a pool. Reads the records of exported volumes only.
    pub(super) fn exports_to(&self, node: &NodeId, pool: PoolId) -> Result<Vec<SubsystemNqn>> {
        // Of a pool that is not there, and without a fabric, nothing is known. A record that could not be read may be that
        // of an exported volume.
        let state = self.pool(pool)?;
        let unread = state.unread.lock().unwrap_or_else(PoisonError::into_inner).len();
        if unread > 0 {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "{unread} records of pool {pool} cannot be read, so the exports of node {node} are not known; run holdfast doctor"
                ),
            ));
        }
        let mut exports = Vec::new();
        for volume in self.fabric()?.volumes().into_iter().filter(|volume| volume.pool == pool) {
            let Some(record) = self.volume_record(&volume)? else { continue };
            let of_node = |one: &&Attachment| {
                one.node == *node && one.path == AttachPath::NvmeTcp && one.state == GrantState::Granted
            };
            if let Some(attachment) = record.attachments.iter().find(of_node) {
                exports.push(export_of(&record, attachment)?.0);
            }
        }
        Ok(exports)
    }

    /// The device grew: the node of the attachment sees it.
    pub(super) fn export_resized(&self, record: &VolumeRecord) -> Result<()> {
        for attachment in record.attachments.iter().filter(|one| one.path == AttachPath::NvmeTcp) {
            self.fabric()?.export.resized(&export_of(record, attachment)?.0)?;
        }
        Ok(())
    }
}

/// The name and the rest of an attachment's export.
pub(super) fn export_of<'a>(
    record: &VolumeRecord,
    attachment: &'a Attachment,
) -> Result<(SubsystemNqn, &'a ExportRecord)> {
    match (attachment.nonce, &attachment.export) {
        (Some(nonce), Some(export)) => Ok((SubsystemNqn { volume: record.id(), nonce }, &export.known)),
        _ => Err(Error::new(
            Kind::Corrupt,
            format!(
                "volume {} is attached to node {} over the network, but its record has no export; nothing was changed; detach the volume and attach it again",
                record.id(),
                attachment.node
            ),
        )),
    }
}
