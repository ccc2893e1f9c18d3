//! The content of a certificate. Nothing is verified here: `verify` does that.

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::role::RoleName;
use crate::types::{Error, Kind, Result};

/// The most bytes of a peer's names that a message repeats.
const MOST_SHOWN: usize = 200;

/// Names and dates of a certificate.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    names: Vec<String>,
    /// First second of validity, since 1970.
    pub(super) not_before: i64,
    /// Last second of validity, since 1970.
    pub(super) not_after: i64,
    /// The subject's public key, DER.
    pub(super) public_key: Vec<u8>,
}

impl Certificate {
    /// Reads one.
    ///
    /// # Errors
    /// `Corrupt` when it is not an X.509 certificate.
    pub(super) fn read(der: &CertificateDer<'_>) -> Result<Self> {
        let unreadable = |_| Error::new(Kind::Corrupt, "it is not an X.509 certificate");
        let (_, parsed) = X509Certificate::from_der(der).map_err(unreadable)?;
        let mut names = Vec::new();
        let extension = parsed.subject_alternative_name();
        if let Some(extension) =
            extension.map_err(|_| Error::new(Kind::Corrupt, "the names in the certificate cannot be read"))?
        {
            for name in &extension.value.general_names {
                if let GeneralName::DNSName(name) = name {
                    names.push((*name).to_owned());
                }
            }
        }
        Ok(Self {
            names,
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            public_key: parsed.public_key().raw.to_vec(),
        })
    }

    /// The one role it is for. Names outside our domain are ignored; inside it, there must be exactly one, of a role.
    ///
    /// # Errors
    /// `Precondition`, listing the names that are there.
    pub(super) fn role(&self) -> Result<RoleName> {
        let ours: Vec<_> = self.names.iter().filter(|name| RoleName::is_ours(name)).collect();
        match ours.as_slice() {
            [name] => RoleName::parse(name),
            _ => None,
        }
        .ok_or_else(|| {
            let there = self.shown();
            Error::new(
                Kind::Precondition,
                format!("the certificate's SAN must contain exactly one role name; it contains {there}"),
            )
        })
    }

    /// Its names for a message, escaped and shortened: an unverified peer may have chosen them.
    pub(super) fn shown(&self) -> String {
        let all = self.names.iter().map(|name| name.escape_default().to_string()).collect::<Vec<_>>().join(", ");
        match all.get(..all.floor_char_boundary(MOST_SHOWN)) {
            _ if all.is_empty() => "no DNS name".to_owned(),
            Some(cut) if cut.len() < all.len() => format!("{cut}..."),
            _ => all,
        }
    }
}

/// A point in time for messages, in UTC.
pub(super) fn date(seconds_since_1970: i64) -> String {
    match OffsetDateTime::from_unix_timestamp(seconds_since_1970) {
        Ok(at) => format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        ),
        Err(_) => format!("{seconds_since_1970} s after 1970"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_for_people() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(1_795_629_600), "2026-11-25 18:00:00 UTC");
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        assert_eq!(Certificate::read(&CertificateDer::from(&b"nonsense"[..])).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn one_role_and_no_more() {
        let with = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            Certificate { names, not_before: 0, not_after: 0, public_key: Vec::new() }
        };
        assert!(with(&["controller.csi.holdfast.storage", "svc.example.org"]).role().is_ok());
        for names in [
            &[][..],
            &["svc.example.org"],
            &["*.node.csi.holdfast.storage"],
            &["controller.csi.holdfast.storage", "a.node.csi.holdfast.storage"],
            &["a.node.csi.holdfast.storage", "b.csi.holdfast.storage"],
        ] {
            assert!(with(names).role().is_err(), "{names:?}");
        }
        assert!(with(&["evil\n2026 ERROR", &"x".repeat(1000)]).shown().len() < MOST_SHOWN + 10);
        assert!(!with(&["evil\n2026 ERROR"]).shown().contains('\n'));
    }
}
