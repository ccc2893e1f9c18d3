//! The limit of open files (getrlimit(2), RLIMIT_NOFILE).
//!
//! The default soft limit is 1024, for programs that use select(2). This program does not: it raises its limit to the
//! hard limit. Its children get the original limit.

#![expect(unsafe_code, reason = "getrlimit(2) and setrlimit(2) are C calls")]

use std::io;

use super::{Call, Os};

/// The soft and the hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenFiles {
    soft: libc::rlim_t,
    hard: libc::rlim_t,
}

impl OpenFiles {
    fn now() -> io::Result<Self> {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to a rlimit of ours, which the kernel fills.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { soft: limit.rlim_cur, hard: limit.rlim_max })
    }

    /// Sets the limit of this process. Async-signal-safe: it is called between fork and exec too.
    pub(super) fn set(self) -> io::Result<()> {
        let limit = libc::rlimit { rlim_cur: self.soft, rlim_max: self.hard };
        // SAFETY: the pointer is to a rlimit of ours, which the kernel reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Os {
    /// Raises this process's soft limit of open files to the hard limit. Children that are started later get the
    /// original limit. Returns the new limit.
    ///
    /// # Errors
    /// Those of getrlimit(2) and setrlimit(2).
    pub fn raise_open_files(&self) -> io::Result<u64> {
        self.call(Call::OpenFiles, &"raise", || {
            let before = OpenFiles::now()?;
            OpenFiles { soft: before.hard, hard: before.hard }.set()?;
            let _ = self.inner.open_files.set(before);
            Ok(before.hard)
        })
    }

    /// The limit of open files of this process.
    ///
    /// # Errors
    /// Those of getrlimit(2).
    pub fn open_files(&self) -> io::Result<u64> {
        self.call(Call::OpenFiles, &"look", || Ok(OpenFiles::now()?.soft))
    }

    /// The limit for a child, if it is not ours.
    pub(super) fn open_files_of_children(&self) -> Option<OpenFiles> {
        self.inner.open_files.get().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::os::Program;

    #[test]
    fn we_have_what_is_allowed_and_children_what_we_were_started_with() {
        let before = OpenFiles::now().unwrap();
        // As a service manager starts a process by default.
        OpenFiles { soft: before.hard.min(777), hard: before.hard }.set().unwrap();
        let os = Os::new();
        let now = os.raise_open_files().unwrap();
        assert_eq!((now, os.open_files().unwrap()), (before.hard, before.hard));
        let program = Program::find("sh", Path::new("/dev/null"), Duration::from_secs(10)).unwrap();
        let said = os.run(&program.arg("-c").arg("ulimit -S -n; ulimit -H -n")).unwrap().stdout;
        let hard = if before.hard == libc::RLIM_INFINITY { "unlimited".to_owned() } else { before.hard.to_string() };
        assert_eq!(said.lines().collect::<Vec<_>>(), [before.hard.min(777).to_string().as_str(), hard.as_str()]);
        before.set().unwrap();
    }
}
