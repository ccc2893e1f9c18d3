//! Names and handles (docs/design.md section 6). Once parsed, they are safe to use in a path.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Error, Kind, Result};

/// Namespace of volume uuids: UUIDv5 of the CO's name, so a retry of a create finds the volume of the first attempt.
const VOLUME_NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_2c0a_51be_4f63_9a0e_c51d_2b7e_4d01);
/// Namespace of snapshot uuids.
const SNAPSHOT_NAMESPACE: Uuid = Uuid::from_u128(0x6f1d_2c0a_51be_4f63_9a0e_c51d_2b7e_4d02);
/// The longest id that CSI allows, in bytes (spec: volume_id).
const MAX_HANDLE: usize = 128;

/// The uuid of a volume or snapshot inside its pool. It names a directory: exactly 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ObjectUuid(Uuid);

impl ObjectUuid {
    /// The uuid of the volume with the CO's name `name`.
    #[must_use]
    pub fn of_volume(name: &str) -> Self {
        Self(Uuid::new_v5(&VOLUME_NAMESPACE, name.as_bytes()))
    }

    /// The uuid of the snapshot with the CO's name `name`.
    #[must_use]
    pub fn of_snapshot(name: &str) -> Self {
        Self(Uuid::new_v5(&SNAPSHOT_NAMESPACE, name.as_bytes()))
    }

    /// Its 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for ObjectUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.as_simple())
    }
}

impl fmt::Debug for ObjectUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ObjectUuid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let malformed = || Error::new(Kind::NotFound, format!("{text:?} is not a uuid of 32 lower-case hex digits"));
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(malformed());
        }
        Uuid::parse_str(text).map(Self).map_err(|_| malformed())
    }
}

impl From<ObjectUuid> for String {
    fn from(uuid: ObjectUuid) -> Self {
        uuid.to_string()
    }
}

impl TryFrom<String> for ObjectUuid {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// The random id of a pool, 16 hex digits. It stays the same when the disks move to another node or path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PoolId(u64);

impl PoolId {
    /// A new random id, for a new pool.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4().as_u64_pair().0)
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PoolId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let well_formed = text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let value = if well_formed { u64::from_str_radix(text, 16).ok() } else { None };
        value
            .map(Self)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("{text:?} is not a pool id of 16 lower-case hex digits")))
    }
}

impl From<PoolId> for String {
    fn from(id: PoolId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for PoolId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// The name of a pool: 1 to 63 of `a-z 0-9 . -`, with a letter or digit at both ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PoolName(String);

impl PoolName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PoolName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let good =
            text.len() <= 63 && edge(text.bytes().next()) && edge(text.bytes().next_back()) && text.bytes().all(inside);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::new(
                Kind::InvalidArgument,
                format!(
                    "{text:?} is not a pool name: use 1 to 63 of a-z, 0-9, '-' and '.', with a letter or digit at both ends"
                ),
            ))
        }
    }
}

impl From<PoolName> for String {
    fn from(name: PoolName) -> Self {
        name.0
    }
}

impl TryFrom<String> for PoolName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// The CSI node id. It is also a topology value: at most 63 of `A-Z a-z 0-9 . - _`, alphanumeric at both ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NodeId(String);

impl NodeId {
    /// The id of the node `name`. A name over 63 characters becomes its first 40, `-`, and 16 hex digits of a hash.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] when the name is empty, cannot be a topology value, or has the form of a shortened
    /// name: it could be the id of another node.
    pub fn from_node_name(name: &str) -> Result<Self> {
        if is_cut(name) {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!(
                    "{name:?} cannot be a node's name: it has the form to which longer names are shortened (40 characters, '-', 16 hex digits); rename the node, or give its full name"
                ),
            ));
        }
        if name.len() <= 63 || !name.is_ascii() {
            return name.parse();
        }
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_DNS, name.as_bytes()).as_u64_pair().0;
        let (head, _) = name.split_at(40);
        format!("{head}-{hash:016x}").parse()
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a name has the form that [`NodeId::from_node_name`] gives longer ones.
fn is_cut(name: &str) -> bool {
    let hash = name.get(41..).unwrap_or_default();
    let is_hash = hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    is_hash && name.as_bytes().get(40) == Some(&b'-')
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        let good =
            text.len() <= 63 && edge(text.bytes().next()) && edge(text.bytes().next_back()) && text.bytes().all(inside);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::new(
                Kind::InvalidArgument,
                format!(
                    "{text:?} is not a node name: use letters, digits, '-', '_' and '.', with a letter or digit at both ends"
                ),
            ))
        }
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.0
    }
}

impl TryFrom<String> for NodeId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// The node on which a volume or snapshot was created: the last part of its handle, for people only. The object may be
/// served by another node now, after its disks moved. None where only pool and uuid are known, or where the last part of
/// a handle is not a node's name.
#[derive(Clone, Copy)]
struct BirthNode {
    length: u8,
    text: [u8; BirthNode::LONGEST],
}

impl BirthNode {
    /// The longest node id, in bytes.
    const LONGEST: usize = 63;
    const UNKNOWN: Self = Self { length: 0, text: [0; Self::LONGEST] };

    /// The part of a handle after its third `_`. Text from outside is printed only if it is a node's name.
    fn of_handle(part: &str) -> Self {
        part.parse().map_or(Self::UNKNOWN, |node| Self::of(&node))
    }

    fn of(node: &NodeId) -> Self {
        let mut known = Self::UNKNOWN;
        let name = node.as_str().as_bytes();
        // A node id fits. A longer one would be left out, not cut: a cut name is that of another node.
        if let (Some(text), Ok(length)) = (known.text.get_mut(..name.len()), u8::try_from(name.len())) {
            text.copy_from_slice(name);
            known.length = length;
        }
        known
    }

    fn as_str(&self) -> &str {
        let name = self.text.get(..usize::from(self.length)).unwrap_or_default();
        std::str::from_utf8(name).unwrap_or_default()
    }
}

/// The forms of ids that this release creates.
const FORMS: [&str; 2] = [VOLUME_FORM, SNAPSHOT_FORM];
const VOLUME_FORM: &str = "hf1_";
const SNAPSHOT_FORM: &str = "hfs1_";

/// Whether an id has a form that only a later release creates: `hf`, letters, a number and `_`. Its object may exist, so
/// no call may treat it as nonexistent.
fn of_a_later_release(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("hf") else { return false };
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let end = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    rest.len() > end.len() && end.starts_with('_') && !FORMS.iter().any(|form| text.starts_with(form))
}

/// The id in a call where an unknown id is not an error: `None` if it is not a handle of this driver.
///
/// # Errors
/// [`Kind::Unavailable`] for an id of a later release: this process cannot know whether its object exists.
pub fn id_of_ours<T: FromStr<Err = Error>>(text: &str) -> Result<Option<T>> {
    match text.parse() {
        Ok(id) => Ok(Some(id)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Splits a handle into its parts. The part after a third `_` identifies nothing; an invalid one is ignored.
fn parse_handle(text: &str, prefix: &str, noun: &str) -> Result<(PoolId, ObjectUuid, BirthNode)> {
    let unknown =
        || Error::new(Kind::NotFound, format!("{noun} {text:?} does not exist: it is not a handle of this driver"));
    if text.len() > MAX_HANDLE {
        return Err(Error::new(
            Kind::NotFound,
            format!("the {noun} does not exist: its id has {} bytes, and ids have at most {MAX_HANDLE}", text.len()),
        ));
    }
    if of_a_later_release(text) {
        return Err(Error::new(
            Kind::Unavailable,
            format!(
                "{noun} {text:?} has an id of a later release of Holdfast than this process ({}): nothing was changed; upgrade this process",
                env!("CARGO_PKG_VERSION")
            ),
        ));
    }
    let rest = text.strip_prefix(prefix).ok_or_else(unknown)?;
    let mut parts = rest.splitn(3, '_');
    match (parts.next(), parts.next()) {
        (Some(pool), Some(uuid)) => match (pool.parse(), uuid.parse()) {
            (Ok(pool), Ok(uuid)) => Ok((pool, uuid, parts.next().map_or(BirthNode::UNKNOWN, BirthNode::of_handle))),
            _ => Err(unknown()),
        },
        _ => Err(unknown()),
    }
}

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $prefix:ident, $noun:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name {
            /// Its pool.
            pub pool: PoolId,
            /// Its uuid there.
            pub uuid: ObjectUuid,
            birth: BirthNode,
        }

        impl $name {
            /// The identity alone: its handle is incomplete until [`Self::born_on`] adds the birth node.
            #[must_use]
            pub const fn new(pool: PoolId, uuid: ObjectUuid) -> Self {
                Self { pool, uuid, birth: BirthNode::UNKNOWN }
            }

            /// The identity alone, of a handle that may have a birth node.
            #[must_use]
            pub const fn without_birth_node(self) -> Self {
                Self::new(self.pool, self.uuid)
            }

            /// The same with its birth node, the node on which it was created.
            #[must_use]
            pub fn born_on(self, node: &NodeId) -> Self {
                Self { birth: BirthNode::of(node), ..self }
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                (self.pool, self.uuid) == (other.pool, other.uuid)
            }
        }

        impl Eq for $name {}

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                (self.pool, self.uuid).cmp(&(other.pool, other.uuid))
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                (self.pool, self.uuid).hash(state);
            }
        }

        /// The handle as the orchestrator has it; without its last part where the birth node is not known.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}_{}", $prefix, self.pool, self.uuid)?;
                match self.birth.as_str() {
                    "" => Ok(()),
                    node => write!(f, "_{node}"),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        /// An invalid id is an object that does not exist ([`Kind::NotFound`]), as csi-sanity and the specification
        /// require; an id of a later release is [`Kind::Unavailable`].
        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                let (pool, uuid, birth) = parse_handle(text, $prefix, $noun)?;
                Ok(Self { pool, uuid, birth })
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }
    };
}

handle!(
    /// A volume handle: `hf1_<pool id>_<uuid>[_<birth node>]`. Equality and order use pool and uuid only.
    VolumeId,
    VOLUME_FORM,
    "volume"
);
handle!(
    /// A snapshot handle: `hfs1_<pool id>_<uuid>[_<birth node>]`. Equality and order use pool and uuid only.
    SnapshotId,
    SNAPSHOT_FORM,
    "snapshot"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_handle_survives_the_round_trip_and_stays_short() {
        let short = VolumeId::new(PoolId(0xabc), ObjectUuid::of_volume("pvc-1"));
        for name in ["n".repeat(63), "node-1.example_org".to_owned(), "n".to_owned()] {
            let id = short.born_on(&name.parse().unwrap());
            let handle = id.to_string();
            assert!(handle.len() <= MAX_HANDLE && handle == format!("{short}_{name}"), "{handle}");
            assert_eq!(handle.parse::<VolumeId>().unwrap().to_string(), handle);
            let written = serde_json::to_string(&id).unwrap();
            assert_eq!(serde_json::from_str::<VolumeId>(&written).unwrap().to_string(), handle);
            assert!(handle.parse::<SnapshotId>().is_err());
        }
        assert_eq!(short.to_string().parse::<VolumeId>().unwrap().to_string(), short.to_string());
    }

    #[test]
    fn the_birth_node_identifies_nothing() {
        let (a, b) = (ObjectUuid::of_volume("a"), ObjectUuid::of_volume("b"));
        let id = VolumeId::new(PoolId(1), a);
        let [on_n, on_m] = ["n", "m"].map(|node| id.born_on(&node.parse().unwrap()));
        assert!(id == on_n && on_n == on_m && on_n.cmp(&on_m) == Ordering::Equal);
        assert!(std::collections::HashSet::from([id, on_n]).contains(&on_m));
        assert_ne!(on_n, VolumeId::new(PoolId(1), b).born_on(&"n".parse().unwrap()));
    }

    #[test]
    fn a_last_part_that_is_no_node_is_not_printed() {
        let id = VolumeId::new(PoolId(1), ObjectUuid::of_volume("a"));
        for part in ["", "\u{1b}[2J", "a b", "a\nb", "-a", "a-", "ä", "../x", &"n".repeat(64), "a/b"] {
            let read = format!("{id}_{part}").parse::<VolumeId>().unwrap();
            assert!(read == id && read.to_string() == id.to_string(), "{read}");
        }
    }

    #[test]
    fn what_is_no_handle_is_not_found() {
        for text in ["", "hf1_", "fake-vol-id", "hf1_0_0", "../../etc", &"x".repeat(1000)] {
            assert_eq!(text.parse::<VolumeId>().unwrap_err().kind(), Kind::NotFound, "{text}");
        }
    }

    #[test]
    fn an_id_of_a_later_release_is_never_taken_for_nothing() {
        for text in include_str!("fixtures/ids-of-a-later-release.txt").lines() {
            let said = [text.parse::<VolumeId>().unwrap_err(), text.parse::<SnapshotId>().unwrap_err()];
            for error in said {
                assert_eq!(error.kind(), Kind::Unavailable, "{text}");
                assert!(error.to_string().contains("later release") && error.to_string().contains(text), "{error}");
            }
            assert!(id_of_ours::<VolumeId>(text).is_err() && id_of_ours::<SnapshotId>(text).is_err());
        }
        for text in
            ["hf", "hf_", "hfs_1", "hfs", "hf1", "hf1_", "hfs1_0_0", "hff", "hf-2_x", "half2_x", "xhf2_y", "HF2_x"]
        {
            assert_eq!(text.parse::<VolumeId>().unwrap_err().kind(), Kind::NotFound, "{text}");
            assert_eq!(id_of_ours::<VolumeId>(text).unwrap(), None, "{text}");
        }
    }

    #[test]
    fn long_node_names_are_hashed_not_cut() {
        let (a, b) = ("a".repeat(100), format!("{}b", "a".repeat(99)));
        let (a, b) = (NodeId::from_node_name(&a).unwrap(), NodeId::from_node_name(&b).unwrap());
        assert_ne!(a, b);
        assert!(a.as_str().len() <= 63);
    }

    #[test]
    fn a_name_in_the_form_of_a_shortened_one_is_nobody_s() {
        let long = format!("{}.example.org", "node-".repeat(12));
        let id = NodeId::from_node_name(&long).unwrap();
        // The id itself parses; a node with that name could be confused with the node with the long name.
        assert_eq!(id.as_str().parse::<NodeId>().unwrap(), id);
        let error = NodeId::from_node_name(id.as_str()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("longer names are shortened"), "{error}");
        for good in [format!("{}-0123456789abcdeg", "a".repeat(40)), format!("{}-0123456789abcdef", "a".repeat(39))] {
            assert_eq!(NodeId::from_node_name(&good).unwrap().as_str(), good);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_name_that_leaves_its_room(text in ".{0,80}") {
            if let Ok(name) = text.parse::<PoolName>() {
                prop_assert!(!name.as_str().contains('/') && name.as_str() != "..");
            }
            if let Ok(id) = text.parse::<VolumeId>() {
                let dir = id.uuid.to_string();
                prop_assert!(dir.len() == 32 && dir.bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
    }
}
