//! What e2fsprogs and xfsprogs have in common: limits, finding, running, and saying what went wrong.

use std::path::Path;
use std::time::Duration;

use crate::os::{Exit, Os, Output, Program};
use crate::types::{Error, Kind, OsContext, Result};

/// For mkfs: seconds by measure, as it writes no tables.
pub(super) const MAKE_LIMIT: Duration = Duration::from_secs(300);
/// For a check of a filesystem that mkfs may not have finished: nothing is in it.
pub(super) const CHECK_LIMIT: Duration = Duration::from_secs(300);
/// For a repair or a resize of a filesystem with data.
pub(super) const REPAIR_LIMIT: Duration = Duration::from_secs(1800);

/// A program of this name, working on this device.
pub(super) fn find(name: &str, device: &Path, limit: Duration) -> Result<Program> {
    Program::find(name, device, limit).map_err(|error| {
        Error::new(Kind::Precondition, format!("{name} is needed for {}", device.display())).because(error)
    })
}

/// Runs it to its end; a non-zero exit is the caller's to judge.
pub(super) fn run(os: &Os, name: &str, device: &Path, program: &Program) -> Result<Output> {
    os.run(program).at(|| format!("run {name} on {}", device.display()))
}

/// The first thing a tool complained of: usage texts and advice come after it.
pub(super) fn said(output: &Output) -> String {
    let banner =
        |line: &&str| !line.trim().is_empty() && !line.starts_with("e2fsck 1.") && !line.starts_with("mke2fs 1.");
    let mut lines = output.stderr.lines().chain(output.stdout.lines()).filter(banner);
    lines.next().unwrap_or("it said nothing").trim().to_owned()
}

/// The error of a tool that failed.
pub(super) fn failed(kind: Kind, name: &str, device: &Path, output: &Output) -> Error {
    let exit = match output.exit {
        Exit::Code(code) => format!("exit code {code}"),
        Exit::Signal(signal) => format!("killed by signal {signal}"),
    };
    let next = match kind {
        Kind::Busy => "something has the device open; ask again",
        Kind::NoCapacity => "the pool is full; make room in it",
        Kind::OutOfRange => "make the volume larger",
        Kind::Unsupported => "the image needs newer tools",
        Kind::Precondition | Kind::Corrupt => "look at the device before anything else is done with it",
        _ => "it is retried; the kernel's log may say more",
    };
    Error::new(kind, format!("{name} on {} failed ({exit}): {}; {next}", device.display(), said(output)))
}
