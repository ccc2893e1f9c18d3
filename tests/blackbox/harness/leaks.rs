//! Checks that a test leaves no loop devices on the scratch filesystem, no mounts below the temporary directory, and no
//! processes in its mount namespace.

use std::fs;
use std::path::Path;
use std::time::Duration;

use holdfast::os::{FileIdentity, LoopStatus, Os};

use super::scratch::{Scratch, mounts};

/// Loop devices whose image is on this filesystem.
pub(crate) fn loops_on(device: u64) -> Vec<LoopStatus> {
    let filesystem = FileIdentity { device, inode: 0, size: 0, allocated: 0 };
    Os::new().loops_beside(&filesystem).unwrap()
}

/// Everything that is left, as text.
pub(super) fn find(scratch: &Scratch) -> Vec<String> {
    let loops = loops_on(scratch.device()).into_iter().map(|status| format!("loop {status:?}"));
    let table = mounts();
    let points = table.entries().iter().map(|entry| &entry.mount_point);
    let below = points
        .filter(|point| point.starts_with(scratch.path()) && **point != scratch.root() && *point != scratch.path());
    let below = below.map(|point| format!("mount {}", point.display()));
    loops.chain(below).chain(others_here(None)).collect()
}

/// Detaches loop devices of any owner; one in use is released by its last user.
pub(super) fn clear_loops(device: u64) {
    for status in loops_on(device) {
        let _ = Os::new().loop_clear(&status);
    }
}

/// Directories in /proc of all processes in this thread's mount namespace.
fn here() -> Vec<fs::DirEntry> {
    let namespace = |path: &Path| fs::read_link(path.join("ns/mnt")).ok();
    let ours = namespace(Path::new("/proc/thread-self"));
    let numeric = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let all = fs::read_dir("/proc").unwrap().flatten();
    let all = all.filter(|entry| entry.file_name().to_str().is_some_and(numeric));
    all.filter(|entry| namespace(&entry.path()) == ours && ours.is_some()).collect()
}

/// Processes of other programs in this thread's mount namespace, except a known one; those that are exiting get a
/// moment.
pub(crate) fn others_here(known: Option<u32>) -> Vec<String> {
    let expected = [Some(std::process::id()), known].map(|pid| pid.map(|pid| pid.to_string()).unwrap_or_default());
    let look = || {
        let others =
            here().into_iter().filter(|entry| !expected.iter().any(|pid| entry.file_name().to_str() == Some(pid)));
        let name = |entry: fs::DirEntry| {
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            format!("process {} {}", entry.file_name().to_string_lossy(), command.replace('\0', " "))
        };
        others.map(name).collect::<Vec<_>>()
    };
    for _ in 0..500 {
        let found = look();
        if found.is_empty() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    look()
}

/// A process of a tool.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its number and the tool's name.
    pub(crate) process: String,
    /// Whether it was killed: it dies as soon as it can, and does not continue.
    pub(crate) is_killed: bool,
}

/// The processes of tools whose names begin so in this thread's mount namespace.
///
/// A parent's death signal (PR_SET_PDEATHSIG) is sent before the parent can be reaped, and SIGKILL stays among the
/// pending signals until the process is gone: a process without it continues.
pub(crate) fn tools_here(names: &str) -> Vec<Running> {
    let running = |entry: fs::DirEntry| {
        let comm = fs::read_to_string(entry.path().join("comm")).ok().filter(|comm| comm.starts_with(names))?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let pending = u64::from_str_radix(field("ShdPnd:")?, 16).unwrap();
        let gone = field("State:")?.starts_with(['Z', 'X']);
        let is_killed = gone || pending & (1 << (libc::SIGKILL - 1)) != 0;
        Some(Running { process: format!("{} {}", entry.file_name().to_string_lossy(), comm.trim()), is_killed })
    };
    here().into_iter().filter_map(running).collect()
}
