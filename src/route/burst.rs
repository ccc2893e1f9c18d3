//! Fifty claims at once on a machine without CPU time for them: real homes over gRPC, one of which answers slowly.

use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::{Directory, NO_FABRIC, Requirement, Router, Segments};
use crate::home::{CreateVolume, LocalHome, SpaceLimits};
use crate::os::{Call, Interceptor, Os};
use crate::pool;
use crate::testing::Loopback;
use crate::testing::scratch::{PoolFs, Scratch, spec};
use crate::types::*;

/// Delays each answer, one after the other.
struct Slow(Mutex<()>, Duration);

impl Interceptor for Slow {
    fn before(&self, call: Call, target: &str) -> io::Result<()> {
        if call == Call::Read && target.ends_with("volume.json") {
            let _turn = self.0.lock().unwrap();
            thread::sleep(self.1);
        }
        Ok(())
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}

fn home(scratch: &Scratch, name: &str, os: &Os) -> (Loopback, Vec<PoolId>) {
    let place = scratch.root().join(name);
    std::fs::create_dir(&place).unwrap();
    let node: NodeId = name.parse().unwrap();
    let pool = pool::open(os, &spec(&place), &node).unwrap();
    let id = pool.identity().id;
    let home = LocalHome::open(os.clone(), node, vec![(pool, SpaceLimits::default())]).unwrap();
    (Loopback::new(Arc::new(home)), vec![id])
}

#[test]
fn fifty_creates_at_once_are_made_though_a_home_has_no_time_for_fifty_questions() {
    const CLAIMS: usize = 50;
    let scratch = Scratch::in_memory(PoolFs::Xfs, 1024);
    // A fiftieth of the earlier limit of each query.
    let slow = Os::intercepted(Box::new(Slow(Mutex::default(), Duration::from_millis(40))));
    let homes = [home(&scratch, "node-a", &Os::new()), home(&scratch, "node-b", &slow)];
    let known = homes.iter().map(|(wire, pools)| (wire.home(), pools.clone()));
    let router = Router::new(Directory::of_homes(known));
    let at = |node: &str| Segments::of_node(&node.parse().unwrap(), NO_FABRIC);
    // As the external-provisioner requests without --strict-topology: the whole cluster, the selected node first.
    let requirement =
        Requirement { requisite: vec![at("node-a"), at("node-b")], preferred: vec![at("node-a"), at("node-b")] };
    let request = |number: usize| CreateVolume {
        name: format!("claim-{number}"),
        range: CapacityRange { required: Some(Bytes::mib(1)), limit: None },
        capabilities: vec![Capability { mode: VolumeMode::Block, access: AccessMode::SingleNodeMultiWriter }],
        parameters: VolumeParameters { provisioning: Some(Provisioning::Thin), ..VolumeParameters::default() },
        source: None,
    };
    let made = thread::scope(|scope| {
        let create = |number| router.create_volume(&request(number), &requirement);
        let creating: Vec<_> = (0..CLAIMS).map(|number| scope.spawn(move || create(number))).collect();
        creating.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    let refused: Vec<_> = made.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(refused.is_empty(), "{} of {CLAIMS}: {}", refused.len(), refused[0].error().chain());
    assert_eq!(homes[0].0.home().volumes(None, 0).unwrap().entries.len(), CLAIMS);
}
