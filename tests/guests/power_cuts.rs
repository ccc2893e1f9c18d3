//! The home node loses power while pods on B write to its volumes: every write that was acknowledged is there.

use std::time::Duration;

use crate::cluster::{A, B, Cluster, Daemon, SOON, Side, Vol};
use crate::harness::{PoolFs, Use, await_that};
use crate::inside::records::{BLOCKS, RECORDS};
use crate::power::Left;
use crate::restarts::io_errors;
use crate::root::Kernel;

/// The programs that read and change the flags of an image.
const PROGRAMS: [&str; 2] = ["/usr/bin/chattr", "/usr/bin/lsattr"];
/// How long the records may take that a test waits for: each write is durable before the next, on an emulated machine.
const RECORDED: Duration = Duration::from_secs(180);

/// No record is missing.
const NONE: [u64; 0] = [];

/// A pod on B that writes records ([`crate::inside::records`]): of a raw volume each block goes to the device by itself,
/// and a record ends with an fsync; in a filesystem a record is written at once, and synced.
#[derive(Debug)]
struct Recorder {
    vol: Vol,
    name: &'static str,
}

/// What is acknowledged: so many records, and so many blocks of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    records: u64,
    blocks: u64,
}

impl Recorder {
    /// Creates a volume, gives it to a pod on B, and begins.
    fn start(cluster: &mut Cluster, kind: Use, name: &'static str) -> Self {
        let vol = cluster.create(name, kind);
        start_pod(cluster, &vol, B);
        let recorder = Self { vol, name };
        let how = if kind == Use::Block { "direct" } else { "synced" };
        let write = line(&format!("write {} {name} {how}", recorder.path()));
        cluster.must(B, &format!("{{ {write} >/tmp/{name}.log 2>&1 & }}"));
        await_that("the pod writes", SOON, || cluster.guest(B).run(&format!("[ -s /tmp/{name} ]")).code == 0);
        recorder.goes_on(cluster, 3);
        recorder
    }

    /// Where the records are, in a pod.
    fn path(&self) -> String {
        match self.vol.kind {
            Use::Block => self.vol.target(),
            Use::Ext4 | Use::Xfs => format!("{}/records", self.vol.target()),
        }
    }

    fn progress(&self, cluster: &mut Cluster) -> Progress {
        let text = cluster.must(B, &format!("cat /tmp/{}", self.name));
        let (records, blocks) = text.split_once(' ').unwrap();
        Progress { records: records.parse().unwrap(), blocks: blocks.parse().unwrap() }
    }

    /// Waits for more records.
    fn goes_on(&self, cluster: &mut Cluster, records: u64) {
        let until = self.progress(cluster).records + records;
        await_that("the pod writes records", RECORDED, || self.progress(cluster).records >= until);
        assert_ne!(cluster.guest(B).run(&format!("cat /tmp/{}-ended", self.name)).code, 0, "a write of the pod failed");
    }

    /// Lets the pod wait in the middle of a record of a raw volume, and returns what is acknowledged.
    fn hold(&self, cluster: &mut Cluster) -> Progress {
        let held = format!("[ -e /tmp/{}-held ]", self.name);
        cluster.must(B, &format!("touch /tmp/{}-hold", self.name));
        await_that("the pod waits", RECORDED, || cluster.guest(B).run(&held).code == 0);
        let progress = self.progress(cluster);
        assert_eq!(progress.blocks, BLOCKS / 2);
        progress
    }

    /// Undoes [`Recorder::hold`].
    fn release(&self, cluster: &mut Cluster) {
        cluster.must(B, &format!("rm -f /tmp/{}-hold", self.name));
    }

    /// Ends the pod's writes after a record; returns what is acknowledged.
    fn stop(&self, cluster: &mut Cluster) -> Progress {
        cluster.must(B, &format!("touch /tmp/{}-stop", self.name));
        let ended = format!("[ -e /tmp/{}-ended ]", self.name);
        await_that("the pod stops", RECORDED, || cluster.guest(B).run(&ended).code == 0);
        assert_eq!(cluster.must(B, &format!("cat /tmp/{}-ended", self.name)), "", "a write of the pod failed");
        self.progress(cluster)
    }
}

/// [`Cluster::start_pod`], each call repeated as kubelet and the sidecars do.
fn start_pod(cluster: &mut Cluster, vol: &Vol, side: Side) {
    cluster.retried(|cluster| cluster.attach(vol, side));
    cluster.retried(|cluster| cluster.stage(vol, side));
    cluster.retried(|cluster| cluster.publish(vol, side));
}

/// Undoes [`start_pod`].
fn stop_pod(cluster: &mut Cluster, vol: &Vol, side: Side) {
    cluster.retried(|cluster| cluster.unpublish(vol, side));
    cluster.retried(|cluster| cluster.unstage(vol, side));
    cluster.retried(|cluster| cluster.detach(vol, side));
}

fn line(step: &str) -> String {
    let itself = std::env::current_exe().unwrap();
    format!("{RECORDS}='{step}' {} --ignored --exact --nocapture inside::records::records", itself.display())
}

/// The acknowledged records that a file or device on a node does not have.
fn missing(cluster: &mut Cluster, side: Side, path: &str, acknowledged: Progress) -> Vec<u64> {
    let Progress { records, blocks } = acknowledged;
    let check = line(&format!("check {path} {records} {blocks}"));
    let output = cluster.must(side, &check);
    let (_, missing) = output.split_once("=> ").unwrap_or_else(|| panic!("{path}: {output}"));
    missing.lines().next().unwrap().split_whitespace().map(|record| record.parse().unwrap()).collect()
}

/// Whether an image at home has FS_SYNC_FL.
fn is_synchronous(cluster: &mut Cluster, vol: &Vol) -> bool {
    let flags = cluster.must(A, &format!("lsattr {}", vol.image()));
    flags.split_whitespace().next().unwrap().contains('S')
}

/// Two power cuts: at any moment with nothing left of what the disk had not flushed, and in the middle of a record with
/// some of it left.
pub(crate) fn nothing_acknowledged_is_lost(kernel: Kernel, pool: PoolFs) {
    let mut cluster = Cluster::to_lose_power(kernel, pool, &PROGRAMS);
    let raw = Recorder::start(&mut cluster, Use::Block, "raw");
    let file = Recorder::start(&mut cluster, Use::Ext4, "file");
    let errors = io_errors(&mut cluster);
    for left in [Left::Nothing, Left::Some(1)] {
        for recorder in [&raw, &file] {
            recorder.goes_on(&mut cluster, 3);
            assert!(is_synchronous(&mut cluster, &recorder.vol), "exported");
        }
        if left != Left::Nothing {
            raw.hold(&mut cluster);
        }
        cluster.power_cut(left);
        cluster.boot_without_daemons();
        // The pod waits for an answer, and no client has connected.
        let acknowledged = raw.progress(&mut cluster);
        assert_eq!(missing(&mut cluster, A, &raw.vol.image(), acknowledged), NONE, "completed before the power cut");
        cluster.said(&format!("the image has what was completed before the power cut: {acknowledged:?}"));
        cluster.launch(A, Daemon::Controller);
        cluster.launch(A, Daemon::Node);
        cluster.ready();
        raw.release(&mut cluster);
        for recorder in [&raw, &file] {
            recorder.goes_on(&mut cluster, 2);
        }
        cluster.said("the pods go on");
    }
    assert_eq!(io_errors(&mut cluster), errors, "errors in the log of node-b");
    for recorder in [&raw, &file] {
        let acknowledged = recorder.stop(&mut cluster);
        assert_eq!(missing(&mut cluster, B, &recorder.path(), acknowledged), NONE, "through the client");
        stop_pod(&mut cluster, &recorder.vol, B);
        start_pod(&mut cluster, &recorder.vol, A);
        assert_eq!(missing(&mut cluster, A, &recorder.path(), acknowledged), NONE, "at home");
        stop_pod(&mut cluster, &recorder.vol, A);
        cluster.said(&format!("{}: {} acknowledged records are there", recorder.name, acknowledged.records));
        cluster.delete(&recorder.vol);
    }
    cluster.finish();
}

/// The same with the flag taken from the image: a test that finds every record there too would prove nothing.
pub(crate) fn lost_without_the_flag(kernel: Kernel, pool: PoolFs) {
    let mut cluster = Cluster::to_lose_power(kernel, pool, &PROGRAMS);
    let raw = Recorder::start(&mut cluster, Use::Block, "raw");
    cluster.must(A, &format!("chattr -S {0}", raw.vol.image()));
    assert!(!is_synchronous(&mut cluster, &raw.vol));
    raw.goes_on(&mut cluster, 3);
    let before = raw.hold(&mut cluster);
    let cut = cluster.power_cut(Left::Nothing);
    assert!(cut.unflushed > 0, "{cut:?}");
    cluster.boot_without_daemons();
    // A flush makes the records before this one durable.
    assert_eq!(missing(&mut cluster, A, &raw.vol.image(), before), [before.records + 1]);
    cluster.launch(A, Daemon::Controller);
    cluster.launch(A, Daemon::Node);
    cluster.ready();
    raw.release(&mut cluster);
    raw.goes_on(&mut cluster, 2);
    assert!(is_synchronous(&mut cluster, &raw.vol), "the driver exported it again");
    let acknowledged = raw.stop(&mut cluster);
    // Its fsync was answered after the connection was made again, and the pod saw no error.
    let lost = before.records + 1;
    assert_eq!(missing(&mut cluster, B, &raw.path(), acknowledged), [lost], "of {acknowledged:?}");
    cluster.said(&format!("record {lost} was acknowledged, and half of it is lost"));
    stop_pod(&mut cluster, &raw.vol, B);
    cluster.delete(&raw.vol);
    cluster.finish();
}
