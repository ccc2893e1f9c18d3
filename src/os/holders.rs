//! Who keeps a mount busy, for messages: processes with something open, or their working directory, below a path.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Call, Os};

/// So many are named at most.
const NAMED: usize = 5;

impl Os {
    /// Processes of our PID namespace that use something at or below a path: `name (pid n)`, at most five.
    ///
    /// A best effort for a person to read: processes that come, go or hide meanwhile are not seen. Reads links in
    /// /proc only, so a dead filesystem cannot hold it up.
    ///
    /// # Errors
    /// Those of reading /proc itself.
    pub fn holders(&self, path: &Path) -> io::Result<Vec<String>> {
        self.call(Call::Holders, &path.display(), || {
            let mut found = Vec::new();
            for entry in fs::read_dir("/proc")? {
                let process = entry?.path();
                let pid = process.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
                let Some(pid) = pid else { continue };
                if links(&process).iter().any(|link| link.starts_with(path)) {
                    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
                    found.push(format!("{} (pid {pid})", name.trim()));
                }
                if found.len() == NAMED {
                    break;
                }
            }
            Ok(found)
        })
    }
}

/// Where a process's working directory, root and open files are.
fn links(process: &Path) -> Vec<PathBuf> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    ["cwd", "root"].map(|name| process.join(name)).into_iter().chain(descriptors).flat_map(fs::read_link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_names_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let _open = fs::File::create(directory.path().join("x")).unwrap();
        let holders = Os::new().holders(directory.path()).unwrap();
        assert!(holders.iter().any(|holder| holder.contains(&std::process::id().to_string())), "{holders:?}");
    }
}
