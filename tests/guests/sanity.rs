//! csi-sanity with `access: network`, against the controller and one of the nodes.

use std::time::Duration;

use crate::cluster::{A, Cluster, Side};
use crate::harness::{PoolFs, await_that, run};
use crate::inside::forward::FORWARD;
use crate::root::Kernel;

/// How long a run may take: emulated, on a busy machine.
const RUN: Duration = Duration::from_secs(1500);
/// Where the controller's socket is reachable for both guests.
const CONTROLLER: &str = "10.0.0.1:9899";
/// Where it mounts volumes.
const PATHS: &str = "/var/lib/kubelet/sanity";
const SIZE: u64 = 320 << 20;
const GROWN: u64 = 384 << 20;

/// The program, which `make sanity` uses too.
fn program() -> String {
    run("/usr/bin/env", &["sh", "-c", "command -v csi-sanity"]).trim().to_owned()
}

/// Runs csi-sanity as the only node of a volume: on B the volumes come over the network, on A they are local.
fn sanity(cluster: &mut Cluster, side: Side, kind: &str) {
    let program = program();
    cluster.must(
        side,
        &format!(
            "mkdir -p {PATHS}; printf 'access: network\\ncsi.storage.k8s.io/fstype: xfs\\n' >/run/parameters.yaml
            {{ {program} --csi.endpoint unix:///run/node.sock --csi.controllerendpoint {CONTROLLER} \
            --csi.testvolumeaccesstype {kind} --csi.testvolumesize {SIZE} --csi.testvolumeexpandsize {GROWN} \
            --csi.testvolumeparameters /run/parameters.yaml --csi.mountdir {PATHS}/mount --csi.stagingdir {PATHS}/staging \
            --ginkgo.no-color >/run/sanity.log 2>&1; echo $? >/run/sanity.code; }} >/dev/null 2>&1 &"
        ),
    );
    await_that("csi-sanity ends", RUN, || cluster.guest(side).run("test -e /run/sanity.code").code == 0);
    let code = cluster.must(side, "cat /run/sanity.code; rm /run/sanity.code");
    let summary =
        cluster.guest(side).run("grep -E '^(SUCCESS|FAIL)! --|Passed [|]' /run/sanity.log | tail -n 1").output;
    if code != "0" || !summary.contains(" 0 Failed") {
        let log = cluster
            .guest(side)
            .run("grep -A 12 -F '[FAILED]' /run/sanity.log | head -n 80; sed -n '/Summarizing/,$p' /run/sanity.log")
            .output;
        panic!("csi-sanity on {}: {code}: {log}", side.id());
    }
    cluster.must(side, &format!("rmdir {PATHS}"));
    // The kernel logs each connection with the export's name.
    let connected = cluster.guest(side).run("dmesg | grep -q 'new ctrl.*nqn.2026-11.storage.holdfast'").code == 0;
    assert_eq!(connected, side != A, "connections of {}", side.id());
    cluster.said(&format!("csi-sanity on {}, volumes as {kind}: {}", side.id(), summary.trim()));
}

/// One run after the other with the same daemons. Nothing is left after each.
pub(crate) fn passes(kernel: Kernel, runs: &[(Side, &str)]) {
    let mut cluster = Cluster::with_programs(kernel, PoolFs::Xfs, &[&program()]);
    let itself = std::env::current_exe().unwrap();
    cluster.must(
        A,
        &format!(
            "{{ {FORWARD}='{CONTROLLER} /run/controller.sock' {} --ignored --exact inside::forward::forward >/run/forward.log 2>&1 & }}",
            itself.display()
        ),
    );
    for (side, kind) in runs {
        sanity(&mut cluster, *side, kind);
        assert_eq!(cluster.must(A, "ls /var/lib/disk/pool/volumes /var/lib/disk/pool/snapshots /var/lib/disk/pool/trash 2>/dev/null | grep -v ':$' | grep . || true"), "");
        cluster.nothing_left();
    }
    cluster.finish();
}
