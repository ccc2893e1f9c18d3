//! One writer: a volume that is taken from a node while it is in use there (ControllerUnpublishVolume of a lost node).

use std::thread;
use std::time::Duration;

use tonic::Code;

use crate::cluster::{A, B, Cluster, SOON, Vol};
use crate::harness::{PoolFs, Use, await_that, refused};
use crate::root::Kernel;

/// The records of a pod: each is a file that was synced before it is counted.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    vol: &'a Vol,
    name: &'static str,
}

impl<'a> Writer<'a> {
    /// Begins on B, until a write fails.
    pub(crate) fn start(cluster: &mut Cluster, vol: &'a Vol, name: &'static str) -> Self {
        let target = vol.target();
        cluster.must(
            B,
            &format!(
                "rm -f /tmp/{name}-*; echo 0 >/tmp/{name}; {{ (i=1; while [ ! -e /tmp/{name}-stop ] && echo $i >{target}/{name}$i && sync {target}/{name}$i; do echo $i >/tmp/.{name} && mv /tmp/.{name} /tmp/{name}; i=$((i+1)); sleep 0.1; done; echo failed >/tmp/{name}-ended) >/dev/null 2>&1 & }}"
            ),
        );
        let writer = Self { vol, name };
        writer.goes_on(cluster);
        writer
    }

    /// How many are acknowledged.
    pub(crate) fn acknowledged(&self, cluster: &mut Cluster) -> u64 {
        cluster.must(B, &format!("cat /tmp/{}", self.name)).parse().unwrap()
    }

    /// Waits for more of them.
    pub(crate) fn goes_on(&self, cluster: &mut Cluster) {
        let before = self.acknowledged(cluster);
        await_that("the pod writes", SOON, || self.acknowledged(cluster) > before + 2);
        assert!(!self.has_failed(cluster));
    }

    /// Whether a write failed.
    pub(crate) fn has_failed(&self, cluster: &mut Cluster) -> bool {
        cluster.guest(B).run(&format!("[ -e /tmp/{}-ended ]", self.name)).code == 0
    }

    /// Ends it; returns how many were acknowledged.
    pub(crate) fn stop(&self, cluster: &mut Cluster) -> u64 {
        let name = self.name;
        cluster.must(B, &format!("touch /tmp/{name}-stop; until [ -e /tmp/{name}-ended ]; do sleep 0.2; done"));
        self.acknowledged(cluster)
    }

    /// Asserts that every acknowledged record is on a node with its content.
    pub(crate) fn complete(&self, cluster: &mut Cluster, side: crate::cluster::Side, acknowledged: u64) {
        let (target, name) = (self.vol.target(), self.name);
        cluster.must(
            side,
            &format!(
                "i=1; while [ $i -le {acknowledged} ]; do [ \"$(cat {target}/{name}$i)\" = $i ] || exit 1; i=$((i+1)); done"
            ),
        );
    }
}

#[test]
fn a_volume_is_taken_from_a_node_that_writes() {
    taken(Kernel::Newest, &[Use::Ext4]);
}

pub(crate) fn taken(kernel: Kernel, kinds: &[Use]) {
    let mut cluster = Cluster::start(kernel, PoolFs::Xfs);
    for kind in kinds {
        take(&mut cluster, &format!("vol-{kind:?}"), *kind);
    }
    cluster.finish();
}

/// Seconds since B booted, from a file there.
fn uptime(cluster: &mut Cluster, file: &str) -> f64 {
    cluster.must(B, &format!("cut -d' ' -f1 {file}")).parse().unwrap()
}

fn take(cluster: &mut Cluster, name: &str, kind: Use) {
    let vol = cluster.create(name, kind);
    // While one node has it, no other one gets it.
    cluster.start_pod(&vol, A);
    let message = refused(cluster.attach(&vol, B), &[Code::FailedPrecondition]);
    assert!(message.contains("node-a"), "{message}");
    cluster.stop_pod(&vol, A);
    cluster.start_pod(&vol, B);
    let message = refused(cluster.attach(&vol, A), &[Code::FailedPrecondition]);
    assert!(message.contains("node-b"), "{message}");
    let sum = cluster.write(&vol, B, "synced");
    let raw = cluster.create(&format!("{name}-raw"), Use::Block);
    cluster.start_pod(&raw, B);
    let raw_sum = cluster.write(&raw, B, "raw");

    let writer = Writer::start(cluster, &vol, "record");
    cluster.detach(&raw, B).unwrap();
    cluster.must(
        B,
        "{ (until [ -z \"$(ls /sys/class/nvme)\" ]; do sleep 0.2; done; cat /proc/uptime >/tmp/ended) >/dev/null 2>&1 & }",
    );
    cluster.detach(&vol, B).unwrap();
    let detached = uptime(cluster, "/proc/uptime");
    cluster.said("fenced under a pod that writes");
    let image = cluster.must(A, &format!("sha256sum <{}", vol.image()));
    // The pod goes on as far as it can; its node finds out.
    await_that("the node ends its connections", SOON, || cluster.guest(B).run("[ -s /tmp/ended ]").code == 0);
    let ended = uptime(cluster, "/tmp/ended") - detached;
    cluster.must(B, "rm /tmp/ended");
    await_that("the pod gets an error", SOON, || writer.has_failed(cluster));
    cluster.said(&format!("its connection ended {ended:.1} s after the answer"));
    let acknowledged = writer.acknowledged(cluster);
    let message = refused(cluster.publish(&vol, B), &[Code::FailedPrecondition]);
    assert!(message.contains("stop"), "{message}");
    refused(cluster.stage(&vol, B), &[Code::FailedPrecondition]);
    thread::sleep(Duration::from_secs(2));
    let now = cluster.must(A, &format!("sha256sum <{}", vol.image()));
    assert_eq!(now, image, "something was written after the detach was answered");

    // The home node has everything that was acknowledged, while the other node still has its dead mount.
    cluster.start_pod(&vol, A);
    assert_eq!(cluster.read(&vol, A, "synced"), sum);
    writer.complete(cluster, A, acknowledged);
    cluster.said(&format!("{acknowledged} acknowledged records are there"));
    cluster.start_pod(&raw, A);
    assert_eq!(cluster.read(&raw, A, "raw"), raw_sum);
    let read = cluster.guest(B).run(&format!("dd if={} of=/dev/null bs=4k count=1 iflag=direct", raw.target()));
    assert_ne!(read.code, 0, "the other node's pod still reads the device: {}", read.output);
    refused(cluster.publish(&raw, B), &[Code::FailedPrecondition]);
    cluster.unpublish(&raw, B).unwrap();
    cluster.unstage(&raw, B).unwrap();
    cluster.stop_pod(&raw, A);
    cluster.delete(&raw);
    let sum = cluster.write(&vol, A, "later");
    cluster.unpublish(&vol, B).unwrap();
    cluster.unstage(&vol, B).unwrap();
    assert_eq!(cluster.read(&vol, A, "later"), sum);
    cluster.stop_pod(&vol, A);
    cluster.start_pod(&vol, B);
    assert_eq!(cluster.read(&vol, B, "later"), sum);
    cluster.stop_pod(&vol, B);
    cluster.delete(&vol);
    cluster.said("and it works on both again");
}
