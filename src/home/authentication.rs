//! Volumes whose StorageClass has `authentication: required`: no export of them without a key for DH-HMAC-CHAP.
//!
//! The parameter is part of the record, and the record has `access: network`, which release 0.1.0 cannot read. So no
//! release serves such a volume and ignores the parameter.

use super::local::Shared;
use super::record::{ExportRecord, Record, VolumeRecord};
use crate::export::Support;
use crate::os::Dhchap;
use crate::types::{Access, Authentication, Error, Kind, NodeId, Result, VolumeParameters};

/// What a kernel needs to authenticate connections of its exports, and as a client of others.
const TARGET: &str = "CONFIG_NVME_TARGET_AUTH";
const HOST: &str = "CONFIG_NVME_HOST_AUTH (CONFIG_NVME_AUTH before Linux 6.7)";

impl Shared {
    /// Whether exports of this node can have keys.
    fn has_keys(&self) -> Result<bool> {
        Ok(self.fabric()?.export.support()? == Support::Yes(Dhchap::Yes))
    }

    /// Whether a volume with these parameters can be created on this node.
    ///
    /// # Errors
    /// `NoCapacity` when the kernel of this node cannot authenticate, as another node may.
    pub(super) fn authenticates_new(&self, parameters: &VolumeParameters) -> Result<()> {
        let required = parameters.access == Access::Network && parameters.authentication == Authentication::Required;
        if !required || self.has_keys()? {
            return Ok(());
        }
        Err(Error::new(
            Kind::NoCapacity,
            format!(
                "node {} cannot authenticate connections, as authentication: required needs: its kernel has no DH-HMAC-CHAP for exports; start a kernel with {TARGET}, let the scheduler choose another node, or set authentication: auto",
                self.node
            ),
        ))
    }

    /// Whether the connection of a node to a volume can be authenticated as its record requires. `client` is what the
    /// kernel of that node can do.
    ///
    /// # Errors
    /// `Precondition` naming the node that cannot, and what its kernel needs.
    pub(super) fn authenticates(&self, record: &VolumeRecord, node: &NodeId, client: Dhchap) -> Result<()> {
        if !is_required(record) {
            return Ok(());
        }
        let (node, what, needs) = if !self.has_keys()? {
            (&self.node, "exports", TARGET)
        } else if client == Dhchap::No {
            (node, "connections to other nodes", HOST)
        } else {
            return Ok(());
        };
        Err(Error::new(
            Kind::Precondition,
            format!(
                "volume {} requires authenticated connections (authentication: required in its StorageClass), and the kernel of node {node} has no DH-HMAC-CHAP for {what}; start a kernel with {needs} on node {node}, or run the pod on node {}, where the volume needs no connection",
                record.id(),
                self.node
            ),
        ))
    }
}

/// Whether connections to a volume must be authenticated.
fn is_required(record: &VolumeRecord) -> bool {
    record.request.parameters.authentication == Authentication::Required
}

/// Checks the last thing before an export is created: that it has a key if its volume requires one.
///
/// # Errors
/// `Corrupt` when the record has none.
pub(super) fn keyed(record: &VolumeRecord, export: &ExportRecord) -> Result<()> {
    if export.key.is_some() || !is_required(record) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Corrupt,
        format!(
            "{} requires authenticated connections, but its record has no key for its attachment; it is not exported; detach the volume and attach it again",
            record.named()
        ),
    ))
}
