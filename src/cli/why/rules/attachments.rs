//! A volume and the node of its attachment.

use super::super::objects::{Attachment, Pod, Volume};
use super::{Case, code_in, said_by};

impl Case<'_> {
    pub(super) fn attaching(&mut self, object: &str, volume: &Volume, pod: &Pod, home: Option<&str>) {
        let facts = self.facts;
        let Some(all) = &facts.attachments else { return };
        let (name, node) = (&volume.metadata.name, &pod.spec.node_name);
        let state = |one: &Attachment| {
            let attached = if one.status.attached { "attached" } else { "not attached" };
            let leaving = if one.metadata.deletion_timestamp.is_empty() { "" } else { ", being detached" };
            format!("{attached} to node {}{leaving}", one.spec.node_name)
        };
        for one in all {
            self.link("attachment", &one.metadata.name, state(one));
        }
        let here = all.iter().find(|one| one.spec.node_name == *node);
        let elsewhere = all.iter().find(|one| one.spec.node_name != *node);
        match (here, elsewhere) {
            (Some(here), _) if here.status.attached && here.metadata.deletion_timestamp.is_empty() => {}
            (Some(here), _) if here.status.attached => self.detaching(object, name, here),
            (_, Some(other)) if self.fencing(object, volume, other, home) => {}
            (_, Some(other)) => {
                let detaching = match &other.status.detach_error {
                    Some(error) => format!("; {}", said_by("the attacher", &error.message)),
                    None => String::new(),
                };
                let waits_for = format!(
                    "volume {name} to be detached from node {}, to which it is attached{detaching}",
                    other.spec.node_name
                );
                let next = format!(
                    "run kubectl get pods -A -o wide --field-selector spec.nodeName={}, and delete the pods that use it there{}",
                    other.spec.node_name,
                    self.forced(volume, &other.spec.node_name)
                );
                self.found("held-elsewhere", object, waits_for, &other.metadata.deletion_timestamp, next);
            }
            (Some(here), None) => {
                let (why, since) = match &here.status.attach_error {
                    Some(error) => (said_by("the attacher", &error.message), &error.time),
                    None => ("the attacher has not answered yet".to_owned(), &here.metadata.creation_timestamp),
                };
                let waits_for = format!("volume {name} to be attached to node {node}; {why}");
                self.found(
                    "attach-waits",
                    object,
                    waits_for,
                    since,
                    format!("kubectl describe volumeattachment {}", here.metadata.name),
                );
            }
            (None, None) => {
                let waits_for = format!("a VolumeAttachment of volume {name} to node {node}; there is none yet");
                let next = "kubectl get pods -n kube-system (kube-controller-manager creates it)";
                if self.is_overdue(&pod.metadata.creation_timestamp) {
                    self.found("no-attachment", object, waits_for, &pod.metadata.creation_timestamp, next);
                }
            }
        }
    }

    /// An attachment to the pod's own node that is being removed: kubelet waits for the next one.
    fn detaching(&mut self, object: &str, volume: &str, here: &Attachment) {
        let (name, node) = (&here.metadata.name, &here.spec.node_name);
        let Some(error) = &here.status.detach_error else {
            if self.is_overdue(&here.metadata.deletion_timestamp) {
                let waits_for = format!("volume {volume} to be detached from node {node} and attached there again");
                let next = format!("kubectl describe volumeattachment {name}");
                self.found("detach-waits", object, waits_for, &here.metadata.deletion_timestamp, next);
            }
            return;
        };
        // An earlier release waits for kubelet, which waits for the driver; this one detaches a volume that only its own node
        // uses.
        let is_staged = code_in(&error.message) == "FailedPrecondition";
        let next = if is_staged {
            format!(
                "upgrade Holdfast on node {node}: it then detaches a volume that only its own node uses; or delete the pods that use it there and, on that node, umount every path in the message"
            )
        } else {
            format!("kubectl describe volumeattachment {name}; the attacher retries by itself")
        };
        let said = said_by("the attacher", &error.message);
        let waits_for = format!("volume {volume} to be detached from node {node} and attached there again; {said}");
        self.found("detach-failed", object, waits_for, &here.metadata.deletion_timestamp, next);
    }
}
