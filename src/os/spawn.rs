//! Starts a child without a copy of our memory.
//!
//! fork(2) copies the page tables of the whole process, and every page that a thread writes before the child's exec is
//! copied too. A daemon with many threads pays for that with each mkfs. The child here shares our memory until its exec,
//! and only the calling thread waits for that (clone(2) with CLONE_VM and CLONE_VFORK), as in posix_spawn(3), which
//! cannot set what our children need: a signal at our death, and limits.

#![expect(unsafe_code, reason = "between clone and exec only system calls are made, on the parent's memory")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::limits::OpenFiles;

/// Bytes of the child's stack: its calls need a few hundred.
const STACK: usize = 64 * 1024;
/// Descriptors from here on are not replaced by the child's own standard ones.
const ABOVE_STANDARD: RawFd = 3;
/// The highest signal number of Linux (signal(7)).
const LAST_SIGNAL: libc::c_int = 64;

/// The exit code of a child whose program could not be started; nothing reads it.
const EXEC_FAILED: isize = 127;
/// The child shares our memory, and this thread waits for its exec.
const SHARED: CloneFlags = CloneFlags::CLONE_VM.union(CloneFlags::CLONE_VFORK);

/// The effect of our process's death on a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OurDeath {
    /// The child is killed (PR_SET_PDEATHSIG).
    Kills,
    /// The child continues to its end, even if nothing reads its output.
    IsIgnored,
}

/// A child to start: in the root directory, in a process group of its own, with the default signals.
pub(super) struct Spawn<'a> {
    /// The absolute path of the program.
    pub(super) path: &'a CStr,
    /// All arguments, with the program's name.
    pub(super) arguments: &'a [CString],
    /// The environment, `NAME=VALUE`.
    pub(super) environment: &'a [CString],
    /// Standard input, output and error.
    pub(super) standard: [BorrowedFd<'a>; 3],
    /// Further descriptors that it gets, under the same numbers.
    pub(super) kept: &'a [RawFd],
    /// Its limit of open files, if it is not ours.
    pub(super) open_files: Option<OpenFiles>,
    /// The limit of its address space, bytes.
    pub(super) memory: Option<u64>,
    /// The effect of our death on it.
    pub(super) death: OurDeath,
}

impl Spawn<'_> {
    /// Starts the child; returns when its program runs. The caller waits for it (waitpid(2)).
    ///
    /// # Errors
    /// Those of clone(2), of the calls in the child, and of execve(2): then there is no child.
    pub(super) fn start(&self) -> io::Result<Pid> {
        // If one of our standard descriptors is closed, one of these may have its number.
        let above = |fd: &BorrowedFd<'_>| duplicate(*fd);
        let [stdin, stdout, stderr] = &self.standard;
        let standard = [above(stdin)?, above(stdout)?, above(stderr)?];
        let (arguments, environment) = (pointers(self.arguments), pointers(self.environment));
        let (failure, parent) = (AtomicI32::new(0), nix::unistd::getpid());
        let mut stack = vec![0_u8; STACK];
        let mut before = SigSet::empty();
        // No handler of ours may run in the child, on our memory.
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
        let child = || {
            failure.store(self.become_it(&standard, &arguments, &environment, parent), Ordering::SeqCst);
            EXEC_FAILED
        };
        // SAFETY: the child makes only system calls on memory that lives until this call returns: it neither allocates
        // nor locks nor panics nor returns into this frame. This thread is suspended until the child's exec or exit
        // (CLONE_VFORK).
        let pid = unsafe { clone(Box::new(child), &mut stack, SHARED, Some(libc::SIGCHLD)) };
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        let pid = pid?;
        match failure.load(Ordering::SeqCst) {
            0 => Ok(pid),
            errno => {
                let _ = waitpid(pid, None);
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    /// In the child: system calls only. Returns the error number if it cannot become the program.
    fn become_it(
        &self,
        standard: &[OwnedFd; 3],
        arguments: &[*const libc::c_char],
        environment: &[*const libc::c_char],
        parent: Pid,
    ) -> i32 {
        // SAFETY: every pointer is to memory of the parent that lives until this thread continues. Handlers are the
        // child's own (no CLONE_SIGHAND), and so are descriptors (no CLONE_FILES).
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = libc::SIG_DFL;
            for signal in 1..=LAST_SIGNAL {
                // EINVAL for SIGKILL, SIGSTOP and the C library's own.
                libc::sigaction(signal, &raw const action, ptr::null_mut());
            }
            match self.death {
                OurDeath::Kills => {
                    if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                        return errno();
                    }
                    // The parent may have died before that: then no signal would ever come.
                    if libc::getppid() != parent.as_raw() {
                        return libc::ECHILD;
                    }
                }
                // After our death nothing reads its output, which must not end it.
                OurDeath::IsIgnored => {
                    action.sa_sigaction = libc::SIG_IGN;
                    libc::sigaction(libc::SIGPIPE, &raw const action, ptr::null_mut());
                }
            }
            if libc::setpgid(0, 0) < 0 || libc::chdir(c"/".as_ptr()) < 0 {
                return errno();
            }
            for (to, from) in (0..).zip(standard) {
                if libc::dup2(from.as_raw_fd(), to) < 0 {
                    return errno();
                }
            }
            for fd in self.kept {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return errno();
                }
            }
            if let Some(files) = self.open_files
                && files.set().is_err()
            {
                return errno();
            }
            if let Some(bytes) = self.memory {
                let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
                if libc::setrlimit(libc::RLIMIT_AS, &raw const limit) < 0 {
                    return errno();
                }
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::execve(self.path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
        }
        errno()
    }
}

fn errno() -> i32 {
    Errno::last_raw()
}

/// A copy of a descriptor with a number above the standard ones.
fn duplicate(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(ABOVE_STANDARD))?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// As execve(2) takes them: ended by a null pointer.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}
