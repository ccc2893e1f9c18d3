//! The authority that certifies roles: a CA of its own, good for nothing else.

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
/// The signing request a node makes, beside its `tls.key`.
const REQUEST: &str = "tls.csr";
/// How long a CA lives, days.
const CA_DAYS: u32 = 3650;
/// The longest a certificate may live, days.
const MOST_DAYS: u32 = 825;
/// Clocks may differ by so many seconds: certificates are good from that much earlier.
const SKEW: i64 = 300;
const DAY: i64 = 86_400;
/// The largest signing request looked at, bytes.
const MOST_REQUEST: usize = 64 << 10;

/// A CA with its key: ECDSA P-256, constrained to our names.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// What `ca.crt` holds: the CA first, perhaps others trusted beside it.
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
    /// When the certificate expires, for people.
    pub until: String,
}

impl Authority {
    /// A new CA for ten years, in memory. Its parts for `ca.crt` and `ca.key` come with it.
    ///
    /// # Errors
    /// `Internal` when no key can be made.
    pub fn make() -> Result<(Self, String)> {
        Self::make_for(span(CA_DAYS))
    }

    /// The same, good from and to these seconds since 1970.
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

    /// The CA whose `ca.crt` and `ca.key` these are; the first certificate is the CA's.
    ///
    /// # Errors
    /// `Precondition` when they are not PEM, do not fit or have expired; nothing of the key is in the message.
    pub fn read(ca: &[u8], key: &[u8]) -> Result<Self> {
        let wrong = |why: String| Error::new(Kind::Precondition, why);
        let certificates = pem::certificates(ca).map_err(|why| wrong(format!("{CA}: {why}")))?;
        let first = certificates.first().ok_or_else(|| wrong(format!("{CA} is empty")))?;
        let facts = Certificate::read(first).map_err(|error| wrong(format!("{CA}: {error}")))?;
        let key = pem::key(key).map_err(|why| wrong(format!("{CA_KEY}: {why}")))?;
        let key = KeyPair::try_from(&key).map_err(|_| wrong(format!("{CA_KEY} is no key that can sign")))?;
        if key.subject_public_key_info() != facts.public_key {
            return Err(wrong(format!(
                "{CA_KEY} is not the key of the first certificate in {CA}; put both of one CA there"
            )));
        }
        if facts.not_after < Timestamp::now().seconds() {
            let on = date(facts.not_after);
            return Err(wrong(format!(
                "the CA expired on {on}; make a new one in another directory and issue all anew"
            )));
        }
        let issuer =
            Issuer::from_ca_cert_der(first, key).map_err(|error| wrong(format!("{CA} cannot be used: {error}")))?;
        // Certificates alone: it is published, and a file may hold its key as well.
        let bundle = certificates.iter().map(|certificate| pem::encode(pem::CERTIFICATE, certificate)).collect();
        Ok(Self { issuer, bundle, not_after: facts.not_after })
    }

    /// The CA kept in a directory.
    ///
    /// # Errors
    /// `Precondition` when it is not there, or not whole.
    pub fn open(os: &Os, directory: &Path) -> Result<Self> {
        let read = |name: &str| {
            let file = directory.join(name);
            let text = os.read(&file).at(|| format!("read {}", file.display()))?;
            text.ok_or_else(|| {
                let place = directory.display();
                Error::new(Kind::Precondition, format!("there is no {name} in {place}; name the directory of a CA"))
            })
        };
        let place = || format!("the CA in {} cannot be used", directory.display());
        Self::read(&read(CA)?, &read(CA_KEY)?).map_err(|error| error.context(place()))
    }

    /// The same; a new one is made there when the directory is empty or does not exist. True when it was.
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

    /// What is to be trusted with it, PEM: its certificate first.
    #[must_use]
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// A new key and a certificate for a role, for so many days but not beyond the CA's own end.
    ///
    /// # Errors
    /// `OutOfRange` for 0 days or more than 825, `Internal` when nothing can be made.
    pub fn issue(&self, role: &Role, days: u32) -> Result<Issued> {
        self.issue_lasting(role, in_days(days)?)
    }

    /// The same for any time.
    ///
    /// # Errors
    /// `Internal` when nothing can be made.
    pub fn issue_lasting(&self, role: &Role, life: Duration) -> Result<Issued> {
        let key = new_key()?;
        let (certificate, not_after) = self.certify(role, &key, life)?;
        let key = pem::encode(pem::PRIVATE_KEY, key.serialized_der());
        Ok(Issued { ca: self.bundle.clone(), certificate, key, until: date(not_after) })
    }

    /// A certificate for the public key in a signing request (PEM), for exactly this node. Nothing else that the request
    /// asks for is looked at; its own signature is checked, so that nobody is certified with another's key. Gives the
    /// certificate in PEM and its end for people.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no request with a good signature; those of [`Authority::issue`].
    pub fn sign(&self, request: &[u8], node: &NodeId, days: u32) -> Result<(String, String)> {
        self.sign_lasting(request, node, in_days(days)?)
    }

    /// The same for any time.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no request with a good signature, `Internal` when nothing can be made.
    pub fn sign_lasting(&self, request: &[u8], node: &NodeId, life: Duration) -> Result<(String, String)> {
        let wrong = |why: &str| Error::new(Kind::InvalidArgument, format!("the signing request is refused: {why}"));
        if request.len() > MOST_REQUEST {
            return Err(wrong("it is larger than 64 KiB"));
        }
        let der = pem::signing_request(request).map_err(wrong)?;
        let (_, parsed) = X509CertificationRequest::from_der(&der).map_err(|_| wrong("it is not PKCS #10"))?;
        parsed.verify_signature().map_err(|_| wrong("its signature is not by the key it asks for"))?;
        let key = SubjectPublicKeyInfo::from_der(parsed.certification_request_info.subject_pki.raw)
            .map_err(|_| wrong("its key is of a kind that is not used here; make an ECDSA P-256 key"))?;
        let (certificate, not_after) = self.certify(&Role::Node(node.clone()), &key, life)?;
        Ok((certificate, date(not_after)))
    }

    fn certify(&self, role: &Role, key: &impl PublicKeyData, life: Duration) -> Result<(String, i64)> {
        let now = Timestamp::now().seconds();
        let to = now.saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX)).min(self.not_after);
        let from = now - SKEW;
        Ok((self.certify_names(&[role.name().as_str()], key, from, to)?, to))
    }

    /// A certificate with these names, good from and to these seconds since 1970.
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
    /// Makes sure that it can be used by a process of this role: key and certificate fit, a CA of `ca` made it, its name and
    /// dates are right. Gives its end for people.
    ///
    /// # Errors
    /// `Precondition` naming what is wrong; nothing of the key is in it.
    pub fn check(&self, role: &Role) -> Result<String> {
        Ok(date(self.fit(role)?.not_after))
    }

    /// When the second third of its life is over, in seconds since 1970: the time to renew it.
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

    /// Writes `ca.crt`, `tls.crt` and `tls.key` into a directory, all at once; those of an earlier issue are replaced.
    ///
    /// # Errors
    /// Those of [`write_directory`].
    pub fn write(&self, os: &Os, directory: &Path) -> Result<()> {
        let files = [(CA, self.ca.as_str()), (CERTIFICATE, &self.certificate), (KEY, &self.key)];
        write_directory(os, directory, &files, &[CA, CERTIFICATE, KEY, REQUEST])
    }
}

/// When the second third of a certificate's life (PEM) is over, in seconds since 1970: the time to renew it.
///
/// # Errors
/// `Corrupt` when it is none.
pub fn renewal_of(certificate: &[u8]) -> Result<i64> {
    let chain = pem::certificates(certificate).map_err(|why| Error::new(Kind::Corrupt, why))?;
    let own = chain.first().ok_or_else(|| Error::new(Kind::Corrupt, "there is no certificate"))?;
    let own = Certificate::read(own)?;
    Ok(two_thirds(own.not_before, own.not_after))
}

/// Certificates begin before they are made, by what clocks may differ.
fn two_thirds(not_before: i64, not_after: i64) -> i64 {
    not_after - (not_after - not_before - SKEW).max(0) / 3
}

/// A new key and a request that it be certified for this node, PEM.
///
/// # Errors
/// `Internal` when no key can be made.
pub fn signing_request(node: &NodeId) -> Result<(String, String)> {
    let key = new_key()?;
    let name = Role::Node(node.clone()).name();
    let params = CertificateParams::new(vec![name.to_string()]).map_err(not_made)?;
    let request = params.serialize_request(&key).map_err(not_made)?;
    Ok((pem::encode(pem::PRIVATE_KEY, key.serialized_der()), pem::encode(pem::REQUEST, request.der())))
}

/// Makes a key (`tls.key`) and a signing request for a node (`tls.csr`) in a new directory: the key never leaves the node.
///
/// # Errors
/// Those of [`write_directory`]; `Internal` when no key can be made.
pub fn request(os: &Os, node: &NodeId, directory: &Path) -> Result<()> {
    let (key, request) = signing_request(node)?;
    write_directory(os, directory, &[(KEY, &key), (REQUEST, &request)], &[])
}

pub(super) fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(not_made)
}

fn not_made(error: rcgen::Error) -> Error {
    Error::new(Kind::Internal, "the certificate cannot be made").because(error)
}

fn moment(seconds_since_1970: i64) -> Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds_since_1970)
        .map_err(|error| Error::new(Kind::OutOfRange, "this machine's clock is out of range").because(error))
}

fn in_days(days: u32) -> Result<Duration> {
    if days == 0 || days > MOST_DAYS {
        let why = format!("a certificate is good for 1 to {MOST_DAYS} days, not {days}");
        return Err(Error::new(Kind::OutOfRange, why));
    }
    Ok(Duration::from_secs(u64::from(days) * 86_400))
}

/// From now, or a little earlier, for so many days.
fn span(days: u32) -> (i64, i64) {
    let now = Timestamp::now().seconds();
    (now - SKEW, now + i64::from(days) * DAY)
}

/// What all our certificates have.
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
