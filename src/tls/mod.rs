//! Mutual TLS 1.3 between daemons, with certificates from files, and a small authority that issues them.
//!
//! The servers and clients of homes and the command line use it; it knows neither CSI nor the meaning of the calls.
//!
//! Invariants:
//! - A peer's identity follows from the one role name (SAN) in its verified certificate and from nothing else
//!   ([`Peer`]).
//! - A client accepts only a server of exactly the expected role, a server any role: services authorise each call.
//! - A port without client certificates gives its clients no role ([`Peer::Anonymous`]).
//! - Files are checked when a handshake begins, never by a timer; an unusable certificate never replaces a usable one.
//! - No log line, error or Debug output contains a key.
//!
//! There is no revocation: a certificate is valid until it expires or its CA is removed from `ca.crt`, and no
//! connection lasts longer than [`CONNECTION_AGE`](crate::wire::CONNECTION_AGE) and a grace period.

mod authority;
mod certificate;
mod client;
mod connection;
mod credentials;
mod directory;
mod endpoints;
mod gate;
mod material;
mod pem;
mod places;
mod refusal;
mod role;
mod roots;
mod server;
#[cfg(test)]
mod tests;
mod trust;
mod verify;

pub use authority::{Authority, Issued, renewal_of, request, signing_request};
pub use client::Connector;
pub use connection::Connection;
pub use credentials::{Credentials, Holder};
pub use directory::write_directory;
pub use gate::{admit, allowance};
pub use material::{CA, CERTIFICATE, KEY};
pub use role::{Link, Peer, Role, RoleName};
pub use server::Incoming;
pub use trust::Trust;
