//! Who speaks to whom between daemons: mutual TLS 1.3, certificates from files, a small authority to make them.
//!
//! Used by what serves and calls homes, and by the command line; knows neither CSI nor what the calls mean.
//!
//! Invariants:
//! - Who a peer is follows from the one role name (SAN) in its verified certificate and from nothing else ([`Peer`]).
//! - A client accepts a server of exactly the role it wants to reach, a server any role: services authorise each call.
//! - A port that asks for no certificate gives its clients no role ([`Peer::Anonymous`]).
//! - Files are looked at when a handshake begins, never by a timer; what cannot be used never replaces what can.
//! - No key is in a log, an error or a Debug.
//!
//! It does not revoke: a certificate is good until it expires or its CA leaves `ca.crt`, and no connection lasts longer
//! than [`CONNECTION_AGE`] and a grace.

mod authority;
mod certificate;
mod client;
mod connection;
mod credentials;
mod directory;
mod material;
mod pem;
mod refusal;
mod role;
mod server;
#[cfg(test)]
mod tests;
mod trust;
mod verify;

pub use authority::{Authority, Issued, renewal_of, request, signing_request};
pub use client::Connector;
pub use connection::{CONNECTION_AGE, Connection};
pub use credentials::{Credentials, Holder};
pub use directory::write_directory;
pub use material::{CA, CERTIFICATE, KEY};
pub use role::{Link, Peer, Role, RoleName};
pub use server::Incoming;
pub use trust::Trust;
