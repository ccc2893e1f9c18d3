//! Verification of the peer's certificate: rustls (webpki) checks chain, dates and purpose; then the role is read, and
//! the result is noted for the log. One verifier per handshake.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::certificate::{Certificate, date};
use super::refusal::{Reason, Refusal, reason_of};
use super::role::RoleName;

/// The accepted CAs between a certificate and a root: none. A CA in `ca.crt` signs every certificate itself;
/// intermediate CAs are not supported.
pub(super) const DIRECTLY: &[CertificateDer<'static>] = &[];

/// What a handshake showed of the peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Its verified role and when its certificate expires, in seconds since 1970.
    pub(super) verified: Option<(RoleName, i64)>,
    /// The names in its certificate, verified or not.
    pub(super) shown: Option<String>,
    /// Why its certificate was refused.
    pub(super) refusal: Option<Refusal>,
}

/// Verifies and takes notes. `expected` is the required role of a server; for a client, any role is accepted.
#[derive(Debug)]
pub(super) struct Verifier<V: ?Sized> {
    expected: Option<RoleName>,
    seen: Arc<Mutex<Seen>>,
    rules: Arc<V>,
}

impl<V: ?Sized> Verifier<V> {
    pub(super) fn new(rules: Arc<V>, expected: Option<RoleName>) -> Self {
        Self { expected, seen: Arc::default(), rules }
    }

    /// The notes.
    pub(super) fn seen(&self) -> Arc<Mutex<Seen>> {
        Arc::clone(&self.seen)
    }

    /// The decision about a certificate after the result of webpki.
    fn judge<T>(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        rules: Result<T, Error>,
    ) -> Result<T, Error> {
        let read = Certificate::read(end_entity);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.shown = read.as_ref().ok().map(Certificate::shown);
        let mut refuse = |reason, why: String, error| {
            seen.refusal = Some(Refusal::new(reason, why));
            Err(error)
        };
        let unfit = || Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let accepted = match rules {
            Ok(accepted) => accepted,
            Err(error) => {
                let why = match (reason_of(&error), read) {
                    (Reason::Expired, Ok(read)) => {
                        format!("the peer's certificate expired on {}", date(read.not_after))
                    }
                    (Reason::NotYetValid, Ok(read)) => {
                        format!("the peer's certificate is not valid before {}", date(read.not_before))
                    }
                    (Reason::UnknownAuthority, _) if !intermediates.is_empty() => {
                        "no CA in our ca.crt signed the peer's certificate directly, and intermediate CAs are not \
                         accepted; issue it by a CA in ca.crt, or put the CA that issued it there"
                            .to_owned()
                    }
                    (Reason::UnknownAuthority, _) => "no CA in our ca.crt signed the peer's certificate".to_owned(),
                    (Reason::WrongRole, _) => self.wrong_role(),
                    _ => format!("the peer's certificate is not accepted: {error}"),
                };
                return refuse(reason_of(&error), why, error);
            }
        };
        let role = read.and_then(|read| Ok((read.role()?, read.not_after)));
        match role {
            Err(error) => refuse(Reason::NoRole, error.to_string(), unfit()),
            Ok((name, _)) if self.expected.as_ref().is_some_and(|expected| *expected != name) => {
                refuse(Reason::WrongRole, self.wrong_role(), unfit())
            }
            Ok(verified) => {
                seen.verified = Some(verified);
                Ok(accepted)
            }
        }
    }

    fn wrong_role(&self) -> String {
        let expected = self.expected.as_ref().map_or("a role", RoleName::as_str);
        format!("the peer is not {expected}, which is expected at this address")
    }
}

/// webpki verifies signatures on both sides.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.rules.verify_tls12_signature(message, cert, dss)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.rules.verify_tls13_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.rules.supported_verify_schemes()
        }
    };
}

impl ClientCertVerifier for Verifier<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.rules.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates, self.rules.verify_client_cert(end_entity, DIRECTLY, now))
    }

    signatures!();
}

impl ServerCertVerifier for Verifier<dyn ServerCertVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let rules = self.rules.verify_server_cert(end_entity, DIRECTLY, server_name, ocsp_response, now);
        self.judge(end_entity, intermediates, rules)
    }

    signatures!();
}
