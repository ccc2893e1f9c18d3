//! What every daemon has in common: its flags, its runtime, its end.

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

/// Calls are decoded and answered on two threads; the work of each runs on one of its own, at most so many at once.
const WORKERS: usize = 2;
const BLOCKING_THREADS: usize = 512;
const STACK: usize = 1 << 20;

/// Flags of every daemon.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct DaemonArguments {
    /// The Unix socket CSI is served on. Default: CSI_ENDPOINT.
    #[arg(long, value_name = "unix:///PATH")]
    endpoint: Option<String>,
    /// Serves metrics and health here. Default: nowhere.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<String>,
    /// How a log line looks: text or json. Default: text.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// The least important lines that are written: error, warn, info, debug or trace. Default: info.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl DaemonArguments {
    /// Adds what they say.
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

/// Flags of daemons that speak to others.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct WireArguments {
    /// Where other nodes and controllers reach this one.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// A directory with ca.crt, tls.crt and tls.key; renewed files are taken without a restart.
    #[arg(long, value_name = "DIR")]
    tls: Option<String>,
    /// The controllers make the certificates, and know nodes by their tokens of Kubernetes.
    #[arg(long)]
    tls_auto: bool,
    /// Nobody is verified and nothing encrypted: for tests only.
    #[arg(long)]
    insecure_plain_text: bool,
    /// The time between two heartbeats, the same everywhere. Default: 5s.
    #[arg(long, value_name = "TIME")]
    heartbeat: Option<String>,
}

impl WireArguments {
    /// Adds what they say.
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
    /// Registers the driver with kubelet, which watches this directory. Default: a registrar beside the driver does.
    #[arg(long, value_name = "DIR")]
    kubelet_registration: Option<String>,
    /// The socket of --endpoint as kubelet sees it. Default: its path here.
    #[arg(long, value_name = "PATH")]
    kubelet_endpoint: Option<String>,
}

impl KubeletArguments {
    /// Adds what they say.
    pub(crate) fn flags(&self, others: Flags) -> Flags {
        Flags {
            kubelet_registration: self.kubelet_registration.clone(),
            kubelet_endpoint: self.kubelet_endpoint.clone(),
            ..others
        }
    }
}

/// The end of the process, when it has been asked for. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<()>);

impl Stop {
    /// Completes when the end begins.
    pub(crate) async fn begun(mut self) {
        // The sender is dropped only when nobody waits for signals any more: that is an end too.
        let _ = self.0.changed().await;
    }

    /// For those who wait for more than the end.
    pub(crate) fn receiver(&self) -> watch::Receiver<()> {
        self.0.clone()
    }
}

/// Serves until SIGTERM or SIGINT. `check` sees what can be seen to be wrong before anything is touched.
///
/// # Errors
/// What keeps it from starting. What ends it later is logged, and the exit code 1.
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
    // A thread that hangs in the kernel must not keep the process: what it began is finished by the next start.
    runtime.shutdown_background();
    ended
}

/// The exit code of what CSI's server ended with.
///
/// # Errors
/// A refusal to start.
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

/// Whether a socket can be made; `flag` is where messages say it was chosen.
fn check_socket(os: &Os, socket: &Path, flag: &str) -> Result<()> {
    let shown = socket.display();
    let directory = socket.parent().unwrap_or(Path::new("/"));
    if os.identity(directory)?.is_none() {
        bail!("the directory of the socket {shown} does not exist; make it: mkdir -p {}", directory.display());
    }
    if let Some(Entry::File | Entry::Directory | Entry::Symlink) = os.entry(socket)? {
        bail!("{shown} is not a socket; move it away, or choose another {flag}");
    }
    if UnixStream::connect(socket).is_ok() {
        bail!("another process answers on {shown}; stop it, or give this one another {flag}");
    }
    Ok(())
}

/// What a node with these pools, known to kubelet this way, needs of its machine; `places` are other paths of its own. The
/// pools themselves are looked at when they are opened, each on its own: the disk of one may not answer.
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
            "--kubelet-registration: {} is not a directory; name the one kubelet watches, which it makes when it starts: \
             plugins_registry in its root directory",
            directory.display()
        );
    }
    for socket in [&registration.socket, &registration.registrar] {
        check_socket(os, socket, "--kubelet-registration; a registrar beside the driver is not needed with it")?;
    }
    Ok(())
}

/// The first SIGTERM or SIGINT begins the end; a second one ends the process at once.
pub(crate) fn wait_for_signals(stop: watch::Sender<()>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        stop.send_replace(());
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        warn!("a second signal: ending at once");
        std::process::exit(1);
    });
    Ok(())
}
