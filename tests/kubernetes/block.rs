//! Raw block volumes.

use crate::harness::{Claim, Pod, Space};

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
