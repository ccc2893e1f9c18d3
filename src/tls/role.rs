//! Roles, their names in certificates, and the identity of a peer.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use http::Extensions;

use crate::types::{Error, Kind, NodeId, Result};
use crate::wire::{self, UnauthenticatedClient};

/// Every name of a role is below this DNS name; other names are ignored.
const DOMAIN: &str = "csi.holdfast.storage";
/// Nodes whose id is not a DNS name are named below this, by so many hex digits of a SHA-256.
const HASHED: &str = ".hashed-node";
const HASH_DIGITS: usize = 40;

/// The role of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// `holdfast controller`: may call every home.
    Controller,
    /// `holdfast node` of that node: a home, and a user of the volumes attached to it.
    Node(NodeId),
    /// An operator at the command line.
    Operator,
}

impl Role {
    /// The name in its certificate.
    #[must_use]
    pub fn name(&self) -> RoleName {
        RoleName(match self {
            Self::Controller => format!("controller.{DOMAIN}"),
            Self::Operator => format!("operator.{DOMAIN}"),
            Self::Node(id) if is_dns_name(id.as_str()) => format!("{id}.node.{DOMAIN}"),
            Self::Node(id) => {
                let digest = ring::digest::digest(&ring::digest::SHA256, id.as_str().as_bytes());
                let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{}{HASHED}.{DOMAIN}", hex.get(..HASH_DIGITS).unwrap_or(&hex))
            }
        })
    }
}

/// As the command line writes it: `controller`, `node:NAME` or `operator`.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("controller"),
            Self::Node(id) => write!(f, "node:{id}"),
            Self::Operator => f.write_str("operator"),
        }
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            None if text == "controller" => Ok(Self::Controller),
            None if text == "operator" => Ok(Self::Operator),
            Some(("node", name)) => Ok(Self::Node(NodeId::from_node_name(name)?)),
            _ => Err(Error::new(
                Kind::InvalidArgument,
                format!("{text:?} is not a role; use controller, node:NAME or operator"),
            )),
        }
    }
}

/// Lower-case labels of letters, digits and inner hyphens. A [`NodeId`] is at most 63 bytes, so no label is too long.
/// Two ids never have the same name: DNS ignores case, so an id with capitals is not a DNS name here.
fn is_dns_name(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.split('.').all(|label| {
        let mut bytes = label.bytes();
        label.bytes().all(|byte| byte == b'-' || edge(Some(byte)))
            && edge(bytes.next())
            && edge(label.bytes().next_back())
    })
}

/// The name of a role in certificates, one DNS name of the SAN. Roles are compared by it: a hashed node name cannot be
/// reversed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleName(String);

impl RoleName {
    /// The DNS name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a DNS name is in our domain, where every name must be that of a role.
    pub(super) fn is_ours(name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        name == DOMAIN || name.strip_suffix(DOMAIN).is_some_and(|rest| rest.ends_with('.'))
    }

    /// The role name in a DNS name; `None` when there is none.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let rest = name.strip_suffix(DOMAIN)?.strip_suffix('.')?;
        let good = match rest {
            "controller" | "operator" => true,
            _ => match (rest.strip_suffix(HASHED), rest.strip_suffix(".node")) {
                (Some(hash), _) => {
                    hash.len() == HASH_DIGITS && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
                }
                (None, Some(id)) => id.len() <= 63 && is_dns_name(id),
                (None, None) => false,
            },
        };
        good.then_some(Self(name))
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A connection as its requests show it: the peer, and a way to close it.
#[derive(Clone, Debug)]
pub struct Link {
    /// The peer.
    pub peer: Peer,
    /// The connection.
    pub connection: Arc<wire::Peer>,
}

/// The peer of a connection. A server finds it in the extensions of each request ([`Peer::of`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Its certificate was verified and is of this role.
    Verified(RoleName),
    /// Plain text, for tests: its identity is unknown, and it may do everything.
    Unverified,
    /// On a port without client certificates: it may do nothing that requires a role.
    Anonymous(UnauthenticatedClient),
}

impl Peer {
    /// The peer of a request.
    ///
    /// # Errors
    /// `Denied` when the request did not come over an [`super::Incoming`]: there is no default identity.
    pub fn of(extensions: &Extensions) -> Result<&Self> {
        let linked = extensions.get::<Link>().map(|link| &link.peer);
        linked
            .or_else(|| extensions.get::<Self>())
            .ok_or_else(|| Error::new(Kind::Denied, "the caller is unknown; this call requires a verified connection"))
    }

    fn has(&self, role: &Role) -> bool {
        match self {
            Self::Verified(name) => *name == role.name(),
            Self::Unverified => true,
            Self::Anonymous(_) => false,
        }
    }

    /// Whether it has the permissions of a controller.
    #[must_use]
    pub fn is_controller(&self) -> bool {
        self.has(&Role::Controller)
    }

    /// Whether it has the permissions of this node.
    #[must_use]
    pub fn is_node(&self, id: &NodeId) -> bool {
        self.has(&Role::Node(id.clone()))
    }

    /// Whether it is a node, any node.
    #[must_use]
    pub fn is_some_node(&self) -> bool {
        match self {
            Self::Verified(_) => !self.is_controller() && !self.is_operator(),
            Self::Unverified => true,
            Self::Anonymous(_) => false,
        }
    }

    /// Whether it has the permissions of an operator.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.has(&Role::Operator)
    }

    /// Requires one of these roles; `what` names the call in the message.
    ///
    /// # Errors
    /// `Denied`, naming the caller and the permitted roles.
    pub fn require(&self, what: &str, roles: &[Role]) -> Result<()> {
        if roles.iter().any(|role| self.has(role)) {
            return Ok(());
        }
        let may: Vec<_> = roles.iter().map(|role| role.name().to_string()).collect();
        Err(Error::new(
            Kind::Denied,
            format!(
                "{what} is refused to {self}: it requires {}; check the certificate of the caller",
                may.join(" or ")
            ),
        ))
    }

    /// Requires a controller.
    ///
    /// # Errors
    /// `Denied`, naming the caller and the permitted roles.
    pub fn require_controller(&self, what: &str) -> Result<()> {
        self.require(what, &[Role::Controller])
    }

    /// Requires that node.
    ///
    /// # Errors
    /// `Denied`, naming the caller and the permitted roles.
    pub fn require_node(&self, what: &str, id: &NodeId) -> Result<()> {
        self.require(what, &[Role::Node(id.clone())])
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified(name) => name.fmt(f),
            Self::Unverified => f.write_str("an unverified peer"),
            Self::Anonymous(guest) => guest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(id: &str) -> Role {
        Role::Node(id.parse().unwrap())
    }

    #[test]
    fn names_say_the_role_and_ids_that_are_no_dns_names_are_hashed() {
        assert_eq!(Role::Controller.name().as_str(), "controller.csi.holdfast.storage");
        assert_eq!(node("rack-1.host7").name().as_str(), "rack-1.host7.node.csi.holdfast.storage");
        for id in ["Host7", "host_7", "a..b", "a-.b", "a.-b"] {
            let name = node(id).name();
            assert!(name.as_str().ends_with(".hashed-node.csi.holdfast.storage"), "{name}");
            assert_eq!(RoleName::parse(name.as_str()), Some(name));
        }
        assert_ne!(node("Host7").name(), node("host7").name());
        assert_ne!(node("Host7").name(), node("HOST7").name());
        // An id that looks like the hashed form of another is not that other node.
        let hashed = node("Host7").name();
        let label = hashed.as_str().split('.').next().unwrap();
        assert_ne!(node(label).name(), hashed);
        assert_ne!(node(&format!("{label}.hashed-node")).name(), hashed);
    }

    #[test]
    fn only_names_of_roles_are_read() {
        for name in [
            "csi.holdfast.storage",
            "*.node.csi.holdfast.storage",
            "*.csi.holdfast.storage",
            "node.csi.holdfast.storage",
            ".node.csi.holdfast.storage",
            "a_b.node.csi.holdfast.storage",
            "0123.hashed-node.csi.holdfast.storage",
            "admin.csi.holdfast.storage",
            "controller.csi.holdfast.storage.example.org",
            "xcsi.holdfast.storage",
            "",
        ] {
            assert_eq!(RoleName::parse(name), None, "{name}");
        }
        assert!(RoleName::is_ours("*.node.CSI.holdfast.storage") && !RoleName::is_ours("xcsi.holdfast.storage"));
        assert_eq!(RoleName::parse("Controller.csi.holdfast.STORAGE"), Some(Role::Controller.name()));
    }

    #[test]
    fn who_may_is_decided_by_the_name_alone() {
        let b = Peer::Verified(node("b").name());
        assert!(b.is_node(&"b".parse().unwrap()) && !b.is_node(&"c".parse().unwrap()));
        assert!(!b.is_controller() && !b.is_operator());
        let error = b.require_controller("Create").unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        for word in ["Create", "b.node.csi.holdfast.storage", "controller.csi.holdfast.storage"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        b.require("Open", &[Role::Controller, node("b")]).unwrap();
        assert_eq!(b.require_node("Open", &"c".parse().unwrap()).unwrap_err().kind(), Kind::Denied);
        assert_eq!(Peer::of(&Extensions::new()).unwrap_err().kind(), Kind::Denied);
        assert!(Peer::Unverified.is_controller() && Peer::Unverified.is_node(&"c".parse().unwrap()));
    }

    #[test]
    fn roles_are_written_as_they_are_read() {
        for text in ["controller", "operator", "node:host-7"] {
            assert_eq!(text.parse::<Role>().unwrap().to_string(), text);
        }
        for text in ["", "node", "node:", "admin", "Controller", "node:a b"] {
            assert_eq!(text.parse::<Role>().unwrap_err().kind(), Kind::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn who_shows_no_certificate_has_no_role() {
        let nobody = Peer::Anonymous(UnauthenticatedClient::new("10.0.0.1".parse().unwrap()));
        assert!(!nobody.is_controller() && !nobody.is_operator() && !nobody.is_node(&"b".parse().unwrap()));
        let error = nobody.require("it", &[Role::Controller, Role::Operator]).unwrap_err();
        assert!(error.kind() == Kind::Denied && error.to_string().contains("10.0.0.1"), "{error}");
    }

    proptest! {
        #[test]
        fn every_node_has_a_name_that_reads_back_as_itself_only(a in "[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?",
                                                                 b in "[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?") {
            let (one, other) = (node(&a).name(), node(&b).name());
            prop_assert_eq!(one == other, a == b);
            prop_assert!(RoleName::is_ours(one.as_str()));
            prop_assert_eq!(RoleName::parse(one.as_str()), Some(one));
        }
    }
}
