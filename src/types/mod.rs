//! The words of docs/design.md section 2 as types. Everything above parses into these at its edge,
//! so no raw string, path or number from outside travels further. Knows no I/O.

mod bytes;
mod capability;
mod error;
mod fstype;
mod ids;
mod parameters;
mod printable;

pub use bytes::{Bytes, CapacityRange, MIB};
pub use capability::{AccessMode, Capability, VolumeMode};
pub use error::{Error, Failure, Kind, OsContext, Result, TOO_LARGE_A_FILE};
pub use fstype::FsType;
pub use ids::{NodeId, ObjectUuid, PoolId, PoolName, SnapshotId, VolumeId, id_of_ours};
pub use parameters::{FsckPolicy, OnDelete, ParameterRow, Placement, Provisioning, TABLE, VolumeParameters, nearest};
pub use printable::{cut_printable, is_printable, printable};
