//! People ask a controller through its own socket, where no certificate is needed, and get nothing else there.

use holdfast::registry::proto as r;
use holdfast::registry::proto::registry_client::RegistryClient;
use tonic::Code;

use super::harness::{Cluster, Wire};
use crate::harness::{Finished, Use, driver_binary, refused, try_run, try_run_with};

const VARIABLE: &str = "HOLDFAST_CONTROLLER";

fn said(finished: &Finished, code: i32) -> &str {
    assert_eq!(finished.code, Some(code), "{} {}", finished.stdout, finished.stderr);
    &finished.stdout
}

#[test]
fn operators_are_answered_on_the_controllers_own_socket() {
    let mut cluster = Cluster::wired(&["node-a", "node-b"], 1, Wire::Tls);
    let vol = cluster.create("vol", Use::Block, "node-b");
    let (handle, _birth) = vol.id.rsplit_once('_').unwrap();
    let address = format!("unix://{}", cluster.controllers[0].socket.display());
    let ask = |arguments: &[&str]| {
        let all: Vec<_> = arguments.iter().copied().chain(["--controller", &address]).collect();
        try_run(driver_binary(), &all)
    };
    for output in ["table", "json", "yaml"] {
        let pools = ask(&["pools", "--output", output]);
        let text = said(&pools, 0);
        assert!(text.contains("node-a") && text.contains("node-b"), "{text}");
        assert!(said(&ask(&["volumes", "--output", output]), 0).contains(handle));
    }
    assert!(said(&ask(&["doctor"]), 0).contains("node-b"));
    let readmitted = ask(&["pools", "readmit", &cluster.pool_id("node-a")]);
    said(&readmitted, 0);

    // The variable is where nothing else is said, and gives way to pools of this machine.
    let by_variable = try_run_with(driver_binary(), &["pools"], &[(VARIABLE, &address)]);
    assert!(said(&by_variable, 0).contains("node-b"));
    let spec = format!("test=file:{}", cluster.pool_of("node-a").display());
    let here = try_run_with(driver_binary(), &["pools", "--pool", &spec], &[(VARIABLE, &address)]);
    assert!(!said(&here, 0).contains("node-b"), "{}", here.stdout);
    let both = ask(&["pools", "--pool", &spec]);
    assert!(said(&both, 2).is_empty() && both.stderr.contains("drop one"), "{}", both.stderr);
    let certificates = ask(&["pools", "--tls", "/nowhere"]);
    assert!(said(&certificates, 2).is_empty() && certificates.stderr.contains("drop --tls"), "{}", certificates.stderr);
    let nowhere = try_run(driver_binary(), &["pools", "--tls", "/nowhere"]);
    assert!(said(&nowhere, 2).is_empty() && nowhere.stderr.contains("--controller"), "{}", nowhere.stderr);

    // No node is believed there, and a node's socket answers no questions about the cluster.
    let mut registry = RegistryClient::new(cluster.channel_of(&cluster.controllers[0].socket));
    let heartbeat = r::HeartbeatRequest { node: "node-z".into(), endpoint: "127.0.0.1:1".into(), ..Default::default() };
    refused(cluster.call(registry.heartbeat(heartbeat)), &[Code::PermissionDenied]);
    assert!(!said(&ask(&["pools"]), 0).contains("node-z"));
    let node = format!("unix://{}", cluster.nodes["node-a"].socket.display());
    let wrong = try_run(driver_binary(), &["pools", "--controller", &node]);
    assert!(said(&wrong, 2).is_empty() && wrong.stderr.contains("not served on this socket"), "{}", wrong.stderr);

    // A home that does not answer is waited for longer than a request may take to arrive, and named.
    cluster.nodes["node-b"].freeze();
    let partial = ask(&["volumes"]);
    assert!(said(&partial, 1).is_empty() || !partial.stdout.contains(handle), "{}", partial.stdout);
    assert!(partial.stderr.contains("node-b"), "{}", partial.stderr);
    cluster.nodes["node-b"].thaw();
    cluster.until(0, &vol, Code::Ok);
    cluster.delete(0, &vol).unwrap();
    assert_eq!(cluster.controllers[0].terminate(), 0);
    let gone = ask(&["pools"]);
    assert!(said(&gone, 2).is_empty() && gone.stderr.contains("does not answer"), "{}", gone.stderr);
    cluster.finish();
}
