//! A guest: commands in it, and what happens to machines.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::harness::{node_pod, node_ready, text, try_kubectl, until};

/// The limit for a command: the guest ends it sooner.
const COMMAND: Duration = Duration::from_secs(120);

/// The node that the volumes of the tests are on.
pub(crate) const HOME: Guest = Guest(1);
/// A node that uses them over the network.
pub(crate) const OTHER: Guest = Guest(2);

/// The node `guest<number>`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest(pub(crate) u8);

impl Guest {
    /// The name of its node.
    pub(crate) fn name(self) -> String {
        format!("guest{}", self.0)
    }

    fn directory() -> PathBuf {
        env::var_os("HOLDFAST_E2E").expect("HOLDFAST_E2E names the cluster's directory: run `make guest-nodes`").into()
    }

    /// Runs a line of shell in it; returns its output, or with another exit status than 0 its output as an error.
    pub(crate) fn run(self, line: &str) -> Result<String, String> {
        static SENT: AtomicU32 = AtomicU32::new(0);
        let process = Path::new("/proc").join(self.script("pid"));
        if fs::read_to_string(process.join("stat")).is_ok_and(|stat| stat.contains(") T ")) {
            return Err(format!("{} is frozen", self.name()));
        }
        let path = Self::directory().join(self.name()).join("command");
        let socket = UnixStream::connect(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        socket.set_read_timeout(Some(COMMAND)).unwrap();
        let mut channel = BufReader::new(socket);
        let id = format!("{}-{}", process::id(), SENT.fetch_add(1, Ordering::Relaxed));
        let sent = channel.get_mut().write_all(format!("{id} {}\n", STANDARD.encode(line)).as_bytes());
        sent.map_err(|error| format!("{}: {error}", self.name()))?;
        // Before it there may be what was meant for a test that is over.
        let (begin, end) = (format!("@@{id} BEGIN\n"), format!("@@{id} "));
        let mut output = None;
        loop {
            let mut bytes = Vec::new();
            let read = channel.read_until(b'\n', &mut bytes);
            let read = read.map_err(|error| format!("{}: `{line}`: no answer: {error}", self.name()))?;
            let said = String::from_utf8_lossy(&bytes);
            if read == 0 {
                return Err(format!("{}: `{line}`: the guest ended", self.name()));
            }
            if said.ends_with(&begin) {
                output = Some(String::new());
            } else if let (Some(code), Some(output)) = (said.strip_prefix(&end), &output) {
                let output = output.trim_end().to_owned();
                return match code.trim() {
                    "0" => Ok(output),
                    code => Err(format!("{}: `{line}`: {code}: {output}", self.name())),
                };
            } else if let Some(output) = &mut output {
                output.push_str(&said);
            }
        }
    }

    /// Runs a line that must succeed.
    pub(crate) fn must(self, line: &str) -> String {
        self.run(line).unwrap_or_else(|said| panic!("{said}"))
    }

    fn script(self, action: &str) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest_nodes/guest");
        let mut command = Command::new(script);
        command.arg(Self::directory()).arg(self.0.to_string()).arg(action).stdin(Stdio::null());
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "guest {}: {action}: {}", self.0, output.status);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn signal(self, signal: &str) {
        let pid = self.script("pid");
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success(), "{}: {signal}", self.name());
    }

    /// Stops it between two instructions: its processes continue where they were after [`Guest::thaw`], and know nothing
    /// of it.
    pub(crate) fn freeze(self) {
        self.signal("-STOP");
    }

    /// Lets it continue.
    pub(crate) fn thaw(self) {
        self.signal("-CONT");
    }

    /// Ends it at once, as a machine ends whose kernel dies.
    pub(crate) fn kill(self) {
        self.script("kill");
    }

    /// Boots it, if it does not run.
    pub(crate) fn boot(self) {
        self.script("start");
    }

    /// Waits until it is a node where the driver serves.
    pub(crate) fn ready(self) {
        let name = self.name();
        let boot = until(&format!("{name} answers"), || self.run("cat /proc/sys/kernel/random/boot_id"));
        until(&format!("{name} is ready"), || {
            let said = try_kubectl(&["get", "node", &name, "-o", "json"], None)?;
            let node: serde_json::Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
            let conditions = node.pointer("/status/conditions").and_then(|all| all.as_array().cloned());
            let is_ready =
                conditions.iter().flatten().any(|one| text(one, "/type") == "Ready" && text(one, "/status") == "True");
            if is_ready && text(&node, "/status/nodeInfo/bootID") == boot { Ok(()) } else { Err(said) }
        });
        node_pod(&name);
        until("kubelet knows the driver", || if node_ready(&name) { Ok(()) } else { Err(name.clone()) });
    }
}
