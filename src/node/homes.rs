//! The homes of the volumes that a node may use.

use std::sync::Arc;

use crate::home::{Home, Homes, LocalHome};
use crate::types::{Error, Kind, NodeId, PoolId, Result};

/// The node that has a pool, according to the controllers.
pub type Elsewhere = Box<dyn Fn(PoolId) -> Option<NodeId> + Send + Sync>;

/// A node's own home, and what it knows about the pools of other nodes.
pub struct NodeHomes {
    own: LocalHome,
    elsewhere: Elsewhere,
}

impl NodeHomes {
    /// With this home.
    #[must_use]
    pub fn new(own: LocalHome, elsewhere: Elsewhere) -> Self {
        Self { own, elsewhere }
    }
}

impl Homes for NodeHomes {
    fn of(&self, pool: PoolId) -> Result<Arc<dyn Home>> {
        if !self.own.pools().contains(&pool)
            && let Some(node) = (self.elsewhere)(pool)
            && node != *self.own.node()
        {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "pool {pool} is on node {node}, according to the controllers, and its volumes can be used only there: schedule the pod on {node}"
                ),
            ));
        }
        // Its own home says why it does not serve a pool.
        Ok(Arc::new(self.own.clone()))
    }
}

/// One home for every pool.
pub(super) struct OneHome(pub(super) Arc<dyn Home>);

impl Homes for OneHome {
    fn of(&self, _pool: PoolId) -> Result<Arc<dyn Home>> {
        Ok(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::SpaceLimits;
    use crate::testing::scratch::{PoolFs, Scratch};

    #[test]
    fn a_pool_of_another_node_is_named_with_its_node() {
        let scratch = Scratch::new(PoolFs::Xfs);
        let pool = scratch.pool();
        let own = pool.identity().id;
        let home =
            LocalHome::open(scratch.os().clone(), "node-a".parse().unwrap(), vec![(pool, SpaceLimits::default())]);
        let other = PoolId::random();
        let knows = move |pool| (pool == other || pool == own).then(|| "node-b".parse().unwrap());
        let homes = NodeHomes::new(home.unwrap(), Box::new(knows));
        let Err(error) = homes.of(other) else { panic!("it is not here") };
        assert!(error.kind() == Kind::Unavailable && error.to_string().contains("node-b"), "{error}");
        // What it serves it serves, whatever the controllers say.
        assert_eq!(homes.of(own).unwrap().node().as_str(), "node-a");
        assert!(homes.of(PoolId::random()).unwrap().report().is_ok());
    }
}
