//! Roles, the names certificates give them, and who is at the other end of a connection.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use http::Extensions;

use crate::types::{Error, Kind, NodeId, Result};
use crate::wire::{self, Guest};

/// Every name of a role lies below this DNS name; names outside it say nothing to us.
const DOMAIN: &str = "csi.holdfast.storage";
/// Where nodes whose id is not a DNS name have their names, as so many hex digits of a SHA-256.
const HASHED: &str = ".hashed-node";
const HASH_DIGITS: usize = 40;

/// What a process is to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// `holdfast controller`: may ask everything of every home.
    Controller,
    /// `holdfast node` of that node: a home, and a user of volumes granted to it.
    Node(NodeId),
    /// A person at the command line.
    Operator,
}

impl Role {
    /// The name its certificate has.
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

/// Lower-case labels of letters, digits and inner hyphens. A [`NodeId`] is at most 63 bytes, so no label is too long. Two
/// ids never have one name: DNS does not tell upper from lower case, so an id with capitals is none.
fn is_dns_name(text: &str) -> bool {
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.split('.').all(|label| {
        let mut bytes = label.bytes();
        label.bytes().all(|byte| byte == b'-' || edge(Some(byte)))
            && edge(bytes.next())
            && edge(label.bytes().next_back())
    })
}

/// The name of a role as certificates carry it, one DNS name of the SAN. Roles are compared by it: a hashed node name cannot
/// be turned back.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleName(String);

impl RoleName {
    /// The DNS name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a DNS name lies in the part of the name space that is ours, where every name must be a role's.
    pub(super) fn is_ours(name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        name == DOMAIN || name.strip_suffix(DOMAIN).is_some_and(|rest| rest.ends_with('.'))
    }

    /// The role's name that a certificate's DNS name is; `None` when it is none.
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

/// A connection as its requests show it: who is at the other end, and how it is closed.
#[derive(Clone, Debug)]
pub struct Link {
    /// Who.
    pub peer: Peer,
    /// The connection.
    pub connection: Arc<wire::Peer>,
}

/// Who is at the other end of a connection. A server finds it in the extensions of each request ([`Peer::of`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Its certificate was verified and is of this role.
    Verified(RoleName),
    /// Plain text, for tests: nothing is known of it, and it may do everything.
    Unverified,
    /// On a port that asks for no certificate: it may do nothing that a role is needed for.
    Anonymous(Guest),
}

impl Peer {
    /// Who made a request.
    ///
    /// # Errors
    /// `Denied` when the request did not come over an [`super::Incoming`]: nobody is taken for somebody by default.
    pub fn of(extensions: &Extensions) -> Result<&Self> {
        let linked = extensions.get::<Link>().map(|link| &link.peer);
        linked.or_else(|| extensions.get::<Self>()).ok_or_else(|| {
            Error::new(Kind::Denied, "nothing is known of who asks; this call needs a verified connection")
        })
    }

    fn has(&self, role: &Role) -> bool {
        match self {
            Self::Verified(name) => *name == role.name(),
            Self::Unverified => true,
            Self::Anonymous(_) => false,
        }
    }

    /// Whether it may do what a controller may.
    #[must_use]
    pub fn is_controller(&self) -> bool {
        self.has(&Role::Controller)
    }

    /// Whether it may do what this node may.
    #[must_use]
    pub fn is_node(&self, id: &NodeId) -> bool {
        self.has(&Role::Node(id.clone()))
    }

    /// Whether it is a node, whichever.
    #[must_use]
    pub fn is_some_node(&self) -> bool {
        match self {
            Self::Verified(_) => !self.is_controller() && !self.is_operator(),
            Self::Unverified => true,
            Self::Anonymous(_) => false,
        }
    }

    /// Whether it may do what an operator may.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.has(&Role::Operator)
    }

    /// Requires one of these roles; `what` names the call in the message.
    ///
    /// # Errors
    /// `Denied`, naming who asked and who may.
    pub fn require(&self, what: &str, roles: &[Role]) -> Result<()> {
        if roles.iter().any(|role| self.has(role)) {
            return Ok(());
        }
        let may: Vec<_> = roles.iter().map(|role| role.name().to_string()).collect();
        Err(Error::new(
            Kind::Denied,
            format!("{what} is refused to {self}: it is for {}; look at the certificate of who asks", may.join(" or ")),
        ))
    }

    /// Requires a controller.
    ///
    /// # Errors
    /// `Denied`, naming who asked and who may.
    pub fn require_controller(&self, what: &str) -> Result<()> {
        self.require(what, &[Role::Controller])
    }

    /// Requires that node.
    ///
    /// # Errors
    /// `Denied`, naming who asked and who may.
    pub fn require_node(&self, what: &str, id: &NodeId) -> Result<()> {
        self.require(what, &[Role::Node(id.clone())])
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified(name) => name.fmt(f),
            Self::Unverified => f.write_str("somebody unverified"),
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
        // An id that looks like the hashed form of another is not the other.
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
        let nobody = Peer::Anonymous(Guest::new("10.0.0.1".parse().unwrap()));
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
