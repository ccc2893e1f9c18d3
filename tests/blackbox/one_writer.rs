//! One writer: a volume is used by one node at a time, in one way at a time, and never removed while in use.

use std::path::Path;

use holdfast::csi::proto as p;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::harness::{
    PoolFs, Use, Vol, World, capability, check_device, check_tree, checksum, create_request, loops_on, refused,
    with_mode, write_device, write_tree,
};

#[test]
fn a_second_node_is_refused_and_told_whose_it_is() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    // A local volume belongs to its home node, attached or not.
    for attached in [false, true] {
        if attached {
            world.publish(&vol).unwrap();
        }
        match world.publish_to(&vol, "node-b").unwrap_err() {
            // With one node only, no other node is known.
            status if status.code() == Code::NotFound => assert!(status.message().contains("node-b"), "{status:?}"),
            status => {
                let said = refused(Err::<(), _>(status), &[Code::FailedPrecondition]);
                assert!(said.contains(&world.node), "it must name the node that has it: {said}");
            }
        }
    }
    world.finish();
}

#[test]
fn the_same_node_another_way_already_exists() {
    let world = World::new(PoolFs::Xfs);
    let mut request = create_request("vol", Use::Ext4, 32 << 20);
    request.volume_capabilities.push(capability(Use::Block));
    let vol = world.try_create(Use::Ext4, &request).unwrap();
    world.publish(&vol).unwrap();
    world.publish(&vol).unwrap();
    let again = |capability: p::VolumeCapability, readonly: bool| {
        world.controller_publish_volume(p::ControllerPublishVolumeRequest {
            volume_id: vol.id.clone(),
            node_id: world.node.clone(),
            volume_capability: Some(capability),
            readonly,
            ..Default::default()
        })
    };
    refused(again(capability(Use::Ext4), true), &[Code::AlreadyExists]);
    refused(again(capability(Use::Block), false), &[Code::AlreadyExists]);
    refused(again(with_mode(Use::Ext4, Mode::SingleNodeSingleWriter), false), &[Code::AlreadyExists]);
    world.finish();
}

fn write(kind: Use, path: &Path) {
    match kind {
        Use::Block => write_device(path, 1, 0, 4),
        Use::Ext4 | Use::Xfs => write_tree(path, 1),
    }
}

fn check(kind: Use, path: &Path) {
    match kind {
        Use::Block => check_device(path, 1, 0, 4),
        Use::Ext4 | Use::Xfs => check_tree(path, 1),
    }
}

/// ControllerPublish to this node in another way.
fn publish_to_read(world: &World, vol: &Vol) -> Result<p::ControllerPublishVolumeResponse, tonic::Status> {
    world.controller_publish_volume(p::ControllerPublishVolumeRequest {
        volume_id: vol.id.clone(),
        node_id: world.node.clone(),
        volume_capability: Some(vol.capability.clone()),
        readonly: true,
        ..Default::default()
    })
}

fn published_to(world: &World, vol: &Vol) -> Vec<String> {
    let request = p::ControllerGetVolumeRequest { volume_id: vol.id.clone() };
    world.controller_get_volume(request).unwrap().status.unwrap().published_node_ids
}

#[test]
fn a_volume_in_use_is_not_deleted_attached_or_not() {
    let mut world = World::new(PoolFs::Xfs);
    for kind in Use::ALL {
        let vol = world.create(&format!("vol-{}", kind.fs_type()), kind);
        let path = world.attach(&vol).unwrap();
        write(kind, &path);
        // miroir PR#250: LOOP_CLR_FD returns 0 for a loop device in use, and the image was unlinked under a running
        // pod.
        for attached in [true, false, false] {
            if !attached {
                world.unpublish(&vol).unwrap();
            }
            let said = refused(world.delete(&vol), &[Code::FailedPrecondition]);
            assert!(said.contains(vol.uuid()), "{said}");
            assert!(world.image(&vol).exists());
            check(kind, &path);
            world.crash();
        }
        assert!(published_to(&world, &vol).is_empty());
        write(kind, &path);
        world.publish(&vol).unwrap();
        // Staged, not published.
        world.unbind(&vol, "pod").unwrap();
        refused(world.delete(&vol), &[Code::FailedPrecondition]);
        // Attached, not staged.
        world.unstage(&vol).unwrap();
        refused(world.delete(&vol), &[Code::FailedPrecondition]);
        world.attach(&vol).unwrap();
        check(kind, &path);
        world.detach(&vol);
        world.delete(&vol).unwrap();
    }
    world.finish();
}

/// Kubernetes ends the attachment of a node whose object was deleted, or whose kubelet was away for six minutes,
/// without an unstage. The next pod needs the volume on the same node: kubelet waits until the attachment ends, and the
/// pod waits for both.
#[test]
fn a_volume_detached_while_staged_goes_on_at_its_home_and_nowhere_else() {
    let mut world = World::new(PoolFs::Xfs);
    for kind in Use::ALL {
        let vol = world.create(&format!("vol-{}", kind.fs_type()), kind);
        let path = world.attach(&vol).unwrap();
        write(kind, &path);
        // Kubelet returns, removes the old pod's path, and keeps the stage: the next pod uses the volume.
        world.unpublish(&vol).unwrap();
        world.crash();
        world.unpublish(&vol).unwrap();
        assert!(published_to(&world, &vol).is_empty(), "the orchestrator must see it as detached");
        refused(world.publish_to(&vol, "node-b"), &[Code::NotFound, Code::FailedPrecondition]);
        refused(world.delete(&vol), &[Code::FailedPrecondition]);
        refused(world.stage(&vol), &[Code::FailedPrecondition]);
        let said = refused(publish_to_read(&world, &vol), &[Code::FailedPrecondition]);
        assert!(said.contains(&world.node) && said.contains("unstaged"), "the error must name the next step: {said}");
        // With reflinks, a snapshot needs no idle volume.
        world.snapshot(&format!("cut-{}", kind.fs_type()), &vol);
        world.unbind(&vol, "pod").unwrap();
        let next = {
            world.publish(&vol).unwrap();
            world.stage(&vol).unwrap();
            world.bind(&vol, "next").unwrap()
        };
        check(kind, &next);
        write(kind, &next);
        world.unbind(&vol, "next").unwrap();

        // Once more, and unstaged while it is detached: then it is a normal volume again.
        world.bind(&vol, "pod").unwrap();
        world.unpublish(&vol).unwrap();
        world.unbind(&vol, "pod").unwrap();
        world.unstage(&vol).unwrap();
        publish_to_read(&world, &vol).unwrap();
        world.unpublish(&vol).unwrap();
        check(kind, &world.attach(&vol).unwrap());
        world.detach(&vol);
        world.delete(&vol).unwrap();
    }
    world.finish();
}

/// A bound device node does not keep its loop device: once that is cleared, its number goes to the next image, and the
/// pod writes there.
#[test]
fn a_pod_never_sees_the_next_volume_through_its_device_node() {
    let mut world = World::new(PoolFs::Xfs);
    let first = world.create("first", Use::Block);
    let path = world.attach(&first).unwrap();
    write_device(&path, 1, 0, 2);
    // Its attachment may end, its device may not.
    world.unpublish(&first).unwrap();
    let said = refused(world.delete(&first), &[Code::FailedPrecondition]);
    assert!(said.contains(path.to_str().unwrap()), "the error must say where it is used: {said}");
    world.crash();
    refused(world.delete(&first), &[Code::FailedPrecondition]);
    let second = world.create("second", Use::Block);
    let other = world.attach(&second).unwrap();
    write_device(&other, 2, 0, 2);
    check_device(&path, 1, 0, 2);
    world.detach(&first);
    world.detach(&second);
    world.finish();
}

#[test]
fn a_raw_device_a_pod_still_has_open_is_not_taken_away() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Block);
    let path = world.attach(&vol).unwrap();
    write_device(&path, 1, 0, 2);
    let held = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    // The CO reports that the pod has ended, but its process still has the device: a device in use is not removed.
    refused(world.unbind(&vol, "pod"), &[Code::FailedPrecondition, Code::Aborted]);
    refused(world.unstage(&vol), &[Code::FailedPrecondition, Code::Aborted]);
    refused(world.delete(&vol), &[Code::FailedPrecondition]);
    world.unpublish(&vol).unwrap();
    refused(world.delete(&vol), &[Code::FailedPrecondition]);
    assert!(world.image(&vol).exists());
    std::os::unix::fs::FileExt::write_all_at(&held, &[7; 4096], 2 << 20).expect("its device is still there");
    held.sync_all().unwrap();
    drop(held);
    world.unbind(&vol, "pod").unwrap();
    world.unstage(&vol).unwrap();
    world.unpublish(&vol).unwrap();
    check_device(&world.attach(&vol).unwrap(), 1, 0, 2);
    world.finish();
}

#[test]
fn unpublish_of_what_is_not_there_is_ok() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    world.unpublish(&vol).unwrap();
    let request = |volume_id: &str, node_id: &str| p::ControllerUnpublishVolumeRequest {
        volume_id: volume_id.into(),
        node_id: node_id.into(),
        ..Default::default()
    };
    world.controller_unpublish_volume(request(&vol.id, "node-b")).unwrap();
    world.controller_unpublish_volume(request(&vol.id, "")).unwrap();
    world.publish(&vol).unwrap();
    world.controller_unpublish_volume(request(&vol.id, "node-b")).unwrap();
    let status = |world: &World| {
        let answer = world.controller_get_volume(p::ControllerGetVolumeRequest { volume_id: vol.id.clone() }).unwrap();
        answer.status.unwrap().published_node_ids
    };
    assert_eq!(status(&world), [world.node.as_str()], "another node's unpublish removed this node's attachment");
    world.unpublish(&vol).unwrap();
    assert!(status(&world).is_empty());
    world.delete(&vol).unwrap();
    world.controller_unpublish_volume(request(&vol.id, &world.node)).unwrap();
    world.finish();
}

#[test]
fn a_volume_not_granted_is_not_staged() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    let before = checksum(&world.image(&vol));
    refused(world.stage(&vol), &[Code::FailedPrecondition]);
    world.publish(&vol).unwrap();
    let stale = world.stage_request(&vol);
    world.unpublish(&vol).unwrap();
    // publish_context is cached across reboots: the record decides.
    refused(world.node_stage_volume(stale), &[Code::FailedPrecondition]);
    assert_eq!(checksum(&world.image(&vol)), before);
    world.finish();
}

#[test]
fn deckhouse_302_one_image_is_never_on_two_loops() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    world.attach(&vol).unwrap();
    for _ in 0..3 {
        world.crash();
        world.attach(&vol).unwrap();
        world.stage(&vol).unwrap();
    }
    let device = |world: &World| {
        let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(world.image(&vol)).unwrap());
        let loops = loops_on(world.scratch.device());
        loops.iter().filter(|status| status.backing_inode == inode && status.name.contains(vol.uuid())).count()
    };
    assert_eq!(device(&world), 1);
    world.detach(&vol);
    assert_eq!(device(&world), 0, "detached, but the loop is still there");
    world.finish();
}
