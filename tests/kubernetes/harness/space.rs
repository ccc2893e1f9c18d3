//! A namespace of one test, which leaves nothing behind.

use std::thread;

use serde_json::{Value, json};

use super::cluster::{delete, exec, get, kubectl, list, text, try_kubectl, until};
use super::objects::{Claim, Pod};
use super::volumes;

/// A namespace. It is deleted when dropped; [`Space::end`] also checks that no volume of it is left.
pub(crate) struct Space {
    pub(crate) name: String,
    ended: bool,
}

impl Space {
    pub(crate) fn new(name: &str) -> Self {
        until("the namespace of an earlier run is gone", || match get("namespace", "default", name) {
            None => Ok(()),
            Some(_) => {
                Err(try_kubectl(&["delete", "namespace", name, "--wait=false"], None).unwrap_or_else(|said| said))
            }
        });
        kubectl(&["create", "namespace", name]);
        until("its account", || get("serviceaccount", name, "default").ok_or_else(|| "no account".to_owned()));
        Self { name: name.to_owned(), ended: false }
    }

    pub(crate) fn apply(&self, manifest: &Value) {
        self.try_apply(manifest).unwrap_or_else(|said| panic!("{said}"));
    }

    pub(crate) fn try_apply(&self, manifest: &Value) -> Result<String, String> {
        try_kubectl(&["-n", &self.name, "apply", "-f", "-"], Some(&manifest.to_string()))
    }

    pub(crate) fn claim(&self, claim: &Claim) {
        self.apply(&claim.manifest());
    }

    /// Creates a pod and does not wait for it.
    pub(crate) fn pod(&self, pod: &Pod) {
        self.apply(&pod.manifest());
    }

    /// Creates a pod and waits until it runs.
    pub(crate) fn run(&self, pod: &Pod) {
        self.pod(pod);
        self.running(&pod.name);
    }

    /// Waits until a pod runs.
    pub(crate) fn running(&self, pod: &str) {
        until(&format!("pod {}/{pod} runs", self.name), || {
            let found = get("pod", &self.name, pod).ok_or("no such pod")?;
            let ready =
                text(&found, "/status/phase") == "Running" && found.pointer("/metadata/deletionTimestamp").is_none();
            if ready { Ok(()) } else { Err(format!("{}\n{}", found["status"], self.events())) }
        });
    }

    pub(crate) fn bound(&self, claim: &str) -> Value {
        until(&format!("claim {}/{claim} is bound", self.name), || {
            let found = get("pvc", &self.name, claim).ok_or("no such claim")?;
            if text(&found, "/status/phase") == "Bound" {
                Ok(found)
            } else {
                Err(format!("{}\n{}", found["status"], self.events()))
            }
        })
    }

    /// The PersistentVolume of a bound claim.
    pub(crate) fn volume_name(&self, claim: &str) -> String {
        text(&self.bound(claim), "/spec/volumeName").to_owned()
    }

    pub(crate) fn node_of(&self, pod: &str) -> String {
        text(&get("pod", &self.name, pod).expect("the pod is there"), "/spec/nodeName").to_owned()
    }

    pub(crate) fn exec(&self, pod: &str, script: &str) -> String {
        exec(&self.name, pod, script).unwrap_or_else(|said| panic!("{said}\n{}", self.events()))
    }

    /// Deletes a pod and waits until it is gone.
    pub(crate) fn end_pod(&self, pod: &str) {
        self.gone("pod", pod);
    }

    /// Deletes an object and waits until it is gone.
    pub(crate) fn gone(&self, kind: &str, name: &str) {
        delete(kind, &self.name, name);
        until(&format!("{kind} {}/{name} is gone", self.name), || match get(kind, &self.name, name) {
            None => Ok(()),
            Some(found) => Err(format!("{}\n{}", found["status"], self.events())),
        });
    }

    /// Waits until a snapshot can be used.
    pub(crate) fn snapshot_ready(&self, name: &str) {
        until(&format!("snapshot {}/{name} is ready", self.name), || {
            let found = get("volumesnapshot", &self.name, name).ok_or("no such snapshot")?;
            if found.pointer("/status/readyToUse") == Some(&json!(true)) {
                Ok(())
            } else {
                Err(found["status"].to_string())
            }
        });
    }

    /// Waits until an event about an object contains all these words; returns its message.
    pub(crate) fn event(&self, object: &str, words: &[&str]) -> String {
        until(&format!("an event of {object} says {words:?}"), || {
            list("events", &self.name)
                .iter()
                .filter(|event| text(event, "/involvedObject/name") == object)
                .map(|event| text(event, "/message").to_owned())
                .find(|message| words.iter().all(|word| message.contains(word)))
                .ok_or_else(|| self.events())
        })
    }

    /// The events of this namespace, for a failing test.
    pub(crate) fn events(&self) -> String {
        list("events", &self.name)
            .iter()
            .map(|event| format!("  {}: {}\n", text(event, "/involvedObject/name"), text(event, "/message")))
            .collect()
    }

    /// Deletes the namespace and checks that none of its volumes and snapshots is left, in Kubernetes and in the pools.
    pub(crate) fn end(mut self) {
        let names: Vec<_> = list("pv", "default")
            .iter()
            .filter(|pv| text(pv, "/spec/claimRef/namespace") == self.name)
            .map(|pv| text(pv, "/metadata/name").to_owned())
            .collect();
        self.ended = true;
        kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
        until(&format!("namespace {} is gone", self.name), || match get("namespace", "default", &self.name) {
            None => Ok(()),
            Some(found) => Err(found["status"].to_string()),
        });
        until("its volumes are gone", || {
            let left: Vec<_> = list("pv", "default")
                .iter()
                .filter(|pv| text(pv, "/spec/claimRef/namespace") == self.name)
                .map(|pv| text(pv, "/metadata/name").to_owned())
                .collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
        let left: Vec<_> = volumes().into_iter().filter(|volume| names.contains(&volume.name)).collect();
        assert!(left.is_empty(), "left in the pools: {left:?}");
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if thread::panicking() {
            eprintln!("what was said in {}:\n{}", self.name, self.events());
        }
        drop(try_kubectl(&["delete", "namespace", &self.name, "--wait=false"], None));
    }
}
