//! Connections that break while B uses a volume of A, and what was written before, meanwhile and after.

use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast::os::Stopwatch;

use crate::cluster::{A, B, Cluster, Daemon, SOON, Side, Vol};
use crate::detach::Writer;
use crate::harness::{PoolFs, Use, await_that};
use crate::inside::writes::WRITES;
use crate::machine::Cable;
use crate::root::Kernel;

/// The disk of A's pool.
const DISK: usize = 1;
/// Where the block is that is written twice.
const AT: u64 = 1 << 20;
/// How long a node may take until its I/O goes on, with a slow disk.
const LATER: Duration = Duration::from_secs(180);
/// The timeout of a request on B in the tests that exceed it, in seconds: instead of 30.
const IO_TIMEOUT: u64 = 5;
/// Read for each new connection.
const TIMEOUT: &str = "/sys/module/nvme_core/parameters/io_timeout";

/// How a connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// The home node's sockets are destroyed.
    Sockets,
    /// The cable is cut for longer than the keep-alive timeout.
    Cable,
    /// A write takes longer than the other node's kernel waits for it; the network has no fault.
    Timeout,
}

impl Break {
    pub(crate) const ALL: [Self; 3] = [Self::Sockets, Self::Cable, Self::Timeout];

    fn happen(self, cluster: &mut Cluster) {
        match self {
            Self::Sockets => {
                let ended = cluster.must(A, "ss -HtnK state established 'sport >= :4500 and sport <= :4599'");
                assert!(ended.contains(":45"), "no connection was ended: {ended}");
            }
            Self::Cable => {
                cluster.guest(B).cable(Cable::Cut);
                thread::sleep(Duration::from_secs(9));
                cluster.guest(B).cable(Cable::Joined);
            }
            Self::Timeout => {}
        }
        cluster.said(&format!("{self:?}: the connection breaks"));
    }

    /// How long the next write may take to be acknowledged, if nothing keeps it from that.
    fn recovery(self) -> Duration {
        Duration::from_secs(match self {
            Self::Sockets => 10,
            Self::Cable => 20,
            // The kernel looks for requests that are too old once in that time.
            Self::Timeout => 2 * IO_TIMEOUT + 15,
        })
    }
}

/// The line of shell of a step of [`crate::inside::writes`].
fn line(step: &str) -> String {
    let itself = std::env::current_exe().unwrap();
    format!("{WRITES}='{step}' {} --ignored --exact --nocapture inside::writes::step", itself.display())
}

/// Runs a step of [`crate::inside::writes`].
fn done(cluster: &mut Cluster, side: Side, step: &str) -> String {
    let output = cluster.must(side, &line(step));
    let (_, result) = output.split_once("=> ").unwrap_or_else(|| panic!("{step}: {output}"));
    result.lines().next().unwrap().to_owned()
}

/// Requests in a device of A.
fn in_flight(cluster: &mut Cluster, device: &str) -> u64 {
    let text = cluster.must(A, &format!("cat /sys/block/{device}/inflight"));
    text.split_whitespace().map(|number| number.parse::<u64>().unwrap()).sum()
}

/// The loop device of a volume on A.
fn loop_of(cluster: &mut Cluster, vol: &Vol) -> String {
    cluster.must(A, &format!("grep -l '^{}$' /sys/block/loop*/loop/backing_file | cut -d/ -f4", vol.image()))
}

/// The controllers of B, each with its state.
fn controllers(cluster: &mut Cluster) -> String {
    cluster.must(
        B,
        "cd /sys/class/nvme && for one in *; do [ -e $one ] && echo $one $(cat $one/state $one/cntlid); done; true",
    )
}

/// What the kernel of B logged about its connections.
fn kernel_log(cluster: &mut Cluster, lines: usize) -> String {
    cluster.must(B, &format!("dmesg | grep -E 'nvme|I/O error' | tail -n {lines}"))
}

/// A volume of B, and the block in it that is written twice.
struct Twice<'a> {
    vol: &'a Vol,
    path: String,
    how: &'static str,
    /// Where the block is in the image.
    in_image: u64,
    device: String,
}

impl<'a> Twice<'a> {
    /// The block is written once, so that a later write changes nothing else on the home node's disk.
    fn new(cluster: &mut Cluster, vol: &'a Vol) -> Self {
        let (path, how) = match vol.kind {
            Use::Block => (vol.target(), "direct"),
            Use::Ext4 | Use::Xfs => (format!("{}/file", vol.target()), "buffered"),
        };
        if vol.kind != Use::Block {
            cluster.must(B, &format!("head -c 2097152 /dev/zero >{path} && sync"));
        }
        done(cluster, B, &format!("put path={path} at={AT} how={how} words=first"));
        let in_image = done(cluster, A, &format!("find path={} word=first", vol.image())).parse().unwrap();
        let device = loop_of(cluster, vol);
        Self { vol, path, how, in_image, device }
    }

    /// Writes words in the background.
    fn write(&self, cluster: &mut Cluster, words: &str) {
        let write = line(&format!("put path={} at={AT} how={} words={words}", self.path, self.how));
        cluster.must(B, &format!("{{ {write} >/tmp/words 2>&1 & }}"));
    }

    fn is_acknowledged(cluster: &mut Cluster, word: &str) -> bool {
        cluster.guest(B).run(&format!("grep -q 'acknowledged {word}$' /tmp/words")).code == 0
    }

    /// The word in the image now, whoever uses it.
    fn on_disk(&self, cluster: &mut Cluster) -> String {
        done(cluster, A, &format!("word path={} at={}", self.vol.image(), self.in_image))
    }

    /// Whether `old` is in the image. A read that waits for the write means that it is not: a home node that has lost the
    /// connection changes the image's flags, which waits for the write, and later reads wait for that.
    fn has_arrived(&self, cluster: &mut Cluster) -> bool {
        let read = line(&format!("word path={} at={}", self.vol.image(), self.in_image));
        cluster.must(A, &format!("rm -f /tmp/word; {{ {read} >/tmp/word 2>&1 & }}"));
        thread::sleep(Duration::from_secs(3));
        cluster.guest(A).run("grep -q '^=> old' /tmp/word").code == 0
    }

    /// Begins to write `old`, which the disk of the home node holds, and then `new`.
    fn hold(&self, cluster: &mut Cluster) {
        for attempt in 1..=5 {
            cluster.must(B, "sync");
            cluster.must(A, "sync");
            cluster.guest(A).hold_a_write(DISK);
            self.write(cluster, "old,new");
            thread::sleep(Duration::from_secs(1));
            await_that("the write reaches the disk", SOON, || {
                in_flight(cluster, &self.device) > 0 || Self::is_acknowledged(cluster, "old")
            });
            thread::sleep(Duration::from_millis(500));
            if !Self::is_acknowledged(cluster, "old") && !self.has_arrived(cluster) {
                return;
            }
            // The disk holds a write of another program.
            cluster.guest(A).let_go(DISK);
            cluster.said(&format!("attempt {attempt}: the disk held another write"));
            await_that("both are acknowledged", SOON, || Self::is_acknowledged(cluster, "new"));
            done(cluster, B, &format!("put path={} at={AT} how={} words=first", self.path, self.how));
        }
        panic!("the disk never held the write");
    }
}

/// A write is sent, and the home node's disk holds it. The connection breaks, and the write is sent again. The next write
/// to the same block is acknowledged: it must stay, whenever the disk carries out the first copy of the earlier one.
pub(crate) fn old_copy(home: Kernel, other: Kernel, kinds: &[Use], breaks: &[Break]) {
    let mut cluster = Cluster::start_between(home, other, PoolFs::Xfs);
    let usual = cluster.must(B, &format!("cat {TIMEOUT}"));
    let mut lost = Vec::new();
    for kind in kinds.iter().copied() {
        let vol = cluster.create(&format!("vol-{kind:?}"), kind);
        for how in breaks.iter().copied() {
            let case = format!("{kind:?} {how:?}, home node {home:?}, other node {other:?}");
            let seconds = if how == Break::Timeout { IO_TIMEOUT.to_string() } else { usual.clone() };
            cluster.must(B, &format!("echo {seconds} >{TIMEOUT}"));
            cluster.start_pod(&vol, B);
            let twice = Twice::new(&mut cluster, &vol);
            twice.hold(&mut cluster);
            cluster.said(&format!("{case}: the disk holds the write"));
            how.happen(&mut cluster);
            let watch = Stopwatch::start();
            while watch.elapsed() < how.recovery() && !Twice::is_acknowledged(&mut cluster, "new") {
                thread::sleep(Duration::from_millis(200));
            }
            let is_overtaken = Twice::is_acknowledged(&mut cluster, "new");
            let state = controllers(&mut cluster).replace('\n', ", ");
            cluster.said(&format!("later write acknowledged: {is_overtaken}; controllers: {state}"));
            cluster.guest(A).let_go(DISK);
            let watch = Stopwatch::start();
            await_that("both are acknowledged", SOON, || Twice::is_acknowledged(&mut cluster, "new"));
            cluster.said(&format!("acknowledged {:.1} s after the disk went on", watch.elapsed().as_secs_f64()));
            await_that("the disks are idle", SOON, || {
                in_flight(&mut cluster, &twice.device) + in_flight(&mut cluster, "vdb") == 0
            });
            thread::sleep(Duration::from_secs(1));
            let read = done(&mut cluster, B, &format!("word path={} at={AT}", twice.path));
            await_that("one live connection is left", SOON, || {
                let state = controllers(&mut cluster);
                state.lines().count() == 1 && state.contains(" live ")
            });
            cluster.stop_pod(&vol, B);
            let stored = twice.on_disk(&mut cluster);
            cluster.said(&format!("{case}: {read} was read, {stored} is in the image"));
            if (read.as_str(), stored.as_str()) != ("new", "new") {
                eprintln!("{}", kernel_log(&mut cluster, 20));
                lost.push(format!("{case}: {read} was read, {stored} is in the image"));
            }
            check_filesystem(&mut cluster, &vol);
        }
        cluster.delete(&vol);
    }
    assert_eq!(lost, Vec::<String>::new(), "an acknowledged write was overtaken by an earlier one");
    cluster.finish();
}

/// Several writers on B, each with numbered records in blocks of its own, which they read again and again.
struct Load<'a> {
    vol: &'a Vol,
    name: &'static str,
}

impl<'a> Load<'a> {
    fn start(cluster: &mut Cluster, vol: &'a Vol, name: &'static str) -> Self {
        let load = Self { vol, name };
        let path = load.path();
        if vol.kind != Use::Block {
            cluster.must(B, &format!("head -c 1048576 /dev/zero >{path} && sync"));
        }
        let line = line(&format!("load path={path} name={name}"));
        cluster.must(B, &format!("{{ {line} >/tmp/{name} 2>&1 & }}"));
        load.goes_on(cluster);
        load
    }

    fn path(&self) -> String {
        match self.vol.kind {
            Use::Block => self.vol.target(),
            Use::Ext4 | Use::Xfs => format!("{}/{}", self.vol.target(), self.name),
        }
    }

    /// How many records each writer has at least.
    fn acknowledged(&self, cluster: &mut Cluster) -> u64 {
        cluster.must(B, &format!("cat /tmp/{}-acknowledged 2>/dev/null || echo 0", self.name)).parse().unwrap()
    }

    /// Waits until every writer has more of them.
    fn goes_on(&self, cluster: &mut Cluster) {
        let before = self.acknowledged(cluster);
        await_that("every writer writes", LATER, || {
            let wrong = cluster.guest(B).run(&format!("cat /tmp/{}-wrong*", self.name));
            assert!(wrong.code != 0, "{}: {}", self.name, wrong.output);
            self.acknowledged(cluster) > before + 2
        });
    }

    /// Ends it. Every record is there, as B reads it.
    fn stop(&self, cluster: &mut Cluster) {
        let (name, path) = (self.name, self.path());
        cluster.must(B, &format!("touch /tmp/{name}-stop"));
        await_that("the writers end", LATER, || cluster.guest(B).run(&format!("grep '^=> ' /tmp/{name}")).code == 0);
        let wrong = cluster.guest(B).run(&format!("cat /tmp/{name}-wrong*"));
        assert!(wrong.code != 0, "{name}: {}", wrong.output);
        let total = cluster.must(B, &format!("grep '^=> ' /tmp/{name}"));
        let read = done(cluster, B, &format!("check path={path} records=/tmp/{name}-records"));
        cluster.said(&format!("{name}: {total} acknowledged; {read} are there"));
    }

    /// Asserts that every record is on a node that has the volume now.
    fn is_complete(&self, cluster: &mut Cluster, side: Side) {
        let (name, path) = (self.name, self.path());
        let records = STANDARD.encode(cluster.must(B, &format!("cat /tmp/{name}-records")) + "\n");
        cluster.must(side, &format!("echo {records} | base64 -d >/tmp/{name}-there"));
        done(cluster, side, &format!("check path={path} records=/tmp/{name}-there"));
    }
}

/// A raw block volume and one with ext4, both written on B while its requests have a short timeout.
struct Written<'a> {
    loads: [Load<'a>; 2],
    writer: Writer<'a>,
    errors: String,
}

fn two_volumes(cluster: &mut Cluster) -> [Vol; 2] {
    cluster.must(B, &format!("echo {IO_TIMEOUT} >{TIMEOUT}"));
    [Use::Block, Use::Ext4].map(|kind| {
        let vol = cluster.create(&format!("vol-{kind:?}"), kind);
        cluster.start_pod(&vol, B);
        vol
    })
}

fn io_errors(cluster: &mut Cluster) -> String {
    cluster.guest(B).run("dmesg | grep -iE 'I/O error|Buffer I/O|remounting'").output
}

impl<'a> Written<'a> {
    fn start(cluster: &mut Cluster, [raw, files]: &'a [Vol; 2]) -> Self {
        let writer = Writer::start(cluster, files, "file");
        let loads = [Load::start(cluster, raw, "raw"), Load::start(cluster, files, "records")];
        Self { loads, writer, errors: io_errors(cluster) }
    }

    fn goes_on(&self, cluster: &mut Cluster) {
        let watch = Stopwatch::start();
        for load in &self.loads {
            load.goes_on(cluster);
        }
        self.writer.goes_on(cluster);
        let state = controllers(cluster).replace('\n', ", ");
        cluster.said(&format!("everything goes on after {:.1} s; controllers: {state}", watch.elapsed().as_secs_f64()));
    }

    /// Ends it: everything that was acknowledged is on either node, without an error.
    fn end(self, cluster: &mut Cluster) {
        let acknowledged = self.writer.stop(cluster);
        for load in &self.loads {
            load.stop(cluster);
        }
        self.writer.complete(cluster, B, acknowledged);
        assert_eq!(io_errors(cluster), self.errors, "errors in the log of node-b");
        await_that("one connection for each volume is left", SOON, || {
            let state = controllers(cluster);
            state.lines().count() == 2 && state.lines().all(|line| line.contains(" live "))
        });
        let mut subsystems: Vec<_> =
            cluster.must(B, "cat /sys/class/nvme/*/subsysnqn").lines().map(str::to_owned).collect();
        subsystems.dedup();
        assert_eq!(subsystems.len(), 2, "{subsystems:?}");
        for load in &self.loads {
            cluster.stop_pod(load.vol, B);
            check_filesystem(cluster, load.vol);
            cluster.start_pod(load.vol, A);
            load.is_complete(cluster, A);
        }
        self.writer.complete(cluster, A, acknowledged);
        for load in &self.loads {
            cluster.stop_pod(load.vol, A);
            cluster.delete(load.vol);
        }
        cluster.said(&format!("{acknowledged} files and all records are there"));
    }
}

/// Connections break in every way, again and again, while the home node's disk is slow and holds a write each time.
pub(crate) fn under_load(home: Kernel, other: Kernel) {
    let mut cluster = Cluster::start_between(home, other, PoolFs::Xfs);
    let vols = two_volumes(&mut cluster);
    let written = Written::start(&mut cluster, &vols);
    cluster.guest(A).throttle(DISK, 100);
    for round in 0..3 {
        for how in Break::ALL {
            cluster.guest(A).hold_a_write(DISK);
            thread::sleep(Duration::from_secs(1));
            how.happen(&mut cluster);
            // Longer than the timeout, and long enough for a connection that does not wait to write the block again.
            thread::sleep(Duration::from_secs(2 * IO_TIMEOUT + 2));
            cluster.guest(A).let_go(DISK);
            cluster.said(&format!("round {round}, {how:?}: the disk goes on"));
            written.goes_on(&mut cluster);
        }
    }
    cluster.guest(A).throttle(DISK, 0);
    written.end(&mut cluster);
    cluster.finish();
}

/// The home node is killed and boots; then the cable is cut for longer than a minute.
pub(crate) fn long_breaks(home: Kernel, other: Kernel) {
    let mut cluster = Cluster::start_between(home, other, PoolFs::Xfs);
    let vols = two_volumes(&mut cluster);
    let written = Written::start(&mut cluster, &vols);
    cluster.guest(A).kill();
    thread::sleep(Duration::from_secs(5));
    cluster.boot_again(A);
    cluster.said("the home node was killed, and boots");
    written.goes_on(&mut cluster);
    cluster.ready();
    cluster.guest(B).cable(Cable::Cut);
    thread::sleep(Duration::from_secs(70));
    cluster.guest(B).cable(Cable::Joined);
    cluster.said("the cable was cut for 70 s");
    written.goes_on(&mut cluster);
    written.end(&mut cluster);
    cluster.finish();
}

/// A step of a node that connects again, by what can be seen in the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// B has lost its connection.
    Lost,
    /// A waits for the requests of the lost connection.
    Waits,
    /// A has removed the export, and builds it again.
    Rebuilds,
    /// B makes the next connection.
    Connects,
    /// B has it, beside the lost one.
    Connected,
    /// B deletes the lost one.
    Deletes,
}

/// What happens then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The daemon is killed, and starts again.
    Killed,
    /// The connections of B break again.
    Broken,
    /// The network of B is down for some seconds, and kubelet repeats its call.
    Away,
}

impl Point {
    const OF_A: [Self; 2] = [Self::Waits, Self::Rebuilds];
    const OF_B: [Self; 4] = [Self::Lost, Self::Connects, Self::Connected, Self::Deletes];

    fn side(self) -> Side {
        if Self::OF_A.contains(&self) { A } else { B }
    }

    /// What the shell waits for: whether there is a controller in these states, and how many there are; on A, whether there is
    /// an export and a listener.
    fn condition(self) -> &'static str {
        match self {
            Self::Lost => "[ $connecting -gt 0 ]",
            // The listener is closed first.
            Self::Waits => "[ $listens -eq 0 ]",
            Self::Rebuilds => "[ $exports -eq 0 ]",
            Self::Connects => "[ $all -gt 1 ]",
            Self::Connected => "[ $all -gt 1 -a $live -gt 0 ]",
            Self::Deletes => "[ $deleting -gt 0 ]",
        }
    }

    /// Lets the event happen as soon as the step is there, in the background. The shell starts no process for a look, so it
    /// takes less time than a step of the daemon.
    fn arm(self, cluster: &mut Cluster, event: Event) {
        let condition = self.condition();
        let act = match event {
            Event::Killed => "kill -9 $(cat /run/node.pid)",
            Event::Broken => "ss -HtnK 'dport >= :4500 and dport <= :4599'",
            Event::Away => "ip link set eth0 down",
        };
        cluster.must(
            self.side(),
            &format!(
                "rm -f /tmp/happened; {{ (until {condition}; do all=0 connecting=0 live=0 deleting=0 exports=0 listens=0; for file in /sys/class/nvme/*/state; do read state <$file || continue; all=$((all+1)); case $state in connecting) connecting=1;; live) live=1;; deleting*) deleting=1;; esac; done; for one in /sys/kernel/config/nvmet/subsystems/nqn.2026*; do [ ! -e $one ] || exports=1; done; for one in /sys/kernel/config/nvmet/ports/*/subsystems/*; do [ ! -e $one ] || listens=1; done; done; {act}; touch /tmp/happened) >/dev/null 2>&1 & }}"
            ),
        );
    }
}

/// A node connects again, and at each step of it the daemon of either side is killed, the connection breaks again, or the
/// network is away. Nothing that was acknowledged is lost, and the I/O goes on by itself.
pub(crate) fn interrupted(home: Kernel, other: Kernel, rounds: u32) {
    let mut cluster = Cluster::start_between(home, other, PoolFs::Xfs);
    let vol = cluster.create("vol", Use::Block);
    cluster.start_pod(&vol, B);
    let load = Load::start(&mut cluster, &vol, "raw");
    let errors = io_errors(&mut cluster);
    // Away twice: the kernel numbers the next controller below the lost one and above it in turn.
    let events = [Event::Killed, Event::Broken, Event::Away, Event::Away];
    let of_b = Point::OF_B.iter().flat_map(|point| events.map(|event| (*point, event)));
    let all: Vec<_> = of_b.chain(Point::OF_A.map(|point| (point, Event::Killed))).collect();
    for round in 0..rounds {
        for (point, event) in all.iter().copied() {
            let case = format!("round {round}: {point:?}, {event:?}");
            let side = point.side();
            point.arm(&mut cluster, event);
            cluster.guest(A).hold_a_write(DISK);
            thread::sleep(Duration::from_secs(1));
            Break::Sockets.happen(&mut cluster);
            // Something happens while A waits for the write, or after that.
            thread::sleep(Duration::from_secs(4));
            cluster.guest(A).let_go(DISK);
            await_that(&case, SOON, || cluster.guest(side).run("[ -e /tmp/happened ]").code == 0);
            let state = controllers(&mut cluster).replace('\n', ", ");
            cluster.said(&format!("{case}; controllers: {state}"));
            match event {
                Event::Killed => {
                    cluster.kill(side, Daemon::Node);
                    cluster.launch(side, Daemon::Node);
                }
                Event::Broken => {}
                Event::Away => {
                    // Answered with an error: the home node cannot be reached.
                    let _ = cluster.stage(&vol, B);
                    cluster.must(B, "ip link set eth0 up");
                }
            }
            let watch = Stopwatch::start();
            load.goes_on(&mut cluster);
            await_that("one live connection is left", LATER, || {
                let state = controllers(&mut cluster);
                state.lines().count() == 1 && state.contains(" live ")
            });
            cluster.said(&format!("{case}: goes on after {:.1} s", watch.elapsed().as_secs_f64()));
        }
    }
    load.stop(&mut cluster);
    assert_eq!(io_errors(&mut cluster), errors, "errors in the log of node-b");
    cluster.ready();
    cluster.stop_pod(&vol, B);
    cluster.start_pod(&vol, A);
    load.is_complete(&mut cluster, A);
    cluster.stop_pod(&vol, A);
    cluster.delete(&vol);
    cluster.finish();
}

/// Asserts that the filesystem of a detached volume has no error.
fn check_filesystem(cluster: &mut Cluster, vol: &Vol) {
    match vol.kind {
        Use::Block => {}
        Use::Ext4 => drop(cluster.must(A, &format!("e2fsck -fn {}", vol.image()))),
        Use::Xfs => drop(cluster.must(A, &format!("xfs_repair -nf {}", vol.image()))),
    }
}

#[test]
fn an_acknowledged_write_is_not_overtaken_by_an_earlier_one() {
    old_copy(Kernel::Newest, Kernel::Newest, &[Use::Block], &[Break::Sockets]);
}
