//! The types of docs/design.md section 2. Every other module parses its input into these at its boundary, so no
//! unparsed string, path or number from outside goes further. Does no I/O.

mod bytes;
mod capability;
mod changed;
mod claim;
mod error;
mod fstype;
mod ids;
mod named;
mod nvme;
mod object_name;
mod parameters;
mod printable;

pub use bytes::{Bytes, CapacityRange, MIB};
pub use capability::{AccessMode, Capability, RequestedMode, VolumeMode};
pub use changed::Changed;
pub use claim::ClaimName;
pub use error::{Error, Failure, Kind, OsContext, Result, TOO_LARGE_A_FILE};
pub use fstype::FsType;
pub use ids::{NodeId, ObjectUuid, PoolId, PoolName, SnapshotId, VolumeId, id_of_ours};
pub use named::Named;
pub use nvme::{DhchapKey, HostNqn, NvmeTcpAddress, SubsystemNqn};
pub use object_name::ObjectName;
pub use parameters::{
    Access, Authentication, FsckPolicy, OnDelete, ParameterRow, Placement, Provisioning, TABLE, VolumeParameters,
    nearest,
};
pub use printable::{cut_printable, is_printable, printable};
