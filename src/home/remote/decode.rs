//! Messages to our types. Unknown values of the other side are rejected, with their name in the error.

use std::path::PathBuf;
use std::str::FromStr;

use uuid::Uuid;

use super::proto as pb;
use crate::home::{
    CapacityQuery, Changed, Client, Connection, ConnectionState, CopyState, CreateSnapshot, CreateVolume, Created,
    DeviceAddress, Expanded, Finding, FindingKind, FormatState, Formatting, GrantRequest, Granted, NodeExpansion,
    OpenVolume, PoolReport, ReadOnly, Renaming, Snapshot, Source, Volume,
};
use crate::os::{Dhchap, Timestamp};
use crate::pool::{Ability, FreeSpace};
use crate::types::{
    Access, AccessMode, Authentication, Bytes, Capability, CapacityRange, Error, FsType, FsckPolicy, HostNqn, Kind,
    NodeId, NvmeTcpAddress, Provisioning, RequestedMode, Result, SnapshotId, SubsystemNqn, VolumeId, VolumeMode,
    VolumeParameters, cut_printable,
};

/// The error for a missing or unknown value. The other side sent it, so the releases differ.
fn unknown(what: &str) -> Error {
    Error::new(
        Kind::Unsupported,
        format!(
            "{what} is missing or unknown to this release ({}); run the same release on all nodes and controllers",
            env!("CARGO_PKG_VERSION")
        ),
    )
}

fn present<T>(field: Option<T>, what: &str) -> Result<T> {
    field.ok_or_else(|| unknown(what))
}

/// A name, id or handle.
pub(super) fn text<T: FromStr<Err = Error>>(text: &str) -> Result<T> {
    text.parse()
}

/// As [`text`], where an empty text means none.
pub(super) fn optional<T: FromStr<Err = Error>>(said: &str) -> Result<Option<T>> {
    if said.is_empty() { Ok(None) } else { text(said).map(Some) }
}

fn uuid(text: &str) -> Result<Uuid> {
    Uuid::parse_str(text).map_err(|error| {
        Error::new(Kind::InvalidArgument, format!("{text:?} is not a filesystem's UUID")).because(error)
    })
}

/// A filesystem's UUID in a request.
pub(super) fn fs_uuid(text: &str) -> Result<Uuid> {
    uuid(text)
}

pub(super) fn changed(changed: i32) -> Result<Changed> {
    match pb::Changed::try_from(changed) {
        Ok(pb::Changed::Yes) => Ok(Changed::Yes),
        Ok(pb::Changed::No) => Ok(Changed::No),
        Ok(pb::Changed::Unspecified) | Err(_) => Err(unknown("the field that says whether anything changed")),
    }
}

pub(super) fn created<T>(said: i32, thing: T) -> Result<Created<T>> {
    Ok(match changed(said)? {
        Changed::Yes => Created::New(thing),
        Changed::No => Created::Existing(thing),
    })
}

pub(super) fn fs_type(fs: i32) -> Result<FsType> {
    match pb::FsType::try_from(fs) {
        Ok(pb::FsType::Ext4) => Ok(FsType::Ext4),
        Ok(pb::FsType::Xfs) => Ok(FsType::Xfs),
        Ok(pb::FsType::Unspecified) | Err(_) => Err(unknown(&format!("filesystem number {fs}"))),
    }
}

fn access(access: i32) -> Result<AccessMode> {
    match pb::AccessMode::try_from(access) {
        Ok(pb::AccessMode::SingleNodeWriter) => Ok(AccessMode::SingleNodeWriter),
        Ok(pb::AccessMode::SingleNodeReaderOnly) => Ok(AccessMode::SingleNodeReaderOnly),
        Ok(pb::AccessMode::SingleNodeSingleWriter) => Ok(AccessMode::SingleNodeSingleWriter),
        Ok(pb::AccessMode::SingleNodeMultiWriter) => Ok(AccessMode::SingleNodeMultiWriter),
        Ok(pb::AccessMode::Unspecified) | Err(_) => Err(unknown(&format!("access mode number {access}"))),
    }
}

fn provisioning(said: i32) -> Result<Provisioning> {
    match pb::Provisioning::try_from(said) {
        Ok(pb::Provisioning::Thick) => Ok(Provisioning::Thick),
        Ok(pb::Provisioning::Thin) => Ok(Provisioning::Thin),
        Ok(pb::Provisioning::Unspecified) | Err(_) => Err(unknown(&format!("provisioning number {said}"))),
    }
}

fn read_only(said: i32) -> Result<ReadOnly> {
    match pb::ReadOnly::try_from(said) {
        Ok(pb::ReadOnly::Yes) => Ok(ReadOnly::Yes),
        Ok(pb::ReadOnly::No) => Ok(ReadOnly::No),
        Ok(pb::ReadOnly::Unspecified) | Err(_) => Err(unknown("the read-only flag")),
    }
}

fn mode(mode: Option<pb::VolumeMode>) -> Result<VolumeMode> {
    use pb::volume_mode::Mode;
    match present(mode.and_then(|mode| mode.mode), "a volume mode")? {
        Mode::Block(_) => Ok(VolumeMode::Block),
        Mode::Mount(fs) => Ok(VolumeMode::Mount(fs_type(fs)?)),
    }
}

fn capabilities(all: Vec<pb::Capability>) -> Result<Vec<Capability>> {
    all.into_iter().map(|one| Ok(Capability { mode: mode(one.mode)?, access: access(one.access)? })).collect()
}

pub(super) fn range(range: Option<pb::CapacityRange>) -> CapacityRange {
    let range = range.unwrap_or_default();
    CapacityRange { required: range.required.map(Bytes::new), limit: range.limit.map(Bytes::new) }
}

fn source(source: Option<pb::Source>) -> Result<Option<Source>> {
    use pb::source::Source as Of;
    let Some(source) = source else { return Ok(None) };
    Ok(Some(match present(source.source, "the type of the source")? {
        Of::Snapshot(id) => Source::Snapshot(text(&id)?),
        Of::Volume(id) => Source::Volume(text(&id)?),
    }))
}

fn format(state: Option<pb::FormatState>) -> Result<FormatState> {
    use pb::format_state::State;
    Ok(match present(state.and_then(|state| state.state), "a format state")? {
        State::Never(_) => FormatState::Never,
        State::Raw(_) => FormatState::Raw,
        State::Formatting(of) => FormatState::Formatting { fs: fs_type(of.fs)?, planned_uuid: uuid(&of.uuid)? },
        State::Formatted(of) => FormatState::Formatted { fs: fs_type(of.fs)?, uuid: uuid(&of.uuid)? },
    })
}

/// A volume.
///
/// # Errors
/// `Unsupported` for values that are missing or unknown to this release; `NotFound`, `InvalidArgument` for an invalid
/// name or id.
pub fn volume(volume: Option<pb::Volume>) -> Result<Volume> {
    let volume = present(volume, "a volume")?;
    let birth_home = text(&volume.birth_home)?;
    Ok(Volume {
        id: text::<VolumeId>(&volume.id)?.born_on(&birth_home),
        birth_home,
        home: text(&volume.home)?,
        name: volume.name,
        size: Bytes::new(volume.size),
        source: source(volume.source)?,
        published: volume.published.iter().map(|node| text(node)).collect::<Result<_>>()?,
        format: format(volume.format)?,
        modes: volume.modes.into_iter().map(|one| mode(Some(one))).collect::<Result<_>>()?,
        provisioning: provisioning(volume.provisioning)?,
        created: Timestamp::from_nanos(volume.created),
        // For people only: a claim that cannot be one is left out.
        claim: volume.claim.parse().ok(),
        access: match pb::Access::try_from(volume.access) {
            Ok(pb::Access::Local) => Access::Local,
            Ok(pb::Access::Network) => Access::Network,
            Err(_) => return Err(unknown(&format!("the access {} of a volume", volume.access))),
        },
        authentication: match pb::Authentication::try_from(volume.authentication) {
            Ok(pb::Authentication::Auto) => Authentication::Auto,
            Ok(pb::Authentication::Required) => Authentication::Required,
            Err(_) => return Err(unknown(&format!("the authentication {} of a volume", volume.authentication))),
        },
    })
}

/// A snapshot.
///
/// # Errors
/// `Unsupported` for values that are missing or unknown to this release; `NotFound`, `InvalidArgument` for an invalid
/// name or id.
pub fn snapshot(snapshot: Option<pb::Snapshot>) -> Result<Snapshot> {
    let snapshot = present(snapshot, "a snapshot")?;
    let birth_home = text(&snapshot.birth_home)?;
    let source_birth_home = text(&snapshot.source_birth_home)?;
    Ok(Snapshot {
        id: text::<SnapshotId>(&snapshot.id)?.born_on(&birth_home),
        birth_home,
        home: text(&snapshot.home)?,
        name: snapshot.name,
        source: text::<VolumeId>(&snapshot.source)?.born_on(&source_birth_home),
        source_birth_home,
        size: Bytes::new(snapshot.size),
        cut: Timestamp::from_nanos(snapshot.cut),
        copy: match snapshot.copying {
            None => CopyState::Ready,
            Some(percent) => CopyState::Copying { percent: u8::try_from(percent.min(100)).unwrap_or(100) },
        },
    })
}

pub(super) fn create_volume(request: pb::CreateVolumeRequest) -> Result<CreateVolume> {
    Ok(CreateVolume {
        name: request.name,
        range: range(request.range),
        capabilities: capabilities(request.capabilities)?,
        parameters: VolumeParameters::parse(&request.parameters)?,
        source: source(request.source)?,
    })
}

pub(super) fn create_snapshot(request: pb::CreateSnapshotRequest) -> Result<CreateSnapshot> {
    Ok(CreateSnapshot { source: text(&request.source)?, name: request.name })
}

pub(super) fn grant(request: &pb::GrantRequest) -> Result<GrantRequest> {
    Ok(GrantRequest {
        node: text(&request.node)?,
        mode: requested_mode(request.mode)?,
        access: access(request.access)?,
        read_only: read_only(request.read_only)?,
    })
}

fn requested_mode(requested: Option<pb::VolumeMode>) -> Result<RequestedMode> {
    use pb::volume_mode::Mode;
    match requested.and_then(|requested| requested.mode) {
        Some(Mode::Mount(fs)) if fs == i32::from(pb::FsType::Unspecified) => Ok(RequestedMode::Mount(None)),
        _ => mode(requested).map(RequestedMode::from),
    }
}

pub(super) fn granted(reply: &pb::GrantReply) -> Result<Granted> {
    Ok(Granted { home: text(&reply.home)?, epoch: reply.epoch, changed: changed(reply.changed)? })
}

fn coordinates(at: Option<pb::Coordinates>) -> Result<DeviceAddress> {
    use pb::coordinates::At;
    match present(at.and_then(|at| at.at), "the location of the volume's device")? {
        At::Local(local) => Ok(DeviceAddress::Local { device: PathBuf::from(local.device) }),
        At::NvmeTcp(at) => nvme_tcp(&at).map(|at| DeviceAddress::NvmeTcp(Box::new(at))),
    }
}

/// The names are secret: they are not in the messages.
fn nvme_tcp(at: &pb::coordinates::NvmeTcp) -> Result<NvmeTcpAddress> {
    let malformed = |what: &str| Error::new(Kind::Corrupt, format!("the {what} of the volume's export is malformed"));
    let uuid = |text: &str, what| Uuid::parse_str(text).map_err(|_| malformed(what));
    Ok(NvmeTcpAddress {
        address: at.address.parse().map_err(|_| malformed("address"))?,
        subsystem: at.subsystem.parse()?,
        host: HostNqn::of(uuid(&at.host, "host name")?),
        namespace: uuid(&at.namespace, "namespace")?,
        key: if at.key.is_empty() { None } else { Some(at.key.parse()?) },
    })
}

pub(super) fn client(request: &pb::OpenRequest) -> Result<Client> {
    let export: Option<SubsystemNqn> = optional(&request.connection)?;
    let state = match &request.waiting {
        None => ConnectionState::Live,
        // Ids have 16 bits, and 0 is none.
        Some(waiting) => ConnectionState::Waiting(u16::try_from(waiting.controller).ok().filter(|id| *id > 0)),
    };
    Ok(Client {
        connection: export.map(|export| Connection { export, state }),
        renaming: match &request.waiting {
            Some(waiting) if waiting.same_name => Renaming::Refused,
            _ => Renaming::Allowed,
        },
        authenticates: if request.authenticates { Dhchap::Yes } else { Dhchap::No },
    })
}

/// Without the connection, which only the request had.
pub(super) fn opened(reply: pb::OpenReply) -> Result<OpenVolume> {
    Ok(OpenVolume {
        at: coordinates(reply.at)?,
        connection: None,
        size: Bytes::new(reply.size),
        block_size: reply.block_size,
        format: format(reply.format)?,
        mode: mode(reply.mode)?,
        access: access(reply.access)?,
        read_only: read_only(reply.read_only)?,
        fsck: match pb::Fsck::try_from(reply.fsck) {
            Ok(pb::Fsck::Auto) => FsckPolicy::Auto,
            Ok(pb::Fsck::Never) => FsckPolicy::Never,
            Ok(pb::Fsck::Unspecified) | Err(_) => return Err(unknown("the fsck policy")),
        },
        mkfs_options: reply.mkfs_options,
        epoch: reply.epoch,
        claim: reply.claim.parse().ok(),
    })
}

pub(super) fn formatting(reply: pb::BeginFormatReply) -> Result<Formatting> {
    Ok(Formatting { at: coordinates(reply.at)?, planned_uuid: uuid(&reply.planned_uuid)? })
}

pub(super) fn expanded(reply: &pb::ExpandReply) -> Result<Expanded> {
    Ok(Expanded {
        size: Bytes::new(reply.size),
        node_expansion: match pb::NodeExpansion::try_from(reply.node_expansion) {
            Ok(pb::NodeExpansion::Needed) => NodeExpansion::Needed,
            Ok(pb::NodeExpansion::NotNeeded) => NodeExpansion::NotNeeded,
            Ok(pb::NodeExpansion::Unspecified) | Err(_) => return Err(unknown("the node expansion")),
        },
        changed: changed(reply.changed)?,
    })
}

pub(super) fn capacity_query(request: pb::GetCapacityRequest) -> Result<CapacityQuery> {
    let unspecified = request.provisioning == i32::from(pb::Provisioning::Unspecified);
    Ok(CapacityQuery {
        access: Access::Local,
        pool: optional(&request.pool)?,
        capabilities: capabilities(request.capabilities)?,
        provisioning: if unspecified { None } else { Some(provisioning(request.provisioning)?) },
    })
}

/// The longest text of another process that is kept, in bytes.
const LONGEST: usize = 4096;

/// A short identifier, which becomes a metric label.
fn word(said: String) -> Result<String> {
    let is_ours = said.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'));
    if is_ours && said.len() <= 63 { Ok(said) } else { Err(unknown("the kind of a pool")) }
}

/// The figures of a pool.
///
/// # Errors
/// `Unsupported` for values unknown to this release; `InvalidArgument` for an invalid name.
pub fn pool_report(pool: pb::Pool) -> Result<PoolReport> {
    let default_provisioning = provisioning(pool.default_provisioning)?;
    let available_thick = pool.available_thick.map(Bytes::new);
    let available_thin = pool.available_thin.map(Bytes::new).unwrap_or_default();
    Ok(PoolReport {
        id: text(&pool.id)?,
        name: text(&pool.name)?,
        kind: word(pool.kind)?.into(),
        place: cut_printable(&pool.place, LONGEST),
        room: FreeSpace {
            total: Bytes::new(pool.total),
            available: Bytes::new(pool.free),
            inodes: pool.inodes,
            inodes_free: pool.inodes_free,
        },
        available: match default_provisioning {
            Provisioning::Thick => available_thick.unwrap_or_default(),
            Provisioning::Thin => available_thin,
        },
        available_thick,
        available_thin,
        default_provisioning,
        promised: Bytes::new(pool.promised),
        provisioned: Bytes::new(pool.provisioned),
        volumes: pool.volumes,
        snapshots: pool.snapshots,
        network: if pool.network { Ability::Yes } else { Ability::No },
    })
}

/// The node of a request.
pub(super) fn node(node: &str) -> Result<NodeId> {
    text(node)
}

/// A problem in a pool.
pub fn finding(finding: pb::Finding) -> Finding {
    let text = |said: String| cut_printable(&said, LONGEST);
    let pb::Finding { pool, what, place, remedy, kind } = finding;
    Finding {
        kind: FindingKind::of_word(&kind),
        pool: text(pool),
        what: text(what),
        place: text(place),
        remedy: text(remedy),
    }
}
