//! Stage, publish, expand, stats and the way back, on a real kernel: repeats, wrong orders, dead filesystems, remains.

use std::io::Write;
use std::os::unix::fs::FileExt;

use super::Stats;
use crate::fs::RequestedOptions;
use crate::home::{Changed, Home, ReadOnly};
use crate::os::MountFlags;
use crate::testing::rig::{EXT4, Rig, XFS, kind, staged};
use crate::types::{AccessMode, Bytes, CapacityRange, Kind, VolumeMode};

fn options(flags: &[&str]) -> RequestedOptions {
    RequestedOptions::new(flags.iter().map(|flag| (*flag).to_owned()).collect())
}

#[test]
fn a_pod_writes_and_the_next_one_reads() {
    let mut rig = Rig::new();
    let id = staged(&rig, "a");
    let request = rig.publish_request(id, EXT4, "pod-1/mount");
    assert_eq!(rig.node.publish(&request).unwrap(), Changed::Yes);
    assert_eq!(rig.node.publish(&request).unwrap(), Changed::No);
    assert_eq!(rig.depth(&request.target), 1);
    std::fs::write(request.target.join("file"), b"x").unwrap();
    rig.restart();
    assert_eq!(rig.node.unpublish(&id, &request.target).unwrap(), Changed::Yes);
    assert_eq!(rig.node.unpublish(&id, &request.target).unwrap(), Changed::No);
    assert!(!request.target.exists());
    assert_eq!(rig.node.unstage(&id, &rig.staging(&id)).unwrap(), Changed::Yes);
    assert_eq!(rig.node.unstage(&id, &rig.staging(&id)).unwrap(), Changed::No);
    rig.node.stage(&rig.stage_request(id, EXT4)).unwrap();
    let request = rig.publish_request(id, EXT4, "pod-2/mount");
    rig.node.publish(&request).unwrap();
    assert_eq!(std::fs::read(request.target.join("file")).unwrap(), b"x");
    rig.node.unpublish(&id, &request.target).unwrap();
}

#[test]
fn nothing_is_bound_from_a_directory_that_is_no_live_mount() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let request = rig.publish_request(id, EXT4, "pod/mount");
    assert_eq!(kind(rig.node.publish(&request)), Kind::Precondition);
    assert!(!request.target.exists());
    let unstaged = super::PublishRequest { staging: None, ..request };
    assert_eq!(kind(rig.node.publish(&unstaged)), Kind::Precondition);
}

#[test]
fn a_read_only_pod_cannot_write_and_the_flags_of_the_stage_stay() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let stage = super::StageRequest { mount: options(&["nosuid", "noatime"]), ..rig.stage_request(id, EXT4) };
    rig.node.stage(&stage).unwrap();
    assert_eq!(rig.node.stage(&stage).unwrap(), Changed::No);
    let request = rig.publish_request(id, EXT4, "pod/mount");
    let read_only = super::PublishRequest { read_only: ReadOnly::Yes, ..request.clone() };
    rig.node.publish(&read_only).unwrap();
    let error = std::fs::write(request.target.join("file"), b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let table = rig.os.mounts().unwrap();
    let has = |flag: &str| table.at(&request.target).unwrap().options.iter().any(|option| option == flag);
    assert!(has("ro") && has("nosuid") && has("noatime"));
    assert_eq!(kind(rig.node.publish(&request)), Kind::AlreadyExists);
    assert_eq!(rig.node.publish(&read_only).unwrap(), Changed::No);
    std::fs::write(stage.staging.join("file"), b"x").unwrap();
}

#[test]
fn one_writer_means_one_target_and_many_means_many() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let one = |target| super::PublishRequest {
        access: AccessMode::SingleNodeSingleWriter,
        ..rig.publish_request(id, EXT4, target)
    };
    rig.node.publish(&one("pod-1")).unwrap();
    assert_eq!(rig.node.publish(&one("pod-1")).unwrap(), Changed::No);
    assert_eq!(kind(rig.node.publish(&one("pod-2"))), Kind::Precondition);
    assert!(!rig.path("pod-2").exists());
    rig.node.publish(&rig.publish_request(id, EXT4, "pod-3")).unwrap();
}

#[test]
fn staging_the_same_again_is_success_and_another_way_is_not() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let request = rig.stage_request(id, EXT4);
    assert_eq!(rig.node.stage(&request).unwrap(), Changed::No);
    for other in [&["commit=30"] as &[&str], &["sync"], &["noexec"], &["ro"]] {
        let other = super::StageRequest { mount: options(other), ..request.clone() };
        assert_eq!(kind(rig.node.stage(&other)), Kind::AlreadyExists, "{other:?}");
    }
    rig.node.unstage(&id, &request.staging).unwrap();
    let with =
        super::StageRequest { mount: options(&["commit=30,lazytime", "data=journal", "discard"]), ..request.clone() };
    assert_eq!(rig.node.stage(&with).unwrap(), Changed::Yes);
    assert_eq!(rig.node.stage(&with).unwrap(), Changed::No);
    assert_eq!(kind(rig.node.stage(&request)), Kind::AlreadyExists);
    assert_eq!(rig.depth(&request.staging), 1);
}

#[test]
fn what_somebody_else_mounted_is_left_alone() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let request = rig.stage_request(id, EXT4);
    rig.os.mount("none".as_ref(), &request.staging, "tmpfs", MountFlags::default(), "").unwrap();
    assert_eq!(kind(rig.node.stage(&request)), Kind::AlreadyExists);
    assert_eq!(kind(rig.node.unstage(&id, &request.staging)), Kind::Precondition);
    assert_eq!(kind(rig.node.unpublish(&id, &request.staging)), Kind::Precondition);
    assert_eq!(kind(rig.node.stats(&id, &request.staging)), Kind::NotFound);
    assert_eq!(rig.depth(&request.staging), 1);
}

#[test]
fn another_volume_s_paths_are_not_ours() {
    let rig = Rig::new();
    let (a, b) = (staged(&rig, "a"), staged(&rig, "b"));
    assert_eq!(kind(rig.node.unstage(&a, &rig.staging(&b))), Kind::Precondition);
    assert_eq!(kind(rig.node.stats(&a, &rig.staging(&b))), Kind::NotFound);
    let request = super::PublishRequest { staging: Some(rig.staging(&b)), ..rig.publish_request(a, EXT4, "pod") };
    assert_eq!(kind(rig.node.publish(&request)), Kind::Precondition);
    assert_eq!((rig.depth(&rig.staging(&a)), rig.depth(&rig.staging(&b))), (1, 1));
}

#[test]
fn unstaging_where_it_is_not_staged_leaves_the_stage_alone() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    for path in [rig.directory("elsewhere"), rig.path("absent")] {
        assert_eq!(rig.node.unstage(&id, &path).unwrap(), Changed::No, "{}", path.display());
        assert_eq!((rig.depth(&rig.staging(&id)), rig.loops(&id)), (1, 1));
    }
    // Not while a pod uses it either, and the pod keeps it.
    let request = rig.publish_request(id, EXT4, "pod");
    rig.node.publish(&request).unwrap();
    assert_eq!(rig.node.unstage(&id, &rig.path("absent")).unwrap(), Changed::No);
    assert_eq!((rig.depth(&request.target), rig.loops(&id)), (1, 1));
    // A detach does not touch it, and an unstage needs no attachment.
    assert_eq!(rig.home.revoke(&id, None).unwrap(), Changed::Yes);
    assert_eq!((rig.depth(&request.target), rig.loops(&id)), (1, 1));
    assert_eq!(kind(rig.home.delete_volume(&id)), Kind::InUse);
    rig.node.unpublish(&id, &request.target).unwrap();
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
    assert_eq!(rig.loops(&id), 0);
}

#[test]
fn a_stage_the_wrong_way_undoes_only_what_it_did_itself() {
    let rig = Rig::new();
    let refused = |request: &super::StageRequest, kind: Kind| {
        let error = rig.node.stage(request).unwrap_err();
        assert_eq!(error.kind(), kind, "{}", error.chain());
        assert!(!error.chain().contains("undoing"), "{}", error.chain());
    };
    let raw = rig.volume("raw", 32, VolumeMode::Block);
    rig.node.stage(&rig.stage_request(raw, VolumeMode::Block)).unwrap();
    refused(&rig.stage_request(raw, EXT4), Kind::Precondition);
    let device = rig.publish_request(raw, VolumeMode::Block, "pod/device");
    rig.node.publish(&device).unwrap();
    refused(&rig.stage_request(raw, EXT4), Kind::Precondition);
    rig.node.unpublish(&raw, &device.target).unwrap();

    let id = staged(&rig, "a");
    refused(&rig.stage_request(id, VolumeMode::Block), Kind::Precondition);
    let elsewhere = super::StageRequest { staging: rig.directory("elsewhere"), ..rig.stage_request(id, XFS) };
    assert!(rig.node.stage(&elsewhere).is_err_and(|error| !error.chain().contains("undoing")));
    assert_eq!((rig.depth(&rig.staging(&id)), rig.loops(&id), rig.loops(&raw)), (1, 1, 1));
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
    // A call that attached the device itself detaches it again.
    refused(&rig.stage_request(id, VolumeMode::Block), Kind::Precondition);
    assert_eq!(rig.loops(&id), 0);
    rig.node.unstage(&raw, &rig.staging(&raw)).unwrap();
}

#[test]
fn a_published_volume_is_not_unstaged_and_stays_whole() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let request = rig.publish_request(id, EXT4, "pod");
    rig.node.publish(&request).unwrap();
    let error = rig.node.unstage(&id, &rig.staging(&id)).unwrap_err();
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains("pod"), "{error}");
    assert_eq!(rig.depth(&rig.staging(&id)), 1);
    rig.node.unpublish(&id, &request.target).unwrap();
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
}

#[test]
fn an_open_file_names_the_process_that_keeps_the_volume() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let file = std::fs::File::create(rig.staging(&id).join("file")).unwrap();
    let error = rig.node.unstage(&id, &rig.staging(&id)).unwrap_err();
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(file);
    // A child that another test is starting has our descriptors until its exec.
    let mut again = (0..100).map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        rig.node.unstage(&id, &rig.staging(&id))
    });
    assert!(again.any(|result| result.is_ok()));
    assert_eq!(rig.loops(&id), 0);
}

#[test]
fn stacked_mounts_go_all_and_content_is_never_deleted() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let request = rig.publish_request(id, EXT4, "pod");
    rig.node.publish(&request).unwrap();
    rig.os.bind(&rig.staging(&id), &request.target, MountFlags::default()).unwrap();
    rig.os.bind(&rig.staging(&id), &rig.staging(&id), MountFlags::default()).unwrap();
    rig.node.unpublish(&id, &request.target).unwrap();
    assert!(!request.target.exists());
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
    assert_eq!(rig.depth(&rig.staging(&id)), 0);

    let full = rig.directory("full");
    std::fs::write(full.join("kept"), b"x").unwrap();
    let error = rig.node.unpublish(&id, &full).unwrap_err();
    assert!(error.kind() == Kind::Precondition && error.to_string().contains("full"), "{error}");
    assert_eq!(kind(rig.node.unpublish(&id, &full.join("kept"))), Kind::Precondition);
    assert!(full.join("kept").exists());
}

#[test]
fn a_dead_filesystem_is_not_published_and_can_be_taken_away() {
    let rig = Rig::of(1024);
    let id = rig.volume("a", 320, XFS);
    rig.node.stage(&rig.stage_request(id, XFS)).unwrap();
    let request = rig.publish_request(id, XFS, "pod-1");
    rig.node.publish(&request).unwrap();
    rig.shell(&format!("xfs_io -x -c shutdown {}", rig.staging(&id).display()));
    assert!(std::fs::read_dir(&request.target).is_err());
    let error = rig.node.publish(&rig.publish_request(id, XFS, "pod-2")).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition, "{}", error.chain());
    rig.node.unpublish(&id, &request.target).unwrap();
    assert!(!request.target.exists());
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
    rig.node.stage(&rig.stage_request(id, XFS)).unwrap();
}

#[test]
fn a_filesystem_that_turned_read_only_is_published_to_readers_only() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    rig.shell(&format!("mount -o remount,ro {}", rig.staging(&id).display()));
    rig.shell(&format!("mount -o remount,bind,rw {}", rig.staging(&id).display()));
    let request = rig.publish_request(id, EXT4, "pod");
    let error = rig.node.publish(&request).unwrap_err();
    assert!(error.kind() == Kind::Precondition && error.to_string().contains("read-only"), "{error}");
    rig.node.publish(&super::PublishRequest { read_only: ReadOnly::Yes, ..request }).unwrap();
}

#[test]
fn a_volume_whose_record_is_gone_is_still_taken_away() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    let request = rig.publish_request(id, EXT4, "pod");
    rig.node.publish(&request).unwrap();
    std::fs::remove_dir_all(rig.image(&id).parent().unwrap()).unwrap();
    rig.node.unpublish(&id, &request.target).unwrap();
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
    assert_eq!(rig.loops(&id), 0);
}

#[test]
fn a_volume_of_a_pool_that_is_gone_is_still_taken_away() {
    let mut rig = Rig::new();
    let id = staged(&rig, "a");
    rig.without_pool();
    assert_eq!(rig.node.unstage(&id, &rig.staging(&id)).unwrap(), Changed::Yes);
    assert_eq!((rig.loops(&id), rig.depth(&rig.staging(&id))), (0, 0));
}

#[test]
fn a_block_volume_is_a_device_at_a_pod_s_path() {
    let mut rig = Rig::new();
    let id = rig.volume("a", 32, VolumeMode::Block);
    let request = rig.publish_request(id, VolumeMode::Block, "pod-1/device");
    assert_eq!(kind(rig.node.publish(&request)), Kind::Precondition);
    rig.node.stage(&rig.stage_request(id, VolumeMode::Block)).unwrap();
    assert_eq!(rig.node.publish(&request).unwrap(), Changed::Yes);
    assert_eq!(rig.node.publish(&request).unwrap(), Changed::No);
    let device = std::fs::OpenOptions::new().write(true).open(&request.target).unwrap();
    device.write_all_at(&[7; 4096], 8192).unwrap();
    device.sync_all().unwrap();
    drop(device);
    assert_eq!(rig.node.stats(&id, &request.target).unwrap(), Stats::Block { total: Bytes::mib(32) });
    assert_eq!(rig.node.expand(&rig.expand_request(id, &request.target)).unwrap(), Bytes::mib(32));
    let again = super::PublishRequest {
        access: AccessMode::SingleNodeWriter,
        ..rig.publish_request(id, VolumeMode::Block, "pod-2")
    };
    assert_eq!(kind(rig.node.publish(&again)), Kind::Precondition);

    // A detach halfway, then a restart: the device stays this volume's while it is bind-mounted.
    rig.restart();
    assert_eq!(rig.home.revoke(&id, None).unwrap(), Changed::Yes);
    assert_eq!(rig.loops(&id), 1);
    assert_eq!(kind(rig.home.delete_volume(&id)), Kind::InUse);
    assert_eq!(kind(rig.node.unstage(&id, &rig.staging(&id))), Kind::InUse);
    rig.node.unpublish(&id, &request.target).unwrap();
    assert!(!request.target.exists());
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
    assert_eq!(rig.loops(&id), 0);
    let mut written = [0; 4096];
    std::fs::File::open(rig.image(&id)).unwrap().read_exact_at(&mut written, 8192).unwrap();
    assert_eq!(written, [7; 4096]);
}

#[test]
fn a_filesystem_follows_its_device_when_it_grows() {
    let rig = Rig::of(2048);
    for (name, mib, mode) in [("a", 64, EXT4), ("b", 320, XFS)] {
        let id = rig.volume(name, mib, mode);
        let stage = rig.stage_request(id, mode);
        rig.node.stage(&stage).unwrap();
        let request = rig.publish_request(id, mode, &format!("pod-{name}"));
        rig.node.publish(&request).unwrap();
        let total = || match rig.node.stats(&id, &request.target).unwrap() {
            Stats::Filesystem { bytes, inodes } => {
                assert!(bytes.used + bytes.available <= bytes.total && inodes.total > 0);
                bytes.total
            }
            other => panic!("{other:?}"),
        };
        let before = total();
        let range = CapacityRange { required: Some(Bytes::mib(mib + 256)), limit: None };
        let expand = super::ExpandRequest { range, ..rig.expand_request(id, &request.target) };
        assert_eq!(kind(rig.node.expand(&expand)), Kind::OutOfRange);
        rig.home.expand(&id, &range).unwrap();
        match rig.node.expand(&expand) {
            Ok(size) => assert_eq!(size, Bytes::mib(mib + 256)),
            // Without CAP_SYS_RESOURCE ext4 grows only while it is not mounted: at the next stage.
            Err(error) => {
                assert!(mode == EXT4 && error.kind() == Kind::Precondition, "{}", error.chain());
                assert!(error.to_string().contains("CAP_SYS_RESOURCE"), "{error}");
                assert_eq!(rig.node.stage(&stage).unwrap(), Changed::No);
                rig.node.unpublish(&id, &request.target).unwrap();
                rig.node.unstage(&id, &stage.staging).unwrap();
                rig.node.stage(&stage).unwrap();
                rig.node.publish(&request).unwrap();
            }
        }
        assert!(total() > before + (200 << 20), "{before} {}", total());
        rig.node.expand(&expand).unwrap();
        rig.node.unpublish(&id, &request.target).unwrap();
    }
}

#[test]
fn paths_that_are_not_a_volume_s_are_not_found() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    for path in ["some/path", "/", "/no/such/path", "/tmp"] {
        assert_eq!(kind(rig.node.stats(&id, path.as_ref())), Kind::NotFound, "{path}");
        assert_eq!(kind(rig.node.expand(&rig.expand_request(id, path.as_ref()))), Kind::NotFound, "{path}");
    }
    assert_eq!(kind(rig.node.stats(&id, &rig.directory("empty"))), Kind::NotFound);
    let relative = super::PublishRequest { target: "some/path".into(), ..rig.publish_request(id, EXT4, "x") };
    assert_eq!(kind(rig.node.publish(&relative)), Kind::InvalidArgument);
}

#[test]
fn a_reader_s_volume_is_mounted_read_only() {
    let rig = Rig::new();
    let id = staged(&rig, "a");
    rig.node.unstage(&id, &rig.staging(&id)).unwrap();
    rig.regrant(&id, EXT4, AccessMode::SingleNodeReaderOnly);
    let reader = |request| super::StageRequest { access: AccessMode::SingleNodeReaderOnly, ..request };
    let request = reader(rig.stage_request(id, EXT4));
    rig.node.stage(&request).unwrap();
    assert_eq!(rig.node.stage(&request).unwrap(), Changed::No);
    let publish = rig.publish_request(id, EXT4, "pod");
    rig.node.publish(&super::PublishRequest { access: AccessMode::SingleNodeReaderOnly, ..publish.clone() }).unwrap();
    assert!(std::fs::File::create(publish.target.join("x")).is_err());
}

#[test]
fn a_staging_path_through_a_link_is_found_again() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let real = rig.directory("real");
    std::os::unix::fs::symlink(&real, rig.path("link")).unwrap();
    let staging = rig.path("link").join("globalmount");
    std::fs::create_dir(&staging).unwrap();
    let request = super::StageRequest { staging: staging.clone(), ..rig.stage_request(id, EXT4) };
    rig.node.stage(&request).unwrap();
    assert_eq!(rig.node.stage(&request).unwrap(), Changed::No);
    let mut file = std::fs::File::create(staging.join("x")).unwrap();
    file.write_all(b"x").unwrap();
    drop(file);
    rig.node.unstage(&id, &staging).unwrap();
    assert_eq!(rig.loops(&id), 0);
    assert_eq!(
        kind(rig.node.stage(&super::StageRequest { staging: rig.path("absent"), ..request })),
        Kind::Precondition
    );
}

#[test]
fn a_stage_in_another_mode_is_refused_and_leaves_what_is_staged() {
    let rig = Rig::new();
    let mounted = staged(&rig, "a");
    assert_eq!(kind(rig.node.stage(&rig.stage_request(mounted, VolumeMode::Block))), Kind::Precondition);
    assert_eq!(rig.depth(&rig.staging(&mounted)), 1);
    let raw = rig.volume("b", 32, VolumeMode::Block);
    rig.node.stage(&rig.stage_request(raw, VolumeMode::Block)).unwrap();
    assert_eq!(kind(rig.node.stage(&rig.stage_request(raw, EXT4))), Kind::Precondition);
    assert_eq!(rig.node.stage(&rig.stage_request(raw, VolumeMode::Block)).unwrap(), Changed::No);
}
