//! A Deployment of one pod with network volumes, and where it runs.

use serde_json::{Value, json};

use crate::guest::{Guest, HOME, OTHER};
use crate::harness::{Claim, Pod, Space, driver_exec, kubectl, list, text, try_kubectl, until, within};

/// For everything in which a node must be found unreachable first.
const LONG: u64 = 400;

/// A Deployment `app` of one pod: the new pod is created when the old one is deleted.
pub(crate) struct App {
    pub(crate) space: Space,
    claims: Vec<String>,
}

impl App {
    /// Creates the claims and the Deployment: `pod` with what it runs and uses. Its pod starts on the home node of the
    /// claims, which is [`HOME`].
    pub(crate) fn new(namespace: &str, claims: &[Claim], pod: &Pod) -> Self {
        // As a test that failed may have left them.
        for guest in [HOME, OTHER] {
            guest.boot();
            guest.thaw();
            drop(try_kubectl(&["taint", "node", &guest.name(), "node.kubernetes.io/out-of-service-"], None));
            guest.ready();
            uncordon(guest);
        }
        cordon(OTHER);
        let space = Space::new(namespace);
        for claim in claims {
            space.claim(claim);
        }
        let mut spec = pod.spec();
        // What a test wants to see on the node, whatever becomes of the pod.
        let volumes = spec["volumes"].as_array_mut().unwrap();
        volumes.push(json!({"name": "node", "hostPath": {"path": format!("/run/test/{namespace}"), "type": "DirectoryOrCreate"}}));
        let mounts = spec["containers"][0]["volumeMounts"].as_array_mut().unwrap();
        mounts.push(json!({"name": "node", "mountPath": "/node"}));
        // One that is unreachable is the test's own business: no other taint moves its pod.
        spec["tolerations"] = json!([
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
        ]);
        let labels = json!({"app": "app"});
        space.apply(&json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app"},
            "spec": {
                "replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        }));
        Self { space, claims: claims.iter().map(|claim| claim.name.clone()).collect() }
    }

    fn pods(&self) -> Vec<Value> {
        list("pods", &self.space.name)
    }

    /// Waits until its pod is ready on a node, and no other pod of it is left; returns the pod's name.
    pub(crate) fn runs_on(&self, guest: Guest) -> String {
        let node = guest.name();
        within(LONG, &format!("the pod runs on {node}"), || {
            let pods = self.pods();
            let [pod] = pods.as_slice() else { return Err(format!("{} pods\n{}", pods.len(), self.space.events())) };
            let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
            let mut ready = conditions.filter(|one| text(one, "/type") == "Ready" && text(one, "/status") == "True");
            let is_there = text(pod, "/spec/nodeName") == node && pod.pointer("/metadata/deletionTimestamp").is_none();
            if is_there && ready.next().is_some() {
                Ok(text(pod, "/metadata/name").to_owned())
            } else {
                Err(format!("{}\n{}", pod["status"], self.space.events()))
            }
        })
    }

    /// The name of the only pod that is not being deleted.
    pub(crate) fn pod(&self) -> String {
        until("there is one pod", || {
            let pods: Vec<_> =
                self.pods().into_iter().filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none()).collect();
            match pods.as_slice() {
                [pod] => Ok(text(pod, "/metadata/name").to_owned()),
                _ => Err(format!("{} are", pods.len())),
            }
        })
    }

    /// The PersistentVolumes.
    pub(crate) fn volumes(&self) -> Vec<String> {
        self.claims.iter().map(|claim| self.space.volume_name(claim)).collect()
    }

    /// The nodes that its volumes are attached to, each once.
    pub(crate) fn attached_to(&self) -> Vec<String> {
        let volumes = self.volumes();
        let all = list("volumeattachments", "default");
        let ours = all
            .iter()
            .filter(|one| volumes.iter().any(|volume| text(one, "/spec/source/persistentVolumeName") == volume));
        let mut nodes: Vec<_> = ours.map(|one| text(one, "/spec/nodeName").to_owned()).collect();
        nodes.sort();
        nodes.dedup();
        nodes
    }

    /// What `holdfast why` says about the first claim, printed and checked for these words.
    pub(crate) fn why(&self, moment: &str, words: &[&str]) {
        let claim = format!("{}/{}", self.space.name, self.claims[0]);
        let mut last = String::new();
        until(&format!("{moment}: why says {words:?}"), || {
            let said = driver_exec(&["why", &claim]).unwrap_or_else(|said| said);
            let all = words.iter().all(|word| said.contains(word));
            last.clone_from(&said);
            if all { Ok(()) } else { Err(said) }
        });
        // An error begins with the command that failed.
        eprintln!("why, {moment}:\n{}", last.find("OBJECT").map_or(last.as_str(), |at| &last[at..]));
        assert!(!last.contains("not checked"), "the controller's account may read everything: {last}");
    }

    /// Nothing waits.
    pub(crate) fn why_not(&self, moment: &str) {
        self.why(moment, &["no problems found; nothing waits"]);
    }

    /// Deletes everything, and checks that nothing of it is left on the guests.
    pub(crate) fn end(self, guests: &[Guest]) {
        kubectl(&["-n", &self.space.name, "delete", "deployment", "app", "--cascade=foreground", "--timeout=180s"]);
        until("no volume is attached", || {
            let nodes = self.attached_to();
            if nodes.is_empty() { Ok(()) } else { Err(format!("{nodes:?}")) }
        });
        for guest in guests {
            until(&format!("nothing is left on {}", guest.name()), || nothing_left(*guest));
            drop(guest.run(&format!("rm -rf /run/test/{}", self.space.name)));
        }
        self.space.end();
    }
}

/// Whether a guest has no volume, export or connection.
pub(crate) fn nothing_left(guest: Guest) -> Result<(), String> {
    let left = guest.run(
        "ls -d /dev/nvme[0-9]* /sys/class/nvme/nvme[0-9]* /sys/kernel/config/nvmet/subsystems/* 2>/dev/null
         grep -E ' /var/lib/kubelet/[^ ]*csi.holdfast.storage/' /proc/mounts
         for loop in /sys/block/loop*/loop; do [ -e $loop ] && echo $loop; done
         true",
    )?;
    if left.is_empty() { Ok(()) } else { Err(left) }
}

/// Cordons a node.
pub(crate) fn cordon(guest: Guest) {
    kubectl(&["cordon", &guest.name()]);
}

/// Uncordons it.
pub(crate) fn uncordon(guest: Guest) {
    kubectl(&["uncordon", &guest.name()]);
}
