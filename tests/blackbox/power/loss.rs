//! Power loss: at each flush the disk is rebuilt as the cut left it, the pool's filesystem mounted and the driver
//! started. Everything that was answered must exist, and nothing else may exist partially.

use std::time::Duration;

use holdfast::os::Stopwatch;
use tonic::Code;

use crate::harness::calls::from_snapshot;
use crate::harness::{PoolFs, Scratch, Use, Vol, World, await_that, check_tree, superblock_uuid, write_tree};

use super::layer::DiskMemory;
use super::life::{Life, Stand, What};
use super::log::{Left, Log, points};
use super::{more, recorded};

fn everything_answered_survives(kind: PoolFs) {
    let watch = Stopwatch::start();
    let (world, layer, born) = recorded(kind, 2 << 30);
    let life = Life::of(&world, &layer, kind);
    // Every point is before the end, which only completes the log.
    let all = layer.flushes();
    world.finish();
    let log = layer.into_log();
    // Right after each answer, nothing else could have made it durable.
    let answers = life.steps.iter().map(|step| step.done);
    let chosen = points(born..all + 1, answers, more());
    let mut cuts = 0;
    for point in &chosen {
        check(&log, &life, *point, Left::Flushed(*point));
        cuts += 1;
        if cuts % 3 == 0 {
            check(&log, &life, *point, Left::Torn(*point, *point as u64));
            cuts += 1;
        }
    }
    eprintln!(
        "power loss, pool on {kind:?}: {cuts} cuts at {} of {} flushes, {} MiB written, {} steps, {} s",
        chosen.len(),
        all - born,
        log.bytes() >> 20,
        life.steps.len(),
        watch.elapsed().as_secs()
    );
}

#[test]
fn everything_answered_survives_on_xfs() {
    everything_answered_survives(PoolFs::Xfs);
}

#[test]
fn everything_answered_survives_on_ext4() {
    everything_answered_survives(PoolFs::Ext4);
}

fn check(log: &Log, life: &Life, point: usize, left: Left) {
    let what = format!("{left:?} with {:?}", life.steps.iter().rfind(|step| step.done <= point).map(|step| &step.what));
    let ground = DiskMemory::new();
    let disk = ground.path().join("disk");
    log.build(left, &disk);
    let mut world = World::over(Scratch::over(&disk, life.pool));
    world.start();
    no_temporary_name(&world, &what);
    let (volumes, snapshots) = (world.volume_ids(), world.snapshot_ids());
    for step in life.steps.iter().filter(|step| step.at(point) == Stand::Maybe) {
        if let What::Snapshot(name, ..) = step.what {
            ask_again(&world, name, &life.volumes[&step.volume]);
        }
    }
    for (name, vol) in &life.volumes {
        check_volume(&world, life, name, vol, point, volumes.contains(&vol.id), &what);
    }
    let known: Vec<_> = life.volumes.values().map(|vol| &vol.id).collect();
    assert!(volumes.iter().all(|id| known.contains(&id)), "{what}: a volume nobody asked for: {volumes:?}");
    for step in &life.steps {
        if let What::Snapshot(_, id, trees) = &step.what {
            let dropped = life.stand(&step.volume, point, |what| *what == What::DropSnapshot(id.clone()));
            check_snapshot(&world, id, trees, (step.at(point), dropped), snapshots.contains(id), &what);
        }
    }
    world.finish();
}

/// The retry of a snapshot in progress finds it, finishes it, creates it or is refused: it never exists partially.
fn ask_again(world: &World, name: &str, vol: &Vol) {
    await_that("a snapshot asked for again is ready or refused", Duration::from_secs(60), || {
        match world.try_snapshot(name, vol) {
            Ok(snapshot) => snapshot.ready_to_use,
            Err(status) => status.code() != Code::Aborted,
        }
    });
}

fn no_temporary_name(world: &World, what: &str) {
    for part in ["", "volumes", "snapshots", "trash"] {
        let names = world.in_pool(part);
        assert!(!names.iter().any(|name| name.starts_with(".tmp")), "{what}: {part}: {names:?}");
        assert!(part != "trash" || names.is_empty(), "{what}: {names:?}");
    }
}

/// Whether an object may, must or must not exist.
fn there(made: Stand, gone: Stand, is: bool, what: &str, name: &str) {
    match (made, gone) {
        (Stand::Not, _) => assert!(!is, "{what}: {name} is there and was not asked for"),
        (_, Stand::Done) => assert!(!is, "{what}: {name} was deleted and is there"),
        (Stand::Done, Stand::Not) => assert!(is, "{what}: {name} was answered and is lost"),
        (Stand::Maybe, _) | (_, Stand::Maybe) => {}
    }
}

fn check_volume(world: &World, life: &Life, name: &str, vol: &Vol, point: usize, is: bool, what: &str) {
    let stand = |is: &dyn Fn(&What) -> bool| life.stand(name, point, is);
    let (made, deleted) = (stand(&|what| *what == What::Create), stand(&|what| *what == What::Delete));
    there(made, deleted, is, what, name);
    if deleted != Stand::Not {
        if is {
            world.delete(vol).unwrap();
        }
        return;
    }
    if made == Stand::Not {
        return;
    }
    if made == Stand::Maybe && name != "r" {
        // Absent or whole: the retry ends with a usable volume, and it is the existing one.
        let again = world.create_from(vol.kind, &life.request(name));
        assert!(!is || again.id == vol.id, "{what}: {name} was made twice");
        write_tree(&world.attach(&again).unwrap(), 99);
        return;
    }
    if !is {
        return;
    }
    let record = world.record(vol);
    grants(life, name, point, &record, what);
    let sizes = life.steps_of(name).filter(|step| step.at(point) == Stand::Done);
    let size = sizes.filter_map(|step| if let What::Expand(size) = step.what { Some(size) } else { None }).max();
    assert!(record["size"].as_i64() >= size, "{what}: {name} was expanded: {record}");
    if made == Stand::Maybe && record["phase"] != "ready" {
        return;
    }
    let path = world.attach(vol).unwrap_or_else(|status| panic!("{what}: {name} cannot be staged again: {status:?}"));
    let uuid = superblock_uuid(&world.image(vol)).to_string();
    assert_eq!(world.record(vol)["format"]["uuid"], uuid, "{what}: {name}");
    for step in life.steps_of(name).filter(|step| step.at(point) == Stand::Done) {
        match &step.what {
            What::Stage(formatted) => assert_eq!(uuid, *formatted, "{what}: {name} was formatted again"),
            What::Write(seed) => check_tree(&path, *seed),
            _ => {}
        }
    }
}

/// An answered attachment remains, a removed one is gone.
fn grants(life: &Life, name: &str, point: usize, record: &serde_json::Value, what: &str) {
    let changes = life.steps_of(name).filter(|step| matches!(step.what, What::Publish | What::Unpublish));
    let begun: Vec<_> = changes.filter(|step| step.at(point) != Stand::Not).collect();
    let Some(last) = begun.last().filter(|step| step.at(point) == Stand::Done) else { return };
    let wanted = usize::from(last.what == What::Publish);
    let found = record["attachments"].as_array().map_or(0, Vec::len);
    assert_eq!(found, wanted, "{what}: {name}: {}", record["attachments"]);
}

fn check_snapshot(world: &World, id: &str, trees: &[u64], (made, dropped): (Stand, Stand), is: bool, what: &str) {
    there(made, dropped, is, what, id);
    if made != Stand::Done || dropped != Stand::Not {
        return;
    }
    let request = holdfast::csi::proto::CreateVolumeRequest {
        volume_content_source: from_snapshot(id),
        ..crate::harness::create_request(&format!("of-{id}"), Use::Ext4, Use::Ext4.size())
    };
    let restored = world.create_from(Use::Ext4, &request);
    let path = world.attach(&restored).unwrap_or_else(|status| panic!("{what}: {id}: {status:?}"));
    trees.iter().for_each(|seed| check_tree(&path, *seed));
}
