//! Nodes and controllers of the release before and of this one, together.

use std::fmt::Debug;
use std::time::Duration;

use holdfast::csi::proto as p;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Status;

use super::calls::{is_retried, retried};
use super::harness::{Cluster, Vol, Wire, on};
use crate::harness::calls::{from_snapshot, from_volume_id};
use crate::harness::{
    MIB, Release, Use, can_grow_ext4_online, check_chunks, create_request, device_size, fs_size, write_chunk,
};

/// Milliseconds from the beginning of a call to the kill, in turn.
const MOMENTS: [u64; 6] = [0, 2, 5, 9, 15, 30];

/// A running cluster of these releases.
pub(super) fn mixed(nodes: &[(&str, Release)], controllers: &[Release], wire: Wire) -> Cluster {
    let names: Vec<_> = nodes.iter().map(|(name, _)| *name).collect();
    let mut cluster = Cluster::stopped(&names, controllers.len(), wire);
    for (name, release) in nodes {
        cluster.nodes.get_mut(*name).unwrap().release = *release;
    }
    for (controller, release) in cluster.controllers.iter_mut().zip(controllers) {
        controller.release = *release;
    }
    cluster.started()
}

/// The process that is killed in the middle of a call.
#[derive(Clone, Copy, Debug)]
enum Side {
    Node,
    /// Controller 0, through which each call goes first.
    Controller,
}

/// The lifecycle of volumes of one node, each call killed in the middle, repeated until it succeeds, and made once more
/// through each controller.
struct Life<'c> {
    cluster: &'c mut Cluster,
    node: String,
    kills: usize,
}

impl Life<'_> {
    /// Makes the call while a process is killed, and starts that again.
    fn cut<T>(&mut self, side: Side, call: impl Fn(&Cluster) -> Result<T, Status>) -> Result<T, Status> {
        let pid = match side {
            Side::Node => self.cluster.nodes[&self.node].pid(),
            Side::Controller => self.cluster.controllers[0].pid(),
        };
        let after = Duration::from_millis(MOMENTS[self.kills % MOMENTS.len()]);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(after);
            kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        });
        let answer = call(self.cluster);
        killer.join().unwrap();
        match side {
            Side::Node => {
                self.cluster.nodes.get_mut(&self.node).unwrap().kill9();
                self.cluster.start_node(&self.node);
            }
            Side::Controller => {
                self.cluster.controllers[0].kill9();
                self.cluster.start_controller(0);
                self.cluster.ready(0);
            }
        }
        answer
    }

    /// A call to the controllers; the sides are killed in turns.
    fn controlled<T: Debug + PartialEq>(
        &mut self,
        what: &str,
        call: impl Fn(&Cluster, usize) -> Result<T, Status>,
    ) -> T {
        self.kills += 1;
        if self.kills.is_multiple_of(2) {
            let answer = self.cut(Side::Node, |cluster| call(cluster, 0));
            assert!(answer.as_ref().err().is_none_or(is_retried), "{what} with a killed node: {answer:?}");
        } else {
            let _ = self.cut(Side::Controller, |cluster| call(cluster, 0));
        }
        let answer = retried(what, || call(self.cluster, 0));
        for index in 0..self.cluster.controllers.len() {
            assert_eq!(retried(what, || call(self.cluster, index)), answer, "{what}, repeated");
        }
        answer
    }

    /// A call to the node, which is killed.
    fn on_node<T: Debug + PartialEq>(&mut self, what: &str, call: impl Fn(&Cluster) -> Result<T, Status>) -> T {
        self.kills += 1;
        let _ = self.cut(Side::Node, &call);
        let answer = retried(what, || call(self.cluster));
        assert_eq!(retried(what, || call(self.cluster)), answer, "{what}, repeated");
        answer
    }

    fn create(&mut self, name: &str, kind: Use, size: i64, source: Option<p::VolumeContentSource>) -> Vol {
        let request = p::CreateVolumeRequest {
            accessibility_requirements: Some(on(&self.node)),
            volume_content_source: source,
            ..create_request(name, kind, size)
        };
        let made = |cluster: &Cluster, index| {
            let vol = cluster.create_from(index, kind, request.clone())?;
            Ok((vol.id, vol.size, vol.node))
        };
        let (id, size, node) = self.controlled("CreateVolume", made);
        assert_eq!(node, self.node);
        Vol { id, kind, size, node }
    }

    fn attach(&mut self, vol: &Vol) -> std::path::PathBuf {
        self.controlled("ControllerPublish", |cluster, index| cluster.publish(index, vol, &vol.node));
        self.on_node("NodeStage", |cluster| cluster.stage(vol));
        self.on_node("NodePublish", |cluster| cluster.bind(vol, "pod"))
    }

    fn detach(&mut self, vol: &Vol) {
        self.on_node("NodeUnpublish", |cluster| cluster.unbind(vol, "pod"));
        self.on_node("NodeUnstage", |cluster| cluster.unstage(vol));
        self.controlled("ControllerUnpublish", |cluster, index| cluster.unpublish(index, vol, &vol.node));
    }

    fn grow(&mut self, vol: &mut Vol) {
        let size = vol.size + 16 * MIB;
        let grown = self.controlled("ControllerExpand", |cluster, index| cluster.expand(index, vol, size));
        assert_eq!(grown, size);
        vol.size = size;
        // Not killed: between the mount and the growth that would leave it as it is.
        if vol.kind == Use::Ext4 && !can_grow_ext4_online() {
            self.cluster.unbind(vol, "pod").unwrap();
            self.cluster.unstage(vol).unwrap();
            self.cluster.stage(vol).unwrap();
            self.cluster.bind(vol, "pod").unwrap();
        }
        let answer = self.on_node("NodeExpand", |cluster| cluster.node_expand(vol, "pod", size));
        assert_eq!(answer, size);
        let path = self.cluster.target(vol, "pod");
        match vol.kind {
            Use::Block => assert_eq!(device_size(&path), size),
            Use::Ext4 | Use::Xfs => assert!(i64::try_from(fs_size(&path)).unwrap() > size * 7 / 10),
        }
    }

    /// Both releases' commands, through each controller.
    fn commands(&self, vols: &[&Vol]) {
        for index in 0..self.cluster.controllers.len() {
            for release in Release::ALL {
                let ask = |name: &str| {
                    let finished = self.cluster.command_of(release, index, &[name, "--output", "json"]);
                    assert_eq!(
                        finished.code,
                        Some(0),
                        "{name} of {release:?}: {} {}",
                        finished.stdout,
                        finished.stderr
                    );
                    finished.stdout
                };
                let (pools, volumes) = (ask("pools"), ask("volumes"));
                for name in self.cluster.nodes.keys() {
                    assert!(pools.contains(name.as_str()), "{release:?}: {pools}");
                }
                for vol in vols {
                    let uuid = vol.id.split('_').nth(2).unwrap();
                    assert!(volumes.contains(uuid), "{release:?}: {uuid} is not in {volumes}");
                }
                // One problem: each node of the other release.
                let examined = self.cluster.command_of(release, index, &["doctor", "--output", "json"]);
                let found: serde_json::Value = serde_json::from_str(&examined.stdout).unwrap();
                let found = found.as_array().unwrap();
                let others = self.cluster.nodes.values().filter(|node| node.release != release).count();
                let of_releases = |one: &&serde_json::Value| one["what"].as_str().unwrap().contains("runs release");
                let count = found.iter().filter(of_releases).count();
                assert_eq!((count, found.len()), (others, others), "doctor of {release:?}: {}", examined.stdout);
            }
        }
    }

    fn run(&mut self, kind: Use) {
        let mut vol = self.create("vol", kind, kind.size(), None);
        let path = self.attach(&vol);
        write_chunk(kind, &path, 0, 1);
        self.grow(&mut vol);
        check_chunks(kind, &path, &[1]);
        write_chunk(kind, &path, 1, 2);
        let vol = vol;
        let cut = self.controlled("CreateSnapshot", |cluster, index| cluster.snapshot(index, "cut", &vol));
        assert!(cut.ready_to_use);
        write_chunk(kind, &path, 2, 3);
        let restored = self.create("restored", kind, vol.size, from_snapshot(&cut.snapshot_id));
        let beside = self.attach(&restored);
        check_chunks(kind, &beside, &[1, 2]);
        self.commands(&[&vol, &restored]);
        for index in 0..self.cluster.controllers.len() {
            assert_eq!(self.cluster.list(index).unwrap().len(), 2);
            assert_eq!(self.cluster.list_snapshots(index).unwrap(), std::slice::from_ref(&cut.snapshot_id));
        }
        self.detach(&restored);
        self.controlled("DeleteSnapshot", |cluster, index| cluster.drop_snapshot(index, &cut.snapshot_id));
        self.detach(&vol);
        let cloned = self.create("cloned", kind, vol.size, from_volume_id(&vol.id));
        let beside = self.attach(&cloned);
        check_chunks(kind, &beside, &[1, 2, 3]);
        self.detach(&cloned);
        for vol in [&vol, &restored, &cloned] {
            self.controlled("DeleteVolume", |cluster, index| cluster.delete(index, vol));
        }
        for index in 0..self.cluster.controllers.len() {
            assert!(self.cluster.list(index).unwrap().is_empty());
            assert!(self.cluster.list_snapshots(index).unwrap().is_empty());
        }
    }
}

fn lives(mut cluster: Cluster, kinds: &[Use]) {
    let nodes: Vec<_> = cluster.nodes.keys().cloned().collect();
    for node in nodes {
        let mut life = Life { cluster: &mut cluster, node, kills: 0 };
        for kind in kinds {
            life.run(*kind);
        }
    }
    cluster.finish();
}

#[test]
fn volumes_live_on_a_node_of_the_release_before() {
    lives(mixed(&[("node-a", Release::Before)], &[Release::This], Wire::Tls), &Use::ALL);
}

#[test]
fn volumes_live_with_a_controller_of_the_release_before() {
    lives(mixed(&[("node-a", Release::This)], &[Release::Before], Wire::Plain), &Use::ALL);
}

#[test]
fn volumes_live_among_nodes_and_controllers_of_both_releases() {
    let nodes = [("node-a", Release::Before), ("node-b", Release::This)];
    lives(mixed(&nodes, &[Release::Before, Release::This], Wire::Auto), &[Use::Ext4, Use::Block]);
}
