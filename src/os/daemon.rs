//! A child that keeps running: our own binary, started by the demonstration and the tests.

#![expect(unsafe_code, reason = "prctl(2) between fork and exec needs pre_exec")]
#![expect(clippy::disallowed_methods, reason = "children are started in os only; this one is not waited for at once")]

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::signals::default_in_child;
use super::{Call, Os};

/// A running child. It is killed when this value is dropped, and gets SIGKILL when the thread that started it ends.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Os {
    /// Starts a long-running program at an absolute path; its output goes to `log`.
    ///
    /// # Errors
    /// Those of fork and exec.
    pub fn start(&self, program: &Path, arguments: &[String], log: &File) -> io::Result<Daemon> {
        self.call(Call::Start, &program.display(), || {
            let mut command = Command::new(program);
            command
                .args(arguments)
                .env_clear()
                .env("LC_ALL", "C")
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log.try_clone()?)
                .process_group(0);
            let files = self.open_files_of_children();
            // SAFETY: between fork and exec only prctl(2), signal(2) and setrlimit(2) are called, which are async-signal-safe.
            unsafe {
                command.pre_exec(move || {
                    default_in_child()?;
                    if let Some(files) = files {
                        files.set()?;
                    }
                    prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into)
                });
            }
            Ok(Daemon { child: command.spawn()? })
        })
    }
}

impl Daemon {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// Those of waitpid(2).
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends SIGKILL and waits until the process is gone. It cannot clean up.
    ///
    /// # Errors
    /// Those of kill(2) and waitpid(2).
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }

    /// Sends SIGTERM. Does nothing if the process has ended.
    ///
    /// # Errors
    /// Those of kill(2).
    pub fn terminate(&mut self) -> io::Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        Ok(kill(Pid::from_raw(pid), Signal::SIGTERM)?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::Stopwatch;
    use std::time::Duration;

    #[test]
    fn it_runs_ends_on_request_and_says_how() {
        let log = tempfile::tempfile().unwrap();
        let mut daemon = Os::new().start(Path::new("/bin/sleep"), &["60".to_owned()], &log).unwrap();
        assert!(daemon.ended().unwrap().is_none());
        daemon.terminate().unwrap();
        let watch = Stopwatch::start();
        while daemon.ended().unwrap().is_none() {
            assert!(watch.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!daemon.ended().unwrap().unwrap().success());
    }
}
