//! Hangs: mkfs, a check, mount, umount and the reads before them, each blocked in the kernel below the real driver.
//! Errors of its own volume say what it waits for and since when; the others are as fast as before; the metrics show
//! it; SIGTERM ends the driver within its grace period; and nothing is formatted twice.

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::csi::proto::node_client::NodeClient;
use holdfast::os::Stopwatch;
use nix::sys::signal::Signal;
use tonic::{Code, Status};

use crate::harness::{HeldTool, PoolFs, Use, Vol, World, await_that, check_tree, refused, run, write_tree};
use crate::observability::get;

use super::interrupted::{calls as formats, place};
use super::layer::{Fault, Layer};
use super::recorded;

/// How much slower others may be: the machine is shared, and the fastest of several attempts is compared.
const RATIO: u32 = 4;
const TRIES: usize = 5;

/// A volume, and how a call on it is blocked and released.
struct Stuck<'a> {
    vol: Vol,
    call: &'static str,
    hold: &'a dyn Fn(&Vol),
    /// Whether it is blocked now.
    stands: &'a dyn Fn() -> bool,
    release: &'a dyn Fn(),
    /// The text for the next caller and the metrics.
    waits_for: &'static str,
    /// In a child: its pid is reported.
    child: bool,
}

/// A formatted volume's attach and detach.
fn life(world: &World, other: &Vol) -> Duration {
    let one = || {
        let watch = Stopwatch::start();
        world.attach(other).unwrap();
        world.detach(other);
        watch.elapsed()
    };
    (0..TRIES).map(|_| one()).min().unwrap()
}

fn begin(world: &World, vol: &Vol, call: &str) -> tokio::task::JoinHandle<Result<(), Status>> {
    let mut client = NodeClient::new(world.channel());
    if call == "NodeUnstageVolume" {
        let staging_target_path = world.staging(vol).display().to_string();
        let request = p::NodeUnstageVolumeRequest { volume_id: vol.id.clone(), staging_target_path };
        return world.spawn(async move { client.node_unstage_volume(request).await.map(drop) });
    }
    let request = world.stage_request(vol);
    world.spawn(async move { client.node_stage_volume(request).await.map(drop) })
}

fn spreads_to_nobody(world: &mut World, other: &Vol, stuck: &Stuck<'_>) {
    let quiet = life(world, other);
    (stuck.hold)(&stuck.vol);
    let first = begin(world, &stuck.vol, stuck.call);
    await_that("it hangs", Duration::from_secs(30), || (stuck.stands)());
    std::thread::sleep(Duration::from_millis(1500));
    let said = refused(world.stage(&stuck.vol), &[Code::Aborted]);
    for word in [stuck.vol.uuid(), stuck.call, stuck.waits_for, if stuck.child { "(pid " } else { "(kernel call" }] {
        assert!(said.contains(word), "{word} is not named: {said}");
    }
    assert!((1..60).any(|age| said.contains(&format!("for {age} s)"))), "no age: {said}");
    let meanwhile = life(world, other);
    eprintln!("{}: others {quiet:?} before, {meanwhile:?} meanwhile; told: {said}", stuck.waits_for);
    assert!(meanwhile < quiet * RATIO, "others are held up: {meanwhile:?} instead of {quiet:?}");
    let (_, metrics) = get(world, "/metrics");
    let what = stuck.waits_for.split(' ').next().unwrap();
    let shown = metrics
        .lines()
        .any(|line| line.starts_with("holdfast_operation_age_seconds{") && line.contains(&format!("what=\"{what}")));
    assert!(shown, "{what} is not in the metrics:\n{metrics}");
    world.daemon().signal(Signal::SIGTERM);
    let watch = Stopwatch::start();
    // A thread in the kernel keeps the process a little longer than its work: what can end has ended by then.
    let stopped = || world.log().contains("holdfast::csi::server: stopped");
    await_that("the driver stops in its grace", Duration::from_secs(30), stopped);
    assert!(watch.elapsed() < Duration::from_secs(25), "{:?}", watch.elapsed());
    assert!(!world.socket.exists());
    (stuck.release)();
    assert_eq!(world.daemon().wait(Duration::from_secs(30)), 0);
    world.stopped_by_itself();
    drop(first);
    world.start();
}

/// A driver on a disk that can be told not to answer, with a volume that is not affected.
fn with_other() -> (World, Layer, Vol) {
    let (world, layer, _) = recorded(PoolFs::Xfs, 2 << 30);
    let other = world.create("other", Use::Ext4);
    write_tree(&world.attach(&other).unwrap(), 9);
    world.detach(&other);
    (world, layer, other)
}

fn formatted(world: &World) -> Vol {
    let vol = world.create("vol", Use::Ext4);
    write_tree(&world.attach(&vol).unwrap(), 1);
    world.detach(&vol);
    vol
}

#[test]
fn a_mkfs_that_never_returns() {
    let (mut world, layer, other) = with_other();
    let mkfs = HeldTool::new(&world.scratch, "mkfs.ext4");
    let vol = world.create("vol", Use::Ext4);
    world.publish(&vol).unwrap();
    let hold = |_: &Vol| mkfs.hold();
    let stuck = Stuck {
        vol: vol.clone(),
        call: "NodeStageVolume",
        hold: &hold,
        stands: &|| formats(&mkfs) == 1,
        release: &|| mkfs.let_go(),
        waits_for: "mkfs.ext4 on",
        child: true,
    };
    spreads_to_nobody(&mut world, &other, &stuck);
    world.retried("NodeStage", || world.stage(&vol));
    assert!(formats(&mkfs) <= 2, "{:?}", mkfs.calls());
    write_tree(&world.bind(&vol, "pod").unwrap(), 1);
    world.detach(&vol);
    let calls = formats(&mkfs);
    check_tree(&world.attach(&vol).unwrap(), 1);
    assert_eq!(formats(&mkfs), calls, "formatted again");
    world.finish();
    layer.into_log();
}

#[test]
fn a_check_that_never_returns() {
    let (mut world, layer, other) = with_other();
    let (mkfs, fsck) = (HeldTool::new(&world.scratch, "mkfs.ext4"), HeldTool::new(&world.scratch, "e2fsck"));
    let vol = formatted(&world);
    run("/usr/sbin/debugfs", &["-w", "-R", "set_super_value state 2", world.image(&vol).to_str().unwrap()]);
    world.publish(&vol).unwrap();
    let (made, checked) = (formats(&mkfs), fsck.calls().len());
    let hold = |_: &Vol| fsck.hold();
    let stuck = Stuck {
        vol: vol.clone(),
        call: "NodeStageVolume",
        hold: &hold,
        stands: &|| fsck.calls().len() > checked,
        release: &|| fsck.let_go(),
        waits_for: "e2fsck on",
        child: true,
    };
    spreads_to_nobody(&mut world, &other, &stuck);
    world.retried("NodeStage", || world.stage(&vol));
    check_tree(&world.bind(&vol, "pod").unwrap(), 1);
    assert_eq!(formats(&mkfs), made, "formatted again");
    world.finish();
    layer.into_log();
}

/// On a disk that does not answer, from `fault` on.
fn a_disk_that_does_not_answer(call: &'static str, waits_for: &'static str, fault: fn(std::ops::Range<u64>) -> Fault) {
    let (mut world, layer, other) = with_other();
    let mkfs = HeldTool::new(&world.scratch, "mkfs.ext4");
    let vol = formatted(&world);
    world.publish(&vol).unwrap();
    if call == "NodeUnstageVolume" {
        world.stage(&vol).unwrap();
    }
    let made = formats(&mkfs);
    let image = world.image(&vol);
    let hold = |_: &Vol| layer.fault(Some(fault(place(&image))));
    let stuck = Stuck {
        vol: vol.clone(),
        call,
        hold: &hold,
        stands: &|| layer.hits() > 0,
        release: &|| layer.fault(None),
        waits_for,
        child: false,
    };
    spreads_to_nobody(&mut world, &other, &stuck);
    world.retried("NodeUnstage", || world.unstage(&vol));
    world.retried("NodeStage", || world.stage(&vol));
    check_tree(&world.bind(&vol, "pod").unwrap(), 1);
    assert_eq!(formats(&mkfs), made, "formatted again");
    world.finish();
    layer.into_log();
}

#[test]
fn reads_before_a_mount_that_never_return() {
    a_disk_that_does_not_answer("NodeStageVolume", "ReadDevice on", Fault::HoldReads);
}

#[test]
fn a_mount_that_never_returns() {
    a_disk_that_does_not_answer("NodeStageVolume", "mount on", |range| Fault::HoldWrites(range, 0));
}

#[test]
fn an_unmount_that_never_returns() {
    a_disk_that_does_not_answer("NodeUnstageVolume", "umount on", |range| Fault::HoldWrites(range, 0));
}

/// LOOP_GET_STATUS64 asks the filesystem of a device's image.
#[test]
fn a_loop_device_whose_filesystem_never_answers_stops_nobody_though_it_has_a_volume_s_path() {
    let (world, layer, _) = recorded(PoolFs::Xfs, 2 << 30);
    let vol = world.create("vol", Use::Ext4);
    let directory = world.scratch.path().join("volumes").join(vol.uuid());
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("data");
    fs::File::create(&file).unwrap();
    let (disk, file) = (layer.disk(), file.to_str().unwrap());
    run("/usr/bin/mount", &["--bind", disk.to_str().unwrap(), file]);
    let device = run("/usr/sbin/losetup", &["--show", "-f", file]);
    layer.fault(Some(Fault::HoldAttributes));
    let (watch, (done, ended)) = (Stopwatch::start(), mpsc::channel::<()>());
    std::thread::scope(|scope| {
        // A driver that waits for ever is let go, and was too slow then.
        let (layer, done) = (&layer, done);
        scope.spawn(move || {
            let _ = ended.recv_timeout(Duration::from_secs(60));
            layer.fault(None);
        });
        write_tree(&world.attach(&vol).unwrap(), 1);
        world.detach(&vol);
        check_tree(&world.attach(&vol).unwrap(), 1);
        world.detach(&vol);
        world.delete(&vol).unwrap();
        assert!(watch.elapsed() < Duration::from_secs(40), "{:?}", watch.elapsed());
        assert!(layer.hits() > 0, "it was not asked");
        drop(done);
    });
    run("/usr/sbin/losetup", &["-d", device.trim()]);
    run("/usr/bin/umount", &[file]);
    fs::remove_dir_all(world.scratch.path().join("volumes")).unwrap();
    world.finish();
    layer.into_log();
}
