//! Common to all daemons: flags, runtime and shutdown.

use std::future::Future;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use holdfast::config::{Flags, Serving};
use holdfast::daemon::Stop;
use holdfast::os::Os;
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

/// Checks the machine, opens a daemon, and serves until SIGTERM or SIGINT. `check` runs all checks that are possible
/// before anything is changed.
///
/// # Errors
/// An error that prevents the start. A later error is logged, and the exit code is 1.
pub(crate) fn run<C, D, F, G>(
    config: C,
    serving: impl FnOnce(&C) -> &Serving,
    check: impl FnOnce(&Os, &C) -> Result<(), Error>,
    open: impl FnOnce(C, Os) -> F,
    serve: impl FnOnce(D, Stop) -> G,
) -> Result<ExitCode>
where
    F: Future<Output = Result<D, Error>>,
    G: Future<Output = Result<(), Error>>,
{
    let os = Os::new();
    os.use_one_heap();
    os.raise_open_files().context("raise the limit of open files")?;
    check(&os, &config)?;
    let serving = serving(&config);
    init_logs(serving.log_format, serving.log_level.as_str())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ended = runtime.block_on(async {
        let daemon = open(config, os).await?;
        let (stop, stopped) = Stop::channel();
        wait_for_signals(stop)?;
        ended(serve(daemon, stopped).await)
    });
    // A thread that hangs in the kernel must not delay the exit: the next start finishes its operation.
    runtime.shutdown_background();
    ended
}

/// The exit code for the end of a daemon.
///
/// # Errors
/// An error that prevented the start.
fn ended(served: Result<(), Error>) -> Result<ExitCode> {
    match served {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.kind() == Kind::Precondition => Err(error.into()),
        Err(error) => {
            error!("{}", error.chain());
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The first SIGTERM or SIGINT starts the shutdown; a second one ends the process at once.
fn wait_for_signals(stop: watch::Sender<()>) -> Result<()> {
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
