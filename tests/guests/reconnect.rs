//! Connections that break while B uses a volume of A, and what was written before, meanwhile and after.

use std::thread;
use std::time::Duration;

use holdfast::os::Stopwatch;

use crate::cluster::{A, B, Cluster, SOON, Side, Vol};
use crate::harness::{PoolFs, Use, await_that};
use crate::inside::writes::WRITES;
use crate::machine::Cable;
use crate::root::Kernel;

/// The disk of A's pool.
const DISK: usize = 1;
/// Where the block is that is written twice.
const AT: u64 = 1 << 20;
/// The timeout of a request on B in the tests that exceed it, in seconds: instead of 30.
const IO_TIMEOUT: u64 = 5;

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
            Self::Sockets => 12,
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
    cluster.must(B, "cd /sys/class/nvme && for one in *; do [ -e $one ] && echo $one $(cat $one/state $one/cntlid); done; true")
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
            if !Self::is_acknowledged(cluster, "old") && self.on_disk(cluster) != "old" {
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
    let timeout = "/sys/module/nvme_core/parameters/io_timeout";
    let usual = cluster.must(B, &format!("cat {timeout}"));
    let mut lost = Vec::new();
    for kind in kinds.iter().copied() {
        for how in breaks.iter().copied() {
            let case = format!("{kind:?} {how:?}, home node {home:?}, other node {other:?}");
            let seconds = if how == Break::Timeout { IO_TIMEOUT.to_string() } else { usual.clone() };
            cluster.must(B, &format!("echo {seconds} >{timeout}"));
            let vol = cluster.create(&format!("vol-{kind:?}-{how:?}"), kind);
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
            let state = controllers(&mut cluster);
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
            await_that("one connection is left", SOON, || controllers(&mut cluster).lines().count() == 1);
            let state = controllers(&mut cluster);
            assert!(state.contains(" live "), "{state}");
            cluster.stop_pod(&vol, B);
            let stored = twice.on_disk(&mut cluster);
            if (read.as_str(), stored.as_str()) != ("new", "new") {
                eprintln!("{}", kernel_log(&mut cluster, 20));
                lost.push(format!("{case}: {read:?} was read, {stored:?} is in the image"));
            }
            check_filesystem(&mut cluster, &vol);
            cluster.delete(&vol);
            cluster.said(&format!("{case}: {read} was read, {stored} is in the image"));
        }
    }
    assert_eq!(lost, Vec::<String>::new(), "an acknowledged write was overtaken by an earlier one");
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
