//! ControllerExpandVolume: the image and its device. The node grows the filesystem.

use std::sync::Arc;

use tracing::info;

use super::local::Shared;
use super::part::Part;
use super::record::{Record, VolumeRecord};
use super::sizes::{self, SizeRequest};
use super::{Changed, Expanded, FormatState, NodeExpansion};
use crate::types::{Bytes, CapacityRange, Error, Kind, Result, VolumeId, VolumeMode};

impl Shared {
    /// Grows a volume.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. the difference reserved in the ledger (memory): nothing.
    /// 2. record `target_size`, durable: the next expand or stage continues.
    /// 3. the image extended: longer than its record says, which is harmless; continues as after 2.
    /// 4. an active device resized to its image: the same.
    /// 5. record `size`, without `target_size`: done.
    ///
    /// An error in step 3 or 4 (mostly: no space) undoes step 2: the size is unchanged, and a smaller target may
    /// succeed later. After any other error the target stays, recorded or not, and all of it stays reserved until a
    /// retry resolves it.
    pub(super) fn expand(self: &Arc<Self>, id: &VolumeId, range: &CapacityRange) -> Result<Expanded> {
        let state = self.pool(id.pool)?;
        let _lock = self.lock_volume(id, "ControllerExpandVolume")?;
        let mut record = self.ready_volume(id)?;
        self.not_copied_from(record.id().into())?;
        let node_expansion = self.node_expansion(&record);
        if range.limit.is_some_and(|limit| limit < record.size) {
            return Err(Error::new(
                Kind::OutOfRange,
                format!(
                    "volume {id} already has {} bytes, more than limit_bytes: volumes cannot shrink",
                    record.size.get()
                ),
            ));
        }
        let wanted = range.required.unwrap_or(record.size);
        if wanted <= record.size {
            // An earlier, larger target is dropped: the current size satisfies this request.
            if record.target_size.take().is_some() && record.changeable().is_ok() {
                record.size_request = Some(Part::new(SizeRequest::new(range, record.size)));
                self.store_volume(&mut record)?;
            }
            state.ledger.enter(record.object(), state.claim_of_volume(&record));
            return Ok(Expanded { size: record.size, node_expansion, changed: Changed::No });
        }
        record.changeable()?;
        self.check_image(state, record.id().into(), record.size)?;
        let target = range.choose(record.size, Bytes::ZERO)?;
        let target = sizes::in_units(target, state.pool.abilities().growth_unit, range)?;
        let capabilities: Vec<_> = record.request.capabilities.iter().map(|part| part.known).collect();
        self.formattable(&capabilities, &record.request.parameters.mkfs_options, record.format.known, target)?;
        let claim = { state.claim_of_volume(&VolumeRecord { target_size: Some(target), ..record.clone() }) };
        self.read_again(state);
        let reservation = state.ledger.reserve(record.object(), claim)?;
        let before = record.clone();
        record.target_size = Some(target);
        record.size_request = Some(Part::new(SizeRequest::new(range, target)));
        let grown = self.store_volume(&mut record).and_then(|()| {
            let grown = self.grow_to(state, &mut record, target);
            grown.map_err(|error| if error.kind().is_refusal() { self.shrink_back(&before, error) } else { error })
        });
        if let Err(error) = grown {
            if !error.kind().is_refusal() {
                reservation.doubt();
            }
            return Err(error);
        }
        reservation.keep();
        info!(volume = %record.handle, size = record.size.get(), before = before.size.get(), "volume expanded");
        Ok(Expanded { size: record.size, node_expansion, changed: Changed::Yes })
    }
}

impl Shared {
    /// A filesystem must grow, unless there is none and never will be. What lies over a raw block volume's device must grow
    /// too: its device-mapper device, and the device of read-only pods.
    fn node_expansion(&self, record: &VolumeRecord) -> NodeExpansion {
        let only_block = record.request.capabilities.iter().all(|capability| capability.mode == VolumeMode::Block);
        match record.format.known {
            FormatState::Never if only_block => NodeExpansion::NotNeeded,
            _ => NodeExpansion::Needed,
        }
    }

    /// Undoes step 2.
    fn shrink_back(&self, before: &VolumeRecord, error: Error) -> Error {
        match self.store_volume(&mut VolumeRecord { target_size: None, ..before.clone() }) {
            Ok(()) => error.context(format!("volume {} keeps its {} bytes", before.id(), before.size.get())),
            Err(undo) => error.and_undo_failed(&undo),
        }
    }
}
