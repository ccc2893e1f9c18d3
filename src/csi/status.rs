//! The one map from errors to gRPC statuses (docs/design.md section 10).
//!
//! After a final code the CO forgets the object: the external-provisioner a volume, the external-attacher an
//! attachment, kubelet a mount. So an unexpected failure of a call that creates or attaches something is ABORTED
//! (retry). INTERNAL and UNKNOWN are left to calls that change nothing or that the CO always repeats.

#![expect(clippy::disallowed_methods, reason = "this is where gRPC codes are chosen")]

use std::time::Duration;

use tonic::{Code, Status};

use super::rpc::{Class, Rpc, Service};
use crate::types::{Failure, Kind};
use crate::wire::Crowd;

/// The longest message of a status, in bytes: it is sent percent-encoded in one HTTP/2 header.
const LONGEST: usize = 2048;

/// The status of a failed call.
pub(super) fn of(rpc: Rpc, failure: &Failure) -> Status {
    match failure {
        Failure::Clean(error) => answer(code(rpc, error.kind()), &error.chain()),
        Failure::Dirty(error) => answer(unfinished(rpc, error.kind()), &error.chain()),
    }
}

/// The code of a failed call.
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn code_of(rpc: Rpc, failure: &Failure) -> Code {
    of(rpc, failure).code()
}

/// The code of an error that left nothing behind.
fn code(rpc: Rpc, kind: Kind) -> Code {
    use Class::{Attach, Create, Probe, Query, Release};
    let making = matches!(rpc.class(), Create | Attach);
    match (kind, rpc.class()) {
        (_, Probe) => Code::FailedPrecondition,
        (Kind::NotFound, _) => Code::NotFound,
        (Kind::AlreadyExists, _) => Code::AlreadyExists,
        (Kind::InvalidArgument, _) => Code::InvalidArgument,
        (Kind::OutOfRange, _) => Code::OutOfRange,
        (Kind::NoCapacity, Create) => Code::ResourceExhausted,
        // The external-resizer allows a smaller size for the claim only after a final code (KEP-1790).
        (Kind::NoCapacity, Attach) if rpc == Rpc::ControllerExpandVolume => Code::OutOfRange,
        (Kind::NoCapacity, Attach) if rpc == Rpc::NodeExpandVolume => Code::ResourceExhausted,
        // For an attach, RESOURCE_EXHAUSTED would mean that the node has too many volumes.
        (Kind::NoCapacity, Attach | Release | Query) => Code::Unavailable,
        (Kind::Busy, _) => Code::Aborted,
        (Kind::InUse | Kind::Precondition, _) => Code::FailedPrecondition,
        (Kind::Unsupported, _) => match rpc.service() {
            Service::Node => Code::FailedPrecondition,
            Service::Identity | Service::Controller => Code::InvalidArgument,
        },
        // Between daemons only: an earlier attempt may have left something behind, so the code must not be final while
        (Kind::Unavailable | Kind::Denied, _) => Code::Unavailable,
        (Kind::Timeout, _) => Code::DeadlineExceeded,
        (Kind::Corrupt, Create | Attach) => Code::FailedPrecondition,
        (Kind::Corrupt, Release | Query) => Code::Internal,
        (Kind::Internal, _) if making => Code::Aborted,
        (Kind::Internal, _) => Code::Internal,
    }
}

/// The code of an error that may have left something behind or in progress: never a final one.
fn unfinished(rpc: Rpc, kind: Kind) -> Code {
    match kind {
        _ if rpc.class() == Class::Probe => Code::FailedPrecondition,
        Kind::Unavailable | Kind::Denied => Code::Unavailable,
        Kind::Timeout => Code::DeadlineExceeded,
        Kind::NotFound
        | Kind::AlreadyExists
        | Kind::InvalidArgument
        | Kind::OutOfRange
        | Kind::NoCapacity
        | Kind::Busy
        | Kind::InUse
        | Kind::Unsupported
        | Kind::Precondition
        | Kind::Corrupt
        | Kind::Internal => Code::Aborted,
    }
}

fn answer(code: Code, message: &str) -> Status {
    Status::new(code, presentable(message))
}

/// Never empty, one line, at most [`LONGEST`] bytes.
fn presentable(message: &str) -> String {
    let line: String = message.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.is_empty() {
        return "no reason was given; see the driver's log".to_owned();
    }
    if line.len() <= LONGEST {
        return line;
    }
    let end = line.floor_char_boundary(LONGEST);
    format!("{}... (truncated; the driver's log has the full message)", line.get(..end).unwrap_or_default())
}

/// A request that cannot be decoded as the message of its call.
pub(super) fn undecodable(reason: &str) -> Status {
    answer(
        Code::InvalidArgument,
        &format!("the request cannot be decoded as the CSI v1 message of this call: {reason}"),
    )
}

/// A call that is not served here, by its HTTP path.
pub(super) fn unimplemented(path: &str) -> Status {
    let call: String = path.trim_start_matches('/').chars().take(128).collect();
    answer(
        Code::Unimplemented,
        &format!(
            "{call} is not served on this socket; for the calls that are, see GetPluginCapabilities, \
             ControllerGetCapabilities and NodeGetCapabilities"
        ),
    )
}

/// The work of a call panicked, or its thread could not be started: it is unknown what was done.
pub(super) fn panicked(rpc: Rpc) -> Status {
    answer(
        Code::Unavailable,
        &format!("{} failed unexpectedly inside the driver; see the driver's log for the reason; retry", rpc.name()),
    )
}

/// The caller's deadline is close; the work continues.
pub(super) fn overdue(rpc: Rpc) -> Status {
    answer(
        Code::DeadlineExceeded,
        &format!("{} did not finish before the caller's deadline; it continues in the driver; retry", rpc.name()),
    )
}

/// The daemon is stopping.
pub(super) fn stopping(rpc: Rpc) -> Status {
    answer(
        Code::Unavailable,
        &format!("{} is refused: this driver process is stopping; retry when it is running again", rpc.name()),
    )
}

/// A request that did not arrive in time.
pub(super) fn unsent(rpc: Rpc, limit: Duration) -> Status {
    answer(
        Code::DeadlineExceeded,
        &format!(
            "the request of {} did not arrive within {} s; nothing was started; retry",
            rpc.name(),
            limit.as_secs()
        ),
    )
}

/// Too many bytes of requests are arriving at once.
pub(super) fn flooded() -> Status {
    answer(Code::Unavailable, "this driver is receiving too many bytes of requests at once; retry later")
}

/// Too many calls at once.
pub(super) fn crowded(rpc: Rpc, crowd: &Crowd) -> Status {
    answer(Code::Unavailable, &format!("{} is refused: {crowd}; retry later", rpc.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Error;

    const KINDS: [Kind; 14] = [
        Kind::NotFound,
        Kind::AlreadyExists,
        Kind::InvalidArgument,
        Kind::OutOfRange,
        Kind::NoCapacity,
        Kind::Busy,
        Kind::InUse,
        Kind::Unsupported,
        Kind::Precondition,
        Kind::Denied,
        Kind::Unavailable,
        Kind::Timeout,
        Kind::Corrupt,
        Kind::Internal,
    ];

    /// A row of the table, in the order of [`KINDS`].
    fn row(rpc: Rpc) -> [Code; 14] {
        use Code::{
            Aborted, AlreadyExists, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound,
            OutOfRange, ResourceExhausted, Unavailable,
        };
        let unsupported = if rpc.service() == Service::Node { FailedPrecondition } else { InvalidArgument };
        let (room, corrupt, internal) = match rpc.class() {
            Class::Create => (ResourceExhausted, FailedPrecondition, Aborted),
            Class::Attach if rpc == Rpc::ControllerExpandVolume => (OutOfRange, FailedPrecondition, Aborted),
            Class::Attach if rpc == Rpc::NodeExpandVolume => (ResourceExhausted, FailedPrecondition, Aborted),
            Class::Attach => (Unavailable, FailedPrecondition, Aborted),
            Class::Release | Class::Query => (Unavailable, Internal, Internal),
            Class::Probe => return [FailedPrecondition; 14],
        };
        [
            NotFound,
            AlreadyExists,
            InvalidArgument,
            OutOfRange,
            room,
            Aborted,
            FailedPrecondition,
            unsupported,
            FailedPrecondition,
            Unavailable,
            Unavailable,
            DeadlineExceeded,
            corrupt,
            internal,
        ]
    }

    #[test]
    fn the_table_of_kinds_and_calls() {
        for rpc in Rpc::ALL {
            let expected = row(*rpc);
            for (kind, code) in KINDS.into_iter().zip(expected) {
                let status = of(*rpc, &Failure::Clean(Error::new(kind, "x")));
                assert_eq!(status.code(), code, "{rpc:?} {kind:?}");
                assert!(!status.message().is_empty() && status.details().is_empty());
            }
        }
    }

    #[test]
    fn creates_never_answer_internal_or_unknown_and_unfinished_ones_nothing_final() {
        let background = [Code::Aborted, Code::Unavailable, Code::DeadlineExceeded];
        for rpc in [Rpc::CreateVolume, Rpc::CreateSnapshot] {
            for kind in KINDS {
                let clean = of(rpc, &Failure::Clean(Error::new(kind, "x"))).code();
                assert!(!matches!(clean, Code::Internal | Code::Unknown), "{rpc:?} {kind:?}");
                let dirty = of(rpc, &Failure::Dirty(Error::new(kind, "x"))).code();
                assert!(background.contains(&dirty), "{rpc:?} {kind:?} {dirty:?}");
            }
            for status in [panicked(rpc), overdue(rpc), stopping(rpc), crowded(rpc, &Crowd::WorkerPool(1))] {
                assert!(background.contains(&status.code()), "{status:?}");
            }
        }
    }

    #[test]
    fn the_message_has_the_whole_chain_on_one_line_and_ends() {
        let error = Error::new(Kind::Internal, "mkfs failed").because(Error::new(Kind::Internal, "line one\nline two"));
        let status = of(Rpc::NodeStageVolume, &Failure::Clean(error));
        assert_eq!(status.message(), "mkfs failed: line one line two");
        let long = of(Rpc::Probe, &Failure::Clean(Error::new(Kind::Internal, "ü".repeat(LONGEST))));
        assert!(long.message().len() < LONGEST + 60, "{}", long.message().len());
        assert!(!of(Rpc::Probe, &Failure::Clean(Error::new(Kind::Internal, "\n"))).message().is_empty());
    }
}
