//! The configuration: a file and flags, refused in words, or a configuration that keeps each of the three daemons in its
//! place.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use holdfast::config::{DaemonFlags, Config, ControllerConfig, File, Flags, NodeConfig, PoolConfig};
use holdfast::kubelet::Registration;
use holdfast::route::Rhythm;

use crate::text;

/// sun_path of unix(7), without its terminator.
const MOST_PATH: usize = 107;

/// Reads the text as flags, one a line, and as a configuration file, and puts both together.
pub fn run(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let typed = typed(text);
    resolved(&typed, &File::default());
    let file = match File::parse(Path::new("h.yaml"), text) {
        Ok(file) => file,
        Err(error) => {
            let said = error.to_string();
            return assert!(said.starts_with("h.yaml") && !said.contains('\n'), "{said:?}");
        }
    };
    let said = |text: &str| Some(text.to_owned());
    let daemon = DaemonFlags { endpoint: said("unix:///run/h.sock"), ..DaemonFlags::default() };
    let few = Flags { node_name: said("n1"), daemon, ..Flags::default() };
    for flags in [&Flags::default(), &few, &typed] {
        resolved(flags, &file);
    }
}

/// As the command line has them; what is no flag is nothing.
fn typed(text: &str) -> Flags {
    let mut flags = Flags::default();
    for line in text.lines() {
        let (flag, value) = line.split_once(' ').unwrap_or((line, ""));
        let value = || value.to_owned();
        match flag {
            "--endpoint" => flags.daemon.endpoint = Some(value()),
            "--node-name" => flags.node_name = Some(value()),
            "--pool" => flags.pools.push(value()),
            "--metrics" => flags.daemon.metrics = Some(value()),
            "--log-format" => flags.daemon.log_format = Some(value()),
            "--log-level" => flags.daemon.log_level = Some(value()),
            "--listen" => flags.wire.listen = Some(value()),
            "--advertise" => flags.node.advertise = Some(value()),
            "--controllers" => flags.node.controllers.push(value()),
            "--fabric" => flags.node.fabric = Some(value()),
            "--state" => flags.node.state = Some(value()),
            "--tls" => flags.wire.tls = Some(value()),
            "--insecure-plain-text" => flags.wire.insecure_plain_text = true,
            "--heartbeat" => flags.wire.heartbeat = Some(value()),
            "--kubelet-registration" => flags.kubelet.kubelet_registration = Some(value()),
            "--kubelet-endpoint" => flags.kubelet.kubelet_endpoint = Some(value()),
            _ => {}
        }
    }
    flags
}

/// What each daemon makes of them.
fn resolved(flags: &Flags, file: &File) {
    if let Some(config) = accepted(Config::resolve(flags, file, |_| None)) {
        a_socket(&config.serving.socket);
        assert!(!config.pools.is_empty());
        apart(&config.pools);
        registered(config.registration);
    }
    if let Some(config) = accepted(ControllerConfig::resolve(flags, file, |_| None)) {
        a_socket(&config.serving.socket);
        steady(config.rhythm);
    }
    if let Some(config) = accepted(NodeConfig::resolve(flags, file, |_| None)) {
        a_socket(&config.serving.socket);
        apart(&config.pools);
        registered(config.registration);
        steady(config.rhythm);
        assert!(!config.controllers.is_empty() && config.fabric.is_none_or(|fabric| !fabric.name.is_empty() && !fabric.ports.is_empty()));
        for address in config.controllers.iter().chain([&config.advertise]) {
            let (host, port) = address.rsplit_once(':').expect("HOST:PORT");
            assert!(!host.is_empty() && port.parse::<u16>().is_ok(), "{address:?}");
        }
    }
}

fn accepted<T>(result: holdfast::types::Result<T>) -> Option<T> {
    result.map_err(|error| assert!(!error.to_string().is_empty())).ok()
}

fn a_socket(path: &Path) {
    assert!(path.is_absolute() && path.as_os_str().len() <= MOST_PATH, "{}", path.display());
}

fn steady(rhythm: Rhythm) {
    assert!((Duration::from_millis(100)..=Duration::from_secs(60)).contains(&rhythm.interval), "{rhythm:?}");
}

fn registered(registration: Option<Registration>) {
    let Some(registration) = registration else { return };
    a_socket(&registration.socket);
    a_socket(&PathBuf::from(&registration.endpoint));
    assert!(!registration.endpoint.contains('\0'), "{:?}", registration.endpoint);
}

fn apart(pools: &[PoolConfig]) {
    for pool in pools {
        let plain = |part: Component| matches!(part, Component::RootDir | Component::Normal(_));
        assert!(pool.root().is_absolute() && pool.root().parent().is_some() && pool.root().components().all(plain));
        let others = pools.iter().filter(|other| other.root().starts_with(pool.root()));
        assert_eq!(others.count(), 1, "one pool lies in another");
    }
}
