//! Signals that would end the process because of an error of one call.

#![expect(unsafe_code, reason = "signal(2) is a C call")]

use std::io;

use super::Os;

impl Os {
    /// Makes a write beyond the file size limit (RLIMIT_FSIZE: `ulimit -f`, `LimitFSIZE=`) fail with EFBIG, instead of
    /// a signal that ends the process. Call it before anything is written. Rust's runtime ignores SIGPIPE already.
    /// Children start with the default signals (`default_in_child`).
    pub fn survive_file_limit(&self) {
        // SAFETY: the handler is SIG_IGN, so no code runs in a signal's context. It fails for no valid signal.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        }
    }
}

/// Between fork and exec: an ignored signal stays ignored in a new program, but tools expect the default.
///
/// # Errors
/// Those of signal(2).
pub(super) fn default_in_child() -> io::Result<()> {
    // SAFETY: signal(2) is async-signal-safe, and SIG_DFL runs no code of ours.
    let before = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_DFL) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use crate::os::{Exit, Os, Program};

    #[test]
    fn a_child_is_ended_by_the_signal_that_we_survive() {
        let os = Os::new();
        os.survive_file_limit();
        let ignored = "grep SigIgn /proc/self/status";
        let program =
            Program::at("/bin/sh".into(), Path::new("signals"), Duration::from_secs(10)).args(["-c", ignored]);
        let output = os.run(&program).unwrap();
        assert_eq!(output.exit, Exit::Code(0));
        let mask = u64::from_str_radix(output.stdout.trim().rsplit('\t').next().unwrap(), 16).unwrap();
        assert_eq!(mask & (1 << (libc::SIGXFSZ - 1)), 0, "{}", output.stdout);
    }
}
