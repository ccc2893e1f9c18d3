//! Calls that fail halfway, and concurrent calls.

use crate::fs;
use crate::home::Home;
use crate::os::Call;
use crate::testing::rig::{EXT4, Rig, When, XFS, staged};
use crate::types::{Bytes, FsType, Kind};

#[test]
fn a_publish_and_an_unpublish_that_fail_at_any_call_can_be_asked_for_again() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let request = rig.publish_request(id, EXT4, "pod/mount");
    for when in [When::Before, When::After] {
        let publish = || {
            let first = rig.node.publish(&request);
            let fired = rig.faults.fired();
            rig.faults.clear();
            if first.is_err() {
                let empty = || std::fs::read_dir(&request.target).unwrap().next().is_none();
                assert!(rig.depth(&request.target) > 0 || !request.target.exists() || empty(), "{first:?}");
            }
            rig.node.publish(&request).unwrap();
            assert_eq!(rig.depth(&request.target), 1);
            rig.node.unpublish(&id, &request.target).unwrap();
            fired
        };
        for n in 1.. {
            rig.faults.fail_nth(n, when);
            if !publish() {
                assert!(n > 5, "only {n} calls were seen");
                break;
            }
        }
        rig.node.publish(&request).unwrap();
        for n in 1.. {
            rig.faults.fail_nth(n, when);
            let _ = rig.node.unpublish(&id, &request.target);
            let fired = rig.faults.fired();
            rig.faults.clear();
            rig.node.unpublish(&id, &request.target).unwrap();
            assert!(!request.target.exists());
            rig.node.publish(&request).unwrap();
            if !fired {
                break;
            }
        }
        rig.node.unpublish(&id, &request.target).unwrap();
    }
}

#[test]
fn a_mount_whose_answer_was_lost_is_undone_and_made_again() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let request = rig.stage_request(id, EXT4);
    rig.faults.fail(Call::Mount, When::After);
    assert!(rig.node.stage(&request).is_err());
    assert_eq!((rig.depth(&request.staging), rig.loops(&id)), (0, 0));
    rig.faults.clear();
    rig.node.stage(&request).unwrap();
    assert_eq!(rig.faults.runs("mkfs"), 0);
}

#[test]
fn a_second_operation_on_a_volume_is_told_of_the_first_and_others_go_on() {
    let rig = Rig::new();
    let (a, b) = (staged(&rig, "a"), rig.volume("b", 32, EXT4));
    let held = rig.node.volumes.try_lock(&a, "NodeStageVolume").unwrap();
    let error = rig.node.unstage(&a, &rig.staging(&a)).unwrap_err();
    assert!(error.kind() == Kind::Busy && error.to_string().contains("NodeStageVolume"), "{error}");
    rig.node.stage(&rig.stage_request(b, EXT4)).unwrap();
    drop(held);
    rig.node.unstage(&a, &rig.staging(&a)).unwrap();
}

#[test]
fn the_smallest_volume_of_each_filesystem_can_be_made() {
    let rig = Rig::of(1024);
    for (fs_type, mode) in [(FsType::Ext4, EXT4), (FsType::Xfs, XFS)] {
        let size = fs::minimum_size(fs_type);
        let id = rig.volume(&format!("{fs_type}"), size.get() >> 20, mode);
        assert_eq!(rig.home.volume(&id).unwrap().size, size);
        rig.node.stage(&rig.stage_request(id, mode)).unwrap();
    }
    assert_eq!(fs::minimum_size(FsType::Xfs), Bytes::mib(300));
}
