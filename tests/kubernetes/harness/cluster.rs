//! kubectl, Helm, commands on a node; and waiting.

use std::env;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The limit for everything that is not a test of time: both cores are shared with all other tests.
const PATIENCE: u64 = 180;

fn directory() -> PathBuf {
    env::var_os("HOLDFAST_E2E").expect("HOLDFAST_E2E names the cluster's directory: run `make e2e`").into()
}

fn command(program: &str) -> Command {
    let directory = directory();
    let path = env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command
        .env("PATH", format!("{}:{path}", directory.join("bin").display()))
        .env("KUBECONFIG", directory.join("admin.kubeconfig"));
    command
}

fn run(mut command: Command, input: Option<&str>) -> Result<String, String> {
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it is installed");
    if let Some(input) = input {
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(out);
    }
    Err(format!("{command:?}: {}\n{out}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// kubectl, which may fail: returns its output, or its error.
pub(crate) fn try_kubectl(arguments: &[&str], input: Option<&str>) -> Result<String, String> {
    let mut kubectl = command("kubectl");
    kubectl.args(arguments);
    run(kubectl, input)
}

/// kubectl, which must not fail.
pub(crate) fn kubectl(arguments: &[&str]) -> String {
    try_kubectl(arguments, None).unwrap_or_else(|said| panic!("{said}"))
}

/// Helm, which must not fail.
pub(crate) fn helm(arguments: &[&str]) -> String {
    let mut helm = command("helm");
    helm.args(arguments);
    run(helm, None).unwrap_or_else(|said| panic!("{said}"))
}

/// A command in the mount namespace of a node.
pub(crate) fn on_node(node: &str, arguments: &[&str]) -> Result<String, String> {
    let mut on = command("on");
    on.arg(node).args(arguments);
    run(on, None)
}

/// An object, `None` when there is none. The namespace is ignored for kinds without one.
pub(crate) fn get(kind: &str, namespace: &str, name: &str) -> Option<Value> {
    let said = try_kubectl(&["-n", namespace, "get", kind, name, "-o", "json", "--ignore-not-found"], None);
    let said = said.unwrap_or_else(|said| panic!("{said}"));
    if said.trim().is_empty() { None } else { Some(serde_json::from_str(&said).unwrap()) }
}

/// Whether an object exists.
pub(crate) fn exists(kind: &str, namespace: &str, name: &str) -> bool {
    get(kind, namespace, name).is_some()
}

/// All objects of a kind in a namespace.
pub(crate) fn list(kind: &str, namespace: &str) -> Vec<Value> {
    let said = kubectl(&["-n", namespace, "get", kind, "-o", "json"]);
    let mut said: Value = serde_json::from_str(&said).unwrap();
    match said["items"].take() {
        Value::Array(items) => items,
        other => panic!("{kind}: {other}"),
    }
}

/// Deletes without waiting.
pub(crate) fn delete(kind: &str, namespace: &str, name: &str) {
    kubectl(&["-n", namespace, "delete", kind, name, "--wait=false", "--ignore-not-found"]);
}

/// A merge patch.
pub(crate) fn patch(kind: &str, namespace: &str, name: &str, patch: &Value) {
    kubectl(&["-n", namespace, "patch", kind, name, "--type=merge", "-p", &patch.to_string()]);
}

/// A shell command in a pod's container: returns its output, or its error.
pub(crate) fn exec(namespace: &str, pod: &str, script: &str) -> Result<String, String> {
    try_kubectl(&["-n", namespace, "exec", pod, "--", "sh", "-ec", script], None)
}

/// A string field of an object; empty when it is missing.
pub(crate) fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Polls until it succeeds, within the general limit.
///
/// # Panics
/// With the last error.
pub(crate) fn until<T>(what: &str, ask: impl FnMut() -> Result<T, String>) -> T {
    within(PATIENCE, what, ask)
}

/// As [`until`], for so many seconds.
pub(crate) fn within<T>(seconds: u64, what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match ask() {
            Ok(found) => return found,
            Err(why) if Instant::now() > end => panic!("after {seconds} s still not: {what}: {why}"),
            Err(_) => thread::sleep(Duration::from_millis(300)),
        }
    }
}
