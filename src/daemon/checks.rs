//! Checks of the machine before anything is changed.

use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::config::{Config, ControllerConfig, NodeConfig, Place, PoolConfig, Serving, TlsMode, apart, resolved};
use crate::kubelet::Registration;
use crate::os::{Entry, Os};
use crate::types::{Error, Kind, OsContext, Result};

/// The flag of the socket for CSI, which messages name.
const ENDPOINT: &str = "--endpoint";

/// Checks the machine for a controller: that its socket can be created.
///
/// # Errors
/// `Precondition` with the reason and the next step; `Internal` when the path cannot be read.
pub fn check_controller(os: &Os, config: &ControllerConfig) -> Result<()> {
    check_socket(os, &config.serving.socket, ENDPOINT)
}

/// Checks the machine for a standalone driver. The pools are checked when they are opened, each separately: the disk of
/// one may not answer.
///
/// # Errors
/// As [`check_controller`]; `InvalidArgument` for paths that must not be the same.
pub fn check_standalone(os: &Os, config: &Config) -> Result<()> {
    check(os, &config.serving, &config.pools, config.registration.as_ref(), &[])
}

/// The same, for a node.
///
/// # Errors
/// As [`check_controller`]; `InvalidArgument` for paths that must not be the same.
pub fn check_node(os: &Os, config: &NodeConfig) -> Result<()> {
    let mut places = vec![Place::outside_pools("the state directory (--state)", &config.state)];
    if let TlsMode::Files(directory) = &config.tls {
        places.push(Place::outside_pools("the certificates of --tls", directory));
    }
    check(os, &config.serving, &config.pools, config.registration.as_ref(), &places)
}

/// `places` are the other paths of the daemon.
fn check(
    os: &Os,
    serving: &Serving,
    pools: &[PoolConfig],
    registration: Option<&Registration>,
    places: &[Place],
) -> Result<()> {
    check_socket(os, &serving.socket, ENDPOINT)?;
    let mut all = vec![Place::outside_pools("the socket of --endpoint", &serving.socket)];
    all.extend(registration.iter().flat_map(|registration| Place::of_kubelet(registration)));
    all.extend_from_slice(places);
    apart(pools, &all, resolved)?;
    if let Some(registration) = registration {
        check_registration(os, registration)?;
    }
    if os.identity(Path::new("/dev/loop-control")).at(|| "stat /dev/loop-control")?.is_none() {
        return Err(refuse(
            "/dev/loop-control is missing: load the loop module (modprobe loop), or give this container the host's /dev",
        ));
    }
    Ok(())
}

fn check_registration(os: &Os, registration: &Registration) -> Result<()> {
    let directory = registration.directory();
    if !directory.is_dir() {
        return Err(refuse(format!(
            "--kubelet-registration: {} is not a directory; set the directory that kubelet watches: plugins_registry in \
             its root directory, which kubelet creates when it starts",
            directory.display()
        )));
    }
    for socket in [&registration.socket, &registration.registrar] {
        check_socket(os, socket, "--kubelet-registration; do not run a registrar beside the driver with this flag")?;
    }
    Ok(())
}

/// Checks that a socket can be created; `flag` is the flag that messages name.
fn check_socket(os: &Os, socket: &Path, flag: &str) -> Result<()> {
    let shown = socket.display();
    let directory = socket.parent().unwrap_or(Path::new("/"));
    let stat = |path: &Path| format!("stat {}", path.display());
    if os.identity(directory).at(|| stat(directory))?.is_none() {
        return Err(refuse(format!(
            "the directory of the socket {shown} does not exist; run mkdir -p {}",
            directory.display()
        )));
    }
    if let Some(Entry::File | Entry::Directory | Entry::Symlink) = os.entry(socket).at(|| stat(socket))? {
        return Err(refuse(format!("{shown} exists and is not a socket; move it away, or choose another {flag}")));
    }
    if UnixStream::connect(socket).is_ok() {
        return Err(refuse(format!("another process answers on {shown}; stop it, or choose another {flag}")));
    }
    Ok(())
}

fn refuse(sentence: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Precondition, sentence)
}
