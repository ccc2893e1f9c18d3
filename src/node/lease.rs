//! The other side of a fence: a node that was cut off finds out that an attachment was removed, and ends its connection.
//!
//! A connection whose export is gone retries for ever, because the export may come back after a restart of its home node.
//! So the node asks each home node whose exports it is connected to which of them it may still use. A home node that does
//! not answer changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Node;
use crate::home::Changed;
use crate::os::Deadline;
use crate::types::{Kind, PoolId, Result, SubsystemNqn};

/// The pause between two questions.
pub const ASKING: Duration = Duration::from_secs(5);
/// How long a home node may take to answer.
const ANSWERING: Duration = Duration::from_secs(2);

impl Node {
    /// Asks the home nodes once, and ends the connections that this node may not use any more. Pods with such a volume get
    /// errors (EIO) for every read and write; their volume is unmounted and staged again when they stop.
    ///
    /// # Errors
    /// `Internal` when the connections cannot be listed. A home node that does not answer is logged at `debug`: its
    /// connections stay.
    pub fn end_lost_connections(&self) -> Result<Changed> {
        let Some(network) = &self.network else { return Ok(Changed::No) };
        // Before the question: a connection that is made meanwhile is not in an answer that is older than it.
        let mut by_pool = BTreeMap::<PoolId, Vec<SubsystemNqn>>::new();
        for export in network.connected()? {
            by_pool.entry(export.volume.pool).or_default().push(export);
        }
        let mut changed = Changed::No;
        for (pool, connected) in by_pool {
            // One that does not answer must not delay the others.
            let ask = || self.homes.of(pool).and_then(|home| home.exports(&self.id, pool));
            let allowed = match Deadline::scope(Deadline::after(ANSWERING), ask) {
                Ok(allowed) => allowed,
                Err(error) => {
                    tracing::debug!(%pool, error = error.chain(), "the home node does not say which exports this node may use");
                    continue;
                }
            };
            for export in connected.into_iter().filter(|export| !allowed.contains(export)) {
                if self.end_lost(&export) == Changed::Yes {
                    changed = Changed::Yes;
                }
            }
        }
        Ok(changed)
    }

    /// Ends the lost connections to pools that an operator declared lost: their home node does not come back, and pods that
    /// wait for it could never be stopped. A connection that works stays.
    ///
    /// # Errors
    /// `Internal` when the connections cannot be listed.
    pub fn end_connections_to_lost(&self, pools: &[PoolId]) -> Result<Changed> {
        let Some(network) = &self.network else { return Ok(Changed::No) };
        let mut changed = Changed::No;
        for export in network.waiting()?.into_iter().filter(|export| pools.contains(&export.volume.pool)) {
            match network.disconnect(&export) {
                Ok(Changed::Yes) => {
                    tracing::error!(volume = %self.named(&export.volume), export = %export, "the pool of the volume was declared lost (lostHomes); its lost connection is ended, and its pods get I/O errors: delete them");
                    changed = Changed::Yes;
                }
                Ok(Changed::No) => {}
                Err(error) => {
                    tracing::warn!(volume = %self.named(&export.volume), export = %export, error = error.chain(), "cannot end the connection to a pool that was declared lost; the node tries again");
                }
            }
        }
        Ok(changed)
    }

    fn end_lost(&self, export: &SubsystemNqn) -> Changed {
        let Some(network) = &self.network else { return Changed::No };
        let volume = &export.volume;
        // Not under the volume's lock: what holds it may be waiting for this device, such as an unmount.
        match network.disconnect(export) {
            Ok(Changed::Yes) => {
                self.connections.ended(*volume);
                tracing::error!(%volume, export = %export, "the volume was detached from this node while it was in use here; its connection is ended, and its pods get I/O errors: delete them");
                Changed::Yes
            }
            Ok(Changed::No) => Changed::No,
            Err(error) if error.kind() == Kind::Busy => Changed::No,
            Err(error) => {
                tracing::warn!(%volume, export = %export, error = error.chain(), "cannot end the connection of a volume that was detached from this node; the node tries again");
                Changed::No
            }
        }
    }
}
