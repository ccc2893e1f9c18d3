//! A volume's lifecycle when its home node and the controller are different processes.

use holdfast::csi::proto as p;
use tonic::Code;

use super::harness::{Cluster, NODE_KEY, Wire, on};
use crate::harness::calls::from_snapshot;
use crate::harness::{MIB, Use, check_tree, create_request, refused, write_tree};

#[test]
fn a_volume_lives_on_the_node_that_was_selected() {
    for wire in [Wire::Plain, Wire::Tls] {
        let cluster = Cluster::wired(&["node-a", "node-b"], 1, wire);
        let vol = cluster.create("vol", Use::Ext4, "node-b");
        assert_eq!(vol.node, "node-b");
        assert!(cluster.pool_of("node-b").join("volumes").read_dir().unwrap().count() == 1);
        let said = refused(cluster.publish(0, &vol, "node-a"), &[Code::FailedPrecondition]);
        assert!(said.contains("node-b"), "{said}");
        refused(cluster.publish(0, &vol, "node-z"), &[Code::NotFound]);
        cluster.publish(0, &vol, "node-b").unwrap();
        let path = cluster.stage(&vol).unwrap();
        write_tree(&path, 1);
        refused(cluster.delete(0, &vol), &[Code::FailedPrecondition]);
        cluster.unstage(&vol).unwrap();
        check_tree(&cluster.stage(&vol).unwrap(), 1);
        cluster.unstage(&vol).unwrap();
        cluster.unpublish(0, &vol, "node-b").unwrap();
        assert_eq!(cluster.list(0).unwrap(), std::slice::from_ref(&vol.id));
        cluster.delete(0, &vol).unwrap();
        assert!(cluster.list(0).unwrap().is_empty());
        cluster.finish();
    }
}

#[test]
fn a_restore_is_made_where_its_source_is() {
    let cluster = Cluster::new(&["node-a", "node-b"], 1);
    let vol = cluster.create("vol", Use::Xfs, "node-b");
    cluster.publish(0, &vol, "node-b").unwrap();
    write_tree(&cluster.stage(&vol).unwrap(), 1);
    let request =
        p::CreateSnapshotRequest { source_volume_id: vol.id.clone(), name: "snap".into(), ..Default::default() };
    let snapshot = cluster.call(cluster.controller(0).create_snapshot(request)).unwrap().snapshot.unwrap();
    // The scheduler chose the other node and allowed the source's node: the answer names the real one.
    let mut requirement = on("node-a");
    requirement.requisite.extend(on("node-b").requisite);
    let request = p::CreateVolumeRequest {
        accessibility_requirements: Some(requirement),
        volume_content_source: from_snapshot(&snapshot.snapshot_id),
        ..create_request("restored", Use::Xfs, vol.size)
    };
    let restored = cluster.create_from(0, Use::Xfs, request).unwrap();
    assert_eq!(restored.node, "node-b");
    cluster.publish(0, &restored, "node-b").unwrap();
    check_tree(&cluster.stage(&restored).unwrap(), 1);
    // Only the other node is allowed: the copy can never be there.
    let request = p::CreateVolumeRequest {
        accessibility_requirements: Some(on("node-a")),
        volume_content_source: from_snapshot(&snapshot.snapshot_id),
        ..create_request("elsewhere", Use::Xfs, vol.size)
    };
    let said = refused(cluster.create_from(0, Use::Xfs, request), &[Code::ResourceExhausted]);
    assert!(said.contains("node-b"), "{said}");
    for vol in [&vol, &restored] {
        cluster.unstage(vol).unwrap();
        cluster.unpublish(0, vol, "node-b").unwrap();
        cluster.delete(0, vol).unwrap();
    }
    let request = p::DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
    cluster.call(cluster.controller(0).delete_snapshot(request)).unwrap();
    cluster.finish();
}

#[test]
fn capacity_is_told_node_by_node_and_placement_follows_it() {
    let cluster = Cluster::new(&["node-a", "node-b"], 1);
    let before = cluster.capacity(0, "node-a");
    assert!(before > 500 * MIB, "{before}");
    let request = p::CreateVolumeRequest {
        accessibility_requirements: Some(on("node-a")),
        ..create_request("big", Use::Block, before - 64 * MIB)
    };
    let vol = cluster.create_from(0, Use::Block, request).unwrap();
    crate::harness::await_that("the heartbeat tells", std::time::Duration::from_secs(10), || {
        cluster.capacity(0, "node-a") <= 64 * MIB
    });
    assert!(cluster.capacity(0, "node-b") > 500 * MIB);
    let said = refused(
        cluster.create_from(
            0,
            Use::Block,
            p::CreateVolumeRequest {
                accessibility_requirements: Some(on("node-a")),
                ..create_request("second", Use::Block, 512 * MIB)
            },
        ),
        &[Code::ResourceExhausted],
    );
    assert!(said.contains("node-a") || said.contains("pool"), "{said}");
    // `placement: any` continues to the node with free space.
    let mut requirement = on("node-a");
    requirement.requisite.extend(on("node-b").requisite);
    requirement.preferred.extend(on("node-b").preferred);
    let mut request = p::CreateVolumeRequest {
        accessibility_requirements: Some(requirement),
        ..create_request("third", Use::Block, 512 * MIB)
    };
    request.parameters.insert("placement".into(), "any".into());
    let third = cluster.create_from(0, Use::Block, request).unwrap();
    assert_eq!(third.node, "node-b");
    for vol in [vol, third] {
        cluster.delete(0, &vol).unwrap();
    }
    cluster.finish();
}

#[test]
fn nodes_say_where_they_are_and_controllers_have_no_node_service() {
    let cluster = Cluster::new(&["node-a"], 1);
    let info = cluster.call(cluster.node("node-a").node_get_info(p::NodeGetInfoRequest {})).unwrap();
    assert_eq!(info.accessible_topology.unwrap().segments[NODE_KEY], "node-a");
    let mut on_controller =
        holdfast::csi::proto::node_client::NodeClient::new(cluster.channel_of(&cluster.controllers[0].socket));
    refused(cluster.call(on_controller.node_get_info(p::NodeGetInfoRequest {})), &[Code::Unimplemented]);
    cluster.finish();
}
