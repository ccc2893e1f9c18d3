//! Filesystems that stopped under a staged volume.

use std::path::Path;
use std::sync::Arc;

use super::{Node, PublishRequest, StageRequest, Usable};
use crate::fs::stopped;
use crate::home::{Changed, FindingKind, Home, ReadOnly};
use crate::os::{Call, Os};
use crate::testing::FaultInjector;
use crate::testing::rig::{EXT4, Rig, When, XFS, kind, staged};
use crate::testing::scratch::home as node_id;
use crate::types::*;

/// The device's name in sysfs, such as `loop3`.
fn device(rig: &Rig, path: &Path) -> String {
    let table = rig.os.mounts().unwrap();
    let device = rig.os.device_path(table.at(path).unwrap().device);
    device.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The operations that still work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Reads,
    Nothing,
}

#[test]
fn every_call_sees_that_a_filesystem_stopped() {
    let rig = Rig::of(2048);
    let shut_down = |path: &Path| rig.shell(&format!("xfs_io -x -c shutdown {}", path.display()));
    let turned_read_only = |path: &Path| {
        rig.shell(&format!("mount -o remount,errors=remount-ro {}", path.display()));
        rig.shell(&format!("echo test > /sys/fs/ext4/{}/trigger_fs_error", device(&rig, path)));
    };
    let ways = [
        ("ext4-shut-down", EXT4, Left::Nothing),
        ("xfs-shut-down", XFS, Left::Nothing),
        ("ext4-errors", EXT4, Left::Reads),
    ];
    for (name, mode, left) in ways {
        let readable = left == Left::Reads;
        let id = rig.volume(name, if mode == XFS { 320 } else { 64 }, mode);
        let stage = rig.stage_request(id, mode);
        rig.node.stage(&stage).unwrap();
        let pod = rig.publish_request(id, mode, &format!("{name}-1"));
        rig.node.publish(&pod).unwrap();
        let state = || {
            let table = rig.os.mounts().unwrap();
            stopped(&rig.os, &[table.at(&stage.staging).unwrap()]).map(|why| why.is_readable())
        };
        assert_eq!(state(), None, "{name}");
        assert_eq!(rig.home.examine().unwrap(), [], "{name}");
        assert_eq!(rig.node.health(&id, Some(&pod.target)).unwrap(), [], "{name}");
        rig.node.stats(&id, &pod.target).unwrap();
        if readable {
            turned_read_only(&stage.staging)
        } else {
            shut_down(&stage.staging)
        }
        assert_eq!(state(), Some(readable), "{name}");
        let examined = rig.home.examine().unwrap();
        let [finding] = examined.as_slice() else { panic!("{name}: {examined:?}") };
        assert_eq!(finding.kind, FindingKind::Filesystem, "{name}: {finding:?}");
        assert!(finding.place.contains(&id.uuid.to_string()), "{name}: {finding:?}");
        let health = rig.node.health(&id, Some(&pod.target)).unwrap();
        let [problem] = health.as_slice() else { panic!("{name}: {health:?}") };
        assert_eq!(problem.state, if readable { Usable::Partly } else { Usable::No }, "{name}");
        assert!(problem.message.contains("stop every pod"), "{name}: {problem:?}");
        // Its usage is known as long as it can be read.
        match rig.node.stats(&id, &pod.target) {
            Ok(_) => assert!(readable, "{name}"),
            Err(error) => {
                assert!(!readable && error.kind() == Kind::Internal, "{name}: {}", error.chain());
                assert!(error.to_string().contains("stop every pod"), "{name}: {}", error.chain());
            }
        }

        let second = rig.publish_request(id, mode, &format!("{name}-2"));
        let refused = |result: Result<Changed>| {
            let error = result.unwrap_err();
            assert!(
                error.kind() == Kind::Precondition && error.to_string().contains("stop every pod"),
                "{name}: {error}"
            );
        };
        refused(rig.node.publish(&second));
        refused(rig.node.stage(&stage));
        refused(rig.node.expand(&rig.expand_request(id, &pod.target)).map(|_| Changed::No));
        let reader = PublishRequest { read_only: ReadOnly::Yes, ..second };
        assert_eq!(rig.node.publish(&reader).is_ok(), readable, "{name}");
        rig.node.unpublish(&id, &reader.target).unwrap();

        rig.node.unpublish(&id, &pod.target).unwrap();
        rig.node.unstage(&id, &stage.staging).unwrap();
        rig.node.stage(&stage).unwrap();
        assert_eq!(state(), None, "{name}: checked and mounted again");
        rig.node.unstage(&id, &stage.staging).unwrap();
    }
}

#[test]
fn a_filesystem_that_does_not_answer_is_given_to_nobody() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    rig.faults.fail(Call::FsAnswers, When::Before);
    assert_eq!(kind(rig.node.publish(&rig.publish_request(id, EXT4, "pod"))), Kind::Precondition);
    let again: StageRequest = rig.stage_request(id, EXT4);
    assert_eq!(kind(rig.node.stage(&again)), Kind::Precondition);
    rig.faults.clear();
    assert_eq!(rig.node.stage(&again).unwrap(), Changed::No);
}

/// statfs(2) of a filesystem that hangs would keep its thread for ever.
#[test]
fn the_usage_of_a_filesystem_that_hangs_is_not_read() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let hand = FaultInjector::default();
    let home = Arc::clone(&rig.home) as Arc<dyn Home>;
    let node = Node::new(Os::intercepted(Box::new(hand.clone())), node_id(), home);
    hand.watch();
    hand.hold(Call::FsAnswers, "staging-");
    let stats = node.stats(&id, &rig.staging(&id));
    let publish = node.publish(&rig.publish_request(id, EXT4, "pod"));
    let made = hand.made();
    hand.release();
    let error = stats.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{}", error.chain());
    assert!(error.chain().contains("does not answer") && error.chain().contains("no answer for"), "{}", error.chain());
    assert!(!made.iter().any(|(call, _)| *call == Call::FsSpace), "{made:?}");
    let error = publish.unwrap_err();
    assert!(error.kind() == Kind::Precondition && error.to_string().contains("does not answer"), "{}", error.chain());
}

#[test]
fn the_usage_of_a_filesystem_that_fails_is_an_error_with_the_reason() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    // The last one resolves the path: a parent that cannot be read does not mean that nothing is there.
    for call in [Call::FsAnswers, Call::FsSpace, Call::Identity] {
        rig.faults.fail(call, When::Before);
        let error = rig.node.stats(&id, &rig.staging(&id)).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal, "{call:?}: {}", error.chain());
        assert!(error.chain().contains("os error 5"), "{call:?}: {}", error.chain());
        rig.faults.clear();
        rig.node.stats(&id, &rig.staging(&id)).unwrap();
    }
}
