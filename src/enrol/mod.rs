//! Certificates without files: the controllers hold a CA in common and certify nodes over the wire (TLS mode `auto`).
//!
//! [`Keeper`] is the controller's side of the CA: made once, read again, its certificate published, the controller's own
//! certificate signed from it in memory. [`EnrolService`] certifies nodes. [`Enrolling`] is a node's side: its key never
//! leaves it, and key and certificate are on its disk ([`Kept`]), so that it starts without a controller.
//!
//! Invariants:
//! - Who a node is follows from what the API server says of its token ([`rules`]) and from nothing that the node says.
//! - The CA that is there is never replaced by a controller: who makes one makes it only where there is none.
//! - Neither token nor key is in a log, an error or a Debug.

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
