//! Everything that was gathered about one claim, at one moment: what the rules decide on.

use holdfast::registry::Nodes;

use super::objects::{Attachment, Capacity, Claim, Class, CsiDriver, CsiNode, Event, Node, Pod, Snapshot, Volume};

/// One object that was asked for.
#[derive(Clone, Debug, Default)]
pub(super) enum Found<T> {
    /// It is there.
    Yes(T),
    /// It is not.
    No,
    /// It could not be asked for, or nothing asked for it.
    #[default]
    Unknown,
}

impl<T> Found<T> {
    /// The object, if it is there.
    pub(super) fn get(&self) -> Option<&T> {
        match self {
            Self::Yes(object) => Some(object),
            Self::No | Self::Unknown => None,
        }
    }

    /// Whether it is known not to be there.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::No)
    }
}

/// Lists are `None` where they could not be asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) claim: Found<Claim>,
    pub(super) classes: Option<Vec<Class>>,
    pub(super) volume: Found<Volume>,
    /// The volume that was asked about, where it was not the claim.
    pub(super) asked: Option<Volume>,
    /// Volumes that are kept from earlier claims of this name.
    pub(super) released: Option<Vec<Volume>>,
    /// Pods that use the claim.
    pub(super) pods: Option<Vec<Pod>>,
    /// About the claim and those pods.
    pub(super) events: Option<Vec<Event>>,
    /// Of the volume.
    pub(super) attachments: Option<Vec<Attachment>>,
    pub(super) driver: Found<CsiDriver>,
    pub(super) csi_nodes: Option<Vec<CsiNode>>,
    pub(super) capacities: Option<Vec<Capacity>>,
    pub(super) nodes: Option<Vec<Node>>,
    /// What the claim is restored from.
    pub(super) snapshot: Found<Snapshot>,
    /// What the claim is cloned from.
    pub(super) cloned: Found<Claim>,
    /// What the controller knows.
    pub(super) homes: Option<Nodes>,
    /// What could not be asked, a sentence each.
    pub(super) unasked: Vec<String>,
}
