//! Certificates that the controllers issue, nodes that have none yet, and nodes whose certificate is gone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use holdfast::os::{Os, Stopwatch};
use holdfast::tls::Authority;

use super::harness::{Cluster, Machine, NODE_ACCOUNT, Vol, Wire};
use crate::harness::{Use, await_that, check_tree, write_tree};
use crate::observability::http;

const SOON: Duration = Duration::from_secs(30);

/// Has `--metrics`; returns the address.
fn with_metrics(machine: &mut Machine) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    machine.extra.extend(["--metrics".to_owned(), address.clone()]);
    address
}

/// One controller and one node.
fn pair(wire: Wire) -> Cluster {
    Cluster::stopped(&["node-a"], 1, wire)
}

fn node(cluster: &mut Cluster) -> &mut Machine {
    cluster.nodes.get_mut("node-a").unwrap()
}

/// Starts the pair, until the node is registered.
fn begin(cluster: &mut Cluster) {
    cluster.start_controller(0);
    if cluster.wire == Wire::Auto {
        cluster.mount_ca("node-a");
    }
    cluster.start_node("node-a");
    cluster.ready(0);
    cluster.heard(0, "node-a");
}

/// A pair that ran, with a volume that is attached and written. The node is down; returns the address of its metrics.
fn with_a_volume(wire: Wire) -> (Cluster, Vol, String) {
    let mut cluster = pair(wire);
    let metrics = with_metrics(node(&mut cluster));
    begin(&mut cluster);
    let vol = cluster.create("vol", Use::Ext4, "node-a");
    cluster.publish(0, &vol, "node-a").unwrap();
    write_tree(&cluster.stage(&vol).unwrap(), 1);
    cluster.unstage(&vol).unwrap();
    assert_eq!(node(&mut cluster).terminate(), 0);
    (cluster, vol, metrics)
}

/// The node starts, for the n-th time, and its volume is as it was.
fn serves_its_volume(cluster: &mut Cluster, vol: &Vol, times: usize) {
    cluster.start_node("node-a");
    await_that("the node serves", SOON, || {
        let node = &cluster.nodes["node-a"];
        // It reports that first, and then creates its socket.
        node.said().matches("holdfast node serves").count() == times && UnixStream::connect(&node.socket).is_ok()
    });
    check_tree(&cluster.stage(vol).unwrap(), 1);
    cluster.unstage(vol).unwrap();
}

fn kept(cluster: &Cluster) -> PathBuf {
    cluster.nodes["node-a"].directory.join("state/certificate.json")
}

/// The format of the first release: three files.
fn keep_as_before(cluster: &Cluster) {
    let content: serde_json::Value = serde_json::from_slice(&fs::read(kept(cluster)).unwrap()).unwrap();
    let earlier = kept(cluster).with_file_name("tls");
    fs::create_dir(&earlier).unwrap();
    for (file, part) in [("ca.crt", "ca"), ("tls.crt", "certificate"), ("tls.key", "key")] {
        fs::write(earlier.join(file), content[part].as_str().unwrap()).unwrap();
    }
    fs::remove_file(kept(cluster)).unwrap();
}

fn ready(address: &str) -> (u16, String) {
    http(address, "/readyz", SOON)
}

#[test]
fn a_cluster_certifies_itself() {
    let cluster = Cluster::wired(&["node-a", "node-b"], 2, Wire::Auto);
    let vol = cluster.create("vol", Use::Ext4, "node-b");
    cluster.publish(1, &vol, "node-b").unwrap();
    write_tree(&cluster.stage(&vol).unwrap(), 1);
    cluster.unstage(&vol).unwrap();
    cluster.unpublish(0, &vol, "node-b").unwrap();
    cluster.delete(1, &vol).unwrap();
    let made: usize =
        cluster.controllers.iter().map(|controller| controller.said().matches("there was no CA").count()).sum();
    assert_eq!(made, 1);
    let file = kept(&cluster);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let content: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let secret = content["key"].as_str().unwrap().lines().nth(1).unwrap();
    for machine in cluster.controllers.iter().chain(cluster.nodes.values()) {
        let log = machine.said();
        assert!(!log.contains(secret) && !log.contains("token-of-node"), "{log}");
    }
    cluster.finish();
}

#[test]
fn a_pod_that_is_no_node_is_not_certified() {
    let mut cluster = Cluster::stopped(&["node-a", "node-b"], 1, Wire::Auto);
    let api = cluster.api.as_ref().unwrap();
    api.know("token-of-a-pod", "system:serviceaccount:holdfast:default", &["holdfast"], Some("node-b"));
    // A token of the node's account, from the other node: what the pod sends about itself does not count.
    api.know("token-of-a", NODE_ACCOUNT, &["holdfast"], Some("node-a"));
    let file = cluster.nodes["node-b"].directory.join("token");
    fs::write(&file, "token-of-a-pod").unwrap();
    cluster.start_controller(0);
    for name in ["node-a", "node-b"] {
        cluster.mount_ca(name);
        cluster.start_node(name);
    }
    cluster.heard(0, "node-a");
    await_that("the refusal is told", SOON, || {
        let log = cluster.controllers[0].said();
        log.lines().any(|line| {
            line.contains("no certificate was issued to a node")
                && line.contains("holdfast:default")
                && line.contains("127.0.0.1")
        })
    });
    fs::write(&file, "token-of-a").unwrap();
    await_that("the other node's certificate is not taken", SOON, || {
        let log = cluster.nodes["node-b"].said();
        log.contains("it is for node-a.node.csi.holdfast.storage, but this process is node-b.node.csi.holdfast.storage")
    });
    let log = cluster.controllers[0].said();
    assert!(!log.lines().any(|line| line.contains("node registered") && line.contains("node-b")), "{log}");
    assert!(!log.contains("token-of-a"), "{log}");
    fs::write(&file, "token-of-node-b").unwrap();
    cluster.heard(0, "node-b");
    cluster.finish();
}

#[test]
fn certificates_are_renewed_without_a_restart_and_before_they_expire() {
    let mut cluster = pair(Wire::Auto);
    cluster.controllers[0].extra.extend(["--certificate-life".to_owned(), "20s".to_owned()]);
    begin(&mut cluster);
    let vol = cluster.create("vol", Use::Block, "node-a");
    let (begun, mut cut) = (Stopwatch::start(), 0);
    while begun.elapsed() < Duration::from_secs(45) {
        // A connection ends with its certificate, and a call that runs on it then is retried.
        let both = cluster.publish(0, &vol, "node-a").and_then(|_| cluster.unpublish(0, &vol, "node-a"));
        cut += usize::from(both.is_err());
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(cut <= 3, "{cut} calls failed");
    cluster.unpublish(0, &vol, "node-a").unwrap();
    let (node, controller) = (cluster.nodes["node-a"].said(), cluster.controllers[0].said());
    assert!(node.matches("this node has a new certificate").count() >= 3, "{node}");
    assert!(controller.matches("certificate accepted").count() >= 3, "{controller}");
    for log in [&node, &controller] {
        assert!(!log.contains("own certificate expired"), "{log}");
    }
    cluster.delete(0, &vol).unwrap();
    cluster.finish();
}

#[test]
fn a_node_serves_its_volumes_without_controllers_with_its_certificate_and_without_one() {
    let (mut cluster, vol, metrics) = with_a_volume(Wire::Auto);
    assert_eq!(cluster.controllers[0].terminate(), 0);

    // With the stored certificate, and with one that an earlier release stored.
    serves_its_volume(&mut cluster, &vol, 2);
    assert_eq!(ready(&metrics), (200, "ok\n".to_owned()));
    assert_eq!(node(&mut cluster).terminate(), 0);
    keep_as_before(&cluster);
    serves_its_volume(&mut cluster, &vol, 3);
    assert_eq!(ready(&metrics), (200, "ok\n".to_owned()));

    // Never certified, and no controller is there to do it.
    assert_eq!(node(&mut cluster).terminate(), 0);
    fs::remove_dir_all(kept(&cluster).with_file_name("tls")).unwrap();
    serves_its_volume(&mut cluster, &vol, 4);
    let (code, text) = ready(&metrics);
    assert!(code == 200 && text.contains("without a usable certificate"), "{code} {text}");
    let usable = "holdfast_tls_certificate_usable{name=\"node-a.node.csi.holdfast.storage\"}";
    assert!(http(&metrics, "/metrics", SOON).1.contains(&format!("{usable} 0")));

    // The controller returns: the node registers by itself.
    cluster.start_controller(0);
    await_that("the node is heard", Duration::from_secs(90), || cluster.unpublish(0, &vol, "node-a").is_ok());
    assert_eq!(ready(&metrics), (200, "ok\n".to_owned()));
    assert!(http(&metrics, "/metrics", SOON).1.contains(&format!("{usable} 1")));
    cluster.delete(0, &vol).unwrap();
    cluster.finish();
}

#[test]
fn without_a_ca_it_is_said_what_is_missing_and_what_to_do() {
    let mut cluster = pair(Wire::Auto);
    let of_node = with_metrics(node(&mut cluster));
    let of_controller = with_metrics(&mut cluster.controllers[0]);
    let api = cluster.api.as_ref().unwrap();
    api.answer_with(Some((503, serde_json::json!({"message": "etcd is away", "code": 503}).to_string())));
    cluster.start_controller(0);
    cluster.start_node("node-a");
    for machine in [&cluster.controllers[0], &cluster.nodes["node-a"]] {
        await_that("it serves its metrics", SOON, || machine.said().contains("metrics and health are served"));
    }
    await_that("the node says what it waits for", SOON, || ready(&of_node).1.contains("published.crt"));
    let (code, text) = ready(&of_node);
    assert!(code == 200 && text.contains("no CA certificate") && text.contains("the log of the controllers"), "{text}");
    std::thread::sleep(Duration::from_secs(5));
    let (code, text) = ready(&of_controller);
    assert!(code == 503 && text.contains("no CA yet") && text.contains("the Secret holdfast/holdfast-ca"), "{text}");
    // Only by the retry loop, after about 0, 1, 3 and 7 seconds.
    let asked = cluster.api.as_ref().unwrap().asked("GET /api/v1/namespaces/holdfast/secrets/holdfast-ca");
    assert!((2..=6).contains(&asked), "{asked}");
    assert_eq!(cluster.controllers[0].said().matches("the CA cannot be checked now").count(), 1);

    cluster.api.as_ref().unwrap().answer_with(None);
    cluster.mount_ca("node-a");
    cluster.ready(0);
    cluster.heard(0, "node-a");
    for address in [of_node, of_controller] {
        assert_eq!(ready(&address), (200, "ok\n".to_owned()));
    }
    cluster.finish();
}

#[test]
fn an_expired_certificate_keeps_no_node_from_its_volumes() {
    let (mut cluster, vol, metrics) = with_a_volume(Wire::Tls);
    let directory = cluster.nodes["node-a"].directory.join("tls");
    let authority = Authority::open(&Os::new(), &cluster.authority()).unwrap();
    let short = authority.issue_lasting(&"node:node-a".parse().unwrap(), Duration::from_secs(1)).unwrap();
    short.write(&Os::new(), &directory).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    serves_its_volume(&mut cluster, &vol, 2);
    let (code, text) = ready(&metrics);
    assert!(code == 200 && text.contains("expired on"), "{code} {text}");
    cluster.unpublish(0, &vol, "node-a").unwrap_err();

    cluster.issue("node:node-a", &directory);
    await_that("the node is heard", SOON, || cluster.unpublish(0, &vol, "node-a").is_ok());
    assert_eq!(ready(&metrics), (200, "ok\n".to_owned()));
    cluster.delete(0, &vol).unwrap();
    cluster.finish();
}

#[test]
fn a_damaged_certificate_is_replaced_and_keeps_no_node_from_its_volumes() {
    let (mut cluster, vol, metrics) = with_a_volume(Wire::Auto);
    assert_eq!(cluster.controllers[0].terminate(), 0);
    fs::write(kept(&cluster), "{").unwrap();
    serves_its_volume(&mut cluster, &vol, 2);
    let (code, text) = ready(&metrics);
    assert!(code == 200 && text.contains("certificate.json") && text.contains("damaged"), "{code} {text}");

    cluster.start_controller(0);
    await_that("the node is heard", SOON, || cluster.unpublish(0, &vol, "node-a").is_ok());
    assert_eq!(ready(&metrics), (200, "ok\n".to_owned()));
    cluster.delete(0, &vol).unwrap();
    cluster.finish();
}
