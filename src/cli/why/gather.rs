//! Reads the objects for the rules from the API server, with `get` and `list` only. A request that is not permitted is
//! reported and its object omitted.

use holdfast::csi::DRIVER_NAME;
use holdfast::kubernetes::ask;
use holdfast::types::ObjectName;
use holdfast::types::{Error, Kind, VolumeId};
use kube::Client;
use serde::de::DeserializeOwned;

use super::facts::{Facts, Found};
use super::objects::{Claim, Event, List, Pod, Volume};

/// The objects in one answer, and the answers of one list. More would not fit on a screen.
const PAGE: usize = 500;
const MOST_PAGES: usize = 40;

/// Reads objects, and collects the requests that failed.
pub(super) struct Gatherer {
    client: Client,
    unasked: Vec<String>,
}

/// Percent-encodes a text for a query.
fn encoded(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

impl Gatherer {
    /// With this client.
    pub(super) fn new(client: Client) -> Self {
        Self { client, unasked: Vec::new() }
    }

    async fn read<T: DeserializeOwned>(&mut self, what: &str, path: &str) -> Result<T, Error> {
        let request = http::Request::get(path)
            .body(Vec::new())
            .map_err(|error| Error::new(Kind::InvalidArgument, format!("{what}: invalid request")).because(error))?;
        ask(what, self.client.request(request)).await
    }

    async fn get<T: DeserializeOwned>(&mut self, what: &str, path: &str) -> Found<T> {
        match self.read(what, path).await {
            Ok(object) => Found::Yes(object),
            Err(error) if error.kind() == Kind::NotFound => Found::No,
            Err(error) => {
                self.unasked.push(error.chain());
                Found::Unknown
            }
        }
    }

    /// A complete list; `selector` is a field selector.
    async fn list<T: DeserializeOwned>(&mut self, what: &str, path: &str, selector: Option<String>) -> Option<Vec<T>> {
        let what = format!("list {what}");
        let selector = selector.map_or(String::new(), |selector| format!("&fieldSelector={}", encoded(&selector)));
        let (mut all, mut next) = (Vec::new(), String::new());
        for _ in 0..MOST_PAGES {
            let list: Result<List<T>, _> = self.read(&what, &format!("{path}?limit={PAGE}{selector}{next}")).await;
            match list {
                Ok(list) => {
                    all.extend(list.items);
                    match list.metadata.r#continue.filter(|token| !token.is_empty()) {
                        Some(token) => next = format!("&continue={}", encoded(&token)),
                        None => return Some(all),
                    }
                }
                Err(error) => {
                    self.unasked.push(error.chain());
                    return None;
                }
            }
        }
        self.unasked.push(format!("{what}: there are more than {}; the rest was not read", all.len()));
        Some(all)
    }

    /// The claims for a name: the claim itself, or all claims of a pod.
    pub(super) async fn claims_of(&mut self, name: &ObjectName) -> Vec<ObjectName> {
        let (namespace, short) = (name.namespace(), name.name());
        let claim: Found<Claim> = self
            .get(
                &format!("get the PersistentVolumeClaim {name}"),
                &format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{short}"),
            )
            .await;
        if claim.is_missing() {
            let pod: Found<Pod> =
                self.get(&format!("get the Pod {name}"), &format!("/api/v1/namespaces/{namespace}/pods/{short}")).await;
            let of_pod = pod.get().map(Pod::claims).unwrap_or_default();
            let claims: Vec<_> =
                of_pod.iter().filter_map(|claim| format!("{namespace}/{claim}").parse().ok()).collect();
            if !claims.is_empty() {
                return claims;
            }
        }
        vec![name.clone()]
    }

    /// The volume with this name or handle.
    pub(super) async fn volume_of(&mut self, name: &str) -> Found<Volume> {
        let Ok(id) = name.parse::<VolumeId>() else {
            let good = format!("x/{name}").parse::<ObjectName>().is_ok();
            let (what, path) =
                (format!("get the PersistentVolume {name}"), format!("/api/v1/persistentvolumes/{name}"));
            return if good { self.get(&what, &path).await } else { Found::No };
        };
        let Some(all) = self.volumes().await else { return Found::Unknown };
        let is = |volume: &Volume| {
            volume
                .spec
                .csi
                .as_ref()
                .is_some_and(|csi| csi.volume_handle.parse::<VolumeId>().is_ok_and(|other| other == id))
        };
        all.into_iter().find(is).map_or(Found::No, Found::Yes)
    }

    async fn volumes(&mut self) -> Option<Vec<Volume>> {
        self.list("PersistentVolumes", "/api/v1/persistentvolumes", None).await
    }

    /// Everything about one claim.
    pub(super) async fn facts(&mut self, name: &ObjectName) -> Facts {
        let (namespace, short) = (name.namespace().to_owned(), name.name().to_owned());
        let core = format!("/api/v1/namespaces/{namespace}");
        let claim: Found<Claim> = self
            .get(&format!("get the PersistentVolumeClaim {name}"), &format!("{core}/persistentvolumeclaims/{short}"))
            .await;
        let mut facts = Facts { namespace, name: short, claim, ..Facts::default() };
        if let Some(claim) = facts.claim.get().cloned() {
            self.around(&claim, &core, &mut facts).await;
        }
        facts.unasked.append(&mut self.unasked);
        facts
    }

    async fn around(&mut self, claim: &Claim, core: &str, facts: &mut Facts) {
        const STORAGE: &str = "/apis/storage.k8s.io/v1";
        let namespace = facts.namespace.clone();
        facts.classes = self.list("StorageClasses", &format!("{STORAGE}/storageclasses"), None).await;
        facts.driver =
            self.get(&format!("get the CSIDriver {DRIVER_NAME}"), &format!("{STORAGE}/csidrivers/{DRIVER_NAME}")).await;
        facts.csi_nodes = self.list("CSINodes", &format!("{STORAGE}/csinodes"), None).await;
        facts.nodes = self.list("Nodes", "/api/v1/nodes", None).await;
        let pods: Option<Vec<Pod>> = self.list(&format!("Pods in {namespace}"), &format!("{core}/pods"), None).await;
        facts.pods = pods.map(|pods| pods.into_iter().filter(|pod| pod.uses(&facts.name)).collect());
        let mut about = vec![claim.metadata.uid.clone()];
        about.extend(facts.pods.iter().flatten().map(|pod| pod.metadata.uid.clone()));
        for one in about {
            let selector = Some(format!("involvedObject.uid={one}"));
            let events: Option<Vec<Event>> =
                self.list(&format!("Events in {namespace}"), &format!("{core}/events"), selector).await;
            let Some(events) = events else { break };
            facts.events.get_or_insert_default().extend(events);
        }
        if claim.spec.volume_name.is_empty() {
            let volumes = self.volumes().await;
            let kept = |volume: &Volume| volume.is_kept_from_before(claim);
            facts.released = volumes.map(|all| all.into_iter().filter(kept).collect());
            let capacities = format!("{STORAGE}/csistoragecapacities");
            facts.capacities = self.list("CSIStorageCapacities", &capacities, None).await;
        } else {
            let volume = claim.spec.volume_name.clone();
            facts.volume = self
                .get(&format!("get the PersistentVolume {volume}"), &format!("/api/v1/persistentvolumes/{volume}"))
                .await;
            let attachments: Option<Vec<super::objects::Attachment>> =
                self.list("VolumeAttachments", &format!("{STORAGE}/volumeattachments"), None).await;
            let of_volume = |one: &super::objects::Attachment| one.spec.source.persistent_volume_name == volume;
            facts.attachments = attachments.map(|all| all.into_iter().filter(of_volume).collect());
        }
        if let Some(source) = claim.spec.data_source.as_ref().filter(|source| source.kind == "VolumeSnapshot") {
            let path =
                format!("/apis/snapshot.storage.k8s.io/v1/namespaces/{namespace}/volumesnapshots/{}", source.name);
            facts.snapshot = self.get(&format!("get the VolumeSnapshot {namespace}/{}", source.name), &path).await;
        }
        if let Some(source) = claim.spec.data_source.as_ref().filter(|source| source.kind == "PersistentVolumeClaim") {
            let what = format!("get the PersistentVolumeClaim {namespace}/{}", source.name);
            facts.cloned = self.get(&what, &format!("{core}/persistentvolumeclaims/{}", source.name)).await;
        }
    }

    /// The requests that failed since the last facts.
    pub(super) fn unasked(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unasked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_into_a_query_is_encoded() {
        assert_eq!(encoded("involvedObject.uid=a-b"), "involvedObject.uid%3Da-b");
        assert_eq!(encoded("a&b=c/ü"), "a%26b%3Dc%2F%C3%BC");
    }
}
