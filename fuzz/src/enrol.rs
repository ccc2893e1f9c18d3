//! What anybody may send to be certified, and what may lie where a CA is kept: read before anything is known of who wrote it.

use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast::enrol::proto::EnrolRequest;
use holdfast::tls::{Authority, renewal_of};
use holdfast::types::{Kind, NodeId};
use prost::Message;

/// The bytes are a message, a signing request in PEM, and one in DER.
pub fn run(data: &[u8]) {
    if let Ok(message) = EnrolRequest::decode(data) {
        sign(message.request.as_bytes());
    }
    sign(data);
    sign(format!("-----BEGIN CERTIFICATE REQUEST-----\n{}-----END CERTIFICATE REQUEST-----\n", lines(data)).as_bytes());
    let certificate = format!("-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n", lines(data));
    for text in [data, certificate.as_bytes()] {
        // No key is of any use with it: it must be refused.
        assert!(Authority::read(text, data).is_err());
        let _ = renewal_of(text);
    }
}

fn lines(data: &[u8]) -> String {
    let text = STANDARD.encode(data);
    text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line) + "\n").collect()
}

/// What is signed is a certificate, and what is not was the request's fault.
fn sign(request: &[u8]) {
    static AUTHORITY: OnceLock<(Authority, NodeId)> = OnceLock::new();
    let (authority, node) = AUTHORITY.get_or_init(|| {
        let (authority, _) = Authority::make().expect("a CA");
        (authority, "node-1".parse().expect("a node's name"))
    });
    match authority.sign_lasting(request, node, Duration::from_secs(3600)) {
        Ok((certificate, _)) => assert!(renewal_of(certificate.as_bytes()).is_ok(), "{certificate}"),
        Err(error) => assert_eq!(error.kind(), Kind::InvalidArgument, "{}", error.chain()),
    }
}
