//! The registration with kubelet, by a small client that behaves like kubelet's watcher.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast::csi::proto::NodeGetInfoRequest;
use holdfast::csi::proto::node_client::NodeClient;
use holdfast::kubelet::proto::registration_client::RegistrationClient;
use holdfast::kubelet::proto::{InfoRequest, PluginInfo, RegistrationStatus};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};

use crate::harness::raw::{Raw, figures};
use crate::harness::{PoolFs, Use, World, await_that, check_tree, write_tree};
use crate::observability::get;

const PATIENCE: Duration = Duration::from_secs(30);

/// Kubelet, as drivers see it: it watches a directory and has its own paths.
pub(crate) struct Kubelet {
    directory: PathBuf,
    runtime: Runtime,
}

/// One file at a path: inode numbers are reused, so with its creation time.
type Seen = (u64, i64, i64);

impl Kubelet {
    /// Below a directory of the test.
    pub(crate) fn new(root: &Path) -> Self {
        // In its own root, like kubelet's: no pool may be in it.
        let directory = root.join("kubelet/plugins_registry");
        fs::create_dir_all(&directory).unwrap();
        Self { directory, runtime: Builder::new_current_thread().enable_all().build().unwrap() }
    }

    pub(crate) fn directory(&self) -> &str {
        self.directory.to_str().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("kubelet@csi.holdfast.storage-reg.sock")
    }

    fn registrar(&self) -> PathBuf {
        self.directory.join("csi.holdfast.storage-reg.sock")
    }

    fn seen(&self) -> Option<Seen> {
        fs::symlink_metadata(self.socket()).ok().map(|there| (there.ino(), there.mtime(), there.mtime_nsec()))
    }

    /// Waits for a socket that is not the one seen before.
    fn appears(&self, before: Option<Seen>) -> Seen {
        await_that("a socket appears in kubelet's directory", PATIENCE, || {
            self.seen().is_some_and(|now| Some(now) != before) && UnixStream::connect(self.socket()).is_ok()
        });
        self.seen().unwrap()
    }

    fn channel(&self, socket: &Path) -> Channel {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        self.runtime.block_on(endpoint.timeout(PATIENCE).connect()).unwrap()
    }

    fn info(&self) -> PluginInfo {
        let mut client = RegistrationClient::new(self.channel(&self.socket()));
        self.runtime.block_on(client.get_info(InfoRequest {})).unwrap().into_inner()
    }

    fn say(&self, plugin_registered: bool, error: &str) {
        let mut client = RegistrationClient::new(self.channel(&self.socket()));
        let status = RegistrationStatus { plugin_registered, error: error.to_owned() };
        self.runtime.block_on(client.notify_registration_status(status)).unwrap();
    }

    /// Everything kubelet does with a new socket; returns the node id.
    pub(crate) fn register(&self) -> String {
        self.appears(None);
        let info = self.info();
        assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.holdfast.storage"));
        assert_eq!(info.supported_versions, ["1.0.0"]);
        let mut node = NodeClient::new(self.channel(Path::new(&info.endpoint)));
        let node = self.runtime.block_on(node.node_get_info(NodeGetInfoRequest {})).unwrap().into_inner();
        self.say(true, "");
        node.node_id
    }
}

/// A world whose driver, not started yet, registers itself.
fn registering() -> (World, Kubelet) {
    let mut world = World::stopped(PoolFs::Xfs, 1 << 30);
    let kubelet = Kubelet::new(world.scratch.path());
    world.add_arguments(&["--kubelet-registration", kubelet.directory()]);
    (world, kubelet)
}

fn await_metric(world: &World, line: &str) {
    await_that(line, PATIENCE, || get(world, "/metrics").1.lines().any(|said| said == line));
}

#[test]
fn kubelet_finds_the_driver_and_loses_it_when_it_ends() {
    let (mut world, kubelet) = registering();
    world.start();
    assert_eq!(kubelet.register(), world.node);
    assert_eq!(kubelet.info().endpoint, world.socket.to_str().unwrap());
    assert_eq!(fs::metadata(kubelet.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    await_metric(&world, "holdfast_kubelet_registered 1");
    let vol = world.create("vol", Use::Ext4);
    let target = world.attach(&vol).unwrap();
    write_tree(&target, 7);
    assert_eq!(world.terminate(), 0);
    assert_eq!(fs::read_dir(&kubelet.directory).unwrap().count(), 0, "a driver that is gone is still offered");
    check_tree(&target, 7);

    // The next release replaces it; the pod ran all the time.
    world.start();
    assert_eq!(kubelet.register(), world.node);
    check_tree(&target, 7);
    world.finish();
}

#[test]
fn a_driver_in_a_container_says_where_kubelet_sees_its_socket() {
    let mut world = World::stopped(PoolFs::Xfs, 1 << 30);
    let host = world.scratch.path().join("host");
    symlink(world.scratch.path(), &host).unwrap();
    let kubelet = Kubelet::new(world.scratch.path());
    let file = world.scratch.path().join("holdfast.yaml");
    let text = format!(
        "pools: [{{name: test, path: {}}}]\nkubeletRegistration: {}\nkubeletEndpoint: {}\n",
        world.pool.display(),
        kubelet.directory(),
        host.join("csi.sock").display()
    );
    fs::write(&file, text).unwrap();
    world.configure_by(&file);
    world.start();
    assert_eq!(kubelet.register(), world.node);
    assert_eq!(kubelet.info().endpoint, host.join("csi.sock").to_str().unwrap());
    world.finish();
}

#[test]
fn a_refusal_is_said_and_the_driver_serves_on_and_offers_itself_again() {
    let (mut world, kubelet) = registering();
    world.start();
    let first = kubelet.appears(None);
    let vol = world.create("vol", Use::Ext4);
    let target = world.attach(&vol).unwrap();
    write_tree(&target, 3);
    kubelet.say(false, "RegisterPlugin error -- plugin registration failed with err: no such node");
    await_metric(&world, "holdfast_kubelet_registrations_total{outcome=\"refused\"} 1");
    await_metric(&world, "holdfast_kubelet_registered 0");
    let log = world.log();
    let line = log.lines().find(|line| line.contains("no such node")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("ERROR"), "{line}");
    kubelet.appears(Some(first));
    assert_eq!(kubelet.register(), world.node);
    await_metric(&world, "holdfast_kubelet_registered 1");
    check_tree(&target, 3);
    world.finish();
}

#[test]
fn a_killed_driver_s_socket_is_replaced() {
    let (mut world, kubelet) = registering();
    world.start();
    kubelet.register();
    let first = kubelet.seen().unwrap();
    world.kill9();
    assert_eq!(kubelet.seen(), Some(first), "the socket must not be removed");
    assert!(UnixStream::connect(kubelet.socket()).is_err());
    world.start();
    kubelet.appears(Some(first));
    assert_eq!(kubelet.register(), world.node);
    world.finish();
}

#[test]
fn a_socket_that_somebody_removed_comes_back() {
    let (mut world, kubelet) = registering();
    world.start();
    kubelet.register();
    let first = kubelet.seen().unwrap();
    fs::remove_file(kubelet.socket()).unwrap();
    kubelet.appears(Some(first));
    assert_eq!(kubelet.register(), world.node);
    world.finish();
}

#[test]
fn what_is_in_the_way_is_left_alone_and_the_driver_does_not_start() {
    let (mut world, kubelet) = registering();
    let refused = |world: &mut World| {
        let before = world.log().len();
        world.launch();
        assert_eq!(world.daemon().wait(PATIENCE), 2);
        world.stopped_by_itself();
        world.log().split_off(before)
    };
    fs::write(kubelet.socket(), "precious").unwrap();
    let said = refused(&mut world);
    assert!(said.contains("is not a socket") && said.contains("--kubelet-registration"), "{said}");
    assert_eq!(fs::read_to_string(kubelet.socket()).unwrap(), "precious");

    fs::remove_file(kubelet.socket()).unwrap();
    for socket in [kubelet.socket(), kubelet.registrar()] {
        let other = UnixListener::bind(&socket).unwrap();
        let said = refused(&mut world);
        assert!(said.contains("another process answers") && said.contains("registrar"), "{said}");
        assert!(UnixStream::connect(&socket).is_ok());
        drop(other);
    }

    fs::remove_dir_all(&kubelet.directory).unwrap();
    let said = refused(&mut world);
    assert!(said.contains("is not a directory") && said.contains("plugins_registry"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");

    fs::create_dir(&kubelet.directory).unwrap();
    world.start();
    kubelet.register();
    world.finish();
}

#[test]
fn connections_to_the_registration_s_socket_are_few_and_kubelet_is_answered() {
    let (mut world, kubelet) = registering();
    world.start();
    kubelet.register();
    let (_, before) = figures(world.daemon().pid()).unwrap();
    let mut all: Vec<_> = (0..300)
        .map(|i| {
            let mut raw = Raw::connect(&kubelet.socket());
            if i % 2 == 0 {
                raw.greet(65_535);
                raw.call(1, "/pluginregistration.Registration/NotifyRegistrationStatus", &[]);
                raw.message(1, 1 << 19, &[0; 500], false);
            }
            raw
        })
        .collect();
    assert_eq!(kubelet.info().name, "csi.holdfast.storage");
    world.create("vol", Use::Block);
    let (_, now) = figures(world.daemon().pid()).unwrap();
    assert!(now <= before + 40, "{before} descriptors became {now}");
    await_that("they are hung up on", PATIENCE, || {
        all.retain_mut(|raw| !raw.closed_within(Duration::from_millis(1)));
        all.len() <= 8
    });
    assert_eq!(kubelet.info().name, "csi.holdfast.storage");
    drop(all);
    world.finish();
}
