//! Why a connection was refused, as a metric label and as a message.

use std::io;

use rustls::{CertificateError, Error};

/// One cause, a label of the metric `holdfast_tls_handshakes_refused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    NoCertificate,
    NoOwnCertificate,
    Expired,
    NotYetValid,
    UnknownAuthority,
    NoRole,
    WrongRole,
    BadCertificate,
    NotTls,
    OldProtocol,
    Protocol,
    RefusedByPeer,
    Timeout,
    Gone,
    Overloaded,
    NoAnswer,
}

impl Reason {
    /// The metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::NoOwnCertificate => "no_own_certificate",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownAuthority => "unknown_authority",
            Self::NoRole => "no_role",
            Self::WrongRole => "wrong_role",
            Self::BadCertificate => "bad_certificate",
            Self::NotTls => "not_tls",
            Self::OldProtocol => "old_protocol",
            Self::Protocol => "protocol",
            Self::RefusedByPeer => "refused_by_peer",
            Self::Timeout => "timeout",
            Self::Gone => "gone",
            Self::Overloaded => "overloaded",
            Self::NoAnswer => "no_answer",
        }
    }
}

/// A cause with its message.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) why: String,
}

impl Refusal {
    pub(super) fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into() }
    }

    /// From an error of rustls or the network in a handshake.
    pub(super) fn of(error: &io::Error) -> Self {
        match rustls_error(error) {
            Some(error) => Self::new(reason_of(error), sentence(error)),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                Self::new(Reason::Gone, "the peer closed the connection during the handshake")
            }
            None => Self::new(Reason::Gone, format!("the connection broke: {error}")),
        }
    }

    /// The peer's refusal in an error of a connection that seemed established: only then a TLS 1.3 client learns
    /// whether the server accepts its certificate.
    pub(super) fn by_peer(error: &io::Error) -> Option<Self> {
        matches!(rustls_error(error), Some(Error::AlertReceived(_))).then(|| Self::of(error))
    }
}

fn rustls_error(error: &io::Error) -> Option<&Error> {
    let inner = error.get_ref()?;
    inner.downcast_ref().or_else(|| inner.source()?.downcast_ref())
}

/// The cause of an error of rustls.
pub(super) fn reason_of(error: &Error) -> Reason {
    match error {
        Error::NoCertificatesPresented => Reason::NoCertificate,
        Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Reason::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Reason::NotYetValid,
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Reason::UnknownAuthority,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Reason::WrongRole,
            _ => Reason::BadCertificate,
        },
        Error::InvalidMessage(_) => Reason::NotTls,
        Error::PeerIncompatible(_) => Reason::OldProtocol,
        Error::AlertReceived(_) => Reason::RefusedByPeer,
        _ => Reason::Protocol,
    }
}

fn sentence(error: &Error) -> String {
    match (reason_of(error), error) {
        (Reason::NoCertificate, _) => "the peer showed no certificate".to_owned(),
        (Reason::NotTls, _) => format!("the peer does not speak TLS ({error})"),
        (Reason::OldProtocol, _) => format!("the peer does not support TLS 1.3 as this driver uses it ({error})"),
        (Reason::RefusedByPeer, Error::AlertReceived(alert)) => format!("the peer refused us with the alert {alert:?}"),
        _ => error.to_string(),
    }
}
