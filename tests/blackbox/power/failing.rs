//! Reads that fail, are slow or return too few bytes: a device that cannot be read is refused, never treated as blank.

use std::fs::File;
use std::ops::Range;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tonic::Code;

use crate::harness::{HeldTool, PoolFs, Use, World, check_tree, checksum, write_tree};

use super::interrupted::place;
use super::layer::Fault;
use super::recorded;

/// A stage may be refused with these codes, and retried.
const REFUSED: &[Code] = &[Code::Aborted, Code::Internal, Code::FailedPrecondition];

fn formatted_volumes(pool: PoolFs) {
    let (world, layer, _) = recorded(pool, 2 << 30);
    let tools = ["mkfs.ext4", "mkfs.xfs"].map(|tool| HeldTool::new(&world.scratch, tool));
    let runs = || tools.iter().map(|tool| tool.calls().iter().filter(|call| call.contains("/dev/loop")).count()).sum();
    let mut points = 0;
    for kind in Use::FILESYSTEMS {
        let vol = world.create(kind.fs_type(), kind);
        write_tree(&world.attach(&vol).unwrap(), 1);
        world.detach(&vol);
        world.publish(&vol).unwrap();
        let (image, before): (_, usize) = (world.image(&vol), runs());
        let (whole, record) = (place(&image), world.record(&vol));
        let part = |from: u64, to: u64| whole.start + from..whole.start + to;
        let sums = checksum(&image);
        let heads = [part(0, 4096), part(4096, 8192), part(0, 32768), part(28672, 32768), whole.clone()];
        for range in heads {
            layer.fault(Some(Fault::FailReads(range.clone())));
            let said = crate::harness::refused(world.stage(&vol), REFUSED);
            assert!(layer.hits() > 0, "{range:?}: nothing failed");
            assert!(said.contains("cannot read") && said.contains("its content is unknown"), "{range:?}: {said}");
            points += 1;
        }
        layer.fault(None);
        assert_eq!(checksum(&image), sums, "something was written");
        let others: [Fault; 4] = [
            Fault::FailReads(part(32768, whole.end - whole.start)),
            Fault::ShortReads(part(0, 4096)),
            Fault::ShortReads(whole.clone()),
            Fault::SlowReads(whole.clone(), Duration::from_millis(50)),
        ];
        for fault in others {
            layer.fault(Some(fault.clone()));
            // It may be served or refused: the bytes were right, late, or an error. It is never formatted again.
            match world.stage(&vol) {
                Ok(()) => world.unstage(&vol).unwrap(),
                Err(status) => assert!(REFUSED.contains(&status.code()), "{fault:?}: {status:?}"),
            }
            assert!(layer.hits() > 0, "{fault:?}: nothing happened");
            points += 1;
        }
        layer.fault(None);
        assert_eq!(world.record(&vol), record);
        assert_eq!(runs(), before, "mkfs was run");
        check_tree(&world.attach(&vol).unwrap(), 1);
        world.detach(&vol);
    }
    eprintln!("reads that fail, formatted volumes, pool on {pool:?}: {points} points");
    world.finish();
    layer.into_log();
}

#[test]
fn a_formatted_volume_that_cannot_be_read_is_refused_and_never_formatted_on_xfs() {
    formatted_volumes(PoolFs::Xfs);
}

#[test]
fn a_formatted_volume_that_cannot_be_read_is_refused_and_never_formatted_on_ext4() {
    formatted_volumes(PoolFs::Ext4);
}

#[test]
fn a_volume_never_formatted_that_holds_data_nobody_can_read_is_not_blank() {
    let (world, layer, _) = recorded(PoolFs::Xfs, 2 << 30);
    let held = HeldTool::new(&world.scratch, "mkfs.ext4");
    let vol = world.create("vol", Use::Ext4);
    let image = world.image(&vol);
    let file = File::options().write(true).open(&image).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"precious", 20 << 20).unwrap();
    file.sync_all().unwrap();
    let before = checksum(&image);
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    drop(file);
    world.publish(&vol).unwrap();
    layer.fault(Some(Fault::FailReads(place(&image))));
    let said = crate::harness::refused(world.stage(&vol), REFUSED);
    assert!(said.contains("at byte 20971520"), "{said}");
    layer.fault(None);
    assert_eq!(checksum(&image), before, "something was written");
    assert_eq!(world.record(&vol)["format"]["state"], "never");
    assert!(!held.calls().iter().any(|call| call.contains("/dev/loop")), "{:?}", held.calls());
    world.finish();
    layer.into_log();
}

#[test]
fn a_record_that_cannot_be_read_is_no_record_that_is_missing() {
    for pool in [PoolFs::Xfs, PoolFs::Ext4] {
        let (mut world, layer, _) = recorded(pool, 2 << 30);
        let vol = world.create("vol", Use::Ext4);
        write_tree(&world.attach(&vol).unwrap(), 1);
        world.detach(&vol);
        let record = world.image(&vol).with_file_name("volume.json");
        let place: Range<u64> = place(&record);
        let unread = |world: &World| {
            posix_fadvise(File::open(&record).unwrap(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            let before = layer.hits();
            let said = [
                world.publish(&vol).unwrap_err(),
                world.delete(&vol).unwrap_err(),
                world.try_create(Use::Ext4, &crate::harness::create_request("vol", Use::Ext4, vol.size)).unwrap_err(),
            ];
            assert!(layer.hits() > before, "nothing failed");
            for status in &said {
                assert_ne!(status.code(), Code::NotFound, "{status:?}");
            }
            assert!(!matches!(said[2].code(), Code::Internal | Code::Unknown | Code::FailedPrecondition), "{said:?}");
        };
        layer.fault(Some(Fault::FailReads(place.clone())));
        unread(&world);
        posix_fadvise(File::open(&record).unwrap(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        world.crash();
        unread(&world);
        layer.fault(None);
        check_tree(&world.attach(&vol).unwrap(), 1);
        world.finish();
        layer.into_log();
    }
}
