//! Every row of the format table, on a real kernel: the volumes that are used, formatted again, or rejected without a
//! change to any byte.

use crate::home::{Changed, FormatState, GrantRequest, Home, ReadOnly};
use crate::os::Call;
use crate::testing::rig::{EXT4, Rig, When, XFS};
use crate::types::{AccessMode, FsType, Kind, VolumeId, VolumeMode};

fn uuid_of(state: FormatState) -> uuid::Uuid {
    match state {
        FormatState::Formatted { uuid, .. } | FormatState::Formatting { planned_uuid: uuid, .. } => uuid,
        other => panic!("{other:?}"),
    }
}

/// A formatted ext4 volume with a file in it, unstaged.
fn used(rig: &Rig, name: &str) -> VolumeId {
    used_with(rig, name, &[])
}

fn used_with(rig: &Rig, name: &str, class: &[(&str, &str)]) -> VolumeId {
    let id = rig.volume_with(name, 32, EXT4, class);
    write_once(rig, &id);
    id
}

fn write_once(rig: &Rig, id: &VolumeId) {
    let request = rig.stage_request(*id, EXT4);
    rig.node.stage(&request).unwrap();
    std::fs::write(request.staging.join("file"), b"precious").unwrap();
    rig.node.unstage(id, &request.staging).unwrap();
}

/// Staging fails this way, and no byte of the image changes.
#[track_caller]
fn refused(rig: &Rig, id: &VolumeId, mode: VolumeMode, kind: Kind) -> String {
    let before = (rig.bytes(id), rig.format(id));
    let error = rig.node.stage(&rig.stage_request(*id, mode)).unwrap_err();
    assert_eq!(error.kind(), kind, "{}", error.chain());
    assert_eq!((rig.bytes(id), rig.format(id)), before, "something was written");
    assert_eq!((rig.loops(id), rig.depth(&rig.staging(id))), (0, 0), "something was left behind");
    assert!(rig.faults.runs("mkfs") == 0, "mkfs ran");
    error.chain()
}

#[test]
fn never_is_formatted_once_and_its_data_and_uuid_stay() {
    let rig = Rig::of(1024);
    for (name, mib, mode, fs) in [("a", 32, EXT4, FsType::Ext4), ("b", 320, XFS, FsType::Xfs)] {
        let id = rig.volume(name, mib, mode);
        let request = rig.stage_request(id, mode);
        assert_eq!(rig.node.stage(&request).unwrap(), Changed::Yes);
        let made = rig.format(&id);
        assert!(matches!(made, FormatState::Formatted { fs: found, .. } if found == fs));
        std::fs::write(request.staging.join("file"), b"precious").unwrap();
        assert_eq!(rig.node.unstage(&id, &request.staging).unwrap(), Changed::Yes);
        assert_eq!(rig.loops(&id), 0);
        assert_eq!(rig.node.stage(&request).unwrap(), Changed::Yes);
        assert_eq!(rig.node.stage(&request).unwrap(), Changed::No);
        assert_eq!(rig.depth(&request.staging), 1);
        assert_eq!(std::fs::read(request.staging.join("file")).unwrap(), b"precious");
        assert_eq!(rig.format(&id), made);
        rig.node.unstage(&id, &request.staging).unwrap();
        assert_eq!(rig.faults.runs(&format!("mkfs.{fs} /dev")), if fs == FsType::Xfs { 2 } else { 1 });
        assert_eq!(rig.faults.runs("e2fsck") + rig.faults.runs("xfs_repair"), 0);
    }
}

#[test]
fn ext4_has_the_features_of_the_baseline_kernel_and_not_those_of_the_image() {
    let rig = Rig::new();
    let id = used(&rig, "a");
    let image = rig.image(&id);
    rig.shell(&format!(
        "f=$(dumpe2fs -h {0} 2>/dev/null); \
         echo \"$f\" | grep -q 'features:.* metadata_csum' && echo \"$f\" | grep -q 'features:.* 64bit' && \
         ! echo \"$f\" | grep -Eq 'metadata_csum_seed|orphan_file' && \
         echo \"$f\" | grep -Eq '^Errors behavior: +Remount read-only' && echo \"$f\" | grep -Eq '^Reserved block count: +0$' && \
         echo \"$f\" | grep -Eq '^Block size: +4096$' && echo \"$f\" | grep -Eq '^Inode count: +2048$'",
        image.display()
    ));
}

#[test]
fn the_class_s_mkfs_options_are_used() {
    let rig = Rig::new();
    let id = used_with(&rig, "a", &[("mkfsOptions", "-N 512 -m 1")]);
    rig.shell(&format!("dumpe2fs -h {} 2>/dev/null | grep -Eq '^Inode count: +512$'", rig.image(&id).display()));
}

#[test]
fn never_with_a_foreign_byte_anywhere_is_refused() {
    let rig = Rig::new();
    for (name, offset) in [("first", 0), ("middle", 16 << 20), ("last", (32 << 20) - 1)] {
        let id = rig.volume(name, 32, EXT4);
        rig.write(&id, offset, b"x");
        refused(&rig, &id, EXT4, Kind::Precondition);
        assert_eq!(rig.format(&id), FormatState::Never);
    }
}

#[test]
fn never_is_not_formatted_by_a_reader() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    rig.regrant(&id, EXT4, AccessMode::SingleNodeReaderOnly);
    assert!(refused(&rig, &id, EXT4, Kind::Precondition).contains("read-only"));
}

#[test]
fn a_device_that_cannot_be_read_is_refused_in_every_state() {
    let rig = Rig::new();
    let id = used(&rig, "a");
    rig.faults.clear();
    rig.faults.fail(Call::ReadDevice, When::Before);
    refused(&rig, &id, EXT4, Kind::Internal);
    rig.faults.clear();
    assert!(rig.node.stage(&rig.stage_request(id, EXT4)).is_ok());
}

#[test]
fn formatted_and_blank_foreign_or_damaged_is_refused() {
    let rig = Rig::new();
    let (blank, foreign, damaged) = (used(&rig, "blank"), used(&rig, "foreign"), used(&rig, "damaged"));
    rig.faults.clear();
    rig.write(&blank, 0, &[0; 65536]);
    rig.edit_ext4(&foreign, |superblock| superblock[0x68] ^= 0xff);
    rig.write(&damaged, 1024 + 0x20, b"x");
    assert!(refused(&rig, &blank, EXT4, Kind::Corrupt).contains("no superblock"));
    assert!(refused(&rig, &foreign, EXT4, Kind::Corrupt).contains("with UUID"));
    assert!(refused(&rig, &damaged, EXT4, Kind::Corrupt).contains("checksum"));
}

#[test]
fn formatted_and_larger_than_its_device_is_refused() {
    let rig = Rig::new();
    let id = used(&rig, "a");
    rig.faults.clear();
    rig.edit_ext4(&id, |superblock| superblock[4..8].copy_from_slice(&(8192_u32 + 1).to_le_bytes()));
    assert!(refused(&rig, &id, EXT4, Kind::Corrupt).contains("truncated"));
}

#[test]
fn formatted_as_one_filesystem_is_not_staged_as_another() {
    let rig = Rig::new();
    let id = used(&rig, "a");
    rig.faults.clear();
    let (mode, access) = (XFS.into(), AccessMode::SingleNodeMultiWriter);
    let as_xfs = GrantRequest { node: rig.node.id().clone(), mode, access, read_only: ReadOnly::No };
    rig.home.revoke(&id, None).unwrap();
    assert_eq!(rig.home.grant(&id, &as_xfs).unwrap_err().kind(), Kind::Unsupported);
    rig.grant(&id, EXT4, access);
    assert!(refused(&rig, &id, XFS, Kind::Precondition).contains("ext4"));
}

#[test]
fn raw_stays_raw() {
    let rig = Rig::new();
    let id = rig.volume_for("a", 32, &[VolumeMode::Block, EXT4], &[]);
    let request = rig.stage_request(id, VolumeMode::Block);
    assert_eq!(rig.node.stage(&request).unwrap(), Changed::Yes);
    assert_eq!(rig.node.stage(&request).unwrap(), Changed::No);
    rig.node.unstage(&id, &request.staging).unwrap();
    rig.regrant(&id, EXT4, AccessMode::SingleNodeMultiWriter);
    assert!(refused(&rig, &id, EXT4, Kind::Precondition).contains("raw"));
}

#[test]
fn formatted_is_not_given_out_raw() {
    let rig = Rig::new();
    let id = rig.volume_for("a", 32, &[EXT4, VolumeMode::Block], &[]);
    write_once(&rig, &id);
    rig.faults.clear();
    rig.regrant(&id, VolumeMode::Block, AccessMode::SingleNodeMultiWriter);
    let before = rig.bytes(&id);
    let error = rig.node.stage(&rig.stage_request(id, VolumeMode::Block)).unwrap_err();
    assert_eq!((error.kind(), rig.bytes(&id), rig.loops(&id)), (Kind::Precondition, before, 0));
}

#[test]
fn an_mkfs_that_never_ran_is_run_again_with_another_uuid() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let request = rig.stage_request(id, EXT4);
    rig.faults.fail(Call::Exec, When::Before);
    assert!(rig.node.stage(&request).is_err());
    let planned = uuid_of(rig.format(&id));
    assert!(matches!(rig.format(&id), FormatState::Formatting { .. }));
    rig.faults.clear();
    rig.node.stage(&request).unwrap();
    assert_ne!(uuid_of(rig.format(&id)), planned);
}

#[test]
fn a_finished_mkfs_whose_record_was_lost_is_checked_and_kept() {
    let rig = Rig::of(1024);
    for (name, mib, mode, check) in [("a", 32, EXT4, "e2fsck"), ("b", 320, XFS, "xfs_repair")] {
        let id = rig.volume(name, mib, mode);
        let request = rig.stage_request(id, mode);
        rig.faults.fail(Call::FlushDevice, When::Before);
        assert!(rig.node.stage(&request).is_err());
        let planned = uuid_of(rig.format(&id));
        rig.faults.clear();
        rig.node.stage(&request).unwrap();
        assert_eq!(uuid_of(rig.format(&id)), planned);
        assert_eq!((rig.faults.runs("mkfs"), rig.faults.runs(check)), (0, 1));
    }
}

#[test]
fn a_torn_mkfs_is_blanked_and_made_again() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let request = rig.stage_request(id, EXT4);
    rig.faults.fail(Call::FlushDevice, When::Before);
    assert!(rig.node.stage(&request).is_err());
    let planned = uuid_of(rig.format(&id));
    // The group descriptors never reached the device.
    rig.write(&id, 4096, &[0; 4096]);
    rig.faults.clear();
    rig.node.stage(&request).unwrap();
    assert_ne!(uuid_of(rig.format(&id)), planned);
    assert_eq!((rig.faults.runs("mkfs.ext4"), rig.faults.runs("e2fsck")), (1, 1));
}

#[test]
fn formatting_with_somebody_else_s_filesystem_is_for_a_human() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    rig.faults.fail(Call::FlushDevice, When::Before);
    assert!(rig.node.stage(&rig.stage_request(id, EXT4)).is_err());
    rig.faults.clear();
    rig.edit_ext4(&id, |superblock| superblock[0x68] ^= 0xff);
    refused(&rig, &id, EXT4, Kind::Corrupt);
}

#[test]
fn a_tool_of_a_former_life_that_still_holds_the_device_is_waited_for() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let request = rig.stage_request(id, EXT4);
    rig.faults.fail(Call::FlushDevice, When::Before);
    assert!(rig.node.stage(&request).is_err());
    rig.faults.clear();
    let opened = rig.home.open(&id, &rig.node.id).unwrap();
    let crate::home::DeviceAddress::Local { device } = opened.at else { panic!("a local volume") };
    let held = rig.os.open_exclusive(&device).unwrap().unwrap();
    let error = rig.node.stage(&request).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
    assert!(error.chain().contains("pid"), "{}", error.chain());
    drop(held);
    rig.node.stage(&request).unwrap();
}

#[test]
fn only_a_superblock_that_says_errors_is_checked() {
    let rig = Rig::new();
    let (unclean, errors) = (used(&rig, "unclean"), used(&rig, "errors"));
    rig.faults.clear();
    rig.edit_ext4(&unclean, |superblock| superblock[0x3a] &= !1);
    rig.edit_ext4(&errors, |superblock| superblock[0x3a] |= 2);
    for (id, checks) in [(unclean, 0), (errors, 1)] {
        let request = rig.stage_request(id, EXT4);
        rig.node.stage(&request).unwrap();
        assert_eq!(std::fs::read(request.staging.join("file")).unwrap(), b"precious");
        assert_eq!(rig.faults.runs("e2fsck"), checks);
    }
}

#[test]
fn errors_under_fsck_never_are_refused() {
    let rig = Rig::new();
    let id = used_with(&rig, "a", &[("fsck", "never")]);
    rig.faults.clear();
    rig.edit_ext4(&id, |superblock| superblock[0x3a] |= 2);
    assert!(refused(&rig, &id, EXT4, Kind::Precondition).contains("fsck: never"));
}

#[test]
fn a_stage_that_fails_at_any_call_can_be_asked_for_again() {
    let rig = Rig::of(1024);
    for when in [When::Before, When::After] {
        for n in 1.. {
            let id = rig.volume(&format!("{when:?}-{n}"), 16, EXT4);
            let request = rig.stage_request(id, EXT4);
            rig.faults.fail_nth(n, when);
            let first = rig.node.stage(&request);
            let fired = rig.faults.fired();
            rig.faults.clear();
            rig.node.stage(&request).unwrap_or_else(|error| panic!("{when:?} {n}, {first:?}: {}", error.chain()));
            assert_eq!(rig.depth(&request.staging), 1);
            std::fs::write(request.staging.join("file"), b"x").unwrap();
            rig.node.unstage(&id, &request.staging).unwrap();
            assert_eq!((rig.loops(&id), rig.depth(&request.staging)), (0, 0));
            rig.home.revoke(&id, None).unwrap();
            rig.home.delete_volume(&id).unwrap();
            if !fired {
                assert!(n > 15, "only {n} calls were seen");
                break;
            }
        }
    }
}
