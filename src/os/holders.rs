//! The users of a mount, for messages: processes with an open file or their working directory below a path.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Call, Os};

/// The most processes that are named.
const NAMED: usize = 5;

/// A process that uses a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The name of its command.
    pub name: String,
    /// Its pid.
    pub pid: u32,
    /// Whether it is this process, or a child of it.
    pub ours: bool,
}

impl Holder {
    /// Several as text; `None` for none.
    #[must_use]
    pub fn list(holders: &[Self]) -> Option<String> {
        let names: Vec<_> = holders.iter().map(ToString::to_string).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.name, self.pid)
    }
}

impl Os {
    /// Processes of our PID namespace that use a file at or below a path, at most five.
    ///
    /// Best effort, for people: processes that start, end or hide meanwhile are missed. Reads only links in /proc, so a
    /// dead filesystem cannot block it.
    ///
    /// # Errors
    /// Those of reading /proc itself.
    pub fn holders(&self, path: &Path) -> io::Result<Vec<Holder>> {
        self.call(Call::Holders, &path.display(), || {
            let mut found = Vec::new();
            for entry in fs::read_dir("/proc")? {
                let process = entry?.path();
                let pid = process.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
                let Some(pid) = pid else { continue };
                if links(&process).iter().any(|link| link.starts_with(path)) {
                    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
                    let ours = pid == std::process::id() || parent(&process) == Some(std::process::id());
                    found.push(Holder { name: name.trim().to_owned(), pid, ours });
                }
                if found.len() == NAMED {
                    break;
                }
            }
            Ok(found)
        })
    }
}

/// The working directory, root and open files of a process.
fn links(process: &Path) -> Vec<PathBuf> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    ["cwd", "root"].map(|name| process.join(name)).into_iter().chain(descriptors).flat_map(fs::read_link).collect()
}

/// The parent of a process.
fn parent(process: &Path) -> Option<u32> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")).and_then(|pid| pid.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_names_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let _open = fs::File::create(directory.path().join("x")).unwrap();
        let holders = Os::new().holders(directory.path()).unwrap();
        assert!(holders.iter().any(|holder| holder.pid == std::process::id() && holder.ours), "{holders:?}");
    }

    #[test]
    fn a_child_is_ours_and_a_stranger_is_not() {
        assert_eq!(parent(Path::new("/proc/self")), Some(std::os::unix::process::parent_id()));
        assert_eq!(parent(Path::new("/proc/no-such-process")), None);
    }
}
