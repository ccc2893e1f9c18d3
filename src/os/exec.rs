//! Child processes: absolute path, argument vector, empty environment except LC_ALL=C, no stdin, capped output, a time
//! limit, and killed with us. The only module that starts a program to its end.

use std::cell::OnceCell;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use super::spawn::{OurDeath, Spawn};
use super::{Call, Os, Stopwatch};

/// The most output of one child that is kept.
const OUTPUT_CAP: usize = 64 * 1024;

/// A program to run.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// Variables whose value is the path of a file with this text.
    files: Vec<(String, String)>,
    /// The length of a file of zeroes, passed as its last argument.
    blank: Option<u64>,
    /// The limit of its address space, bytes.
    memory: Option<u64>,
    death: OurDeath,
    limit: Duration,
    /// Its target, for the table of running operations.
    target: String,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// exit(3) with this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// The output and exit of a child.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output, at most 64 KiB.
    pub stdout: String,
    /// Its standard error, at most 64 KiB.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// One line for an error: the exit and the last line of output.
    #[must_use]
    pub fn summary(&self) -> String {
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no output").trim();
        match self.exit {
            Exit::Code(code) => format!("exit code {code}: {last}"),
            Exit::Signal(signal) => format!("killed by signal {signal}: {last}"),
        }
    }
}

impl Program {
    /// The program `name`, searched in /usr/sbin, /usr/bin, /sbin and /bin, with target `target`, killed after `limit`.
    ///
    /// # Errors
    /// `NotFound` with the program and the searched directories.
    pub fn find(name: &str, target: &Path, limit: Duration) -> io::Result<Self> {
        let found =
            ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|p| p.exists());
        let path = found.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("{name} is in none of /usr/sbin, /usr/bin, /sbin, /bin; install it"),
            )
        })?;
        Ok(Self::at(path, target, limit))
    }

    /// The program at an absolute path.
    #[must_use]
    pub fn at(path: PathBuf, target: &Path, limit: Duration) -> Self {
        let target = target.display().to_string();
        Self {
            path,
            arguments: Vec::new(),
            environment: Vec::new(),
            files: Vec::new(),
            blank: None,
            memory: None,
            death: OurDeath::Kills,
            limit,
            target,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to the otherwise empty environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Adds a variable with the path of a file with this text: sealed, in memory, gone with the child
    /// (memfd_create(2)).
    #[must_use]
    pub fn env_file(mut self, name: &str, text: impl Into<String>) -> Self {
        self.files.push((name.to_owned(), text.into()));
        self
    }

    /// Passes a file of zeroes of this length as its last argument: sparse, in memory, gone with the child. For a tool
    /// that only examines its target.
    #[must_use]
    pub fn blank_file(mut self, length: u64) -> Self {
        self.blank = Some(length);
        self
    }

    /// Limits its address space (RLIMIT_AS), so that only the checker of a huge filesystem fails, and it does not take
    /// the daemon's memory.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// The child is not killed when our process dies. For a tool that damages its device when it is interrupted, and
    /// opens it exclusively (O_EXCL), so that nothing else writes to it.
    #[must_use]
    pub fn outlives_us(mut self) -> Self {
        self.death = OurDeath::IsIgnored;
        self
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl Os {
    /// Runs a program to its end.
    ///
    /// After its limit the child is killed, and waited for in any case. A child in uninterruptible sleep blocks this
    /// thread (and the volume's lock that its caller holds); [`Os::activity`] lists it with pid and age. When our
    /// process dies the child gets SIGKILL (PR_SET_PDEATHSIG), unless it [outlives us](Program::outlives_us).
    ///
    /// # Errors
    /// Those of clone(2) and execve(2); `TimedOut` when it had to be killed. A non-zero exit is not an error here.
    pub fn run(&self, program: &Program) -> io::Result<Output> {
        self.call(Call::Exec, &format_args!("{} {}", program.name(), program.target), || self.execute(program))
    }

    fn execute(&self, program: &Program) -> io::Result<Output> {
        let mut environment = vec![variable("LC_ALL", "C")?, variable("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")?];
        for (name, value) in &program.environment {
            environment.push(variable(name, value)?);
        }
        let name = program.path.as_os_str().as_bytes();
        let texts = std::iter::once(name).chain(program.arguments.iter().map(String::as_bytes));
        let mut arguments = texts.map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let mut kept = Vec::new();
        for (name, text) in &program.files {
            let file = sealed(name, text)?;
            environment.push(variable(name, &path_of(&file))?);
            kept.push(file);
        }
        if let Some(length) = program.blank {
            let file = File::from(memfd_create("blank", MFdFlags::MFD_CLOEXEC)?);
            file.set_len(length)?;
            arguments.push(CString::new(path_of(&file))?);
            kept.push(file);
        }
        let stdin = File::open("/dev/null")?;
        let ((out, stdout), (err, stderr)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
        let spawn = Spawn {
            path: &CString::new(name)?,
            arguments: &arguments,
            environment: &environment,
            standard: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            kept: &kept.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(),
            open_files: self.open_files_of_children(),
            memory: program.memory,
            death: program.death,
        };
        let child = Child::of(spawn.start()?, program.death);
        // Only the child has the ends that it writes to.
        drop((stdout, stderr));
        let _ongoing = self.activity().enter(&program.name(), &program.target, Some(child.id()));
        let (mut stdout, mut stderr) = (Drain::new(out), Drain::new(err));
        let killed = supervise(&child, program.limit, &mut stdout, &mut stderr)?;
        let exit = child.wait()?;
        if killed {
            let said = format!("{} was killed after {} s", program.name(), program.limit.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, said));
        }
        Ok(Output { exit, stdout: stdout.text(), stderr: stderr.text() })
    }
}

/// A child that was started. If it is dropped before its end was seen, after an error, it is killed, unless that would
/// damage its device ([`Program::outlives_us`]).
struct Child {
    pid: Pid,
    death: OurDeath,
    exit: OnceCell<Exit>,
}

impl Child {
    fn of(pid: Pid, death: OurDeath) -> Self {
        Self { pid, death, exit: OnceCell::new() }
    }

    fn id(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    fn kill(&self) -> io::Result<()> {
        if self.exit.get().is_none() {
            kill(self.pid, Signal::SIGKILL)?;
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Exit> {
        loop {
            if let Some(exit) = self.look(None)? {
                return Ok(exit);
            }
        }
    }

    fn ended(&self) -> io::Result<bool> {
        Ok(self.look(Some(WaitPidFlag::WNOHANG))?.is_some())
    }

    /// How it ended, if it has.
    fn look(&self, flags: Option<WaitPidFlag>) -> io::Result<Option<Exit>> {
        if let Some(exit) = self.exit.get() {
            return Ok(Some(*exit));
        }
        let exit = match waitpid(self.pid, flags) {
            Ok(WaitStatus::Exited(_, code)) => Exit::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(signal as i32),
            Ok(_) | Err(Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        Ok(Some(*self.exit.get_or_init(|| exit)))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.death == OurDeath::Kills {
            let _ = self.kill().and_then(|()| self.wait());
        }
    }
}

/// `NAME=VALUE`.
fn variable(name: &str, value: &str) -> io::Result<CString> {
    Ok(CString::new(format!("{name}={value}"))?)
}

/// The path under which a child finds a descriptor that it gets.
fn path_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// A read-only file in memory.
fn sealed(name: &str, text: &str) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(name, flags)?);
    file.write_all(text.as_bytes())?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// Reads both pipes until the child closes them; kills it at its limit. Returns true when it was killed.
fn supervise(child: &Child, limit: Duration, stdout: &mut Drain, stderr: &mut Drain) -> io::Result<bool> {
    let watch = Stopwatch::start();
    while stdout.open() || stderr.open() {
        let left = limit.saturating_sub(watch.elapsed());
        if left.is_zero() {
            child.kill()?;
            return Ok(true);
        }
        let mut fds: Vec<PollFd<'_>> = [&*stdout, &*stderr]
            .into_iter()
            .filter_map(|drain| drain.fd.as_ref())
            .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN))
            .collect();
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, wait) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or_default()).collect();
        let mut ready = ready.into_iter();
        for drain in [&mut *stdout, &mut *stderr] {
            if drain.open() && ready.next().unwrap_or_default() {
                drain.read()?;
            }
        }
    }
    // Both pipes are closed: the child is exiting, or closed them early; it gets the rest of its time.
    loop {
        if child.ended()? {
            return Ok(false);
        }
        if watch.elapsed() >= limit {
            child.kill()?;
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One pipe and its output.
struct Drain {
    fd: Option<File>,
    text: Vec<u8>,
}

impl Drain {
    fn new(fd: OwnedFd) -> Self {
        Self { fd: Some(fd.into()), text: Vec::new() }
    }

    fn open(&self) -> bool {
        self.fd.is_some()
    }

    fn read(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.fd else { return Ok(()) };
        let mut buffer = [0; 4096];
        let count = file.read(&mut buffer)?;
        if count == 0 {
            self.fd = None;
        }
        let room = OUTPUT_CAP.saturating_sub(self.text.len());
        self.text.extend(buffer.iter().take(count.min(room)));
        Ok(())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> io::Result<Output> {
        let program = Program::find("sh", Path::new("/dev/null"), limit)?.arg("-c").arg(script);
        Os::new().run(&program)
    }

    #[test]
    fn output_and_code_come_back() {
        let output = shell("echo out; echo err >&2; exit 3", Duration::from_secs(10)).unwrap();
        assert_eq!((output.exit, output.stdout.as_str(), output.stderr.as_str()), (Exit::Code(3), "out\n", "err\n"));
        assert!(output.summary().contains("exit code 3: err"));
    }

    #[test]
    fn a_child_past_its_limit_is_killed() {
        let error = shell("sleep 60", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_environment_is_empty_but_for_what_we_say() {
        let output = shell("env | sort | cut -d= -f1 | tr '\\n' ' '", Duration::from_secs(10)).unwrap();
        assert!(!output.stdout.contains("CARGO"), "{}", output.stdout);
        assert!(output.stdout.contains("LC_ALL"));
    }

    #[test]
    fn a_program_that_cannot_be_started_is_an_error_and_leaves_no_child() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tool");
        let run = |path: &Path| Os::new().run(&Program::at(path.into(), path, Duration::from_secs(10)));
        assert_eq!(run(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, "not executable").unwrap();
        assert_eq!(run(&path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
        assert_eq!(children, "");
    }

    /// Of a child that shared our memory until its exec, nothing is left in us: its signals, directory and descriptors.
    #[test]
    fn a_child_changes_nothing_of_ours() {
        let ours = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let signals = status.lines().filter(|line| line.starts_with("Sig") && !line.starts_with("SigQ"));
            (signals.collect::<Vec<_>>().join("\n"), std::env::current_dir().unwrap(), nix::unistd::getpgrp())
        };
        let before = ours();
        let script =
            "pwd; ls /proc/self/fd | wc -l; grep SigBlk /proc/self/status; [ $(cut -d' ' -f5 /proc/$$/stat) = $$ ]";
        let output = shell(script, Duration::from_secs(10));
        let output = output.unwrap();
        assert!(output.success(), "it leads a process group of its own");
        let output = output.stdout;
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines[0], "/");
        // The three standard ones, that of the listing, and what a program that started us lets everybody inherit.
        let open: Vec<_> = std::fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().file_name()).collect();
        let flags = |fd: &std::ffi::OsString| std::fs::read_to_string(Path::new("/proc/self/fdinfo").join(fd)).ok();
        let is_inherited = |flags: &String| {
            let octal = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            i32::from_str_radix(octal, 8).unwrap() & libc::O_CLOEXEC == 0
        };
        let standard = |fd: &&std::ffi::OsString| ["0", "1", "2"].contains(&fd.to_str().unwrap());
        let others = open.iter().filter(|fd| !standard(fd)).filter_map(flags).filter(is_inherited).count();
        assert_eq!(lines[1].trim(), (4 + others).to_string());
        assert_eq!(lines[2], "SigBlk:\t0000000000000000");
        assert_eq!(ours(), before);
    }

    #[test]
    fn a_file_given_by_variable_is_there_and_cannot_be_changed() {
        let program = Program::find("sh", Path::new("/dev/null"), Duration::from_secs(10)).unwrap();
        let program = program.arg("-c").arg("cat $CONF; echo x >> $CONF").env_file("CONF", "[defaults]\n");
        let output = Os::new().run(&program).unwrap();
        assert_eq!(output.stdout, "[defaults]\n");
        assert!(!output.success());
    }

    #[test]
    fn endless_output_is_capped_not_kept() {
        let output = shell("head -c 1000000 /dev/zero | tr '\\0' x", Duration::from_secs(20)).unwrap();
        assert_eq!(output.stdout.len(), OUTPUT_CAP);
    }
}
