//! Where volumes with `access: network` are created, and how many fit: real home nodes over gRPC, on several fabrics.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::*;
use crate::export::Nvmet;
use crate::home::{Fabric, LocalHome, SpaceLimits};
use crate::os::Os;
use crate::pool;
use crate::testing::Loopback;
use crate::testing::scratch::{PoolFs, Scratch, spec};
use crate::types::{AccessMode, Capability, Placement, Provisioning, VolumeMode, VolumeParameters};

/// A node with a pool.
struct Site {
    local: LocalHome,
    wire: Loopback,
    fabric: &'static str,
    _scratch: Scratch,
}

/// The nodes, and their controller.
struct Sites {
    router: Router,
    all: BTreeMap<NodeId, Site>,
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

/// Nodes: name, fabric, filesystem and size of the pool in MiB.
fn sites(nodes: &[(&str, &'static str, PoolFs, u64)]) -> Sites {
    let interval = Duration::from_secs(2);
    // All disks before any thread: each gets this thread a new mount namespace, and a thread would keep the former one.
    let disks: Vec<_> = nodes.iter().map(|(_, _, filesystem, mib)| Scratch::of(*filesystem, *mib)).collect();
    let site = |((name, fabric, ..), scratch): (&(&str, &'static str, PoolFs, u64), Scratch)| {
        let os = Os::new();
        let pool = pool::open(&os, &spec(&scratch.root()), &node(name)).unwrap();
        let ports = 4500..=4502;
        let exports = (*fabric != NO_FABRIC).then(|| {
            Fabric::new(Arc::new(Nvmet::new(os.clone(), ports.clone())), IpAddr::V4(Ipv4Addr::LOCALHOST), ports)
        });
        let pools = vec![(pool, SpaceLimits::default())];
        let local = LocalHome::open_with(os, node(name), pools, exports).unwrap();
        let wire = Loopback::new(Arc::new(local.clone()));
        (node(name), Site { local, wire, fabric, _scratch: scratch })
    };
    let all: BTreeMap<_, _> = nodes.iter().zip(disks).map(site).collect();
    let homes: BTreeMap<_, _> = all.iter().map(|(node, site)| (node.clone(), site.wire.home())).collect();
    let dial = move |node: &NodeId, _: &str| Ok(Arc::clone(&homes[node]));
    let directory = Directory::of_controller(Box::new(dial), Rhythm { interval }, BTreeSet::new());
    thread::sleep(Rhythm { interval }.settling());
    let sites = Sites { router: Router::new(directory), all };
    sites.beat();
    sites
}

impl Sites {
    /// A heartbeat of each node.
    fn beat(&self) {
        for (node, site) in &self.all {
            let heartbeat = Heartbeat {
                node: node.clone(),
                boot_id: String::new(),
                version: String::new(),
                endpoint: format!("{node}:1"),
                fabric: site.fabric.to_owned(),
                pools: site.local.health(),
                known: Vec::new(),
                left_out: 0,
                connections: None,
            };
            self.router.directory().hear(heartbeat).unwrap();
        }
    }

    /// The node on which a volume is created.
    fn create(&self, request: &CreateVolume, requisite: &[&str], preferred: &[&str]) -> Result<String> {
        let at = |names: &[&str]| {
            let of_site = |name: &&str| Segments::of_node(&node(name), self.all[&node(name)].fabric);
            names.iter().map(of_site).collect()
        };
        let requirement = Requirement { requisite: at(requisite), preferred: at(preferred) };
        let made = self.router.create_volume(request, &requirement);
        let made = made.map_err(|failure| match failure {
            Failure::Clean(error) => error,
            Failure::Dirty(error) => panic!("{}", error.chain()),
        })?;
        Ok(made.into_inner().home.to_string())
    }

    /// GetCapacity for network volumes in a topology.
    fn capacity(&self, topology: Option<&Segments>) -> Capacity {
        let query = CapacityQuery { access: Access::Network, ..CapacityQuery::default() };
        self.router.capacity(&query, topology).unwrap()
    }

    /// The space for new volumes on a node.
    fn room(&self, name: &str) -> Bytes {
        self.all[&node(name)].local.report().unwrap()[0].available
    }
}

fn request(name: &str, mib: u64, access: Access) -> CreateVolume {
    CreateVolume {
        name: name.to_owned(),
        range: CapacityRange { required: Some(Bytes::mib(mib)), limit: None },
        capabilities: vec![Capability { mode: VolumeMode::Block, access: AccessMode::SingleNodeWriter }],
        parameters: VolumeParameters { access, ..VolumeParameters::default() },
        source: None,
    }
}

fn network(name: &str, mib: u64) -> CreateVolume {
    let mut request = request(name, mib, Access::Network);
    // btrfs has no thick ones.
    request.parameters.provisioning = Some(Provisioning::Thin);
    request
}

#[test]
fn a_pool_that_cannot_export_leaves_the_volume_to_another_node() {
    let sites = sites(&[("a", "one", PoolFs::Btrfs, 512), ("b", "one", PoolFs::Xfs, 512)]);
    assert_eq!(sites.create(&network("v", 8), &["a", "b"], &["a", "b"]).unwrap(), "b");
    // A retry finds it there, whatever the scheduler selects.
    assert_eq!(sites.create(&network("v", 8), &["a", "b"], &["a", "b"]).unwrap(), "b");
    // The same for what else a pool may lack.
    let mut thick = request("thick", 8, Access::Local);
    thick.parameters.provisioning = Some(Provisioning::Thick);
    thick.parameters.placement = Placement::Any;
    assert_eq!(sites.create(&thick, &["a", "b"], &["a", "b"]).unwrap(), "b");
    // Where only that node may be used, the scheduler can choose another one.
    thick.name = "selected".to_owned();
    thick.parameters.placement = Placement::Selected;
    let error = sites.create(&thick, &["a", "b"], &["a", "b"]).unwrap_err();
    assert!(error.kind() == Kind::NoCapacity && error.chain().contains("does not support thick"), "{}", error.chain());
    // Neither node can have it: each reason is named.
    let error = sites.create(&network("large", 4096), &["a"], &["a"]).unwrap_err();
    let said = error.chain();
    assert_eq!(error.kind(), Kind::NoCapacity, "{said}");
    assert!(said.starts_with("no node can create the volume: a: ") && said.contains("; b: "), "{said}");
    assert!(said.contains("not measured") && said.contains("needs 4 GiB"), "{said}");
}

#[test]
fn a_pool_that_cannot_export_and_has_no_other_node_is_an_error_of_the_class() {
    let sites = sites(&[("a", "one", PoolFs::Btrfs, 512)]);
    let error = sites.create(&network("v", 8), &["a"], &["a"]).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{}", error.chain());
    assert_eq!(sites.capacity(None).available, Bytes::ZERO);
}

#[test]
fn a_network_class_with_immediate_binding_uses_every_fabric() {
    let sites = sites(&[
        ("a", "one", PoolFs::Xfs, 320),
        ("b", "two", PoolFs::Xfs, 512),
        ("c", NO_FABRIC, PoolFs::Xfs, 1024),
        ("d", "two", PoolFs::Btrfs, 1024),
    ]);
    let fits = Bytes::mib(300);
    assert!(sites.room("a") < fits && sites.room("b") > fits && sites.room("c") > fits);
    // Without accessibility requirements: a node with a fabric, and with space. The scheduler learns from the volume's
    // topology that its pods belong to that fabric.
    for (name, mib, requisite, home) in [
        ("small", 8, &[][..], "a"),
        ("large", 300, &[], "b"),
        // As with Immediate binding and topology enabled: the whole cluster is requisite, in any order.
        ("first", 8, &["c", "b", "a"], "b"),
        ("next", 120, &["a", "c", "b"], "a"),
    ] {
        let volume = network(name, mib);
        assert_eq!(sites.create(&volume, requisite, &[]).unwrap(), home, "{name}");
        sites.beat();
    }
    let found = sites.router.volumes(None, 0).unwrap().entries;
    let of = |name: &str| found.iter().find(|volume| volume.name == name).unwrap();
    assert_eq!(sites.router.topology_of(of("small")), Segments::of_network_volume("one"));
    assert_eq!(sites.router.topology_of(of("large")), Segments::of_network_volume("two"));
    // Of a fabric without a node for it, none of the other fabric is used.
    let error = sites.create(&network("v", 300), &["a"], &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::NoCapacity, "{}", error.chain());
    let error = sites.create(&network("v", 8), &["c"], &[]).unwrap_err();
    assert!(error.kind() == Kind::NoCapacity && error.chain().contains("--fabric"), "{}", error.chain());
}

#[test]
fn the_capacity_of_a_network_class_is_that_of_the_best_node_of_the_fabric() {
    let sites = sites(&[
        ("a", "one", PoolFs::Xfs, 320),
        ("b", "one", PoolFs::Xfs, 512),
        // More space than both, and no network volumes in it.
        ("c", "one", PoolFs::Btrfs, 2048),
        ("d", NO_FABRIC, PoolFs::Xfs, 2048),
        ("e", "three", PoolFs::Btrfs, 512),
    ]);
    let on = |name: &str, fabric: &str| sites.capacity(Some(&Segments::of_node(&node(name), fabric)));
    let best = sites.room("b");
    assert!(best > sites.room("a"));
    // The external-provisioner asks for the topology of each node, or of the fabric: for every node of the fabric the
    // answer is the same, and it is not the sum.
    for capacity in [
        on("a", "one"),
        on("b", "one"),
        on("node-without-a-pool", "one"),
        sites.capacity(Some(&Segments::of_network_volume("one"))),
        sites.capacity(None),
    ] {
        assert_eq!((capacity.available, capacity.largest), (best, best));
    }
    for none in [on("d", NO_FABRIC), on("e", "three"), on("z", "nowhere")] {
        assert_eq!((none.available, none.largest), (Bytes::ZERO, Bytes::ZERO));
    }
    // It is what can be created.
    sites.create(&network("v", best.get() >> 20), &["a"], &["a"]).unwrap();
    sites.beat();
    assert_eq!(on("a", "one").largest, sites.room("a"));
}
