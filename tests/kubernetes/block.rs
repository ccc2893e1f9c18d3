//! Raw block volumes.

use serde_json::json;

use crate::harness::{Claim, Pod, Space, get, patch, snapshot, text};

#[test]
fn a_raw_block_volume_keeps_every_byte() {
    let space = Space::new("block-life");
    space.claim(&Claim::new("disk").size("128Mi").block());
    space.run(&Pod::new("first").device("disk"));
    assert_eq!(space.exec("first", "blockdev --getsize64 /dev/disk").trim(), (128 << 20).to_string());
    let sum = space.exec("first", "head -c 16M /dev/urandom > /tmp/x && dd if=/tmp/x of=/dev/disk bs=1M oflag=direct conv=fsync status=none && sha256sum < /tmp/x");
    space.end_pod("first");
    space.run(&Pod::new("second").device("disk"));
    let read = space.exec("second", "dd if=/dev/disk bs=1M count=16 iflag=direct status=none | sha256sum");
    assert_eq!(read, sum);
    space.end();
}

/// With the annotation that the snapshot-controller requires, a snapshot of a filesystem is read as a raw device.
#[test]
fn a_snapshot_of_a_filesystem_is_restored_as_a_raw_device() {
    let space = Space::new("block-restored");
    space.claim(&Claim::new("data").size("64Mi"));
    space.run(&Pod::new("user").mounts("data"));
    space.exec("user", "echo before > /data/file && sync /data/file");
    space.apply(&snapshot("cut", "data"));
    space.snapshot_ready("cut");
    let cut = get("volumesnapshot", &space.name, "cut").unwrap();
    let allow =
        json!({"metadata": {"annotations": {"snapshot.storage.kubernetes.io/allow-volume-mode-change": "true"}}});
    patch("volumesnapshotcontent", &space.name, text(&cut, "/status/boundVolumeSnapshotContentName"), &allow);

    space.claim(&Claim::new("raw").size("64Mi").block().of_snapshot("cut"));
    space.run(&Pod::new("reader").device("raw"));
    // The magic number of ext4.
    let magic = space.exec("reader", "dd if=/dev/raw bs=1 skip=1080 count=2 status=none | od -An -tx1");
    assert_eq!(magic.trim(), "53 ef");
    assert_eq!(space.exec("user", "cat /data/file").trim(), "before");
    space.end();
}

/// `persistentVolumeClaim.readOnly: true` of a raw block claim, beside a pod that writes.
#[test]
fn a_claim_that_is_read_only_gives_its_pod_a_device_that_refuses_writes() {
    let space = Space::new("block-readonly");
    space.claim(&Claim::new("disk").size("64Mi").block());
    space.run(&Pod::new("writer").device("disk"));
    let node = space.node_of("writer");
    let write = "dd if=/tmp/x of=/dev/disk bs=1M oflag=direct conv=fsync status=none";
    let sum = space.exec("writer", &format!("head -c 8M /dev/urandom > /tmp/x && {write} && sha256sum < /tmp/x"));
    space.run(&Pod::new("reader").on(&node).device_to_read("disk"));
    let read = "dd if=/dev/disk bs=1M count=8 iflag=direct status=none | sha256sum";
    assert_eq!(space.exec("reader", read), sum);
    let refused = space.exec(
        "reader",
        "head -c 1M /dev/zero > /tmp/x; dd if=/tmp/x of=/dev/disk bs=1M conv=fsync,notrunc 2>&1 || echo REFUSED",
    );
    assert!(refused.contains("REFUSED"), "{refused}");
    assert_eq!(space.exec("writer", read), sum);
    // The reader sees the writer's changes, and outlives it.
    let sum = space.exec("writer", &format!("head -c 8M /dev/urandom > /tmp/x && {write} && sha256sum < /tmp/x"));
    assert_eq!(space.exec("reader", read), sum);
    space.end_pod("writer");
    assert_eq!(space.exec("reader", read), sum);
    space.end_pod("reader");
    // A read-only pod is also the first user of the volume.
    space.run(&Pod::new("alone").device_to_read("disk"));
    assert_eq!(space.exec("alone", read), sum);
    space.end();
}
