//! Whether the mounts of this process are visible to others: kubelet, container runtimes and the pods they start.
//!
//! On the host all processes share their mounts. A container has its own mount namespace. So has a systemd service with
//! `PrivateTmp=`, `ProtectSystem=` and the like. Their mounts are visible outside only if the mount below belongs to a
//! peer group (`shared:N`) that has members outside.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Call, MountEntry, MountTable, Os};

/// The initial PID namespace of a machine (include/linux/proc_ns.h, `PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// An environment variable in every container that Kubernetes starts.
const IN_A_POD: &str = "KUBERNETES_SERVICE_HOST";

/// The visibility of the mounts of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Kubelet and pods see them, as far as this process can determine.
    Everybody,
    /// Only this mount namespace sees them.
    Ourselves {
        /// The mount that would have to be shared.
        mount_point: PathBuf,
    },
}

impl Visibility {
    /// Why kubelet and pods would not see mounts there, and how to fix that; `None` when they see them.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let Self::Ourselves { mount_point } = self else { return None };
        Some(format!(
            "the driver runs in its own mount namespace, and the mount at {} is not shared with the host, so kubelet and pods \
             would see an empty directory of the node's own disk there. In a container, mount kubelet's directory with \
             mountPropagation: Bidirectional (docker: bind-propagation=rshared). In a systemd service, remove PrivateTmp=, \
             PrivateMounts=, ProtectSystem= and other settings that create a mount namespace. Then restart the driver",
            mount_point.display()
        ))
    }
}

impl Os {
    /// The visibility of mounts of this process at a path without symbolic links.
    ///
    /// # Errors
    /// Those of reading the mount table.
    pub fn visibility(&self, path: &Path) -> io::Result<Visibility> {
        if self.call(Call::Namespaces, &path.display(), || Ok(is_host()))? {
            return Ok(Visibility::Everybody);
        }
        let table = self.mounts()?;
        let Some(below) = table.holding(path.parent().unwrap_or(path)) else { return Ok(Visibility::Everybody) };
        let is_seen = match (below.shared, below.master) {
            (None, _) => false,
            (Some(_), None) => true,
            // A group that receives mounts from another one may have members only here.
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

/// Whether this thread has the mounts of the host's process 1. Process 1 of a container is the driver itself, or
/// another program that its image starts first.
fn is_host() -> bool {
    let is = |a: &str, b: &str| matches!((fs::read_link(a), fs::read_link(b)), (Ok(a), Ok(b)) if a == b);
    let first = fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(FIRST_PID_NAMESPACE));
    is("/proc/thread-self/ns/mnt", "/proc/1/ns/mnt")
        && (first || (std::process::id() != 1 && std::env::var_os(IN_A_POD).is_none()))
}

/// Whether a mount of another namespace belongs to the group or receives from it. If the group that ours receives from
/// is not visible anywhere either, other namespaces are not readable, and the result is true.
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
