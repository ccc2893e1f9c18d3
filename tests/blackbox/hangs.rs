//! A hang does not spread, and work continues when its caller disconnects: mkfs is stopped in the middle.

use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::csi::proto::controller_client::ControllerClient;
use holdfast::csi::proto::node_client::NodeClient;
use holdfast::os::Stopwatch;
use tonic::{Code, Request};

use crate::harness::{
    Frozen, HeldTool, PoolFs, Scratch, Use, Vol, World, await_that, check_tree, create_request, refused, run,
    write_tree,
};

/// A stage whose mkfs hangs, and whose caller disconnected.
fn stage_abandoned(world: &World, held: &HeldTool, vol: &Vol) -> u32 {
    let before = held.calls().len();
    world.publish(vol).unwrap();
    held.hold();
    let mut request = Request::new(world.stage_request(vol));
    request.set_timeout(Duration::from_millis(500));
    let mut client = NodeClient::new(world.channel());
    let status = world.block_on(client.node_stage_volume(request)).unwrap_err();
    assert!(
        [Code::DeadlineExceeded, Code::Cancelled, Code::Aborted].contains(&status.code()),
        "a caller who left is told nothing final: {status:?}"
    );
    held.wait_for_call(before + 1)
}

#[test]
fn ceph_csi_4851_the_second_caller_is_told_which_child_holds_the_volume_and_since_when() {
    let world = World::new(PoolFs::Xfs);
    for (kind, tool) in [(Use::Ext4, "mkfs.ext4"), (Use::Xfs, "mkfs.xfs")] {
        let held = HeldTool::new(&world.scratch, tool);
        let vol = world.create(tool, kind);
        let pid = stage_abandoned(&world, &held, &vol);
        std::thread::sleep(Duration::from_millis(1100));
        let said = refused(world.stage(&vol), &[Code::Aborted]);
        for word in [vol.uuid(), &pid.to_string(), tool] {
            assert!(said.contains(word), "{word} is not named: {said}");
        }
        let age = |unit: &str| said.contains(unit);
        assert!((1..30).any(|seconds| age(&format!(" {seconds} s"))), "no age: {said}");
        // Every other call for this volume must wait too, and no answer is final.
        for answer in [world.unstage(&vol), world.bind(&vol, "pod").map(drop)] {
            let code = answer.unwrap_err().code();
            assert!([Code::Aborted, Code::FailedPrecondition].contains(&code), "{code:?}");
        }
        // The attachment may end, which does not affect the child: the volume stays on its node.
        world.unpublish(&vol).unwrap();
        assert!(world.delete(&vol).is_err());
        world.publish(&vol).unwrap();
        held.let_go();
        world.retried("NodeStage", || world.stage(&vol));
        write_tree(&world.bind(&vol, "pod").unwrap(), 1);
        assert_eq!(held.calls().len(), 1, "the abandoned work was finished, not begun again");
    }
    world.finish();
}

#[test]
fn miroir_276_other_volumes_are_not_held_up_by_a_stuck_child() {
    let world = World::new(PoolFs::Xfs);
    let held = HeldTool::new(&world.scratch, "mkfs.ext4");
    let stuck: Vec<Vol> = (0..3).map(|n| world.create(&format!("stuck-{n}"), Use::Ext4)).collect();
    let other = world.create("other", Use::Xfs);
    let raw = world.create("raw", Use::Block);
    for vol in &stuck {
        stage_abandoned(&world, &held, vol);
    }
    assert_eq!(held.calls().len(), 3);
    let watch = Stopwatch::start();
    write_tree(&world.attach(&other).unwrap(), 1);
    world.attach(&raw).unwrap();
    let snapshot = world.snapshot("snap", &other);
    world.restore("restored", Use::Xfs, &snapshot.snapshot_id, other.size);
    assert_eq!(world.volume_ids().len(), 6);
    world.detach(&other);
    world.delete(&other).unwrap();
    world.probe(p::ProbeRequest {}).unwrap();
    assert!(watch.elapsed() < Duration::from_secs(25), "blocked for {:?}", watch.elapsed());
    held.let_go();
    for vol in &stuck {
        world.retried("NodeStage", || world.stage(vol));
    }
    world.finish();
}

#[test]
fn a_stuck_child_does_not_keep_the_driver_from_ending() {
    let mut world = World::new(PoolFs::Xfs);
    let held = HeldTool::new(&world.scratch, "mkfs.ext4");
    let vol = world.create("vol", Use::Ext4);
    stage_abandoned(&world, &held, &vol);
    let watch = Stopwatch::start();
    assert_eq!(world.terminate(), 0, "{}", world.log());
    assert!(watch.elapsed() < Duration::from_secs(45), "it took {:?}", watch.elapsed());
    held.let_go();
    world.start();
    write_tree(&world.attach(&vol).unwrap(), 1);
    world.finish();
}

#[test]
fn running_work_is_given_a_grace_when_the_driver_ends() {
    let mut world = World::new(PoolFs::Xfs);
    let held = HeldTool::new(&world.scratch, "mkfs.ext4");
    let vol = world.create("vol", Use::Ext4);
    world.publish(&vol).unwrap();
    held.hold();
    let request = world.stage_request(&vol);
    let mut client = NodeClient::new(world.channel());
    let stage = world.spawn(async move { client.node_stage_volume(request).await });
    held.wait_for_call(1);
    world.daemon().signal(nix::sys::signal::Signal::SIGTERM);
    // No new work while it waits: the socket is removed, or calls are refused.
    await_that("no new work is taken", Duration::from_secs(20), || {
        let answer = world.create_volume(create_request("late", Use::Block, 16 << 20));
        matches!(answer, Err(status) if status.code() == Code::Unavailable)
    });
    held.let_go();
    assert_eq!(world.daemon().wait(Duration::from_secs(60)), 0);
    world.block_on(stage).unwrap().expect("a stage under way is finished within the grace");
    world.stopped_by_itself();
    world.start();
    assert_eq!(world.record(&vol)["format"]["state"], "formatted");
    assert_eq!(held.calls().len(), 1);
    world.bind(&vol, "pod").unwrap();
    world.finish();
}

#[test]
fn a_cancelled_create_is_finished_or_gone_never_in_between() {
    let world = World::new(PoolFs::Xfs);
    for round in 0..20_u64 {
        let name = format!("vol-{round}");
        let mut request = Request::new(create_request(&name, Use::Block, 16 << 20));
        request.set_timeout(Duration::from_micros(300 * round));
        let mut client = ControllerClient::new(world.channel());
        let answer = world.block_on(client.create_volume(request));
        if let Err(status) = &answer {
            let final_codes = [Code::Internal, Code::Unknown, Code::FailedPrecondition, Code::ResourceExhausted];
            assert!(!final_codes.contains(&status.code()), "final, and yet it may exist: {status:?}");
        }
        let vol = world.create_from(Use::Block, &create_request(&name, Use::Block, 16 << 20));
        assert_eq!(vol.size, 16 << 20);
    }
    assert_eq!(world.volume_ids().len(), 20);
    assert_eq!(world.in_pool("volumes").len(), 20);
    world.finish();
}

#[test]
fn a_pool_that_does_not_answer_gives_no_final_answers_and_does_not_hold_up_another() {
    let mut world = World::new(PoolFs::Xfs);
    let (image, second) = (world.scratch.path().join("second.img"), world.scratch.path().join("second"));
    std::fs::File::create(&image).unwrap().set_len(1 << 30).unwrap();
    std::fs::create_dir(&second).unwrap();
    PoolFs::Ext4.make(&image);
    run("/usr/bin/mount", &["-o", "loop", image.to_str().unwrap(), second.to_str().unwrap()]);
    let pool = second.join("pool");
    std::fs::create_dir(&pool).unwrap();
    world.terminate();
    world.add_arguments(&["--pool", &format!("second=file:{}", pool.display())]);
    world.start();
    let mut on_test = create_request("on-test", Use::Ext4, 32 << 20);
    on_test.parameters.insert("pool".into(), "test".into());
    let mut on_second = create_request("on-second", Use::Block, 16 << 20);
    on_second.parameters.insert("pool".into(), "second".into());
    let vol = world.try_create(Use::Ext4, &on_test).unwrap();
    write_tree(&world.attach(&vol).unwrap(), 1);
    let frozen = Frozen::new(&world.scratch.root());
    let mut late = on_test.clone();
    late.name = "late".into();
    let mut request = Request::new(late.clone());
    request.set_timeout(Duration::from_secs(1));
    let mut client = ControllerClient::new(world.channel());
    let status = world.block_on(client.create_volume(request)).unwrap_err();
    assert!([Code::DeadlineExceeded, Code::Cancelled, Code::Aborted].contains(&status.code()), "{status:?}");
    refused(world.create_volume(late.clone()), &[Code::Aborted]);
    let other = world.try_create(Use::Block, &on_second);
    drop(frozen);
    assert!(other.is_ok(), "{other:?}");
    world.create_from(Use::Ext4, &late);
    check_tree(&world.target(&vol, "pod"), 1);
    world.delete(&other.unwrap()).unwrap();
    assert_eq!(world.terminate(), 0);
    run("/usr/bin/umount", &[second.to_str().unwrap()]);
    world.drop_arguments(2);
    world.start();
    world.finish();
}

/// Dirty pages of a raw device are written back by its last close(2): on a dead disk that never ends.
#[test]
fn a_raw_device_that_cannot_be_written_back_holds_up_no_other_volume() {
    let mut world = World::stopped(PoolFs::Xfs, 1 << 30);
    let second = Scratch::new(PoolFs::Xfs, 1 << 30);
    let root = second.root().join("pool");
    std::fs::create_dir(&root).unwrap();
    world.add_arguments(&["--pool", &format!("second=file:{}", root.display())]);
    world.start();
    let on = |pool: &str, name: &str| {
        let mut request = create_request(name, Use::Block, 32 << 20);
        request.parameters.insert("pool".into(), pool.into());
        world.try_create(Use::Block, &request).unwrap()
    };
    let (stuck, other) = (on("test", "stuck"), on("second", "other"));
    let device = world.attach(&stuck).unwrap();
    // The driver holds it open, so this is not the last close.
    let dirty = std::fs::File::options().write(true).open(&device).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&dirty, &[7; 1 << 20], 0).unwrap();
    drop(dirty);
    let frozen = Frozen::new(&world.scratch.root());
    world.unbind(&stuck, "pod").unwrap();
    let unstage = p::NodeUnstageVolumeRequest {
        volume_id: stuck.id.clone(),
        staging_target_path: world.staging(&stuck).display().to_string(),
    };
    let mut request = Request::new(unstage);
    request.set_timeout(Duration::from_secs(3));
    let mut client = NodeClient::new(world.channel());
    let given_up = world.block_on(client.node_unstage_volume(request));
    let watch = Stopwatch::start();
    let used = world.attach(&other).map(|_| world.detach(&other));
    let took = watch.elapsed();
    drop(frozen);
    given_up.unwrap_err();
    used.unwrap();
    assert!(took < Duration::from_secs(20), "blocked for {took:?}");
    world.retried("NodeUnstage", || world.unstage(&stuck));
    world.unpublish(&stuck).unwrap();
    world.delete(&stuck).unwrap();
    world.delete(&other).unwrap();
    world.finish();
}
