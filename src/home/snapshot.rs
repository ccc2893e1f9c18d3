//! CreateSnapshot: by an instant clone in one step, otherwise by copying an unattached volume.

use std::sync::Arc;

use tracing::info;

use super::copying::COPY_WAIT;
use super::create::no_copies;
use super::local::{Shared, no_volume};
use super::part::Part;
use super::record::{CopyRecord, CopySource, Phase, Record, SCHEMA, SnapshotRecord, VolumeRecord};
use super::state::{Key, PoolState};
use super::{CopyState, CreateSnapshot, Created, FormatState, Snapshot};
use crate::os::Timestamp;
use crate::pool::{Cloning, Fill, Geometry, Version};
use crate::types::{Bytes, Error, Failure, Kind, ObjectUuid, Provisioning, Result, SnapshotId};

impl Shared {
    /// Creates a snapshot.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. lock source and snapshot, compare with an existing record: nothing.
    /// 2. reserve in the ledger (memory): nothing.
    /// 3. the pool clones the image, with record and name (its own steps): nothing, or the snapshot. This is its point
    ///    in time. Where the image is copied, the record says `creating`, the source stays unattached, and the copy
    ///    resumes at start.
    /// 4. reply: a retry finds it by its name's uuid, with the same creation time.
    ///
    /// The call waits for a small copy without a lock, so that it is ready in the first answer.
    pub(super) fn create_snapshot(self: &Arc<Self>, request: &CreateSnapshot) -> Result<Created<Snapshot>, Failure> {
        let made = self.try_create_snapshot(request)?;
        let (Created::New(snapshot) | Created::Existing(snapshot)) = &made;
        let key = Key::from(snapshot.id);
        if snapshot.copy == CopyState::Ready || !self.copies.wait(&[key], COPY_WAIT) {
            return Ok(made);
        }
        match (self.snapshot(&snapshot.id), made) {
            (Ok(now), Created::New(_)) => Ok(Created::New(now)),
            (Ok(now), Created::Existing(_)) => Ok(Created::Existing(now)),
            // Deleted meanwhile: not ready, and a retry finds the current state.
            (Err(error), made) if error.kind() == Kind::NotFound => Ok(made),
            (Err(error), _) => Err(Failure::Dirty(error)),
        }
    }

    fn try_create_snapshot(self: &Arc<Self>, request: &CreateSnapshot) -> Result<Created<Snapshot>, Failure> {
        let uuid = ObjectUuid::of_snapshot(&request.name);
        let source = request.source;
        let state = self.pool(source.pool)?;
        let id = SnapshotId::new(source.pool, uuid);
        let key = Key::from(id);
        let source_key = Key::from(source);
        let _lock = self.locks.try_lock(&key, "CreateSnapshot").map_err(Failure::Dirty)?;
        let _source = self.locks.try_share(&source_key, "CreateSnapshot").map_err(Failure::Dirty)?;

        match self.snapshot_record(&id) {
            Ok(Some(record)) => return self.existing_snapshot(&record, request),
            Ok(None) => {}
            Err(error) => return Err(Failure::Dirty(error)),
        }
        if let Some(other) = self.elsewhere(source.pool, key.object()).map_err(Failure::Dirty)? {
            return Err(Failure::Clean(Error::new(
                Kind::AlreadyExists,
                format!("snapshot {:?} exists already, in pool {other}; delete it or use another name", request.name),
            )));
        }
        let volume = self.volume_record(&source)?.ok_or_else(|| no_volume(&source))?;
        volume.changeable()?;
        match volume.phase {
            Phase::Ready => {}
            Phase::Creating => return Err(Failure::Dirty(self.still_copying(volume.id().into()))),
            Phase::Deleting => return Err(Failure::Clean(no_volume(&source))),
        }
        if let FormatState::Formatting { .. } = volume.format.known {
            return Err(Failure::Dirty(Error::new(
                Kind::Busy,
                format!("{} is being formatted; retry", volume.named()),
            )));
        }
        self.source_volume_usable(&volume)?;
        let length = self.check_image(state, volume.id().into(), volume.size)?;
        self.cut(state, &volume, length, uuid, request)
    }

    /// The answer for a snapshot that exists already.
    pub(super) fn existing_snapshot(
        self: &Arc<Self>,
        record: &SnapshotRecord,
        request: &CreateSnapshot,
    ) -> Result<Created<Snapshot>, Failure> {
        let id = record.id();
        if record.source != request.source || record.co_name != request.name {
            return Err(Failure::Clean(Error::new(
                Kind::AlreadyExists,
                format!(
                    "snapshot {:?} exists already as {id}, of volume {}; delete it or use another name",
                    request.name,
                    record.source.born_on(&record.source_birth_home)
                ),
            )));
        }
        if record.phase == Phase::Deleting {
            return Err(Failure::Dirty(Error::new(
                Kind::Busy,
                format!("snapshot {id} is being deleted; retry the delete until it succeeds, then create the snapshot"),
            )));
        }
        let key = Key::from(id);
        if record.phase == Phase::Creating {
            record.changeable().map_err(Failure::Dirty)?;
        }
        if let (None, Some(copy)) = (self.copies.percent_into(key), record.copy_to_resume()) {
            self.start_copy(key, copy);
        }
        let state = self.pool(id.pool)?;
        state.ledger.enter(record.object(), state.claim_of_snapshot(record));
        if record.phase == Phase::Creating
            && let Some(now) = self.snapshot_record(&id)?
            && now.phase == Phase::Ready
        {
            // The copy ended after the record was read, and may have entered its claim before this call did.
            state.ledger.enter(now.object(), state.claim_of_snapshot(&now));
            return Ok(Created::Existing(self.view_snapshot(&now)));
        }
        Ok(Created::Existing(self.view_snapshot(record)))
    }

    /// Steps 2 to 4.
    fn cut(
        self: &Arc<Self>,
        state: &PoolState,
        volume: &VolumeRecord,
        length: Bytes,
        uuid: ObjectUuid,
        request: &CreateSnapshot,
    ) -> Result<Created<Snapshot>, Failure> {
        let id = SnapshotId::new(volume.pool, uuid).born_on(&self.node);
        let key = Key::from(id);
        let (copy, fill) = match state.pool.abilities().cloning {
            Cloning::Instant { .. } => (None, Fill::Clone(volume.object())),
            Cloning::Copy => {
                let from = CopySource::Volume(volume.uuid);
                (Some(CopyRecord { from, done: Bytes::ZERO, total: volume.size }), Fill::Blank)
            }
            Cloning::None => return Err(Failure::Clean(no_copies(state))),
        };
        let record = SnapshotRecord {
            schema: SCHEMA,
            min_reader: SCHEMA,
            uuid,
            handle: id.to_string(),
            co_name: request.name.clone(),
            pool: volume.pool,
            birth_home: self.node.clone(),
            source: volume.id(),
            source_birth_home: volume.birth_home.clone(),
            size: volume.size,
            restore_request: Some(volume.least_request()),
            block_size: volume.block_size,
            provisioning: volume.provisioning,
            created: Timestamp::now(),
            phase: if copy.is_some() { Phase::Creating } else { Phase::Ready },
            format: Part::new(volume.format.known),
            copy: copy.map(Part::new),
            on_delete: volume.request.parameters.on_delete,
            erased: None,
            version: Version::default(),
            unknown: serde_json::Map::new(),
        };
        self.read_again(state);
        let reservation = state.ledger.reserve(key.object(), state.claim_of_snapshot(&record))?;
        // A snapshot is never written: holes stay holes, whatever its source is.
        let geometry = Geometry { provisioning: Provisioning::Thin, ..volume.geometry_at(length) };
        let text = record.encode()?;
        reservation.settle(state.pool.create(key.object(), &geometry, fill, &text))?;
        info!(snapshot = %record.handle, name = %record.co_name, volume = %volume.handle, copying = copy.is_some(), "snapshot created");
        if let Some(copy) = copy {
            self.start_copy(key, copy);
        }
        Ok(Created::New(self.view_snapshot(&record)))
    }
}
