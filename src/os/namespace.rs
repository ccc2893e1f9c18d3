//! Whether what this process mounts can be seen by others: kubelet, container runtimes and the pods they start.
//!
//! On the host every process shares its mounts. A container and a service of systemd with a file system of its own
//! (`PrivateTmp=`, `ProtectSystem=`) have a mount namespace of their own, and what they mount is seen outside only where
//! the mount below belongs to a peer group (`shared:N`) that has members outside.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Call, MountEntry, MountTable, Os};

/// The PID namespace the machine starts with (include/linux/proc_ns.h, `PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// In the environment of every container that Kubernetes starts.
const IN_A_POD: &str = "KUBERNETES_SERVICE_HOST";

/// Who sees a mount that this process makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Kubelet and pods see it, as far as can be told from here.
    Everybody,
    /// Only this mount namespace does.
    Ourselves {
        /// The mount that would have to be shared.
        mount_point: PathBuf,
    },
}

impl Os {
    /// Who sees what this process mounts at a path without symbolic links.
    ///
    /// # Errors
    /// Those of reading the table of mounts.
    pub fn visibility(&self, path: &Path) -> io::Result<Visibility> {
        if self.call(Call::Namespaces, &path.display(), || Ok(is_host()))? {
            return Ok(Visibility::Everybody);
        }
        let table = self.mounts()?;
        let Some(below) = table.holding(path.parent().unwrap_or(path)) else { return Ok(Visibility::Everybody) };
        let is_seen = match (below.shared, below.master) {
            (None, _) => false,
            (Some(_), None) => true,
            // A group that receives mounts from another one may have members here only.
            (Some(group), Some(master)) => {
                self.call(Call::Namespaces, &path.display(), || Ok(is_seen_elsewhere(group, master)))?
            }
        };
        Ok(if is_seen {
            Visibility::Everybody
        } else {
            Visibility::Ourselves { mount_point: below.mount_point.clone() }
        })
    }
}

/// Whether this thread has the mounts of the system that process 1 runs. Process 1 of a container is the driver itself,
/// or something else that its image starts first.
fn is_host() -> bool {
    let is = |a: &str, b: &str| matches!((fs::read_link(a), fs::read_link(b)), (Ok(a), Ok(b)) if a == b);
    let first = fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(FIRST_PID_NAMESPACE));
    is("/proc/thread-self/ns/mnt", "/proc/1/ns/mnt")
        && (first || (std::process::id() != 1 && std::env::var_os(IN_A_POD).is_none()))
}

/// Whether a mount of another namespace belongs to the group or receives from it. Where the group that ours receives
/// from is nowhere to be seen either, other namespaces cannot be looked into, and nothing is held against it.
fn is_seen_elsewhere(group: u64, master: u64) -> bool {
    let own = fs::read_link("/proc/thread-self/ns/mnt").ok();
    let mut looked_at: HashSet<_> = own.into_iter().collect();
    let mut master_seen = false;
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let first = std::iter::once(PathBuf::from("/proc/1"));
    for process in first.chain(processes) {
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else { continue };
        if !looked_at.insert(namespace) {
            continue;
        }
        let table = fs::read(process.join("mountinfo")).and_then(|text| MountTable::parse(&text));
        let Ok(table) = table else { continue };
        let of = |entry: &MountEntry, wanted| entry.shared == Some(wanted) || entry.master == Some(wanted);
        if table.entries().iter().any(|entry| of(entry, group)) {
            return true;
        }
        master_seen |= table.entries().iter().any(|entry| entry.shared == Some(master));
    }
    !master_seen
}
