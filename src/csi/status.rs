//! The one map from errors to gRPC statuses (docs/design.md section 10).
//!
//! A final code tells the CO to forget: the external-provisioner forgets a volume, the external-attacher an
//! attachment, kubelet a mount. So an unexpected failure of a call that makes or brings something is ABORTED, "ask
//! again", and INTERNAL and UNKNOWN are left to calls that change nothing or are repeated whatever they answer.

#![expect(clippy::disallowed_methods, reason = "this is where gRPC codes are chosen")]

use std::time::Duration;

use tonic::{Code, Status};

use super::rpc::{Class, Rpc, Service};
use crate::types::{Failure, Kind};
use crate::works::Crowd;

/// The longest message answered, in bytes: it travels percent-encoded in one HTTP/2 header.
const LONGEST: usize = 2048;

/// A failed call's answer.
pub(super) fn of(rpc: Rpc, failure: &Failure) -> Status {
    match failure {
        Failure::Clean(error) => answer(code(rpc, error.kind()), &error.chain()),
        Failure::Dirty(error) => answer(unfinished(rpc, error.kind()), &error.chain()),
    }
}

/// The code of a failed call's answer.
#[cfg(test)]
pub(crate) fn code_of(rpc: Rpc, failure: &Failure) -> Code {
    of(rpc, failure).code()
}

/// The code of an error that left nothing behind.
fn code(rpc: Rpc, kind: Kind) -> Code {
    use Class::{Asking, Bringing, Creating, Probing, Taking};
    let making = matches!(rpc.class(), Creating | Bringing);
    match (kind, rpc.class()) {
        (_, Probing) => Code::FailedPrecondition,
        (Kind::NotFound, _) => Code::NotFound,
        (Kind::AlreadyExists, _) => Code::AlreadyExists,
        (Kind::InvalidArgument, _) => Code::InvalidArgument,
        (Kind::OutOfRange, _) => Code::OutOfRange,
        (Kind::NoCapacity, Creating) => Code::ResourceExhausted,
        // The external-resizer lets a claim go back to a smaller size only after a code that says "never" (KEP-1790).
        (Kind::NoCapacity, Bringing) if rpc == Rpc::ControllerExpandVolume => Code::OutOfRange,
        (Kind::NoCapacity, Bringing) if rpc == Rpc::NodeExpandVolume => Code::ResourceExhausted,
        // At an attach RESOURCE_EXHAUSTED would say that the node has too many volumes.
        (Kind::NoCapacity, Bringing | Taking | Asking) => Code::Unavailable,
        (Kind::Busy, _) => Code::Aborted,
        (Kind::InUse | Kind::Precondition, _) => Code::FailedPrecondition,
        (Kind::Unsupported, _) => match rpc.service() {
            Service::Node => Code::FailedPrecondition,
            Service::Identity | Service::Controller => Code::InvalidArgument,
        },
        // Between daemons only: until a certificate is put right, what an earlier try left behind must not be forgotten.
        (Kind::Unavailable | Kind::Denied, _) => Code::Unavailable,
        (Kind::Timeout, _) => Code::DeadlineExceeded,
        (Kind::Corrupt, Creating | Bringing) => Code::FailedPrecondition,
        (Kind::Corrupt, Taking | Asking) => Code::Internal,
        (Kind::Internal, _) if making => Code::Aborted,
        (Kind::Internal, _) => Code::Internal,
    }
}

/// The code of an error that may have left something behind or under way: never a final one.
fn unfinished(rpc: Rpc, kind: Kind) -> Code {
    match kind {
        _ if rpc.class() == Class::Probing => Code::FailedPrecondition,
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
        return "no reason was given; the driver's log has the rest".to_owned();
    }
    if line.len() <= LONGEST {
        return line;
    }
    let end = line.floor_char_boundary(LONGEST);
    format!("{}... (cut; the driver's log has the rest)", line.get(..end).unwrap_or_default())
}

/// A request whose bytes are not the message they should be.
pub(super) fn undecodable(reason: &str) -> Status {
    answer(Code::InvalidArgument, &format!("the request is not the CSI v1 message of this call: {reason}"))
}

/// A call that is not served here, by its HTTP path.
pub(super) fn unimplemented(path: &str) -> Status {
    let call: String = path.trim_start_matches('/').chars().take(128).collect();
    answer(
        Code::Unimplemented,
        &format!(
            "{call} is not served on this socket; GetPluginCapabilities, ControllerGetCapabilities and NodeGetCapabilities say what is"
        ),
    )
}

/// The work of a call ended in a panic, or its thread could not be had: nothing is known of what it did.
pub(super) fn panicked(rpc: Rpc) -> Status {
    answer(
        Code::Unavailable,
        &format!("{} ended unexpectedly inside the driver; its log has the reason; ask again", rpc.name()),
    )
}

/// The caller's time is about to run out; what was begun goes on.
pub(super) fn overdue(rpc: Rpc) -> Status {
    answer(
        Code::DeadlineExceeded,
        &format!("{} did not end within the caller's time; it goes on here; ask again", rpc.name()),
    )
}

/// The daemon stops.
pub(super) fn stopping(rpc: Rpc) -> Status {
    answer(
        Code::Unavailable,
        &format!("{} is refused: this driver process is stopping; ask again when it is back", rpc.name()),
    )
}

/// A request that did not arrive in time.
pub(super) fn unsent(rpc: Rpc, limit: Duration) -> Status {
    answer(
        Code::DeadlineExceeded,
        &format!("the request of {} did not arrive within {} s; nothing was begun", rpc.name(), limit.as_secs()),
    )
}

/// Too much on its way in at once.
pub(super) fn flooded() -> Status {
    answer(Code::Unavailable, "too many bytes of requests are on their way into this driver; ask again later")
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

    /// What a row of the table says, in the order of [`KINDS`].
    fn row(rpc: Rpc) -> [Code; 14] {
        use Code::{
            Aborted, AlreadyExists, DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound,
            OutOfRange, ResourceExhausted, Unavailable,
        };
        let unsupported = if rpc.service() == Service::Node { FailedPrecondition } else { InvalidArgument };
        let (room, corrupt, internal) = match rpc.class() {
            Class::Creating => (ResourceExhausted, FailedPrecondition, Aborted),
            Class::Bringing if rpc == Rpc::ControllerExpandVolume => (OutOfRange, FailedPrecondition, Aborted),
            Class::Bringing if rpc == Rpc::NodeExpandVolume => (ResourceExhausted, FailedPrecondition, Aborted),
            Class::Bringing => (Unavailable, FailedPrecondition, Aborted),
            Class::Taking | Class::Asking => (Unavailable, Internal, Internal),
            Class::Probing => return [FailedPrecondition; 14],
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
            for status in [panicked(rpc), overdue(rpc), stopping(rpc), crowded(rpc, &Crowd::Works(1))] {
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
