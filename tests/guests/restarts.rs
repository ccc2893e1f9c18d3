//! Daemons and machines that end while a pod on B writes to a volume of A.

use std::thread;
use std::time::Duration;

use holdfast::csi::proto as p;
use tonic::Code;

use crate::cluster::{A, B, Cluster, Daemon, SOON, answered, call};
use crate::detach::Writer;
use crate::harness::{PoolFs, Use, await_that};
use crate::root::Kernel;

/// The connections of B to exports: with the ports of both ends.
fn connections(cluster: &mut Cluster) -> String {
    cluster.must(B, "netstat -tn | grep -E '10[.]0[.]0[.]1:45[0-9][0-9] .*ESTABLISHED' | awk '{print $4, $5}' | sort")
}

/// The exports of A.
fn exports(cluster: &mut Cluster) -> String {
    cluster.must(A, "ls /sys/kernel/config/nvmet/subsystems")
}

/// The I/O errors that the kernel of B logged. mkfs tries a request that a thick volume does not support.
pub(crate) fn io_errors(cluster: &mut Cluster) -> String {
    cluster.guest(B).run("dmesg | grep -i 'I/O error'").output
}

/// Daemons are killed on either side, and start again.
pub(crate) fn daemons(kernel: Kernel) {
    let mut cluster = Cluster::start(kernel, PoolFs::Xfs);
    let vol = cluster.create("vol", Use::Xfs);
    let raw = cluster.create("raw", Use::Block);
    cluster.start_pod(&vol, B);
    cluster.start_pod(&raw, B);
    let sum = cluster.write(&raw, B, "raw");
    let writer = Writer::start(&mut cluster, &vol, "record");
    let before = (connections(&mut cluster), exports(&mut cluster));
    for (side, daemon) in [(B, Daemon::Node), (A, Daemon::Node), (A, Daemon::Controller)] {
        cluster.kill(side, daemon);
        writer.goes_on(&mut cluster);
        thread::sleep(Duration::from_secs(8));
        writer.goes_on(&mut cluster);
        cluster.launch(side, daemon);
        cluster.ready();
        thread::sleep(Duration::from_secs(8));
        writer.goes_on(&mut cluster);
        assert_eq!((connections(&mut cluster), exports(&mut cluster)), before, "a live connection is not touched");
        // Kubelet repeats its calls.
        for vol in [&vol, &raw] {
            cluster.stage(vol, B).unwrap();
            cluster.publish(vol, B).unwrap();
        }
        cluster.said(&format!("{side:?} {daemon:?} was killed and started again"));
    }
    // A mistake in the configuration: the home node exports nothing, but the kernel still does.
    cluster.kill(A, Daemon::Node);
    cluster.launch_without_fabric(A);
    thread::sleep(Duration::from_secs(20));
    writer.goes_on(&mut cluster);
    cluster.kill(A, Daemon::Node);
    cluster.launch(A, Daemon::Node);
    cluster.ready();
    writer.goes_on(&mut cluster);
    cluster.said("the home node was started without its fabric, and again with it");
    assert_eq!(cluster.read(&raw, B, "raw"), sum);
    assert_eq!((connections(&mut cluster), exports(&mut cluster)), before, "a live connection is not touched");
    let acknowledged = writer.acknowledged(&mut cluster);
    writer.complete(&mut cluster, B, acknowledged);
    writer.stop(&mut cluster);
    for vol in [&vol, &raw] {
        cluster.stop_pod(vol, B);
        cluster.delete(vol);
    }
    cluster.finish();
}

/// The home node's daemon is killed between the durable `revoking` and the end of the fence: the disk is slow, and many
/// writes are in flight.
pub(crate) fn in_a_detach(kernel: Kernel) {
    let mut cluster = Cluster::start(kernel, PoolFs::Xfs);
    let raw = cluster.create("raw", Use::Block);
    cluster.start_pod(&raw, B);
    let write = crate::exports::line(&format!("write device={}", raw.target()));
    cluster.must(B, &format!("{{ {write} >/tmp/writes 2>&1 & }}"));
    thread::sleep(Duration::from_secs(3));
    cluster.guest(A).throttle(1, 20);
    thread::sleep(Duration::from_secs(2));
    let detach = call(Daemon::Controller, "Controller/ControllerUnpublishVolume", &Cluster::detach_request(&raw, B));
    cluster.must(A, &format!("{{ {detach} >/tmp/detach 2>&1 & }}"));
    let record = raw.image().replace("/data", "/volume.json");
    await_that("the detach has begun", SOON, || cluster.guest(A).run(&format!("grep -q revoking {record}")).code == 0);
    cluster.kill(A, Daemon::Node);
    cluster.said("the home node's daemon was killed in the middle of a detach");
    cluster.launch(A, Daemon::Node);
    thread::sleep(Duration::from_secs(10));
    let refused = cluster.attach(&raw, A).unwrap_err();
    assert!(matches!(refused.code(), Code::FailedPrecondition | Code::Aborted | Code::Unavailable), "{refused:?}");
    cluster.guest(A).throttle(1, 0);
    await_that("the detach ends", SOON, || match cluster.detach(&raw, B) {
        Ok(()) => true,
        Err(status) => {
            assert!(matches!(status.code(), Code::Aborted | Code::Unavailable), "{status:?}");
            thread::sleep(Duration::from_secs(1));
            false
        }
    });
    let output = cluster.must(A, "until grep -q '=> ' /tmp/detach; do sleep 0.5; done; cat /tmp/detach");
    let first: Result<p::ControllerUnpublishVolumeResponse, _> = answered(&output);
    cluster.said(&format!("detached; the first call was answered {:?}", first.map_err(|status| status.code())));
    let image = cluster.must(A, &format!("sha256sum <{}", raw.image()));
    await_that("the raw block volume fails on B", SOON, || cluster.guest(B).run("grep -q '=> ' /tmp/writes").code == 0);
    assert_eq!(cluster.must(A, &format!("sha256sum <{}", raw.image())), image);
    cluster.unpublish(&raw, B).unwrap();
    cluster.unstage(&raw, B).unwrap();
    cluster.start_pod(&raw, A);
    cluster.stop_pod(&raw, A);
    cluster.delete(&raw);
    cluster.finish();
}

/// Machines lose power, and boot again.
pub(crate) fn machines(kernel: Kernel, pool: PoolFs) {
    let mut cluster = Cluster::start(kernel, pool);
    let vols = [Use::Ext4, Use::Xfs].map(|kind| cluster.create(&format!("vol-{kind:?}"), kind));
    for vol in &vols {
        cluster.start_pod(vol, B);
    }
    let sums = vols.each_ref().map(|vol| cluster.write(vol, B, "0"));
    let names = ["first", "second"];
    let writers: Vec<_> = vols.iter().zip(names).map(|(vol, name)| Writer::start(&mut cluster, vol, name)).collect();
    let (before, errors) = (exports(&mut cluster), io_errors(&mut cluster));
    cluster.guest(A).kill();
    thread::sleep(Duration::from_secs(5));
    cluster.boot_again(A);
    cluster.ready();
    await_that("the exports are built again", SOON, || exports(&mut cluster) == before);
    for writer in &writers {
        writer.goes_on(&mut cluster);
    }
    cluster.said("the home node was killed and booted; the pods on the other node go on");
    assert_eq!(io_errors(&mut cluster), errors, "errors in the log of node-b");
    for (writer, (vol, sum)) in writers.iter().zip(vols.iter().zip(&sums)) {
        let acknowledged = writer.acknowledged(&mut cluster);
        writer.complete(&mut cluster, B, acknowledged);
        assert_eq!(&cluster.read(vol, B, "0"), sum);
    }

    // The other node loses power: it stages again, under other names.
    let acknowledged: Vec<_> = writers.iter().map(|writer| writer.acknowledged(&mut cluster)).collect();
    cluster.guest(B).kill();
    cluster.boot_again(B);
    for vol in &vols {
        cluster.stage(vol, B).unwrap();
        cluster.publish(vol, B).unwrap();
    }
    for ((writer, acknowledged), (vol, sum)) in writers.iter().zip(acknowledged).zip(vols.iter().zip(&sums)) {
        writer.complete(&mut cluster, B, acknowledged);
        assert_eq!(&cluster.read(vol, B, "0"), sum);
    }
    let now = exports(&mut cluster);
    assert_eq!(now.lines().count(), vols.len());
    assert!(before.lines().all(|name| !now.contains(name)), "the names of the earlier connection are gone: {now}");
    cluster.said("the other node was killed and booted, and has its volumes again");

    // Without a controller: a node knows from its disk where a volume's home node is, also after another reboot.
    cluster.kill(A, Daemon::Controller);
    for vol in &vols {
        cluster.unpublish(vol, B).unwrap();
        cluster.unstage(vol, B).unwrap();
        cluster.stage(vol, B).unwrap();
        cluster.publish(vol, B).unwrap();
    }
    cluster.guest(B).kill();
    cluster.boot_again(B);
    for (vol, sum) in vols.iter().zip(&sums) {
        cluster.stage(vol, B).unwrap();
        cluster.publish(vol, B).unwrap();
        assert_eq!(&cluster.read(vol, B, "0"), sum);
    }
    cluster.said("staged again without a controller, also after a reboot");
    cluster.launch(A, Daemon::Controller);
    cluster.ready();
    for vol in &vols {
        cluster.stop_pod(vol, B);
        cluster.delete(vol);
    }
    cluster.finish();
}
