//! Volumes that this release has in a state that the release before does not know: detached while they are staged, and
//! raw block volumes that pods only read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use holdfast::csi::proto as p;
use tonic::Code;

use super::{End, replace, run_by};
use crate::harness::{PoolFs, Release, Use, check_chunks, refused, run, write_chunk};

fn number(path: &Path) -> u64 {
    fs::metadata(path).unwrap().rdev()
}

/// With device-mapper this release publishes raw block volumes in a way that the release before does not know
/// (docs/operations.md, "Upgrade and downgrade"): their pods end before a downgrade. The guests have device-mapper.
fn has_device_mapper() -> bool {
    fs::read_to_string("/proc/misc").unwrap().contains("device-mapper")
}

#[test]
fn a_volume_detached_while_staged_goes_on_after_a_downgrade() {
    let mut world = run_by(Release::This, PoolFs::Xfs);
    for kind in Use::ALL {
        if kind == Use::Block && has_device_mapper() {
            continue;
        }
        // The next pod comes before the old one is unstaged, or after.
        for unstaged in [false, true] {
            assert_eq!(world.release, Release::This);
            let vol = world.create(&format!("vol-{}-{unstaged}", kind.fs_type()), kind);
            let path = world.attach(&vol).unwrap();
            write_chunk(kind, &path, 0, 1);
            world.unpublish(&vol).unwrap();
            assert!(world.record(&vol)["still_staged"].is_object());
            replace(&mut world, End::Killed);
            check_chunks(kind, &path, &[1]);
            let get = p::ControllerGetVolumeRequest { volume_id: vol.id.clone() };
            assert!(world.controller_get_volume(get).unwrap().status.unwrap().published_node_ids.is_empty());
            refused(world.delete(&vol), &[Code::FailedPrecondition]);
            check_chunks(kind, &path, &[1]);
            if unstaged {
                world.unbind(&vol, "pod").unwrap();
                world.unstage(&vol).unwrap();
            }
            check_chunks(kind, &world.attach(&vol).unwrap(), &[1]);
            replace(&mut world, End::Killed);
            check_chunks(kind, &world.attach(&vol).unwrap(), &[1]);
            world.detach(&vol);
            assert!(world.record(&vol)["still_staged"].is_null(), "{}", world.record(&vol));
            world.delete(&vol).unwrap();
        }
    }
    world.finish();
}

/// docs/operations.md, "Upgrade and downgrade": pods that only read a raw block volume end before a downgrade. If they do
/// not, release 0.1.0 refuses to end them, and changes nothing.
#[test]
fn a_raw_block_volume_that_is_only_read_waits_for_the_next_upgrade() {
    let mut world = run_by(Release::This, PoolFs::Xfs);
    let vol = world.create("vol", Use::Block);
    let path = world.attach(&vol).unwrap();
    write_chunk(Use::Block, &path, 0, 1);
    let request = p::NodePublishVolumeRequest { readonly: true, ..world.bind_request(&vol, "reader") };
    world.node_publish_volume(request.clone()).unwrap();
    let reader = world.target(&vol, "reader");
    let numbers = (number(&path), number(&reader));
    replace(&mut world, End::Terminated);
    refused(world.unbind(&vol, "reader"), &[Code::FailedPrecondition]);
    refused(world.unstage(&vol), &[Code::FailedPrecondition]);
    refused(world.delete(&vol), &[Code::FailedPrecondition]);
    assert_eq!((number(&path), number(&reader)), numbers);
    check_chunks(Use::Block, &path, &[1]);
    check_chunks(Use::Block, &reader, &[1]);
    replace(&mut world, End::Terminated);
    world.node_publish_volume(request).unwrap();
    assert_eq!((number(&path), number(&reader)), numbers);
    world.unbind(&vol, "reader").unwrap();
    check_chunks(Use::Block, &path, &[1]);
    world.detach(&vol);
    world.delete(&vol).unwrap();
    world.finish();
}

/// The record of an attachment by release 0.1.0 does not have the number of the device that the pod got.
#[test]
fn the_device_that_a_pod_got_before_the_upgrade_is_given_to_no_other_volume() {
    for end in [End::Terminated, End::Killed] {
        let mut world = run_by(Release::Before, PoolFs::Xfs);
        let first = world.create("first", Use::Block);
        let path = world.attach(&first).unwrap();
        write_chunk(Use::Block, &path, 0, 1);
        let device = number(&path);
        replace(&mut world, end);
        // LOOP_CLR_FD needs no capability, only a descriptor, which the pod has.
        run("/usr/sbin/losetup", &["-d", path.to_str().unwrap()]);
        for kind in Use::ALL {
            let next = world.create(&format!("next-{}", kind.fs_type()), kind);
            let other = world.attach(&next).unwrap();
            let got = match kind {
                Use::Block => number(&other),
                Use::Ext4 | Use::Xfs => fs::metadata(&other).unwrap().dev(),
            };
            assert_ne!(got, device, "{kind:?}");
        }
        world.unbind(&first, "pod").unwrap();
        world.stage(&first).unwrap();
        check_chunks(Use::Block, &world.bind(&first, "pod").unwrap(), &[1]);
        world.finish();
    }
}
