//! Faults outside the driver: a tool that hangs, a filesystem that does not answer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Scratch, await_that, run, try_run};

/// A system tool replaced, in this test's mount namespace only, by one that waits until it is released.
#[derive(Debug)]
pub(crate) struct HeldTool {
    real: PathBuf,
    gate: PathBuf,
    calls: PathBuf,
}

impl Drop for HeldTool {
    fn drop(&mut self) {
        // A copy of the mount namespace would keep a tool whose script is gone.
        let _ = try_run("/usr/bin/umount", &["-l", self.real.to_str().unwrap()]);
    }
}

impl HeldTool {
    /// Replaces a tool such as `mkfs.ext4`. It logs each call except a query of its version and, while the gate is
    /// closed, waits.
    pub(crate) fn new(scratch: &Scratch, tool: &str) -> Self {
        let directory = scratch.path().join(format!("tool-{tool}"));
        fs::create_dir(&directory).unwrap();
        let real = fs::canonicalize(Path::new("/usr/sbin").join(tool)).unwrap();
        // The copy has the tool's name: mke2fs checks its own name.
        let copy = directory.join(tool);
        fs::copy(&real, &copy).unwrap();
        let (gate, calls, script) = (directory.join("gate"), directory.join("calls"), directory.join("script"));
        fs::write(&calls, "").unwrap();
        let text = format!(
            "#!/bin/sh\ncase \"$*\" in -V|--version) exec {copy} \"$@\";; esac\necho \"$$ $*\" >> {calls}\nwhile [ -e {gate} ]; do /bin/sleep 0.02; done\nexec {copy} \"$@\"\n",
            calls = calls.display(),
            gate = gate.display(),
            copy = copy.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        run("/usr/bin/mount", &["--bind", script.to_str().unwrap(), real.to_str().unwrap()]);
        Self { real, gate, calls }
    }

    /// From now on the tool hangs.
    pub(crate) fn hold(&self) {
        fs::write(&self.gate, "").unwrap();
    }

    /// Lets it continue.
    pub(crate) fn let_go(&self) {
        let _ = fs::remove_file(&self.gate);
    }

    /// One line per call for a device or a file: pid and arguments. At its start the driver asks each tool for its
    /// version, which is not one.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(&self.calls).unwrap();
        calls.lines().filter(|call| call.contains('/')).map(str::to_owned).collect()
    }

    /// Waits until the tool was called so many times; returns the pid of the last call.
    pub(crate) fn wait_for_call(&self, count: usize) -> u32 {
        await_that("the tool is called", Duration::from_secs(30), || self.calls().len() >= count);
        self.calls().last().unwrap().split(' ').next().unwrap().parse().unwrap()
    }
}

/// A filesystem that blocks writes until this is dropped (FIFREEZE): every writer waits.
#[derive(Debug)]
pub(crate) struct Frozen {
    point: PathBuf,
}

impl Frozen {
    pub(crate) fn new(point: &Path) -> Self {
        run("/usr/sbin/fsfreeze", &["-f", point.to_str().unwrap()]);
        Self { point: point.to_owned() }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = try_run("/usr/sbin/fsfreeze", &["-u", self.point.to_str().unwrap()]);
    }
}
