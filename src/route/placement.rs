//! Placement of a new volume (docs/design.md section 11): a pure function of the CO's request and the home nodes'
//! topology.

use std::collections::BTreeMap;
use std::fmt;

use crate::types::{Access, Error, Kind, NodeId, Placement, Result};

/// The topology key whose value is a node's id.
pub const NODE_KEY: &str = "csi.holdfast.storage/node";
/// The topology key whose value names the storage network a node is on.
pub const FABRIC_KEY: &str = "csi.holdfast.storage/fabric";
/// The value of [`FABRIC_KEY`] on a node without one.
pub const NO_FABRIC: &str = "none";

/// Segments of a CSI Topology: a node matches when it has all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments(BTreeMap<String, String>);

impl Segments {
    /// The segments of a request, as they are.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(pairs.into_iter().collect())
    }

    /// All segments of a node.
    #[must_use]
    pub fn of_node(node: &NodeId, fabric: &str) -> Self {
        Self::new([(NODE_KEY.to_owned(), node.to_string()), (FABRIC_KEY.to_owned(), fabric.to_owned())])
    }

    /// The one segment that says which node can use a local volume of this home node.
    #[must_use]
    pub fn of_local_volume(home: &NodeId) -> Self {
        Self::new([(NODE_KEY.to_owned(), home.to_string())])
    }

    /// The one segment that says which nodes can use a network volume of a home node on this fabric.
    #[must_use]
    pub fn of_network_volume(fabric: &str) -> Self {
        Self::new([(FABRIC_KEY.to_owned(), fabric.to_owned())])
    }

    /// The fabric, unless it is [`NO_FABRIC`].
    #[must_use]
    pub fn fabric(&self) -> Option<&str> {
        let found = self.iter().find(|(key, _)| key.eq_ignore_ascii_case(FABRIC_KEY));
        found.map(|(_, fabric)| fabric).filter(|fabric| *fabric != NO_FABRIC)
    }

    /// The same without the node: where a volume may be that is used over the network.
    #[must_use]
    pub fn beyond_node(&self) -> Self {
        Self::new(
            self.iter()
                .filter(|(key, _)| !key.eq_ignore_ascii_case(NODE_KEY))
                .map(|(k, v)| (k.to_owned(), v.to_owned())),
        )
    }

    /// The pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether a node with the segments of `seat` is in this topology. CSI compares keys case-insensitively.
    #[must_use]
    pub fn covers(&self, seat: &Self) -> bool {
        self.iter().all(|(key, value)| seat.iter().any(|(k, v)| k.eq_ignore_ascii_case(key) && v == value))
    }
}

impl fmt::Display for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<_> = self.iter().map(|(key, value)| format!("{key}={value}")).collect();
        f.write_str(&pairs.join(","))
    }
}

/// CSI's TopologyRequirement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirement {
    /// The volume must be usable from one of these; empty: from anywhere.
    pub requisite: Vec<Segments>,
    /// Preferred ones, in this order.
    pub preferred: Vec<Segments>,
}

impl Requirement {
    /// Whether a volume may be on a node with these segments. A network volume may also be on another node of a fabric
    /// that is allowed; on a node without a fabric it cannot be.
    #[must_use]
    pub fn allows(&self, seat: &Segments, access: Access) -> bool {
        match access {
            Access::Local => self.requisite.is_empty() || self.requisite.iter().any(|topology| topology.covers(seat)),
            Access::Network => {
                let reaches = |topology: &Segments| topology.beyond_node().covers(seat);
                seat.fabric().is_some() && (self.requisite.is_empty() || self.requisite.iter().any(reaches))
            }
        }
    }
}

/// A home node and its topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The node.
    pub node: NodeId,
    /// Its segments.
    pub segments: Segments,
}

/// The home nodes to try for a new volume, in order; never empty.
///
/// - A clone or restore goes to the home node of its source, whatever is preferred.
/// - A blank volume goes to the first preferred topology only, or with `placement: any` to each of them in that order,
///   then to the rest of the requisite ones.
/// - With requisite topologies only: to the first with enough space.
/// - Without any topology: to the node that serves the call.
/// - A network volume goes to a preferred node itself if it has a pool; otherwise, or when that has no space, to any
///   node of its fabric.
///
/// # Errors
/// `NoCapacity` when none fits: the CO then chooses another node.
pub fn place(
    requirement: &Requirement,
    seats: &[Seat],
    (placement, access): (Placement, Access),
    source: Option<&NodeId>,
    serving: Option<&NodeId>,
) -> Result<Vec<NodeId>> {
    let allowed = || seats.iter().filter(|seat| requirement.allows(&seat.segments, access));
    if let Some(home) = source {
        return if allowed().any(|seat| seat.node == *home) {
            Ok(vec![home.clone()])
        } else {
            Err(no_room(format!(
                "the source is on node {home}, where the copy must be created, and the request does not allow that \
                 node{}; use a StorageClass with volumeBindingMode: WaitForFirstConsumer and no allowedTopologies that \
                 exclude the node",
                match access {
                    Access::Local => "",
                    Access::Network => " or its fabric",
                }
            )))
        };
    }
    let mut chosen: Vec<NodeId> = Vec::new();
    let mut choose = |seat: &Seat| {
        if !chosen.contains(&seat.node) {
            chosen.push(seat.node.clone());
        }
    };
    match (requirement.preferred.as_slice(), placement) {
        (preferred, _) if access == Access::Network => {
            // Data beside its pod where that is possible.
            let wanted = if preferred.is_empty() { requirement.requisite.as_slice() } else { preferred };
            match wanted.first() {
                Some(first) => {
                    allowed().filter(|seat| first.covers(&seat.segments)).for_each(&mut choose);
                    let fabric = first.beyond_node();
                    allowed().filter(|seat| fabric.covers(&seat.segments)).for_each(&mut choose);
                }
                None => allowed().filter(|seat| serving == Some(&seat.node)).for_each(&mut choose),
            }
            for topology in wanted {
                allowed().filter(|seat| topology.covers(&seat.segments)).for_each(&mut choose);
            }
            allowed().for_each(&mut choose);
        }
        ([first, ..], Placement::Selected) => {
            allowed().filter(|seat| first.covers(&seat.segments)).for_each(&mut choose);
            if chosen.is_empty() {
                return Err(no_room(format!(
                    "no node of the preferred topology {first} has a pool of this driver; let the scheduler choose \
                     another node, or set placement: any in the StorageClass"
                )));
            }
        }
        ([_, ..], Placement::Any) => {
            for topology in &requirement.preferred {
                allowed().filter(|seat| topology.covers(&seat.segments)).for_each(&mut choose);
            }
            allowed().for_each(&mut choose);
        }
        ([], _) if requirement.requisite.is_empty() => match serving {
            Some(node) => seats.iter().filter(|seat| seat.node == *node).for_each(&mut choose),
            None => seats.iter().for_each(&mut choose),
        },
        ([], _) => {
            for topology in &requirement.requisite {
                allowed().filter(|seat| topology.covers(&seat.segments)).for_each(&mut choose);
            }
        }
    }
    if chosen.is_empty() {
        let wanted: Vec<_> = requirement.requisite.iter().map(ToString::to_string).collect();
        let homes: Vec<_> = seats.iter().map(|seat| seat.node.as_str()).collect();
        return Err(no_room(format!(
            "no node that is allowed for the volume ([{}]) has a pool of this driver{}; pools are on [{}]; allow one \
             of these nodes",
            wanted.join("; "),
            match access {
                Access::Local => "",
                Access::Network => " and a fabric, as access: network needs (set --fabric on nodes with pools)",
            },
            homes.join(", ")
        )));
    }
    Ok(chosen)
}

fn no_room(message: String) -> Error {
    Error::new(Kind::NoCapacity, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn seat(name: &str) -> Seat {
        Seat { node: node(name), segments: Segments::of_node(&node(name), NO_FABRIC) }
    }

    fn at(names: &[&str]) -> Vec<Segments> {
        names.iter().map(|name| Segments::of_local_volume(&node(name))).collect()
    }

    fn names(nodes: &Result<Vec<NodeId>>) -> String {
        match nodes {
            Ok(nodes) => nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(","),
            Err(error) => format!("{:?}", error.kind()),
        }
    }

    #[test]
    fn the_table_of_placements() {
        use Placement::{Any, Selected};
        type Row<'a> = (&'a [&'a str], &'a [&'a str], Placement, Option<&'a str>, Option<&'a str>, &'a str);
        let rows: &[Row<'_>] = &[
            // requisite, preferred, placement, source, serving -> homes
            (&[], &[], Selected, None, Some("b"), "b"),
            (&[], &[], Selected, None, None, "a,b,c"),
            (&[], &[], Selected, None, Some("z"), "NoCapacity"),
            (&["b"], &[], Selected, None, Some("a"), "b"),
            (&["c", "z", "a"], &[], Selected, None, Some("b"), "c,a"),
            (&["z"], &[], Any, None, Some("a"), "NoCapacity"),
            // Not strict: the whole cluster is requisite, the selected node comes first among the preferred.
            (&["a", "b", "c"], &["b", "c", "a"], Selected, None, None, "b"),
            (&["a", "b", "c"], &["b", "c", "a"], Any, None, None, "b,c,a"),
            (&["a", "b", "z"], &["z", "b"], Selected, None, None, "NoCapacity"),
            (&["a", "b", "z"], &["z", "b"], Any, None, None, "b,a"),
            (&[], &["c"], Selected, None, Some("a"), "c"),
            (&[], &["c"], Any, None, Some("a"), "c,a,b"),
            (&["a"], &["b", "a"], Selected, None, None, "NoCapacity"),
            // A clone follows its source.
            (&["a", "b", "c"], &["b"], Selected, Some("c"), None, "c"),
            (&[], &[], Selected, Some("c"), Some("a"), "c"),
            (&["a"], &["a"], Any, Some("c"), None, "NoCapacity"),
        ];
        let seats = [seat("a"), seat("b"), seat("c")];
        for (requisite, preferred, placement, source, serving, expected) in rows {
            let requirement = Requirement { requisite: at(requisite), preferred: at(preferred) };
            let (source, serving) = (source.map(node), serving.map(node));
            let got = place(&requirement, &seats, (*placement, Access::Local), source.as_ref(), serving.as_ref());
            assert_eq!(names(&got), *expected, "{requisite:?} {preferred:?} {placement:?} {source:?} {serving:?}");
        }
    }

    #[test]
    fn a_network_volume_is_beside_its_pod_or_in_the_same_fabric() {
        let on = |name: &str, fabric: &str| Seat { node: node(name), segments: Segments::of_node(&node(name), fabric) };
        let seats = [on("a", "one"), on("b", "one"), on("c", "two"), on("d", NO_FABRIC)];
        // "e" and "f" have no pool.
        let all = [&seats[..], &[on("e", "one"), on("f", NO_FABRIC)]].concat();
        let of = |names: &str| -> Vec<Segments> {
            let named = |name: char| all.iter().find(|seat| seat.node.as_str() == name.to_string()).unwrap();
            names.chars().map(|name| named(name).segments.clone()).collect()
        };
        // requisite, preferred, source, serving -> homes
        let rows = [
            ("abcdef", "bacdef", None, None, "b,a,c"),
            ("abcdef", "eabcdf", None, None, "a,b,c"),
            ("abcdef", "dcbaef", None, None, "c,b,a"),
            ("e", "e", None, None, "a,b"),
            ("c", "c", None, None, "c"),
            ("d", "d", None, None, "NoCapacity"),
            ("f", "f", None, None, "NoCapacity"),
            ("ca", "", None, None, "c,a,b"),
            ("", "", None, Some("b"), "b,a,c"),
            ("", "", None, Some("d"), "a,b,c"),
            // A copy is where its source is, and is used from the same fabric.
            ("e", "e", Some("b"), None, "b"),
            ("c", "c", Some("b"), None, "NoCapacity"),
        ];
        for (requisite, preferred, source, serving, expected) in rows {
            let requirement = Requirement { requisite: of(requisite), preferred: of(preferred) };
            let (source, serving) = (source.map(node), serving.map(node));
            for placement in [Placement::Selected, Placement::Any] {
                let how = (placement, Access::Network);
                let got = place(&requirement, &seats, how, source.as_ref(), serving.as_ref());
                assert_eq!(names(&got), expected, "{requisite} {preferred} {source:?} {serving:?}");
            }
        }
        assert_eq!(Segments::of_network_volume("one"), seats[0].segments.beyond_node());
    }

    #[test]
    fn both_keys_must_fit_and_unknown_keys_fit_nowhere() {
        let here = seat("a").segments;
        assert!(here.covers(&here));
        assert!(Segments::new([("CSI.Holdfast.Storage/Node".into(), "a".into())]).covers(&here));
        assert!(!Segments::of_node(&node("a"), "rack-1").covers(&here));
        assert!(!Segments::new([("topology.kubernetes.io/zone".into(), "x".into())]).covers(&here));
    }

    proptest! {
        #[test]
        fn what_is_chosen_is_a_seat_that_is_allowed_and_comes_once(
            requisite in proptest::collection::vec("[a-e]", 0..4),
            preferred in proptest::collection::vec("[a-e]", 0..4),
            any: bool,
            source in proptest::option::of("[a-e]"),
        ) {
            let segments = |names: &[String]| at(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let requirement = Requirement { requisite: segments(&requisite), preferred: segments(&preferred) };
            let seats = [seat("a"), seat("b"), seat("c")];
            let placement = if any { Placement::Any } else { Placement::Selected };
            let source = source.as_deref().map(node);
            match place(&requirement, &seats, (placement, Access::Local), source.as_ref(), Some(&node("a"))) {
                Err(error) => prop_assert_eq!(error.kind(), Kind::NoCapacity),
                Ok(chosen) => {
                    prop_assert!(!chosen.is_empty());
                    for (i, home) in chosen.iter().enumerate() {
                        prop_assert!(seats.iter().any(|s| s.node == *home && requirement.allows(&s.segments, Access::Local)));
                        prop_assert!(!chosen.iter().skip(i + 1).any(|other| other == home));
                    }
                    if let Some(source) = &source {
                        prop_assert_eq!(&chosen, &vec![source.clone()]);
                    }
                }
            }
        }
    }
}
