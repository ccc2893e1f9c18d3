//! Whose token it is: the whole decision, without a wire or a cluster.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::kubernetes::ObjectName;
use crate::types::{NodeId, Result};

/// The audience a token must have been made for: tokens that pods have for the API server are worth nothing here.
pub const AUDIENCE: &str = "holdfast";
/// Where the API server says which node the pod of a bound token runs on (KEP-4193).
pub const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

/// What the API server says of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Review {
    /// Whether it is good at all.
    pub authenticated: bool,
    /// Why it could not be looked at, or is not good.
    pub error: String,
    /// Those of the audiences asked for that it was made for.
    pub audiences: Vec<String>,
    /// Whose it is, such as `system:serviceaccount:NAMESPACE:NAME`.
    pub account: String,
    /// What else is known of it.
    pub claims: BTreeMap<String, Vec<String>>,
}

/// Who can say whose a token is.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// What there is to say of a token, asked for this audience. A token that is not good is an answer.
    ///
    /// # Errors
    /// Nobody could say. The token is in no error.
    async fn review(&self, token: &str, audience: &str) -> Result<Review>;
}

/// Where the CA is kept in common.
#[async_trait]
pub trait Vault: Send + Sync {
    /// The CA's certificates and key, PEM; `None` where there is none yet.
    ///
    /// # Errors
    /// It cannot be known, or what is there is no CA.
    async fn read(&self) -> Result<Option<CaText>>;

    /// Puts the first one there; false when there is one already, which stays.
    ///
    /// # Errors
    /// It is not known whether it is there.
    async fn create(&self, ca: &CaText) -> Result<bool>;

    /// Makes everybody who may know see exactly these CAs; true when they saw something else before.
    ///
    /// # Errors
    /// They may not see it.
    async fn publish(&self, certificates: &str) -> Result<bool>;
}

/// A CA in PEM: its certificate first, perhaps others that are trusted beside it, and its key.
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

/// Why a node is not certified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The outcome as it is counted.
    pub reason: &'static str,
    /// The sentence.
    pub why: String,
}

/// The node a token was made for: authenticated, for our audience, of this account, and bound to exactly one node.
///
/// # Errors
/// The first of these that does not hold.
pub fn node_of(review: &Review, account: &ObjectName) -> std::result::Result<NodeId, Denial> {
    let deny = |reason, why: String| Err(Denial { reason, why });
    if !review.authenticated {
        let said = if review.error.is_empty() { "" } else { ": " };
        return deny("unauthenticated", format!("the API server does not know its token{said}{}", review.error));
    }
    if !review.audiences.iter().any(|audience| audience == AUDIENCE) {
        return deny("audience", format!("its token is not for the audience {AUDIENCE}"));
    }
    let expected = format!("system:serviceaccount:{}:{}", account.namespace(), account.name());
    if review.account != expected {
        return deny("account", format!("its token is of {}, and nodes are {expected}", review.account));
    }
    let [name] = review.claims.get(NODE_CLAIM).map(Vec::as_slice).unwrap_or_default() else {
        let why =
            format!("its token names no node ({NODE_CLAIM}): it has to be bound to a pod, by Kubernetes 1.32 or later");
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
        // The last is how a longer name is shortened: that node's id.
        let cut = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-0123456789abcdef";
        for names in [vec![], vec!["a", "b"], vec![""], vec!["a/b"], vec!["a b"], vec![cut]] {
            let names: Vec<_> = names.into_iter().map(str::to_owned).collect();
            assert_eq!(
                reason(|review| _ = review.claims.insert(NODE_CLAIM.into(), names.clone())),
                "no_node",
                "{names:?}"
            );
        }
        // A claim of another name is none.
        assert_eq!(
            reason(|review| {
                let names = review.claims.remove(NODE_CLAIM).unwrap();
                review.claims.insert("example.org/node-name".into(), names);
            }),
            "no_node"
        );
    }
}
