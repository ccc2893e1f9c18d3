//! The one error of Holdfast. Kinds are the caller's meanings; only `csi::status` turns them into gRPC codes.

use std::borrow::Cow;
use std::fmt;
use std::io;

use nix::errno::Errno;

/// What an error means to the caller, whatever layer it began in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The named volume, snapshot, node or path does not exist.
    NotFound,
    /// It exists, with other properties than those asked for.
    AlreadyExists,
    /// The request itself is wrong; repeating it cannot help.
    InvalidArgument,
    /// A size (or offset) that can never be served.
    OutOfRange,
    /// No room now, and nothing was created.
    NoCapacity,
    /// Another operation on the same thing is under way: ask again.
    Busy,
    /// It is attached, mounted, or open; nothing was changed.
    InUse,
    /// This driver, pool kind or pool filesystem cannot do it.
    Unsupported,
    /// The state of the thing forbids it until somebody acts.
    Precondition,
    /// Who asks has shown by its certificate that it is somebody else than this may be done for.
    Denied,
    /// Whoever could answer does not answer now.
    Unavailable,
    /// The time given ran out; work may go on.
    Timeout,
    /// Stored or read data contradicts itself: a human decides.
    Corrupt,
    /// An unexpected failure of the system below.
    Internal,
}

/// An error: its meaning, a sentence that names the thing, the reason and the next step, and what caused it.
///
/// `Display` prints the sentence only; [`Error::chain`] adds the causes.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a deeper cause.
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same meaning under a sentence of the layer above; this error becomes the cause.
    #[must_use]
    pub fn context(self, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: self.kind, message: message.into(), source: Some(Box::new(self)) }
    }

    /// The same error with another meaning.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// What it means to the caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The sentence and every cause, joined by `: `.
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

    /// Keeps an error of an undo step next to the one that made it necessary. Something is left behind then, so a
    /// meaning that tells the caller to forget becomes [`Kind::Internal`]: it has to ask again.
    #[must_use]
    pub fn and_undo_failed(self, undo: &Error) -> Self {
        let message = format!("{} (and undoing it failed too: {})", self.message, undo.chain());
        let kind = if self.kind.is_refusal() { Kind::Internal } else { self.kind };
        Self { kind, message: message.into(), source: self.source }
    }
}

impl Error {
    /// A create that is refused for its words is final only where nothing has its name: a later release may have made
    /// it before a downgrade, and a caller that forgets it would leave it behind.
    ///
    /// `find` says what has the name; `object` is what messages call it.
    pub fn unless_made<I: fmt::Display>(self, object: &str, find: impl FnOnce() -> Result<Vec<I>>) -> Failure {
        let (kind, rest) = match find() {
            Ok(found) => match found.first() {
                None => return Failure::Clean(self),
                Some(id) => (
                    Kind::Busy,
                    format!(
                        "{object} exists already as {id}, as a later release of Holdfast may have made it: upgrade this one, or correct the request"
                    ),
                ),
            },
            Err(error) => {
                (Kind::Unavailable, format!("whether {object} exists already is not known: {}", error.chain()))
            }
        };
        Failure::Dirty(Self::new(kind, format!("{}; {rest}", self.chain())))
    }
}

impl Kind {
    /// Whether it says that nothing was done; the others leave open what was.
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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// How a create ended when it did not succeed: did it leave anything behind?
///
/// The external-provisioner forgets a volume at a final gRPC code, so an error that left something must
/// never become one (docs/design.md section 10). Making this a type means the edge cannot mistake the two.
#[derive(Debug)]
pub enum Failure {
    /// Nothing exists and nothing is under way: the error may be answered as it is.
    Clean(Error),
    /// Something may exist or be under way: the caller must be told to ask again.
    Dirty(Error),
}

impl Failure {
    /// The error alone, where nothing depends on what is left behind.
    #[must_use]
    pub fn into_error(self) -> Error {
        match self {
            Self::Clean(error) | Self::Dirty(error) => error,
        }
    }

    /// The error, whichever way it ended.
    #[must_use]
    pub fn error(&self) -> &Error {
        match self {
            Self::Clean(error) | Self::Dirty(error) => error,
        }
    }
}

/// An error met before anything was touched.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Clean(error)
    }
}

/// What EFBIG means to an operator.
pub const TOO_LARGE_A_FILE: &str = "no file may be so large here, by its filesystem or by the limit of this process (ulimit -f, LimitFSIZE= of systemd)";

/// Gives a bare `io::Error` of a system call its meaning and its sentence.
pub trait OsContext<T> {
    /// `what` says what was tried on what, as in `fallocate /pool/volumes/../data`.
    ///
    /// # Errors
    /// ENOSPC and EDQUOT become [`Kind::NoCapacity`], EFBIG [`Kind::OutOfRange`] with the limits it can come from, a timeout
    /// [`Kind::Timeout`], a held directory that went away or is mounted over [`Kind::Unavailable`], everything else [`Kind::Internal`]:
    /// in particular ENOENT does not become `NotFound`, which means a volume, not a file.
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
                // Of a directory that is held: it went away, or something is mounted over a part of it.
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
