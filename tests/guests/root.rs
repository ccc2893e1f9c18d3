//! The root of a guest: the driver, this program, and the tools they call, with the libraries of the build host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::harness::{Release, driver_binary, run};

/// The tools of the driver and the tests; a new test adds what it needs.
const TOOLS: [&str; 13] = [
    "/usr/bin/env",
    "/usr/bin/findmnt",
    "/usr/bin/mount",
    "/usr/bin/setpriv",
    "/usr/bin/ss",
    "/usr/bin/umount",
    "/usr/sbin/e2fsck",
    "/usr/sbin/losetup",
    "/usr/sbin/mkfs.ext4",
    "/usr/sbin/mkfs.xfs",
    "/usr/sbin/resize2fs",
    "/usr/sbin/blkid",
    "/usr/sbin/xfs_repair",
];
/// Where filesystems of the running system are mounted.
const MOUNT_POINTS: [&str; 6] = ["dev", "proc", "sys", "tmp", "run", "var"];

/// A kernel that guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// The newest of Debian's.
    Newest,
    /// The oldest one that `tests/guests/build` has: 6.1 where apt knows it.
    Oldest,
}

impl Kernel {
    /// Its directory in the output of `tests/guests/build`.
    pub(crate) fn directory(self) -> PathBuf {
        let all = kernels();
        match self {
            Self::Newest => all.first().unwrap().clone(),
            Self::Oldest => all.last().unwrap().clone(),
        }
    }
}

/// The output of `tests/guests/build`: a directory a kernel, the newest first.
fn kernels() -> Vec<PathBuf> {
    let prepared = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("guests");
    let list = fs::read_to_string(prepared.join("kernels"));
    let list = list.unwrap_or_else(|_| panic!("{} has no kernel: run `make guests`", prepared.display()));
    list.lines().map(|series| prepared.join(series)).collect()
}

/// Creates the image of a root, for every kernel, with more programs of this machine.
pub(crate) fn make(image: &Path, more: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for part in MOUNT_POINTS.iter().copied().chain(["root", "usr/bin", "usr/sbin", "usr/lib", "etc"]) {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    // As on a system whose /usr is merged: libraries and programs are found by either path.
    for name in ["bin", "sbin", "lib"] {
        symlink(format!("usr/{name}"), root.join(name)).unwrap();
    }
    symlink("usr/lib", root.join("lib64")).unwrap();
    let host = |path: &str| root.join(path.trim_start_matches('/'));

    let busybox = run("/usr/bin/env", &["sh", "-c", "command -v busybox"]);
    fs::copy(busybox.trim(), host("/usr/bin/busybox")).unwrap();
    let itself = std::env::current_exe().unwrap();
    let before = Release::Before.binary();
    let programs = TOOLS.iter().copied().chain([driver_binary(), before.as_str(), itself.to_str().unwrap()]);
    let programs = programs.chain(more.iter().copied());
    for program in programs {
        let to = host(program);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        // Without debug information, which is most of their size.
        run(
            "/usr/bin/env",
            &["strip", "-o", to.to_str().unwrap(), fs::canonicalize(program).unwrap().to_str().unwrap()],
        );
        for library in libraries(program) {
            let to = host("/usr/lib").join(library.file_name().unwrap());
            if !to.exists() {
                fs::copy(&library, to).unwrap();
            }
        }
    }
    for applet in run(busybox.trim(), &["--list"]).lines() {
        let link = host("/usr/bin").join(applet);
        if !link.exists() && !host("/usr/sbin").join(applet).exists() {
            symlink("/usr/bin/busybox", link).unwrap();
        }
    }
    // The kernel loads modules by this path.
    symlink("/usr/bin/busybox", host("/usr/sbin/modprobe")).unwrap();
    for kernel in kernels() {
        let modules = kernel.join("modules/lib/modules");
        run("/usr/bin/env", &["cp", "-r", modules.to_str().unwrap(), host("/usr/lib").to_str().unwrap()]);
    }
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/agent"), root.join("agent")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/tmp:/bin/sh\n").unwrap();

    fs::File::create(image).unwrap().set_len(1 << 30).unwrap();
    let from = root.to_str().unwrap();
    run("/usr/sbin/mkfs.ext4", &["-q", "-F", "-O", "^has_journal", "-d", from, image.to_str().unwrap()]);
}

/// The libraries that a program is linked with, on the host.
fn libraries(program: &str) -> Vec<PathBuf> {
    let said = run("/usr/bin/env", &["ldd", program]);
    let path = |line: &str| {
        let word = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(PathBuf::from(word))
    };
    said.lines().filter_map(path).collect()
}
