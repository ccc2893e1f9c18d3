//! The certificate and CAs of a process: `ca.crt`, `tls.crt` and `tls.key` of one directory, as in a Secret of type
//! kubernetes.io/tls and as written by cert-manager.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};

use super::certificate::{Certificate, date};
use super::pem;
use super::role::{Role, RoleName};
use super::roots::roots;
use super::verify::{DIRECTLY, Seen, Verifier};
use crate::os::{FileVersion, Os, Timestamp};
use crate::types::{Error, Kind, OsContext, Result};

/// The trusted CAs: one, or several while a CA is replaced.
pub const CA: &str = "ca.crt";
/// Our certificate and its chain to a CA.
pub const CERTIFICATE: &str = "tls.crt";
/// Its private key.
pub const KEY: &str = "tls.key";

/// The protocol that both sides speak.
const ALPN: &[u8] = b"h2";
pub(super) const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// How often files that change while they are read are read again.
const TRIES: u32 = 3;

/// The versions of the three files, `None` for missing ones.
pub(super) type Versions = [Option<FileVersion>; 3];

/// Reads the versions of the files.
pub(super) fn versions(os: &Os, directory: &Path) -> Versions {
    // An error is reported when the file is read.
    [CA, CERTIFICATE, KEY].map(|name| os.version(&directory.join(name)).ok().flatten())
}

/// The protocol that both sides speak, for a configuration.
pub(super) fn alpn() -> Vec<Vec<u8>> {
    vec![ALPN.to_vec()]
}

/// The content of the three files.
pub(super) struct Parts {
    pub(super) ca: Vec<u8>,
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
}

/// Checked files, ready to make handshakes with.
pub(super) struct Material {
    /// Our role's name.
    pub(super) name: RoleName,
    /// When our certificate begins to be valid, in seconds since 1970.
    pub(super) not_before: i64,
    /// When our certificate expires, in seconds since 1970.
    pub(super) not_after: i64,
    /// Problems that do not prevent its use.
    pub(super) remarks: Vec<String>,
    /// Why a peer that trusts the same CAs would not accept our certificate, if so. Also in `remarks`.
    pub(super) unfit: Option<String>,
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<dyn ServerCertVerifier>,
}

impl Material {
    /// Reads and checks the files of a directory for a process of this role.
    ///
    /// # Errors
    /// `Precondition` naming the file, the problem and the next step; the message contains nothing of a key.
    pub(super) fn load(os: &Os, directory: &Path, role: &Role) -> Result<(Self, Versions)> {
        for _ in 0..TRIES {
            let before = versions(os, directory);
            let loaded = Self::load_once(os, directory, role, &before);
            if versions(os, directory) == before {
                return loaded.map(|loaded| (loaded, before));
            }
        }
        let place = directory.display();
        Err(Error::new(
            Kind::Precondition,
            format!("the certificate files in {place} keep changing while they are read; write them only once"),
        ))
    }

    fn load_once(os: &Os, directory: &Path, role: &Role, versions: &Versions) -> Result<Self> {
        let read = |name: &str| {
            let file = directory.join(name);
            let text = os.read(&file).at(|| format!("read {}", file.display()));
            text.map_err(|error| error.with_kind(Kind::Precondition))?.ok_or_else(|| {
                let next = "create the files with `holdfast ca issue`, or mount the Secret there";
                Error::new(Kind::Precondition, format!("{} does not exist; {next}", file.display()))
            })
        };
        let parts = Parts { ca: read(CA)?, certificate: read(CERTIFICATE)?, key: read(KEY)? };
        let mut made = Self::build(&parts, directory, role)?;
        if versions.last().copied().flatten().is_some_and(|version| version.readable_by_all()) {
            made.remarks.push(format!("{KEY} can be read by every user of this machine; chmod it to 0600 or 0640"));
        }
        Ok(made)
    }

    /// Checks the content; `place` is its location in messages.
    ///
    /// # Errors
    /// As [`Material::load`].
    pub(super) fn build(parts: &Parts, place: &Path, role: &Role) -> Result<Self> {
        let now = Timestamp::now().seconds();
        let wrong = |name: &str, why: &str, next: &str| {
            let file = place.join(name);
            Error::new(Kind::Precondition, format!("{}: {why}; {next}", file.display()))
        };
        let issue = format!("issue one for {role} (run `holdfast ca issue --role {role}`)");
        let mut remarks = Vec::new();

        let roots = roots(&parts.ca, &place.join(CA), now, &mut remarks)?;

        let chain = pem::certificates(&parts.certificate).map_err(|why| wrong(CERTIFICATE, why, &issue))?;
        let Some(own) = chain.first() else { return Err(wrong(CERTIFICATE, "the file is empty", &issue)) };
        let own = Certificate::read(own).map_err(|error| wrong(CERTIFICATE, &error.to_string(), &issue))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = pem::key(&parts.key).map_err(|why| wrong(KEY, why, "write the certificate's key there"))?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|_| wrong(KEY, "it is not a usable RSA, ECDSA or Ed25519 key", "issue another"))?;
        let key = Arc::new(CertifiedKey::new(chain, key));
        key.keys_match().map_err(|_| {
            wrong(KEY, &format!("it is not the key of {CERTIFICATE} beside it"), "write both files of the same issue")
        })?;
        if own.not_after < now {
            return Err(wrong(CERTIFICATE, &format!("it expired on {}", date(own.not_after)), &issue));
        }
        if own.not_before > now {
            let why = format!("it is not valid before {}", date(own.not_before));
            return Err(wrong(CERTIFICATE, &why, "wait, or set the clock of this machine"));
        }
        let name = own.role().map_err(|error| wrong(CERTIFICATE, &error.to_string(), &issue))?;
        if name != role.name() {
            return Err(wrong(CERTIFICATE, &format!("it is for {name}, but this process is {}", role.name()), &issue));
        }

        let roots = Arc::new(roots);
        let unusable = |error: &dyn fmt::Display| {
            wrong(CA, &format!("it cannot be used ({error})"), "write the CA certificates there")
        };
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let clients = clients.build().map_err(|error| unusable(&error))?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let servers: Arc<dyn ServerCertVerifier> = servers.build().map_err(|error| unusable(&error))?;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or_default()));
        let verified = key.cert.first().map(|own| clients.verify_client_cert(own, DIRECTLY, at));
        let unfit = verified
            .and_then(Result::err)
            .map(|error| format!("{CERTIFICATE} would not be accepted by a peer that trusts the same {CA} ({error})"));
        remarks.extend(unfit.clone());
        let (not_before, not_after) = (own.not_before, own.not_after);
        Ok(Self { name, not_before, not_after, remarks, unfit, provider, key, clients, servers })
    }

    /// To accept one connection, and what the handshake will show.
    pub(super) fn server(&self) -> Result<(ServerConfig, Arc<Mutex<Seen>>)> {
        let verifier = Arc::new(Verifier::new(Arc::clone(&self.clients), None));
        let seen = verifier.seen();
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(VERSIONS)
            .map_err(unsupported)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))));
        config.alpn_protocols = alpn();
        // A resumed session would skip the certificate.
        config.send_tls13_tickets = 0;
        Ok((config, seen))
    }

    /// To accept one connection of a client without a certificate.
    pub(super) fn server_of_anybody(&self) -> Result<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(VERSIONS)
            .map_err(unsupported)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))));
        config.alpn_protocols = alpn();
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// To make one connection to a server of that role, and what the handshake will show.
    pub(super) fn client(&self, expected: &RoleName) -> Result<(ClientConfig, Arc<Mutex<Seen>>)> {
        let verifier = Arc::new(Verifier::new(Arc::clone(&self.servers), Some(expected.clone())));
        let seen = verifier.seen();
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(VERSIONS)
            .map_err(unsupported)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&self.key))));
        config.alpn_protocols = alpn();
        config.resumption = rustls::client::Resumption::disabled();
        // The name of the server is not sent in clear text.
        config.enable_sni = false;
        Ok((config, seen))
    }
}

pub(super) fn unsupported(error: rustls::Error) -> Error {
    Error::new(Kind::Internal, "TLS 1.3 cannot be set up").because(error)
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("name", &self.name).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}
