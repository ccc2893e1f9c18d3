//! The API server of Kubernetes, asked as a plain client: single requests, no watches, no controllers.
//!
//! Nothing here is needed where Holdfast runs without Kubernetes: who uses it was told to by a flag. Every request has an
//! end in time ([`PATIENCE`]), and an error says what was asked for and what to do; the content of a Secret is in none.

mod client;
#[cfg(test)]
#[path = "../../tests/blackbox/harness/api_server.rs"]
pub(crate) mod double;
#[cfg(test)]
mod tests;
mod tokens;
mod vault;

pub use client::{ObjectName, PATIENCE, ask, connect};
pub use tokens::KubernetesTokens;
pub use vault::KubernetesVault;
