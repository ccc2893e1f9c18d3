//! A raw block volume and its device-mapper device.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use holdfast::csi::proto as p;
use holdfast::os::{DevNum, Os};
use holdfast::types::VolumeId;

use super::{OURS, attack, none_left, number_of};
use crate::harness::{
    MIB, PoolFs, Use, Vol, World, check_device, device_size, driver_binary, loops_on, run, try_run, write_device,
};

/// An attribute of the queue of a block device.
fn queue(number: DevNum, attribute: &str) -> String {
    fs::read_to_string(format!("/sys/dev/block/{number}/queue/{attribute}")).unwrap().trim().to_owned()
}

/// Asserts that a pod's path shows the volume's own dm device, over a loop device; both.
fn through_device_mapper(path: &Path, vol: &Vol) -> (DevNum, DevNum) {
    let number = number_of(path);
    let device = Os::new().dm_device(number).unwrap().expect("a device of device-mapper");
    let id: VolumeId = vol.id.parse().unwrap();
    assert_eq!(device.uuid, format!("{OURS}{}-{}", id.pool, id.uuid));
    let below = Os::new().devices_below(number).unwrap();
    assert_eq!(below.len(), 1, "{below:?}");
    assert_eq!(below[0].major, 7, "a loop device");
    assert_eq!(device_size(path), device_size(&PathBuf::from(format!("/dev/loop{}", below[0].minor))));
    (number, below[0])
}

#[test]
#[ignore = "in a guest: make guests"]
fn its_pod_cannot_control_what_is_below_it() {
    let has_control = || fs::read_to_string("/proc/misc").unwrap().contains("device-mapper");
    assert!(!has_control(), "the driver is to load the module");
    let mut world = World::sized(PoolFs::Ext4, 1 << 30);
    let vol = world.create("vol", Use::Block);
    let path = world.attach(&vol).unwrap();
    assert!(has_control());
    let (number, below) = through_device_mapper(&path, &vol);
    assert!(number.minor >= 4096, "not the next free number, which a container of before may still have: {number}");
    write_device(&path, 1, 0, 2);
    for attribute in ["logical_block_size", "discard_max_bytes"] {
        assert_eq!(queue(number, attribute), queue(below, attribute), "{attribute}");
    }
    assert_eq!(queue(number, "discard_max_bytes"), "0", "a thick volume stays thick");
    assert_eq!(world.bind(&vol, "other").map(|other| number_of(&other)).unwrap(), number);

    assert_eq!(attack::succeeds_with(&path), Vec::<String>::new());
    check_device(&path, 1, 0, 2);
    world.crash();
    assert_eq!(through_device_mapper(&path, &vol), (number, below), "a new start leaves it as it was");
    assert_eq!(attack::succeeds_with(&path), Vec::<String>::new());
    world.stage(&vol).unwrap();
    world.bind(&vol, "pod").unwrap();
    assert_eq!(number_of(&world.bind(&vol, "third").unwrap()), number);
    check_device(&path, 1, 0, 2);

    // While pods use it, nothing is removed.
    assert!(world.unstage(&vol).is_err() && world.delete(&vol).is_err());
    world.unbind(&vol, "other").unwrap();
    world.unbind(&vol, "third").unwrap();
    // A descriptor that outlives the bind, as of a container with its own node: the device stays until it is closed.
    let open = File::open(Os::new().device_node(number).unwrap()).unwrap();
    world.unbind(&vol, "pod").unwrap();
    let refused = world.unstage(&vol).unwrap_err();
    assert!(refused.message().contains("open 1 times"), "{refused:?}");
    drop(open);
    world.unstage(&vol).unwrap();
    none_left();
    assert_eq!(loops_on(world.scratch.device()), Vec::new());

    // Used again, it has the earlier content.
    world.stage(&vol).unwrap();
    let path = world.bind(&vol, "pod").unwrap();
    let (another, _) = through_device_mapper(&path, &vol);
    assert_ne!(another, number, "numbers are drawn, not used again");
    check_device(&path, 1, 0, 2);
    world.detach(&vol);
    none_left();
    world.finish();
}

#[test]
#[ignore = "in a guest: make guests"]
fn it_grows_under_its_pod() {
    let mut world = World::sized(PoolFs::Ext4, 1 << 30);
    let vol = world.create("vol", Use::Block);
    let path = world.attach(&vol).unwrap();
    write_device(&path, 1, 0, 2);
    let (number, _) = through_device_mapper(&path, &vol);
    let held = File::open(&path).unwrap();
    for (mib, crash) in [(24, false), (32, true)] {
        let answer = world.expand(&vol, mib * MIB).unwrap();
        assert!(answer.node_expansion_required, "the device of the pod has to follow");
        assert!(device_size(&path) < mib * MIB);
        if crash {
            world.crash();
        }
        assert_eq!(world.node_expand(&vol, mib * MIB).unwrap(), mib * MIB);
        assert_eq!(world.node_expand(&vol, mib * MIB).unwrap(), mib * MIB);
        assert_eq!(device_size(&path), mib * MIB);
        assert_eq!(through_device_mapper(&path, &vol).0, number);
        check_device(&path, 1, 0, 2);
    }
    write_device(&path, 2, 16 << 20, 2);
    drop(held);
    // Expanded while no pod uses it: the next stage or publish updates the device.
    world.unbind(&vol, "pod").unwrap();
    world.expand(&vol, 40 * MIB).unwrap();
    let path = world.bind(&vol, "pod").unwrap();
    assert_eq!(device_size(&path), 40 * MIB);
    check_device(&path, 1, 0, 2);
    check_device(&path, 2, 16 << 20, 2);
    assert_eq!(attack::succeeds_with(&path), Vec::<String>::new());
    world.detach(&vol);
    none_left();
    world.finish();
}

#[test]
#[ignore = "in a guest: make guests"]
fn a_pod_that_may_only_read_gets_a_device_that_refuses_writes() {
    let mut world = World::sized(PoolFs::Ext4, 1 << 30);
    let vol = world.create("vol", Use::Block);
    let writer = world.attach(&vol).unwrap();
    write_device(&writer, 1, 0, 2);
    let (number, below) = through_device_mapper(&writer, &vol);
    let to_read = |world: &World, pod: &str| {
        let request = p::NodePublishVolumeRequest { readonly: true, ..world.bind_request(&vol, pod) };
        world.node_publish_volume(request).map(|_| world.target(&vol, pod))
    };
    let reader = to_read(&world, "reader").unwrap();
    let view = number_of(&reader);
    assert!(view != number && Os::new().dm_device(view).unwrap().is_some(), "a device of its own");
    assert_eq!(Os::new().devices_below(view).unwrap(), [below]);
    let refuses_writes = || {
        let written = fs::OpenOptions::new().write(true).open(&reader).and_then(|mut device| {
            std::io::Write::write_all(&mut device, &[7; 4096])?;
            device.sync_all()
        });
        assert!(written.is_err());
        assert_eq!(attack::succeeds_with(&reader), Vec::<String>::new());
        check_device(&reader, 1, 0, 2);
    };
    refuses_writes();
    world.crash();
    refuses_writes();
    assert_eq!(to_read(&world, "second").map(|path| number_of(&path)).unwrap(), view);
    assert!(to_read(&world, "pod").is_err(), "the writer's path stays the writer's");
    world.expand(&vol, 24 * MIB).unwrap();
    world.node_expand(&vol, 24 * MIB).unwrap();
    assert_eq!((device_size(&reader), device_size(&writer)), (24 * MIB, 24 * MIB));
    // It shows the writer's synced content.
    write_device(&writer, 2, 16 << 20, 2);
    check_device(&world.target(&vol, "second"), 2, 16 << 20, 2);
    world.unbind(&vol, "pod").unwrap();
    world.unbind(&vol, "second").unwrap();
    assert!(world.unstage(&vol).is_err(), "a pod reads it");
    world.unbind(&vol, "reader").unwrap();
    assert!(Os::new().dm_device(view).unwrap().is_none(), "removed after its last pod");
    world.detach(&vol);
    none_left();
    world.finish();
}

#[test]
#[ignore = "in a guest: make guests"]
fn a_volume_published_as_a_loop_device_stays_one_until_it_is_unstaged() {
    // As on a kernel without device-mapper, or with a release that does not use it.
    let without = || {
        run("/usr/bin/busybox", &["rmmod", "dm_mod"]);
        fs::write("/proc/sys/kernel/modprobe", "/nowhere").unwrap();
    };
    let with = || fs::write("/proc/sys/kernel/modprobe", "/sbin/modprobe").unwrap();
    none_left();
    without();
    let mut world = World::sized(PoolFs::Ext4, 1 << 30);
    let vol = world.create("vol", Use::Block);
    let path = world.attach(&vol).unwrap();
    write_device(&path, 1, 0, 2);
    let number = number_of(&path);
    assert_eq!(number.major, 7, "published as a loop device");
    assert!(world.log().contains("no device-mapper"), "{}", world.log());

    // The upgrade: two devices over one volume would not see each other's writes.
    world.kill9();
    with();
    world.start();
    world.stage(&vol).unwrap();
    assert_eq!(number_of(&world.bind(&vol, "other").unwrap()), number);
    none_left();
    world.expand(&vol, 24 * MIB).unwrap();
    assert_eq!(world.node_expand(&vol, 24 * MIB).unwrap(), 24 * MIB);
    assert_eq!(device_size(&path), 24 * MIB);
    world.unbind(&vol, "other").unwrap();
    world.unbind(&vol, "pod").unwrap();
    world.unstage(&vol).unwrap();
    world.stage(&vol).unwrap();
    let path = world.bind(&vol, "pod").unwrap();
    through_device_mapper(&path, &vol);
    check_device(&path, 1, 0, 2);
    assert_eq!(attack::succeeds_with(&path), Vec::<String>::new());
    let doctor = try_run(driver_binary(), &["doctor", "--pool", &world.arguments()[8]]);
    assert!(doctor.stdout.contains("device-mapper"), "{doctor:?}");
    world.detach(&vol);
    none_left();
    world.finish();
}
