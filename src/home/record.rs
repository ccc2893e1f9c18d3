//! The record of a volume or snapshot (docs/design.md section 6), stored beside its data.
//!
//! Readers keep fields they do not know and write them back, also within a record's objects ([`Part`]). A record whose
//! `min_reader` is above [`SCHEMA`] is served for attach and detach, and otherwise never changed. A record with an
//! unknown `Word` cannot be read, so nothing of it is served. A new state that an older release must not serve
//! therefore gets a new word. Each write computes `min_reader` from the words in the record.

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
    Access, AccessMode, Bytes, Capability, CapacityRange, ClaimName, DhchapKey, Error, FsType, HostNqn, Kind, Named,
    NodeId, ObjectUuid, OnDelete, PoolId, Provisioning, Result, SnapshotId, VolumeId, VolumeMode, VolumeParameters,
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
    /// The number of the last attachment; it never decreases.
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A record as the first release writes it. Never edit: a later release must read it as it is.
    const VOLUME_V1: &str = include_str!("fixtures/volume-v1.json");
    const SNAPSHOT_V1: &str = include_str!("fixtures/snapshot-v1.json");

    fn volume() -> VolumeRecord {
        serde_json::from_str(VOLUME_V1).unwrap()
    }

    #[test]
    fn records_of_every_released_schema_are_read_and_written_back_whole() {
        let record = volume();
        let again: Value = serde_json::from_slice(&record.encode().unwrap()).unwrap();
        assert_eq!(again, serde_json::from_str::<Value>(VOLUME_V1).unwrap());
        assert_eq!(record.unknown.get("a_field_of_the_future"), Some(&Value::from("kept")));
        let snapshot: SnapshotRecord = serde_json::from_str(SNAPSHOT_V1).unwrap();
        let again: Value = serde_json::from_slice(&snapshot.encode().unwrap()).unwrap();
        assert_eq!(again, serde_json::from_str::<Value>(SNAPSHOT_V1).unwrap());
    }

    #[test]
    fn a_number_of_the_future_is_the_same_after_a_write() {
        let mut record = volume();
        // Steps of Knuth's generator: every exponent, and more digits than a fast parser gets right.
        let mut bits = 1_u64;
        for i in 0..2000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = f64::from_bits(bits);
            if number.is_finite() {
                record.unknown.insert(format!("n{i}"), Value::from(number));
            }
        }
        record.unknown.insert("most".to_owned(), Value::from(u64::MAX));
        let written = record.encode().unwrap();
        assert_eq!(VolumeRecord::decode(record.object(), record.pool, &written).unwrap(), record);
    }

    /// Puts a field of a later release into every one of our objects in a record, and counts them.
    fn with_a_future(value: &mut Value) -> u32 {
        match value {
            Value::Object(fields) => {
                // An enum with its content, and names for display, are not objects with fields.
                let leave = |name: &str| ["mode", "source", "from", "attributes", "metadata"].contains(&name);
                let parts = fields.iter_mut().filter(|(name, _)| !leave(name));
                let inner: u32 = parts.map(|(_, value)| with_a_future(value)).sum();
                fields.insert("future".to_owned(), serde_json::json!({ "kept": [1.5, null, { "to": "the end" }] }));
                inner + 1
            }
            Value::Array(items) => items.iter_mut().map(with_a_future).sum(),
            _ => 0,
        }
    }

    fn written_back<R: Record>(value: &Value) -> Value {
        let record: R = serde_json::from_value(value.clone()).unwrap();
        let read = R::decode(record.object(), record.pool(), &serde_json::to_vec(value).unwrap()).unwrap();
        serde_json::from_slice(&read.encode().unwrap()).unwrap()
    }

    #[test]
    fn what_is_not_known_at_any_depth_of_a_record_is_written_back() {
        let copy = serde_json::json!({ "from": { "volume": ObjectUuid::of_volume("v") }, "done": 1, "total": 2 });
        let mut value: Value = serde_json::from_str(VOLUME_V1).unwrap();
        value["copy"] = copy.clone();
        assert_eq!(with_a_future(&mut value), 8, "record, request, range, capability, parameters, format, grant, copy");
        assert_eq!(written_back::<VolumeRecord>(&value), value);
        let mut value: Value = serde_json::from_str(SNAPSHOT_V1).unwrap();
        value["copy"] = copy;
        assert_eq!(with_a_future(&mut value), 3, "record, format, copy");
        assert_eq!(written_back::<SnapshotRecord>(&value), value);
    }

    #[test]
    fn what_is_not_known_outlives_a_change_of_what_is() {
        let mut value: Value = serde_json::from_str(VOLUME_V1).unwrap();
        with_a_future(&mut value);
        let mut record: VolumeRecord = serde_json::from_value(value.clone()).unwrap();
        record.format.known = FormatState::Raw;
        record.size = Bytes::new(2 << 30);
        let written: Value = serde_json::from_slice(&record.encode().unwrap()).unwrap();
        let future = value["future"].clone();
        value["format"] = serde_json::json!({ "state": "raw", "future": future });
        value["size"] = Value::from(2_u64 << 30);
        assert_eq!(written, value);
    }

    #[test]
    fn a_choice_that_is_not_known_is_refused_and_never_dropped() {
        for choice in ["/source", "/request/capabilities/0/mode", "/attachments/0/mode"] {
            let mut value: Value = serde_json::from_str(VOLUME_V1).unwrap();
            value.pointer_mut(choice).unwrap()["future"] = Value::from("lost");
            let record = volume();
            let kind = |value: &Value| {
                let text = serde_json::to_vec(value).unwrap();
                VolumeRecord::decode(record.object(), record.pool, &text).unwrap_err().kind()
            };
            // A word beside a known one is damage, or of a later release; the order of the words decides which is seen.
            assert!(matches!(kind(&value), Kind::Corrupt | Kind::Precondition), "{choice}");
            value["min_reader"] = Value::from(SCHEMA + 1);
            assert_eq!(kind(&value), Kind::Precondition, "{choice}");
        }
    }

    #[test]
    fn what_is_not_known_does_not_make_a_retry_another_request() {
        let mut value: Value = serde_json::from_str(VOLUME_V1).unwrap();
        with_a_future(&mut value);
        let record: VolumeRecord = serde_json::from_value(value).unwrap();
        let request = CreateVolume {
            name: record.co_name.clone(),
            range: record.request.range.known,
            capabilities: record.request.capabilities.iter().map(|part| part.known).collect(),
            parameters: record.request.parameters.known.clone(),
            source: record.source,
        };
        assert_eq!(record.differs_from(&request), None);
    }

    #[test]
    fn bytes_that_are_no_text_are_corrupt_wherever_they_are() {
        let text = VOLUME_V1.replace("data-db-0", "d\u{1}ta");
        let bytes: Vec<u8> = text.bytes().map(|byte| if byte == 1 { 0xff } else { byte }).collect();
        let record = volume();
        assert_eq!(VolumeRecord::decode(record.object(), record.pool, &bytes).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn a_record_of_another_volume_or_pool_is_corrupt() {
        let record = volume();
        let other = Object::Volume(ObjectUuid::of_volume("other"));
        let text = record.encode().unwrap();
        assert_eq!(VolumeRecord::decode(other, record.pool, &text).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(VolumeRecord::decode(record.object(), PoolId::random(), &text).unwrap_err().kind(), Kind::Corrupt);
        for cut in [0, 1, text.len() / 2, text.len() - 3] {
            assert_eq!(
                VolumeRecord::decode(record.object(), record.pool, &text[..cut]).unwrap_err().kind(),
                Kind::Corrupt
            );
        }
    }

    #[test]
    fn a_newer_record_is_not_changed() {
        let mut record = volume();
        assert!(record.changeable().is_ok());
        record.min_reader = SCHEMA + 1;
        assert_eq!(record.changeable().unwrap_err().kind(), Kind::Precondition);
    }

    #[test]
    fn min_reader_is_what_the_words_need_unless_a_later_release_said_more() {
        let written = |record: &VolumeRecord| -> Value { serde_json::from_slice(&record.encode().unwrap()).unwrap() };
        let mut record = volume();
        assert_eq!(record.needed_reader(), 1);
        for (said, kept) in [(0, 1), (1, 1), (SCHEMA + 1, SCHEMA + 1)] {
            record.min_reader = said;
            assert_eq!(written(&record)["min_reader"], kept, "{said}");
        }
    }

    #[test]
    fn a_copy_asks_for_what_the_claim_asked_for_also_of_an_older_release_s_record() {
        let mut record = volume();
        assert_eq!(record.least_request(), Bytes::new(1 << 30));
        // "10G", made by 0.1.0.
        record.request.known.range.known.required = Some(Bytes::new(10_000_000_000));
        record.size = Bytes::mib(9537);
        assert_eq!(record.least_request(), Bytes::new(10_000_000_000));
        // Grown by 0.1.0; the request is not known any more: "20G" or a little less.
        record.size = Bytes::mib(19074);
        assert!(record.least_request() <= Bytes::new(20_000_000_000) && record.least_request() > Bytes::mib(19073));
        record.size_request = Some(Part::new(SizeRequest { required: Bytes::new(20_000_000_000), size: record.size }));
        assert_eq!(record.least_request(), Bytes::new(20_000_000_000));
        // Grown once more by 0.1.0, which keeps the field as it was.
        record.size = Bytes::mib(20000);
        assert!(record.least_request() > Bytes::mib(19999) && record.least_request() < record.size);
        let snapshot: SnapshotRecord = serde_json::from_str(SNAPSHOT_V1).unwrap();
        assert!(snapshot.least_request() < snapshot.size);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_corrupt_and_never_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let record = volume();
            prop_assert!(VolumeRecord::decode(record.object(), record.pool, &text).is_err());
        }
    }
}
