//! The objects of Kubernetes that a claim goes through, as far as the rules look at them. Read from what the API server
//! answers; everything that may be missing is empty then.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Go writes an empty list as null.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

macro_rules! objects {
    ($($(#[$doc:meta])* $name:ident { $($field:ident : $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, Deserialize)]
            #[serde(rename_all = "camelCase", default)]
            pub(super) struct $name {
                $(#[serde(deserialize_with = "nullable")] pub(super) $field: $type,)*
            }
        )*
    };
}

/// Names to texts.
pub(super) type Texts = BTreeMap<String, String>;

objects! {
    /// Of every object.
    Meta {
        name: String,
        namespace: String,
        uid: String,
        annotations: Texts,
        finalizers: Vec<String>,
        creation_timestamp: String,
        deletion_timestamp: String,
    }
    /// Another object.
    Reference { kind: String, namespace: String, name: String, uid: String }
    /// One line of `status.conditions`.
    Condition { r#type: String, status: String, message: String, last_transition_time: String }

    Claim { metadata: Meta, spec: ClaimSpec, status: ClaimStatus }
    ClaimSpec {
        storage_class_name: Option<String>,
        volume_name: String,
        access_modes: Vec<String>,
        resources: Resources,
        data_source: Option<Reference>,
    }
    Resources { requests: Texts }
    ClaimStatus { phase: String, capacity: Texts, conditions: Vec<Condition> }

    Class { metadata: Meta, provisioner: String, volume_binding_mode: String, parameters: Texts }

    Volume { metadata: Meta, spec: VolumeSpec, status: VolumeStatus }
    VolumeSpec { csi: Option<Csi>, claim_ref: Option<Reference>, persistent_volume_reclaim_policy: String }
    Csi { driver: String, volume_handle: String }
    VolumeStatus { phase: String, last_phase_transition_time: String }

    Pod { metadata: Meta, spec: PodSpec, status: PodStatus }
    PodSpec { node_name: String, volumes: Vec<PodVolume> }
    PodVolume { name: String, persistent_volume_claim: Option<ClaimName>, ephemeral: Option<serde_json::Value> }
    ClaimName { claim_name: String }
    PodStatus { phase: String, conditions: Vec<Condition> }

    Event {
        involved_object: Reference,
        reason: String,
        message: String,
        first_timestamp: String,
        last_timestamp: String,
        event_time: String,
        series: Series,
    }
    Series { last_observed_time: String }

    Attachment { metadata: Meta, spec: AttachmentSpec, status: AttachmentStatus }
    AttachmentSpec { node_name: String, source: AttachmentSource }
    AttachmentSource { persistent_volume_name: String }
    AttachmentStatus { attached: bool, attach_error: Option<Complaint>, detach_error: Option<Complaint> }
    Complaint { message: String, time: String }

    CsiNode { metadata: Meta, spec: CsiNodeSpec }
    CsiNodeSpec { drivers: Vec<NodeDriver> }
    NodeDriver { name: String }
    /// That it is there is all that counts.
    CsiDriver {}

    Capacity {
        storage_class_name: String,
        capacity: String,
        maximum_volume_size: String,
        node_topology: Selector,
    }
    Selector { match_labels: Texts }

    Node { metadata: Meta, spec: NodeSpec, status: NodeStatus }
    NodeSpec { unschedulable: bool }
    NodeStatus { conditions: Vec<Condition> }

    Snapshot { metadata: Meta, status: SnapshotStatus }
    SnapshotStatus { ready_to_use: bool, error: Option<Complaint> }
}

impl Claim {
    /// Whether a reference names this claim: this one, and not an earlier one of its name.
    pub(super) fn is_meant(&self, by: &Reference) -> bool {
        self.has_name(by) && (by.uid.is_empty() || by.uid == self.metadata.uid)
    }

    /// Whether a reference names a claim of this name, this one or another.
    pub(super) fn has_name(&self, by: &Reference) -> bool {
        by.namespace == self.metadata.namespace && by.name == self.metadata.name
    }
}

impl Volume {
    /// Whether it is kept from an earlier claim of this one's name.
    pub(super) fn is_kept_from_before(&self, claim: &Claim) -> bool {
        let of = self.spec.claim_ref.as_ref();
        self.status.phase == "Released"
            && self.spec.persistent_volume_reclaim_policy == "Retain"
            && of.is_some_and(|of| claim.has_name(of) && !claim.is_meant(of))
    }
}

impl Pod {
    /// Whether one of its volumes is this claim; a generic ephemeral one is called after pod and volume.
    pub(super) fn uses(&self, claim: &str) -> bool {
        self.spec.volumes.iter().any(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(used), _) => used.claim_name == claim,
            (None, Some(_)) => format!("{}-{}", self.metadata.name, volume.name) == claim,
            (None, None) => false,
        })
    }

    /// The claims it uses.
    pub(super) fn claims(&self) -> Vec<String> {
        let named = |volume: &PodVolume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(used), _) => Some(used.claim_name.clone()),
            (None, Some(_)) => Some(format!("{}-{}", self.metadata.name, volume.name)),
            (None, None) => None,
        };
        self.spec.volumes.iter().filter_map(named).collect()
    }

    /// It has ended, and uses nothing any more.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }
}

impl Event {
    /// When it was last seen.
    pub(super) fn time(&self) -> &str {
        let times = [&self.series.last_observed_time, &self.last_timestamp, &self.event_time, &self.first_timestamp];
        times.into_iter().find(|time| !time.is_empty()).map_or("", String::as_str)
    }

    /// When it was first seen.
    pub(super) fn began(&self) -> &str {
        let times = [&self.first_timestamp, &self.event_time, &self.last_timestamp];
        times.into_iter().find(|time| !time.is_empty()).map_or("", String::as_str)
    }
}

/// A list's items.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub(super) struct List<T> {
    #[serde(default = "Vec::new", deserialize_with = "nullable")]
    pub(super) items: Vec<T>,
    #[serde(default)]
    pub(super) metadata: ListMeta,
}

/// How a list goes on.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ListMeta {
    #[serde(default)]
    pub(super) r#continue: Option<String>,
}

/// Bytes of a Kubernetes quantity of storage; `None` for one that is none.
pub(super) fn bytes(quantity: &str) -> Option<u64> {
    let digits = quantity.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, suffix) = quantity.split_at(digits);
    let factor: u64 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u64.pow(2),
        "G" => 1000_u64.pow(3),
        "T" => 1000_u64.pow(4),
        "P" => 1000_u64.pow(5),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        _ => return None,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    let tenths: u64 = if part.is_empty() { 0 } else { part.get(..1)?.parse().ok()? };
    whole.checked_mul(factor)?.checked_add(factor / 10 * tenths)
}
