//! `holdfast standalone`: the whole driver of one node in one process on one socket.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use holdfast::config::{Config, DaemonFlags, Flags, KubeletFlags};
use holdfast::daemon::{Standalone, check_standalone};

use super::{PoolArguments, daemon};

/// Flags of `holdfast standalone`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The name of this node in the orchestrator. Default: NODE_NAME.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    #[command(flatten)]
    pools: PoolArguments,
    #[command(flatten)]
    kubelet: KubeletFlags,
    #[command(flatten)]
    daemon: DaemonFlags,
}

impl Arguments {
    fn config(self) -> Result<Config> {
        let Self { node_name, pools, kubelet, daemon } = self;
        let file = pools.file()?;
        let flags = Flags { node_name, pools: pools.pools, kubelet, daemon, ..Flags::default() };
        Ok(Config::resolve(&flags, &file, |name| std::env::var(name).ok())?)
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// An error that prevents the start. A later error is logged, and the exit code is 1.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    daemon::run(arguments.config()?, |config| &config.serving, check_standalone, Standalone::open, Standalone::serve)
}
