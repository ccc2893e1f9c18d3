//! A volume with `access: network` follows its pod between two nodes that run the driver.

use holdfast::csi::proto as p;

use crate::cluster::{A, B, Cluster, Vol};
use crate::harness::{PoolFs, Use, capability};
use crate::root::Kernel;

/// How often a volume goes to the other node and back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds(pub(crate) u32);

#[test]
fn a_volume_follows_its_pod_to_another_node_and_back() {
    follows(Kernel::Newest, PoolFs::Xfs, &[Use::Ext4], Rounds(1));
}

pub(crate) fn follows(kernel: Kernel, pool: PoolFs, kinds: &[Use], rounds: Rounds) {
    let mut cluster = Cluster::start(kernel, pool);
    for kind in kinds.iter().copied() {
        let vol = cluster.create(&format!("vol-{kind:?}"), kind);
        // Formatted over the network.
        cluster.start_pod(&vol, B);
        let mut sum = cluster.write(&vol, B, "0");
        if kind == Use::Ext4 {
            // While B has it: grown, copied, and restored.
            grow(&mut cluster, &vol);
            if pool == PoolFs::Xfs {
                restore(&mut cluster, &vol, &sum);
            }
        }
        cluster.stop_pod(&vol, B);
        for round in 0..rounds.0 {
            cluster.start_pod(&vol, A);
            assert_eq!(cluster.read(&vol, A, &format!("{}", 2 * round)), sum, "{kind:?}: B wrote it, A reads it");
            sum = cluster.write(&vol, A, &format!("{}", 2 * round + 1));
            cluster.stop_pod(&vol, A);
            cluster.start_pod(&vol, B);
            assert_eq!(cluster.read(&vol, B, &format!("{}", 2 * round + 1)), sum, "{kind:?}: A wrote it, B reads it");
            sum = cluster.write(&vol, B, &format!("{}", 2 * round + 2));
            cluster.stop_pod(&vol, B);
        }
        cluster.nothing_left();
        cluster.delete(&vol);
        cluster.said(&format!("{kind:?}: {} times to the other node and back", rounds.0));
    }
    cluster.finish();
}

/// Grows a volume while a pod on B uses it.
fn grow(cluster: &mut Cluster, vol: &Vol) {
    let size = 2 * vol.size;
    let range = Some(p::CapacityRange { required_bytes: size, limit_bytes: 0 });
    let request = p::ControllerExpandVolumeRequest {
        volume_id: vol.id.clone(),
        capacity_range: range,
        volume_capability: Some(capability(vol.kind)),
        ..Default::default()
    };
    let answer: p::ControllerExpandVolumeResponse = cluster.controller("ControllerExpandVolume", &request).unwrap();
    assert_eq!((answer.capacity_bytes, answer.node_expansion_required), (size, true));
    let request = p::NodeExpandVolumeRequest {
        volume_id: vol.id.clone(),
        volume_path: vol.target(),
        capacity_range: range,
        volume_capability: Some(capability(vol.kind)),
        ..Default::default()
    };
    let answer: p::NodeExpandVolumeResponse = cluster.node(B, "NodeExpandVolume", &request).unwrap();
    assert_eq!(answer.capacity_bytes, size);
    let blocks: i64 =
        cluster.must(B, &format!("df -kP {} | tail -n 1 | awk '{{print $2}}'", vol.target())).parse().unwrap();
    assert!(blocks * 1024 > vol.size, "{blocks} blocks of a volume of {size} bytes");
    cluster.said("grown while it is mounted on the other node");
}

/// Takes a snapshot of a volume while a pod on B uses it, and compares what B sees in a volume restored from it.
fn restore(cluster: &mut Cluster, vol: &Vol, sum: &str) {
    let request =
        p::CreateSnapshotRequest { source_volume_id: vol.id.clone(), name: "snap".into(), ..Default::default() };
    let mut snapshot = None;
    crate::harness::await_that("the snapshot is ready", crate::cluster::SOON, || {
        let answer: p::CreateSnapshotResponse =
            cluster.retried(|cluster| cluster.controller("CreateSnapshot", &request));
        snapshot = answer.snapshot;
        snapshot.as_ref().is_some_and(|snapshot| snapshot.ready_to_use)
    });
    let snapshot = snapshot.unwrap();
    // After the snapshot: not in the restored volume.
    cluster.must(B, &format!("rm {0}/0 && sync", vol.target()));
    let restored = cluster.create_sized("restored", vol.kind, 2 * vol.size, Some(&snapshot.snapshot_id));
    cluster.start_pod(&restored, B);
    assert_eq!(cluster.read(&restored, B, "0"), sum, "the restored content");
    // Back for the caller.
    cluster.must(B, &format!("cp {}/0 {}/0 && sync", restored.target(), vol.target()));
    cluster.stop_pod(&restored, B);
    cluster.delete(&restored);
    let request = p::DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
    cluster.retried(|cluster| cluster.controller::<_, p::DeleteSnapshotResponse>("DeleteSnapshot", &request));
    cluster.said("a snapshot was taken under the other node, and restored there");
}
