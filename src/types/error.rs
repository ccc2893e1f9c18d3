//! The error type of Holdfast. A kind says what the error means to the caller; only `csi::status` turns kinds into gRPC
//! codes.

use std::borrow::Cow;
use std::fmt;
use std::io;

use nix::errno::Errno;

/// What an error means to the caller, independent of the layer where it occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The named volume, snapshot, node or path does not exist.
    NotFound,
    /// It exists, with other properties than the requested ones.
    AlreadyExists,
    /// The request itself is wrong; a retry cannot succeed.
    InvalidArgument,
    /// A size (or offset) that can never be served.
    OutOfRange,
    /// Not enough free space now; nothing was created.
    NoCapacity,
    /// Another operation on the same object is in progress: retry.
    Busy,
    /// It is attached, mounted or open; nothing was changed.
    InUse,
    /// This driver, pool kind or pool filesystem cannot do it.
    Unsupported,
    /// The state of the object forbids it until an operator or another call changes that state.
    Precondition,
    /// The certificate of the caller does not permit this request.
    Denied,
    /// The process that could answer does not answer now.
    Unavailable,
    /// The deadline has passed; the work may continue.
    Timeout,
    /// Stored or read data is inconsistent: an operator must decide.
    Corrupt,
    /// An unexpected failure of the operating system.
    Internal,
}

/// An error: its kind, a message that names the object, the reason and the next step, and its cause.
///
/// `Display` prints the message only; [`Error::chain`] adds the causes.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: Kind,
    message: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a cause.
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same kind under a message of the calling layer; this error becomes the cause.
    #[must_use]
    pub fn context(self, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: self.kind, message: message.into(), source: Some(Box::new(self)) }
    }

    /// The same error with another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The same error with the name of its object before the message.
    #[must_use]
    pub fn about(self, object: &str) -> Self {
        Self { message: format!("{object}: {}", self.message).into(), ..self }
    }

    /// The same error with the message that `change` returns; unchanged as `Err` where it returns none.
    ///
    /// # Errors
    /// The error itself.
    pub fn reworded(self, change: impl FnOnce(&str) -> Option<String>) -> Result<Self> {
        match change(&self.message) {
            Some(message) => Ok(Self { message: message.into(), ..self }),
            None => Err(self),
        }
    }

    /// What it means to the caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message and every cause, joined by `: `.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.message.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }

    /// Adds the error of a failed undo step. Something is then left behind, so a final kind becomes [`Kind::Internal`]:
    /// the caller must retry.
    #[must_use]
    pub fn and_undo_failed(self, undo: &Error) -> Self {
        let message = format!("{} (undoing it also failed: {})", self.message, undo.chain());
        let kind = if self.kind.is_refusal() { Kind::Internal } else { self.kind };
        Self { kind, message: message.into(), source: self.source }
    }
}

impl Error {
    /// A create request with an invalid value fails finally only if no object has its name. A later release may have
    /// created the object before a downgrade, and a final error would make the caller forget it.
    ///
    /// `find` returns the objects with the name; `object` is its name in messages.
    pub fn unless_made<I: fmt::Display>(self, object: &str, find: impl FnOnce() -> Result<Vec<I>>) -> Failure {
        let (kind, rest) = match find() {
            Ok(found) => match found.first() {
                None => return Failure::Clean(self),
                Some(id) => (
                    Kind::Busy,
                    format!(
                        "{object} exists already as {id}; a later release of Holdfast may have created it: upgrade this process, or correct the request"
                    ),
                ),
            },
            Err(error) => {
                (Kind::Unavailable, format!("cannot determine whether {object} already exists: {}", error.chain()))
            }
        };
        Failure::Dirty(Self::new(kind, format!("{}; {rest}", self.chain())))
    }
}

impl Kind {
    /// Whether it means that nothing was done; after any other kind, something may have been done.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        match self {
            Self::Busy | Self::Unavailable | Self::Timeout | Self::Internal => false,
            Self::NotFound
            | Self::AlreadyExists
            | Self::InvalidArgument
            | Self::OutOfRange
            | Self::NoCapacity
            | Self::InUse
            | Self::Unsupported
            | Self::Precondition
            | Self::Denied
            | Self::Corrupt => true,
        }
    }
}

/// How a create failed: did it leave anything behind?
///
/// The external-provisioner forgets a volume at a final gRPC code. An error that left something behind must therefore
/// never become one (docs/design.md section 10). As a type, the two cannot be confused.
#[derive(Debug)]
pub enum Failure {
    /// Nothing exists and nothing is in progress: the error may be returned unchanged.
    Clean(Error),
    /// Something may exist or be in progress: the caller must retry.
    Dirty(Error),
}

impl Failure {
    /// The error alone, where it does not matter whether something is left behind.
    #[must_use]
    pub fn into_error(self) -> Error {
        match self {
            Self::Clean(error) | Self::Dirty(error) => error,
        }
    }

    /// The same failure with a changed error.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Error) -> Error) -> Self {
        match self {
            Self::Clean(error) => Self::Clean(change(error)),
            Self::Dirty(error) => Self::Dirty(change(error)),
        }
    }

    /// The error in both cases.
    #[must_use]
    pub fn error(&self) -> &Error {
        match self {
            Self::Clean(error) | Self::Dirty(error) => error,
        }
    }
}

/// An error from before anything was changed.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Clean(error)
    }
}

/// The explanation of EFBIG for an operator.
pub const TOO_LARGE_A_FILE: &str =
    "the file is larger than its filesystem or the limit of this process allows (ulimit -f, LimitFSIZE= of systemd)";

/// Adds a kind and a message to the `io::Error` of a system call.
pub trait OsContext<T> {
    /// `what` names the operation and its object, as in `fallocate /pool/volumes/../data`.
    ///
    /// # Errors
    /// ENOSPC and EDQUOT become [`Kind::NoCapacity`]; EFBIG [`Kind::OutOfRange`] with its possible limits; a timeout
    /// [`Kind::Timeout`]; an open directory that was removed or mounted over [`Kind::Unavailable`]; everything else
    /// [`Kind::Internal`]. In particular ENOENT does not become `NotFound`, which means a volume, not a file.
    fn at<S: Into<Cow<'static, str>>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> OsContext<T> for io::Result<T> {
    fn at<S: Into<Cow<'static, str>>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| {
            let kind = match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOSPC | Errno::EDQUOT) => Kind::NoCapacity,
                Some(Errno::ETIMEDOUT) => Kind::Timeout,
                Some(Errno::EFBIG) => Kind::OutOfRange,
                _ if error.kind() == io::ErrorKind::TimedOut => Kind::Timeout,
                // From an open directory: it was removed, or something is mounted over a part of it.
                None if matches!(error.kind(), io::ErrorKind::NotConnected | io::ErrorKind::CrossesDevices) => {
                    Kind::Unavailable
                }
                _ => Kind::Internal,
            };
            let mut what = what().into();
            if kind == Kind::OutOfRange {
                what = format!("{what}: {TOO_LARGE_A_FILE}").into();
            }
            Error::new(kind, what).because(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_the_sentence_and_chain_adds_the_causes() {
        let error = Error::new(Kind::Internal, "read x").because(io::Error::from_raw_os_error(libc::EIO));
        assert_eq!(error.to_string(), "read x");
        assert!(error.chain().starts_with("read x: "), "{}", error.chain());
        let outer = error.context("probe volume y");
        assert!(outer.chain().starts_with("probe volume y: read x: "));
    }

    #[test]
    fn only_the_errnos_with_a_meaning_get_one() {
        let kind = |errno| io::Result::<()>::Err(io::Error::from_raw_os_error(errno)).at(|| "x").map_err(|e| e.kind());
        assert_eq!(kind(libc::ENOSPC), Err(Kind::NoCapacity));
        assert_eq!(kind(libc::EDQUOT), Err(Kind::NoCapacity));
        assert_eq!(kind(libc::EFBIG), Err(Kind::OutOfRange));
        assert_eq!(kind(libc::ENOENT), Err(Kind::Internal));
        assert_eq!(kind(libc::EIO), Err(Kind::Internal));
    }
}
