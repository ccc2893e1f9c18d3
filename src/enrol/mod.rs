//! Certificate issuance without files: the controllers share a CA and issue certificates to nodes over the network (TLS
//! mode `auto`).
//!
//! [`Keeper`] is the controller's side of the CA: created once, read again, its certificate published, the controller's
//! own certificate signed with it in memory. [`EnrolService`] issues certificates to nodes. [`Enrolling`] is the node's
//! side: the key never leaves the node, and key and certificate are on its disk ([`Kept`]), so that it starts without a
//! controller.
//!
//! Invariants:
//! - A node's identity follows from the API server's review of its token ([`rules`]), and from nothing that the node
//!   sends.
//! - A controller never replaces an existing CA: it creates one only where there is none.
//! - No log line, error or Debug output contains a token or a key.

mod enrolling;
mod keeper;
mod kept;
pub mod proto;
pub mod rules;
mod service;
#[cfg(test)]
mod tests;
mod trying;
#[cfg(test)]
mod wire;

pub use enrolling::{DialEnrol, Enrolling};
pub use keeper::{Keeper, Signing};
pub use kept::Kept;
pub use rules::{AUDIENCE, Review, Tokens, Vault};
pub use service::{EnrolService, MOST_MESSAGE};
