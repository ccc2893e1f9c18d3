//! A volume that its home node still uses after it was detached.
//!
//! Kubernetes deletes an attachment without an unstage when the node's object is deleted, or after six minutes without
//! its kubelet. A pod of the same node may want the volume before kubelet unstages it, and kubelet then waits for the
//! attachment to go first. Nobody but the home node can use a local volume, so the end of the attachment protects
//! nothing there. It is recorded as `still_staged`, and the device decides: until it is idle, the volume is attached
//! to its home node alone and as before, and it is not deleted, formatted, or copied. Unstage needs no attachment.
//!
//! An older release does not know the field. It keeps it, sees a volume that is not attached, and asks the device
//! before it deletes, formats or copies, as for every volume: so it is no word that an older release must not read.

use tracing::{info, warn};

use super::GrantRequest;
use super::local::{PoolState, Shared};
use super::record::{AttachPath, Attachment, GrantState, VolumeRecord};
use crate::types::{Error, Kind, Result, VolumeId};

impl Shared {
    /// Whether an attachment may end although its device is in use: for a local one the user is the home node itself.
    /// One step; the caller stores the record.
    pub(super) fn detach_in_use(&self, record: &mut VolumeRecord, ended: &Attachment, held: &str) {
        match ended.path {
            AttachPath::Local => {
                info!(volume = %record.handle, node = %self.node, held, "volume detached while its node still uses it");
                record.still_staged = Some(Attachment { state: GrantState::Revoking, ..ended.clone() });
            }
        }
    }

    /// Whether a volume may be attached that its home node may still have staged: the same way as before, or once the
    /// device is idle. Takes the mark away in memory; the caller stores the record with the new attachment.
    ///
    /// # Errors
    /// `Precondition` while it is in use another way.
    pub(super) fn attach_again(
        &self,
        state: &PoolState,
        record: &mut VolumeRecord,
        request: &GrantRequest,
    ) -> Result<()> {
        let Some(before) = &record.still_staged else { return Ok(()) };
        let same = before.node == request.node
            && before.mode == request.mode
            && before.access == request.access
            && before.read_only == request.read_only;
        if !same && let Some(held) = self.release_device(state, record.uuid)? {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {} was detached from node {}, which still uses it with another capability: {held}; it can be attached so when it is unstaged there: delete the pods that use it, then retry",
                    record.id(),
                    before.node
                ),
            ));
        }
        record.still_staged = None;
        Ok(())
    }

    /// The device is gone: a mark that it was still in use is void. One that cannot be removed stays, and is judged by
    /// the device again.
    pub(super) fn unstaged(&self, state: &PoolState, id: &VolumeId) {
        let cleaned = self.volume_record(id).and_then(|record| match record {
            Some(record) if record.still_staged.is_some() => {
                self.store_volume(&VolumeRecord { still_staged: None, ..record })?;
                state.pool.disclaim_device(id.uuid);
                Ok(())
            }
            _ => Ok(()),
        });
        if let Err(error) = cleaned {
            warn!(volume = %id, error = %error.chain(), "the volume is unstaged, and its record still says otherwise");
        }
    }
}
