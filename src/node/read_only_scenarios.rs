//! Raw block volumes in pods with read-only access: they get a device that rejects writes, whatever else happens to it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::home::{Changed, GrantRequest, Home, ReadOnly};
use crate::os::{Call, DevNum, LoopAccess, LoopConfig};
use crate::testing::rig::{EXT4, Rig, When, kind};
use crate::testing::scratch::home as node_id;
use crate::types::{AccessMode, Bytes, CapacityRange, Kind, VolumeId, VolumeMode};

const BLOCK: VolumeMode = VolumeMode::Block;

fn staged(rig: &Rig, name: &str) -> VolumeId {
    let id = rig.volume(name, 32, BLOCK);
    rig.node.stage(&rig.stage_request(id, BLOCK)).unwrap();
    id
}

/// The path of a pod with read-only access.
fn reader(rig: &Rig, id: VolumeId, pod: &str) -> PathBuf {
    let request = super::PublishRequest { read_only: ReadOnly::Yes, ..rig.publish_request(id, BLOCK, pod) };
    assert_eq!(rig.node.publish(&request).unwrap(), Changed::Yes);
    assert_eq!(rig.node.publish(&request).unwrap(), Changed::No, "published again");
    request.target
}

fn writer(rig: &Rig, id: VolumeId, pod: &str) -> PathBuf {
    let request = rig.publish_request(id, BLOCK, pod);
    rig.node.publish(&request).unwrap();
    request.target
}

fn device_at(path: &Path) -> DevNum {
    DevNum::from_dev_t(fs::metadata(path).unwrap().rdev())
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let device = OpenOptions::new().write(true).open(path)?;
    device.write_all_at(bytes, 0)?;
    device.sync_all()
}

/// Bypasses the page cache.
fn first_bytes(rig: &Rig, path: &Path) -> Vec<u8> {
    let device = rig.os.open_device_to_read(path).unwrap();
    rig.os.read_device_direct(&device, 0, 4096).unwrap()[..4].to_vec()
}

/// Loop devices over the volume's loop device.
fn views(rig: &Rig, id: &VolumeId) -> usize {
    let Some(device) = rig.home.device_of(id).unwrap() else { return 0 };
    rig.os.loop_views(|backing| backing == device.path).unwrap().len()
}

fn end(rig: &Rig, id: &VolumeId) {
    rig.node.unstage(id, &rig.staging(id)).unwrap();
    rig.home.revoke(id, None).unwrap();
    assert_eq!(rig.home.delete_volume(id).unwrap(), Changed::Yes);
}

#[test]
fn a_pod_that_may_only_read_sees_what_others_write_and_writes_nothing() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let writing = writer(&rig, id, "writer");
    write(&writing, b"mine").unwrap();
    let reading = reader(&rig, id, "reader");
    assert_ne!(device_at(&reading), device_at(&writing));
    assert_eq!(first_bytes(&rig, &reading), b"mine");
    assert!(write(&reading, b"evil").is_err(), "the kernel refuses it");
    assert!(
        OpenOptions::new().write(true).open(&reading).and_then(|device| device.write_all_at(b"evil", 4096)).is_err()
    );
    // Both at the same time, the same volume.
    write(&writing, b"more").unwrap();
    assert_eq!(first_bytes(&rig, &reading), b"more");
    // A second pod shares the view; the last one removes it.
    let second = reader(&rig, id, "second");
    assert_eq!((device_at(&second), views(&rig, &id)), (device_at(&reading), 1));
    assert_eq!(rig.node.unpublish(&id, &reading).unwrap(), Changed::Yes);
    assert_eq!((views(&rig, &id), first_bytes(&rig, &second)), (1, b"more".to_vec()));
    assert_eq!(rig.node.unpublish(&id, &second).unwrap(), Changed::Yes);
    assert_eq!(views(&rig, &id), 0, "removed after its last pod");
    write(&writing, b"last").unwrap();
    assert_eq!(rig.node.unpublish(&id, &writing).unwrap(), Changed::Yes);
    end(&rig, &id);
}

#[test]
fn the_order_in_which_pods_come_and_go_does_not_matter() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let reading = reader(&rig, id, "reader");
    let writing = writer(&rig, id, "writer");
    write(&writing, b"mine").unwrap();
    rig.node.unpublish(&id, &writing).unwrap();
    assert_eq!(first_bytes(&rig, &reading), b"mine");
    // In use, so it is neither unstaged nor deleted.
    assert_eq!(kind(rig.node.unstage(&id, &rig.staging(&id))), Kind::InUse);
    assert_eq!(kind(rig.home.delete_volume(&id)), Kind::InUse);
    let writing = writer(&rig, id, "writer");
    rig.node.unpublish(&id, &reading).unwrap();
    write(&writing, b"more").unwrap();
    rig.node.unpublish(&id, &writing).unwrap();
    end(&rig, &id);
}

#[test]
fn a_target_is_not_turned_from_writable_to_read_only_or_back() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let writing = rig.publish_request(id, BLOCK, "pod");
    rig.node.publish(&writing).unwrap();
    let reading = super::PublishRequest { read_only: ReadOnly::Yes, ..writing.clone() };
    assert_eq!(kind(rig.node.publish(&reading)), Kind::AlreadyExists);
    assert_eq!(views(&rig, &id), 0, "a publish that is refused leaves no view");
    rig.node.unpublish(&id, &writing.target).unwrap();
    rig.node.publish(&reading).unwrap();
    assert_eq!(kind(rig.node.publish(&writing)), Kind::AlreadyExists);
    assert!(write(&reading.target, b"evil").is_err());
    rig.node.unpublish(&id, &reading.target).unwrap();
    end(&rig, &id);
}

#[test]
fn an_attachment_to_read_only_gives_every_pod_a_device_that_refuses_writes() {
    let rig = Rig::new();
    for (name, access, read_only) in [
        ("flag", AccessMode::SingleNodeMultiWriter, ReadOnly::Yes),
        ("mode", AccessMode::SingleNodeReaderOnly, ReadOnly::No),
    ] {
        let id = rig.volume(name, 32, BLOCK);
        rig.home.revoke(&id, None).unwrap();
        rig.home.grant(&id, &GrantRequest { node: node_id(), mode: BLOCK.into(), access, read_only }).unwrap();
        let stage = super::StageRequest { access, ..rig.stage_request(id, BLOCK) };
        rig.node.stage(&stage).unwrap();
        let publish = super::PublishRequest { access, ..rig.publish_request(id, BLOCK, &format!("pod-{name}")) };
        rig.node.publish(&publish).unwrap();
        assert!(write(&publish.target, b"evil").is_err(), "{name}");
        rig.node.unpublish(&id, &publish.target).unwrap();
        end(&rig, &id);
    }
}

#[test]
fn pods_that_only_read_outlive_the_driver_and_what_a_crash_left_is_removed() {
    let mut rig = Rig::new();
    let id = staged(&rig, "a");
    let reading = reader(&rig, id, "reader");
    let number = device_at(&reading);
    // A pod can set the autoclear flag of a loop device; its last user is the driver.
    rig.shell(&format!("losetup -d {}", reading.display()));
    rig.node.keep_devices();
    rig.reopen();
    assert_eq!((views(&rig, &id), first_bytes(&rig, &reading)), (1, vec![0; 4]));
    assert!(rig.node.raw.holds(&id), "the volume's own device too");
    let request = super::PublishRequest { read_only: ReadOnly::Yes, ..rig.publish_request(id, BLOCK, "reader") };
    assert_eq!(rig.node.publish(&request).unwrap(), Changed::No);
    assert_eq!(device_at(&reader(&rig, id, "second")), number);
    // Killed between the last unmount and the removal.
    for pod in ["reader", "second"] {
        rig.os.unmount(&rig.path(pod)).unwrap();
    }
    assert_eq!(views(&rig, &id), 1);
    rig.reopen();
    assert_eq!(views(&rig, &id), 0);
    for pod in ["reader", "second"] {
        rig.node.unpublish(&id, &rig.path(pod)).unwrap();
    }
    end(&rig, &id);
}

#[test]
fn the_number_of_a_removed_view_is_free_and_nobody_is_blamed_for_its_next_user() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let reading = reader(&rig, id, "reader");
    let number = device_at(&reading);
    rig.node.unpublish(&id, &reading).unwrap();
    // Until other volumes have the number: as a mounted device, or as their own or their read-only device in a pod.
    let mut others = Vec::new();
    for n in 0..6 {
        let other = staged(&rig, &format!("other-{n}"));
        others.push((other, writer(&rig, other, &format!("writer-{n}"))));
        others.push((other, reader(&rig, other, &format!("reader-{n}"))));
    }
    let reused = others.iter().any(|(_, target)| device_at(target) == number);
    assert!(reused || rig.os.loop_of(number).unwrap().is_some_and(|now| rig.os.loop_view(now).unwrap().is_some()));
    end(&rig, &id);
    for (other, target) in others {
        rig.node.unpublish(&other, &target).unwrap();
    }
}

#[test]
fn a_view_that_the_process_does_not_know_is_removed_with_its_volume() {
    let mut rig = Rig::new();
    let id = staged(&rig, "a");
    let reading = reader(&rig, id, "reader");
    // The pool is not served when the process starts, so nobody knows whose the view is.
    rig.without_pool();
    assert_eq!(rig.node.unpublish(&id, &reading).unwrap(), Changed::Yes);
    assert!(!reading.exists());
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
    assert_eq!(rig.loops(&id), 0, "neither the volume's device nor the view holds the image");
    rig.reopen();
    assert_eq!(rig.home.revoke(&id, None).unwrap(), Changed::Yes);
    assert_eq!(rig.home.delete_volume(&id).unwrap(), Changed::Yes);
}

#[test]
fn a_view_that_got_another_file_is_known_by_its_sequence_number_and_removed() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let reading = reader(&rig, id, "reader");
    // LOOP_CHANGE_FD, which wants a read-only device and a file of the same size.
    let image = rig.path("of-a-pod");
    let file = fs::File::create(&image).unwrap();
    file.set_len(32 << 20).unwrap();
    rig.os.change_loop(&reading, &image).unwrap();
    let second = super::PublishRequest { read_only: ReadOnly::Yes, ..rig.publish_request(id, BLOCK, "second") };
    let refused = rig.node.publish(&second).unwrap_err();
    assert!(refused.to_string().contains("changed its backing file"), "{refused}");
    rig.node.unpublish(&id, &reading).unwrap();
    let left = rig.os.loop_views(|backing| backing == image.canonicalize().unwrap()).unwrap();
    assert_eq!(left, [], "the pod's file is free");
    rig.node.publish(&second).unwrap();
    rig.node.unpublish(&id, &second.target).unwrap();
    end(&rig, &id);
}

#[test]
fn a_view_that_its_pod_detached_never_shows_another_volume() {
    let mut rig = Rig::new();
    let id = staged(&rig, "a");
    let reading = reader(&rig, id, "reader");
    let number = device_at(&reading);
    rig.shell(&format!("losetup -d {}", reading.display()));
    // Killed: the open descriptor is closed, and the view disappears.
    rig.reopen();
    let view = rig.os.loop_of(number).unwrap().and_then(|device| rig.os.loop_view(device).unwrap());
    // A concurrent test may have the number already, but over an image.
    assert!(view.as_ref().is_none_or(|view| view.below().is_none()), "it was detached: {view:?}");
    let other = rig.volume("b", 32, EXT4);
    rig.node.stage(&rig.stage_request(other, EXT4)).unwrap();
    let raw = staged(&rig, "c");
    let more = reader(&rig, raw, "more");
    for device in [rig.home.device_of(&other), rig.home.device_of(&raw)] {
        assert_ne!(device.unwrap().unwrap().number, number, "the pod of a would see it");
    }
    assert_ne!(device_at(&more), number);
    // Another program took the number: the path is still removed, because the record has its owner.
    let image = rig.path("another-program");
    fs::write(&image, vec![1; 1 << 20]).unwrap();
    // Any other program: a concurrent test may have been faster.
    let (node, image) = (format!("/dev/loop{}", number.minor), image.display().to_string());
    rig.shell(&format!("losetup {node} {image} || losetup {node}"));
    assert_eq!(rig.node.unpublish(&id, &reading).unwrap(), Changed::Yes);
    rig.shell(&format!("losetup -j {image} | while IFS=: read device _; do losetup -d $device; done"));
    let again = reader(&rig, id, "again");
    assert_eq!(first_bytes(&rig, &again), vec![0; 4]);
    rig.node.unpublish(&id, &again).unwrap();
    rig.node.unpublish(&raw, &more).unwrap();
    rig.node.unstage(&other, &rig.staging(&other)).unwrap();
    end(&rig, &id);
    end(&rig, &raw);
}

#[test]
fn a_view_that_its_pod_turned_to_something_else_is_not_given_to_another_pod() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let reading = reader(&rig, id, "reader");
    rig.os.shift_loop(&reading, 4096).unwrap();
    let second = super::PublishRequest { read_only: ReadOnly::Yes, ..rig.publish_request(id, BLOCK, "second") };
    let refused = rig.node.publish(&second).unwrap_err();
    assert_eq!(refused.kind(), Kind::Precondition);
    assert!(refused.to_string().contains("changed its settings"), "{refused}");
    rig.node.unpublish(&id, &reading).unwrap();
    rig.node.publish(&second).unwrap();
    assert_eq!(rig.os.device_size_shown(device_at(&second.target)).unwrap(), 32 << 20);
    rig.node.unpublish(&id, &second.target).unwrap();
    end(&rig, &id);
}

#[test]
fn it_grows_with_its_volume() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let reading = reader(&rig, id, "reader");
    rig.home.expand(&id, &CapacityRange { required: Some(Bytes::mib(48)), limit: None }).unwrap();
    rig.node.expand(&rig.expand_request(id, &reading)).unwrap();
    assert_eq!(rig.os.device_size_shown(device_at(&reading)).unwrap(), 48 << 20);
    // A view that was not resized: the next pod finds the new size.
    rig.home.expand(&id, &CapacityRange { required: Some(Bytes::mib(64)), limit: None }).unwrap();
    let second = reader(&rig, id, "second");
    assert_eq!(rig.os.device_size_shown(device_at(&second)).unwrap(), 64 << 20);
    for target in [&reading, &second] {
        rig.node.unpublish(&id, target).unwrap();
    }
    end(&rig, &id);
}

#[test]
fn an_administrator_s_read_only_loop_device_is_left_alone() {
    let mut rig = Rig::new();
    let id = staged(&rig, "a");
    let device = rig.home.device_of(&id).unwrap().unwrap();
    let below = rig.os.open_device(&device.path).unwrap();
    let config = LoopConfig {
        block_size: 4096,
        name: "an administrator".into(),
        owner: "an administrator".into(),
        discard: crate::os::Discard::Off,
        access: LoopAccess::ReadOnly,
    };
    let theirs = rig.os.loop_attach_over(&below, &config).unwrap();
    drop(below);
    rig.reopen();
    let status = rig.os.loop_status(theirs).unwrap().expect("still attached");
    assert!(status.shows_device(device.number) && status.read_only);
    let refused = rig.node.unstage(&id, &rig.staging(&id)).unwrap_err();
    assert_eq!(refused.kind(), Kind::InUse);
    assert!(refused.to_string().contains(&theirs.path().display().to_string()), "{refused}");
    assert!(rig.os.loop_clear(&status).unwrap());
    end(&rig, &id);
}

/// A device that is identified by its sequence number alone, because its image cannot be queried.
#[test]
fn a_device_that_a_process_has_open_is_not_reported_as_detached() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let reading = reader(&rig, id, "reader");
    let device = rig.os.loop_of(device_at(&reading)).unwrap().unwrap();
    let view = || rig.os.loop_view(device).unwrap().expect("still attached");
    assert!(!rig.os.loop_clear(&view().unasked()).unwrap());
    assert!(!view().autoclear, "it stays when its last user closes it");
    rig.node.unpublish(&id, &reading).unwrap();
    end(&rig, &id);
}

#[test]
fn any_call_of_a_publish_to_read_may_fail_and_nothing_is_left() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let request = super::PublishRequest { read_only: ReadOnly::Yes, ..rig.publish_request(id, BLOCK, "reader") };
    for when in [When::Before, When::After] {
        for call in 1.. {
            rig.faults.fail_nth(call, when);
            let published = rig.node.publish(&request);
            let fired = rig.faults.fired();
            rig.faults.clear();
            if published.is_err() {
                // The bind mount may exist although it returned an error: then its view stays.
                let bound = usize::from(rig.depth(&request.target) > 0);
                assert_eq!(views(&rig, &id), bound, "call {call}, {when:?}: {published:?}");
                rig.node.publish(&request).unwrap();
            }
            assert!(write(&request.target, b"evil").is_err());
            rig.faults.fail_nth(call, when);
            let unpublished = rig.node.unpublish(&id, &request.target);
            rig.faults.clear();
            if unpublished.is_err() {
                rig.node.unpublish(&id, &request.target).unwrap();
            }
            assert_eq!(views(&rig, &id), 0, "call {call}, {when:?}: {unpublished:?}");
            if !fired {
                break;
            }
        }
    }
    // The view cannot be removed: the pod's path is removed anyway, and the view by the next call that can.
    rig.node.publish(&request).unwrap();
    rig.faults.fail(Call::LoopClear, When::Before);
    rig.node.unpublish(&id, &request.target).unwrap_err();
    rig.faults.clear();
    rig.node.unpublish(&id, &request.target).unwrap();
    assert_eq!(views(&rig, &id), 0);
    end(&rig, &id);
}
