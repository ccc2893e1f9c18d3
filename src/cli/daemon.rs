//! Common to all daemons: flags, runtime and shutdown.

use std::future::Future;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast::config::{Flags, Place, PoolConfig, Serving, apart, resolved};
use holdfast::kubelet::Registration;
use holdfast::os::{Entry, Os};
use holdfast::telemetry::init_logs;
use holdfast::types::{Error, Kind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, warn};

/// Two threads decode and answer calls; the work of each call runs on a thread of its own, up to this number at once.
const WORKERS: usize = 2;
const BLOCKING_THREADS: usize = 512;
const STACK: usize = 1 << 20;

/// Flags of every daemon.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DaemonArguments {
    /// The Unix socket on which CSI is served. Default: CSI_ENDPOINT.
    #[arg(long, value_name = "unix:///PATH")]
    endpoint: Option<String>,
    /// The address and port for metrics and health. Default: not served.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<String>,
    /// The format of log lines: text or json. Default: text.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// The lowest level of log lines: error, warn, info, debug or trace. Default: info.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl DaemonArguments {
    /// Adds these flags.
    pub(crate) fn flags(&self, others: Flags) -> Flags {
        Flags {
            endpoint: self.endpoint.clone(),
            metrics: self.metrics.clone(),
            log_format: self.log_format.clone(),
            log_level: self.log_level.clone(),
            ..others
        }
    }
}

/// Flags of daemons that connect to other daemons.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct WireArguments {
    /// The TCP address on which this process accepts connections.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// A directory with ca.crt, tls.crt and tls.key; changed files are loaded without a restart.
    #[arg(long, value_name = "DIR")]
    tls: Option<String>,
    /// The controllers issue the certificates, and verify nodes by their Kubernetes tokens.
    #[arg(long)]
    tls_auto: bool,
    /// No certificates and no encryption: for tests only.
    #[arg(long)]
    insecure_plain_text: bool,
    /// The time between two heartbeats, the same in all processes. Default: 5s.
    #[arg(long, value_name = "TIME")]
    heartbeat: Option<String>,
}

impl WireArguments {
    /// Adds these flags.
    pub(crate) fn flags(&self, others: Flags) -> Flags {
        Flags {
            listen: self.listen.clone(),
            tls: self.tls.clone(),
            tls_auto: self.tls_auto,
            insecure_plain_text: self.insecure_plain_text,
            heartbeat: self.heartbeat.clone(),
            ..others
        }
    }
}

/// Flags of daemons that serve a node.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct KubeletArguments {
    /// The directory that kubelet watches; the driver registers itself there. Default: use a registrar.
    #[arg(long, value_name = "DIR")]
    kubelet_registration: Option<String>,
    /// The path of the --endpoint socket as kubelet sees it. Default: the path of --endpoint.
    #[arg(long, value_name = "PATH")]
    kubelet_endpoint: Option<String>,
}

impl KubeletArguments {
    /// Adds these flags.
    pub(crate) fn flags(&self, others: Flags) -> Flags {
        Flags {
            kubelet_registration: self.kubelet_registration.clone(),
            kubelet_endpoint: self.kubelet_endpoint.clone(),
            ..others
        }
    }
}

/// The signal that the process must stop. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<()>);

impl Stop {
    /// Completes when the shutdown begins.
    pub(crate) async fn begun(mut self) {
        // A dropped sender means that no task waits for signals any more: that is a shutdown too.
        let _ = self.0.changed().await;
    }

    /// For tasks that wait for other events as well.
    pub(crate) fn receiver(&self) -> watch::Receiver<()> {
        self.0.clone()
    }
}

/// Serves until SIGTERM or SIGINT. `check` runs all checks that are possible before anything is changed.
///
/// # Errors
/// An error that prevents the start. A later error is logged, and the exit code is 1.
pub(crate) fn run<F>(
    serving: &Serving,
    check: impl FnOnce(&Os) -> Result<()>,
    live: impl FnOnce(Os, watch::Sender<()>, Stop) -> F,
) -> Result<ExitCode>
where
    F: Future<Output = Result<ExitCode>>,
{
    let os = Os::new();
    os.use_one_heap();
    os.raise_open_files().context("raise the limit of open files")?;
    check_socket(&os, &serving.socket, "--endpoint")?;
    check(&os)?;
    init_logs(serving.log_format, serving.log_level.as_str())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let (stop, stopped) = watch::channel(());
    let ended = runtime.block_on(live(os, stop, Stop(stopped)));
    // A thread that hangs in the kernel must not delay the exit: the next start finishes its operation.
    runtime.shutdown_background();
    ended
}

/// The exit code for the result of the CSI server.
///
/// # Errors
/// An error that prevented the start.
pub(crate) fn ended(served: Result<(), Error>) -> Result<ExitCode> {
    match served {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.kind() == Kind::Precondition => Err(error.into()),
        Err(error) => {
            error!("{}", error.chain());
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Checks that a socket can be created; `flag` is the flag that messages name.
fn check_socket(os: &Os, socket: &Path, flag: &str) -> Result<()> {
    let shown = socket.display();
    let directory = socket.parent().unwrap_or(Path::new("/"));
    if os.identity(directory)?.is_none() {
        bail!("the directory of the socket {shown} does not exist; run mkdir -p {}", directory.display());
    }
    if let Some(Entry::File | Entry::Directory | Entry::Symlink) = os.entry(socket)? {
        bail!("{shown} exists and is not a socket; move it away, or choose another {flag}");
    }
    if UnixStream::connect(socket).is_ok() {
        bail!("another process answers on {shown}; stop it, or choose another {flag}");
    }
    Ok(())
}

/// Checks the machine for a node with these pools and this registration; `places` are its other paths. The pools
/// themselves are checked when they are opened, each separately: the disk of one may not answer.
pub(crate) fn check_node(
    os: &Os,
    serving: &Serving,
    pools: &[PoolConfig],
    registration: Option<&Registration>,
    places: &[Place],
) -> Result<()> {
    let mut all = vec![Place::outside_pools("the socket of --endpoint", &serving.socket)];
    all.extend(registration.iter().flat_map(|registration| Place::of_kubelet(registration)));
    all.extend_from_slice(places);
    apart(pools, &all, resolved)?;
    if let Some(registration) = registration {
        check_registration(os, registration)?;
    }
    if os.identity(Path::new("/dev/loop-control"))?.is_none() {
        bail!(
            "/dev/loop-control is missing: load the loop module (modprobe loop), or give this container the host's /dev"
        );
    }
    Ok(())
}

fn check_registration(os: &Os, registration: &Registration) -> Result<()> {
    let directory = registration.directory();
    if !directory.is_dir() {
        bail!(
            "--kubelet-registration: {} is not a directory; set the directory that kubelet watches: plugins_registry in \
             its root directory, which kubelet creates when it starts",
            directory.display()
        );
    }
    for socket in [&registration.socket, &registration.registrar] {
        check_socket(os, socket, "--kubelet-registration; do not run a registrar beside the driver with this flag")?;
    }
    Ok(())
}

/// The first SIGTERM or SIGINT starts the shutdown; a second one ends the process at once.
pub(crate) fn wait_for_signals(stop: watch::Sender<()>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        stop.send_replace(());
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        warn!("received a second signal: exiting at once");
        std::process::exit(1);
    });
    Ok(())
}
