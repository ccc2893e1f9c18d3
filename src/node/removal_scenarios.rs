//! Unmounts: of mounts beside others, below others, and by many concurrent callers.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{PublishRequest, StageRequest};
use crate::home::{Changed, ReadOnly};
use crate::os::{MountFlags, Program};
use crate::testing::rig::{EXT4, Rig, kind, staged};
use crate::types::*;

/// Stages the volume at a second path too.
fn staged_twice(rig: &Rig, id: VolumeId) -> StageRequest {
    let second = StageRequest { staging: rig.directory("second"), ..rig.stage_request(id, EXT4) };
    assert_eq!(rig.node.stage(&second).unwrap(), Changed::Yes);
    second
}

#[test]
fn a_volume_staged_at_two_paths_goes_from_each_in_turn() {
    let mut rig = Rig::new();
    for restarted in [false, true] {
        for second_first in [false, true] {
            let id = staged(&rig, &format!("a-{restarted}-{second_first}"));
            let (first, second) = (rig.staging(&id), staged_twice(&rig, id).staging);
            if restarted {
                rig.restart();
            }
            let (one, other) = if second_first { (second, first) } else { (first, second) };
            assert_eq!(rig.node.unstage(&id, &one).unwrap(), Changed::Yes);
            assert_eq!((rig.depth(&one), rig.depth(&other), rig.loops(&id)), (0, 1, 1));
            std::fs::write(other.join("file"), b"x").unwrap();
            assert_eq!(rig.node.unstage(&id, &one).unwrap(), Changed::No);
            assert_eq!(rig.node.unstage(&id, &other).unwrap(), Changed::Yes);
            assert_eq!((rig.depth(&other), rig.loops(&id)), (0, 0));
        }
    }
}

#[test]
fn a_volume_staged_at_two_paths_stays_at_both_while_a_pod_has_it() {
    let mut rig = Rig::new();
    let id = staged(&rig, "a");
    let second = staged_twice(&rig, id);
    let from_second = PublishRequest { staging: Some(second.staging.clone()), ..rig.publish_request(id, EXT4, "pod") };
    rig.node.publish(&from_second).unwrap();
    // With an access mode for one pod, a second path is a pod's, never a staging path.
    let one = PublishRequest { access: AccessMode::SingleNodeSingleWriter, ..rig.publish_request(id, EXT4, "other") };
    assert_eq!(kind(rig.node.publish(&one)), Kind::Precondition);
    for restarted in [false, true] {
        if restarted {
            rig.restart();
        }
        for staging in [rig.staging(&id), second.staging.clone()] {
            let error = rig.node.unstage(&id, &staging).unwrap_err();
            assert_eq!(error.kind(), Kind::InUse);
            let said = error.to_string();
            assert!(said.contains(&from_second.target.display().to_string()), "{said}");
            assert!(!said.contains("staging-") && !said.contains("second"), "{said}");
            assert_eq!(rig.depth(&staging), 1);
        }
        // A pod's path is not treated as a staging path either.
        assert_eq!(kind(rig.node.unstage(&id, &from_second.target)), Kind::InUse);
        assert_eq!(rig.depth(&from_second.target), 1);
    }
    rig.node.unpublish(&id, &from_second.target).unwrap();
    rig.node.publish(&one).unwrap();
    rig.node.unpublish(&id, &one.target).unwrap();
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
    rig.node.unstage(&id, &second.staging).unwrap();
    assert_eq!(rig.loops(&id), 0);
}

/// In a mount namespace without peer groups, only the CO's requests distinguish a staging path from a pod's path.
#[test]
fn without_peer_groups_the_co_names_the_staging_paths() {
    let mut rig = Rig::new();
    let id = staged(&rig, "a");
    let (first, second) = (rig.staging(&id), staged_twice(&rig, id).staging);
    let leave_groups = |path: &Path| rig.shell(&format!("mount --make-private {}", path.display()));
    leave_groups(&first);
    leave_groups(&second);
    assert_eq!(rig.node.unstage(&id, &first).unwrap(), Changed::Yes);
    rig.node.stage(&rig.stage_request(id, EXT4)).unwrap();
    leave_groups(&first);
    rig.restart();
    assert_eq!(kind(rig.node.unstage(&id, &first)), Kind::InUse);
    assert_eq!(rig.node.unstage(&id, &second).unwrap(), Changed::Yes);
    assert_eq!(rig.loops(&id), 1);
    assert_eq!(rig.node.unstage(&id, &first).unwrap(), Changed::Yes);
    assert_eq!(rig.loops(&id), 0);
}

/// An unstage that names a pod's path is an error of the CO while this process knows where the volume is staged.
#[test]
fn without_peer_groups_a_pod_s_path_is_not_unstaged_either() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let pod = rig.publish_request(id, EXT4, "pod");
    rig.node.publish(&pod).unwrap();
    for path in [&rig.staging(&id), &pod.target] {
        rig.shell(&format!("mount --make-private {}", path.display()));
    }
    for _ in 0..2 {
        assert_eq!(kind(rig.node.unstage(&id, &pod.target)), Kind::InUse);
        assert_eq!((rig.depth(&rig.staging(&id)), rig.depth(&pod.target)), (1, 1));
    }
    rig.node.unpublish(&id, &pod.target).unwrap();
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
}

/// A mount over a parent directory: the staged and published mounts exist, but no path leads to them.
#[test]
fn a_mount_over_a_parent_is_named_and_nothing_hangs() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let staging = rig.directory("kubelet/plugin/mount");
    let stage = StageRequest { staging: staging.clone(), ..rig.stage_request(id, EXT4) };
    rig.node.stage(&stage).unwrap();
    let publish =
        PublishRequest { staging: Some(staging.clone()), ..rig.publish_request(id, EXT4, "kubelet/pod/mount") };
    rig.directory("kubelet/pod");
    rig.node.publish(&publish).unwrap();

    let cover = rig.path("kubelet");
    // Like another disk that was mounted late: without the directories, and with them.
    for makes_directories in [false, true] {
        rig.os.mount(Path::new("late"), &cover, "tmpfs", MountFlags::default(), "").unwrap();
        if makes_directories {
            rig.directory("kubelet/plugin/mount");
            rig.directory("kubelet/pod/mount");
        }
        let refused = |error: Error| {
            let said = error.to_string();
            assert_eq!(error.kind(), Kind::Precondition, "{said}");
            assert!(said.contains("covers it") && said.contains(&format!("at {} (", cover.display())), "{said}");
        };
        refused(rig.node.unpublish(&id, &publish.target).unwrap_err());
        refused(rig.node.unstage(&id, &staging).unwrap_err());
        if makes_directories {
            assert_eq!(kind(rig.node.publish(&publish)), Kind::Precondition);
            assert_eq!(kind(rig.node.stage(&stage)), Kind::AlreadyExists);
            assert_eq!(kind(rig.node.stats(&id, &publish.target)), Kind::NotFound);
        }
        rig.os.unmount(&cover).unwrap();
    }
    assert_eq!((rig.depth(&staging), rig.depth(&publish.target)), (1, 1));
    rig.node.unpublish(&id, &publish.target).unwrap();
    rig.node.unstage(&id, &staging).unwrap();
    assert_eq!(rig.loops(&id), 0);
}

/// Pods start and stop on one node while tools run for other volumes: only the driver has the mounts.
#[test]
fn pods_that_come_and_go_at_once_are_never_in_use_by_nobody() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let done = AtomicBool::new(false);
    let tool = Program::find("true", Path::new("/"), Duration::from_secs(60)).unwrap();
    let start_tools = || {
        while !done.load(Ordering::Relaxed) {
            rig.os.run(&tool).unwrap();
        }
    };
    let pods = |number: usize| {
        for turn in 0..20 {
            let read_only = if number.is_multiple_of(2) { ReadOnly::No } else { ReadOnly::Yes };
            let request = rig.publish_request(id, EXT4, &format!("pod-{number}-{turn}"));
            rig.node.publish(&PublishRequest { read_only, ..request.clone() }).map_err(|error| error.chain())?;
            rig.node.unpublish(&id, &request.target).map_err(|error| error.chain())?;
        }
        Ok::<(), String>(())
    };
    let (start_tools, pods) = (&start_tools, &pods);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(start_tools);
        }
        let running: Vec<_> = (0..16).map(|number| scope.spawn(move || pods(number))).collect();
        let ended: Vec<_> = running.into_iter().map(|pods| pods.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        let failed: Vec<_> = ended.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{}: {failed:#?}", failed.len());
    });
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
    assert_eq!(rig.loops(&id), 0);
}
