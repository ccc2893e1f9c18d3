//! Child processes of the tests: tools run to completion, and the driver under test.

#![expect(
    clippy::disallowed_methods,
    reason = "a black-box test starts the binary it tests and the tools that judge it"
)]

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;

use super::{await_that, spelling};

/// The exit status and output of a tool.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary under test.
pub(crate) fn driver_binary() -> &'static str {
    env!("CARGO_BIN_EXE_holdfast")
}

/// A free TCP port that stays free while a driver is restarted: the kernel gives ports below its range for local ends
/// (ip_local_port_range, from 32768 on) to no one, and NodePorts begin at 30000.
pub(crate) fn free_port() -> u16 {
    let chosen = || 20_000 + u16::try_from(Uuid::new_v4().as_u128() % 10_000).unwrap();
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(chosen).find(is_free).unwrap()
}

/// A release of the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Release {
    /// The binary under test.
    #[default]
    This,
    /// The release before, which `scripts/release-before` builds.
    Before,
}

impl Release {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::This, Self::Before];

    /// The other one.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::This => Self::Before,
            Self::Before => Self::This,
        }
    }

    /// Its binary.
    pub(crate) fn binary(self) -> String {
        match self {
            Self::This => driver_binary().to_owned(),
            Self::Before => before_binary(),
        }
    }

    /// The name of its logs: what the release before wrote is not checked.
    pub(crate) fn log_in(self, directory: &Path, name: &str) -> PathBuf {
        match self {
            Self::This => directory.join(name),
            Self::Before => directory.join(format!("{name}-of-release-before")),
        }
    }
}

fn before_binary() -> String {
    let script = include_str!("../../../scripts/release-before");
    let commit = script.lines().find_map(|line| line.strip_prefix("COMMIT=")).expect("a commit");
    // The build directory has the directory of the profile, and that has the binary.
    let build = Path::new(driver_binary()).ancestors().nth(2).expect("a build directory");
    let binary = build.join("release-before").join(commit).join("holdfast");
    assert!(
        binary.exists(),
        "{} is missing: run 'make release-before', which builds the release before (CARGO_TARGET_DIR must be the one of this build), then repeat the test",
        binary.display()
    );
    binary.display().to_string()
}

/// Runs a program to its end, with any result.
pub(crate) fn try_run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Finished {
    try_run_with(program, arguments, &[])
}

/// As [`try_run`], with variables in its environment.
pub(crate) fn try_run_with<A: AsRef<OsStr>>(program: &str, arguments: &[A], variables: &[(&str, &str)]) -> Finished {
    let finished = try_run_unchecked(program, arguments, variables);
    if program == driver_binary() {
        spelling::check(&format!("{}\n{}", finished.stdout, finished.stderr));
    }
    finished
}

/// The same without a check of the output: it may have text of the release before.
pub(crate) fn try_run_unchecked<A: AsRef<OsStr>>(
    program: &str,
    arguments: &[A],
    variables: &[(&str, &str)],
) -> Finished {
    let output = Command::new(program)
        .args(arguments)
        .env_remove("CSI_ENDPOINT")
        .env_remove("NODE_NAME")
        .env_remove("HOLDFAST_CONTROLLER")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Finished { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// Runs a program that must succeed; returns its standard output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let finished = try_run(program, arguments);
    assert_eq!(finished.code, Some(0), "{program} {arguments:?}: {} {}", finished.stdout, finished.stderr);
    finished.stdout
}

/// A running driver. Killed when dropped, and by the kernel when the test's thread dies.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    release: Release,
    log: PathBuf,
}

impl Daemon {
    /// Starts the driver in this thread's mount namespace; its output is appended to `log`.
    pub(crate) fn start(arguments: &[String], log: &Path) -> Self {
        Self::start_with(Release::This, arguments, &[], log)
    }

    /// The same for any release, with variables in its environment.
    #[expect(unsafe_code, reason = "prctl(2) between fork and exec needs pre_exec")]
    pub(crate) fn start_with(
        release: Release,
        arguments: &[String],
        variables: &[(String, String)],
        log: &Path,
    ) -> Self {
        let out = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(release.binary());
        command
            .args(arguments)
            .env_remove("CSI_ENDPOINT")
            .env_remove("NODE_NAME")
            .env_remove("KUBECONFIG")
            .envs(variables.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::from(out.try_clone().unwrap()))
            .stderr(Stdio::from(out));
        // SAFETY: only prctl(2) is called between fork and exec, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
        }
        Self { child: command.spawn().unwrap(), release, log: log.to_owned() }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// The exit status, once it has one.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the exit and returns the exit code; a signal as its negative number.
    pub(crate) fn wait(&mut self, limit: Duration) -> i32 {
        await_that("the driver ends", limit, || self.child.try_wait().unwrap().is_some());
        let status = self.child.try_wait().unwrap().unwrap();
        status.code().unwrap_or_else(|| -status.signal().unwrap())
    }

    /// SIGKILL, reaped.
    pub(crate) fn kill9(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    pub(crate) fn terminate(&mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        self.wait(Duration::from_secs(60))
    }

    /// The output of this process and its predecessors with the same log.
    pub(crate) fn log(&self) -> String {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut File::open(&self.log).unwrap(), &mut text).unwrap();
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            self.kill9();
        }
        if self.release == Release::This && !std::thread::panicking() {
            spelling::check(&std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}
