//! One QEMU guest and the channel to it.

#![expect(clippy::disallowed_methods, reason = "the tests start QEMU")]

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::harness::await_that;
use crate::power::{Cut, Left, Recording, SECTOR};
use crate::root::{self, Kernel};

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
    machine: Machine,
    /// Of each disk, if it has [`Memory::Volatile`].
    recordings: Vec<Recording>,
    qemu: Child,
    channel: BufReader<UnixStream>,
    sent: u64,
}

/// What a guest is made of.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Its kernel.
    pub(crate) kernel: Kernel,
    /// Its root, which guests may share.
    pub(crate) root: Arc<Image>,
    /// Its disks: /dev/vdb and on.
    pub(crate) disks: Vec<PathBuf>,
    /// What these keep when the guest ends.
    pub(crate) memory: Memory,
    /// Its network.
    pub(crate) link: Option<Link>,
    /// More for the kernel's command line.
    pub(crate) parameters: &'static str,
}

/// What the disks of a guest keep when it ends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Every write that they acknowledged.
    Kept,
    /// For [`Guest::power_cut`]: what was flushed.
    Volatile,
}

/// The image of a root.
#[derive(Debug)]
pub(crate) struct Image(tempfile::TempDir);

impl Image {
    /// A new one.
    pub(crate) fn new() -> Arc<Self> {
        Self::with(&[])
    }

    /// A new one with more programs of this machine.
    pub(crate) fn with(programs: &[&str]) -> Arc<Self> {
        let directory = tempfile::Builder::new().prefix("holdfast-guest-").tempdir().unwrap();
        root::make(&directory.path().join("root"), programs);
        Arc::new(Self(directory))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("root")
    }
}

/// A cable between two guests. One of them may end and start again.
#[derive(Debug)]
pub(crate) struct Wire(tempfile::TempDir);

impl Wire {
    /// Both ends of a new one: 10.0.0.1 and 10.0.0.2.
    pub(crate) fn ends() -> [Link; 2] {
        let wire = Arc::new(Self(tempfile::Builder::new().prefix("holdfast-wire-").tempdir().unwrap()));
        [1, 2].map(|end| Link { wire: Arc::clone(&wire), end })
    }
}

/// One end of a cable.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    wire: Arc<Wire>,
    end: u8,
}

impl Link {
    fn arguments(&self) -> [String; 4] {
        let path = |end: u8| self.wire.0.path().join(end.to_string());
        let (own, peer) = (path(self.end), path(3 - self.end));
        // Left by a guest that was killed.
        let _ = fs::remove_file(&own);
        let netdev = format!(
            "dgram,id=net,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            own.display(),
            peer.display()
        );
        let card = format!("virtio-net-pci,netdev=net,mac=52:54:00:00:00:0{},romfile=", self.end);
        ["-netdev".to_owned(), netdev, "-device".to_owned(), card]
    }
}

/// The state of a cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cable {
    Joined,
    Cut,
}

/// The exit status of a command and its output, both streams together.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) output: String,
}

impl Guest {
    /// Boots a guest with a root of its own and the newest kernel; its disks, if any, are /dev/vdb and on.
    pub(crate) fn boot(name: &str, disks: &[&Path]) -> Self {
        let disks = disks.iter().map(|disk| disk.to_path_buf()).collect();
        let (kernel, root) = (Kernel::Newest, Image::new());
        Self::start(name, Machine { kernel, root, disks, memory: Memory::Kept, link: None, parameters: "" })
    }

    /// Boots a guest.
    pub(crate) fn start(name: &str, machine: Machine) -> Self {
        let directory = tempfile::Builder::new().prefix("holdfast-guest-").tempdir().unwrap();
        let recordings = recordings(directory.path(), &machine);
        let (qemu, channel) = started(directory.path(), &machine, &recordings);
        let mut guest = Self { name: name.to_owned(), directory, machine, recordings, qemu, channel, sent: 0 };
        guest.await_ready();
        guest
    }

    fn await_ready(&mut self) {
        self.wait(BOOT);
        self.until(|line| line.starts_with("READY "));
    }

    /// Ends the guest at once, as a machine ends whose kernel dies: what its disks acknowledged stays.
    pub(crate) fn kill(&mut self) {
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
    }

    /// Ends the guest at once, as in a power cut: of what its disks acknowledged since their last flush there is so much
    /// left. Returns what happened to each.
    pub(crate) fn power_cut(&mut self, left: Left) -> Vec<Cut> {
        assert!(!self.recordings.is_empty(), "the disks of {} keep what they acknowledged", self.name);
        self.kill();
        self.recordings.drain(..).map(|recording| recording.cut(left)).collect()
    }

    /// Boots it again after [`Guest::kill`] or [`Guest::power_cut`].
    pub(crate) fn boot_again(&mut self) {
        self.recordings = recordings(self.directory.path(), &self.machine);
        (self.qemu, self.channel) = started(self.directory.path(), &self.machine, &self.recordings);
        self.await_ready();
    }

    /// Limits a disk, of which /dev/vdb is 1, to so many requests a second; 0 is no limit.
    pub(crate) fn throttle(&mut self, disk: usize, requests: u32) {
        self.monitor(&format!(
            r#"{{"execute":"block_set_io_throttle","arguments":{{"id":"/machine/peripheral/card{disk}/virtio-backend","bps":0,"bps_rd":0,"bps_wr":0,"iops":{requests},"iops_rd":0,"iops_wr":0}}}}"#
        ));
    }

    /// The disk keeps the next write for itself until [`Guest::let_go`]; all others pass, also later ones to the same
    /// blocks.
    pub(crate) fn hold_a_write(&mut self, disk: usize) {
        self.disk_command(disk, "break write_aio held");
    }

    /// The disk carries out the write that it holds, and holds none later on.
    pub(crate) fn let_go(&mut self, disk: usize) {
        self.disk_command(disk, "remove_break held");
    }

    /// A command to the `blkdebug` driver below a disk. QEMU reports an error in its log only.
    fn disk_command(&mut self, disk: usize, command: &str) {
        let log = self.directory.path().join("qemu");
        let before = fs::metadata(&log).unwrap().len();
        self.monitor(&format!(
            r#"{{"execute":"human-monitor-command","arguments":{{"command-line":"qemu-io disk{disk} \"{command}\""}}}}"#
        ));
        assert_eq!(fs::metadata(&log).unwrap().len(), before, "{command}: {}", said(self.directory.path(), "qemu"));
    }

    /// Cuts the cable at this end, or joins it.
    pub(crate) fn cable(&mut self, cable: Cable) {
        let up = cable == Cable::Joined;
        self.monitor(&format!(r#"{{"execute":"set_link","arguments":{{"name":"net","up":{up}}}}}"#));
    }

    /// A command to QEMU.
    fn monitor(&mut self, command: &str) {
        let socket = UnixStream::connect(self.directory.path().join("qmp")).unwrap();
        socket.set_read_timeout(Some(COMMAND)).unwrap();
        let mut monitor = BufReader::new(socket);
        for command in [r#"{"execute":"qmp_capabilities"}"#, command] {
            writeln!(monitor.get_mut(), "{command}").unwrap();
            let mut line = String::new();
            while !line.contains("\"return\"") {
                line.clear();
                assert_ne!(monitor.read_line(&mut line).unwrap(), 0, "QEMU closed its monitor");
                assert!(!line.contains("\"error\""), "{command}: {line}");
            }
        }
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

/// Begins the recordings of a guest's disks, if they need any.
fn recordings(directory: &Path, machine: &Machine) -> Vec<Recording> {
    match machine.memory {
        Memory::Kept => Vec::new(),
        Memory::Volatile => {
            machine.disks.iter().zip(1..).map(|(disk, number)| Recording::begin(disk, directory, number)).collect()
        }
    }
}

/// Starts QEMU and connects to the guest's command channel.
fn started(directory: &Path, machine: &Machine, recordings: &[Recording]) -> (Child, BufReader<UnixStream>) {
    let mut qemu = start(directory, machine, recordings);
    let socket = directory.join("command");
    let mut connected = None;
    await_that("QEMU opens its sockets", BOOT, || {
        connected = UnixStream::connect(&socket).ok();
        let ended = qemu.try_wait().unwrap();
        assert!(ended.is_none(), "QEMU ended: {}", said(directory, "qemu"));
        connected.is_some()
    });
    (qemu, BufReader::new(connected.unwrap()))
}

fn start(directory: &Path, machine: &Machine, recordings: &[Recording]) -> Child {
    let prepared = machine.kernel.directory();
    let mut qemu = Command::new("qemu-system-x86_64");
    // One processor: emulated, two are slower. `max` has RDRAND, without which the first random number takes seconds.
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35", "-smp", "1", "-m", "1024"]);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.arg("-kernel").arg(prepared.join("vmlinux")).arg("-initrd").arg(prepared.join("initramfs"));
    // no_timer_check: on a busy machine the check of the timer fails.
    let mut line = format!(
        "console=ttyS0 panic=-1 reboot=t quiet mitigations=off no_timer_check net.ifnames=0 {}",
        machine.parameters
    );
    if let Some(link) = &machine.link {
        line.push_str(&format!(" holdfast.address=10.0.0.{}/24", link.end));
        qemu.args(link.arguments());
    }
    qemu.arg("-append").arg(line);
    qemu.arg("-chardev").arg(format!("file,id=console,path={},append=on", directory.join("console").display()));
    qemu.args(["-serial", "chardev:console"]);
    let image = machine.root.path();
    for (number, disk) in std::iter::once(&image).chain(&machine.disks).enumerate() {
        match number.checked_sub(1).and_then(|number| recordings.get(number)) {
            None => {
                // A disk of a test may hold a write (`hold_a_write`); the root is shared by guests.
                let file = disk.display();
                let source = if number == 0 {
                    format!("file={file},file.locking=off,readonly=on")
                } else {
                    format!("file.driver=blkdebug,file.image.driver=file,file.image.filename={file}")
                };
                qemu.arg("-drive").arg(format!("{source},if=none,id=disk{number},format=raw,cache=unsafe"));
            }
            Some(recording) => {
                for (node, file) in [("file", disk), ("log", &recording.log)] {
                    let file = file.display();
                    qemu.arg("-blockdev");
                    qemu.arg(format!("driver=file,node-name={node}{number},filename={file},cache.no-flush=on"));
                }
                qemu.arg("-blockdev").arg(format!(
                    "driver=blklogwrites,node-name=disk{number},file=file{number},log=log{number},log-sector-size={SECTOR}"
                ));
            }
        }
        qemu.arg("-device").arg(format!("virtio-blk-pci,drive=disk{number},id=card{number}"));
    }
    if !recordings.is_empty() {
        // One thread for files: the log is written in its order.
        qemu.args(["-object", "main-loop,id=main-loop,thread-pool-max=1"]);
    }
    let (socket, monitor) = (directory.join("command"), directory.join("qmp"));
    for left in [&socket, &monitor] {
        let _ = fs::remove_file(left);
    }
    qemu.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=command,name=command"]);
    qemu.arg("-chardev").arg(format!("socket,id=command,path={},server=on,wait=off", socket.display()));
    qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
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
