//! Events on pods that use a volume on a node.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, PersistentVolume, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};

use super::client::ask;
use crate::os::Timestamp;
use crate::types::{Error, Kind, NodeId, ObjectName, Result, VolumeId};

/// The PersistentVolumes in one answer, and the answers of one list.
const PAGE: u32 = 500;
const MOST_PAGES: usize = 40;
/// The part of a pod's name that an event's name has: together they have at most 253 characters.
const LONGEST: usize = 180;

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace and name.
    pub name: ObjectName,
    /// Its uid: a later pod of the same name is another one.
    pub uid: String,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// One word.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
    /// The node of the pod.
    pub node: NodeId,
    /// The volume.
    pub volume: VolumeId,
}

/// Uses the API server. The account needs the permissions to list PersistentVolumes and Pods, and to create Events.
#[derive(Clone)]
pub struct PodEvents {
    client: Client,
    /// The driver's name, as PersistentVolumes and events have it.
    driver: &'static str,
}

impl std::fmt::Debug for PodEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodEvents").finish_non_exhaustive()
    }
}

impl PodEvents {
    /// With this client, for the volumes of this driver.
    #[must_use]
    pub fn new(client: Client, driver: &'static str) -> Self {
        Self { client, driver }
    }

    /// The claims of volumes. A volume without a claim is left out.
    ///
    /// # Errors
    /// Those of [`ask`].
    pub async fn claims(&self, volumes: &BTreeSet<VolumeId>) -> Result<BTreeMap<VolumeId, ObjectName>> {
        let all = Api::<PersistentVolume>::all(self.client.clone());
        let (mut claims, mut next) = (BTreeMap::new(), None);
        for _ in 0..MOST_PAGES {
            let page = ListParams { limit: Some(PAGE), continue_token: next, ..ListParams::default() };
            let list = ask("list PersistentVolumes", all.list(&page)).await?;
            for spec in list.items.into_iter().filter_map(|volume| volume.spec) {
                let Some(csi) = spec.csi.filter(|csi| csi.driver == self.driver) else { continue };
                let Some(claim) = spec.claim_ref else { continue };
                let name = format!("{}/{}", claim.namespace.unwrap_or_default(), claim.name.unwrap_or_default());
                if let (Ok(volume), Ok(name)) = (csi.volume_handle.parse::<VolumeId>(), name.parse())
                    && volumes.contains(&volume)
                {
                    claims.insert(volume, name);
                }
            }
            next = list.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() || claims.len() == volumes.len() {
                return Ok(claims);
            }
        }
        Err(Error::new(Kind::Unavailable, "list PersistentVolumes: there are too many"))
    }

    /// The pods on a node that use a claim and have not ended.
    ///
    /// # Errors
    /// Those of [`ask`].
    pub async fn users(&self, claim: &ObjectName, node: &NodeId) -> Result<Vec<PodName>> {
        let namespace = claim.namespace();
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let list = ask(&format!("list Pods in {namespace}"), pods.list(&on_node)).await?;
        let of = |pod: Pod| {
            let (name, uid) = (pod.metadata.name.clone()?, pod.metadata.uid.clone()?);
            let is_used =
                uses(&pod, &name, claim.name()) && pod.spec.as_ref()?.node_name.as_deref() == Some(node.as_str());
            is_used.then(|| format!("{namespace}/{name}").parse().ok()).flatten().map(|name| PodName { name, uid })
        };
        Ok(list.items.into_iter().filter_map(of).collect())
    }

    /// Creates an event on a pod. All controllers give it the same name, so that the pod gets it once.
    ///
    /// # Errors
    /// Those of [`ask`], except that it exists.
    pub async fn tell(&self, pod: &PodName, event: &PodEvent) -> Result<()> {
        let namespace = pod.name.namespace();
        let name = event_name(pod, event);
        let at = jiff::Timestamp::from_nanosecond(i128::from(event.since.as_nanos())).ok().map(Time);
        let now = jiff::Timestamp::from_nanosecond(i128::from(Timestamp::now().as_nanos())).ok().map(Time);
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(namespace.to_owned()),
                name: Some(pod.name.name().to_owned()),
                uid: Some(pod.uid.clone()),
                ..ObjectReference::default()
            },
            reason: Some(event.reason.to_owned()),
            message: Some(event.message.clone()),
            type_: Some("Warning".to_owned()),
            source: Some(EventSource { component: Some(self.driver.to_owned()), host: Some(event.node.to_string()) }),
            first_timestamp: at,
            last_timestamp: now,
            count: Some(1),
            ..Event::default()
        };
        let events = Api::<Event>::namespaced(self.client.clone(), namespace);
        let what = format!("create the Event {namespace}/{name}");
        match ask(&what, events.create(&PostParams::default(), &event)).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == Kind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether a pod uses a claim, and has not ended. A generic ephemeral volume's claim has the name of pod and volume.
fn uses(pod: &Pod, name: &str, claim: &str) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut claims = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(used), _) => Some(used.claim_name.clone()),
        (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
        (None, None) => None,
    });
    !matches!(phase, Some("Succeeded" | "Failed")) && claims.any(|used| used == claim)
}

fn event_name(pod: &PodName, event: &PodEvent) -> String {
    let name = pod.name.name();
    let name = name.get(..LONGEST).unwrap_or(name).trim_end_matches(['.', '-']);
    let reason = event.reason.to_ascii_lowercase();
    format!("{name}.{reason}.{:x}.{}", event.since.as_nanos(), event.volume.uuid)
}

#[cfg(test)]
mod tests {
    use kube::Config;
    use serde_json::json;

    use super::super::client::client;
    use super::super::double::{ApiServer, TOKEN};
    use super::*;

    const DRIVER: &str = "csi.holdfast.storage";
    const HANDLE: &str = "hf1_00000000000000aa_0123456789abcdef0123456789abcdef_node-a";

    fn events(server: &ApiServer) -> PodEvents {
        let mut config = Config::new(server.url().parse().unwrap());
        config.auth_info.token = Some(TOKEN.to_owned().into());
        PodEvents::new(client(config).unwrap(), DRIVER)
    }

    fn pod(name: &str, node: &str, volume: &serde_json::Value, phase: &str) -> serde_json::Value {
        json!({
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
            "spec": {"nodeName": node, "containers": [], "volumes": [volume]}, "status": {"phase": phase},
        })
    }

    #[tokio::test]
    async fn the_pods_of_a_volume_on_a_node_get_one_event() {
        let server = ApiServer::start();
        let volume = |driver: &str, handle: &str, claim: &str| {
            json!({
                "metadata": {"name": claim}, "spec": {
                    "csi": {"driver": driver, "volumeHandle": handle}, "claimRef": {"namespace": "shop", "name": claim},
                },
            })
        };
        server.set("persistentvolumes//a", &volume("other.driver", HANDLE, "not-ours"));
        server.set("persistentvolumes//b", &volume(DRIVER, HANDLE, "data"));
        server.set("persistentvolumes//c", &volume(DRIVER, &HANDLE.replace("0123", "1123"), "other"));
        let claim = |name: &str| json!({"name": "d", "persistentVolumeClaim": {"claimName": name}});
        server.set("pods/shop/web-0", &pod("web-0", "node-b", &claim("data"), "Running"));
        server.set("pods/shop/web-1", &pod("web-1", "node-c", &claim("data"), "Running"));
        server.set("pods/shop/web-2", &pod("web-2", "node-b", &claim("other"), "Running"));
        server.set("pods/shop/web-3", &pod("web-3", "node-b", &claim("data"), "Succeeded"));

        let (id, node): (VolumeId, NodeId) = (HANDLE.parse().unwrap(), "node-b".parse().unwrap());
        let events = events(&server);
        let claims = events.claims(&BTreeSet::from([id])).await.unwrap();
        let claim = &claims[&id];
        assert!(claims.len() == 1 && claim.to_string() == "shop/data", "{claims:?}");
        let users = events.users(claim, &node).await.unwrap();
        let [user] = users.as_slice() else { panic!("{users:?}") };
        assert_eq!((user.name.to_string().as_str(), user.uid.as_str()), ("shop/web-0", "uid-web-0"));

        let event = PodEvent {
            reason: "VolumeStalled",
            message: "reads and writes wait".to_owned(),
            since: Timestamp::from_nanos(1_795_263_000_000_000_000),
            node,
            volume: id,
        };
        // Two controllers.
        events.tell(user, &event).await.unwrap();
        events.tell(user, &event).await.unwrap();
        let made = server.all("events/shop/");
        let [made] = made.as_slice() else { panic!("{made:?}") };
        assert_eq!(made["involvedObject"]["uid"], "uid-web-0");
        assert_eq!((&made["type"], &made["reason"]), (&"Warning".into(), &"VolumeStalled".into()));
        assert_eq!((&made["message"], &made["source"]["host"]), (&"reads and writes wait".into(), &"node-b".into()));
        assert_eq!(made["firstTimestamp"], "2026-11-21T12:10:00Z");
        // Another time is another event.
        let later = PodEvent { since: Timestamp::from_nanos(1_795_263_001_000_000_000), ..event };
        events.tell(user, &later).await.unwrap();
        assert_eq!(server.all("events/shop/").len(), 2);
        let long = PodName { name: format!("shop/{}", "a".repeat(253)).parse().unwrap(), uid: "u".into() };
        assert!(event_name(&long, &later).len() <= 253);
    }

    #[tokio::test]
    async fn an_ephemeral_volume_belongs_to_its_pod() {
        let of: Pod =
            serde_json::from_value(pod("web-0", "n", &json!({"name": "scratch", "ephemeral": {}}), "Running")).unwrap();
        assert!(uses(&of, "web-0", "web-0-scratch") && !uses(&of, "web-0", "scratch"));
    }
}
