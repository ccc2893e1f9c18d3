//! Reading and writing PEM. Errors never quote the text: it may be a key.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};

/// The label of a certificate.
pub(super) const CERTIFICATE: &str = "CERTIFICATE";
/// The label of a PKCS#8 key.
pub(super) const PRIVATE_KEY: &str = "PRIVATE KEY";
/// The label of a signing request.
pub(super) const REQUEST: &str = "CERTIFICATE REQUEST";

/// One section, with lines of 64 characters (RFC 7468).
pub(super) fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, further) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = further;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// All certificates of a file, in its order; at least one.
pub(super) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err("it contains no certificate in PEM"),
    }
}

/// The key of a file: PKCS#8, PKCS#1 or SEC1.
pub(super) fn key(text: &[u8]) -> Result<PrivateKeyDer<'static>, &'static str> {
    PrivateKeyDer::from_pem_slice(text).map_err(|_| "it contains no unencrypted private key in PEM")
}

/// The signing request of a file.
pub(super) fn signing_request(text: &[u8]) -> Result<CertificateSigningRequestDer<'static>, &'static str> {
    CertificateSigningRequestDer::from_pem_slice(text).map_err(|_| "it contains no certificate signing request in PEM")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for length in [1, 47, 48, 49, 500] {
            let der: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let text = encode(CERTIFICATE, &der);
            assert!(text.lines().all(|line| line.len() <= 64), "{text}");
            let both = format!("a comment\n{text}{text}");
            assert_eq!(certificates(both.as_bytes()).unwrap(), [CertificateDer::from(der.clone()), der.into()]);
        }
        assert!(certificates(b"").is_err() && certificates(b"-----BEGIN CERTIFICATE-----\nMII").is_err());
        assert!(signing_request(encode(CERTIFICATE, b"x").as_bytes()).is_err());
    }

    #[test]
    fn a_key_that_cannot_be_read_is_not_quoted() {
        for text in [
            "-----BEGIN PRIVATE KEY marker-4711",
            "-----BEGIN PRIVATE KEY-----\nmarker-4711!\n-----END PRIVATE KEY-----",
        ] {
            assert!(!format!("{:?}", key(text.as_bytes()).unwrap_err()).contains("4711"));
        }
    }
}
