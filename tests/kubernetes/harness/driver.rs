//! The driver's commands, by `kubectl exec`.

use serde_json::Value;

use super::cluster::{get, list, text, try_kubectl, until};

/// Where the chart is installed.
pub(crate) const NAMESPACE: &str = "holdfast";
const CONTAINER: &str = "holdfast";

/// A volume, as `holdfast volumes` shows it.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    /// The PersistentVolume's.
    pub(crate) name: String,
    pub(crate) handle: String,
    pub(crate) node: String,
    /// In bytes.
    pub(crate) size: u64,
}

fn pods(component: &str) -> Vec<Value> {
    list("pods", NAMESPACE)
        .into_iter()
        .filter(|pod| text(pod, "/metadata/labels/app.kubernetes.io~1component") == component)
        .filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none())
        .collect()
}

fn is_ready(pod: &Value) -> bool {
    pod.pointer("/status/containerStatuses")
        .and_then(Value::as_array)
        .is_some_and(|all| !all.is_empty() && all.iter().all(|status| status["ready"] == Value::Bool(true)))
}

/// The names of the controller's pods that are ready.
pub(crate) fn controller_pods() -> Vec<String> {
    pods("controller").iter().filter(|pod| is_ready(pod)).map(|pod| text(pod, "/metadata/name").to_owned()).collect()
}

/// The name of the pod that serves a node.
pub(crate) fn node_pod(node: &str) -> String {
    until(&format!("{node} has a driver's pod"), || {
        pods("node")
            .iter()
            .find(|pod| text(pod, "/spec/nodeName") == node && is_ready(pod))
            .map(|pod| text(pod, "/metadata/name").to_owned())
            .ok_or_else(|| "no ready pod".to_owned())
    })
}

/// Whether the driver is registered with kubelet on a node.
pub(crate) fn node_ready(node: &str) -> bool {
    get("csinode", "default", node).is_some_and(|found| {
        found
            .pointer("/spec/drivers")
            .and_then(Value::as_array)
            .is_some_and(|all| all.iter().any(|driver| text(driver, "/name") == "csi.holdfast.storage"))
    })
}

/// A holdfast command in a controller's pod: returns its output, or its error.
pub(crate) fn driver_exec(arguments: &[&str]) -> Result<String, String> {
    let pod = until("a controller is ready", || controller_pods().pop().ok_or_else(|| "none".to_owned()));
    let mut all = vec!["-n", NAMESPACE, "exec", &pod, "-c", CONTAINER, "--", "holdfast"];
    all.extend(arguments);
    try_kubectl(&all, None)
}

/// Every volume of the cluster. Retried while a home node is unreachable.
pub(crate) fn volumes() -> Vec<Volume> {
    let rows = until("the volumes are listed", || {
        let said = driver_exec(&["volumes", "--output", "json"])?;
        serde_json::from_str::<Value>(&said).map_err(|error| format!("{error}: {said}"))
    });
    let rows = rows.pointer("/volumes").unwrap_or(&rows);
    rows.as_array()
        .expect("a list")
        .iter()
        .map(|row| Volume {
            name: text(row, "/name").to_owned(),
            handle: text(row, "/handle").to_owned(),
            node: text(row, "/node").to_owned(),
            size: row["size"].as_u64().expect("bytes"),
        })
        .collect()
}

/// The volume of a PersistentVolume.
pub(crate) fn volume_of(name: &str) -> Option<Volume> {
    volumes().into_iter().find(|volume| volume.name == name)
}

/// Runs `holdfast why` for a waiting claim: the output has all these words, the time, and the next command, on one
/// screen.
pub(crate) fn explained(namespace: &str, claim: &str, words: &[&str]) {
    let said = driver_exec(&["why", &format!("{namespace}/{claim}")]).expect_err("something waits");
    for word in words.iter().chain(&["!!", " waits for ", " (for ", "    do  "]) {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("not checked"), "the controller's account may ask for everything: {said}");
    assert!(said.lines().count() <= 24, "{said}");
}
