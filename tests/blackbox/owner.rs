//! Start and stop: one owner per pool, sockets of other processes, clear refusals, and volumes that stay mounted.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};

use tonic::Code;

use crate::harness::{Daemon, Finished, PoolFs, Use, World, check_tree, driver_binary, refused, try_run, write_tree};

/// Runs the driver with arguments that it must refuse: exit code 2 and one line with these words.
fn refuses(arguments: &[String], words: &[&str]) -> Finished {
    let arguments: Vec<&str> =
        std::iter::once("30").chain([driver_binary()]).chain(arguments.iter().map(String::as_str)).collect();
    let finished = try_run("/usr/bin/timeout", &arguments);
    assert_eq!(finished.code, Some(2), "{arguments:?}: {finished:?}");
    let lines: Vec<_> = finished.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one clear line: {}", finished.stderr);
    for word in words {
        assert!(lines[0].contains(word), "{word} is not named: {}", lines[0]);
    }
    finished
}

fn replace(arguments: &[String], flag: &str, value: &str) -> Vec<String> {
    let mut changed = arguments.to_vec();
    let at = changed.iter().position(|argument| argument == flag).unwrap();
    changed[at + 1] = value.into();
    changed
}

#[test]
fn a_second_daemon_on_the_pool_is_refused_and_the_first_goes_on() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    let path = world.attach(&vol).unwrap();
    let other = format!("unix://{}/second.sock", world.scratch.path().display());
    let arguments = replace(&replace(&world.arguments(), "--endpoint", &other), "--metrics", "127.0.0.1:0");
    refuses(&arguments, &[world.pool.to_str().unwrap()]);
    assert!(!world.scratch.path().join("second.sock").exists());
    // The same directory by another path.
    let alias = world.scratch.path().join("alias");
    std::os::unix::fs::symlink(&world.pool, &alias).unwrap();
    refuses(&replace(&arguments, "--pool", &format!("test=file:{}", alias.display())), &[]);
    write_tree(&path, 1);
    world.snapshot("snap", &vol);
    world.finish();
}

#[test]
fn a_pool_of_another_node_is_not_served() {
    let mut world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    world.terminate();
    let arguments = replace(&world.arguments(), "--node-name", "node-b");
    let log = world.scratch.path().join("other.log");
    let before = fs::read(world.pool.join("pool.json")).unwrap();
    let mut daemon = Daemon::start(&arguments, &log);
    // Refused at the start, or read-only: never a second owner.
    crate::harness::await_that("it refuses or listens", std::time::Duration::from_secs(20), || {
        daemon.ended().is_some() || world.socket.exists()
    });
    if daemon.ended().is_some() {
        assert_eq!(daemon.wait(std::time::Duration::from_secs(1)), 2, "{}", daemon.log());
        assert!(daemon.log().contains(&world.node), "the log must name the owner: {}", daemon.log());
    }
    drop(daemon);
    assert_eq!(fs::read(world.pool.join("pool.json")).unwrap(), before);
    world.start();
    world.attach(&vol).unwrap();
    world.finish();
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let mut world = World::new(PoolFs::Xfs);
    world.kill9();
    assert!(world.socket.exists(), "kill -9 leaves the socket");
    world.start();
    let mode = fs::symlink_metadata(&world.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only root may connect to the driver");
    world.terminate();
    assert!(!world.socket.exists(), "the socket goes with the driver");
    let listener = UnixListener::bind(&world.socket).unwrap();
    refuses(&world.arguments(), &[world.socket.to_str().unwrap()]);
    UnixStream::connect(&world.socket).unwrap();
    drop(listener);
    world.start();
    world.finish();
}

#[test]
fn what_is_at_the_socket_path_and_no_socket_stays() {
    let mut world = World::stopped(PoolFs::Xfs, 1 << 30);
    fs::write(&world.socket, "precious").unwrap();
    refuses(&world.arguments(), &[world.socket.to_str().unwrap()]);
    assert_eq!(fs::read(&world.socket).unwrap(), b"precious");
    fs::remove_file(&world.socket).unwrap();
    std::os::unix::fs::symlink("/nowhere", &world.socket).unwrap();
    refuses(&world.arguments(), &[]);
    assert!(fs::symlink_metadata(&world.socket).unwrap().is_symlink());
    fs::remove_file(&world.socket).unwrap();
    assert!(world.in_pool("volumes").is_empty());
    world.start();
    assert!(fs::symlink_metadata(&world.socket).unwrap().file_type().is_socket());
    world.finish();
}

#[test]
fn sigterm_leaves_volumes_mounted_and_exits_0() {
    let mut world = World::new(PoolFs::Xfs);
    for kind in Use::FILESYSTEMS {
        let vol = world.create(kind.fs_type(), kind);
        write_tree(&world.attach(&vol).unwrap(), 1);
    }
    assert_eq!(world.terminate(), 0);
    let (_, targets) = world.in_use();
    assert_eq!(targets.len(), 2);
    for (_, target) in targets {
        check_tree(&target, 1);
        write_tree(&target, 2);
    }
    assert!(UnixStream::connect(&world.socket).is_err());
    world.start();
    world.finish();
}

#[test]
fn what_is_wrong_is_said_in_one_line_and_nothing_is_changed() {
    let world = World::stopped(PoolFs::Xfs, 1 << 30);
    let good = world.arguments();
    let with = |extra: &[&str]| {
        let mut arguments = good.clone();
        arguments.extend(extra.iter().map(|argument| (*argument).to_owned()));
        arguments
    };
    let missing = world.scratch.path().join("missing");
    let missing_pool = format!("test=file:{}", missing.display());
    refuses(&replace(&good, "--pool", &missing_pool), &[missing.to_str().unwrap()]);
    assert!(!missing.exists(), "a missing directory is not made");
    let file = world.scratch.path().join("file");
    fs::write(&file, "x").unwrap();
    refuses(&replace(&good, "--pool", &format!("test=file:{}", file.display())), &[file.to_str().unwrap()]);
    for pool in ["nonsense", "test=lvm:vg", "test=file:relative/dir", "=file:/tmp", "UPPER=file:/tmp", "test=file:"] {
        refuses(&replace(&good, "--pool", pool), &[]);
    }
    refuses(&with(&["--pool", &format!("test=file:{}", world.pool.display())]), &["test"]);
    refuses(&replace(&good, "--endpoint", "tcp://127.0.0.1:1"), &["tcp://127.0.0.1:1"]);
    refuses(&replace(&good, "--endpoint", "unix:///nowhere/at/all/csi.sock"), &["/nowhere/at/all"]);
    refuses(&replace(&good, "--node-name", "no such/name"), &["no such/name"]);
    refuses(&replace(&good, "--node-name", ""), &[]);
    refuses(&replace(&good, "--log-level", "shout"), &["shout"]);
    refuses(&replace(&good, "--metrics", "nonsense"), &["nonsense"]);
    let config = world.scratch.path().join("bad.yaml");
    for (text, word) in [
        ("nodeNam: x\n", "nodeName"),
        ("pools:\n  - name: test\n    path: /tmp\n    minFre: 1%\n", "minFree"),
        ("pools:\n  - name: test\n    path: /tmp\n    minFree: 120%\n", "120%"),
        ("pools:\n  - name: test\n    path: /tmp\n    overcommit: -1\n", "overcommit"),
        ("not yaml: [\n", "bad.yaml"),
    ] {
        fs::write(&config, text).unwrap();
        refuses(&with(&["--config", config.to_str().unwrap()]), &[word]);
    }
    refuses(&with(&["--config", "/nowhere.yaml"]), &["/nowhere.yaml"]);
    assert_eq!(fs::read_dir(&world.pool).unwrap().count(), 0, "something was made in the pool");
    assert!(!world.socket.exists());
}

#[test]
fn a_pool_that_cannot_be_trusted_is_refused() {
    let mut world = World::new(PoolFs::Xfs);
    world.create("vol", Use::Ext4);
    world.terminate();
    let identity = world.pool.join("pool.json");
    let good = fs::read(&identity).unwrap();
    for bad in [&b"{"[..], b"", b"{\"schema\": 1}", &good[..good.len() / 2]] {
        fs::write(&identity, bad).unwrap();
        refuses(&world.arguments(), &[]);
        assert_eq!(fs::read(&identity).unwrap(), bad, "what cannot be read is not replaced");
    }
    // Volumes without an identity: a half copied pool is not a new pool.
    fs::remove_file(&identity).unwrap();
    refuses(&world.arguments(), &[]);
    assert!(!identity.exists());
    fs::write(&identity, &good).unwrap();
    let networked = world.scratch.path().join("tmpfs");
    fs::create_dir(&networked).unwrap();
    crate::harness::run("/usr/bin/mount", &["-t", "tmpfs", "none", networked.to_str().unwrap()]);
    refuses(&replace(&world.arguments(), "--pool", &format!("test=file:{}", networked.display())), &["tmpfs"]);
    crate::harness::run("/usr/bin/umount", &[networked.to_str().unwrap()]);
    world.start();
    world.finish();
}

#[test]
fn unknown_pools_are_unavailable_and_unknown_volumes_not_found() {
    let world = World::new(PoolFs::Xfs);
    let vol = world.create("vol", Use::Ext4);
    let stranger = vol.id.replacen(vol.id.split('_').nth(1).unwrap(), "0123456789abcdef", 1);
    let mut other = vol.clone();
    other.id = stranger;
    // A volume of an unavailable pool is not deleted: after NOT_FOUND the CO would forget it.
    refused(world.publish(&other), &[Code::Unavailable]);
    refused(world.delete(&other), &[Code::Unavailable]);
    refused(world.expand(&other, 64 << 20), &[Code::Unavailable]);
    refused(world.try_snapshot("snap", &other), &[Code::Unavailable]);
    other.id = vol.id.replacen(vol.uuid(), "0123456789abcdef0123456789abcdef", 1);
    refused(world.publish(&other), &[Code::NotFound]);
    world.delete(&other).unwrap();
    refused(world.expand(&other, 64 << 20), &[Code::NotFound]);
    refused(world.try_snapshot("snap", &other), &[Code::NotFound]);
    world.finish();
}
