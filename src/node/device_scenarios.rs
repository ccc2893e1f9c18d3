//! Loop devices belong to the whole machine. Whatever a pod, an administrator or another driver does to one must not
//! affect any other volume, and a pod must never see another volume's bytes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::Node;
use crate::home::{Changed, CreateVolume, GrantRequest, Home, LocalHome, ReadOnly, SpaceLimits};
use crate::os::{Call, DevNum, Discard, Interceptor, LoopAccess, LoopConfig, MountFlags, Os};
use crate::pool::{PoolKind, PoolSpec};
use crate::testing::rig::{EXT4, Rig, kind};
use crate::testing::scratch::{PoolFs, Scratch, home as node_id};
use crate::types::{
    AccessMode, Bytes, Capability, CapacityRange, Kind, ObjectUuid, VolumeId, VolumeMode, VolumeParameters,
};

const BLOCK: VolumeMode = VolumeMode::Block;

/// A raw block volume in a pod.
fn published(rig: &Rig, name: &str) -> (VolumeId, PathBuf) {
    let id = rig.volume(name, 32, BLOCK);
    rig.node.stage(&rig.stage_request(id, BLOCK)).unwrap();
    let request = rig.publish_request(id, BLOCK, &format!("pod-{name}"));
    rig.node.publish(&request).unwrap();
    (id, request.target)
}

fn device_at(path: &Path) -> DevNum {
    DevNum::from_dev_t(fs::metadata(path).unwrap().rdev())
}

/// LOOP_CLR_FD needs no capability, only a descriptor, which the pod has.
fn clear_as_its_pod(rig: &Rig, target: &Path) {
    rig.shell(&format!("losetup -d {}", target.display()));
}

/// The driver is killed: its hold goes, and the device with it, as soon as nobody looks at it any more. A new one starts.
fn killed_after_clearing(rig: &mut Rig, id: &VolumeId) {
    rig.without_pool();
    while rig.loops(id) > 0 {
        thread::sleep(Duration::from_millis(5));
    }
    rig.reopen();
}

fn take_away(rig: &Rig, id: &VolumeId, target: &Path) {
    rig.node.unpublish(id, target).unwrap();
    rig.node.unstage(id, &rig.staging(id)).unwrap();
    rig.home.revoke(id, None).unwrap();
    assert_eq!(rig.home.delete_volume(id).unwrap(), Changed::Yes);
}

#[test]
fn a_pod_that_clears_its_loop_device_never_sees_the_next_volume() {
    let mut rig = Rig::new();
    let (a, target) = published(&rig, "a");
    let number = device_at(&target);
    clear_as_its_pod(&rig, &target);
    killed_after_clearing(&mut rig, &a);
    let b = rig.volume("b", 32, EXT4);
    rig.node.stage(&rig.stage_request(b, EXT4)).unwrap();
    let (c, other) = published(&rig, "c");
    for id in [b, c] {
        assert_ne!(rig.home.device_of(&id).unwrap().unwrap().number, number, "the pod of a would see it");
    }
    // Also after a restart of the driver, from the record alone.
    rig.reopen();
    let (d, more) = published(&rig, "d");
    assert_ne!(device_at(&more), number);
    // The stale bind mount is removed, and its volume works again.
    assert_eq!(rig.node.unpublish(&a, &target).unwrap(), Changed::Yes);
    rig.node.stage(&rig.stage_request(a, BLOCK)).unwrap();
    let request = rig.publish_request(a, BLOCK, "pod-a-again");
    rig.node.publish(&request).unwrap();
    fs::OpenOptions::new().write(true).open(&request.target).unwrap().write_all_at(b"mine", 0).unwrap();
    take_away(&rig, &a, &request.target);
    take_away(&rig, &c, &other);
    take_away(&rig, &d, &more);
    rig.node.unstage(&b, &rig.staging(&b)).unwrap();
}

/// What is attached with `losetup` does not ask whose a number is.
#[test]
fn a_number_that_another_program_took_and_that_fails_keeps_no_volume_from_its_end() {
    let mut rig = Rig::new();
    let (a, mut target) = published(&rig, "a");
    for (life, uuid) in [ObjectUuid::of_volume("of-another"), a.uuid].into_iter().enumerate() {
        clear_as_its_pod(&rig, &target);
        killed_after_clearing(&mut rig, &a);
        let device = rig.os.device_path(device_at(&target));
        let dead = Dead::on(&rig, &[&format!("volumes/{uuid}/data")], Some(&device));
        assert_eq!(dead.devices, [device.display().to_string()]);
        assert_eq!(rig.node.unpublish(&a, &target).unwrap(), Changed::Yes);
        rig.node.unstage(&a, &rig.staging(&a)).unwrap();
        rig.node.stage(&rig.stage_request(a, BLOCK)).unwrap();
        let request = rig.publish_request(a, BLOCK, &format!("pod-a-{life}"));
        rig.node.publish(&request).unwrap();
        target = request.target;
    }
    take_away(&rig, &a, &target);
}

#[test]
fn a_volume_whose_device_went_away_under_its_pod_is_the_pod_s_until_its_path_is_gone() {
    let mut rig = Rig::new();
    let (a, target) = published(&rig, "a");
    let device = rig.os.loop_of(device_at(&target)).unwrap().unwrap();
    clear_as_its_pod(&rig, &target);
    killed_after_clearing(&mut rig, &a);
    assert_eq!(rig.home.revoke(&a, None).unwrap(), Changed::Yes);
    for _ in 0..2 {
        assert!(rig.os.loop_owner(device).is_some());
        assert_eq!(kind(rig.home.delete_volume(&a)), Kind::InUse);
        rig.reopen();
    }
    assert_eq!(rig.node.unpublish(&a, &target).unwrap(), Changed::Yes);
    assert_eq!(rig.home.delete_volume(&a).unwrap(), Changed::Yes);
    assert_eq!(rig.os.loop_owner(device), None);
    // The mark of an earlier boot is of a device that is no more, whatever has its number. A path goes without the pool too.
    let (b, target) = published(&rig, "b");
    clear_as_its_pod(&rig, &target);
    killed_after_clearing(&mut rig, &b);
    let another_boot = "00000000-0000-4000-8000-000000000000";
    let record = rig.image(&b).with_file_name("volume.json");
    let text = fs::read_to_string(&record).unwrap().replace(&rig.os.boot_id().unwrap(), another_boot);
    assert!(text.contains(another_boot));
    fs::write(&record, text).unwrap();
    rig.home.revoke(&b, None).unwrap();
    assert_eq!(rig.home.delete_volume(&b).unwrap(), Changed::Yes);
    rig.without_pool();
    // Another test may have the number for a moment.
    let try_again = || thread::sleep(Duration::from_millis(50));
    let goes = (0..400).any(|_| rig.node.unpublish(&b, &target).inspect_err(|_| try_again()).is_ok());
    assert!(goes && rig.depth(&target) == 0);
}

#[test]
fn a_path_with_another_volume_s_device_is_left_alone() {
    let rig = Rig::new();
    let (a, target) = published(&rig, "a");
    let (b, other) = published(&rig, "b");
    assert_eq!(kind(rig.node.unpublish(&a, &other)), Kind::Precondition);
    assert_eq!(device_at(&other), rig.home.device_of(&b).unwrap().unwrap().number);
    take_away(&rig, &a, &target);
    take_away(&rig, &b, &other);
}

#[test]
fn the_number_of_a_device_that_pods_may_have_is_reserved_in_every_life_of_this_boot() {
    let mut rig = Rig::new();
    let (a, target) = published(&rig, "a");
    let device = rig.os.loop_of(device_at(&target)).unwrap().unwrap();
    let reserved = |rig: &Rig| rig.os.loop_owner(device).is_some_and(|owner| owner.contains(&a.uuid.to_string()));
    assert!(reserved(&rig), "published");
    rig.reopen();
    assert!(reserved(&rig), "from the record");
    rig.home.revoke(&a, None).unwrap();
    assert!(reserved(&rig), "detached, and in a pod");
    rig.reopen();
    assert!(reserved(&rig), "from the record of a detached one");
    rig.grant(&a, BLOCK, AccessMode::SingleNodeMultiWriter);
    rig.reopen();
    assert!(reserved(&rig), "from the record of the next attachment, before the device is opened again");
    rig.home.revoke(&a, None).unwrap();
    // Another boot's numbers are other devices.
    let record = rig.image(&a).with_file_name("volume.json");
    let text = fs::read_to_string(&record).unwrap();
    let boot = rig.os.boot_id().unwrap();
    assert!(text.contains(&boot));
    fs::write(&record, text.replace(&boot, "00000000-0000-4000-8000-000000000000")).unwrap();
    rig.reopen();
    assert!(!reserved(&rig), "from the record of an earlier boot");
    rig.node.unpublish(&a, &target).unwrap();
    rig.node.unstage(&a, &rig.staging(&a)).unwrap();
    assert_eq!(rig.home.delete_volume(&a).unwrap(), Changed::Yes);
}

#[test]
fn a_device_marked_to_go_stays_when_the_driver_ends_or_looks() {
    let mut rig = Rig::new();
    let (a, target) = published(&rig, "a");
    let marked = |rig: &Rig| {
        let device = rig.os.loop_of(device_at(&target)).unwrap().unwrap();
        rig.os.loop_view(device).unwrap().expect("still attached").autoclear
    };
    clear_as_its_pod(&rig, &target);
    assert!(marked(&rig));
    rig.node.keep_devices();
    assert!(!marked(&rig), "before the process ends");
    rig.restart();
    clear_as_its_pod(&rig, &target);
    rig.node.publish(&rig.publish_request(a, BLOCK, "pod-a")).unwrap();
    assert!(!marked(&rig), "at publish");
    clear_as_its_pod(&rig, &target);
    let held = fs::File::open(&target).unwrap();
    rig.restart();
    assert!(!marked(&rig), "when it starts");
    drop(held);
    assert!(!marked(&rig));
    take_away(&rig, &a, &target);
}

/// The node holds a device from its stage on. After a restart of the driver, a publish is what opens it again.
#[test]
fn a_published_device_is_held_and_one_that_could_not_be_published_is_not() {
    let mut rig = Rig::new();
    let a = rig.volume("a", 32, BLOCK);
    rig.node.stage(&rig.stage_request(a, BLOCK)).unwrap();
    rig.restart();
    let request = rig.publish_request(a, BLOCK, "pod-a");
    fs::write(&request.target, "a file of another process").unwrap();
    assert_eq!(kind(rig.node.publish(&request)), Kind::AlreadyExists);
    rig.home.close(&a, &node_id()).unwrap();
    assert_eq!(rig.loops(&a), 0, "a failed publish keeps nothing from a detach");

    fs::remove_file(&request.target).unwrap();
    rig.node.publish(&request).unwrap();
    let error = rig.node.unstage(&a, &rig.staging(&a)).unwrap_err();
    assert!(error.kind() == Kind::InUse && error.to_string().contains("still published at"), "{}", error.chain());
    clear_as_its_pod(&rig, &request.target);
    assert_eq!(rig.loops(&a), 1, "LOOP_CLR_FD waits for the last user, and that is the node");
    assert_eq!(device_at(&request.target), rig.home.device_of(&a).unwrap().unwrap().number);
    take_away(&rig, &a, &request.target);
}

#[test]
fn a_name_that_a_pod_gives_its_device_is_nobody_s_identity() {
    let mut rig = Rig::new();
    let (a, target) = published(&rig, "a");
    let b = rig.volume("b", 32, EXT4);
    rig.os.rename_loop(&target, &b.uuid.to_string()).unwrap();
    for life in 0..2 {
        let device = rig.os.device_path(device_at(&target)).display().to_string();
        assert!(rig.pool().strays().unwrap().iter().all(|stray| stray.place != device), "{device} is no stray");
        let request = rig.stage_request(b, EXT4);
        rig.node.stage(&request).unwrap();
        rig.node.unstage(&b, &request.staging).unwrap();
        rig.home.revoke(&b, None).unwrap();
        rig.grant(&b, EXT4, AccessMode::SingleNodeMultiWriter);
        assert_eq!(device_at(&target), rig.home.device_of(&a).unwrap().unwrap().number, "life {life}");
        rig.reopen();
    }
    rig.home.revoke(&b, None).unwrap();
    rig.home.delete_volume(&b).unwrap();
    take_away(&rig, &a, &target);
}

#[test]
fn a_device_that_its_pod_shifted_can_be_taken_away_and_is_made_anew() {
    let rig = Rig::new();
    let (a, target) = published(&rig, "a");
    fs::OpenOptions::new().write(true).open(&target).unwrap().write_all_at(b"mine", 0).unwrap();
    rig.os.shift_loop(&target, 4096).unwrap();
    for turn in 0..2 {
        let error = rig.node.publish(&rig.publish_request(a, BLOCK, "pod-b")).unwrap_err();
        assert_eq!(error.kind(), Kind::InUse, "{turn}: {}", error.chain());
    }
    assert_eq!(rig.node.unpublish(&a, &target).unwrap(), Changed::Yes);
    rig.node.unstage(&a, &rig.staging(&a)).unwrap();
    rig.node.stage(&rig.stage_request(a, BLOCK)).unwrap();
    let request = rig.publish_request(a, BLOCK, "pod-a");
    rig.node.publish(&request).unwrap();
    let mut seen = [0; 4];
    fs::File::open(&request.target).unwrap().read_exact_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"mine");
    take_away(&rig, &a, &request.target);
}

#[test]
fn a_volume_of_a_pool_whose_disk_died_can_be_taken_from_its_pods() {
    let rig = Rig::new();
    let a = rig.volume("a", 32, EXT4);
    rig.node.stage(&rig.stage_request(a, EXT4)).unwrap();
    let request = rig.publish_request(a, EXT4, "pod-a");
    rig.node.publish(&request).unwrap();
    let (b, target) = published(&rig, "b");
    let root = rig.image(&a).ancestors().nth(3).unwrap().to_owned();
    rig.shell(&format!("xfs_io -x -c shutdown {}", root.display()));
    assert_eq!(rig.node.unpublish(&a, &request.target).unwrap(), Changed::Yes);
    rig.node.unstage(&a, &rig.staging(&a)).unwrap();
    assert_eq!(rig.node.unpublish(&b, &target).unwrap(), Changed::Yes);
    rig.node.unstage(&b, &rig.staging(&b)).unwrap();
    assert_eq!((rig.loops(&a), rig.loops(&b)), (0, 0), "its disk can be unmounted and repaired");
}

/// Every system call with its name and target.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<BTreeSet<String>>>);

impl Interceptor for Log {
    fn before(&self, call: Call, target: &str) -> std::io::Result<()> {
        // Reading sysfs opens nothing.
        if !matches!(call, Call::LoopScan | Call::LoopView) {
            self.0.lock().unwrap().insert(target.to_owned());
        }
        Ok(())
    }

    fn after(&self, _: Call, _: &str) -> std::io::Result<()> {
        Ok(())
    }
}

/// A loop device over a file on an XFS that was shut down: LOOP_GET_STATUS64 fails with EIO. Also over a name like that
/// of an image.
struct Dead<'a> {
    rig: &'a Rig,
    mount: PathBuf,
    devices: Vec<String>,
}

impl<'a> Dead<'a> {
    fn new(rig: &'a Rig, files: &[&str]) -> Self {
        Self::on(rig, files, None)
    }

    /// On this loop device.
    fn on(rig: &'a Rig, files: &[&str], device: Option<&Path>) -> Self {
        let (disk, mount) = (rig.path("dead.img"), rig.directory("dead"));
        rig.shell(&format!("truncate -s 320M {disk} && mkfs.xfs -q -f {disk}", disk = disk.display()));
        let image = fs::File::options().read(true).write(true).open(&disk).unwrap();
        let (name, owner) = ("dead".to_owned(), "dead".to_owned());
        // Not by mount(8), which takes the first number that is free. It goes with its mount.
        let config = LoopConfig { block_size: 512, name, owner, discard: Discard::On, access: LoopAccess::Writable };
        let below = rig.os.loop_attach(&image, &disk, &config).unwrap().path();
        let (below, point) = (below.display(), mount.display());
        rig.shell(&format!("mount {below} {point} && losetup -d {below}"));
        let attach = match device {
            // Another test may have it for a moment.
            Some(device) => format!("until losetup {}", device.display()),
            None => "until losetup -f".to_owned(),
        };
        let mut devices = Vec::new();
        for file in files {
            let path = mount.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            rig.shell(&format!("truncate -s 1M {path}; {attach} {path}; do sleep 0.1; done", path = path.display()));
            let views = rig.os.loop_views(|backing| backing == path).unwrap();
            devices.push(views[0].device.path().display().to_string());
        }
        rig.shell(&format!("sync -f {mount}; xfs_io -x -c shutdown {mount}", mount = mount.display()));
        Self { rig, mount, devices }
    }
}

impl Drop for Dead<'_> {
    fn drop(&mut self) {
        let devices = self.devices.join(" ");
        self.rig.shell(&format!("losetup -d {devices}; umount {}", self.mount.display()));
    }
}

#[test]
fn a_loop_device_that_fails_is_nobody_else_s_trouble() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let like_an_image = format!("volumes/{}/data", id.uuid);
    let dead = Dead::new(&rig, &["foreign", &like_an_image]);
    let log = Log::default();
    let node = Node::new(Os::intercepted(Box::new(log.clone())), node_id(), Arc::clone(&rig.home) as Arc<dyn Home>);
    let request = rig.stage_request(id, EXT4);
    node.stage(&request).unwrap();
    let publish = rig.publish_request(id, EXT4, "pod");
    node.publish(&publish).unwrap();
    node.unpublish(&id, &publish.target).unwrap();
    node.unstage(&id, &request.staging).unwrap();
    rig.home.revoke(&id, None).unwrap();
    rig.home.delete_volume(&id).unwrap();
    let touched = log.0.lock().unwrap();
    assert!(!touched.iter().any(|target| dead.devices.contains(target)), "{touched:?}");
}

#[test]
fn the_node_of_a_device_in_dev_may_be_missing_or_wrong() {
    let rig = Rig::new();
    // Our own /dev, as in a container: without the device nodes of later loop devices, and with a wrong one.
    let dev = rig.directory("dev");
    rig.shell(&format!(
        "mount -t tmpfs -o dev none {dev} && cp -a /dev/loop-control /dev/null /dev/urandom {dev} && mount --bind {dev} /dev",
        dev = dev.display()
    ));
    let id = rig.volume("a", 32, EXT4);
    let request = rig.stage_request(id, EXT4);
    let refused = rig.node.stage(&request).unwrap_err();
    // mount(2) and mkfs need a path: the error names the missing one, and nothing is left.
    assert!(refused.chain().contains("/dev"), "{}", refused.chain());
    assert_eq!(rig.loops(&id), 0);
    rig.shell("umount -l /dev");
    rig.node.stage(&request).unwrap();
    let device = rig.home.device_of(&id).unwrap().unwrap();
    rig.shell(&format!(
        "mount -t tmpfs -o dev none {dev} && cp -a /dev/loop-control /dev/null /dev/urandom {dev} && mknod {dev}/{name} b 7 99999 && mount --bind {dev} /dev",
        dev = dev.display(),
        name = device.path.file_name().unwrap().to_str().unwrap()
    ));
    rig.node.unstage(&id, &request.staging).unwrap();
    assert_eq!(rig.loops(&id), 0);
    // Nothing is formatted or mounted through the device node of another device.
    let other = rig.volume("b", 32, EXT4);
    rig.shell("rm -f /dev/loop[0-9]*; for n in $(seq 0 200); do mknod /dev/loop$n b 7 99999; done");
    let refused = rig.node.stage(&rig.stage_request(other, EXT4)).unwrap_err();
    assert!(refused.chain().contains("is not the device node of block device"), "{}", refused.chain());
    rig.shell("umount -l /dev");
    rig.node.stage(&rig.stage_request(other, EXT4)).unwrap();
    rig.node.unstage(&other, &rig.staging(&other)).unwrap();
}

#[test]
fn a_directory_called_like_a_device_is_none() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let request = rig.stage_request(id, EXT4);
    rig.node.stage(&request).unwrap();
    let name = rig.home.device_of(&id).unwrap().unwrap().path.file_name().unwrap().to_str().unwrap().to_owned();
    // As kubelet does for `emptyDir: {medium: Memory}` with `subPath: loopN`.
    let (memory, sub_path) = (rig.directory("memory"), rig.directory("sub-path"));
    rig.os.mount("none".as_ref(), &memory, "tmpfs", MountFlags::default(), "").unwrap();
    fs::create_dir(memory.join(&name)).unwrap();
    rig.os.bind(&memory.join(&name), &sub_path, MountFlags::default()).unwrap();
    rig.node.unstage(&id, &request.staging).unwrap();
    rig.home.revoke(&id, None).unwrap();
    rig.home.delete_volume(&id).unwrap();
    rig.os.unmount(&sub_path).unwrap();
}

#[test]
fn who_holds_a_device_is_named() {
    let rig = Rig::new();
    let (a, target) = published(&rig, "a");
    rig.node.unpublish(&a, &target).unwrap();
    rig.node.unstage(&a, &rig.staging(&a)).unwrap();
    let device = rig.home.open(&a, &node_id()).unwrap();
    let crate::home::DeviceAddress::Local { device } = device.at else { panic!("a local volume") };
    let script = format!("exec 9<{}; echo open; exec sleep 30", device.display());
    let log = fs::File::create(rig.path("log")).unwrap();
    let child = rig.os.start(Path::new("/bin/sh"), &["-c".to_owned(), script], &log).unwrap();
    while fs::metadata(rig.path("log")).unwrap().len() == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    let said = rig.home.close(&a, &node_id()).unwrap_err();
    assert_eq!(said.kind(), Kind::InUse);
    assert!(said.chain().contains("(pid "), "{}", said.chain());
    drop(child);
}

/// Two drivers with the same names, or disks that were moved: one uuid in two pools of one filesystem.
#[test]
fn the_same_uuid_in_two_pools_is_two_volumes() {
    let scratch = Scratch::new(PoolFs::Xfs);
    let kubelet = tempfile::tempdir().unwrap();
    let os = scratch.os().clone();
    let pool = |name: &str| {
        let root = scratch.root().join(name);
        fs::create_dir_all(&root).unwrap();
        let spec = PoolSpec {
            name: name.parse().unwrap(),
            kind: PoolKind::File { root, ground: crate::pool::BackingFs::Known },
        };
        crate::pool::open(&os, &spec, &node_id()).unwrap()
    };
    let home_of = |names: &[&str]| {
        let pools = names.iter().map(|name| (pool(name), SpaceLimits::default())).collect();
        Arc::new(LocalHome::open(os.clone(), node_id(), pools).unwrap())
    };
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let home = home_of(&[name]);
        let request = CreateVolume {
            name: "same".to_owned(),
            range: CapacityRange { required: Some(Bytes::mib(16)), limit: None },
            capabilities: vec![Capability { mode: BLOCK, access: AccessMode::SingleNodeMultiWriter }],
            parameters: VolumeParameters::parse(&std::collections::HashMap::new()).unwrap(),
            source: None,
        };
        ids.push(home.create_volume(&request).unwrap().into_inner().id);
    }
    assert_eq!(ids[0].uuid, ids[1].uuid);
    let home = home_of(&["one", "two"]);
    let node = Node::new(os.clone(), node_id(), Arc::clone(&home) as Arc<dyn Home>);
    let stage = |id: VolumeId| super::StageRequest {
        volume: id,
        staging: kubelet.path().join("staging"),
        mode: BLOCK.into(),
        access: AccessMode::SingleNodeMultiWriter,
        mount: crate::fs::RequestedOptions::default(),
    };
    let granted = || GrantRequest {
        node: node_id(),
        mode: BLOCK.into(),
        access: AccessMode::SingleNodeMultiWriter,
        read_only: ReadOnly::No,
    };
    for id in &ids {
        home.grant(id, &granted()).unwrap();
        assert_eq!(node.stage(&stage(*id)).unwrap(), Changed::Yes);
    }
    let device = |id: &VolumeId| home.device_of(id).unwrap().map(|device| device.number);
    let second = device(&ids[1]);
    assert_ne!(device(&ids[0]), second);
    node.unstage(&ids[0], &stage(ids[0]).staging).unwrap();
    assert_eq!((device(&ids[0]), device(&ids[1])), (None, second));
    // The end of one gives back no number of the other.
    let reserved = || os.loop_owner(os.loop_of(second.unwrap()).unwrap().unwrap()).is_some();
    assert!(reserved());
    home.revoke(&ids[0], None).unwrap();
    assert!(reserved());
    home.grant(&ids[0], &granted()).unwrap();
    // A pool that is no longer here: its volume is removed, the other pool's volume stays.
    node.stage(&stage(ids[0])).unwrap();
    drop((node, home));
    let home = home_of(&["two"]);
    let node = Node::new(os.clone(), node_id(), Arc::clone(&home) as Arc<dyn Home>);
    node.unstage(&ids[0], &stage(ids[0]).staging).unwrap();
    assert_eq!(home.device_of(&ids[0]).unwrap(), None);
    assert_eq!(home.device_of(&ids[1]).unwrap().map(|device| device.number), second);
    node.unstage(&ids[1], &stage(ids[1]).staging).unwrap();
    assert_eq!(home.device_of(&ids[1]).unwrap(), None);
}

/// The source of a mount is a link of the driver's own: `source.rs`.
#[test]
fn a_mount_is_known_by_its_source_and_by_its_device() {
    let rig = Rig::new();
    let id = rig.volume("a", 32, EXT4);
    let request = rig.stage_request(id, EXT4);
    rig.node.stage(&request).unwrap();
    let table = rig.os.mounts().unwrap();
    let entry = table.at(&request.staging).unwrap();
    let source = PathBuf::from(&entry.source);
    assert_eq!(source, super::source::of(&id));
    let device = rig.os.device_path(entry.device);
    assert_eq!(std::fs::canonicalize(&source).unwrap(), device);

    // Another program's source, as an older release has it; and a link that is gone.
    std::fs::remove_file(&source).unwrap();
    rig.os.unmount(&request.staging).unwrap();
    rig.os.mount(&device, &request.staging, "ext4", MountFlags::default(), "errors=remount-ro").unwrap();
    assert_eq!(rig.os.mounts().unwrap().at(&request.staging).unwrap().source, device.to_str().unwrap());
    let publish = rig.publish_request(id, EXT4, "pod");
    rig.node.publish(&publish).unwrap();
    rig.node.unpublish(&id, &publish.target).unwrap();
    rig.node.unstage(&id, &request.staging).unwrap();
    assert_eq!(rig.depth(&request.staging), 0);

    rig.node.stage(&request).unwrap();
    assert_eq!(std::fs::canonicalize(&source).unwrap(), rig.os.device_path(device_at_root(&rig, &request.staging)));
    rig.node.unstage(&id, &request.staging).unwrap();
    assert!(!source.exists() && std::fs::symlink_metadata(&source).is_err());

    // A filesystem without a device has no volume's content, whatever its source is.
    rig.os.mount(&source, &request.staging, "tmpfs", MountFlags::default(), "").unwrap();
    assert_eq!(kind(rig.node.stage(&request)), Kind::AlreadyExists);
    assert_eq!(kind(rig.node.unstage(&id, &request.staging)), Kind::Precondition);
    rig.os.unmount(&request.staging).unwrap();
}

fn device_at_root(rig: &Rig, path: &Path) -> DevNum {
    rig.os.mounts().unwrap().at(path).unwrap().device
}

/// A mount of a device that is gone, as after the loss of the machine that exported it. Here another device has the
/// volume's source.
#[test]
fn a_mount_of_a_device_that_is_gone_is_replaced_once_no_pod_has_it() {
    let rig = Rig::new();
    let (id, gone) = (rig.volume("a", 32, EXT4), rig.volume("gone", 32, EXT4));
    rig.node.stage(&rig.stage_request(gone, EXT4)).unwrap();
    let device = rig.os.device_path(device_at_root(&rig, &rig.staging(&gone)));
    rig.node.stage(&rig.stage_request(id, EXT4)).unwrap();
    let staging = rig.staging(&id);
    std::fs::write(staging.join("file"), b"x").unwrap();
    rig.os.unmount(&staging).unwrap();

    let source = super::source::of(&id);
    rig.os.link(&source, &device).unwrap();
    rig.os.mount(&source, &staging, "ext4", MountFlags::default(), "").unwrap();
    let publish = rig.publish_request(id, EXT4, "pod");
    let error = rig.node.publish(&publish).unwrap_err();
    assert!(error.kind() == Kind::Precondition && error.to_string().contains("is gone"), "{error}");
    assert!(!publish.target.exists());
    std::fs::create_dir(&publish.target).unwrap();
    rig.os.bind(&staging, &publish.target, MountFlags::default()).unwrap();
    let error = rig.node.stage(&rig.stage_request(id, EXT4)).unwrap_err();
    assert!(error.kind() == Kind::InUse && error.to_string().contains("pod"), "{error}");
    rig.node.unpublish(&id, &publish.target).unwrap();
    assert_eq!(rig.node.stage(&rig.stage_request(id, EXT4)).unwrap(), Changed::Yes);
    assert_eq!(std::fs::read(staging.join("file")).unwrap(), b"x");
    assert_eq!(rig.depth(&staging), 1);
    assert_ne!(rig.os.device_path(device_at_root(&rig, &staging)), device);
    rig.node.unstage(&id, &staging).unwrap();
    rig.node.unstage(&gone, &rig.staging(&gone)).unwrap();
}
