//! Errors between daemons: kind, message, and whether something is left behind, in the status details. A status without
//! details does not come from the daemon that was called.

#![expect(
    clippy::disallowed_methods,
    reason = "the only module that converts errors between daemons to statuses and back"
)]

use prost::Message;
use tonic::{Code, Response, Status};
use tracing::debug;

use super::proto::{self as pb, error::Left};
use super::works::{Crowd, Ended, Share, WorkerPool};
use crate::types::{Error, Failure, Kind, NodeId, cut_printable};

/// The longest message sent, in bytes: it is in the trailers twice.
const LONGEST: usize = 2048;

/// The status of a failed call.
#[must_use]
pub fn status(failure: &Failure) -> Status {
    let left = match failure {
        Failure::Clean(_) => Left::Nothing,
        Failure::Dirty(_) => Left::Something,
    };
    let mut message = failure.error().chain();
    message.truncate(message.floor_char_boundary(LONGEST));
    let details =
        pb::Error { kind: to_wire(failure.error().kind()).into(), left: left.into(), message: message.clone() };
    Status::with_details(Code::Aborted, message, details.encode_to_vec().into())
}

/// The status for a call that was not begun, because too many are running.
fn crowded(crowd: &Crowd) -> Status {
    let message = format!("in the daemon that was called, {crowd}; retry later");
    status(&Failure::Clean(Error::new(Kind::Unavailable, message)))
}

/// The status for a call whose work panicked.
fn panicked(what: &str) -> Status {
    let message = format!("{what} panicked in the daemon that was called; see its log for the reason, then retry");
    status(&Failure::Dirty(Error::new(Kind::Unavailable, message)))
}

/// The status for a client that has too many running calls.
#[must_use]
pub fn busy(what: &str, most: usize) -> Status {
    let message = format!("{what}: {most} calls of this node are running already; retry when one has ended");
    status(&Error::new(Kind::Unavailable, message).into())
}

/// Runs a call of another daemon as a workflow of a pool of threads.
///
/// # Errors
/// The status of its failure.
pub async fn run<R, E>(
    works: &WorkerPool,
    what: &'static str,
    share: Share,
    work: impl FnOnce() -> std::result::Result<R, E> + Send + 'static,
) -> std::result::Result<Response<R>, Status>
where
    R: Send + 'static,
    E: Into<Failure> + Send + 'static,
{
    match works.run(what, share, None, work).await {
        Ended::Done(Ok(reply)) => Ok(Response::new(reply)),
        Ended::Done(Err(failure)) => {
            let failure = failure.into();
            debug!(what, error = failure.error().chain(), "answered another daemon");
            Err(status(&failure))
        }
        Ended::Panicked => Err(panicked(what)),
        Ended::Crowded(crowd) => Err(crowded(&crowd)),
    }
}

/// The status for a caller without the permission.
#[must_use]
pub fn denied(message: String) -> Status {
    Status::new(Code::PermissionDenied, message)
}

/// The reason of a status: the message of the other side, and the underlying error.
#[must_use]
pub fn reason(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = std::error::Error::source(status);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// The failure that a status means to the caller.
#[must_use]
pub fn failure(node: &NodeId, endpoint: &str, what: &str, status: &Status) -> Failure {
    if let Ok(said) = pb::Error::decode(status.details())
        && !status.details().is_empty()
    {
        return said_by_home(&said);
    }
    let not_done = |kind, message: String| Failure::Clean(Error::new(kind, message));
    let said = &*cut_printable(status.message(), LONGEST);
    match status.code() {
        Code::Unimplemented => not_done(
            Kind::Unavailable,
            format!("{what}: the Holdfast release on node {node} does not have this call; upgrade it ({said})"),
        ),
        Code::PermissionDenied | Code::Unauthenticated => {
            not_done(Kind::Unavailable, format!("{what}: node {node} denies this caller: {said}"))
        }
        Code::DeadlineExceeded | Code::Cancelled => overdue(node, what),
        _ => Failure::Dirty(Error::new(
            Kind::Unavailable,
            format!("{what}: node {node} at {endpoint} does not answer: {said}; check that holdfast runs there"),
        )),
    }
}

/// The call timed out, and its work continues.
#[must_use]
pub fn overdue(node: &NodeId, what: &str) -> Failure {
    let message = format!("{what}: node {node} has not answered in time; the operation continues there; retry");
    Failure::Dirty(Error::new(Kind::Timeout, message))
}

fn said_by_home(said: &pb::Error) -> Failure {
    let kind = pb::error::Kind::try_from(said.kind).ok().and_then(from_wire);
    // A kind of a later release: whatever it means, the caller must retry.
    let error = Error::new(kind.unwrap_or(Kind::Unavailable), cut_printable(&said.message, LONGEST));
    match (kind, Left::try_from(said.left)) {
        (Some(_), Ok(Left::Nothing)) => Failure::Clean(error),
        _ => Failure::Dirty(error),
    }
}

fn to_wire(kind: Kind) -> pb::error::Kind {
    match kind {
        Kind::NotFound => pb::error::Kind::NotFound,
        Kind::AlreadyExists => pb::error::Kind::AlreadyExists,
        Kind::InvalidArgument => pb::error::Kind::InvalidArgument,
        Kind::OutOfRange => pb::error::Kind::OutOfRange,
        Kind::NoCapacity => pb::error::Kind::NoCapacity,
        Kind::Busy => pb::error::Kind::Busy,
        Kind::InUse => pb::error::Kind::InUse,
        Kind::Unsupported => pb::error::Kind::Unsupported,
        Kind::Precondition => pb::error::Kind::Precondition,
        // A caller without permission gets that from the status itself; here it means that the home node is not
        // available.
        Kind::Unavailable | Kind::Denied => pb::error::Kind::Unavailable,
        Kind::Timeout => pb::error::Kind::Timeout,
        Kind::Corrupt => pb::error::Kind::Corrupt,
        Kind::Internal => pb::error::Kind::Internal,
    }
}

fn from_wire(kind: pb::error::Kind) -> Option<Kind> {
    Some(match kind {
        pb::error::Kind::Unspecified => return None,
        pb::error::Kind::NotFound => Kind::NotFound,
        pb::error::Kind::AlreadyExists => Kind::AlreadyExists,
        pb::error::Kind::InvalidArgument => Kind::InvalidArgument,
        pb::error::Kind::OutOfRange => Kind::OutOfRange,
        pb::error::Kind::NoCapacity => Kind::NoCapacity,
        pb::error::Kind::Busy => Kind::Busy,
        pb::error::Kind::InUse => Kind::InUse,
        pb::error::Kind::Unsupported => Kind::Unsupported,
        pb::error::Kind::Precondition => Kind::Precondition,
        pb::error::Kind::Unavailable => Kind::Unavailable,
        pb::error::Kind::Timeout => Kind::Timeout,
        pb::error::Kind::Corrupt => Kind::Corrupt,
        pb::error::Kind::Internal => Kind::Internal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        "node-a".parse().unwrap()
    }

    fn through(failure: &Failure) -> Failure {
        super::failure(&node(), "node-a:9810", "CreateVolume", &status(failure))
    }

    #[test]
    fn kind_sentence_and_what_is_left_travel_whole() {
        for kind in [Kind::NotFound, Kind::NoCapacity, Kind::Busy, Kind::Corrupt, Kind::Internal] {
            let error = || Error::new(kind, "volume x").because(Error::new(Kind::Internal, "deeper"));
            let clean = through(&Failure::Clean(error()));
            let dirty = through(&Failure::Dirty(error()));
            assert!(matches!(&clean, Failure::Clean(e) if e.kind() == kind && e.to_string() == "volume x: deeper"));
            assert!(matches!(&dirty, Failure::Dirty(e) if e.kind() == kind));
        }
    }

    #[test]
    fn what_no_home_said_is_never_clean_unless_it_was_not_begun() {
        let said = |code| failure(&node(), "node-a:9810", "CreateVolume", &Status::new(code, "x"));
        for code in [Code::Unavailable, Code::Unknown, Code::Internal, Code::ResourceExhausted, Code::Aborted] {
            assert!(matches!(said(code), Failure::Dirty(e) if e.kind() == Kind::Unavailable), "{code:?}");
        }
        for code in [Code::DeadlineExceeded, Code::Cancelled] {
            assert!(matches!(said(code), Failure::Dirty(e) if e.kind() == Kind::Timeout), "{code:?}");
        }
        assert!(matches!(said(Code::Unimplemented), Failure::Clean(e) if e.to_string().contains("upgrade")));
        assert!(matches!(said(Code::PermissionDenied), Failure::Clean(e) if e.kind() == Kind::Unavailable));
    }

    #[test]
    fn a_kind_of_a_later_release_is_asked_again() {
        let details = pb::Error { kind: 99, left: Left::Nothing.into(), message: "new".into() }.encode_to_vec();
        let status = Status::with_details(Code::Aborted, "new", details.into());
        let failure = failure(&node(), "e", "w", &status);
        assert!(matches!(failure, Failure::Dirty(e) if e.kind() == Kind::Unavailable));
    }

    #[test]
    fn a_long_sentence_is_cut() {
        let long = through(&Failure::Clean(Error::new(Kind::Internal, "ü".repeat(LONGEST))));
        assert!(long.error().to_string().len() <= LONGEST);
    }
}
