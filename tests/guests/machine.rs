//! One QEMU guest and the channel to it.

#![expect(clippy::disallowed_methods, reason = "the tests start QEMU")]

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::harness::await_that;
use crate::root;

/// How long a guest may take to boot, and one command to finish: emulated, on a busy machine.
const BOOT: Duration = Duration::from_secs(120);
const COMMAND: Duration = Duration::from_secs(200);
/// Lines of the console shown after a failure.
const SHOWN: usize = 40;

/// A running guest; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Guest {
    name: String,
    directory: tempfile::TempDir,
    qemu: Child,
    channel: BufReader<UnixStream>,
    sent: u64,
}

/// The exit status of a command and its output, both streams together.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) output: String,
}

impl Guest {
    /// Boots a guest with a root of its own; its disks, if any, are /dev/vdb and on.
    pub(crate) fn boot(name: &str, disks: &[&Path]) -> Self {
        let directory = tempfile::Builder::new().prefix("holdfast-guest-").tempdir().unwrap();
        let image = directory.path().join("root");
        root::make(&image);
        let mut qemu = start(directory.path(), &image, disks);
        let socket = directory.path().join("command");
        let mut connected = None;
        await_that("QEMU opens its sockets", BOOT, || {
            connected = UnixStream::connect(&socket).ok();
            let ended = qemu.try_wait().unwrap();
            assert!(ended.is_none(), "QEMU ended: {}", said(directory.path(), "qemu"));
            connected.is_some()
        });
        let channel = BufReader::new(connected.unwrap());
        let mut guest = Self { name: name.to_owned(), directory, qemu, channel, sent: 0 };
        guest.wait(BOOT);
        guest.until(|line| line.starts_with("READY "));
        guest
    }

    /// Runs a line of shell.
    pub(crate) fn run(&mut self, line: &str) -> Answer {
        self.sent += 1;
        let message = format!("{} {}\n", self.sent, STANDARD.encode(line));
        self.wait(COMMAND);
        self.channel.get_mut().write_all(message.as_bytes()).unwrap();
        let end = format!("@@{} ", self.sent);
        let mut code = None;
        let output = self.until(|line| {
            code = line.strip_prefix(&end).and_then(|code| code.trim().parse().ok());
            code.is_some()
        });
        Answer { code: code.unwrap(), output }
    }

    /// Runs a line that must succeed; returns its output.
    pub(crate) fn must(&mut self, line: &str) -> String {
        let answer = self.run(line);
        assert_eq!(answer.code, 0, "{}: `{line}`: {}{}", self.name, answer.output, self.console());
        answer.output
    }

    /// Runs a test of [`crate::inside`] in the guest.
    pub(crate) fn test(&mut self, name: &str) {
        let itself = std::env::current_exe().unwrap();
        let line = format!("{} --ignored --exact --nocapture inside::{name}", itself.display());
        let output = self.must(&line);
        assert!(output.contains("1 passed"), "{}: there is no test inside::{name}: {output}", self.name);
        eprintln!("{}: {name}\n{}", self.name, output.trim());
    }

    /// The last lines of the guest's console.
    fn console(&self) -> String {
        said(self.directory.path(), "console")
    }

    fn wait(&mut self, limit: Duration) {
        self.channel.get_mut().set_read_timeout(Some(limit)).unwrap();
    }

    /// Reads lines up to the end marker; returns those before it.
    fn until(&mut self, mut is_end: impl FnMut(&str) -> bool) -> String {
        let mut lines = String::new();
        loop {
            let mut bytes = Vec::new();
            let read = self.channel.read_until(b'\n', &mut bytes);
            let line = String::from_utf8_lossy(&bytes);
            match read {
                Ok(0) => panic!("{}: the guest ended{}", self.name, self.console()),
                Ok(_) if is_end(&line) => return lines,
                Ok(_) => lines.push_str(&line),
                Err(error) => panic!("{}: no answer ({error}): {lines}{}", self.name, self.console()),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn start(directory: &Path, image: &Path, disks: &[&Path]) -> Child {
    let prepared = root::prepared();
    let mut qemu = Command::new("qemu-system-x86_64");
    // One processor: emulated, two are slower. `max` has RDRAND, without which the first random number takes seconds.
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35", "-smp", "1", "-m", "1024"]);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.arg("-kernel").arg(prepared.join("vmlinux")).arg("-initrd").arg(prepared.join("initramfs"));
    // no_timer_check: on a busy machine the check of the timer fails.
    qemu.args(["-append", "console=ttyS0 panic=-1 reboot=t quiet mitigations=off no_timer_check"]);
    qemu.arg("-serial").arg(format!("file:{}", directory.join("console").display()));
    for (number, disk) in std::iter::once(&image).chain(disks).enumerate() {
        let read_only = if number == 0 { "on" } else { "off" };
        let drive =
            format!("file={},if=none,id=disk{number},format=raw,cache=unsafe,readonly={read_only}", disk.display());
        qemu.arg("-drive").arg(drive).arg("-device").arg(format!("virtio-blk-pci,drive=disk{number}"));
    }
    let socket = directory.join("command");
    qemu.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=command,name=command"]);
    qemu.arg("-chardev").arg(format!("socket,id=command,path={},server=on,wait=off", socket.display()));
    let log = OpenOptions::new().create(true).append(true).open(directory.join("qemu")).unwrap();
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    qemu.spawn().unwrap_or_else(|error| panic!("qemu-system-x86_64 cannot be started ({error}): run `make guests`"))
}

/// The last lines of a file of the guest.
fn said(directory: &Path, name: &str) -> String {
    let path: PathBuf = directory.join(name);
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    format!("\n-- {name} --\n{}", lines[lines.len().saturating_sub(SHOWN)..].join("\n"))
}
