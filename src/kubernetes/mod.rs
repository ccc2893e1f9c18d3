//! A plain client of the Kubernetes API server: single requests, no watches, no controllers.
//!
//! Holdfast does not need it outside Kubernetes: only flags enable it. Every request has a time limit ([`PATIENCE`]).
//! An error names the request and the next step, and never contains the content of a Secret.

mod client;
#[cfg(test)]
#[path = "../../tests/blackbox/harness/api_server.rs"]
pub(crate) mod double;
mod events;
#[cfg(test)]
mod tests;
mod tokens;
mod vault;

pub use client::{PATIENCE, ask, connect};
pub use events::{PodEvent, PodEvents, PodName};
pub use tokens::KubernetesTokens;
pub use vault::KubernetesVault;
