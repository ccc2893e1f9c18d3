//! Crashes at any moment: the driver is killed at random times, under several callers; repeated calls end as if nothing
//! had happened, and nothing is left. The systematic version is the fault matrix beside the code.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::csi::proto::controller_client::ControllerClient;
use holdfast::csi::proto::node_client::NodeClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::harness::calls::from_volume;
use crate::harness::{MIB, PoolFs, Use, World, check_tree, create_request, write_tree};

/// A few microseconds more each round, so that the kills cover a whole call.
fn pause(round: u64) -> Duration {
    Duration::from_micros(round * 1733 % 60_000)
}

/// The handles that an orchestrator received: it retries their deletion until that succeeds.
type Given = Arc<Mutex<BTreeSet<String>>>;

/// Four callers, each repeating a volume's lifecycle, until the driver is killed.
async fn churn(channel: Channel, caller: u64, node: String, staging: String, given: Given) {
    let (mut controller, mut nodes) = (ControllerClient::new(channel.clone()), NodeClient::new(channel));
    for turn in 0.. {
        let name = format!("churn-{caller}-{}", turn % 3);
        let request = create_request(&name, Use::Ext4, 32 * MIB);
        let capability = request.volume_capabilities.first().cloned();
        let Ok(answer) = controller.create_volume(request).await else { return };
        let volume_id = answer.into_inner().volume.unwrap().volume_id;
        given.lock().unwrap().insert(volume_id.clone());
        let publish = p::ControllerPublishVolumeRequest {
            volume_id: volume_id.clone(),
            node_id: node.clone(),
            volume_capability: capability.clone(),
            ..Default::default()
        };
        let Ok(context) = controller.controller_publish_volume(publish).await else { return };
        let staging_target_path = format!("{staging}/{volume_id}");
        std::fs::create_dir_all(&staging_target_path).unwrap();
        let stage = p::NodeStageVolumeRequest {
            volume_id: volume_id.clone(),
            publish_context: context.into_inner().publish_context,
            staging_target_path: staging_target_path.clone(),
            volume_capability: capability,
            ..Default::default()
        };
        if nodes.node_stage_volume(stage).await.is_err() {
            return;
        }
        let snapshot = p::CreateSnapshotRequest {
            source_volume_id: volume_id.clone(),
            name: format!("snap-{caller}-{turn}"),
            ..Default::default()
        };
        let Ok(snapshot) = controller.create_snapshot(snapshot).await else { return };
        let unstage = p::NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path };
        if nodes.node_unstage_volume(unstage).await.is_err() {
            return;
        }
        let snapshot_id = snapshot.into_inner().snapshot.unwrap().snapshot_id;
        given.lock().unwrap().insert(snapshot_id.clone());
        let _ = controller.delete_snapshot(p::DeleteSnapshotRequest { snapshot_id, ..Default::default() }).await;
        let unpublish = p::ControllerUnpublishVolumeRequest { volume_id: volume_id.clone(), ..Default::default() };
        let _ = controller.controller_unpublish_volume(unpublish).await;
        let _ = controller.delete_volume(p::DeleteVolumeRequest { volume_id, ..Default::default() }).await;
    }
}

#[test]
fn topolvm_223_killed_under_load_it_converges_and_leaves_nothing() {
    let mut world = World::new(PoolFs::Xfs);
    let keeper = world.create("keeper", Use::Xfs);
    write_tree(&world.attach(&keeper).unwrap(), 1);
    let staging = world.scratch.path().join("churn");
    let given = Given::default();
    for round in 1..=12 {
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                let staging = staging.to_str().unwrap().to_owned();
                world.spawn(churn(world.channel(), caller, world.node.clone(), staging, given.clone()))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(40) + pause(round * 37));
        world.kill9();
        for caller in callers {
            world.block_on(caller).unwrap();
        }
        world.start();
        check_tree(&world.target(&keeper, "pod"), 1);
        let temporary = |part: &str| world.in_pool(part).into_iter().filter(|name| name.starts_with('.')).count();
        assert_eq!(temporary("volumes") + temporary("snapshots"), 0, "temporaries outlive the restart");
        // The CO cleans up after its failed calls: volumes that are unknown by then are unstaged and deleted.
        for id in world.volume_ids().into_iter().filter(|id| *id != keeper.id) {
            let staging_target_path = staging.join(&id).to_str().unwrap().into();
            let request = p::NodeUnstageVolumeRequest { volume_id: id, staging_target_path };
            world.retried("NodeUnstage", || world.node_unstage_volume(request.clone()));
        }
    }
    // A delete interrupted between its mark and its end is in no list; its caller retries.
    for id in given.lock().unwrap().iter() {
        if id.starts_with("hfs1_") {
            world.retried("DeleteSnapshot", || world.drop_snapshot(id));
        } else {
            let detach = p::ControllerUnpublishVolumeRequest { volume_id: id.clone(), ..Default::default() };
            world.retried("ControllerUnpublish", || world.controller_unpublish_volume(detach.clone()));
            let delete = p::DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() };
            world.retried("DeleteVolume", || world.delete_volume(delete.clone()));
        }
    }
    world.finish();
}

/// One call, killed at a later moment each round, then repeated: it ends like an undisturbed one.
fn killed_in_the_middle(
    rounds: u64,
    kind: Use,
    act: impl Fn(&World, u64) -> tokio::task::JoinHandle<Option<Code>>,
) -> World {
    let mut world = World::new(PoolFs::Xfs);
    for round in 0..rounds {
        let call = act(&world, round);
        std::thread::sleep(pause(round));
        world.kill9();
        if let Some(code) = world.block_on(call).unwrap() {
            assert!([Code::Unavailable, Code::Unknown, Code::Cancelled, Code::Internal].contains(&code), "{code:?}");
        }
        world.start();
        let vol = world.create_from(kind, &create_request(&format!("vol-{round}"), kind, kind.size()));
        assert_eq!((vol.size, world.volume_ids().len()), (kind.size(), usize::try_from(round).unwrap() + 1));
    }
    world
}

#[test]
fn a_create_killed_anywhere_is_made_once() {
    let world = killed_in_the_middle(12, Use::Block, |world, round| {
        let mut client = ControllerClient::new(world.channel());
        let request = create_request(&format!("vol-{round}"), Use::Block, Use::Block.size());
        world.spawn(async move { client.create_volume(request).await.err().map(|status| status.code()) })
    });
    assert_eq!(world.in_pool("volumes").len(), 12);
    world.finish();
}

#[test]
fn a_stage_killed_anywhere_ends_formatted_and_mounted_once() {
    let mut world = World::new(PoolFs::Xfs);
    for round in 0..14 {
        let kind = Use::FILESYSTEMS[usize::try_from(round % 2).unwrap()];
        let vol = world.create(&format!("vol-{round}"), kind);
        world.publish(&vol).unwrap();
        let mut client = NodeClient::new(world.channel());
        let request = world.stage_request(&vol);
        let call = world.spawn(async move { client.node_stage_volume(request).await });
        std::thread::sleep(pause(round * 3));
        world.kill9();
        let _ = world.block_on(call);
        world.start();
        let path = world.attach(&vol).unwrap();
        write_tree(&path, round * 10);
        assert_eq!(world.record(&vol)["format"]["state"], "formatted");
        world.detach(&vol);
        check_tree(&world.attach(&vol).unwrap(), round * 10);
        world.detach(&vol);
        world.delete(&vol).unwrap();
    }
    world.finish();
}

#[test]
fn a_delete_killed_anywhere_ends_gone() {
    let mut world = World::new(PoolFs::Xfs);
    for round in 0..10 {
        let vol = world.create(&format!("vol-{round}"), Use::Xfs);
        let mut client = ControllerClient::new(world.channel());
        let request = p::DeleteVolumeRequest { volume_id: vol.id.clone(), ..Default::default() };
        let call = world.spawn(async move { client.delete_volume(request).await });
        std::thread::sleep(pause(round) / 8);
        world.kill9();
        let _ = world.block_on(call);
        world.start();
        world.delete(&vol).unwrap();
        assert!(world.volume_ids().is_empty() && world.in_pool("volumes").is_empty());
        assert_eq!(world.in_pool("trash"), Vec::<String>::new());
    }
    world.finish();
}

#[test]
fn a_snapshot_and_a_clone_killed_anywhere_are_whole() {
    for pool in [PoolFs::Xfs, PoolFs::Ext4] {
        let mut world = World::new(pool);
        let vol = world.create("vol", Use::Ext4);
        write_tree(&world.attach(&vol).unwrap(), 1);
        world.detach(&vol);
        for round in 0..6 {
            let mut client = ControllerClient::new(world.channel());
            let name = format!("snap-{round}");
            let request =
                p::CreateSnapshotRequest { source_volume_id: vol.id.clone(), name: name.clone(), ..Default::default() };
            let mut clone = create_request(&format!("clone-{round}"), Use::Ext4, vol.size);
            clone.volume_content_source = from_volume(&vol);
            let wanted = clone.clone();
            let call = world.spawn(async move {
                let _ = client.create_snapshot(request).await;
                let _ = client.create_volume(clone).await;
            });
            std::thread::sleep(pause(round * 5));
            world.kill9();
            world.block_on(call).unwrap();
            world.start();
            let snapshot = world.snapshot(&name, &vol);
            let restored = world.restore(&format!("restored-{round}"), Use::Ext4, &snapshot.snapshot_id, vol.size);
            let clone = world.create_from(Use::Ext4, &wanted);
            for vol in [restored, clone] {
                check_tree(&world.attach(&vol).unwrap(), 1);
            }
        }
        assert_eq!((world.snapshot_ids().len(), world.volume_ids().len()), (6, 13));
        world.finish();
    }
}

#[test]
fn an_expansion_killed_anywhere_is_finished_by_the_next() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Xfs);
    let path = world.attach(&vol).unwrap();
    write_tree(&path, 1);
    for round in 1..=8 {
        let size = vol.size + i64::try_from(round).unwrap() * 16 * MIB;
        let mut client = ControllerClient::new(world.channel());
        let request = p::ControllerExpandVolumeRequest {
            volume_id: vol.id.clone(),
            capacity_range: Some(p::CapacityRange { required_bytes: size, limit_bytes: 0 }),
            ..Default::default()
        };
        let call = world.spawn(async move { client.controller_expand_volume(request).await });
        std::thread::sleep(pause(round) / 8);
        world.kill9();
        let _ = world.block_on(call);
        world.start();
        assert_eq!(world.expand(&vol, size).unwrap().capacity_bytes, size);
        assert_eq!(world.node_expand(&vol, size).unwrap(), size);
        check_tree(&path, 1);
        // An XFS can grow again once its superblock is written: unmounting does that at once.
        world.detach(&vol);
        world.attach(&vol).unwrap();
    }
    world.finish();
}
