//! Snapshots, restores and clones.

use crate::harness::{Claim, Pod, Space, explained, snapshot};

/// A claim `data` with a file, in use by the pod `user` on a node.
fn filled(name: &str, node: &str) -> Space {
    let space = Space::new(name);
    space.claim(&Claim::new("data").class("holdfast-xfs").size("320Mi"));
    space.run(&Pod::new("user").on(node).mounts("data"));
    space.exec("user", "echo before > /data/file && sync /data/file");
    space
}

#[test]
fn a_snapshot_of_a_volume_in_use_is_restored_also_larger() {
    let space = filled("snapshots-restore", "node1");
    // Requested too early: the event names what is missing, and the claim is filled as soon as that exists.
    space.claim(&Claim::new("early").class("holdfast-xfs").size("320Mi").of_snapshot("cut"));
    space.pod(&Pod::new("early").mounts("early"));
    explained(&space.name, "early", &["snapshots-restore/cut, which does not exist", "get volumesnapshot"]);
    // A snapshot that never becomes ready.
    space.apply(&snapshot("broken", "nowhere"));
    space.claim(&Claim::new("never").class("holdfast-xfs").size("320Mi").of_snapshot("broken"));
    explained(
        &space.name,
        "never",
        &["snapshots-restore/broken, which is not ready", "describe volumesnapshot broken"],
    );
    space.apply(&snapshot("cut", "data"));
    space.snapshot_ready("cut");
    space.exec("user", "echo after > /data/file && sync /data/file");

    space.claim(&Claim::new("same").class("holdfast-xfs").size("320Mi").of_snapshot("cut"));
    space.claim(&Claim::new("larger").class("holdfast-xfs").size("512Mi").of_snapshot("cut"));
    space.run(&Pod::new("restored").mounts("same").mounts("larger"));
    assert_eq!(space.exec("restored", "cat /same/file /larger/file").trim(), "before\nbefore");
    let room: u64 = space.exec("restored", "df -B1 --output=size /larger | tail -1").trim().parse().unwrap();
    assert!(room > 400 << 20, "{room}");
    assert_eq!(space.exec("user", "cat /data/file").trim(), "after");
    space.running("early");
    assert_eq!(space.exec("early", "cat /early/file").trim(), "before");

    // Each is independent of the other.
    space.end_pod("user");
    space.gone("pvc", "data");
    space.gone("volumesnapshot", "cut");
    assert_eq!(space.exec("restored", "echo 1 >> /same/file && sync /same/file && cat /larger/file").trim(), "before");
    space.end();
}

#[test]
fn a_clone_goes_its_own_way() {
    let space = filled("snapshots-clone", "node2");
    space.claim(&Claim::new("copy").class("holdfast-xfs").size("320Mi").of_claim("data"));
    space.run(&Pod::new("cloned").mounts("copy"));
    space.exec("user", "echo after > /data/file && sync /data/file");
    assert_eq!(space.exec("cloned", "cat /copy/file").trim(), "before");
    assert_eq!(space.node_of("cloned"), "node2");
    space.end();
}

#[test]
fn a_restore_runs_where_its_source_is_whatever_the_scheduler_chose_first() {
    for (name, source) in [("snapshots-node1", "node1"), ("snapshots-node2", "node2")] {
        let space = filled(name, source);
        space.apply(&snapshot("cut", "data"));
        space.snapshot_ready("cut");
        // Several, so that the scheduler's first choice is wrong for some.
        for index in 0..3 {
            let claim = format!("r{index}");
            space.claim(&Claim::new(&claim).class("holdfast-xfs").size("320Mi").of_snapshot("cut"));
            space.pod(&Pod::new(&claim).mounts(&claim));
        }
        for index in 0..3 {
            let pod = format!("r{index}");
            space.running(&pod);
            assert_eq!(space.exec(&pod, &format!("cat /{pod}/file")).trim(), "before");
            assert_eq!(space.node_of(&pod), source);
        }
        space.end();
    }
}
