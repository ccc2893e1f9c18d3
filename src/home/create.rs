//! CreateVolume: blank, restored from a snapshot, or cloned.

use std::sync::Arc;

use tracing::info;

use super::copying::COPY_WAIT;
use super::local::{Shared, no_snapshot, no_volume};
use super::part::Part;
use super::record::{CopyRecord, CopySource, Phase, Record, SCHEMA, VolumeRecord, VolumeRequest};
use super::sizes::{self, SizeRequest};
use super::slot::Slot;
use super::state::{Key, PoolState};
use super::{CreateVolume, Created, FormatState, LockGuard, Source, Volume};
use crate::fs;
use crate::os::{Stopwatch, Timestamp};
use crate::pool::{Ability, Cloning, Fill, Object, Version};
use crate::types::{
    Access, Bytes, Capability, ClaimName, Error, Failure, Kind, Named, ObjectUuid, OnDelete, PoolId, Provisioning,
    Result, VolumeId, VolumeMode,
};

/// The source of a volume's content.
struct Origin {
    key: Key,
    /// It as messages name it.
    named: Named,
    size: Bytes,
    /// The minimum size to request for a copy.
    least: Bytes,
    /// The length of its image: at least the size.
    length: Bytes,
    format: FormatState,
}

impl Shared {
    /// Creates a volume.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. lock, compare with an existing record: nothing.
    /// 2. reserve in the ledger (memory): nothing.
    /// 3. the pool creates data, record and name (its own steps; temporary files are removed at start): nothing, or the
    ///    volume. Where the source is copied, the record says `creating`, and the copy resumes at start (copying.rs).
    /// 4. reply: the volume; a retry finds it by its name's uuid.
    ///
    /// If a copy is nearly done, the call waits for it without a lock, so that a small volume is there in the first
    /// answer. This is a retry inside the call: it starts at step 1 and finds any changes made meanwhile.
    pub(super) fn create_volume(self: &Arc<Self>, request: &CreateVolume) -> Result<Created<Volume>, Failure> {
        let watch = Stopwatch::start();
        loop {
            let answer = self.try_create_volume(request).map_err(|failure| self.unless_made(request, failure));
            let left = COPY_WAIT.saturating_sub(watch.elapsed());
            let unfinished = matches!(&answer, Err(Failure::Dirty(error)) if error.kind() == Kind::Busy);
            if !unfinished || request.source.is_none() || !self.copies.wait(&self.copies_for(request), left) {
                return answer;
            }
        }
    }

    /// An invalid request is not a final error if its name exists: a later release, or a request with another
    /// StorageClass, created it.
    fn unless_made(&self, request: &CreateVolume, failure: Failure) -> Failure {
        match failure {
            Failure::Clean(error) if error.kind() == Kind::InvalidArgument => {
                error.unless_made(&format!("volume {:?}", request.name), || {
                    // A pool that is not served may have the name.
                    self.all_in_use()?;
                    self.find_volume(ObjectUuid::of_volume(&request.name))
                })
            }
            failure => failure,
        }
    }

    /// The error with the new volume named as the request names it.
    pub(super) fn named_new(&self, request: &CreateVolume, failure: Failure) -> Failure {
        let uuid = ObjectUuid::of_volume(&request.name);
        let claim = || ClaimName::of_metadata(&request.parameters.metadata);
        let pools = self.slots.iter().filter_map(Slot::state).map(|state| state.pool.identity().id);
        let named = |pool| Named::new_volume(VolumeId::new(pool, uuid), &request.name, claim());
        pools.fold(failure, |failure, pool| failure.map(|error| named(pool).in_error(error)))
    }

    /// The targets of the copies that a volume from a source depends on: itself, and the source.
    fn copies_for(&self, request: &CreateVolume) -> Vec<Key> {
        let source = match request.source {
            None => return Vec::new(),
            Some(source) => Key::from(source),
        };
        vec![VolumeId::new(source.pool(), ObjectUuid::of_volume(&request.name)).into(), source]
    }

    fn try_create_volume(self: &Arc<Self>, request: &CreateVolume) -> Result<Created<Volume>, Failure> {
        let uuid = ObjectUuid::of_volume(&request.name);
        let state = self.pool_for(request)?;
        let pool = state.pool.identity().id;
        let id = VolumeId::new(pool, uuid);
        let key = Key::from(id);
        let _locks = self.lock_with_source(key, request.source.as_ref()).map_err(not_now)?;

        match self.volume_record(&id) {
            Ok(Some(record)) => return self.existing(&record, request),
            Ok(None) => {}
            // An object exists that cannot be read: that is not "nothing exists".
            Err(error) => return Err(Failure::Dirty(error)),
        }
        if let Some(other) = self.elsewhere(pool, key.object()).map_err(Failure::Dirty)? {
            return Err(Failure::Clean(Error::new(
                Kind::AlreadyExists,
                format!("volume {:?} exists already, in pool {other}; delete it or use another name", request.name),
            )));
        }

        let origin = self.origin(request)?;
        let record = self.plan(state, request, uuid, origin.as_ref())?;
        self.make(state, &record, origin.as_ref())
    }

    /// The pool for a request: its source's pool, otherwise the pool in the parameters.
    fn pool_for(&self, request: &CreateVolume) -> Result<&PoolState> {
        let source = match &request.source {
            None => return self.pool_named(request.parameters.pool.as_ref()),
            Some(Source::Snapshot(id)) => id.pool,
            Some(Source::Volume(id)) => id.pool,
        };
        let state = self.pool(source)?;
        match &request.parameters.pool {
            Some(name) if *name != state.pool.identity().name => Err(Error::new(
                Kind::InvalidArgument,
                format!(
                    "the source is in pool {}, but the StorageClass sets pool {name}: a copy is in the pool of its source; use a StorageClass with pool: {}",
                    state.pool.identity().name,
                    state.pool.identity().name
                ),
            )),
            _ => Ok(state),
        }
    }

    /// The new volume's lock, and a shared lock of its source. Many volumes may be created from one source at the same
    /// time, but the source is not deleted, attached or formatted meanwhile.
    fn lock_with_source(&self, key: Key, source: Option<&Source>) -> Result<Vec<LockGuard<Key>>> {
        // In every pool: a name is unique on a home node, also with two concurrent requests.
        let same = |pool: &PoolId| self.locks.try_lock(&Key::new(*pool, key.object()), "CreateVolume");
        let open = self.slots.iter().filter_map(Slot::state);
        let mut locks = open.map(|state| same(&state.pool.identity().id)).collect::<Result<Vec<_>>>()?;
        if let Some(source) = source {
            let source = Key::from(*source);
            if source == key {
                return Err(Error::new(Kind::InvalidArgument, format!("{key} cannot be its own source")));
            }
            locks.push(self.locks.try_share(&source, "CreateVolume from it")?);
        }
        Ok(locks)
    }

    /// The answer for a volume that exists already.
    fn existing(self: &Arc<Self>, record: &VolumeRecord, request: &CreateVolume) -> Result<Created<Volume>, Failure> {
        let id = record.id();
        if let Some(difference) = record.differs_from(request) {
            return Err(Failure::Clean(Error::new(
                Kind::AlreadyExists,
                format!(
                    "volume {:?} exists already as {id}, but {difference}; delete it or use another name",
                    request.name
                ),
            )));
        }
        match record.phase {
            Phase::Ready => {
                let state = self.pool(id.pool)?;
                state.ledger.enter(record.object(), state.claim_of_volume(record));
                Ok(Created::Existing(self.view_volume(record)))
            }
            Phase::Deleting => Err(Failure::Dirty(Error::new(
                Kind::Busy,
                format!("volume {id} is being deleted; retry the delete until it succeeds, then create the volume"),
            ))),
            Phase::Creating => {
                record.changeable().map_err(Failure::Dirty)?;
                let key = Key::from(record.id());
                if let (None, Some(copy)) = (self.copies.percent_into(key), record.copy_to_resume()) {
                    self.start_copy(key, copy);
                }
                Err(Failure::Dirty(self.still_copying(key)))
            }
        }
    }

    /// Finds the source, and returns an error if it cannot be copied now.
    fn origin(&self, request: &CreateVolume) -> Result<Option<Origin>, Failure> {
        let mut origin = match &request.source {
            None => return Ok(None),
            Some(Source::Snapshot(id)) => {
                let record = self.snapshot_record(id)?.ok_or_else(|| no_snapshot(id))?;
                record.changeable()?;
                let key = Key::from(record.id());
                match record.phase {
                    Phase::Ready => {}
                    // Neither leaves anything of the new volume, but the answer must make the caller retry.
                    Phase::Creating => return Err(Failure::Dirty(self.still_copying(key))),
                    Phase::Deleting => return Err(Failure::Clean(no_snapshot(id))),
                }
                Origin {
                    key: record.id().into(),
                    named: record.named(),
                    size: record.size,
                    least: record.least_request(),
                    length: record.size,
                    format: record.format.known,
                }
            }
            Some(Source::Volume(id)) => {
                let record = self.volume_record(id)?.ok_or_else(|| no_volume(id))?;
                record.changeable()?;
                let record = match record.phase {
                    Phase::Ready => record,
                    Phase::Creating | Phase::Deleting => self.ready_volume(id).map_err(|error| match error.kind() {
                        Kind::Busy => Failure::Dirty(error),
                        _ => Failure::Clean(error),
                    })?,
                };
                self.source_volume_usable(&record)?;
                Origin {
                    key: record.id().into(),
                    named: record.named(),
                    size: record.size,
                    least: record.least_request(),
                    length: record.size,
                    format: record.format.known,
                }
            }
        };
        if let FormatState::Formatting { .. } = origin.format {
            return Err(Failure::Dirty(Error::new(Kind::Busy, format!("{} is being formatted; retry", origin.named))));
        }
        origin.length = self.check_image(self.pool_for(request)?, origin.key, origin.size)?;
        let only_block = only_block(request);
        for capability in &request.capabilities {
            let fits = match (origin.format, capability.mode) {
                (FormatState::Never | FormatState::Formatting { .. }, _) | (FormatState::Raw, VolumeMode::Block) => {
                    true
                }
                (FormatState::Formatted { fs, .. }, VolumeMode::Mount(wanted)) => fs == wanted,
                // All of its bytes may be read and written; from then on it is raw, permanently.
                (FormatState::Formatted { .. }, VolumeMode::Block) => only_block,
                (FormatState::Raw, VolumeMode::Mount(_)) => false,
            };
            if !fits {
                let carries = describe(origin.format);
                let message = format!(
                    "{} {carries}, and a copy of it cannot be used as {}; request the same volumeMode and filesystem as its source",
                    origin.named, capability.mode
                );
                return Err(Failure::Clean(Error::new(Kind::InvalidArgument, message)));
            }
        }
        Ok(Some(origin))
    }

    /// Whether a volume can be copied now: with instant clones always; without them only while no node can write it.
    pub(super) fn source_volume_usable(&self, record: &VolumeRecord) -> Result<()> {
        let state = self.pool(record.pool)?;
        if matches!(state.pool.abilities().cloning, Cloning::Instant { .. }) {
            return Ok(());
        }
        let held = if let Some(attachment) = record.attachments.first() {
            Some(format!("it is attached to node {}", attachment.node))
        } else if self.release_device(state, record.uuid)?.is_some() {
            Some("its device is still in use".to_owned())
        } else {
            None
        };
        match held {
            None => Ok(()),
            Some(why) => Err(Error::new(
                Kind::Precondition,
                format!(
                    "{} cannot be snapshotted or cloned now: {why}, and pool {} ({}) clones by copying, so a copy would be inconsistent while the volume is written. \
                     Stop the pods that use the volume and retry, or put volumes that need this on a pool with instant clones (for pools of image files: on XFS with reflink)",
                    record.named(),
                    state.pool.identity().name,
                    state.pool.identity().place
                ),
            )),
        }
    }

    /// Checks the request against the pool and builds the record of the new volume.
    fn plan(
        &self,
        state: &PoolState,
        request: &CreateVolume,
        uuid: ObjectUuid,
        origin: Option<&Origin>,
    ) -> Result<VolumeRecord> {
        let identity = state.pool.identity();
        let abilities = state.pool.abilities();
        let provisioning = request.parameters.provisioning.unwrap_or(abilities.default_provisioning);
        if request.parameters.access == Access::Network {
            if abilities.stable == Ability::No {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!(
                        "pool {} ({}) is on a filesystem for which it was not measured that an export keeps every acknowledged write through a loss of power: set access: local, or use a pool on XFS or ext4",
                        identity.name, identity.place
                    ),
                ));
            }
            if self.fabric.is_none() {
                return Err(Error::new(
                    Kind::NoCapacity,
                    format!(
                        "node {} exports no volumes, as access: network needs: start it with --fabric, or let the scheduler choose another node",
                        self.node
                    ),
                ));
            }
        }
        self.authenticates_new(&request.parameters)?;
        if provisioning == Provisioning::Thick && abilities.thick == Ability::No {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "pool {} ({}) does not support thick volumes: set provisioning: thin, or use a pool on XFS or ext4",
                    identity.name, identity.place
                ),
            ));
        }
        if provisioning == Provisioning::Thin && abilities.thin == Ability::No {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "pool {} ({}) does not support thin volumes: set provisioning: thick, or use another pool",
                    identity.name, identity.place
                ),
            ));
        }
        if provisioning == Provisioning::Thin && request.parameters.on_delete == OnDelete::Zero {
            return Err(Error::new(
                Kind::InvalidArgument,
                "parameter onDelete: zero is only for thick volumes; set onDelete: unlink",
            ));
        }
        for capability in &request.capabilities {
            if let VolumeMode::Mount(fs) = capability.mode {
                fs::MkfsOptions::parse(fs, &request.parameters.mkfs_options)?;
                let least = fs::minimum_size(fs);
                if request.range.required.is_some_and(|required| required < least) && fs == crate::types::FsType::Xfs {
                    return Err(Error::new(
                        Kind::OutOfRange,
                        format!("an xfs volume needs at least {least}; request that size, or use ext4"),
                    ));
                }
            }
        }
        let minimum = sizes::minimum(request.capabilities.iter().copied());
        let size = match origin {
            Some(origin) => sizes::of_copy(&request.range, minimum, &origin.named, origin.size, origin.least)?,
            None => sizes::of_blank(&request.range, minimum)?,
        };
        let size = sizes::in_units(size, abilities.growth_unit, &request.range)?;
        let format = origin.map_or(FormatState::Never, |origin| inherited(origin.format, request));
        self.formattable(&request.capabilities, &request.parameters.mkfs_options, format, size)?;
        let id = VolumeId::new(identity.id, uuid).born_on(&self.node);
        let copy = match (origin, abilities.cloning) {
            (Some(_), Cloning::None) => return Err(no_copies(state)),
            (Some(origin), Cloning::Copy) => Some(copy_of(origin)),
            _ => None,
        };
        Ok(VolumeRecord {
            schema: SCHEMA,
            min_reader: SCHEMA,
            uuid,
            handle: id.to_string(),
            co_name: request.name.clone(),
            request: Part::new(VolumeRequest {
                range: Part::new(request.range),
                capabilities: request.capabilities.iter().copied().map(Part::new).collect(),
                parameters: Part::new(request.parameters.clone()),
            }),
            pool: identity.id,
            birth_home: self.node.clone(),
            size,
            size_request: Some(Part::new(SizeRequest::new(&request.range, size))),
            target_size: None,
            block_size: abilities.block_size,
            provisioning,
            access: request.parameters.access,
            source: request.source,
            created: Timestamp::now(),
            phase: if copy.is_some() { Phase::Creating } else { Phase::Ready },
            format: Part::new(format),
            attachments: Vec::new(),
            still_staged: None,
            epoch: 0,
            ever_attached: false,
            copy: copy.map(Part::new),
            erased: None,
            attributes: request.parameters.metadata.clone(),
            version: Version::default(),
            unknown: serde_json::Map::new(),
        })
    }

    /// For a volume that is formatted at its first stage with options of its StorageClass: checks now whether the
    /// options work at its size, while the claim can still report it. Otherwise every stage would fail.
    pub(super) fn formattable(
        &self,
        capabilities: &[Capability],
        mkfs_options: &str,
        format: FormatState,
        size: Bytes,
    ) -> Result<()> {
        if format != FormatState::Never {
            return Ok(());
        }
        for capability in capabilities {
            let VolumeMode::Mount(fs) = capability.mode else { continue };
            let options = fs::MkfsOptions::parse(fs, mkfs_options)?;
            if !options.is_empty() {
                fs::of(fs).rehearse(&self.os, size, &options)?;
            }
        }
        Ok(())
    }

    /// Steps 2 to 4.
    fn make(
        self: &Arc<Self>,
        state: &PoolState,
        record: &VolumeRecord,
        origin: Option<&Origin>,
    ) -> Result<Created<Volume>, Failure> {
        self.read_again(state);
        let reservation = state.ledger.reserve(record.object(), state.claim_of_volume(record))?;
        let fill = match (origin, &record.copy) {
            (Some(origin), None) => Fill::Clone(origin.key.object()),
            _ => Fill::Blank,
        };
        let length = origin.map_or(record.size, |origin| record.size.max(origin.length));
        let text = record.encode()?;
        reservation.settle(state.pool.create(record.object(), &record.geometry_at(length), fill, &text))?;
        let key = Key::from(record.id());
        info!(volume = %record.handle, name = %record.co_name, size = record.size.get(), pool = %state.pool.identity().name,
            provisioning = ?record.provisioning, copying = record.copy.is_some(), "volume created");
        match &record.copy {
            None => Ok(Created::New(self.view_volume(record))),
            Some(copy) => {
                self.start_copy(key, copy.known);
                Err(Failure::Dirty(self.still_copying(key)))
            }
        }
    }
}

/// A lock that is in use says nothing about what exists; a request that can never succeed is a final error.
fn not_now(error: Error) -> Failure {
    if error.kind() == Kind::Busy { Failure::Dirty(error) } else { Failure::Clean(error) }
}

/// Whether a volume is requested only as a raw block device.
fn only_block(request: &CreateVolume) -> bool {
    !request.capabilities.is_empty() && request.capabilities.iter().all(|c| c.mode == VolumeMode::Block)
}

/// The format state of a copy. A filesystem copied for use as a raw block device is raw from the start: its user may
/// write anything to the device, so the driver never mounts it.
fn inherited(source: FormatState, request: &CreateVolume) -> FormatState {
    match source {
        FormatState::Formatted { .. } if only_block(request) => FormatState::Raw,
        FormatState::Formatted { .. } | FormatState::Never | FormatState::Raw | FormatState::Formatting { .. } => {
            source
        }
    }
}

fn copy_of(origin: &Origin) -> CopyRecord {
    let from = match origin.key.object() {
        Object::Volume(uuid) => CopySource::Volume(uuid),
        Object::Snapshot(uuid) => CopySource::Snapshot(uuid),
    };
    CopyRecord { from, done: Bytes::ZERO, total: origin.size }
}

/// A volume's content, as a clause.
pub(super) fn describe(format: FormatState) -> String {
    match format {
        FormatState::Never => "was never used".to_owned(),
        FormatState::Raw => "is a raw block device".to_owned(),
        FormatState::Formatting { fs, .. } => format!("is being formatted as {fs}"),
        FormatState::Formatted { fs, uuid } => format!("contains {fs} with UUID {uuid}"),
    }
}

/// The error for a snapshot or a clone in a pool that has neither.
pub(super) fn no_copies(state: &PoolState) -> Error {
    let identity = state.pool.identity();
    Error::new(
        Kind::Unsupported,
        format!("pool {} ({}) supports neither snapshots nor clones; use another pool", identity.name, identity.place),
    )
}
