//! The record of a volume or snapshot (docs/design.md section 6), stored beside its data.
//!
//! Readers keep fields they do not know and write them back, also within a record's objects ([`Part`]). A record whose
//! `min_reader` is above [`SCHEMA`] is served for attach and detach, and otherwise never changed. A record with an
//! unknown `Word` cannot be read, so nothing of it is served. A new state that an older release must not serve
//! therefore gets a new word. Each write computes `min_reader` from the words in the record.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::part::Part;
use super::sizes::{self, SizeRequest};
use super::{CreateVolume, FormatState, ReadOnly, Source};
use crate::os::{DevNum, Timestamp};
use crate::pool::{ActiveDevice, Geometry, Object, Version};
use crate::types::{
    Access, AccessMode, Authentication, Bytes, Capability, CapacityRange, ClaimName, DhchapKey, Error, FsType, HostNqn,
    Kind, Named, NodeId, ObjectUuid, OnDelete, PoolId, Provisioning, Result, SnapshotId, VolumeId, VolumeMode,
    VolumeParameters,
};

/// The schema that this release writes, and the newest one that it may change.
pub const SCHEMA: u32 = 2;

/// The lifecycle phase of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its data is being copied; it was never ready.
    Creating,
    /// It is usable.
    Ready,
    /// A delete began and must be finished.
    Deleting,
}

/// The original request, to compare a retry with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRequest {
    /// The requested size range.
    pub range: Part<CapacityRange>,
    /// The requested capabilities.
    pub capabilities: Vec<Part<Capability>>,
    /// The parameters of the StorageClass.
    pub parameters: Part<VolumeParameters>,
}

/// States that one node may use a volume now (design section 2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The node.
    pub node: NodeId,
    /// How the node reaches the device.
    pub path: AttachPath,
    /// Block or filesystem.
    pub mode: VolumeMode,
    /// The access mode: which nodes may read and write.
    pub access: AccessMode,
    /// Whether it is read-only.
    #[serde(default)]
    pub read_only: ReadOnly,
    /// The number of this attachment, counted for each volume.
    pub epoch: u64,
    /// Its state.
    pub state: GrantState,
    /// Since when it is `revoking`; none in records of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoking_since: Option<Timestamp>,
    /// Part of the name of the export; none for `local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Uuid>,
    /// The rest of the export; none for `local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<Part<ExportRecord>>,
    /// The boot of the home node in which this attachment was last used; none for a local filesystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<Uuid>,
    /// The device of a local raw block volume that pods may have. Valid in the boot `boot_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceMark>,
    /// The device that read-only pods of such a volume may have, if it is a loop device. Valid in the same boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<DeviceMark>,
    /// Fields of later releases.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The export of an attachment. It stays the same when the export is rebuilt, so that the client reconnects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRecord {
    /// The TCP port on the home node.
    pub port: u16,
    /// The name by which the node connects. Secret.
    pub host: HostNqn,
    /// The uuid that the namespace reports.
    pub namespace: Uuid,
    /// The key for DH-HMAC-CHAP, where the kernels have it. Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<DhchapKey>,
}

/// The device that pods of a raw block volume got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMark {
    /// Its number, `major:minor`; `none` while the attachment exists and no device was handed out. A block attachment
    /// without a mark was written by a release without marks.
    pub number: String,
    /// The kernel's sequence number of the loop attachment (diskseq), if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diskseq: Option<u64>,
    /// Fields of later releases.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Attachment {
    /// The devices that pods may have: the volume's own device, and the device for read-only pods.
    pub fn marks(&self) -> impl Iterator<Item = &DeviceMark> {
        self.device.iter().chain(&self.view)
    }
}

impl DeviceMark {
    /// The mark of a device that is attached now.
    #[must_use]
    pub fn of(device: &ActiveDevice) -> Self {
        Self { number: device.number.to_string(), diskseq: device.diskseq, unknown: Map::new() }
    }

    /// Whether it is the mark of the device with this number.
    #[must_use]
    pub fn is(&self, device: DevNum) -> bool {
        self.number == device.to_string()
    }

    /// The mark for "no device was handed out yet".
    #[must_use]
    pub fn none() -> Self {
        Self { number: "none".to_owned(), diskseq: None, unknown: Map::new() }
    }
}

/// How the node of an attachment reaches the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachPath {
    /// On its home node.
    Local,
    /// On another node, over an export of the home node.
    NvmeTcp,
}

/// The state of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GrantState {
    /// The node may use the volume.
    Granted,
    /// It is being removed.
    Revoking,
}

/// The source and the progress of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRecord {
    /// The object it is copied from, in the same pool.
    pub from: CopySource,
    /// Durable bytes in the copy.
    pub done: Bytes,
    /// Total bytes.
    pub total: Bytes,
}

/// The source of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopySource {
    /// A volume, which cannot be attached meanwhile.
    Volume(ObjectUuid),
    /// A snapshot, which cannot be deleted meanwhile.
    Snapshot(ObjectUuid),
}

impl CopySource {
    /// The same, as the pool's type.
    #[must_use]
    pub fn object(self) -> Object {
        match self {
            Self::Volume(uuid) => Object::Volume(uuid),
            Self::Snapshot(uuid) => Object::Snapshot(uuid),
        }
    }
}

/// `volume.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// The schema it was written in.
    pub schema: u32,
    /// The oldest schema that a writer must know.
    pub min_reader: u32,
    /// Its uuid, the name of its directory.
    pub uuid: ObjectUuid,
    /// Its handle as the orchestrator has it.
    pub handle: String,
    /// Its name in the orchestrator.
    pub co_name: String,
    /// The original request.
    pub request: Part<VolumeRequest>,
    /// The pool where it was created.
    pub pool: PoolId,
    /// The node where it was created.
    pub birth_home: NodeId,
    /// Its size, bytes.
    pub size: Bytes,
    /// The request that gave it its size; missing in older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_request: Option<Part<SizeRequest>>,
    /// The target size of an unfinished expansion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_size: Option<Bytes>,
    /// Logical block size of its device, bytes.
    pub block_size: u32,
    /// Thick or thin.
    pub provisioning: Provisioning,
    /// How nodes may reach it.
    pub access: Access,
    /// The source of its initial content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// When it was created.
    pub created: Timestamp,
    /// Its lifecycle phase.
    pub phase: Phase,
    /// Its content.
    pub format: Part<FormatState>,
    /// The attachments.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    /// The last attachment, if its device was still in use when it was removed. The device decides whether it still is
    /// (detached.rs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub still_staged: Option<Attachment>,
    /// The number of the last attachment, or of a later detach of a network volume (docs/protocol.md, late calls). It
    /// never decreases.
    #[serde(default)]
    pub epoch: u64,
    /// Whether it was ever attached.
    #[serde(default)]
    pub ever_attached: bool,
    /// The copy that fills it, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<Part<CopyRecord>>,
    /// Bytes that a delete with zeroing has overwritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased: Option<Bytes>,
    /// Names of claims and similar, for display.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// The stored version that it was read from.
    #[serde(skip)]
    pub version: Version,
    /// Fields of later releases, kept unchanged.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// `snapshot.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// The schema it was written in.
    pub schema: u32,
    /// The oldest schema that a writer must know.
    pub min_reader: u32,
    /// Its uuid, the name of its directory.
    pub uuid: ObjectUuid,
    /// Its handle as the orchestrator has it.
    pub handle: String,
    /// Its name in the orchestrator.
    pub co_name: String,
    /// The pool where it was created.
    pub pool: PoolId,
    /// The node where it was created.
    pub birth_home: NodeId,
    /// Its source volume.
    pub source: VolumeId,
    /// The node where that volume was created, for its handle.
    pub source_birth_home: NodeId,
    /// The source's size when the snapshot was taken.
    pub size: Bytes,
    /// The minimum size to request for a restore; missing in older records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_request: Option<Bytes>,
    /// The source's logical block size.
    pub block_size: u32,
    /// The source's provisioning: a snapshot of a thick volume reserves its full size.
    pub provisioning: Provisioning,
    /// When the snapshot was taken.
    pub created: Timestamp,
    /// Its lifecycle phase.
    pub phase: Phase,
    /// The source's content when the snapshot was taken.
    pub format: Part<FormatState>,
    /// The copy that fills it, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<Part<CopyRecord>>,
    /// Whether a delete overwrites its data, as for its source.
    #[serde(default)]
    pub on_delete: OnDelete,
    /// Bytes that a delete with zeroing has overwritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erased: Option<Bytes>,
    /// The stored version that it was read from.
    #[serde(skip)]
    pub version: Version,
    /// Fields of later releases, kept unchanged.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A word in a record that determines how the object may be served. A release reads only the words it knows.
trait Word {
    /// The first schema with this word.
    fn since(&self) -> u32;
}

/// The first schema of each word, listed so that a new word cannot be added without its schema.
macro_rules! words {
    ($($name:ty { $($word:pat => $since:literal),+ $(,)? })+) => {
        $(impl Word for $name {
            fn since(&self) -> u32 {
                match self { $($word => $since,)+ }
            }
        })+
    };
}

words! {
    Access { Self::Local => 1, Self::Network => 2 }
    Authentication { Self::Auto => 1, Self::Required => 2 }
    AttachPath { Self::Local => 1, Self::NvmeTcp => 2 }
    GrantState { Self::Granted => 1, Self::Revoking => 1 }
    Phase { Self::Creating => 1, Self::Ready => 1, Self::Deleting => 1 }
    FormatState { Self::Never => 1, Self::Raw => 1, Self::Formatting { .. } => 1, Self::Formatted { .. } => 1 }
    VolumeMode { Self::Block => 1, Self::Mount(FsType::Ext4 | FsType::Xfs) => 1 }
    AccessMode {
        Self::SingleNodeWriter => 1,
        Self::SingleNodeReaderOnly => 1,
        Self::SingleNodeSingleWriter => 1,
        Self::SingleNodeMultiWriter => 1,
    }
    Provisioning { Self::Thick => 1, Self::Thin => 1 }
    Source { Self::Snapshot(_) => 1, Self::Volume(_) => 1 }
    CopySource { Self::Snapshot(_) => 1, Self::Volume(_) => 1 }
    OnDelete { Self::Unlink => 1, Self::Zero => 1 }
}

/// What both records have in common.
pub trait Record: Clone + Serialize + DeserializeOwned {
    /// The object that it describes.
    fn object(&self) -> Object;
    /// The object as messages name it.
    fn named(&self) -> Named;
    /// The pool in the record.
    fn pool(&self) -> PoolId;
    /// The unfinished copy that fills it, if this release may resume it.
    fn copy_to_resume(&self) -> Option<CopyRecord>;
    /// The oldest schema that a writer must know.
    fn min_reader(&self) -> u32;
    /// The oldest schema that knows every word in the record: an object without new words stays usable by an older
    /// release.
    fn needed_reader(&self) -> u32;
    /// Sets the schema that a writer must know.
    fn set_min_reader(&mut self, schema: u32);
    /// The stored version that it was read from.
    fn version(&self) -> Version;
    /// Sets the stored version that it was read from or written as.
    fn set_version(&mut self, version: Version);

    /// The bytes to store, with `min_reader` computed from its words. A higher value of a later release stays: that
    /// release may have another reason for it.
    ///
    /// # Errors
    /// `Internal` if it cannot be serialised as JSON, which does not happen with these types.
    fn encode(&self) -> Result<Vec<u8>> {
        let unwritable = |error| {
            Error::new(Kind::Internal, format!("the record of {} cannot be written", self.object())).because(error)
        };
        let mut record = self.clone();
        if self.min_reader() <= SCHEMA {
            record.set_min_reader(self.needed_reader());
        }
        let mut text = serde_json::to_vec_pretty(&record).map_err(unwritable)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Parses a record and checks that it belongs to `object` in `pool`.
    ///
    /// # Errors
    /// `Corrupt`, with the object and the problem; `Precondition` for a record of a later release, with words that this
    /// release does not know. Nothing is changed.
    fn decode(object: Object, pool: PoolId, text: &[u8]) -> Result<Self> {
        let corrupt = |what: String| {
            Error::new(
                Kind::Corrupt,
                format!(
                    "the record of {object} in pool {pool} {what}; nothing was changed; restore the record from a backup of the pool"
                ),
            )
        };
        // All of it must be UTF-8, also the fields that are skipped below.
        let text = std::str::from_utf8(text).map_err(|error| corrupt("cannot be read".to_owned()).because(error))?;
        let record: Self = serde_json::from_str(text).map_err(|error| {
            newer(object, text, &error).unwrap_or_else(|| corrupt("cannot be read".to_owned()).because(error))
        })?;
        if record.object() != object {
            return Err(corrupt(format!("is that of {}", record.object())));
        }
        if record.pool() != pool {
            return Err(corrupt(format!("belongs to pool {}", record.pool())));
        }
        Ok(record)
    }

    /// Whether this release may change the object.
    ///
    /// # Errors
    /// `Precondition`, with the schema that it needs.
    fn changeable(&self) -> Result<()> {
        if self.min_reader() <= SCHEMA {
            return Ok(());
        }
        Err(Error::new(
            Kind::Precondition,
            format!(
                "{} was written by a newer Holdfast (schema {}, this release knows {SCHEMA}): it can be attached and detached, but not changed; upgrade this node",
                self.named(),
                self.min_reader()
            ),
        ))
    }
}

/// A record that cannot be read may be of a later release: then the error says so.
fn newer(object: Object, text: &str, error: &serde_json::Error) -> Option<Error> {
    let value: Value = serde_json::from_str(text).ok()?;
    let needs = value.get("min_reader").and_then(Value::as_u64).unwrap_or_default();
    let why = if needs > u64::from(SCHEMA) {
        format!("schema {needs}, this release knows {SCHEMA}")
    } else if of_a_later_release(error) {
        "or was damaged".to_owned()
    } else {
        return None;
    };
    let message = format!(
        "{object} was written by a newer Holdfast ({why}) with values that this release cannot read: it is not served and nothing was changed; upgrade this node"
    );
    Some(Error::new(Kind::Precondition, message).because(error.to_string()))
}

/// Whether the unreadable value is one of a later release: an unknown enum variant, or the form of an id.
fn of_a_later_release(error: &serde_json::Error) -> bool {
    let said = error.to_string();
    said.contains("unknown variant `") || said.contains("of a later release")
}

impl Record for VolumeRecord {
    fn object(&self) -> Object {
        Object::Volume(self.uuid)
    }
    fn named(&self) -> Named {
        Named::volume(self.id(), self.claim())
    }
    fn pool(&self) -> PoolId {
        self.pool
    }
    fn copy_to_resume(&self) -> Option<CopyRecord> {
        let copy = self.copy.as_ref().filter(|_| self.phase == Phase::Creating && self.changeable().is_ok());
        copy.map(|copy| copy.known)
    }
    fn min_reader(&self) -> u32 {
        self.min_reader
    }
    fn needed_reader(&self) -> u32 {
        let request = &self.request;
        let own = [
            self.provisioning.since(),
            self.access.since(),
            self.phase.since(),
            self.format.since(),
            request.parameters.on_delete.since(),
            request.parameters.authentication.since(),
        ];
        let capabilities = request.capabilities.iter().flat_map(|one| [one.mode.since(), one.access.since()]);
        let attachments = self
            .attachments
            .iter()
            .flat_map(|one| [one.path.since(), one.state.since(), one.mode.since(), one.access.since()]);
        let source = self.source.iter().map(Word::since);
        let copy = self.copy.iter().map(|copy| copy.from.since());
        own.into_iter().chain(capabilities).chain(attachments).chain(source).chain(copy).max().unwrap_or(1)
    }
    fn set_min_reader(&mut self, schema: u32) {
        self.min_reader = schema;
    }

    fn version(&self) -> Version {
        self.version
    }

    fn set_version(&mut self, version: Version) {
        self.version = version;
    }
}

impl Record for SnapshotRecord {
    fn object(&self) -> Object {
        Object::Snapshot(self.uuid)
    }
    fn named(&self) -> Named {
        Named::snapshot(self.id())
    }
    fn pool(&self) -> PoolId {
        self.pool
    }
    fn copy_to_resume(&self) -> Option<CopyRecord> {
        let copy = self.copy.as_ref().filter(|_| self.phase == Phase::Creating && self.changeable().is_ok());
        copy.map(|copy| copy.known)
    }
    fn min_reader(&self) -> u32 {
        self.min_reader
    }
    fn needed_reader(&self) -> u32 {
        let own = [self.provisioning.since(), self.phase.since(), self.format.since(), self.on_delete.since()];
        own.into_iter().chain(self.copy.iter().map(|copy| copy.from.since())).max().unwrap_or(1)
    }
    fn set_min_reader(&mut self, schema: u32) {
        self.min_reader = schema;
    }

    fn version(&self) -> Version {
        self.version
    }

    fn set_version(&mut self, version: Version) {
        self.version = version;
    }
}

impl VolumeRecord {
    /// The modes that the volume was created for.
    pub(super) fn modes(&self) -> Vec<VolumeMode> {
        let mut modes: Vec<_> = self.request.capabilities.iter().map(|capability| capability.mode).collect();
        modes.sort_unstable();
        modes.dedup();
        modes
    }

    /// The identity in its handle.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        VolumeId::new(self.pool, self.uuid).born_on(&self.birth_home)
    }

    /// The claim that it was created for, where the provisioner passed it.
    #[must_use]
    pub fn claim(&self) -> Option<ClaimName> {
        ClaimName::of_metadata(&self.attributes)
    }

    /// The geometry of its image.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry { size: self.size, block_size: self.block_size, provisioning: self.provisioning }
    }

    /// The same with another size.
    #[must_use]
    pub fn geometry_at(&self, size: Bytes) -> Geometry {
        Geometry { size, ..self.geometry() }
    }

    /// The minimum size to request for a copy: the request that gave the volume its size.
    #[must_use]
    pub fn least_request(&self) -> Bytes {
        let last = self.size_request.as_ref().filter(|last| last.size == self.size);
        if let Some(last) = last {
            return last.required;
        }
        // Of an older release: it never grew, or how it grew is unknown.
        let range = &self.request.range;
        let minimum = sizes::minimum(self.request.capabilities.iter().map(|part| part.known));
        match range.required {
            Some(required) if range.choose(required, minimum).is_ok_and(|size| size == self.size) => required,
            _ => sizes::least_request(self.size),
        }
    }

    /// Whether a retry requests the volume of this record: the same source, parameters and capabilities, and a range
    /// that the actual size satisfies. `None` if it does, otherwise the difference.
    #[must_use]
    pub fn differs_from(&self, request: &CreateVolume) -> Option<String> {
        if self.co_name != request.name {
            return Some(format!("its name is {:?}", self.co_name));
        }
        if !request.range.contains(self.size) {
            return Some(format!("its size is {} bytes", self.size.get()));
        }
        if self.source != request.source {
            return Some("it has another content source".to_owned());
        }
        if !self.request.parameters.same_request(&request.parameters) {
            return Some("it has other parameters".to_owned());
        }
        let recorded: BTreeSet<Capability> = self.request.capabilities.iter().map(|part| part.known).collect();
        let asked: BTreeSet<Capability> = request.capabilities.iter().copied().collect();
        (recorded != asked).then(|| "it has other capabilities".to_owned())
    }
}

impl VolumeRecord {
    /// The attachment of a node that may use the volume.
    ///
    /// # Errors
    /// `Precondition` when it is not attached to the node.
    pub fn granted_to(&self, node: &NodeId) -> Result<&Attachment> {
        let found = self.attachments.iter().find(|a| a.node == *node && a.state == GrantState::Granted);
        found.ok_or_else(|| {
            Error::new(
                Kind::Precondition,
                format!(
                    "volume {} is not attached to node {node}: attach it (ControllerPublishVolume) before it is staged",
                    self.id()
                ),
            )
        })
    }

    /// The number of the next attachment.
    ///
    /// # Errors
    /// `Corrupt` when there is none: a correct record never reaches 2^64 attachments, and a smaller number would not be
    /// the highest.
    pub fn next_epoch(&self) -> Result<u64> {
        self.epoch.checked_add(1).ok_or_else(|| {
            Error::new(
                Kind::Corrupt,
                format!(
                    "volume {} cannot be attached: its record has attachment number {}, the highest possible, so the record is damaged; nothing was changed; restore the record from a backup of the pool",
                    self.id(),
                    self.epoch
                ),
            )
        })
    }
}

impl SnapshotRecord {
    /// The identity in its handle.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        SnapshotId::new(self.pool, self.uuid).born_on(&self.birth_home)
    }

    /// The minimum size to request for a restore.
    #[must_use]
    pub fn least_request(&self) -> Bytes {
        self.restore_request.unwrap_or_else(|| sizes::least_request(self.size))
    }
}
