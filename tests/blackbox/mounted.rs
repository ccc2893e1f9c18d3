//! What is mounted for a pod: a filesystem that stopped is told.

use tonic::Code;

use crate::harness::{PoolFs, Use, World, refused, run, write_tree};
use crate::observability::{command, get, value};

/// As it happens after I/O errors: the filesystem gives up, and mountinfo says it for ext4 only.
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
        // Made before: the harness looks at directories that cannot be read afterwards.
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
        // One measurement is kept for ten minutes: only the first time says what is so now.
        assert_eq!(counted, Some(1.0), "{metrics}");
        // The next pod gets it checked and mounted again.
        world.unbind(&vol, "pod").unwrap();
        world.unstage(&vol).unwrap();
        write_tree(&world.attach(&vol).unwrap(), 2);
        world.bind(&healthy, &format!("beside-{}", kind.fs_type())).unwrap();
    }
    world.finish();
}
