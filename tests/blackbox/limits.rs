//! Limits of the process and unusual outputs: a failure is reported and ends nothing else.

use tonic::Code;

use crate::harness::{MIB, PoolFs, Use, World, create_request, driver_binary, refused, try_run};

/// Runs the driver's binary in a shell, which redirects its output.
fn in_shell(line: &str) -> (Option<i32>, String) {
    let done = try_run("/bin/sh", &["-c", &line.replace("HOLDFAST", driver_binary())]);
    (done.code, done.stderr)
}

#[test]
fn output_that_cannot_be_written_is_no_success() {
    let world = World::new(PoolFs::Xfs);
    let pool = format!("default=file:{}", world.pool.display());
    let commands = [
        "--version".to_owned(),
        "--help".to_owned(),
        format!("pools --pool {pool}"),
        format!("volumes --output json --pool {pool}"),
        format!("doctor --pool {pool}"),
    ];
    for command in commands {
        let (code, said) = in_shell(&format!("exec HOLDFAST {command} > /dev/full"));
        assert_eq!(code, Some(2), "{command}: {said}");
        assert!(
            said.contains("standard output cannot be written") && said.contains("No space left"),
            "{command}: {said}"
        );
        // A reader that closed the pipe has read enough.
        let (code, said) = in_shell(&format!("HOLDFAST {command} | true; true"));
        assert_eq!((code, said.as_str()), (Some(0), ""), "{command}");
    }
    world.finish();
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_not_the_driver_s_end() {
    let mut world = World::new(PoolFs::Xfs);
    let pid = world.daemon().pid().to_string();
    let limit = |bytes: &str| {
        let done = try_run("/usr/bin/prlimit", &["--pid", &pid, &format!("--fsize={bytes}")]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
    };
    limit("8388608:unlimited");
    let said = refused(world.try_create(Use::Ext4, &create_request("vol", Use::Ext4, 32 * MIB)), &[Code::OutOfRange]);
    assert!(said.contains("ulimit -f"), "{said}");
    assert!(world.volume_ids().is_empty() && world.in_pool("volumes").is_empty(), "something was left");
    limit("unlimited:unlimited");
    let vol = world.create("vol", Use::Ext4);
    world.attach(&vol).unwrap();
    world.finish();
}

#[test]
fn a_node_whose_own_files_would_be_in_its_pool_does_not_start() {
    let world = World::new(PoolFs::Xfs);
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    for directory in ["pool/state", "beside", "plugins_registry"] {
        std::fs::create_dir_all(at(directory)).unwrap();
    }
    std::os::unix::fs::symlink(at("pool"), at("link")).unwrap();
    let (pool, socket) = (format!("default=file:{}", at("pool")), format!("unix://{}", at("csi.sock")));
    let node = |more: &[&str]| {
        let own = [
            "node",
            "--node-name",
            "n1",
            "--pool",
            &pool,
            "--listen",
            "127.0.0.1:0",
            "--controllers",
            "127.0.0.1:1",
            "--insecure-plain-text",
        ];
        let done = try_run(driver_binary(), &[&own, more].concat());
        assert_eq!(done.code, Some(2), "{more:?}: {}", done.stderr);
        assert!(std::fs::read_dir(at("pool")).unwrap().count() == 1, "something was written");
        done.stderr
    };
    for state in ["pool", "pool/state", "link/state", "link/not-yet"] {
        let said = node(&["--endpoint", &socket, "--state", &at(state)]);
        assert!(said.contains("state directory") && said.contains("overlap"), "{said}");
    }
    let inside = format!("unix://{}", at("pool/csi.sock"));
    assert!(node(&["--endpoint", &inside, "--state", &at("beside")]).contains("socket"));
    let certificates =
        node(&["--endpoint", &socket, "--state", &at("beside"), "--kubelet-registration", &at("plugins_registry")]);
    assert!(certificates.contains("kubelet's directory"), "{certificates}");
    // The default output of holdfast node, with the pool of the former README.
    let done = try_run(
        driver_binary(),
        &[
            "node",
            "--node-name",
            "n1",
            "--pool",
            "default=file:/var/lib/holdfast",
            "--listen",
            "127.0.0.1:0",
            "--controllers",
            "127.0.0.1:1",
            "--insecure-plain-text",
            "--endpoint",
            &socket,
        ],
    );
    assert!(done.code == Some(2) && done.stderr.contains("state directory"), "{}", done.stderr);
    world.finish();
}
