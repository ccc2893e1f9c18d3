//! A driver whose mounts are visible only to itself.

use std::fs::File;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use super::{PublishRequest, StageRequest};
use crate::testing::rig::{EXT4, Rig, kind, staged};
use crate::types::*;

fn refused<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition, "{}", error.chain());
    for word in ["not shared", "Bidirectional", "PrivateTmp="] {
        assert!(error.to_string().contains(word), "{error}");
    }
}

/// As a container without `mountPropagation: Bidirectional`.
#[test]
fn nothing_is_mounted_for_pods_where_only_the_driver_would_see_it() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let own = rig.directory("own");
    for propagation in ["private", "slave"] {
        rig.shell(&format!("mount --bind {0} {0}; mount --make-{propagation} {0}", own.display()));
        let stage = StageRequest { staging: rig.directory("own/mount"), ..rig.stage_request(id, EXT4) };
        refused(rig.node.stage(&stage));
        assert_eq!((rig.depth(&stage.staging), rig.loops(&id)), (0, 0), "{propagation}");

        rig.node.stage(&rig.stage_request(id, EXT4)).unwrap();
        let publish = PublishRequest { target: own.join("pod"), ..rig.publish_request(id, EXT4, "unused") };
        refused(rig.node.publish(&publish));
        assert!(!publish.target.exists());
        // After the error nothing has to be removed.
        rig.node.unpublish(&id, &publish.target).unwrap();
        rig.node.unstage(&id, &stage.staging).unwrap();
        rig.node.unstage(&id, &rig.staging(&id)).unwrap();
        rig.os.unmount(&own).unwrap();
    }
    let raw = rig.volume("raw", 32, VolumeMode::Block);
    rig.node.stage(&rig.stage_request(raw, VolumeMode::Block)).unwrap();
    rig.shell(&format!("mount --bind {0} {0}; mount --make-private {0}", own.display()));
    let publish = PublishRequest { target: own.join("pod"), ..rig.publish_request(raw, VolumeMode::Block, "unused") };
    refused(rig.node.publish(&publish));
    rig.node.unstage(&raw, &rig.staging(&raw)).unwrap();
}

/// A volume that was staged before the driver got such a namespace is not reported as staged, and can be removed.
#[test]
fn what_nobody_else_sees_is_taken_away_all_the_same() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let publish = rig.publish_request(id, EXT4, "pod");
    rig.node.publish(&publish).unwrap();
    rig.shell("mount --make-rprivate /");
    refused(rig.node.publish(&publish));
    refused(rig.node.stage(&rig.stage_request(id, EXT4)));
    rig.node.unpublish(&id, &publish.target).unwrap();
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
    assert_eq!(rig.loops(&id), 0);
}

/// As a systemd service with `PrivateTmp=`: its mounts receive from the host's, and are shared in a group of their own.
/// They are visible where another namespace belongs to that group, which kubelet's may do.
#[test]
fn a_group_without_members_outside_is_not_shared() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let request = rig.publish_request(id, EXT4, "pod");
    let log = File::create(rig.path("log")).unwrap();
    let sleep = ["600".to_owned()];
    // The host, and in the thread below the service: a child keeps each namespace readable.
    let _host = rig.os.start(Path::new("/bin/sleep"), &sleep, &log).unwrap();
    let publish = |request: PublishRequest| {
        let published = rig.node.publish(&request);
        if published.is_ok() {
            rig.node.unpublish(&id, &request.target).unwrap();
        }
        published
    };
    let thread = std::thread::scope(|scope| {
        let service = scope.spawn(|| {
            let thread = nix::unistd::gettid();
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            rig.shell("mount --make-rslave / && mount --make-rshared /");
            refused(publish(request.clone()));
            let _kubelet = rig
                .os
                .start(
                    Path::new("/usr/bin/unshare"),
                    &["-m", "--propagation", "slave", "/bin/sleep", "600"].map(str::to_owned),
                    &log,
                )
                .unwrap();
            for _ in 0..500 {
                if publish(request.clone()).is_ok() {
                    return thread;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            publish(request.clone()).unwrap();
            thread
        });
        service.join().unwrap()
    });
    // The namespace and its mounts disappear with the thread, a little after it was joined.
    while Path::new(&format!("/proc/self/task/{thread}")).exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(kind(rig.node.stats(&id, &request.target)), Kind::NotFound);
}
