//! Uninstall, install, upgrade; with running pods where possible.

use serde_json::{Value, json};

use super::writer::Writer;
use crate::harness::{
    Claim, Pod, Space, driver_ready, exists, explained, helm, install, installed_chart, list, node_ready, patch,
    previous_chart, text, try_kubectl, until, volume_of,
};

const NODES: [&str; 2] = ["node1", "node2"];

/// Installs the chart, if the test ended before it did.
struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            install(&installed_chart(), &[]);
        }
    }
}

#[test]
fn uninstall_leaves_data_alone_and_install_finds_every_volume() {
    let space = Space::new("installation-again");
    let writer = Writer::start(&space, "writer", "node1");
    space.claim(&Claim::new("data").size("64Mi"));
    space.run(&Pod::new("user").on("node2").mounts("data"));
    space.exec("user", "echo kept > /data/file && sync /data/file");
    let pv = space.volume_name("data");
    space.end_pod("user");

    let notes = helm(&["-n", "holdfast", "get", "notes", "holdfast"]);
    assert!(notes.contains("removes the driver, but no data"), "{notes}");
    let _again = Installed;
    let said = helm(&["-n", "holdfast", "uninstall", "holdfast", "--wait", "--timeout=3m"]);
    eprintln!("{said}");
    until("kubelets forget the driver", || {
        let known: Vec<_> = NODES.iter().filter(|node| node_ready(node)).collect();
        if known.is_empty() { Ok(()) } else { Err(format!("{known:?}")) }
    });
    assert!(exists("pv", "default", &pv));
    writer.goes_on();

    // Scheduled while no driver is registered: it waits, then it runs.
    space.pod(&Pod::new("user").on("node2").mounts("data"));
    until("it is scheduled", || if space.node_of("user") == "node2" { Ok(()) } else { Err(space.events()) });
    install(&installed_chart(), &[]);
    driver_ready();
    space.running("user");
    assert_eq!(space.exec("user", "cat /data/file").trim(), "kept");
    assert!(volume_of(&pv).is_some());
    writer.goes_on();
    space.end();
}

/// The driver on node1 only.
struct OnlyOnNode1;

impl OnlyOnNode1 {
    fn new() -> Self {
        Self::nodes(&json!("node1"));
        Self
    }

    fn nodes(name: &Value) {
        let only = json!({"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": name}}}}});
        patch("daemonset", "holdfast", "holdfast-node", &only);
    }
}

impl Drop for OnlyOnNode1 {
    fn drop(&mut self) {
        Self::nodes(&Value::Null);
    }
}

#[test]
fn a_pod_scheduled_before_the_plugin_registers_says_so_and_runs_when_it_does() {
    let space = Space::new("installation-early");
    space.claim(&Claim::new("data").size("64Mi"));
    space.run(&Pod::new("user").on("node2").mounts("data"));
    space.end_pod("user");
    let only = OnlyOnNode1::new();
    until("kubelet forgets the driver", || if node_ready("node2") { Err("not yet".to_owned()) } else { Ok(()) });
    space.pod(&Pod::new("user").on("node2").mounts("data"));
    until("it is scheduled", || if space.node_of("user") == "node2" { Ok(()) } else { Err(space.events()) });
    let words = ["pod installation-early/user", "not registered in CSINode node2", "spec.nodeName=node2"];
    explained(&space.name, "data", &words);
    drop(only);
    driver_ready();
    space.running("user");
    space.end();
}

/// Of the pods of the controllers and nodes.
fn uids() -> Vec<String> {
    let ours =
        |pod: &Value| ["controller", "node"].contains(&text(pod, "/metadata/labels/app.kubernetes.io~1component"));
    list("pods", "holdfast").iter().filter(|pod| ours(pod)).map(|pod| text(pod, "/metadata/uid").to_owned()).collect()
}

#[test]
fn an_upgrade_from_the_chart_before_is_not_noticed_by_pods() {
    let space = Space::new("installation-upgrade");
    // Another log level, so that everything restarts whatever the difference of the charts.
    install(&previous_chart(), &["--set", "log.level=debug"]);
    driver_ready();
    let writer = Writer::start(&space, "writer", "node2");
    let before = uids();
    install(&installed_chart(), &[]);
    until("every pod is another", || {
        let after = uids();
        if after.iter().any(|uid| before.contains(uid)) { Err(format!("{after:?}")) } else { Ok(()) }
    });
    driver_ready();
    writer.goes_on();
    space.claim(&Claim::new("data").size("64Mi"));
    space.run(&Pod::new("user").mounts("data"));
    space.end();
}

#[test]
fn what_the_chart_installs_is_accepted_by_the_server() {
    let manifest = helm(&["-n", "holdfast", "get", "manifest", "holdfast"]);
    try_kubectl(&["apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", "-"], Some(&manifest))
        .unwrap_or_else(|said| panic!("{said}"));
    let driver = crate::harness::get("csidriver", "default", "csi.holdfast.storage").unwrap();
    assert_eq!(text(&driver, "/spec/fsGroupPolicy"), "File");
    // Nothing restarts by itself.
    let restarted: Vec<_> = list("pods", "holdfast")
        .iter()
        .flat_map(|pod| pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default())
        .filter(|status| status["restartCount"].as_u64().unwrap_or(0) > 3)
        .map(|status| status.to_string())
        .collect();
    assert!(restarted.is_empty(), "{restarted:?}");
}
