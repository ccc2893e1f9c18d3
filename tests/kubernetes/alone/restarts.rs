//! Components that restart under running pods.

use serde_json::json;

use super::writer::Writer;
use crate::harness::{
    Claim, Pod, Space, controller_pods, delete, get, kubectl, node_pod, node_ready, on_node, restart_kubelet, text,
    until,
};

fn volume_works(space: &Space, name: &str, node: &str) {
    space.claim(&Claim::new(name).size("64Mi"));
    space.run(&Pod::new(name).on(node).mounts(name));
    space.exec(name, &format!("echo 1 > /{name}/file && sync /{name}/file"));
}

#[test]
fn a_restarted_node_plugin_is_not_noticed() {
    let space = Space::new("restart-plugin");
    let writer = Writer::start(&space, "writer", "node1");
    let before = node_pod("node1");
    for how in ["--wait=false", "--grace-period=0 --force"] {
        let pod = node_pod("node1");
        let arguments = ["-n", "holdfast", "delete", "pod", &pod].into_iter().chain(how.split(' '));
        kubectl(&arguments.collect::<Vec<_>>());
        until("another one runs", || {
            let now = node_pod("node1");
            if now != pod && node_ready("node1") { Ok(()) } else { Err(now) }
        });
        writer.goes_on();
    }
    assert_ne!(node_pod("node1"), before);
    volume_works(&space, "next", "node1");
    space.end();
}

#[test]
fn a_restarted_kubelet_finds_the_driver_again() {
    let space = Space::new("restart-kubelet");
    let writer = Writer::start(&space, "writer", "node1");
    restart_kubelet("node1");
    until("the driver is registered", || if node_ready("node1") { Ok(()) } else { Err("not yet".to_owned()) });
    volume_works(&space, "next", "node1");
    writer.goes_on();
    space.end();
}

#[test]
fn a_controller_killed_among_twenty_claims_loses_none_and_doubles_none() {
    let space = Space::new("restart-controller");
    let names: Vec<_> = (0..20).map(|index| format!("c{index}")).collect();
    let items: Vec<_> = names
        .iter()
        .flat_map(|name| [Claim::new(name).size("64Mi").manifest(), Pod::new(name).mounts(name).manifest()])
        .collect();
    space.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}));
    // All leaders, one after the other, without a graceful shutdown.
    for name in controller_pods() {
        kubectl(&["-n", "holdfast", "delete", "pod", &name, "--grace-period=0", "--force"]);
        until("it is back", || match get("pod", "holdfast", &name) {
            Some(pod) if text(&pod, "/status/phase") == "Running" => Ok(()),
            _ => Err("not yet".to_owned()),
        });
    }
    for name in &names {
        space.running(name);
    }
    let volumes = crate::harness::volumes();
    for name in &names {
        let pv = space.volume_name(name);
        assert_eq!(volumes.iter().filter(|volume| volume.name == pv).count(), 1, "{pv}");
    }
    for name in &names {
        delete("pod", &space.name, name);
    }
    space.end();
}

#[test]
fn loop_devices_and_mounts_are_those_of_volumes_in_use() {
    let space = Space::new("restart-leaks");
    volume_works(&space, "user", "node2");
    space.end();
    let mounts = on_node("node2", &["cat", "/proc/self/mountinfo"]).unwrap();
    let left: Vec<_> = mounts
        .lines()
        .filter(|line| line.contains("kubernetes.io~csi") || line.contains("plugins/kubernetes.io/csi"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let said = crate::harness::driver_exec(&["doctor"]);
    assert!(said.is_ok(), "{said:?}");
}
