//! Releases with different calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::home::remote::proto::Pool;
use holdfast::registry::proto as r;
use holdfast::registry::proto::registry_client::RegistryClient;
use tonic::Code;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};

use super::harness::{Cluster, on};
use crate::harness::{Use, await_that, create_request, refused};

const POOL: &str = "00000000000000aa";
const OLD: &str = "node-old";

/// A heartbeat of a node with unknown fields, and without known ones.
fn heartbeat(endpoint: &str, provisioning: i32) -> r::HeartbeatRequest {
    let figures = Pool {
        id: POOL.into(),
        name: "test".into(),
        kind: "file".into(),
        place: "/".into(),
        total: 1 << 40,
        free: 1 << 40,
        available_thick: Some(1 << 40),
        default_provisioning: provisioning,
        ..Default::default()
    };
    let state = Some(r::pool_health::State::Figures(figures));
    r::HeartbeatRequest {
        node: OLD.into(),
        boot_id: "boot".into(),
        version: "0.0.9".into(),
        endpoint: endpoint.into(),
        fabric: "none".into(),
        pools: vec![r::PoolHealth { id: POOL.into(), name: "test".into(), state }],
        known: Vec::new(),
        connections: None,
    }
}

/// Heartbeats until the flag is cleared.
async fn beat(mut registry: RegistryClient<Channel>, message: r::HeartbeatRequest, on: Arc<AtomicBool>) {
    while on.load(Ordering::SeqCst) {
        let _ = registry.heartbeat(message.clone()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn a_home_without_a_call_is_named_on_the_csi_socket_with_what_to_do() {
    let cluster = Cluster::new(&["node-a"], 1);
    let here = cluster.create("here", Use::Block, "node-a");
    let address = cluster.controllers[0].address.clone();
    let listener = cluster.wait(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    // It serves gRPC, and none of the current calls.
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving = cluster.spawn(Server::builder().add_routes(Routes::default()).serve_with_incoming(incoming));
    let registry = RegistryClient::new(
        cluster.wait(async { Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy() }),
    );
    let on = Arc::new(AtomicBool::new(true));
    let beating = cluster.spawn(beat(registry.clone(), heartbeat(&endpoint, 1), Arc::clone(&on)));
    cluster.heard(0, OLD);
    let volume_id = format!("hf1_{POOL}_0123456789abcdef0123456789abcdef_{OLD}");
    let mut csi = cluster.controller(0);
    let told = |what: &str, said: String| {
        for word in [what, OLD, "release", "upgrade"] {
            assert!(said.contains(word), "{word}: {said}");
        }
    };
    let delete = p::DeleteVolumeRequest { volume_id: volume_id.clone(), ..Default::default() };
    told("DeleteVolume", refused(cluster.call(csi.delete_volume(delete)), &[Code::Unavailable]));
    let get = p::ControllerGetVolumeRequest { volume_id: volume_id.clone() };
    told("GetVolume", refused(cluster.call(csi.controller_get_volume(get)), &[Code::Unavailable]));
    let grow = p::ControllerExpandVolumeRequest {
        volume_id,
        capacity_range: Some(p::CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
        ..Default::default()
    };
    told("Expand", refused(cluster.call(csi.controller_expand_volume(grow)), &[Code::Unavailable]));
    told("CreateVolume", refused(cluster.try_create(0, "new", Use::Block, OLD), &[Code::Unavailable]));
    told("ListVolumes", refused(cluster.list(0), &[Code::Unavailable]));
    // Others continue, and the commands name the node.
    cluster.publish(0, &here, "node-a").unwrap();
    cluster.unpublish(0, &here, "node-a").unwrap();
    let doctor = cluster.command(0, &["doctor"]);
    assert_eq!(doctor.code, Some(1), "{}", doctor.stderr);
    told("Examine", doctor.stdout);
    on.store(false, Ordering::SeqCst);
    cluster.join(beating);

    // A value in its figures that only a later release knows: that pool is unusable, and the node stays reachable.
    on.store(true, Ordering::SeqCst);
    let beating = cluster.spawn(beat(registry, heartbeat(&endpoint, 99), Arc::clone(&on)));
    let mut pools = String::new();
    await_that("the pool is told to be unknown", Duration::from_secs(10), || {
        pools = cluster.command(0, &["pools"]).stdout;
        pools.lines().any(|line| line.contains(OLD) && line.contains("cannot be read"))
    });
    assert!(pools.lines().any(|line| line.contains("node-a") && line.contains("served")), "{pools}");
    on.store(false, Ordering::SeqCst);
    cluster.join(beating);
    serving.abort();
    cluster.delete(0, &here).unwrap();
    cluster.finish();
}

/// A later release created a volume with a parameter that this one does not know, before a downgrade.
#[test]
fn a_create_refused_for_its_words_is_final_only_when_every_home_says_that_it_has_no_such_name() {
    let mut cluster = Cluster::new(&["node-a", "node-b"], 1);
    let vol = cluster.create("vol", Use::Block, "node-b");
    let asked = |cluster: &Cluster, name: &str| {
        let mut request = create_request(name, Use::Block, Use::Block.size());
        request.parameters.insert("replicas".into(), "3".into());
        request.accessibility_requirements = Some(on("node-a"));
        cluster.call(cluster.controller(0).create_volume(request))
    };
    let said = refused(asked(&cluster, "vol"), &[Code::Aborted]);
    let id = vol.id.trim_end_matches("_node-b");
    assert!(said.contains("replicas") && said.contains("exists already") && said.contains(id), "{said}");
    refused(asked(&cluster, "other"), &[Code::InvalidArgument]);
    cluster.nodes.get_mut("node-b").unwrap().kill9();
    for name in ["vol", "other"] {
        let said = refused(asked(&cluster, name), &[Code::Unavailable]);
        assert!(said.contains("replicas") && said.contains("cannot determine whether"), "{said}");
    }
    cluster.start_node("node-b");
    cluster.until(0, &vol, Code::Ok);
    cluster.delete(0, &vol).unwrap();
    await_that("every home can say again", Duration::from_secs(20), || {
        asked(&cluster, "vol").is_err_and(|status| status.code() == Code::InvalidArgument)
    });
    cluster.finish();
}
