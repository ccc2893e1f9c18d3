//! Publishing to pods: several on one node, enforced read-only, never onto the root disk, mount flags, stats.

use std::fs;
use std::path::Path;

use holdfast::csi::proto as p;
use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::volume_capability::{AccessType, MountVolume};
use tonic::Code;

use crate::harness::{
    MIB, PoolFs, Use, World, capability, check_device, check_tree, create_request, loops_on, mounts, refused,
    with_mode, write_device, write_tree,
};

fn bind_read_only(world: &World, vol: &crate::harness::Vol, pod: &str) -> std::path::PathBuf {
    let request = p::NodePublishVolumeRequest { readonly: true, ..world.bind_request(vol, pod) };
    world.node_publish_volume(request).unwrap();
    world.target(vol, pod)
}

fn with_flags(kind: Use, flags: &[&str]) -> p::VolumeCapability {
    let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let mount = MountVolume { fs_type: kind.fs_type().into(), mount_flags, ..MountVolume::default() };
    p::VolumeCapability { access_type: Some(AccessType::Mount(mount)), ..capability(kind) }
}

#[test]
fn several_pods_share_a_volume_and_a_read_only_one_cannot_write() {
    let world = World::new(PoolFs::Xfs);
    for kind in Use::FILESYSTEMS {
        let vol = world.create(kind.fs_type(), kind);
        let first = world.attach(&vol).unwrap();
        write_tree(&first, 1);
        let second = world.bind(&vol, "second").unwrap();
        let reader = bind_read_only(&world, &vol, "reader");
        check_tree(&second, 1);
        check_tree(&reader, 1);
        write_tree(&second, 2);
        check_tree(&first, 2);
        check_tree(&reader, 2);
        let error = fs::write(reader.join("x"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EROFS as i32));
        // The same path with the other flag is another publication (specification, NodePublishVolume).
        refused(world.bind(&vol, "reader"), &[Code::AlreadyExists]);
        let request = p::NodePublishVolumeRequest { readonly: true, ..world.bind_request(&vol, "second") };
        refused(world.node_publish_volume(request), &[Code::AlreadyExists]);
        world.unbind(&vol, "pod").unwrap();
        check_tree(&second, 1);
        refused(world.unstage(&vol), &[Code::FailedPrecondition, Code::Aborted]);
        check_tree(&second, 1);
        check_tree(&reader, 2);
    }
    world.finish();
}

#[test]
fn a_read_only_raw_device_cannot_be_written() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Block);
    write_device(&world.attach(&vol).unwrap(), 1, 0, 2);
    let request = p::NodePublishVolumeRequest { readonly: true, ..world.bind_request(&vol, "reader") };
    let reader = world.target(&vol, "reader");
    let refuses_writes = || {
        check_device(&reader, 1, 0, 2);
        let write = fs::File::options().write(true).open(&reader).and_then(|file| {
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 0)?;
            file.sync_all()
        });
        assert!(write.is_err(), "a pod that only reads wrote to the device");
    };
    world.node_publish_volume(request.clone()).unwrap();
    refuses_writes();
    // After a kill and a restart it stays so, and what its pod did to the device changes nothing.
    world.crash();
    refuses_writes();
    world.node_publish_volume(request).unwrap();
    refuses_writes();
    refused(world.unstage(&vol), &[Code::FailedPrecondition]);
    check_device(&world.target(&vol, "pod"), 1, 0, 2);
    write_device(&world.target(&vol, "pod"), 2, 8 << 20, 2);
    world.unbind(&vol, "pod").unwrap();
    refuses_writes();
    world.unbind(&vol, "reader").unwrap();
    world.detach(&vol);
    assert_eq!(loops_on(world.scratch.device()), Vec::new());
    world.finish();
}

#[test]
fn a_read_only_grant_is_read_only_in_every_pod() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    write_tree(&world.attach(&vol).unwrap(), 1);
    world.detach(&vol);
    let before = crate::harness::checksum(&world.image(&vol));
    let request = p::ControllerPublishVolumeRequest {
        volume_id: vol.id.clone(),
        node_id: world.node.clone(),
        volume_capability: Some(vol.capability.clone()),
        readonly: true,
        ..Default::default()
    };
    world.controller_publish_volume(request).unwrap();
    world.stage(&vol).unwrap();
    let reader = bind_read_only(&world, &vol, "reader");
    check_tree(&reader, 1);
    fs::write(reader.join("x"), "x").unwrap_err();
    world.unbind(&vol, "reader").unwrap();
    world.unstage(&vol).unwrap();
    assert_eq!(crate::harness::checksum(&world.image(&vol)), before, "a read-only use wrote to the image");
    world.finish();
}

#[test]
fn a_single_writer_volume_has_one_pod() {
    let world = World::new(PoolFs::Xfs);
    for mode in [Mode::SingleNodeSingleWriter, Mode::SingleNodeWriter] {
        for kind in [Use::Ext4, Use::Block] {
            let mut request = create_request(&format!("{mode:?}-{}", kind.fs_type()), kind, kind.size());
            request.volume_capabilities = vec![with_mode(kind, mode)];
            let vol = world.try_create(kind, &request).unwrap();
            world.attach(&vol).unwrap();
            world.bind(&vol, "pod").unwrap();
            refused(world.bind(&vol, "second"), &[Code::FailedPrecondition]);
            assert!(!world.target(&vol, "second").exists(), "a refused publish left its target");
            world.unbind(&vol, "pod").unwrap();
            world.bind(&vol, "second").unwrap();
        }
    }
    world.finish();
}

#[test]
fn kubernetes_120455_publish_without_stage_writes_nothing_to_the_root_disk() {
    let world = World::new(PoolFs::Xfs);
    for kind in Use::FILESYSTEMS {
        let vol = world.create(kind.fs_type(), kind);
        let refuse = |world: &World| {
            refused(world.bind(&vol, "pod"), &[Code::FailedPrecondition]);
            assert!(mounts().at(&world.target(&vol, "pod")).is_none());
            assert!(!world.target(&vol, "pod").exists());
        };
        refuse(&world);
        world.publish(&vol).unwrap();
        refuse(&world);
        world.stage(&vol).unwrap();
        world.unstage(&vol).unwrap();
        refuse(&world);
        let without =
            p::NodePublishVolumeRequest { staging_target_path: String::new(), ..world.bind_request(&vol, "pod") };
        refused(world.node_publish_volume(without), &[Code::FailedPrecondition]);
        // Another volume's staging path is not this volume's.
        let other = world.create(&format!("other-{}", kind.fs_type()), kind);
        world.attach(&other).unwrap();
        let staging_target_path = world.staging(&other).to_str().unwrap().to_owned();
        let crossed = p::NodePublishVolumeRequest { staging_target_path, ..world.bind_request(&vol, "pod") };
        refused(world.node_publish_volume(crossed), &[Code::FailedPrecondition]);
        refuse(&world);
    }
    world.finish();
}

#[test]
fn what_is_at_the_target_and_not_ours_stays() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    world.publish(&vol).unwrap();
    world.stage(&vol).unwrap();
    let target = world.target(&vol, "pod");
    fs::create_dir_all(&target).unwrap();
    fs::write(target.join("precious"), "x").unwrap();
    // Unpublish removes what publish created, never a tree (moosefs-csi#34).
    let _ = world.unbind(&vol, "pod");
    assert!(target.join("precious").exists());
    fs::remove_file(target.join("precious")).unwrap();
    world.bind(&vol, "pod").unwrap();
    write_tree(&target, 1);
    check_tree(&world.staging(&vol), 1);
    world.finish();
}

#[test]
fn mount_flags_are_taken_from_a_list_and_nothing_else() {
    let world = World::new(PoolFs::Xfs);
    for (kind, flags, seen) in [
        (Use::Ext4, &["noatime", "commit=30", "nosuid"][..], &["noatime", "commit=30", "nosuid"][..]),
        (Use::Xfs, &["noatime,allocsize=1024k", "nodev"][..], &["noatime", "allocsize=1024k", "nodev"][..]),
    ] {
        let name = kind.fs_type();
        let vol = world.create(name, kind).with(with_flags(kind, flags));
        let path = world.attach(&vol).unwrap();
        let table = mounts();
        let entry = table.at(&path).unwrap();
        for option in seen {
            let all = || entry.options.iter().chain(&entry.super_options);
            assert!(all().any(|has| has == option), "{option} is missing: {entry:?}");
        }
        assert!(kind != Use::Xfs || entry.super_options.iter().any(|option| option == "nouuid"), "{entry:?}");
        // Other flags make it another stage.
        let other = vol.with(with_flags(kind, &["noexec"]));
        refused(world.stage(&other), &[Code::AlreadyExists]);
        write_tree(&path, 1);
        for flag in [
            "noload",
            "norecovery",
            "errors=continue",
            "nobarrier",
            "data=writeback",
            "loop",
            "bind",
            "remount",
            "move",
            "subvol=x",
            "noatime\nrw",
            "x-y",
            "../..",
            "sb=1",
            "logdev=/dev/loop0",
            "journal_path=/x",
        ] {
            let vol = vol.with(with_flags(kind, &[flag]));
            let said = refused(world.stage(&vol), &[Code::InvalidArgument]);
            assert!(!said.contains(flag), "mount flags may be sensitive: {said}");
            refused(world.bind(&vol, "flags"), &[Code::InvalidArgument]);
            let mut request = create_request("flags", kind, kind.size());
            request.volume_capabilities = vec![vol.capability.clone()];
            refused(world.create_volume(request), &[Code::InvalidArgument]);
        }
        check_tree(&path, 1);
    }
    world.finish();
}

#[test]
fn stats_tell_what_a_pod_sees() {
    let world = World::new(PoolFs::Xfs);
    let stats = |volume_id: &str, path: &Path| {
        let volume_path = path.to_str().unwrap().into();
        let request = p::NodeGetVolumeStatsRequest { volume_id: volume_id.into(), volume_path, ..Default::default() };
        world.node_get_volume_stats(request).map(|answer| answer.usage)
    };
    for kind in Use::FILESYSTEMS {
        let vol = world.create(kind.fs_type(), kind);
        let path = world.attach(&vol).unwrap();
        let before = stats(&vol.id, &path).unwrap();
        write_tree(&path, 1);
        let after = stats(&vol.id, &path).unwrap();
        let unit = |usage: &[p::VolumeUsage], unit: p::volume_usage::Unit| {
            usage.iter().find(|usage| usage.unit() == unit).cloned().unwrap()
        };
        use p::volume_usage::Unit;
        let (old, new) = (unit(&before, Unit::Bytes), unit(&after, Unit::Bytes));
        assert!(new.used >= old.used + 3 * MIB && new.available <= old.available - 3 * MIB, "{old:?} {new:?}");
        assert!(new.total > vol.size / 2 && new.total <= vol.size, "{new:?}");
        let (old, new) = (unit(&before, Unit::Inodes), unit(&after, Unit::Inodes));
        assert!(new.used >= old.used + 6 && new.total > 0, "{old:?} {new:?}");
        assert_eq!(stats(&vol.id, &world.staging(&vol)).unwrap().len(), 2);
        for place in ["/nowhere", "/tmp", "some/path"] {
            refused(stats(&vol.id, Path::new(place)), &[Code::NotFound]);
        }
        refused(stats("fake-vol-id", &path), &[Code::NotFound]);
        refused(stats(&vol.id, Path::new("")), &[Code::InvalidArgument]);
        refused(stats("", &path), &[Code::InvalidArgument]);
    }
    let raw = world.create("raw", Use::Block);
    let usage = stats(&raw.id, &world.attach(&raw).unwrap()).unwrap();
    assert_eq!((usage.len(), usage[0].total), (1, raw.size), "{usage:?}");
    world.finish();
}

#[test]
fn unstage_and_unpublish_of_what_is_gone_are_ok() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    world.unstage(&vol).unwrap();
    world.unbind(&vol, "pod").unwrap();
    world.delete(&vol).unwrap();
    world.unstage(&vol).unwrap();
    world.unbind(&vol, "pod").unwrap();
    let target_path = world.scratch.path().join("nothing").to_str().unwrap().to_owned();
    // kubernetes#101911: an unknown id must not keep the kubelet in a loop.
    let other_pool = "hf1_0123456789abcdef_0123456789abcdef0123456789abcdef".to_owned();
    for volume_id in [other_pool, vol.id.replacen(vol.uuid(), "0123456789abcdef0123456789abcdef", 1)] {
        let request = p::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path: target_path.clone() };
        world.node_unpublish_volume(request).unwrap();
        let request = p::NodeUnstageVolumeRequest { volume_id, staging_target_path: target_path.clone() };
        world.node_unstage_volume(request).unwrap();
    }
    world.finish();
}

#[test]
fn paths_with_spaces_and_backslashes_are_just_paths() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    world.publish(&vol).unwrap();
    let base = world.scratch.path().join("a b\\c#d\u{e9}\t");
    fs::create_dir_all(base.join("stage")).unwrap();
    let staging_target_path = base.join("stage").to_str().unwrap().to_owned();
    let target_path = base.join("target").to_str().unwrap().to_owned();
    let stage =
        p::NodeStageVolumeRequest { staging_target_path: staging_target_path.clone(), ..world.stage_request(&vol) };
    let bind = p::NodePublishVolumeRequest {
        staging_target_path: staging_target_path.clone(),
        target_path: target_path.clone(),
        ..world.bind_request(&vol, "pod")
    };
    for _ in 0..2 {
        world.node_stage_volume(stage.clone()).unwrap();
        world.node_publish_volume(bind.clone()).unwrap();
    }
    write_tree(Path::new(&target_path), 1);
    assert_eq!(mounts().depth(Path::new(&target_path)), 1);
    let volume_id = vol.id.clone();
    world.node_unpublish_volume(p::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path }).unwrap();
    world.node_unstage_volume(p::NodeUnstageVolumeRequest { volume_id, staging_target_path }).unwrap();
    world.finish();
}

#[test]
fn a_raw_publish_that_is_refused_keeps_no_device() {
    let world = World::new(PoolFs::Xfs);
    let (raw, other) = (world.create("raw", Use::Block), world.create("other", Use::Ext4));
    let taken = world.attach(&other).unwrap();
    world.publish(&raw).unwrap();
    world.stage(&raw).unwrap();
    world.unstage(&raw).unwrap();
    let mut request = world.bind_request(&raw, "pod");
    request.target_path = taken.to_str().unwrap().into();
    refused(world.node_publish_volume(request), &[Code::AlreadyExists]);
    world.unpublish(&raw).unwrap();
    world.delete(&raw).unwrap();
    std::fs::remove_dir_all(world.staging(&raw)).unwrap();
    world.finish();
}
