//! The facts about one claim at one moment: the input of the rules.

use holdfast::registry::Nodes;

use super::objects::{Attachment, Capacity, Claim, Class, CsiDriver, CsiNode, Event, Node, Pod, Snapshot, Volume};

/// One requested object.
#[derive(Clone, Debug, Default)]
pub(super) enum Found<T> {
    /// It exists.
    Yes(T),
    /// It does not exist.
    No,
    /// It could not be read, or was not requested.
    #[default]
    Unknown,
}

impl<T> Found<T> {
    /// The object, if it exists.
    pub(super) fn get(&self) -> Option<&T> {
        match self {
            Self::Yes(object) => Some(object),
            Self::No | Self::Unknown => None,
        }
    }

    /// Whether it certainly does not exist.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::No)
    }
}

/// A list is `None` if it could not be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) claim: Found<Claim>,
    pub(super) classes: Option<Vec<Class>>,
    pub(super) volume: Found<Volume>,
    /// The volume in the request, if it named a volume and not a claim.
    pub(super) asked: Option<Volume>,
    /// Volumes that are retained from earlier claims with this name.
    pub(super) released: Option<Vec<Volume>>,
    /// Pods that use the claim.
    pub(super) pods: Option<Vec<Pod>>,
    /// The events of the claim and those pods.
    pub(super) events: Option<Vec<Event>>,
    /// The attachments of the volume.
    pub(super) attachments: Option<Vec<Attachment>>,
    pub(super) driver: Found<CsiDriver>,
    pub(super) csi_nodes: Option<Vec<CsiNode>>,
    pub(super) capacities: Option<Vec<Capacity>>,
    pub(super) nodes: Option<Vec<Node>>,
    /// The source snapshot of the claim.
    pub(super) snapshot: Found<Snapshot>,
    /// The source claim of a clone.
    pub(super) cloned: Found<Claim>,
    /// The nodes and pools, from the controller.
    pub(super) homes: Option<Nodes>,
    /// The requests that failed, a sentence each.
    pub(super) unasked: Vec<String>,
}
