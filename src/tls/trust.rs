//! Trusted CAs.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::ClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;

use super::material::{VERSIONS, alpn, unsupported};
use super::role::RoleName;
use super::roots::roots;
use super::verify::{Seen, Verifier};
use crate::os::Timestamp;
use crate::types::{Error, Kind, Result};

/// The CAs that a server's certificate must be issued by, for a process that has no certificate (yet).
#[derive(Clone)]
pub struct Trust {
    provider: Arc<CryptoProvider>,
    servers: Arc<dyn ServerCertVerifier>,
}

impl Trust {
    /// The CAs of a text in PEM; `place` is its name in messages.
    ///
    /// # Errors
    /// `Precondition` when it contains no CA that is still valid.
    pub fn read(text: &[u8], place: &Path) -> Result<Self> {
        let roots = roots(text, place, Timestamp::now().seconds(), &mut Vec::new())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let servers = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let servers = servers.build().map_err(|error| {
            Error::new(Kind::Precondition, format!("{} cannot be used", place.display())).because(error)
        })?;
        Ok(Self { provider, servers })
    }

    /// To make one connection without a certificate to a server of that role, and what the handshake will show.
    pub(super) fn client(&self, expected: &RoleName) -> Result<(ClientConfig, Arc<Mutex<Seen>>)> {
        let verifier = Arc::new(Verifier::new(Arc::clone(&self.servers), Some(expected.clone())));
        let seen = verifier.seen();
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(VERSIONS)
            .map_err(unsupported)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = alpn();
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        Ok((config, seen))
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}
