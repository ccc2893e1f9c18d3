//! CAs: whom they certified is believed.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};

use super::certificate::{Certificate, date};
use super::material::{VERSIONS, alpn, unsupported};
use super::pem;
use super::role::RoleName;
use super::verify::{Seen, Verifier};
use crate::os::Timestamp;
use crate::types::{Error, Kind, Result};

/// CAs by which a server is believed, for who has no certificate of its own (yet).
#[derive(Clone)]
pub struct Trust {
    provider: Arc<CryptoProvider>,
    servers: Arc<dyn ServerCertVerifier>,
}

impl Trust {
    /// The CAs of a text in PEM; `place` is what messages call it.
    ///
    /// # Errors
    /// `Precondition` when it holds no CA that is still good.
    pub fn read(text: &[u8], place: &Path) -> Result<Self> {
        let roots = roots(text, place, Timestamp::now().seconds(), &mut Vec::new())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let servers = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let servers = servers.build().map_err(|error| {
            Error::new(Kind::Precondition, format!("{} cannot be used", place.display())).because(error)
        })?;
        Ok(Self { provider, servers })
    }

    /// To make one connection with to a server of that role, showing nothing, and what will be seen in it.
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

/// The CAs of a text; those that have expired are left out and remarked.
pub(super) fn roots(text: &[u8], place: &Path, now: i64, remarks: &mut Vec<String>) -> Result<RootCertStore> {
    let wrong = |why: &str, next: &str| Error::new(Kind::Precondition, format!("{}: {why}; {next}", place.display()));
    let name = place.file_name().unwrap_or(place.as_os_str()).display();
    let mut roots = RootCertStore::empty();
    let mut last = None;
    for der in pem::certificates(text).map_err(|why| wrong(why, "write the CA's certificate there"))? {
        let ca =
            Certificate::read(&der).map_err(|error| wrong(&error.to_string(), "write the CA's certificate there"))?;
        if ca.not_after < now {
            last = Some(ca.not_after);
            remarks.push(format!("a CA in {name} expired on {} and is left out", date(ca.not_after)));
            continue;
        }
        roots.add(der).map_err(|_| wrong("a certificate in it cannot be a CA", "write CAs only there"))?;
    }
    match last {
        Some(last) if roots.is_empty() => {
            let why = format!("every CA in it has expired, the last on {}", date(last));
            Err(wrong(&why, "make a new CA and issue all certificates anew"))
        }
        _ => Ok(roots),
    }
}
