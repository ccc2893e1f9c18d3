//! Two guests that run the driver as nodes do: `A` is the home node, with a pool and the controller; `B` uses A's volumes
//! over the network. The host calls them as the sidecars and kubelet do.

#![expect(clippy::disallowed_methods, reason = "an answer of the driver is carried from a guest to the test")]

use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast::csi::proto as p;
use holdfast::os::Stopwatch;
use holdfast::route::FABRIC_KEY;
use prost::Message;
use tonic::{Code, Status};

use crate::harness::calls::from_snapshot;
use crate::harness::{PoolFs, Use, await_that, capability, create_request, driver_binary, run};
use crate::inside::call::CALL;
use crate::machine::{Guest, Image, Machine, Memory, Wire};
use crate::power::{Cut, Left};
use crate::root::Kernel;

/// How long a state may take to appear: emulated, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(90);
/// The deadline of a call, in seconds: that of the sidecars.
const DEADLINE: u64 = 60;
/// The name of the storage network.
const FABRIC: &str = "test";
/// What survives a reboot.
const DISK: &str = "/var/lib/disk";
const STAGE: &str = "/var/lib/kubelet/stage";
const PODS: &str = "/var/lib/kubelet/pods";

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    A,
    B,
}

pub(crate) use Side::{A, B};

impl Side {
    /// Its node's id.
    pub(crate) fn id(self) -> &'static str {
        match self {
            A => "node-a",
            B => "node-b",
        }
    }

    fn address(self) -> &'static str {
        match self {
            A => "10.0.0.1",
            B => "10.0.0.2",
        }
    }
}

/// A daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Daemon {
    Controller,
    Node,
}

impl Daemon {
    fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Node => "node",
        }
    }
}

/// A volume as the CO remembers it.
#[derive(Clone, Debug)]
pub(crate) struct Vol {
    pub(crate) id: String,
    pub(crate) kind: Use,
    pub(crate) size: i64,
    context: HashMap<String, String>,
}

impl Vol {
    fn uuid(&self) -> &str {
        self.id.split('_').nth(2).unwrap()
    }

    /// The path of its image on A.
    pub(crate) fn image(&self) -> String {
        format!("{DISK}/pool/volumes/{}/data", self.uuid())
    }

    fn staging(&self) -> String {
        format!("{STAGE}/{}", self.uuid())
    }

    /// Its path in a pod.
    pub(crate) fn target(&self) -> String {
        format!("{PODS}/{}", self.uuid())
    }
}

/// The guests, their daemons and disks.
pub(crate) struct Cluster {
    a: Guest,
    b: Guest,
    contexts: HashMap<String, HashMap<String, String>>,
    _disks: Vec<tempfile::NamedTempFile>,
    watch: Stopwatch,
}

impl Cluster {
    /// Boots both with one kernel, and starts the daemons.
    pub(crate) fn start(kernel: Kernel, pool: PoolFs) -> Self {
        Self::with_programs(kernel, pool, &[])
    }

    /// The same with more programs of this machine in both guests.
    pub(crate) fn with_programs(kernel: Kernel, pool: PoolFs, programs: &[&str]) -> Self {
        Self::boot([kernel; 2], pool, Memory::Kept, programs)
    }

    /// Boots the home node and the other node, each with its kernel, and starts the daemons.
    pub(crate) fn start_between(home: Kernel, other: Kernel, pool: PoolFs) -> Self {
        Self::boot([home, other], pool, Memory::Kept, &[])
    }

    /// The same for [`Cluster::power_cut`]. The pool's filesystem flushes nothing by itself: that would hide a loss.
    pub(crate) fn to_lose_power(kernel: Kernel, pool: PoolFs, programs: &[&str]) -> Self {
        let mut cluster = Self::boot([kernel; 2], pool, Memory::Volatile, programs);
        assert_eq!(
            cluster.must(A, "cat /sys/block/vdb/queue/write_cache"),
            "write back",
            "or nothing would be flushed"
        );
        cluster.flush_nothing();
        // What the test itself wrote there.
        cluster.must(A, "sync");
        cluster
    }

    /// Cuts A's power. It boots, and its daemons start, with [`Cluster::boot_without_daemons`] and [`Cluster::launch`].
    pub(crate) fn power_cut(&mut self, left: Left) -> Cut {
        let cuts = self.a.power_cut(left);
        let [cut] = cuts[..] else { panic!("{cuts:?}") };
        self.said(&format!("A lost power, {left:?} is left of what was not flushed: {cut:?}"));
        cut
    }

    /// Boots A after [`Cluster::power_cut`].
    pub(crate) fn boot_without_daemons(&mut self) {
        self.a.boot_again();
        prepare(&mut self.a);
        self.flush_nothing();
    }

    fn flush_nothing(&mut self) {
        self.must(
            A,
            &format!(
                "echo 720000 >/proc/sys/fs/xfs/xfssyncd_centisecs; if grep -q '{DISK} ext4' /proc/mounts; then mount -o remount,commit=300 {DISK}; fi"
            ),
        );
    }

    fn boot(kernels: [Kernel; 2], pool: PoolFs, memory: Memory, programs: &[&str]) -> Self {
        let watch = Stopwatch::start();
        let root = Image::with(programs);
        let certificates = certificates();
        let disks = [A, B].map(|_| {
            let disk = tempfile::Builder::new().prefix("holdfast-disk-").tempfile().unwrap();
            disk.as_file().set_len(8 << 30).unwrap();
            disk
        });
        let [left, right] = Wire::ends();
        let machine = |kernel, disk: PathBuf, memory, link| Machine {
            kernel,
            root: root.clone(),
            disks: vec![disk],
            memory,
            link: Some(link),
            parameters: "",
        };
        let [of_a, of_b] = kernels;
        let of_a = machine(of_a, disks[0].path().into(), memory, left);
        let of_b = machine(of_b, disks[1].path().into(), Memory::Kept, right);
        let make = match pool {
            PoolFs::Xfs => "mkfs.xfs -q /dev/vdb",
            _ => "mkfs.ext4 -q -E nodiscard /dev/vdb",
        };
        let boot = |side: Side, machine| {
            let mut guest = Guest::start(side.id(), machine);
            guest.must(&format!("modprobe xfs; {make}"));
            prepare(&mut guest);
            for (name, content) in &certificates[&side] {
                let content = STANDARD.encode(content);
                guest.must(&format!("mkdir -p {DISK}/$(dirname {name}); echo {content} | base64 -d >{DISK}/{name}"));
            }
            guest.must(&format!("mkdir -p {DISK}/pool {DISK}/state; chmod 600 {DISK}/*/tls.key"));
            guest
        };
        let (a, b) = std::thread::scope(|scope| {
            let (a, b) = (scope.spawn(|| boot(A, of_a)), scope.spawn(|| boot(B, of_b)));
            (a.join().unwrap(), b.join().unwrap())
        });
        let mut cluster = Self { a, b, contexts: HashMap::new(), _disks: disks.into(), watch };
        let [home, other] = [A, B].map(|side| cluster.must(side, "uname -r"));
        cluster.said(&format!("booted with Linux {home}, the other node with {other}"));
        cluster.launch(A, Daemon::Controller);
        cluster.launch(A, Daemon::Node);
        cluster.launch(B, Daemon::Node);
        cluster.ready();
        cluster
    }

    /// Waits until the controller is ready and has both nodes.
    pub(crate) fn ready(&mut self) {
        await_that("the controller is ready", SOON, || {
            let answer: Result<p::ProbeResponse, _> =
                self.csi(A, Daemon::Controller, "Identity/Probe", &p::ProbeRequest {});
            answer.is_ok_and(|answer| answer.ready != Some(false))
        });
        for side in [A, B] {
            let log = format!("grep -q 'node registered.*{}' /run/controller.log", side.id());
            await_that("the node is registered", SOON, || self.a.run(&log).code == 0);
        }
        self.said("the daemons are ready");
    }

    /// One of the guests.
    pub(crate) fn guest(&mut self, side: Side) -> &mut Guest {
        match side {
            A => &mut self.a,
            B => &mut self.b,
        }
    }

    /// Runs a line of shell that must succeed.
    pub(crate) fn must(&mut self, side: Side, line: &str) -> String {
        self.guest(side).must(line).trim().to_owned()
    }

    /// Prints what was reached, and when.
    pub(crate) fn said(&self, what: &str) {
        eprintln!("[{:6.1} s] {what}", self.watch.elapsed().as_secs_f64());
    }

    /// Starts a daemon without waiting.
    pub(crate) fn launch(&mut self, side: Side, daemon: Daemon) {
        let fabric = format!(" --fabric {FABRIC} --fabric-ports 4500-4599");
        self.launch_with(side, daemon, &fabric);
    }

    /// Starts a node that is in no fabric.
    pub(crate) fn launch_without_fabric(&mut self, side: Side) {
        self.launch_with(side, Daemon::Node, "");
    }

    fn launch_with(&mut self, side: Side, daemon: Daemon, fabric: &str) {
        let (name, address) = (daemon.name(), side.address());
        let mut line = format!("{} {name} --log-level debug --heartbeat 1s", driver_binary());
        line.push_str(&format!(" --endpoint unix:///run/{name}.sock"));
        match daemon {
            Daemon::Controller => line.push_str(&format!(" --listen {address}:9810 --tls {DISK}/controller")),
            Daemon::Node => {
                line.push_str(&format!(" --listen {address}:9811 --tls {DISK}/node --node-name {}", side.id()));
                line.push_str(&format!(" --controllers {}:9810 --state {DISK}/state", A.address()));
                line.push_str(fabric);
                if side == A {
                    line.push_str(&format!(" --pool test=file:{DISK}/pool"));
                }
            }
        }
        self.guest(side).must(&format!("{{ {line} >>/run/{name}.log 2>&1 & }}; echo $! >/run/{name}.pid"));
    }

    /// SIGKILL. As a supervisor, waits until every thread is gone: one that waits for a disk keeps the socket open.
    pub(crate) fn kill(&mut self, side: Side, daemon: Daemon) {
        self.guest(side).must(&format!(
            "pid=$(cat /run/{}.pid); kill -9 $pid; while [ -d /proc/$pid ] && ! {{ [ $(ls /proc/$pid/task | wc -l) -le 1 ] && grep -q ') Z' /proc/$pid/stat; }}; do sleep 0.1; done",
            daemon.name()
        ));
    }

    /// Boots a guest again that was killed, and starts its daemons.
    pub(crate) fn boot_again(&mut self, side: Side) {
        self.guest(side).boot_again();
        prepare(self.guest(side));
        if side == A {
            self.launch(A, Daemon::Controller);
        }
        self.launch(side, Daemon::Node);
    }

    /// A call to a daemon. `method` has the name of its service.
    pub(crate) fn csi<Q: Message, R: Message + Default>(
        &mut self,
        side: Side,
        daemon: Daemon,
        method: &str,
        request: &Q,
    ) -> Result<R, Status> {
        let watch = Stopwatch::start();
        let output = self.guest(side).must(&call(daemon, method, request));
        let answer = answered(&output);
        let shown = match &answer {
            Ok(_) => "OK".to_owned(),
            Err(status) => format!("{:?}: {}", status.code(), status.message()),
        };
        eprintln!("    {:5.2} s  {} {method}: {shown}", watch.elapsed().as_secs_f64(), side.id());
        answer
    }

    /// A call to the controller.
    pub(crate) fn controller<Q: Message, R: Message + Default>(
        &mut self,
        method: &str,
        request: &Q,
    ) -> Result<R, Status> {
        self.csi(A, Daemon::Controller, &format!("Controller/{method}"), request)
    }

    /// A call to a node.
    pub(crate) fn node<Q: Message, R: Message + Default>(
        &mut self,
        side: Side,
        method: &str,
        request: &Q,
    ) -> Result<R, Status> {
        self.csi(side, Daemon::Node, &format!("Node/{method}"), request)
    }

    /// CreateVolume with `access: network`; the answer allows the nodes of the fabric.
    pub(crate) fn create(&mut self, name: &str, kind: Use) -> Vol {
        self.create_sized(name, kind, kind.size(), None)
    }

    /// The same with another size, restored from a snapshot.
    pub(crate) fn create_sized(&mut self, name: &str, kind: Use, size: i64, snapshot: Option<&str>) -> Vol {
        let request = p::CreateVolumeRequest {
            parameters: HashMap::from([("access".to_owned(), "network".to_owned())]),
            volume_content_source: snapshot.and_then(from_snapshot),
            ..create_request(name, kind, size)
        };
        let answer: p::CreateVolumeResponse = self.retried(|cluster| cluster.controller("CreateVolume", &request));
        let volume = answer.volume.unwrap();
        let fabric = HashMap::from([(FABRIC_KEY.to_owned(), FABRIC.to_owned())]);
        assert_eq!(volume.accessible_topology, [p::Topology { segments: fabric }]);
        Vol { id: volume.volume_id, kind, size: volume.capacity_bytes, context: volume.volume_context }
    }

    /// Repeats a call while it is answered ABORTED, as the sidecars do; also UNAVAILABLE and the end of its time, because on
    /// a busy machine a heartbeat or the call itself may be late.
    pub(crate) fn retried<T>(&mut self, mut call: impl FnMut(&mut Self) -> Result<T, Status>) -> T {
        let mut answer = None;
        await_that("the call ends", SOON, || {
            answer = Some(call(self));
            !matches!(&answer, Some(Err(status)) if matches!(status.code(), Code::Aborted | Code::Unavailable | Code::Cancelled))
        });
        answer.unwrap().unwrap_or_else(|status| panic!("{status:?}"))
    }

    /// ControllerPublishVolume.
    pub(crate) fn attach(&mut self, vol: &Vol, side: Side) -> Result<(), Status> {
        let request = p::ControllerPublishVolumeRequest {
            volume_id: vol.id.clone(),
            node_id: side.id().into(),
            volume_capability: Some(capability(vol.kind)),
            volume_context: vol.context.clone(),
            ..Default::default()
        };
        let answer: p::ControllerPublishVolumeResponse = self.controller("ControllerPublishVolume", &request)?;
        self.contexts.insert(vol.id.clone(), answer.publish_context);
        Ok(())
    }

    /// The request of [`Cluster::detach`].
    pub(crate) fn detach_request(vol: &Vol, side: Side) -> p::ControllerUnpublishVolumeRequest {
        p::ControllerUnpublishVolumeRequest {
            volume_id: vol.id.clone(),
            node_id: side.id().into(),
            ..Default::default()
        }
    }

    /// ControllerUnpublishVolume.
    pub(crate) fn detach(&mut self, vol: &Vol, side: Side) -> Result<(), Status> {
        let request = Self::detach_request(vol, side);
        self.controller::<_, p::ControllerUnpublishVolumeResponse>("ControllerUnpublishVolume", &request).map(drop)
    }

    /// NodeStageVolume.
    pub(crate) fn stage(&mut self, vol: &Vol, side: Side) -> Result<(), Status> {
        // Fails on a filesystem whose device is gone.
        self.guest(side).run(&format!("mkdir -p {}", vol.staging()));
        let request = p::NodeStageVolumeRequest {
            volume_id: vol.id.clone(),
            publish_context: self.contexts.get(&vol.id).cloned().unwrap_or_default(),
            staging_target_path: vol.staging(),
            volume_capability: Some(capability(vol.kind)),
            volume_context: vol.context.clone(),
            ..Default::default()
        };
        self.node::<_, p::NodeStageVolumeResponse>(side, "NodeStageVolume", &request).map(drop)
    }

    /// NodePublishVolume.
    pub(crate) fn publish(&mut self, vol: &Vol, side: Side) -> Result<(), Status> {
        self.must(side, &format!("mkdir -p {PODS}"));
        let request = p::NodePublishVolumeRequest {
            volume_id: vol.id.clone(),
            publish_context: self.contexts.get(&vol.id).cloned().unwrap_or_default(),
            staging_target_path: vol.staging(),
            target_path: vol.target(),
            volume_capability: Some(capability(vol.kind)),
            volume_context: vol.context.clone(),
            ..Default::default()
        };
        self.node::<_, p::NodePublishVolumeResponse>(side, "NodePublishVolume", &request).map(drop)
    }

    /// NodeUnpublishVolume.
    pub(crate) fn unpublish(&mut self, vol: &Vol, side: Side) -> Result<(), Status> {
        let request = p::NodeUnpublishVolumeRequest { volume_id: vol.id.clone(), target_path: vol.target() };
        self.node::<_, p::NodeUnpublishVolumeResponse>(side, "NodeUnpublishVolume", &request).map(drop)
    }

    /// NodeUnstageVolume.
    pub(crate) fn unstage(&mut self, vol: &Vol, side: Side) -> Result<(), Status> {
        let request = p::NodeUnstageVolumeRequest { volume_id: vol.id.clone(), staging_target_path: vol.staging() };
        self.node::<_, p::NodeUnstageVolumeResponse>(side, "NodeUnstageVolume", &request).map(drop)
    }

    /// Gives a volume to a pod on a node.
    pub(crate) fn start_pod(&mut self, vol: &Vol, side: Side) {
        self.retried(|cluster| cluster.attach(vol, side));
        self.retried(|cluster| cluster.stage(vol, side));
        self.publish(vol, side).unwrap();
    }

    /// Undoes [`Cluster::start_pod`].
    pub(crate) fn stop_pod(&mut self, vol: &Vol, side: Side) {
        self.unpublish(vol, side).unwrap();
        self.unstage(vol, side).unwrap();
        self.retried(|cluster| cluster.detach(vol, side));
    }

    /// Writes content that only this call writes, synced, and returns its sum.
    pub(crate) fn write(&mut self, vol: &Vol, side: Side, name: &str) -> String {
        let target = vol.target();
        match vol.kind {
            Use::Block => self.must(
                side,
                &format!(
                    "head -c 4194304 /dev/urandom >/tmp/{name} && dd if=/tmp/{name} of={target} bs=1M conv=fsync,notrunc 2>/dev/null && sha256sum </tmp/{name} && rm /tmp/{name}"
                ),
            ),
            Use::Ext4 | Use::Xfs => self.must(
                side,
                &format!("head -c 4194304 /dev/urandom >{target}/{name} && sync && sha256sum <{target}/{name}"),
            ),
        }
    }

    /// The sum of what [`Cluster::write`] wrote.
    pub(crate) fn read(&mut self, vol: &Vol, side: Side, name: &str) -> String {
        let target = vol.target();
        match vol.kind {
            Use::Block => self.must(side, &format!("dd if={target} bs=1M count=4 2>/dev/null | sha256sum")),
            Use::Ext4 | Use::Xfs => self.must(side, &format!("sha256sum <{target}/{name}")),
        }
    }

    /// DeleteVolume.
    pub(crate) fn delete(&mut self, vol: &Vol) {
        let request = p::DeleteVolumeRequest { volume_id: vol.id.clone(), ..Default::default() };
        self.retried(|cluster| cluster.controller::<_, p::DeleteVolumeResponse>("DeleteVolume", &request));
    }

    /// Asserts that nothing of any volume is left in the kernels.
    pub(crate) fn nothing_left(&mut self) {
        for side in [A, B] {
            for (what, line) in [
                ("exports", "cd /sys/kernel/config/nvmet && ls subsystems; ls ports; ls hosts"),
                ("controllers", "ls /sys/class/nvme 2>/dev/null"),
                ("loop devices", "cat /sys/block/loop*/loop/backing_file 2>/dev/null"),
                ("device-mapper devices", "cat /sys/block/dm-*/dm/name 2>/dev/null"),
                ("mounts", "grep kubelet /proc/mounts"),
                ("links", "ls /run/holdfast/dev 2>/dev/null"),
                ("connections", "netstat -tn | grep -E ':45[0-9][0-9] .*ESTABLISHED'"),
            ] {
                let left = self.guest(side).run(line).output;
                assert_eq!(left.trim(), "", "{what} on {}", side.id());
            }
        }
    }

    /// What no run may have logged.
    pub(crate) fn finish(mut self) {
        self.nothing_left();
        for side in [A, B] {
            let panics = self.guest(side).run("grep -h panicked /run/*.log").output;
            assert_eq!(panics.trim(), "", "{}", side.id());
        }
        self.said("nothing is left");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for side in [A, B] {
            let shown = catch_unwind(AssertUnwindSafe(|| {
                self.guest(side).run("for log in /run/*.log; do echo \"-- $log\"; tail -n 120 $log; done; echo -- top; top -bn1 | head -n 15; echo -- dmesg; dmesg | tail -n 60; cat /proc/mounts | grep -E 'kubelet|disk'").output
            }));
            eprintln!("-- {} --\n{}", side.id(), shown.unwrap_or_default());
        }
    }
}

/// What a guest needs after each boot, as its init system does it.
fn prepare(guest: &mut Guest) {
    guest.must(&format!(
        "modprobe -a xfs nvmet-tcp nvme-tcp && mount -t configfs configfs /sys/kernel/config && mkdir -p {DISK} /var/lib/kubelet && mount /dev/vdb {DISK} && mount --make-rshared /"
    ));
}

/// The line of shell of a call.
pub(crate) fn call<Q: Message>(daemon: Daemon, method: &str, request: &Q) -> String {
    let itself = std::env::current_exe().unwrap();
    let message = STANDARD.encode(request.encode_to_vec());
    format!(
        "{CALL}='/run/{}.sock /csi.v1.{method} {DEADLINE} {message}' {} --ignored --exact --nocapture inside::call::call_once",
        daemon.name(),
        itself.display()
    )
}

/// The answer in the output of a call.
pub(crate) fn answered<R: Message + Default>(output: &str) -> Result<R, Status> {
    let (_, result) = output.split_once("=> ").unwrap_or_else(|| panic!("no answer: {output}"));
    let mut words = result.lines().next().unwrap().split(' ');
    let bytes = |text: Option<&str>| STANDARD.decode(text.unwrap_or_default()).unwrap();
    match words.next() {
        Some("ok") => Ok(R::decode(bytes(words.next()).as_slice()).unwrap()),
        Some("status") => {
            let code = Code::from_i32(words.next().unwrap().parse().unwrap());
            Err(Status::new(code, String::from_utf8(bytes(words.next())).unwrap()))
        }
        _ => panic!("no answer: {output}"),
    }
}

/// The files of the daemons' certificates, by guest: their names below the disk, and their content.
fn certificates() -> HashMap<Side, Vec<(String, Vec<u8>)>> {
    let directory = tempfile::tempdir().unwrap();
    let issue = |role: &str, name: &str, side: Side| -> Vec<(String, Vec<u8>)> {
        let out = directory.path().join(side.id()).join(name);
        fs::create_dir_all(out.parent().unwrap()).unwrap();
        let (authority, to) = (directory.path().join("ca"), out.to_str().unwrap());
        run(driver_binary(), &["ca", "issue", "--dir", authority.to_str().unwrap(), "--role", role, "--out", to]);
        files(&out, name)
    };
    let mut of_a = issue("controller", "controller", A);
    of_a.extend(issue("node:node-a", "node", A));
    HashMap::from([(A, of_a), (B, issue("node:node-b", "node", B))])
}

fn files(directory: &Path, name: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    entries
        .map(|entry| {
            let file = format!("{name}/{}", entry.file_name().to_string_lossy());
            (file, fs::read(entry.path()).unwrap())
        })
        .collect()
}
