//! `holdfast standalone`: the whole driver of one node in one process on one socket.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast::config::{Config, Flags, PoolConfig};
use holdfast::csi::{ServeConfig, ServeController, ThisNode, serve};
use holdfast::home::{Home, LocalHome};
use holdfast::node::Node;
use holdfast::os::{Entry, Os};
use holdfast::pool::{self, Cloning, Pool};
use holdfast::route::{Directory, NO_FABRIC, Router};
use holdfast::telemetry::{Http, Metrics, PoolWatch, init_logs};
use holdfast::types::{Kind, NodeId};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::PoolArguments;

/// Calls are decoded and answered on two threads; the work of each runs on one of its own, at most so many at once.
const WORKERS: usize = 2;
const BLOCKING_THREADS: usize = 512;
const STACK: usize = 1 << 20;

/// Flags of `holdfast standalone`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The Unix socket CSI is served on. Default: CSI_ENDPOINT.
    #[arg(long, value_name = "unix:///PATH")]
    endpoint: Option<String>,
    /// This node, as the orchestrator calls it. Default: NODE_NAME.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    #[command(flatten)]
    pools: PoolArguments,
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

impl Arguments {
    fn config(&self) -> Result<Config> {
        let flags = Flags {
            endpoint: self.endpoint.clone(),
            node_name: self.node_name.clone(),
            metrics: self.metrics.clone(),
            log_format: self.log_format.clone(),
            log_level: self.log_level.clone(),
            ..self.pools.flags()
        };
        Ok(Config::resolve(&flags, &self.pools.file()?, |name| std::env::var(name).ok())?)
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting. What ends it later is logged, and the exit code 1.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let config = arguments.config()?;
    let os = Os::new();
    os.use_one_heap();
    check_surroundings(&os, &config)?;
    init_logs(config.log_format, config.log_level.as_str())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ended = runtime.block_on(live(config, os));
    // A thread that hangs in the kernel must not keep the process: what it began is finished by the next start.
    runtime.shutdown_background();
    ended
}

/// What can be seen to be wrong before anything is touched.
fn check_surroundings(os: &Os, config: &Config) -> Result<()> {
    let socket = config.socket.display();
    let directory = config.socket.parent().unwrap_or(Path::new("/"));
    if os.identity(directory)?.is_none() {
        bail!("the directory of the socket {socket} does not exist; make it: mkdir -p {}", directory.display());
    }
    if let Some(Entry::File | Entry::Directory | Entry::Symlink) = os.entry(&config.socket)? {
        bail!("{socket} is not a socket; move it away, or choose another --endpoint");
    }
    if UnixStream::connect(&config.socket).is_ok() {
        bail!("another process answers on {socket}; stop it, or give this one another --endpoint");
    }
    for pool in &config.pools {
        if os.identity(pool.root())?.is_none() {
            bail!("the directory of pool {} does not exist; make it: mkdir -p {}", pool.spec, pool.root().display());
        }
    }
    if os.identity(Path::new("/dev/loop-control"))?.is_none() {
        bail!(
            "/dev/loop-control is missing: load the loop module (modprobe loop), or give this container the host's /dev"
        );
    }
    Ok(())
}

async fn live(config: Config, os: Os) -> Result<ExitCode> {
    let (stop, stopped) = watch::channel(());
    let metrics = Metrics::new(os.activity().clone());
    let served = Arc::new(OnceLock::<Arc<Router>>::new());
    let (figures, extents) = (Arc::clone(&served), Arc::clone(&served));
    let pools = PoolWatch::new(
        move || figures.get().map_or_else(|| Ok(Vec::new()), |router| router.figures()),
        move || extents.get().map_or_else(|| Ok(Vec::new()), |router| router.extents()),
    );
    // Everything that can refuse comes before the first line of the log.
    let http = match config.metrics {
        Some(address) => Some(Http::bind(address, Arc::clone(&metrics), pools.clone()).await?),
        None => None,
    };
    let id = config.node.clone();
    let (home, node, said) = {
        let (os, configs, id) = (os.clone(), config.pools.clone(), id.clone());
        tokio::task::spawn_blocking(move || open(&os, &configs, id)).await.context("open the pools")??
    };
    let router = Arc::new(Router::new(Directory::standalone(home)));
    let _ = served.set(Arc::clone(&router));
    pools.opened();
    wait_for_signals(stop)?;
    if let Some(http) = http {
        let until = stopped.clone();
        tokio::spawn(async move {
            if let Err(error) = http.serve(first(until)).await {
                error!("{}", error.chain());
            }
        });
    }
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %id,
        endpoint = %config.socket.display(),
        pools = said,
        metrics = config.metrics.map(|address| address.to_string()),
        "holdfast serves"
    );
    let serving = ServeConfig {
        socket: config.socket,
        router,
        controller: ServeController::Yes,
        node: Some(ThisNode { id, fabric: NO_FABRIC.to_owned(), workflows: Arc::new(node) }),
        metrics,
        pools,
    };
    match serve(serving, first(stopped)).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.kind() == Kind::Precondition => Err(error.into()),
        Err(error) => {
            error!("{}", error.chain());
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Opens every pool and puts the node on top of them. Blocks.
fn open(os: &Os, configs: &[PoolConfig], id: NodeId) -> Result<(Arc<dyn Home>, Node, String)> {
    let mut pools: Vec<(Arc<dyn Pool>, _)> = Vec::new();
    for config in configs {
        pools.push((pool::open(os, &config.spec, &id)?, config.limits));
    }
    let home: Arc<dyn Home> = Arc::new(LocalHome::open(os.clone(), id.clone(), pools.clone())?);
    let said = pools.iter().map(|(pool, _)| in_words(&**pool)).collect::<Result<Vec<_>>>()?.join(", ");
    Ok((Arc::clone(&home), Node::new(os.clone(), id, home), said))
}

/// A pool for the line that says what is on.
fn in_words(pool: &dyn Pool) -> Result<String> {
    let (identity, room) = (pool.identity(), pool.room()?);
    let cloning = match pool.abilities().cloning {
        Cloning::Reflink { .. } => "reflink",
        Cloning::Copy => "copy",
    };
    Ok(format!(
        "{} ({} in {}, {cloning}, {} of {} free)",
        identity.name, identity.kind, identity.place, room.available, room.total
    ))
}

/// The first SIGTERM or SIGINT begins the end; a second one ends the process at once.
fn wait_for_signals(stop: watch::Sender<()>) -> Result<()> {
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

/// Completes when the end begins.
async fn first(mut stopped: watch::Receiver<()>) {
    let _ = stopped.changed().await;
}
