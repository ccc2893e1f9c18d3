//! A volume and the node it is to be attached to.

use super::super::objects::{Attachment, Pod, Volume};
use super::{Case, drivers_words};

impl Case<'_> {
    pub(super) fn attaching(&mut self, object: &str, volume: &Volume, pod: &Pod) {
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
            (Some(here), _) if here.status.attached => {}
            (_, Some(other)) => {
                let detaching = match &other.status.detach_error {
                    Some(error) => format!("; the driver says: {}", drivers_words(&error.message)),
                    None => String::new(),
                };
                let waits_for = format!(
                    "volume {name} to be detached from node {}, which holds it{detaching}",
                    other.spec.node_name
                );
                let next = format!(
                    "kubectl get pods -A -o wide --field-selector spec.nodeName={}, and end what uses it there",
                    other.spec.node_name
                );
                self.found("held-elsewhere", object, waits_for, &other.metadata.deletion_timestamp, next);
            }
            (Some(here), None) => {
                let (why, since) = match &here.status.attach_error {
                    Some(error) => (format!("the driver says: {}", drivers_words(&error.message)), &error.time),
                    None => ("nobody has answered yet".to_owned(), &here.metadata.creation_timestamp),
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
                let next = "kubectl get pods -n kube-system (kube-controller-manager makes it)";
                if self.is_overdue(&pod.metadata.creation_timestamp) {
                    self.found("no-attachment", object, waits_for, &pod.metadata.creation_timestamp, next);
                }
            }
        }
    }
}
