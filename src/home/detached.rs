//! A volume that its home node still uses after a detach.
//!
//! Kubernetes deletes an attachment without an unstage when the Node object is deleted, or after six minutes without
//! its kubelet. A pod of the same node may need the volume before kubelet unstages it, and kubelet then waits until the
//! attachment is removed. Only the home node can use a local volume, so keeping the attachment protects nothing there.
//! The record says `still_staged`, and the device decides. Until it is idle, the volume can only be attached to its
//! home node and in the same way, and it is not deleted, formatted or copied. Unstage needs no attachment.
//!
//! An older release does not know the field. It keeps the field, sees a volume that is not attached, and checks the
//! device before it deletes, formats or copies, as for every volume. The record therefore needs no newer reader.

use tracing::{info, warn};

use super::GrantRequest;
use super::local::Shared;
use super::record::{AttachPath, Attachment, GrantState, VolumeRecord};
use super::state::PoolState;
use crate::types::{Error, Kind, Named, Result, VolumeId, VolumeMode};

impl Shared {
    /// Whether an attachment may be removed although its device is in use: for a local volume only the home node itself
    /// uses it. One step; the caller stores the record.
    ///
    /// # Errors
    /// `InUse` after the end of an export: a process of this node uses the device, and no attachment says so.
    pub(super) fn detach_in_use(&self, record: &mut VolumeRecord, ended: &Attachment, held: &str) -> Result<()> {
        match ended.path {
            AttachPath::Local => {
                info!(volume = %record.handle, node = %self.node, held, "volume detached while its home node still uses it");
                record.still_staged = Some(Attachment { state: GrantState::Revoking, ..ended.clone() });
                Ok(())
            }
            AttachPath::NvmeTcp => Err(Error::new(
                Kind::InUse,
                format!(
                    "volume {} is no longer exported to node {}, but a process of its home node {} uses its device: {held}; stop that process, then retry",
                    record.id(),
                    ended.node,
                    self.node
                ),
            )),
        }
    }

    /// Whether a volume may be attached while its home node may still have it staged: in the same way as before, or
    /// when the device is idle. Removes the mark in memory; the caller stores the record with the new attachment.
    ///
    /// # Errors
    /// `Precondition` while it is in use in another way.
    pub(super) fn attach_again(
        &self,
        state: &PoolState,
        record: &mut VolumeRecord,
        request: &GrantRequest,
        mode: VolumeMode,
    ) -> Result<()> {
        let Some(before) = &record.still_staged else { return Ok(()) };
        let same = before.node == request.node
            && before.mode == mode
            && before.access == request.access
            && before.read_only == request.read_only;
        if !same && let Some(held) = self.release_device(state, record.uuid)? {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {} was detached from node {}, which still uses it with another capability: {held}; it cannot be attached with this capability until it is unstaged there: delete the pods that use it, then retry",
                    record.id(),
                    before.node
                ),
            ));
        }
        record.still_staged = None;
        Ok(())
    }

    /// The device is detached, so a mark that it is in use no longer applies. If it cannot be removed, it stays, and
    /// the device decides again.
    pub(super) fn unstaged(&self, state: &PoolState, id: &VolumeId) {
        let cleaned = self.volume_record(id).and_then(|record| match record {
            Some(record) if record.still_staged.is_some() => {
                self.store_volume(&mut VolumeRecord { still_staged: None, ..record })?;
                state.devices()?.disclaim(id.uuid);
                Ok(())
            }
            _ => Ok(()),
        });
        if let Err(error) = cleaned {
            warn!(volume = %id, error = Named::volume(*id, None).in_text(&error.chain()), "the volume is unstaged, but its record could not be updated; the driver checks its device when it is attached again");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::record::Record;
    use super::*;

    /// How release 0.1.0 reads it: not attached, with nothing that it must not change. It keeps fields it does not
    /// know.
    #[test]
    fn an_older_release_sees_a_volume_that_is_not_attached() {
        let mut value: Value = serde_json::from_str(include_str!("fixtures/volume-v1.json")).unwrap();
        let mut ended = value["attachments"][0].take();
        ended["state"] = "revoking".into();
        ended["of_a_later_release"] = 7.into();
        value["attachments"] = json!([]);
        value["still_staged"] = ended;
        let record: VolumeRecord = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(record.still_staged.as_ref().unwrap().epoch, 3);
        let written: Value = serde_json::from_slice(&record.encode().unwrap()).unwrap();
        assert_eq!(written, value);
        assert_eq!((&written["min_reader"], &written["attachments"]), (&json!(1), &json!([])));
    }
}
