//! The node that a token belongs to: the whole decision, without network or cluster.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::types::{NodeId, ObjectName, Result};

/// The audience that a token must have: the tokens that pods use for the API server are not accepted here.
pub const AUDIENCE: &str = "holdfast";
/// The claim with which the API server names the node of a bound token's pod (KEP-4193).
pub const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

/// The API server's review of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// Whether the token is valid.
    pub authenticated: bool,
    /// Why it is not valid, or why it cannot be reviewed.
    pub error: String,
    /// Those of the requested audiences that it has.
    pub audiences: Vec<String>,
    /// Its account, such as `system:serviceaccount:NAMESPACE:NAME`.
    pub account: String,
    /// Its other claims.
    pub claims: BTreeMap<String, Vec<String>>,
}

/// Reviews tokens.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// The review of a token for this audience. A token that is not valid is an answer, not an error.
    ///
    /// # Errors
    /// The token cannot be reviewed. No error contains the token.
    async fn review(&self, token: &str, audience: &str) -> Result<Review>;
}

/// The shared storage of the CA.
#[async_trait]
pub trait Vault: Send + Sync {
    /// The CA's certificates and key, PEM; `None` if there is none yet.
    ///
    /// # Errors
    /// It cannot be read, or is not a CA.
    async fn read(&self) -> Result<Option<CaText>>;

    /// Stores the first CA; false if there is one already, which stays.
    ///
    /// # Errors
    /// It is unknown whether it was stored.
    async fn create(&self, ca: &CaText) -> Result<bool>;

    /// Publishes exactly these CAs to all readers; true when that is a change.
    ///
    /// # Errors
    /// They may not be published.
    async fn publish(&self, certificates: &str) -> Result<bool>;
}

/// A CA in PEM: its certificate first, perhaps other trusted ones after it, and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct CaText {
    /// `ca.crt`.
    pub certificates: String,
    /// `ca.key`.
    pub key: String,
}

impl std::fmt::Debug for CaText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaText").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

/// Why a node gets no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The label in the metric.
    pub reason: &'static str,
    /// The reason, a sentence.
    pub why: String,
}

/// The node that a token was created for: the token is valid, for our audience, of this account, and bound to exactly
/// one node.
///
/// # Errors
/// The first of these conditions that is not met.
pub fn node_of(review: &Review, account: &ObjectName) -> std::result::Result<NodeId, Denial> {
    let deny = |reason, why: String| Err(Denial { reason, why });
    if !review.authenticated {
        let said = if review.error.is_empty() { "" } else { ": " };
        return deny("unauthenticated", format!("the API server does not accept its token{said}{}", review.error));
    }
    if !review.audiences.iter().any(|audience| audience == AUDIENCE) {
        return deny("audience", format!("its token is not for the audience {AUDIENCE}"));
    }
    let expected = format!("system:serviceaccount:{}:{}", account.namespace(), account.name());
    if review.account != expected {
        return deny(
            "account",
            format!("its token belongs to {}, and the nodes' account is {expected}", review.account),
        );
    }
    let [name] = review.claims.get(NODE_CLAIM).map(Vec::as_slice).unwrap_or_default() else {
        let why =
            format!("its token names no node ({NODE_CLAIM}): it must be bound to a pod, by Kubernetes 1.32 or later");
        return deny("no_node", why);
    };
    NodeId::from_node_name(name).or_else(|error| deny("no_node", format!("its token names no node: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Review {
        Review {
            authenticated: true,
            error: String::new(),
            audiences: vec![AUDIENCE.to_owned()],
            account: "system:serviceaccount:ns:holdfast-node".to_owned(),
            claims: BTreeMap::from([(NODE_CLAIM.to_owned(), vec!["node-1".to_owned()])]),
        }
    }

    fn reason(change: impl Fn(&mut Review)) -> &'static str {
        let mut review = good();
        change(&mut review);
        let denial = node_of(&review, &"ns/holdfast-node".parse().unwrap()).unwrap_err();
        assert!(!denial.why.is_empty());
        denial.reason
    }

    #[test]
    fn a_node_is_whom_the_token_was_made_for() {
        assert_eq!(node_of(&good(), &"ns/holdfast-node".parse().unwrap()).unwrap().as_str(), "node-1");
        assert_eq!(reason(|review| review.authenticated = false), "unauthenticated");
        assert_eq!(reason(|review| review.audiences.clear()), "audience");
        assert_eq!(reason(|review| review.audiences = vec!["https://kubernetes.default.svc".into()]), "audience");
        for other in ["system:serviceaccount:other:holdfast-node", "system:serviceaccount:ns:default", "admin", ""] {
            assert_eq!(reason(|review| review.account = other.into()), "account", "{other}");
        }
        assert_eq!(reason(|review| review.claims.clear()), "no_node");
        // The last is the shortened form of a longer name: that node's id.
        let cut = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-0123456789abcdef";
        for names in [vec![], vec!["a", "b"], vec![""], vec!["a/b"], vec!["a b"], vec![cut]] {
            let names: Vec<_> = names.into_iter().map(str::to_owned).collect();
            assert_eq!(
                reason(|review| _ = review.claims.insert(NODE_CLAIM.into(), names.clone())),
                "no_node",
                "{names:?}"
            );
        }
        // A claim with another name does not count.
        assert_eq!(
            reason(|review| {
                let names = review.claims.remove(NODE_CLAIM).unwrap();
                review.claims.insert("example.org/node-name".into(), names);
            }),
            "no_node"
        );
    }
}
