//! The pod sees what is mounted for it, and a filesystem that was shut down is reported.

use tonic::Code;

use crate::harness::{PoolFs, Use, World, mounts, refused, run, write_tree};
use crate::observability::{command, get, value};

/// As after I/O errors: the filesystem shuts down, and only for ext4 mountinfo shows it.
#[test]
fn a_stopped_filesystem_is_found_counted_and_refused() {
    let world = World::sized(PoolFs::Xfs, 4 << 30);
    let healthy = world.create("healthy", Use::Ext4);
    world.attach(&healthy).unwrap();
    for kind in Use::FILESYSTEMS {
        let vol = world.create(&format!("stops-{}", kind.fs_type()), kind);
        let pod = world.attach(&vol).unwrap();
        write_tree(&pod, 1);
        assert!(command(&world, "doctor", &["--output", "json"]).stdout.contains("[]"));
        // Created before: the harness reads directories that cannot be read afterwards.
        let (second, again) = (world.bind_request(&vol, "second"), world.stage_request(&vol));
        run("/usr/sbin/xfs_io", &["-x", "-c", "shutdown", pod.to_str().unwrap()]);

        let said = command(&world, "doctor", &["--output", "json"]);
        assert_eq!(said.code, Some(1));
        let findings: Vec<serde_json::Value> = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(findings.len(), 1, "{}", said.stdout);
        assert_eq!(findings[0]["kind"], "filesystem");
        assert!(findings[0]["place"].as_str().unwrap().contains(vol.uuid()), "{}", said.stdout);
        refused(world.node_publish_volume(second), &[Code::FailedPrecondition]);
        refused(world.node_stage_volume(again), &[Code::FailedPrecondition]);
        refused(world.node_expand(&vol, vol.size), &[Code::FailedPrecondition]);
        let (_, metrics) = get(&world, "/metrics");
        let counted = value(&metrics, "holdfast_findings", &["kind=\"filesystem\""]);
        // One measurement is cached for ten minutes: only the first call shows the current state.
        assert_eq!(counted, Some(1.0), "{metrics}");
        // For the next pod it is checked and mounted again.
        world.unbind(&vol, "pod").unwrap();
        world.unstage(&vol).unwrap();
        write_tree(&world.attach(&vol).unwrap(), 2);
        world.bind(&healthy, &format!("beside-{}", kind.fs_type())).unwrap();
    }
    world.finish();
}

/// As a service of systemd with `PrivateTmp=`, or a container without bidirectional propagation.
#[test]
fn a_driver_whose_mounts_nobody_sees_says_so_and_stages_nothing() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    world.publish(&vol).unwrap();
    run("/usr/bin/mount", &["-t", "tmpfs", "kubelet", "/var/lib"]);
    std::fs::create_dir("/var/lib/kubelet").unwrap();
    assert!(command(&world, "doctor", &[]).code == Some(0));

    run("/usr/bin/mount", &["--make-rprivate", "/"]);
    world.terminate();
    world.start();
    let log = world.log();
    assert!(log.contains("no volume can be staged or published") && log.contains("Bidirectional"), "{log}");
    let said = command(&world, "doctor", &[]).stdout;
    assert!(said.contains("no volume can be staged or published") && said.contains("PrivateTmp="), "{said}");
    let before = mounts().entries().len();
    let why = refused(world.stage(&vol), &[Code::FailedPrecondition]);
    assert!(why.contains("Bidirectional"), "{why}");
    assert_eq!(mounts().entries().len(), before);

    run("/usr/bin/mount", &["--make-rshared", "/"]);
    write_tree(&world.attach(&vol).unwrap(), 1);
    run("/usr/bin/umount", &["/var/lib"]);
    world.finish();
}
