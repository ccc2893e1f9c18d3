//! Format once (docs/design.md section 8): the content of a volume is never overwritten because it could not be
//! identified.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use holdfast::csi::proto::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::harness::{
    HeldTool, MIB, PoolFs, Use, World, capability, check_device, check_tree, checksum, create_request, refused, run,
    superblock_uuid, try_run, with_mode, write_device, write_tree,
};

/// The codes for a volume that needs an operator.
const NEEDS_A_HUMAN: &[Code] = &[Code::FailedPrecondition, Code::Internal, Code::DataLoss];

fn put(image: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(image).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}

fn a_foreign_byte_is_never_formatted_over(pool: PoolFs) {
    let world = World::new(pool);
    for kind in Use::FILESYSTEMS {
        let size = u64::try_from(kind.size()).unwrap();
        for (place, offset, bytes) in [
            ("first", 0, b"x".as_slice()),
            ("middle", size / 2 + 12_345, b"x"),
            ("last", size - 1, b"x"),
            // A zero that was written is content too: it is recognized by allocation, not by reading.
            ("written-zero", size / 3, b"\0"),
        ] {
            let vol = world.create(&format!("{place}-{}", kind.fs_type()), kind);
            put(&world.image(&vol), offset, bytes);
            let before = checksum(&world.image(&vol));
            world.publish(&vol).unwrap();
            for _ in 0..2 {
                let said = refused(world.stage(&vol), &[Code::FailedPrecondition]);
                assert!(said.contains(vol.uuid()), "it must name the volume: {said}");
            }
            assert_eq!(checksum(&world.image(&vol)), before, "{place}: something was written");
            assert_eq!(world.record(&vol)["format"]["state"], "never");
            // The user may delete it: no state in between prevents that.
            world.unstage(&vol).unwrap();
            world.unpublish(&vol).unwrap();
            assert_eq!(checksum(&world.image(&vol)), before, "{place}: something was written");
            world.delete(&vol).unwrap();
        }
    }
    world.finish();
}

#[test]
fn hetzner_1346_a_foreign_byte_anywhere_is_never_formatted_over_on_xfs() {
    a_foreign_byte_is_never_formatted_over(PoolFs::Xfs);
}

#[test]
fn hetzner_1346_a_foreign_byte_anywhere_is_never_formatted_over_on_ext4() {
    a_foreign_byte_is_never_formatted_over(PoolFs::Ext4);
}

#[test]
fn hetzner_1346_a_foreign_byte_anywhere_is_never_formatted_over_on_btrfs() {
    a_foreign_byte_is_never_formatted_over(PoolFs::Btrfs);
}

/// A formatted volume whose image is damaged while it is not in use: the stage is refused and nothing is written.
fn what_is_not_its_filesystem_is_refused(kind: Use, spoil: impl Fn(&Path)) {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", kind);
    let path = world.attach(&vol).unwrap();
    write_tree(&path, 3);
    world.detach(&vol);
    let image = world.image(&vol);
    spoil(&image);
    let look = || image.exists().then(|| checksum(&image));
    let before = look();
    world.publish(&vol).unwrap_or_else(|status| assert!(NEEDS_A_HUMAN.contains(&status.code()), "{status:?}"));
    for _ in 0..2 {
        let said = refused(world.stage(&vol), NEEDS_A_HUMAN);
        assert!(said.contains(vol.uuid()), "it must name the volume: {said}");
    }
    assert_eq!(look(), before, "something was written");
    assert!(world.record(&vol)["format"]["state"] == "formatted");
    world.finish();
}

fn blank(image: &Path) {
    let size = fs::metadata(image).unwrap().len();
    let file = File::options().write(true).open(image).unwrap();
    file.set_len(0).unwrap();
    file.set_len(size).unwrap();
    file.sync_all().unwrap();
}

fn zeroes(image: &Path) {
    let size = fs::metadata(image).unwrap().len();
    let zeroes = vec![0; 1 << 20];
    for at in 0..size >> 20 {
        put(image, at << 20, &zeroes);
    }
}

#[test]
fn kubernetes_142243_blank_where_a_filesystem_was_is_not_formatted() {
    what_is_not_its_filesystem_is_refused(Use::Ext4, blank);
    what_is_not_its_filesystem_is_refused(Use::Xfs, blank);
}

#[test]
fn longhorn_14042_zeroes_where_a_filesystem_was_are_not_formatted() {
    what_is_not_its_filesystem_is_refused(Use::Ext4, zeroes);
}

#[test]
fn aws_ebs_1224_another_filesystem_in_its_place_is_not_mounted() {
    what_is_not_its_filesystem_is_refused(Use::Ext4, |image| {
        blank(image);
        run("/usr/sbin/mkfs.ext4", &["-q", image.to_str().unwrap()]);
    });
    what_is_not_its_filesystem_is_refused(Use::Xfs, |image| {
        blank(image);
        run("/usr/sbin/mkfs.xfs", &["-q", "-s", "size=4096", image.to_str().unwrap()]);
    });
    what_is_not_its_filesystem_is_refused(Use::Xfs, |image| {
        blank(image);
        run("/usr/sbin/mkfs.ext4", &["-q", image.to_str().unwrap()]);
    });
}

#[test]
fn a_damaged_superblock_is_refused_not_replaced() {
    what_is_not_its_filesystem_is_refused(Use::Ext4, |image| put(image, 1024 + 0x38, b"\0\0"));
    what_is_not_its_filesystem_is_refused(Use::Xfs, |image| put(image, 0, b"\0\0\0\0"));
}

#[test]
fn a_truncated_or_missing_image_is_refused_not_made_again() {
    let half = |image: &Path| File::options().write(true).open(image).unwrap().set_len(16 << 20).unwrap();
    what_is_not_its_filesystem_is_refused(Use::Ext4, half);
    what_is_not_its_filesystem_is_refused(Use::Ext4, |image| fs::remove_file(image).unwrap());
}

#[test]
fn metal_stack_140_the_second_stage_does_not_format() {
    let mut world = World::new(PoolFs::Xfs);
    for (kind, tool) in [(Use::Ext4, "mkfs.ext4"), (Use::Xfs, "mkfs.xfs")] {
        let held = HeldTool::new(&world.scratch, tool);
        let vol = world.create(tool, kind);
        let path = world.attach(&vol).unwrap();
        write_tree(&path, 1);
        assert_eq!(held.calls().len(), 1, "{:?}", held.calls());
        let uuid = superblock_uuid(&world.image(&vol));
        assert_eq!(world.record(&vol)["format"]["state"], "formatted");
        assert_eq!(world.record(&vol)["format"]["uuid"], uuid.to_string());
        for _ in 0..3 {
            world.detach(&vol);
            world.crash();
            let path = world.attach(&vol).unwrap();
            check_tree(&path, 1);
        }
        assert_eq!(held.calls().len(), 1, "{:?}", held.calls());
        let forced = |word: &str| word == "-F" || word == "-f" || word == "-FF";
        assert!(!held.calls()[0].split(' ').any(forced), "{:?}", held.calls());
        assert_eq!(superblock_uuid(&world.image(&vol)), uuid);
    }
    world.finish();
}

#[test]
fn a_killed_mkfs_is_begun_again_on_a_device_proved_blank() {
    let mut world = World::new(PoolFs::Xfs);
    for (kind, tool) in [(Use::Ext4, "mkfs.ext4"), (Use::Xfs, "mkfs.xfs")] {
        let held = HeldTool::new(&world.scratch, tool);
        let vol = world.create(tool, kind);
        world.publish(&vol).unwrap();
        held.hold();
        let request = world.stage_request(&vol);
        let mut client = holdfast::csi::proto::node_client::NodeClient::new(world.channel());
        let _stage = world.spawn(async move { client.node_stage_volume(request).await });
        held.wait_for_call(1);
        assert_eq!(world.record(&vol)["format"]["state"], "formatting");
        world.kill9();
        held.let_go();
        // As if it had been interrupted half way.
        write_device(&world.image(&vol), 9, 0, 2);
        world.start();
        let path = world.attach(&vol).unwrap();
        assert_eq!(held.calls().len(), 2);
        write_tree(&path, 1);
        world.detach(&vol);
        world.attach(&vol).unwrap();
        check_tree(&path, 1);
        assert_eq!(held.calls().len(), 2);
    }
    world.finish();
}

#[test]
fn while_formatting_a_strange_filesystem_is_left_alone() {
    let mut world = World::new(PoolFs::Xfs);
    let held = HeldTool::new(&world.scratch, "mkfs.ext4");
    let vol = world.create("vol", Use::Ext4);
    world.publish(&vol).unwrap();
    held.hold();
    let request = world.stage_request(&vol);
    let mut client = holdfast::csi::proto::node_client::NodeClient::new(world.channel());
    let _stage = world.spawn(async move { client.node_stage_volume(request).await });
    held.wait_for_call(1);
    world.kill9();
    held.let_go();
    // A restored or wrong image: a valid superblock that is not the planned one.
    run("/usr/sbin/mkfs.ext4", &["-q", "-F", world.image(&vol).to_str().unwrap()]);
    let before = checksum(&world.image(&vol));
    let calls = held.calls().len();
    world.start();
    refused(world.stage(&vol), &[Code::FailedPrecondition]);
    assert_eq!((checksum(&world.image(&vol)), held.calls().len()), (before, calls), "something was written");
    world.finish();
}

#[test]
fn raw_stays_raw_and_a_filesystem_stays_one() {
    let world = World::new(PoolFs::Xfs);
    let mut request = create_request("both", Use::Block, 32 * MIB);
    request.volume_capabilities.push(capability(Use::Ext4));
    let raw = world.try_create(Use::Block, &request).unwrap();
    let path = world.attach(&raw).unwrap();
    write_device(&path, 5, 0, 3);
    world.detach(&raw);
    let before = checksum(&world.image(&raw));
    let as_mount = raw.used_as(Use::Ext4);
    let refusal = world.publish(&as_mount).and_then(|()| world.stage(&as_mount));
    refused(refusal, &[Code::FailedPrecondition]);
    assert_eq!(checksum(&world.image(&raw)), before);
    world.unstage(&raw).unwrap();
    world.unpublish(&raw).unwrap();
    check_device(&world.attach(&raw).unwrap(), 5, 0, 3);

    request.name = "both again".into();
    request.volume_capabilities.reverse();
    let mounted = world.try_create(Use::Ext4, &request).unwrap();
    let path = world.attach(&mounted).unwrap();
    write_tree(&path, 6);
    world.detach(&mounted);
    let as_block = mounted.used_as(Use::Block);
    let refusal = world.publish(&as_block).and_then(|()| world.stage(&as_block));
    refused(refusal, &[Code::FailedPrecondition]);
    world.unstage(&mounted).unwrap();
    world.unpublish(&mounted).unwrap();
    check_tree(&world.attach(&mounted).unwrap(), 6);
    world.finish();
}

#[test]
fn a_raw_volume_nobody_wrote_to_is_not_formatted_either() {
    let world = World::new(PoolFs::Xfs);
    let mut request = create_request("both", Use::Block, 32 * MIB);
    request.volume_capabilities.push(capability(Use::Ext4));
    let raw = world.try_create(Use::Block, &request).unwrap();
    world.attach(&raw).unwrap();
    world.detach(&raw);
    let as_mount = raw.used_as(Use::Ext4);
    refused(world.publish(&as_mount).and_then(|()| world.stage(&as_mount)), &[Code::FailedPrecondition]);
    world.finish();
}

#[test]
fn read_only_never_formats() {
    let world = World::new(PoolFs::Xfs);
    let mut request = create_request("vol", Use::Ext4, 32 * MIB);
    let read_only = with_mode(Use::Ext4, Mode::SingleNodeReaderOnly);
    request.volume_capabilities = vec![read_only.clone(), capability(Use::Ext4)];
    let vol = world.try_create(Use::Ext4, &request).unwrap().with(read_only);
    let before = checksum(&world.image(&vol));
    refused(world.attach(&vol), &[Code::FailedPrecondition]);
    assert_eq!(checksum(&world.image(&vol)), before);
    assert_eq!(world.record(&vol)["format"]["state"], "never");
    world.finish();
}

#[test]
fn a_snapshot_of_a_claim_never_used_can_still_be_formatted() {
    for pool in PoolFs::ALL {
        let world = World::new(pool);
        for kind in Use::FILESYSTEMS {
            let name = kind.fs_type();
            let vol = world.create(name, kind);
            let snapshot = world.snapshot(&format!("of-{name}"), &vol);
            let restored = world.restore(&format!("restored-{name}"), kind, &snapshot.snapshot_id, vol.size);
            write_tree(&world.attach(&restored).unwrap(), 1);
            let clone = world.clone_of(&format!("clone-{name}"), &vol);
            write_tree(&world.attach(&clone).unwrap(), 2);
            write_tree(&world.attach(&vol).unwrap(), 3);
        }
        world.finish();
    }
}

#[test]
fn volumes_mount_on_the_oldest_kernel_we_promise() {
    let world = World::new(PoolFs::Xfs);
    let ext4 = world.create("ext4", Use::Ext4);
    world.attach(&ext4).unwrap();
    let header = run("/usr/sbin/dumpe2fs", &["-h", world.image(&ext4).to_str().unwrap()]);
    assert!(!header.contains("orphan_file"), "kernel 5.15 does not know it:\n{header}");
    assert!(header.contains("metadata_csum"), "{header}");
    let errors = header.lines().find(|line| line.starts_with("Errors behavior:")).unwrap();
    assert!(errors.contains("read-only"), "{errors}");
    let xfs = world.create("xfs", Use::Xfs);
    let path = world.attach(&xfs).unwrap();
    let info = try_run("/usr/sbin/xfs_info", &[path.to_str().unwrap()]).stdout;
    assert!(info.contains("reflink=1") && info.contains("bigtime=1"), "{info}");
    assert!(!info.contains("nrext64=1"), "kernel 5.15 does not know it:\n{info}");
    assert!(info.contains("sectsz=4096"), "{info}");
    world.finish();
}
