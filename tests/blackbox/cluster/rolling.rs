//! A cluster whose daemons are replaced one by one by those of the other release, under pods that keep their volumes.

use std::path::PathBuf;
use std::time::Duration;

use holdfast::csi::proto as p;

use super::calls::retried;
use super::harness::{Cluster, Vol, Wire, on};
use super::mixed::mixed;
use crate::harness::calls::from_snapshot;
use crate::harness::{
    MIB, Release, Use, await_that, can_grow_ext4_online, check_chunks, create_request, mounts, write_chunk,
};

const NODES: [&str; 2] = ["node-a", "node-b"];

/// A volume that a pod has all the time.
struct Kept {
    vol: Vol,
    path: PathBuf,
    seeds: Vec<u64>,
}

/// What is replaced.
#[derive(Clone, Copy, Debug)]
enum Daemon {
    Controller(usize),
    Node(&'static str),
}

fn create(cluster: &Cluster, index: usize, name: &str, kind: Use, node: &str) -> Vol {
    retried("CreateVolume", || cluster.try_create(index, name, kind, node))
}

fn attach(cluster: &Cluster, index: usize, vol: &Vol) -> PathBuf {
    retried("ControllerPublish", || cluster.publish(index, vol, &vol.node));
    retried("NodeStage", || cluster.stage(vol));
    retried("NodePublish", || cluster.bind(vol, "pod"))
}

fn end(cluster: &Cluster, index: usize, vol: &Vol) {
    retried("NodeUnpublish", || cluster.unbind(vol, "pod"));
    retried("NodeUnstage", || cluster.unstage(vol));
    retried("ControllerUnpublish", || cluster.unpublish(index, vol, &vol.node));
    retried("DeleteVolume", || cluster.delete(index, vol));
}

/// SIGTERM for a controller, SIGKILL for a node; then the other release starts in its place.
fn replace(cluster: &mut Cluster, daemon: Daemon) {
    match daemon {
        Daemon::Controller(index) => {
            let controller = &mut cluster.controllers[index];
            assert_eq!(controller.terminate(), 0, "{}", controller.said());
            controller.release = controller.release.other();
            cluster.start_controller(index);
            cluster.ready(index);
        }
        Daemon::Node(name) => {
            let node = cluster.nodes.get_mut(name).unwrap();
            node.kill9();
            node.release = node.release.other();
            cluster.start_node(name);
        }
    }
}

/// Both releases of both sides serve the kept volumes, and make, copy and delete others.
fn works(cluster: &Cluster, kept: &mut [Kept], step: u64) {
    for one in &mut *kept {
        assert_eq!(mounts().depth(&one.path), 1);
        check_chunks(one.vol.kind, &one.path, &one.seeds);
        write_chunk(one.vol.kind, &one.path, one.seeds.len().try_into().unwrap(), step);
        one.seeds.push(step);
        for index in 0..cluster.controllers.len() {
            assert_eq!(attach(cluster, index, &one.vol), one.path);
        }
        assert_eq!(mounts().depth(&one.path), 1);
        check_chunks(one.vol.kind, &one.path, &one.seeds);
    }
    let kind = Use::ALL[usize::try_from(step).unwrap() % 3];
    for (number, node) in NODES.into_iter().enumerate() {
        // Each call goes to another controller than the one before.
        let (first, second) = (number % 2, (number + 1) % 2);
        let vol = create(cluster, first, &format!("vol-{step}-{node}"), kind, node);
        write_chunk(kind, &attach(cluster, second, &vol), 0, step);
        let cut = retried("CreateSnapshot", || cluster.snapshot(first, &format!("cut-{step}-{node}"), &vol));
        let request = p::CreateVolumeRequest {
            accessibility_requirements: Some(on(node)),
            volume_content_source: from_snapshot(&cut.snapshot_id),
            ..create_request(&format!("copy-{step}-{node}"), kind, vol.size)
        };
        let copy = retried("CreateVolume", || cluster.create_from(second, kind, request.clone()));
        check_chunks(kind, &attach(cluster, first, &copy), &[step]);
        retried("DeleteSnapshot", || cluster.drop_snapshot(second, &cut.snapshot_id));
        end(cluster, first, &vol);
        end(cluster, second, &copy);
        let listed = [first, second].map(|index| retried("ListVolumes", || cluster.list(index)));
        assert_eq!(listed[0], listed[1]);
        assert_eq!(listed[0].len(), kept.len());
    }
}

#[test]
fn a_cluster_is_upgraded_and_downgraded_under_its_pods() {
    let before = NODES.map(|name| (name, Release::Before));
    let mut cluster = mixed(&before, &[Release::Before; 2], Wire::Auto);
    let mut kept: Vec<_> = Vec::new();
    for node in NODES {
        for kind in Use::ALL {
            let vol = create(&cluster, 0, &format!("kept-{node}-{}", kind.fs_type()), kind, node);
            let path = attach(&cluster, 1, &vol);
            kept.push(Kept { vol, path, seeds: Vec::new() });
        }
    }
    let order = [Daemon::Controller(0), Daemon::Node("node-a"), Daemon::Node("node-b"), Daemon::Controller(1)];
    // Upgraded with a controller first, downgraded with a node first, and upgraded again. The volumes end with nodes of this
    // release: one of 0.1.0 opens at its start each loop device that a pod has, also one of the other node of this
    // machine, and that one is then in use.
    let back = [Daemon::Node("node-a"), Daemon::Controller(0), Daemon::Controller(1), Daemon::Node("node-b")];
    for (step, daemon) in (1..).zip(order.into_iter().chain(back).chain(order)) {
        replace(&mut cluster, daemon);
        works(&cluster, &mut kept, step);
    }
    for one in kept {
        check_chunks(one.vol.kind, &one.path, &one.seeds);
        let size = one.vol.size + 16 * MIB;
        assert_eq!(retried("ControllerExpand", || cluster.expand(0, &one.vol, size)), size);
        if one.vol.kind != Use::Ext4 || can_grow_ext4_online() {
            assert_eq!(retried("NodeExpand", || cluster.node_expand(&one.vol, "pod", size)), size);
        }
        check_chunks(one.vol.kind, &one.path, &one.seeds);
        end(&cluster, 1, &one.vol);
    }
    cluster.finish();
}

/// A controller of one release declares a node of the other lost; the quarantine outlives the node's release.
#[test]
fn a_quarantine_outlives_an_upgrade_and_a_downgrade() {
    for release in Release::ALL {
        let nodes = [("node-a", release.other()), ("node-b", release)];
        let mut cluster = mixed(&nodes, &[release.other()], Wire::Plain);
        let here = create(&cluster, 0, "here", Use::Block, "node-a");
        let kept = create(&cluster, 0, "kept", Use::Block, "node-b");
        cluster.nodes.get_mut("node-b").unwrap().kill9();
        let declare = |cluster: &mut Cluster, lost: &str| {
            let controller = &mut cluster.controllers[0];
            let file = controller.directory.join("controller.yaml");
            std::fs::write(&file, format!("lostHomes: [{lost}]\n")).unwrap();
            controller.extra = vec!["--config".into(), file.display().to_string()];
            assert_eq!(controller.terminate(), 0);
            cluster.start_controller(0);
            cluster.ready(0);
        };
        declare(&mut cluster, "node-b");
        cluster.start_node("node-b");
        await_that("the pool is in quarantine", Duration::from_secs(20), || {
            cluster.nodes["node-b"].said().contains("in quarantine until")
        });
        declare(&mut cluster, "");
        let is_quarantined = |cluster: &Cluster| {
            await_that("the controller answers that the pool is in quarantine", Duration::from_secs(20), || {
                cluster.publish(0, &kept, "node-b").is_err_and(|status| status.message().contains("readmit"))
            });
            let listed = retried("ListVolumes", || cluster.list(0));
            assert_eq!(listed, std::slice::from_ref(&here.id));
        };
        is_quarantined(&cluster);
        replace(&mut cluster, Daemon::Node("node-b"));
        is_quarantined(&cluster);
        let pool = cluster.pool_id("node-b");
        // The node has just started: it may not listen yet.
        await_that("the pool is readmitted", Duration::from_secs(10), || {
            cluster.command_of(release, 0, &["pools", "readmit", &pool]).code == Some(0)
        });
        retried("ControllerPublish", || cluster.publish(0, &kept, "node-b"));
        retried("ControllerUnpublish", || cluster.unpublish(0, &kept, "node-b"));
        for vol in [&here, &kept] {
            retried("DeleteVolume", || cluster.delete(0, vol));
        }
        cluster.finish();
    }
}
