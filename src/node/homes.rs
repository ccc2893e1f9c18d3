//! The homes of the volumes that a node may use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::home::{Home, Homes, LocalHome};
use crate::route::Dial;
use crate::types::{Error, Kind, NodeId, PoolId, Result};

/// The node that has a pool and its `HOST:PORT`, according to the controllers.
pub type Elsewhere = Box<dyn Fn(PoolId) -> Option<(NodeId, String)> + Send + Sync>;

/// A node's own home, and what it knows about the pools of other nodes.
pub struct NodeHomes {
    own: LocalHome,
    elsewhere: Elsewhere,
    /// `None` where this node cannot use volumes of other nodes.
    dial: Option<Dial>,
    /// One per node that was asked, at the address where it was asked.
    dialled: Mutex<HashMap<NodeId, Dialled>>,
}

/// The home of another node, as it was dialled.
struct Dialled {
    endpoint: String,
    home: Arc<dyn Home>,
}

impl NodeHomes {
    /// With this home alone.
    #[must_use]
    pub fn new(own: LocalHome, elsewhere: Elsewhere) -> Self {
        Self { own, elsewhere, dial: None, dialled: Mutex::default() }
    }

    /// Also with the homes of other nodes. Nothing is connected before it is needed.
    #[must_use]
    pub fn with_others(self, dial: Dial) -> Self {
        Self { dial: Some(dial), ..self }
    }

    fn other(&self, pool: PoolId, node: NodeId, endpoint: String) -> Result<Arc<dyn Home>> {
        let Some(dial) = &self.dial else {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "pool {pool} is on node {node}, according to the controllers, and this node cannot use volumes of other nodes: set --fabric on both, or schedule the pod on {node}"
                ),
            ));
        };
        let mut dialled = self.dialled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = dialled.get(&node).filter(|known| known.endpoint == endpoint) {
            return Ok(Arc::clone(&known.home));
        }
        let home = dial(&node, &endpoint)?;
        dialled.insert(node, Dialled { endpoint, home: Arc::clone(&home) });
        Ok(home)
    }
}

impl Homes for NodeHomes {
    fn of(&self, pool: PoolId) -> Result<Arc<dyn Home>> {
        if !self.own.pools().contains(&pool)
            && let Some((node, endpoint)) = (self.elsewhere)(pool)
            && node != *self.own.node()
        {
            return self.other(pool, node, endpoint);
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
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::home::SpaceLimits;
    use crate::testing::scratch::{PoolFs, Scratch};

    #[test]
    fn a_pool_of_another_node_is_named_with_its_node_or_asked_there() {
        let scratch = Scratch::new(PoolFs::Xfs);
        let pool = scratch.pool();
        let own = pool.identity().id;
        let home =
            LocalHome::open(scratch.os().clone(), "node-a".parse().unwrap(), vec![(pool, SpaceLimits::default())])
                .unwrap();
        let (other, unknown) = (PoolId::random(), PoolId::random());
        let address = Arc::new(Mutex::new("node-b:1".to_owned()));
        let knows = {
            let address = Arc::clone(&address);
            move |pool| {
                let known = pool == other || pool == own;
                known.then(|| ("node-b".parse().unwrap(), address.lock().unwrap().clone()))
            }
        };
        let homes = NodeHomes::new(home.clone(), Box::new(knows.clone()));
        let Err(error) = homes.of(other) else { panic!("it is not here") };
        assert!(error.kind() == Kind::Unavailable && error.to_string().contains("node-b"), "{error}");
        // What it serves it serves, whatever the controllers say.
        assert_eq!(homes.of(own).unwrap().node().as_str(), "node-a");
        assert!(homes.of(unknown).unwrap().report().is_ok());

        let dials = Arc::new(AtomicU32::new(0));
        let (counted, stand_in) = (Arc::clone(&dials), home.clone());
        let dial: Dial = Box::new(move |node: &NodeId, endpoint: &str| {
            assert!(node.as_str() == "node-b" && endpoint.starts_with("node-b:"));
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(Arc::new(stand_in.clone()) as Arc<dyn Home>)
        });
        let homes = NodeHomes::new(home, Box::new(knows)).with_others(dial);
        for (endpoint, expected) in [("node-b:1", 1), ("node-b:1", 1), ("node-b:2", 2), ("node-b:2", 2)] {
            endpoint.clone_into(&mut address.lock().unwrap());
            homes.of(other).unwrap();
            assert_eq!(dials.load(Ordering::Relaxed), expected, "{endpoint}");
        }
        assert_eq!(homes.of(own).unwrap().node().as_str(), "node-a");
    }
}
