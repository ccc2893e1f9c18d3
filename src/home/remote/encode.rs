//! Our types to messages.

use std::fmt;

use super::proto as pb;
use crate::home::{
    Changed, CopyState, CreateSnapshot, CreateVolume, Created, DeviceAddress, Finding, FormatState, GrantRequest,
    Granted, NodeExpansion, OpenVolume, PoolReport, ReadOnly, Snapshot, Source, Volume,
};
use crate::pool::Ability;
use crate::types::{
    Access, AccessMode, Authentication, Bytes, Capability, CapacityRange, ClaimName, FsType, FsckPolicy, Provisioning,
    RequestedMode, SnapshotId, VolumeId, VolumeMode,
};

pub(super) fn changed(changed: Changed) -> pb::Changed {
    match changed {
        Changed::Yes => pb::Changed::Yes,
        Changed::No => pb::Changed::No,
    }
}

/// Whether the object was created now, and the object.
pub(super) fn created<T>(created: Created<T>) -> (pb::Changed, T) {
    match created {
        Created::New(thing) => (pb::Changed::Yes, thing),
        Created::Existing(thing) => (pb::Changed::No, thing),
    }
}

pub(super) fn fs_type(fs: FsType) -> pb::FsType {
    match fs {
        FsType::Ext4 => pb::FsType::Ext4,
        FsType::Xfs => pb::FsType::Xfs,
    }
}

pub(super) fn access(access: AccessMode) -> pb::AccessMode {
    match access {
        AccessMode::SingleNodeWriter => pb::AccessMode::SingleNodeWriter,
        AccessMode::SingleNodeReaderOnly => pb::AccessMode::SingleNodeReaderOnly,
        AccessMode::SingleNodeSingleWriter => pb::AccessMode::SingleNodeSingleWriter,
        AccessMode::SingleNodeMultiWriter => pb::AccessMode::SingleNodeMultiWriter,
    }
}

pub(super) fn provisioning(provisioning: Provisioning) -> pb::Provisioning {
    match provisioning {
        Provisioning::Thick => pb::Provisioning::Thick,
        Provisioning::Thin => pb::Provisioning::Thin,
    }
}

pub(super) fn read_only(read_only: ReadOnly) -> pb::ReadOnly {
    match read_only {
        ReadOnly::Yes => pb::ReadOnly::Yes,
        ReadOnly::No => pb::ReadOnly::No,
    }
}

pub(super) fn mode(mode: VolumeMode) -> pb::VolumeMode {
    use pb::volume_mode::{Block, Mode};
    let mode = match mode {
        VolumeMode::Block => Mode::Block(Block {}),
        VolumeMode::Mount(fs) => Mode::Mount(fs_type(fs).into()),
    };
    pb::VolumeMode { mode: Some(mode) }
}

/// Without a filesystem the number of `FS_TYPE_UNSPECIFIED`, which 0.1.0 rejects as unknown: see `grant` in `client.rs`.
fn requested_mode(requested: RequestedMode) -> pb::VolumeMode {
    use pb::volume_mode::Mode;
    match requested {
        RequestedMode::Block => mode(VolumeMode::Block),
        RequestedMode::Mount(Some(fs)) => mode(VolumeMode::Mount(fs)),
        RequestedMode::Mount(None) => pb::VolumeMode { mode: Some(Mode::Mount(pb::FsType::Unspecified.into())) },
    }
}

pub(super) fn capability(one: &Capability) -> pb::Capability {
    pb::Capability { mode: Some(mode(one.mode)), access: access(one.access).into() }
}

pub(super) fn range(range: &CapacityRange) -> pb::CapacityRange {
    pb::CapacityRange { required: range.required.map(Bytes::get), limit: range.limit.map(Bytes::get) }
}

fn source(source: Source) -> pb::Source {
    use pb::source::Source as Of;
    let of = match source {
        Source::Snapshot(id) => Of::Snapshot(id.to_string()),
        Source::Volume(id) => Of::Volume(id.to_string()),
    };
    pb::Source { source: Some(of) }
}

fn format(state: FormatState) -> pb::FormatState {
    use pb::format_state::{Filesystem, Never, Raw, State};
    let filesystem = |fs, uuid: uuid::Uuid| Filesystem { fs: fs_type(fs).into(), uuid: uuid.to_string() };
    let state = match state {
        FormatState::Never => State::Never(Never {}),
        FormatState::Raw => State::Raw(Raw {}),
        FormatState::Formatting { fs, planned_uuid } => State::Formatting(filesystem(fs, planned_uuid)),
        FormatState::Formatted { fs, uuid } => State::Formatted(filesystem(fs, uuid)),
    };
    pb::FormatState { state: Some(state) }
}

fn claim(claim: Option<&ClaimName>) -> String {
    claim.map_or_else(String::new, ToString::to_string)
}

/// A volume.
#[must_use]
pub fn volume(volume: Volume) -> pb::Volume {
    pb::Volume {
        // As 0.1.0 sends it: the birth node has a field of its own.
        id: volume.id.without_birth_node().to_string(),
        birth_home: volume.birth_home.to_string(),
        home: volume.home.to_string(),
        name: volume.name,
        size: volume.size.get(),
        source: volume.source.map(source),
        published: volume.published.iter().map(ToString::to_string).collect(),
        format: Some(format(volume.format)),
        modes: volume.modes.into_iter().map(mode).collect(),
        provisioning: provisioning(volume.provisioning).into(),
        created: volume.created.as_nanos(),
        claim: claim(volume.claim.as_ref()),
        access: match volume.access {
            Access::Local => pb::Access::Local,
            Access::Network => pb::Access::Network,
        }
        .into(),
        authentication: match volume.authentication {
            Authentication::Auto => pb::Authentication::Auto,
            Authentication::Required => pb::Authentication::Required,
        }
        .into(),
    }
}

/// A snapshot.
#[must_use]
pub fn snapshot(snapshot: Snapshot) -> pb::Snapshot {
    pb::Snapshot {
        id: snapshot.id.without_birth_node().to_string(),
        birth_home: snapshot.birth_home.to_string(),
        home: snapshot.home.to_string(),
        name: snapshot.name,
        source: snapshot.source.without_birth_node().to_string(),
        source_birth_home: snapshot.source_birth_home.to_string(),
        size: snapshot.size.get(),
        cut: snapshot.cut.as_nanos(),
        copying: match snapshot.copy {
            CopyState::Ready => None,
            CopyState::Copying { percent } => Some(percent.into()),
        },
    }
}

pub(super) fn create_volume(request: &CreateVolume) -> pb::CreateVolumeRequest {
    pb::CreateVolumeRequest {
        name: request.name.clone(),
        range: Some(range(&request.range)),
        capabilities: request.capabilities.iter().map(capability).collect(),
        parameters: request.parameters.to_map(),
        source: request.source.map(source),
    }
}

pub(super) fn create_snapshot(request: &CreateSnapshot) -> pb::CreateSnapshotRequest {
    pb::CreateSnapshotRequest { name: request.name.clone(), source: request.source.to_string() }
}

pub(super) fn grant(id: &VolumeId, request: &GrantRequest) -> pb::GrantRequest {
    pb::GrantRequest {
        id: id.to_string(),
        node: request.node.to_string(),
        mode: Some(requested_mode(request.mode)),
        access: access(request.access).into(),
        read_only: read_only(request.read_only).into(),
    }
}

pub(super) fn granted(granted: &Granted) -> pb::GrantReply {
    pb::GrantReply { home: granted.home.to_string(), epoch: granted.epoch, changed: changed(granted.changed).into() }
}

/// The driver created the device's path, `/dev/loopN`: it is UTF-8.
pub(super) fn coordinates(at: &DeviceAddress) -> pb::Coordinates {
    use pb::coordinates::{At, Local, NvmeTcp};
    let at = match at {
        DeviceAddress::Local { device } => At::Local(Local { device: device.to_string_lossy().into_owned() }),
        DeviceAddress::NvmeTcp(at) => At::NvmeTcp(NvmeTcp {
            address: at.address.to_string(),
            subsystem: at.subsystem.to_string(),
            host: at.host.host_id().to_string(),
            namespace: at.namespace.to_string(),
            key: at.key.as_ref().map(|key| key.reveal().to_owned()).unwrap_or_default(),
        }),
    };
    pb::Coordinates { at: Some(at) }
}

/// Without the host name and the key.
impl fmt::Debug for pb::coordinates::NvmeTcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeTcp")
            .field("address", &self.address)
            .field("subsystem", &self.subsystem)
            .finish_non_exhaustive()
    }
}

pub(super) fn opened(opened: &OpenVolume) -> pb::OpenReply {
    pb::OpenReply {
        at: Some(coordinates(&opened.at)),
        size: opened.size.get(),
        block_size: opened.block_size,
        format: Some(format(opened.format)),
        mode: Some(mode(opened.mode)),
        access: access(opened.access).into(),
        read_only: read_only(opened.read_only).into(),
        fsck: match opened.fsck {
            FsckPolicy::Auto => pb::Fsck::Auto,
            FsckPolicy::Never => pb::Fsck::Never,
        }
        .into(),
        mkfs_options: opened.mkfs_options.clone(),
        epoch: opened.epoch,
        claim: claim(opened.claim.as_ref()),
    }
}

pub(super) fn node_expansion(expansion: NodeExpansion) -> pb::NodeExpansion {
    match expansion {
        NodeExpansion::Needed => pb::NodeExpansion::Needed,
        NodeExpansion::NotNeeded => pb::NodeExpansion::NotNeeded,
    }
}

pub(super) fn after_volume(after: Option<VolumeId>) -> String {
    after.map_or_else(String::new, |id| id.to_string())
}

pub(super) fn after_snapshot(after: Option<SnapshotId>) -> String {
    after.map_or_else(String::new, |id| id.to_string())
}

/// The figures of a pool.
#[must_use]
pub fn pool(report: &PoolReport) -> pb::Pool {
    pb::Pool {
        id: report.id.to_string(),
        name: report.name.to_string(),
        kind: report.kind.to_string(),
        place: report.place.clone(),
        total: report.room.total.get(),
        free: report.room.available.get(),
        inodes: report.room.inodes,
        inodes_free: report.room.inodes_free,
        available_thick: report.available_thick.map(Bytes::get),
        available_thin: Some(report.available_thin.get()),
        default_provisioning: provisioning(report.default_provisioning).into(),
        promised: report.promised.get(),
        provisioned: report.provisioned.get(),
        volumes: report.volumes,
        snapshots: report.snapshots,
        network: report.network == Ability::Yes,
    }
}

/// A problem in a pool.
#[must_use]
pub fn finding(finding: Finding) -> pb::Finding {
    let Finding { kind, pool, what, place, remedy } = finding;
    pb::Finding { pool, what, place, remedy, kind: kind.word().to_owned() }
}
