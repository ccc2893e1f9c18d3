//! What a process shows and trusts: `ca.crt`, `tls.crt` and `tls.key` of one directory, as a Secret of type
//! kubernetes.io/tls holds them and cert-manager writes them.

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
use super::verify::{DIRECTLY, Seen, Verifier};
use crate::os::{FileVersion, Os, Timestamp};
use crate::types::{Error, Kind, OsContext, Result};

/// The CAs whose certificates are good: one, or several while a CA is replaced.
pub const CA: &str = "ca.crt";
/// Our certificate and what leads from it to a CA.
pub const CERTIFICATE: &str = "tls.crt";
/// Its private key.
pub const KEY: &str = "tls.key";

/// What both sides speak.
const ALPN: &[u8] = b"h2";
pub(super) const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// How often files that change while they are read are read again.
const TRIES: u32 = 3;

/// The three files' versions, missing ones as `None`.
pub(super) type Versions = [Option<FileVersion>; 3];

/// Looks which versions the files are of now.
pub(super) fn versions(os: &Os, directory: &Path) -> Versions {
    // What cannot be looked at is told when it is read.
    [CA, CERTIFICATE, KEY].map(|name| os.version(&directory.join(name)).ok().flatten())
}

/// What both sides speak, for a configuration.
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
    /// When our certificate began to be good, in seconds since 1970.
    pub(super) not_before: i64,
    /// When our certificate expires, in seconds since 1970.
    pub(super) not_after: i64,
    /// What is not as it should be, though it works.
    pub(super) remarks: Vec<String>,
    /// Why who trusts the same CAs would not accept our certificate, if so. Remarked too.
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
    /// `Precondition` naming the file, what is wrong with it and what to do; nothing of a key is in it.
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
            format!("the certificate files in {place} change all the time; write them once"),
        ))
    }

    fn load_once(os: &Os, directory: &Path, role: &Role, versions: &Versions) -> Result<Self> {
        let read = |name: &str| {
            let file = directory.join(name);
            let text = os.read(&file).at(|| format!("read {}", file.display()));
            text.map_err(|error| error.with_kind(Kind::Precondition))?.ok_or_else(|| {
                let next = "make the files with `holdfast ca issue`, or mount the Secret there";
                Error::new(Kind::Precondition, format!("{}: it does not exist; {next}", file.display()))
            })
        };
        let parts = Parts { ca: read(CA)?, certificate: read(CERTIFICATE)?, key: read(KEY)? };
        let mut made = Self::build(&parts, directory, role)?;
        if versions.last().copied().flatten().is_some_and(|version| version.readable_by_all()) {
            made.remarks.push(format!("{KEY} may be read by every user of this machine; chmod it to 0600 or 0640"));
        }
        Ok(made)
    }

    /// Checks what was read; `place` is where messages say it is.
    ///
    /// # Errors
    /// As [`Material::load`].
    pub(super) fn build(parts: &Parts, place: &Path, role: &Role) -> Result<Self> {
        let now = Timestamp::now().seconds();
        let wrong = |name: &str, why: &str, next: &str| {
            let file = place.join(name);
            Error::new(Kind::Precondition, format!("{}: {why}; {next}", file.display()))
        };
        let issue = format!("issue one for {role} (`holdfast ca issue --role {role}`)");
        let mut remarks = Vec::new();

        let roots = super::trust::roots(&parts.ca, &place.join(CA), now, &mut remarks)?;

        let chain = pem::certificates(&parts.certificate).map_err(|why| wrong(CERTIFICATE, why, &issue))?;
        let Some(own) = chain.first() else { return Err(wrong(CERTIFICATE, "it is empty", &issue)) };
        let own = Certificate::read(own).map_err(|error| wrong(CERTIFICATE, &error.to_string(), &issue))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = pem::key(&parts.key).map_err(|why| wrong(KEY, why, "write the certificate's key there"))?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|_| wrong(KEY, "it is no RSA, ECDSA or Ed25519 key that can be used", "issue another"))?;
        let key = Arc::new(CertifiedKey::new(chain, key));
        key.keys_match().map_err(|_| {
            wrong(KEY, &format!("it is not the key of {CERTIFICATE} beside it"), "write both of one and the same issue")
        })?;
        if own.not_after < now {
            return Err(wrong(CERTIFICATE, &format!("it expired on {}", date(own.not_after)), &issue));
        }
        if own.not_before > now {
            let why = format!("it is not valid before {}", date(own.not_before));
            return Err(wrong(CERTIFICATE, &why, "wait, or set this machine's clock"));
        }
        let name = own.role().map_err(|error| wrong(CERTIFICATE, &error.to_string(), &issue))?;
        if name != role.name() {
            return Err(wrong(CERTIFICATE, &format!("it is for {name}, and this is {}", role.name()), &issue));
        }

        let roots = Arc::new(roots);
        let unusable = |error: &dyn fmt::Display| wrong(CA, &format!("it cannot be used ({error})"), "write CAs there");
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let clients = clients.build().map_err(|error| unusable(&error))?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let servers: Arc<dyn ServerCertVerifier> = servers.build().map_err(|error| unusable(&error))?;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or_default()));
        let verified = key.cert.first().map(|own| clients.verify_client_cert(own, DIRECTLY, at));
        let unfit = verified
            .and_then(Result::err)
            .map(|error| format!("{CERTIFICATE} would not be accepted by who trusts the same {CA} ({error})"));
        remarks.extend(unfit.clone());
        let (not_before, not_after) = (own.not_before, own.not_after);
        Ok(Self { name, not_before, not_after, remarks, unfit, provider, key, clients, servers })
    }

    /// To accept one connection with, and what will be seen in it.
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

    /// To accept one connection with from somebody who shows no certificate.
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

    /// To make one connection with to a server of that role, and what will be seen in it.
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
        // Whom we look for is nobody's business on the way.
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
