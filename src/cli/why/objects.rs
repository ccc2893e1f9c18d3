//! The Kubernetes objects around a claim, with the fields that the rules use. Parsed from answers of the API server; a
//! missing field is empty.

use std::collections::BTreeMap;

use holdfast::types::Bytes;
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
    /// The metadata of every object.
    Meta {
        name: String,
        namespace: String,
        uid: String,
        annotations: Texts,
        finalizers: Vec<String>,
        creation_timestamp: String,
        deletion_timestamp: String,
    }
    /// A reference to another object.
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
    VolumeSpec {
        csi: Option<Csi>,
        claim_ref: Option<Reference>,
        persistent_volume_reclaim_policy: String,
        node_affinity: Affinity,
    }
    Affinity { required: Terms }
    Terms { node_selector_terms: Vec<Term> }
    Term { match_expressions: Vec<Expression> }
    Expression { key: String, operator: String, values: Vec<String> }
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
    /// Only its existence matters.
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
    /// Whether a reference means this claim, and not an earlier one with its name.
    pub(super) fn is_meant(&self, by: &Reference) -> bool {
        self.has_name(by) && (by.uid.is_empty() || by.uid == self.metadata.uid)
    }

    /// Whether a reference has the name of this claim, whatever its uid.
    pub(super) fn has_name(&self, by: &Reference) -> bool {
        by.namespace == self.metadata.namespace && by.name == self.metadata.name
    }
}

impl Volume {
    /// The nodes to which its node affinity ties its pods, by this topology key; empty if there is none.
    pub(super) fn nodes(&self, key: &str) -> Vec<&str> {
        let terms = self.spec.node_affinity.required.node_selector_terms.iter();
        let tied = terms.flat_map(|term| &term.match_expressions).filter(|one| one.key == key && one.operator == "In");
        tied.flat_map(|one| one.values.iter().map(String::as_str)).collect()
    }

    /// Whether it is retained from an earlier claim with the name of this one.
    pub(super) fn is_kept_from_before(&self, claim: &Claim) -> bool {
        let of = self.spec.claim_ref.as_ref();
        self.status.phase == "Released"
            && self.spec.persistent_volume_reclaim_policy == "Retain"
            && of.is_some_and(|of| claim.has_name(of) && !claim.is_meant(of))
    }
}

impl Pod {
    /// Whether one of its volumes is this claim; a generic ephemeral volume is named after pod and volume.
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

    /// Whether it has ended and no longer uses its volumes.
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

/// The items of a list.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub(super) struct List<T> {
    #[serde(default = "Vec::new", deserialize_with = "nullable")]
    pub(super) items: Vec<T>,
    #[serde(default)]
    pub(super) metadata: ListMeta,
}

/// The continuation of a list.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ListMeta {
    #[serde(default)]
    pub(super) r#continue: Option<String>,
}

/// The bytes of a Kubernetes storage quantity; `None` if it is invalid.
pub(super) fn bytes(quantity: &str) -> Option<u64> {
    /// The number of decimal places that count: more do not change a byte, even of an exabyte.
    const DIGITS: usize = 18;
    let digits = quantity.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, suffix) = quantity.split_at(digits);
    let thousands = |exponent: u32| 1000_u128.pow(exponent);
    // Factor and divisor: a quantity may be in thousandths.
    let (factor, divisor): (u128, u128) = match suffix {
        "" => (1, 1),
        "n" => (1, thousands(3)),
        "u" => (1, thousands(2)),
        "m" => (1, thousands(1)),
        "k" => (thousands(1), 1),
        "M" => (thousands(2), 1),
        "G" => (thousands(3), 1),
        "T" => (thousands(4), 1),
        "P" => (thousands(5), 1),
        "E" => (thousands(6), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?;
            let power = 10_u128.pow(exponent.trim_start_matches(['+', '-']).parse().ok().filter(|power| *power <= 18)?);
            if exponent.starts_with('-') { (1, power) } else { (power, 1) }
        }
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && part.is_empty() || part.contains('.') {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    let part = part.get(..part.len().min(DIGITS))?;
    let scale = 10_u128.pow(u32::try_from(part.len()).ok()?);
    let number = digits(whole)?.checked_mul(scale)?.checked_add(digits(part)?)?;
    // Rounded up, as Kubernetes does.
    let bytes = number.checked_mul(factor)?.div_ceil(scale.checked_mul(divisor)?);
    Some(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// A quantity for people: plain bytes with their size in units, others unchanged.
pub(super) fn shown(quantity: &str) -> String {
    match bytes(quantity) {
        Some(size) if quantity.bytes().all(|byte| byte.is_ascii_digit()) && size >= 1 << 10 => {
            format!("{quantity} bytes ({})", Bytes::new(size))
        }
        _ => quantity.to_owned(),
    }
}
