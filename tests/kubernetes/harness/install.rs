//! The chart, and nodes that are stopped.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cluster::{helm, kubectl, on_node, text, until};
use super::driver::{NAMESPACE, controller_pods, node_pod, node_ready};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn directory() -> PathBuf {
    env::var_os("HOLDFAST_E2E").expect("HOLDFAST_E2E").into()
}

/// The chart of this commit.
pub(crate) fn installed_chart() -> String {
    top().join("charts/holdfast").display().to_string()
}

/// The values of the tests.
fn values() -> String {
    top().join("tests/kubernetes/values.yaml").display().to_string()
}

/// The chart before its last change in git's history. The current one, if there is no such commit.
pub(crate) fn previous_chart() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(top()).args(arguments).output().expect("git runs");
        output.status.success().then_some(output.stdout)
    };
    let log = git(&["log", "-n", "2", "--format=%H", "--", "charts/holdfast"]).unwrap_or_default();
    let Some(commit) = String::from_utf8_lossy(&log).lines().nth(1).map(str::to_owned) else {
        eprintln!("no commit has an earlier chart: upgrading from this one");
        return installed_chart();
    };
    let archive = git(&["archive", &commit, "charts/holdfast"]).expect("the commit is here");
    let into = directory().join("previous");
    drop(fs::remove_dir_all(&into));
    fs::create_dir_all(&into).unwrap();
    fs::write(into.join("chart.tar"), archive).unwrap();
    let tar = Command::new("tar").arg("-C").arg(&into).arg("-xf").arg(into.join("chart.tar")).status().unwrap();
    assert!(tar.success());
    eprintln!("the chart of {commit}");
    into.join("charts/holdfast").display().to_string()
}

/// Installs or upgrades a chart, as a user does.
pub(crate) fn install(chart: &str, more: &[&str]) {
    let values = values();
    let mut arguments = vec!["-n", NAMESPACE, "upgrade", "--install", "holdfast", chart, "--create-namespace"];
    arguments.extend(["-f", &values, "--wait", "--timeout=5m"]);
    arguments.extend(more);
    helm(&arguments);
}

/// Waits until the driver serves on both nodes and controllers answer.
pub(crate) fn driver_ready() {
    for node in ["node1", "node2"] {
        node_pod(node);
        until("kubelet knows the driver", || if node_ready(node) { Ok(()) } else { Err(node.to_owned()) });
    }
    until("both controllers are ready", || match controller_pods().len() {
        2 => Ok(()),
        other => Err(format!("{other} are")),
    });
}

fn pid(name: &str) -> Option<String> {
    fs::read_to_string(directory().join("run").join(format!("{name}.pid"))).ok().map(|pid| pid.trim().to_owned())
}

fn kill(name: &str) {
    if let Some(pid) = pid(name) {
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success(), "{name} runs as {pid}");
        until("it has ended", || {
            if Path::new("/proc").join(&pid).join("exe").exists() { Err(pid.clone()) } else { Ok(()) }
        });
    }
}

fn up() {
    let status = Command::new(directory().join("bin/up-again")).status().unwrap();
    assert!(status.success());
}

/// Kills a node's kubelet and starts it again.
pub(crate) fn restart_kubelet(node: &str) {
    kill(&node.replace("node", "kubelet"));
    up();
}

/// A node whose kubelet, and perhaps driver, were killed; it is started at the latest when this is dropped.
pub(crate) struct Crashed {
    node: String,
}

impl Crashed {
    /// Kills a node's kubelet: its containers continue, also the driver.
    pub(crate) fn kubelet(node: &str) -> Self {
        kill(&node.replace("node", "kubelet"));
        Self { node: node.to_owned() }
    }

    /// Kills a node's kubelet, so that nothing is restarted there, and the driver.
    pub(crate) fn new(node: &str) -> Self {
        let pod = super::cluster::get("pod", NAMESPACE, &node_pod(node)).unwrap();
        let id = text(&pod, "/status/containerStatuses/0/containerID").trim_start_matches("containerd://").to_owned();
        let crashed = Self { node: node.to_owned() };
        kill(&node.replace("node", "kubelet"));
        let socket = directory().join(node).join("containerd.sock").display().to_string();
        on_node(node, &["ctr", "-a", &socket, "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", &id]).unwrap();
        crashed
    }

    /// Starts the node's kubelet, which starts the rest.
    pub(crate) fn returns(self) {
        let node = self.node.clone();
        drop(self);
        kubectl(&["wait", "--for=condition=Ready", &format!("node/{node}"), "--timeout=120s"]);
    }
}

impl Drop for Crashed {
    fn drop(&mut self) {
        up();
    }
}
