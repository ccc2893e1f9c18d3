//! Common to all daemons: runtime, signals and exit codes.

use std::future::Future;
use std::process::ExitCode;

use anyhow::{Context, Result};
use holdfast::config::Serving;
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
