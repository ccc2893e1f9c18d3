//! A pool is the directory that was opened, not a path: it disappears, is moved, is mounted over, or is not there yet;
//! and pools that cannot be served beside pools that can.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::csi::proto::controller_client::ControllerClient;
use holdfast::os::Stopwatch;
use nix::fcntl::{Flock, FlockArg};
use tonic::{Code, Request};

use crate::harness::{
    Frozen, MIB, PoolFs, Scratch, Use, Vol, World, await_that, check_tree, create_request, driver_binary, refused, run,
    try_run, write_tree,
};
use crate::observability::get;

const SOON: Duration = Duration::from_secs(40);

/// A disk in a file, mounted at the pool's directory.
struct Disk {
    image: PathBuf,
    point: PathBuf,
}

impl Disk {
    fn new(world: &World, name: &str) -> Self {
        let (image, point) = (world.scratch.path().join(format!("{name}.img")), world.scratch.path().join(name));
        File::create(&image).unwrap().set_len(1 << 30).unwrap();
        fs::create_dir(&point).unwrap();
        PoolFs::Xfs.make(&image);
        Self { image, point }
    }

    fn mount(&self) {
        self.mount_at(&self.point);
    }

    fn mount_at(&self, point: &Path) {
        let arguments = ["-o", "loop", self.image.to_str().unwrap(), point.to_str().unwrap()];
        await_that("a free loop device", SOON, || try_run("/usr/bin/mount", &arguments).code == Some(0));
    }

    fn unmount(&self) {
        run("/usr/bin/umount", &[self.point.to_str().unwrap()]);
    }

    fn detach(&self) {
        run("/usr/bin/umount", &["-l", self.point.to_str().unwrap()]);
    }

    fn flag(&self) -> String {
        format!("{}=file:{}", self.point.file_name().unwrap().to_str().unwrap(), self.point.display())
    }
}

fn on(world: &World, pool: &str, name: &str) -> Result<Vol, tonic::Status> {
    let mut request = create_request(name, Use::Ext4, 32 * MIB);
    request.parameters.insert("pool".into(), pool.into());
    world.try_create(Use::Ext4, &request)
}

fn listed(world: &World) -> Result<Vec<String>, tonic::Status> {
    let entries = world.list_volumes(p::ListVolumesRequest::default())?.entries;
    Ok(entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect())
}

/// Every call for a volume of a missing pool is UNAVAILABLE and names the pool and its path.
fn is_unavailable(world: &World, vol: &Vol, disk: &Disk) {
    let place = disk.point.to_str().unwrap();
    let said = [
        refused(world.publish(vol), &[Code::Unavailable]),
        refused(world.unpublish(vol), &[Code::Unavailable]),
        refused(world.delete(vol), &[Code::Unavailable]),
        refused(world.expand(vol, 64 * MIB), &[Code::Unavailable]),
        refused(world.try_snapshot("snap", vol), &[Code::Unavailable]),
        refused(on(world, "second", "new"), &[Code::Unavailable]),
        refused(listed(world), &[Code::Unavailable]),
    ];
    for said in said {
        assert!(said.contains("second") && said.contains(place), "{said}");
    }
    let (code, body) = get(world, "/readyz");
    assert!(code == 503 && body.contains("second") && body.contains(place), "{code} {body}");
    let (_, metrics) = get(world, "/metrics");
    assert!(metrics.contains("holdfast_pool_served{pool=\"second\",node=\"node-a\"} 0"), "{metrics}");
    assert!(metrics.contains("holdfast_pool_served{pool=\"test\",node=\"node-a\"} 1"), "{metrics}");
    // The other pool is served meanwhile.
    let other = on(world, "test", "other").unwrap();
    write_tree(&world.attach(&other).unwrap(), 1);
    world.detach(&other);
    world.delete(&other).unwrap();
    assert_eq!(world.probe(p::ProbeRequest {}).unwrap().ready, Some(true), "one pool is served");
}

fn is_back(world: &World) {
    await_that("the pool is served again", SOON, || get(world, "/readyz").0 == 200);
}

#[test]
fn a_pool_whose_filesystem_is_unmounted_or_moved_is_unavailable_and_served_again_when_it_is_back() {
    let mut world = World::stopped(PoolFs::Xfs, 1 << 30);
    let disk = Disk::new(&world, "second");
    disk.mount();
    world.add_arguments(&["--pool", &disk.flag()]);
    world.start();
    let (vol, idle) = (on(&world, "second", "used").unwrap(), on(&world, "second", "idle").unwrap());
    let pod = world.attach(&vol).unwrap();
    write_tree(&pod, 1);
    disk.detach();
    is_unavailable(&world, &vol, &disk);
    assert_eq!(fs::read_dir(&disk.point).unwrap().count(), 0, "something was made below the mount point");
    let findings = get(&world, "/metrics").1;
    let found =
        findings.lines().any(|line| line.starts_with("holdfast_findings{pool=\"second\",kind=\"unreadable\"} 1"));
    assert!(found, "{findings}");
    // The pod continues meanwhile.
    check_tree(&pod, 1);
    write_tree(&pod, 2);
    disk.mount();
    is_back(&world);
    assert_eq!(listed(&world).unwrap().len(), 2);
    check_tree(&pod, 2);
    world.detach(&vol);
    world.delete(&vol).unwrap();
    // The driver keeps no reference to the filesystem: it can be unmounted, and another driver may use it meanwhile.
    disk.detach();
    is_unavailable(&world, &idle, &disk);
    await_that("the pool is let go", SOON, || loops_of(&disk.image) == 0);
    disk.mount();
    is_back(&world);
    world.delete(&idle).unwrap();
    assert_eq!(world.terminate(), 0);
    disk.unmount();
    world.drop_arguments(2);
    world.start();
    world.finish();
}

/// Loop devices over a file.
fn loops_of(image: &Path) -> usize {
    run("/usr/sbin/losetup", &["-n", "-O", "NAME", "-j", image.to_str().unwrap()]).lines().count()
}

#[test]
fn nothing_is_made_or_deleted_in_a_pool_that_is_mounted_over_another() {
    let mut world = World::stopped(PoolFs::Xfs, 1 << 30);
    let (disk, over) = (Disk::new(&world, "second"), Disk::new(&world, "over"));
    // Another pool of this node with this name, such as a forgotten disk of the machine.
    over.mount_at(&disk.point);
    world.add_arguments(&["--pool", &disk.flag()]);
    world.start();
    let foreign = on(&world, "second", "foreign").unwrap();
    assert_eq!(world.terminate(), 0);
    disk.unmount();
    disk.mount();
    world.start();
    let vol = on(&world, "second", "vol").unwrap();
    refused(world.publish(&foreign), &[Code::Unavailable]);
    over.mount_at(&disk.point);
    is_unavailable(&world, &vol, &disk);
    let inside = |name: &str| fs::read_dir(disk.point.join(name)).unwrap().count();
    assert_eq!((inside("volumes"), inside("trash")), (1, 0), "the other pool was touched");
    disk.unmount();
    is_back(&world);
    world.delete(&vol).unwrap();
    // A directory that was moved, with another in its place.
    assert_eq!(world.terminate(), 0);
    disk.unmount();
    let (place, moved) = (world.scratch.root().join("own"), world.scratch.root().join("moved"));
    fs::create_dir(&place).unwrap();
    world.drop_arguments(2);
    world.add_arguments(&["--pool", &format!("second=file:{}", place.display())]);
    world.start();
    let disk = Disk { image: disk.image, point: place.clone() };
    let vol = on(&world, "second", "vol").unwrap();
    fs::rename(&place, &moved).unwrap();
    is_unavailable(&world, &vol, &disk);
    assert!(!place.exists());
    fs::create_dir(&place).unwrap();
    is_unavailable(&world, &vol, &disk);
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0, "a pool was made in another directory");
    fs::remove_dir(&place).unwrap();
    fs::rename(&moved, &place).unwrap();
    is_back(&world);
    world.delete(&vol).unwrap();
    world.finish();
}

#[test]
fn a_pool_has_one_owner_whatever_becomes_of_its_lock_file() {
    let mut world = World::new(PoolFs::Xfs);
    let second = |world: &World| {
        let mut arguments = world.arguments();
        for (flag, value) in [("--endpoint", "unix:///run/second.sock"), ("--metrics", "127.0.0.1:0")] {
            let at = arguments.iter().position(|argument| argument == flag).unwrap();
            arguments[at + 1] = value.into();
        }
        let arguments: Vec<&str> =
            ["30", driver_binary()].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        try_run("/usr/bin/timeout", &arguments)
    };
    fs::remove_file(world.pool.join("lock")).unwrap();
    let refused = second(&world);
    assert!(refused.code == Some(2) && refused.stderr.contains("owned by another"), "{refused:?}");
    // Release 0.1.0 locks only the file.
    world.terminate();
    let file = File::options().write(true).create(true).truncate(false).open(world.pool.join("lock")).unwrap();
    let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    let refused = second(&world);
    assert!(refused.code == Some(2) && refused.stderr.contains("owned by another"), "{refused:?}");
    drop(held);
    world.start();
    world.finish();
}

#[test]
fn bad_pools_keep_no_good_one_from_being_served_and_are_served_when_they_are_mended() {
    let mut world = World::new(PoolFs::Xfs);
    let base = world.scratch.root();
    let place = |name: &str| base.join(name);
    let flag = |name: &str| format!("{name}=file:{}", place(name).display());
    for name in ["damaged", "locked"] {
        fs::create_dir(place(name)).unwrap();
        world.terminate();
        world.add_arguments(&["--pool", &flag(name)]);
        world.start();
    }
    let before = on(&world, "damaged", "before").unwrap();
    world.terminate();
    let good = fs::read(place("damaged").join("pool.json")).unwrap();
    fs::write(place("damaged").join("pool.json"), "{").unwrap();
    let lock = Flock::lock(File::open(place("locked")).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
    let dead = Disk::new(&world, "dead");
    dead.mount();
    run("/usr/sbin/xfs_io", &["-x", "-c", "shutdown", dead.point.to_str().unwrap()]);
    world.add_arguments(&["--pool", &flag("missing"), "--pool", &dead.flag()]);
    world.start();
    let vol = on(&world, "test", "vol").unwrap();
    write_tree(&world.attach(&vol).unwrap(), 1);
    for (name, reason) in
        [("damaged", "pool.json"), ("locked", "owned by another"), ("missing", "mkdir"), ("dead", "dmesg")]
    {
        let said = refused(on(&world, name, "new"), &[Code::Unavailable]);
        assert!(said.contains(name) && said.contains(reason), "{name}: {said}");
        let (code, body) = get(&world, "/readyz");
        assert!(code == 503 && body.contains(reason) && body.contains("served: test"), "{name}: {code} {body}");
    }
    refused(world.delete(&before), &[Code::Unavailable]);
    refused(world.unpublish(&before), &[Code::Unavailable]);
    refused(listed(&world), &[Code::Unavailable]);
    fs::write(place("damaged").join("pool.json"), &good).unwrap();
    drop(lock);
    dead.unmount();
    // An empty directory may be a mount point without its disk: no pool is created there by itself.
    fs::create_dir(place("missing")).unwrap();
    await_that("both are looked at again", SOON, || get(&world, "/readyz").1.matches("creates no pool").count() == 2);
    assert_eq!(fs::read_dir(place("missing")).unwrap().count() + fs::read_dir(&dead.point).unwrap().count(), 0);
    dead.mount();
    for pool in [flag("missing"), dead.flag()] {
        run(driver_binary(), &["pools", "init", "--node-name", &world.node, "--pool", &pool]);
    }
    is_back(&world);
    world.delete(&before).unwrap();
    for name in ["damaged", "locked", "missing", "dead"] {
        let vol = on(&world, name, name).unwrap();
        world.delete(&vol).unwrap();
    }
    assert_eq!(world.terminate(), 0);
    dead.unmount();
    world.drop_arguments(2);
    world.start();
    world.finish();
}

#[test]
fn calls_that_hang_in_one_pool_leave_room_for_those_of_others() {
    let mut world = World::stopped(PoolFs::Xfs, 16 << 30);
    let second = Scratch::new(PoolFs::Xfs, 1 << 30);
    let root = second.root().join("pool");
    fs::create_dir(&root).unwrap();
    world.add_arguments(&["--pool", &format!("second=file:{}", root.display())]);
    world.start();
    let other = on(&world, "second", "other").unwrap();
    let frozen = Frozen::new(&world.scratch.root());
    let hanging: Vec<_> = (0..320)
        .map(|n| {
            let mut request = create_request(&format!("hangs-{n}"), Use::Block, 16 * MIB);
            request.parameters.insert("pool".into(), "test".into());
            let mut request = Request::new(request);
            request.set_timeout(Duration::from_secs(3));
            let mut client = ControllerClient::new(world.channel());
            world.spawn(async move { client.create_volume(request).await })
        })
        .collect();
    for one in hanging {
        let status = world.block_on(one).unwrap().unwrap_err();
        assert!([Code::DeadlineExceeded, Code::Cancelled, Code::Unavailable].contains(&status.code()), "{status:?}");
    }
    let watch = Stopwatch::start();
    let said = refused(on(&world, "test", "more"), &[Code::Unavailable]);
    let used = world.attach(&other).map(|_| world.detach(&other));
    let made = on(&world, "second", "made");
    let took = watch.elapsed();
    drop(frozen);
    assert!(said.contains("test"), "which calls are too many: {said}");
    used.unwrap();
    world.delete(&made.unwrap()).unwrap();
    world.delete(&other).unwrap();
    assert!(took < Duration::from_secs(20), "blocked for {took:?}");
    world.retried("DeleteVolume", || on(&world, "test", "late").and_then(|vol| world.delete(&vol)));
    world.finish();
}

#[test]
fn what_somebody_put_into_a_volume_s_directory_is_kept_and_the_volume_is_deleted() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    let directory = world.pool.join("volumes").join(vol.uuid());
    fs::create_dir_all(directory.join("backup/deep")).unwrap();
    fs::write(directory.join("backup/deep/precious"), "kept").unwrap();
    fs::write(directory.join("note.txt"), "kept too").unwrap();
    world.delete(&vol).unwrap();
    world.delete(&vol).unwrap();
    assert!(listed(&world).unwrap().is_empty() && world.in_pool("volumes").is_empty());
    assert!(world.in_pool("trash").is_empty());
    let kept = world.in_pool("foreign");
    assert_eq!(kept.len(), 1, "{kept:?}");
    let place = world.pool.join("foreign").join(&kept[0]);
    assert_eq!(fs::read(place.join("backup/deep/precious")).unwrap(), b"kept");
    assert_eq!(fs::read(place.join("note.txt")).unwrap(), b"kept too");
    assert!(!place.join("data").exists() && !place.join("volume.json").exists(), "the volume's own files are gone");
    // The same name again, and deleted again.
    let again = world.create("vol", Use::Ext4);
    world.delete(&again).unwrap();
    let pool = format!("test=file:{}", world.pool.display());
    let doctor = || try_run(driver_binary(), &["doctor", "--pool", &pool]);
    let said = doctor().stdout;
    let remedy = said.lines().find_map(|line| line.trim().strip_prefix("do  ").filter(|line| line.contains("rm -r")));
    let remedy = remedy.unwrap_or_else(|| panic!("no remedy: {said}"));
    let command = remedy.split_once("rm -r").map(|(_, place)| format!("rm -r{place}")).unwrap();
    assert!(said.contains(&kept[0]), "{said}");
    run("/bin/sh", &["-c", &command]);
    assert!(!doctor().stdout.contains(&kept[0]), "{}", doctor().stdout);
    world.finish();
}
