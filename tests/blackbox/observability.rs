//! The operator's view: metrics, health, logs, and commands that read the pools while the driver runs.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use holdfast::csi::proto as p;

use crate::harness::{
    Finished, HeldTool, MIB, PoolFs, Use, World, create_request, driver_binary, run, try_run, write_tree,
};

/// One GET: status code and body.
pub(crate) fn http(address: &str, path: &str, limit: Duration) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(limit)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: holdfast\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (code, body)
}

pub(crate) fn get(world: &World, path: &str) -> (u16, String) {
    http(&world.metrics, path, Duration::from_secs(10))
}

/// The sum of all samples of a metric whose labels contain the words.
pub(crate) fn value(metrics: &str, name: &str, words: &[&str]) -> Option<f64> {
    let samples = metrics.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
            && words.iter().all(|word| line.contains(word))
    });
    let values: Vec<f64> = samples.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// The first metric whose name contains all the words, and its value.
fn named(metrics: &str, words: &[&str]) -> Option<String> {
    let names =
        metrics.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(['{', ' ']).next().unwrap());
    names.into_iter().find(|name| words.iter().all(|word| name.contains(word))).map(str::to_owned)
}

#[test]
fn metrics_count_calls_by_code_and_show_the_pool() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    world.create("vol", Use::Ext4);
    world.create_volume(p::CreateVolumeRequest::default()).unwrap_err();
    write_tree(&world.attach(&vol).unwrap(), 1);
    let (code, metrics) = get(&world, "/metrics");
    assert_eq!(code, 200);
    let calls = named(&metrics, &["calls", "total"]).or_else(|| named(&metrics, &["rpc", "total"]));
    let calls = calls.unwrap_or_else(|| panic!("no counter of calls:\n{metrics}"));
    assert_eq!(value(&metrics, &calls, &["CreateVolume", "OK"]), Some(2.0), "{metrics}");
    let invalid = value(&metrics, &calls, &["CreateVolume", "INVALID_ARGUMENT"])
        .or_else(|| value(&metrics, &calls, &["CreateVolume", "InvalidArgument"]));
    assert_eq!(invalid, Some(1.0), "{metrics}");
    for words in [&["bucket"][..], &["in_flight"], &["pool", "bytes"], &["pool", "inodes"], &["stuck"]] {
        assert!(named(&metrics, words).is_some(), "no metric with {words:?}:\n{metrics}");
    }
    assert!(metrics.contains("pool=\"test\""), "{metrics}");
    assert!(metrics.trim_end().ends_with("# EOF") || metrics.contains("# TYPE"), "{metrics}");
    world.finish();
}

#[test]
fn the_extents_of_images_are_counted() {
    // The cost of a reflink grows with them; the limit above which it is refused must be visible before.
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    write_tree(&world.attach(&vol).unwrap(), 1);
    let (_, metrics) = get(&world, "/metrics");
    let extents = named(&metrics, &["extents"]).unwrap_or_else(|| panic!("no metric of extents:\n{metrics}"));
    assert!(value(&metrics, &extents, &[]).unwrap() > 0.0, "{metrics}");
    world.finish();
}

#[test]
fn health_and_readiness_are_told_and_strangers_are_not_found() {
    let world = World::new(PoolFs::Xfs);
    assert_eq!(get(&world, "/healthz").0, 200);
    assert_eq!(get(&world, "/readyz").0, 200);
    assert_eq!(get(&world, "/nothing").0, 404);
    world.finish();
}

#[test]
fn a_call_is_in_flight_while_its_child_is() {
    let world = World::new(PoolFs::Xfs);
    let held = HeldTool::new(&world.scratch, "mkfs.ext4");
    let vol = world.create("vol", Use::Ext4);
    world.publish(&vol).unwrap();
    held.hold();
    let request = world.stage_request(&vol);
    let mut client = holdfast::csi::proto::node_client::NodeClient::new(world.channel());
    let stage = world.spawn(async move { client.node_stage_volume(request).await });
    held.wait_for_call(1);
    let (_, metrics) = get(&world, "/metrics");
    let in_flight = named(&metrics, &["in_flight"]).unwrap();
    assert_eq!(value(&metrics, &in_flight, &[]), Some(1.0), "{metrics}");
    held.let_go();
    world.block_on(stage).unwrap().unwrap();
    let (_, metrics) = get(&world, "/metrics");
    assert_eq!(value(&metrics, &in_flight, &[]), Some(0.0), "{metrics}");
    world.finish();
}

#[test]
fn json_logs_are_json_with_call_and_volume() {
    let world = World::with_arguments(PoolFs::Xfs, 1 << 30, &["--log-format", "json", "--log-level", "info"]);
    let vol = world.create("vol", Use::Ext4);
    world.attach(&vol).unwrap();
    world.detach(&vol);
    let log = world.log();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let about = |rpc: &str| {
        let text = |line: &serde_json::Value| line.to_string();
        lines.iter().filter(|line| text(line).contains(rpc) && text(line).contains(vol.uuid())).count()
    };
    for rpc in ["CreateVolume", "ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume", "NodeUnstageVolume"]
    {
        assert!((1..=4).contains(&about(rpc)), "{rpc}: {} lines, one a state change:\n{log}", about(rpc));
    }
    let before = log.lines().count();
    for _ in 0..5 {
        world.probe(p::ProbeRequest {}).unwrap();
        world.volume_ids();
    }
    assert_eq!(world.log().lines().count(), before, "a look is no change of state");
    world.finish();
}

pub(crate) fn command(world: &World, name: &str, extra: &[&str]) -> Finished {
    let pool = format!("test=file:{}", world.pool.display());
    let arguments: Vec<&str> = [name, "--pool", pool.as_str()].into_iter().chain(extra.iter().copied()).collect();
    try_run(driver_binary(), &arguments)
}

fn json(world: &World, name: &str) -> String {
    let finished = command(world, name, &["--output", "json"]);
    let text = finished.stdout;
    serde_json::from_str::<serde_json::Value>(&text)
        .unwrap_or_else(|error| panic!("{error}: {text} {}", finished.stderr));
    text
}

#[test]
fn commands_read_the_pools_while_the_driver_runs() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("claim-7", Use::Ext4);
    world.attach(&vol).unwrap();
    for running in [true, false] {
        let pools = json(&world, "pools");
        assert!(pools.contains("\"test\"") && pools.contains(world.pool.to_str().unwrap()), "{pools}");
        let volumes = json(&world, "volumes");
        for word in [&vol.id, "claim-7", "formatted", &world.node] {
            assert!(volumes.contains(word), "{word} is missing: {volumes}");
        }
        for name in ["pools", "volumes", "doctor"] {
            let table = command(&world, name, &[]);
            assert_eq!(table.code, Some(0), "{name}: {table:?}");
            assert!(!table.stdout.contains('\u{1b}'), "colours where there is no terminal: {}", table.stdout);
            let yaml = command(&world, name, &["--output", "yaml"]);
            assert_eq!(yaml.code, Some(0), "{name}: {yaml:?}");
        }
        assert_eq!(command(&world, "pools", &["--output", "xml"]).code, Some(2));
        if running {
            write_tree(&world.target(&vol, "pod"), 1);
            assert_eq!(world.terminate(), 0);
        }
    }
    world.start();
    world.finish();
}

#[test]
fn a_command_changes_nothing_and_makes_no_pool() {
    let world = World::stopped(PoolFs::Xfs, 1 << 30);
    for name in ["pools", "volumes", "doctor"] {
        let _ = command(&world, name, &[]);
        assert_eq!(fs::read_dir(&world.pool).unwrap().count(), 0, "{name} made something");
    }
}

#[test]
fn doctor_names_what_no_record_explains_and_what_settles_it() {
    let mut world = World::new(PoolFs::Xfs);
    assert_eq!(command(&world, "doctor", &[]).code, Some(0), "a healthy pool: {:?}", command(&world, "doctor", &[]));
    let held = HeldTool::new(&world.scratch, "mkfs.ext4");
    let formatting = world.create("formatting", Use::Ext4);
    world.publish(&formatting).unwrap();
    held.hold();
    let request = world.stage_request(&formatting);
    let mut client = holdfast::csi::proto::node_client::NodeClient::new(world.channel());
    let _stage = world.spawn(async move { client.node_stage_volume(request).await });
    held.wait_for_call(1);
    world.kill9();
    held.let_go();
    world.start();
    let imageless = world.create("imageless", Use::Block);
    let data = world.image(&imageless);
    let aside = world.scratch.root().join("aside");
    fs::rename(&data, &aside).unwrap();
    fs::create_dir(world.pool.join("volumes").join("lost+found")).unwrap();
    fs::create_dir(world.pool.join("volumes").join(".tmp-left")).unwrap();
    let stray = world.pool.join("volumes").join("0123456789abcdef0123456789abcdef");
    fs::create_dir(&stray).unwrap();
    fs::File::create(stray.join("data")).unwrap().set_len(16 << 20).unwrap();
    let device = run("/usr/sbin/losetup", &["-f", "--show", stray.join("data").to_str().unwrap()]);
    let said = command(&world, "doctor", &["--output", "json"]).stdout;
    let findings: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
    let recordless: Vec<_> = findings.iter().filter(|finding| finding["place"] == stray.to_str().unwrap()).collect();
    assert_eq!(recordless.len(), 1, "{said}");
    assert!(recordless[0]["remedy"].as_str().unwrap().contains("restore volume.json"), "{said}");
    for word in [
        formatting.id.as_str(),
        "is being formatted",
        imageless.id.as_str(),
        ".tmp-left",
        "0123456789abcdef0123456789abcdef",
        device.trim(),
    ] {
        assert!(said.contains(word), "{word} is not named: {said}");
    }
    let kinds = |kind: &str| findings.iter().filter(|finding| finding["kind"] == kind).count();
    let (_, metrics) = get(&world, "/metrics");
    for kind in ["orphan", "image", "unfinished", "unreadable", "filesystem", "shared", "space"] {
        let sample = format!("holdfast_findings{{pool=\"test\",kind=\"{kind}\"}} {}", kinds(kind));
        assert!(metrics.contains(&sample), "{sample} is not in\n{metrics}");
    }
    // lost+found below volumes/ and the device; the volume without its image; .tmp-left and the one in formatting.
    assert_eq!(["orphan", "image", "unfinished", "unreadable"].map(kinds), [2, 1, 2, 1], "{said}");
    let table = command(&world, "doctor", &[]).stdout;
    assert!(table.contains("losetup -d") || table.contains("losetup --detach"), "the command that settles it: {table}");
    assert!(stray.exists() && world.pool.join("volumes").join(".tmp-left").exists(), "doctor only looks");
    run("/usr/sbin/losetup", &["-d", device.trim()]);
    fs::rename(&aside, &data).unwrap();
    fs::remove_dir_all(&stray).unwrap();
    fs::remove_dir(world.pool.join("volumes").join("lost+found")).unwrap();
    fs::remove_dir(world.pool.join("volumes").join(".tmp-left")).unwrap();
    world.attach(&formatting).unwrap();
    world.finish();
}

#[test]
fn doctor_names_a_pool_that_is_nearly_full() {
    let world = World::sized(PoolFs::Xfs, 1 << 30);
    let before = command(&world, "doctor", &[]).stdout;
    let largest = world.capacity().maximum_volume_size.unwrap() / MIB * MIB;
    world.create_volume(create_request("all", Use::Block, largest)).unwrap();
    let after = command(&world, "doctor", &[]).stdout;
    assert!(after != before && after.contains("full"), "{after}");
    world.finish();
}
