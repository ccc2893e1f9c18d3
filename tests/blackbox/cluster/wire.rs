//! Permissions between daemons: valid certificates, and every kind of invalid one.

use std::time::Duration;

use tonic::Code;

use super::harness::{Cluster, Wire};
use crate::harness::{Use, await_that, refused};

#[test]
fn a_node_of_another_authority_is_not_heard() {
    let mut cluster = Cluster::stopped(&["node-a", "node-b"], 1, Wire::Tls);
    let foreign = cluster.authority().with_file_name("foreign-ca");
    let stolen = cluster.nodes["node-b"].directory.join("tls");
    std::fs::remove_dir_all(&stolen).unwrap();
    cluster.issue_by(&foreign, "node:node-b", &stolen);
    cluster.start_controller(0);
    cluster.start_node("node-a");
    cluster.start_node("node-b");
    cluster.ready(0);
    cluster.heard(0, "node-a");
    await_that("the refusal is told", Duration::from_secs(15), || {
        cluster.controllers[0].said().contains("connection refused")
    });
    assert!(
        !cluster.controllers[0].said().lines().any(|line| line.contains("node registered") && line.contains("node-b"))
    );
    refused(cluster.try_create(0, "vol", Use::Block, "node-b"), &[Code::ResourceExhausted, Code::Unavailable]);
    cluster.finish();
}

#[test]
fn a_node_speaks_for_itself_only() {
    let mut cluster = Cluster::stopped(&["node-a", "node-b"], 1, Wire::Tls);
    let other = cluster.nodes["node-b"].directory.join("tls");
    std::fs::remove_dir_all(&other).unwrap();
    cluster.issue("node:node-z", &other);
    cluster.start_controller(0);
    cluster.start_node("node-a");
    cluster.ready(0);
    cluster.heard(0, "node-a");
    // The certificate is of another node: it is not used, and the node does not register.
    cluster.start_node("node-b");
    await_that("the certificate is refused", Duration::from_secs(15), || {
        let log = cluster.nodes["node-b"].said();
        log.contains("there is no usable certificate") && log.contains("node-z")
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(
        !cluster.controllers[0].said().lines().any(|line| line.contains("node registered") && line.contains("node-b"))
    );
    cluster.finish();
}

#[test]
fn certificates_are_renewed_without_a_restart() {
    let cluster = Cluster::wired(&["node-a"], 1, Wire::Tls);
    let vol = cluster.create("vol", Use::Block, "node-a");
    for _ in 0..2 {
        cluster.issue("node:node-a", &cluster.nodes["node-a"].directory.join("tls"));
        cluster.issue("controller", &cluster.controllers[0].directory.join("tls"));
        cluster.publish(0, &vol, "node-a").unwrap();
        cluster.unpublish(0, &vol, "node-a").unwrap();
    }
    cluster.delete(0, &vol).unwrap();
    cluster.finish();
}
