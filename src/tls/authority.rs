//! The authority that issues certificates for roles: a CA of its own, valid for nothing else.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use time::OffsetDateTime;
use uuid::Uuid;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::certificate::{Certificate, date};
use super::directory::write_directory;
use super::material::{CA, CERTIFICATE, KEY, Material, Parts};
use super::pem;
use super::role::Role;
use crate::os::{Os, Timestamp};
use crate::types::{Error, Kind, NodeId, OsContext, Result};

/// The CA's private key, beside its `ca.crt`.
const CA_KEY: &str = "ca.key";
/// The signing request that a node creates, beside its `tls.key`.
const REQUEST: &str = "tls.csr";
/// The lifetime of a CA, in days.
const CA_DAYS: u32 = 3650;
/// The longest lifetime of a certificate, in days.
const MOST_DAYS: u32 = 825;
/// The clocks of machines may differ by so many seconds: certificates are valid from that much earlier.
const SKEW: i64 = 300;
const DAY: i64 = 86_400;
/// The largest signing request that is read, in bytes.
const MOST_REQUEST: usize = 64 << 10;

/// A CA with its key: ECDSA P-256, constrained to our names.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The content of `ca.crt`: the CA first, perhaps other trusted ones after it.
    bundle: String,
    not_after: i64,
}

/// A certificate and its key, PEM.
pub struct Issued {
    /// The CAs to trust.
    pub ca: String,
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// When the certificate expires, for messages.
    pub until: String,
}

impl Authority {
    /// A new CA for ten years, in memory, with the content of its `ca.key`.
    ///
    /// # Errors
    /// `Internal` when no key can be created.
    pub fn make() -> Result<(Self, String)> {
        Self::make_for(span(CA_DAYS))
    }

    /// The same, valid from and to these seconds since 1970.
    pub(super) fn make_for(span: (i64, i64)) -> Result<(Self, String)> {
        let key = new_key()?;
        let mut params = params(span)?;
        let name = format!("Holdfast CA {}", Uuid::new_v4().simple());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ours = GeneralSubtree::DnsName("csi.holdfast.storage".to_owned());
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: vec![ours], excluded_subtrees: Vec::new() });
        let certificate = params.self_signed(&key).map_err(not_made)?;
        let bundle = pem::encode(pem::CERTIFICATE, certificate.der());
        let key_pem = pem::encode(pem::PRIVATE_KEY, key.serialized_der());
        let not_after = params.not_after.unix_timestamp();
        Ok((Self { issuer: Issuer::new(params, key), bundle, not_after }, key_pem))
    }

    /// The CA with these `ca.crt` and `ca.key`; the first certificate is the CA's.
    ///
    /// # Errors
    /// `Precondition` when they are not PEM, do not match or have expired; the message contains nothing of the key.
    pub fn read(ca: &[u8], key: &[u8]) -> Result<Self> {
        let wrong = |why: String| Error::new(Kind::Precondition, why);
        let certificates = pem::certificates(ca).map_err(|why| wrong(format!("{CA}: {why}")))?;
        let first = certificates.first().ok_or_else(|| wrong(format!("{CA} is empty")))?;
        let facts = Certificate::read(first).map_err(|error| wrong(format!("{CA}: {error}")))?;
        let key = pem::key(key).map_err(|why| wrong(format!("{CA_KEY}: {why}")))?;
        let key = KeyPair::try_from(&key).map_err(|_| wrong(format!("{CA_KEY} is not a key that can sign")))?;
        if key.subject_public_key_info() != facts.public_key {
            return Err(wrong(format!(
                "{CA_KEY} is not the key of the first certificate in {CA}; write both files of one CA there"
            )));
        }
        if facts.not_after < Timestamp::now().seconds() {
            let on = date(facts.not_after);
            return Err(wrong(format!(
                "the CA expired on {on}; create a new one in another directory and issue all certificates again"
            )));
        }
        let issuer =
            Issuer::from_ca_cert_der(first, key).map_err(|error| wrong(format!("{CA} cannot be used: {error}")))?;
        // Certificates only: the text is published, and the file may contain its key as well.
        let bundle = certificates.iter().map(|certificate| pem::encode(pem::CERTIFICATE, certificate)).collect();
        Ok(Self { issuer, bundle, not_after: facts.not_after })
    }

    /// The CA in a directory.
    ///
    /// # Errors
    /// `Precondition` when it does not exist, or is incomplete.
    pub fn open(os: &Os, directory: &Path) -> Result<Self> {
        let read = |name: &str| {
            let file = directory.join(name);
            let text = os.read(&file).at(|| format!("read {}", file.display()))?;
            text.ok_or_else(|| {
                let place = directory.display();
                Error::new(Kind::Precondition, format!("there is no {name} in {place}; pass the directory of a CA"))
            })
        };
        let place = || format!("the CA in {} cannot be used", directory.display());
        Self::read(&read(CA)?, &read(CA_KEY)?).map_err(|error| error.context(place()))
    }

    /// The same; a new CA is created when the directory is empty or does not exist. True when it was.
    ///
    /// # Errors
    /// Those of [`Authority::open`] and [`write_directory`].
    pub fn open_or_make(os: &Os, directory: &Path) -> Result<(Self, bool)> {
        if !os.list_dir(directory).at(|| format!("list {}", directory.display()))?.is_empty() {
            return Ok((Self::open(os, directory)?, false));
        }
        let (made, key) = Self::make()?;
        write_directory(os, directory, &[(CA, &made.bundle), (CA_KEY, &key)], &[])?;
        Ok((made, true))
    }

    /// The trusted CAs, PEM: its certificate first.
    #[must_use]
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// A new key and a certificate for a role, valid for so many days but not beyond the end of the CA.
    ///
    /// # Errors
    /// `OutOfRange` for 0 days or more than 825, `Internal` when the certificate cannot be created.
    pub fn issue(&self, role: &Role, days: u32) -> Result<Issued> {
        self.issue_lasting(role, in_days(days)?)
    }

    /// The same for any lifetime.
    ///
    /// # Errors
    /// `Internal` when the certificate cannot be created.
    pub fn issue_lasting(&self, role: &Role, life: Duration) -> Result<Issued> {
        let key = new_key()?;
        let (certificate, not_after) = self.certify(role, &key, life)?;
        let key = pem::encode(pem::PRIVATE_KEY, key.serialized_der());
        Ok(Issued { ca: self.bundle.clone(), certificate, key, until: date(not_after) })
    }

    /// A certificate for the public key in a signing request (PEM), for exactly this node. The rest of the request is
    /// ignored. Its signature is checked, so that no certificate is issued for a key of another owner. Returns the
    /// certificate in PEM and its end for messages.
    ///
    /// # Errors
    /// `InvalidArgument` for an invalid request or signature; those of [`Authority::issue`].
    pub fn sign(&self, request: &[u8], node: &NodeId, days: u32) -> Result<(String, String)> {
        self.sign_lasting(request, node, in_days(days)?)
    }

    /// The same for any lifetime.
    ///
    /// # Errors
    /// `InvalidArgument` for an invalid request or signature, `Internal` when the certificate cannot be created.
    pub fn sign_lasting(&self, request: &[u8], node: &NodeId, life: Duration) -> Result<(String, String)> {
        let wrong = |why: &str| Error::new(Kind::InvalidArgument, format!("the signing request is refused: {why}"));
        if request.len() > MOST_REQUEST {
            return Err(wrong("it is larger than 64 KiB"));
        }
        let der = pem::signing_request(request).map_err(wrong)?;
        let (_, parsed) =
            X509CertificationRequest::from_der(&der).map_err(|_| wrong("it is not a PKCS #10 request"))?;
        parsed.verify_signature().map_err(|_| wrong("its signature was not made by the key in it"))?;
        let key = SubjectPublicKeyInfo::from_der(parsed.certification_request_info.subject_pki.raw)
            .map_err(|_| wrong("its key type is not supported; create an ECDSA P-256 key"))?;
        let (certificate, not_after) = self.certify(&Role::Node(node.clone()), &key, life)?;
        Ok((certificate, date(not_after)))
    }

    fn certify(&self, role: &Role, key: &impl PublicKeyData, life: Duration) -> Result<(String, i64)> {
        let now = Timestamp::now().seconds();
        let to = now.saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX)).min(self.not_after);
        let from = now - SKEW;
        Ok((self.certify_names(&[role.name().as_str()], key, from, to)?, to))
    }

    /// A certificate with these names, valid from and to these seconds since 1970.
    pub(super) fn certify_names(&self, names: &[&str], key: &impl PublicKeyData, from: i64, to: i64) -> Result<String> {
        let mut params = params((from, to))?;
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into().map_err(not_made)?));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::CommonName, "Holdfast");
        let certificate = params.signed_by(key, &self.issuer).map_err(not_made)?;
        Ok(pem::encode(pem::CERTIFICATE, certificate.der()))
    }
}

impl Issued {
    /// Checks that a process of this role can use it: key and certificate match, a CA of `ca` issued it, its name and
    /// dates are right. Returns its end for messages.
    ///
    /// # Errors
    /// `Precondition` naming what is wrong; the message contains nothing of the key.
    pub fn check(&self, role: &Role) -> Result<String> {
        Ok(date(self.fit(role)?.not_after))
    }

    /// When two thirds of its lifetime have passed, in seconds since 1970: the time to renew it.
    ///
    /// # Errors
    /// Those of [`Issued::check`].
    pub fn renewal(&self, role: &Role) -> Result<i64> {
        let material = self.fit(role)?;
        Ok(two_thirds(material.not_before, material.not_after))
    }

    fn fit(&self, role: &Role) -> Result<Material> {
        let material = self.material(role)?;
        match &material.unfit {
            None => Ok(material),
            Some(why) => Err(Error::new(Kind::Precondition, why.clone())),
        }
    }

    pub(super) fn material(&self, role: &Role) -> Result<Material> {
        let bytes = |text: &str| text.as_bytes().to_vec();
        let parts = Parts { ca: bytes(&self.ca), certificate: bytes(&self.certificate), key: bytes(&self.key) };
        Material::build(&parts, Path::new("in memory"), role)
    }

    /// Writes `ca.crt`, `tls.crt` and `tls.key` into a directory, all at once; the files of an earlier issue are
    /// replaced.
    ///
    /// # Errors
    /// Those of [`write_directory`].
    pub fn write(&self, os: &Os, directory: &Path) -> Result<()> {
        let files = [(CA, self.ca.as_str()), (CERTIFICATE, &self.certificate), (KEY, &self.key)];
        write_directory(os, directory, &files, &[CA, CERTIFICATE, KEY, REQUEST])
    }
}

/// When two thirds of the lifetime of a certificate (PEM) have passed, in seconds since 1970: the time to renew it.
///
/// # Errors
/// `Corrupt` when it is not a certificate.
pub fn renewal_of(certificate: &[u8]) -> Result<i64> {
    let chain = pem::certificates(certificate).map_err(|why| Error::new(Kind::Corrupt, why))?;
    let own = chain.first().ok_or_else(|| Error::new(Kind::Corrupt, "there is no certificate"))?;
    let own = Certificate::read(own)?;
    Ok(two_thirds(own.not_before, own.not_after))
}

/// A certificate begins before it is created, by the allowed difference of clocks.
fn two_thirds(not_before: i64, not_after: i64) -> i64 {
    not_after - (not_after - not_before - SKEW).max(0) / 3
}

/// A new key and a signing request with it for this node, PEM.
///
/// # Errors
/// `Internal` when no key can be created.
pub fn signing_request(node: &NodeId) -> Result<(String, String)> {
    let key = new_key()?;
    let name = Role::Node(node.clone()).name();
    let params = CertificateParams::new(vec![name.to_string()]).map_err(not_made)?;
    let request = params.serialize_request(&key).map_err(not_made)?;
    Ok((pem::encode(pem::PRIVATE_KEY, key.serialized_der()), pem::encode(pem::REQUEST, request.der())))
}

/// Creates a key (`tls.key`) and a signing request (`tls.csr`) for a node in a new directory: the key never leaves the
/// node.
///
/// # Errors
/// Those of [`write_directory`]; `Internal` when no key can be created.
pub fn request(os: &Os, node: &NodeId, directory: &Path) -> Result<()> {
    let (key, request) = signing_request(node)?;
    write_directory(os, directory, &[(KEY, &key), (REQUEST, &request)], &[])
}

pub(super) fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(not_made)
}

fn not_made(error: rcgen::Error) -> Error {
    Error::new(Kind::Internal, "the certificate cannot be created").because(error)
}

fn moment(seconds_since_1970: i64) -> Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds_since_1970).map_err(|error| {
        Error::new(Kind::OutOfRange, "the clock of this machine is out of range; set it").because(error)
    })
}

fn in_days(days: u32) -> Result<Duration> {
    if days == 0 || days > MOST_DAYS {
        let why = format!("a certificate can be valid for 1 to {MOST_DAYS} days, not {days}");
        return Err(Error::new(Kind::OutOfRange, why));
    }
    Ok(Duration::from_secs(u64::from(days) * 86_400))
}

/// From now, or a little earlier, for so many days.
fn span(days: u32) -> (i64, i64) {
    let now = Timestamp::now().seconds();
    (now - SKEW, now + i64::from(days) * DAY)
}

/// The parameters that all our certificates have in common.
fn params((from, to): (i64, i64)) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.not_before = moment(from)?;
    params.not_after = moment(to)?;
    params.serial_number = Some(SerialNumber::from_slice(Uuid::new_v4().as_bytes()));
    params.distinguished_name = DistinguishedName::new();
    Ok(params)
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("certificate", &self.certificate)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}
