//! Filesystem checks: only when the superblock reports errors, never because of a missing unmount, never against the
//! StorageClass.

use holdfast::csi::proto as p;
use tonic::Code;

use crate::harness::{
    HeldTool, PoolFs, Use, Vol, World, check_tree, checksum, create_request, refused, run, write_tree,
};

/// A volume with content whose superblock reports errors.
fn with_errors(world: &World, name: &str, fsck: &str) -> Vol {
    let mut request = create_request(name, Use::Ext4, Use::Ext4.size());
    request.parameters.insert("fsck".into(), fsck.into());
    let vol = world.try_create(Use::Ext4, &request).unwrap();
    write_tree(&world.attach(&vol).unwrap(), 1);
    world.detach(&vol);
    run("/usr/sbin/debugfs", &["-w", "-R", "set_super_value state 2", world.image(&vol).to_str().unwrap()]);
    vol
}

#[test]
fn azure_local_458_an_unclean_unmount_is_replayed_not_checked() {
    let world = World::new(PoolFs::Xfs);
    let held = HeldTool::new(&world.scratch, "e2fsck");
    for kind in Use::FILESYSTEMS {
        let vol = world.create(kind.fs_type(), kind);
        write_tree(&world.attach(&vol).unwrap(), 1);
        // A snapshot of a mounted filesystem is like a filesystem after a power cut.
        let snapshot = world.snapshot(&format!("snap-{}", kind.fs_type()), &vol);
        let calls = held.calls().len();
        let restored = world.restore(&format!("restored-{}", kind.fs_type()), kind, &snapshot.snapshot_id, vol.size);
        check_tree(&world.attach(&restored).unwrap(), 1);
        assert_eq!(held.calls().len(), calls, "{:?}", held.calls());
    }
    world.finish();
}

#[test]
fn a_filesystem_that_says_errors_is_checked_before_it_is_mounted() {
    let world = World::new(PoolFs::Xfs);
    let held = HeldTool::new(&world.scratch, "e2fsck");
    let vol = with_errors(&world, "vol", "auto");
    let calls = held.calls().len();
    let path = world.attach(&vol).unwrap();
    assert!(held.calls().len() > calls, "it was mounted unchecked");
    check_tree(&path, 1);
    world.detach(&vol);
    let calls = held.calls().len();
    world.attach(&vol).unwrap();
    assert_eq!(held.calls().len(), calls, "once is enough");
    world.finish();
}

#[test]
fn fsck_never_means_refused_and_untouched() {
    let world = World::new(PoolFs::Xfs);
    let vol = with_errors(&world, "vol", "never");
    let before = checksum(&world.image(&vol));
    world.publish(&vol).unwrap();
    refused(world.stage(&vol), &[Code::FailedPrecondition, Code::DataLoss, Code::Internal]);
    world.unstage(&vol).unwrap();
    assert_eq!(checksum(&world.image(&vol)), before);
    let request = p::ControllerGetVolumeRequest { volume_id: vol.id.clone() };
    world.controller_get_volume(request).unwrap();
    world.finish();
}
