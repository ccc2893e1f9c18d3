//! Operators query a controller through its own socket, which needs no certificate, and can do nothing else there.

use holdfast::registry::proto as r;
use holdfast::registry::proto::registry_client::RegistryClient;
use tonic::Code;

use std::fs;
use std::time::Duration;

use super::harness::{Cluster, Wire};
use crate::harness::{Finished, Use, await_that, driver_binary, refused, run, try_run, try_run_with};

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

    // The variable is the default, and pools of this machine override it.
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

    // The socket accepts no heartbeat, and a node's socket answers no queries about the cluster.
    let mut registry = RegistryClient::new(cluster.channel_of(&cluster.controllers[0].socket));
    let heartbeat = r::HeartbeatRequest { node: "node-z".into(), endpoint: "127.0.0.1:1".into(), ..Default::default() };
    refused(cluster.call(registry.heartbeat(heartbeat)), &[Code::PermissionDenied]);
    assert!(!said(&ask(&["pools"]), 0).contains("node-z"));
    let node = format!("unix://{}", cluster.nodes["node-a"].socket.display());
    let wrong = try_run(driver_binary(), &["pools", "--controller", &node]);
    assert!(said(&wrong, 2).is_empty() && wrong.stderr.contains("not served on this socket"), "{}", wrong.stderr);

    // A home node that does not answer is waited for longer than a request may take to arrive, and named.
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

#[test]
fn doctor_tells_what_each_node_finds_in_its_pools_and_removes_nothing() {
    let mut cluster = Cluster::new(&["node-a", "node-b"], 1);
    let (kept, lost) = (cluster.create("kept", Use::Ext4, "node-b"), cluster.create("lost", Use::Block, "node-b"));
    let well = cluster.command(0, &["doctor"]);
    assert!(said(&well, 0).contains("test on node node-b"), "{}", well.stdout);
    let pool = cluster.pool_of("node-b");
    let record = |vol: &super::harness::Vol| {
        let uuid = vol.id.split('_').nth(2).unwrap();
        let uuid = [&uuid[..8], &uuid[8..12], &uuid[12..16], &uuid[16..20], &uuid[20..]].join("-");
        let names: Vec<_> = fs::read_dir(pool.join("volumes")).unwrap().map(|one| one.unwrap().path()).collect();
        let plain = uuid.replace('-', "");
        names.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().replace('-', "") == plain).unwrap()
    };
    // An image whose record is gone, an invalid name, and a loop device over an unknown volume.
    fs::remove_file(record(&lost).join("volume.json")).unwrap();
    fs::create_dir(pool.join("volumes/.tmp-left")).unwrap();
    let image = record(&kept).join("data");
    let device = run("/usr/sbin/losetup", &["-f", "--show", image.to_str().unwrap()]);
    let doctor = cluster.command(0, &["doctor"]);
    let text = said(&doctor, 1);
    for word in [".tmp-left", "volume.json", "not a volume's image", device.trim()] {
        let told = text.lines().any(|line| line.contains(word));
        assert!(told, "{word}: {text}");
    }
    assert!(text.contains("at  node node-b: ") && !text.contains("at  node node-a: "), "{text}");
    assert!(
        text.contains("test on node node-a: no problems") && !text.contains("test on node node-b: no problems"),
        "{text}"
    );
    assert!(pool.join("volumes/.tmp-left").exists() && image.exists() && record(&lost).join("data").exists());
    run("/usr/sbin/losetup", &["-d", device.trim()]);
    cluster.nodes.get_mut("node-a").unwrap().kill9();
    await_that("the silent one is named", Duration::from_secs(20), || {
        let doctor = cluster.command(0, &["doctor"]);
        doctor.stdout.contains("node-a is unreachable") && doctor.stdout.contains(".tmp-left")
    });
    cluster.finish();
}
