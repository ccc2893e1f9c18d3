//! `holdfast standalone`: the whole driver of one node in one process on one socket.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use holdfast::config::{Config, Flags};
use holdfast::daemon::{Standalone, check_standalone};

use super::PoolArguments;
use super::daemon::{self, DaemonArguments, KubeletArguments};

/// Flags of `holdfast standalone`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The name of this node in the orchestrator. Default: NODE_NAME.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    #[command(flatten)]
    pools: PoolArguments,
    #[command(flatten)]
    kubelet: KubeletArguments,
    #[command(flatten)]
    daemon: DaemonArguments,
}

impl Arguments {
    fn config(&self) -> Result<Config> {
        let flags = Flags { node_name: self.node_name.clone(), ..self.pools.flags() };
        let flags = self.daemon.flags(self.kubelet.flags(flags));
        Ok(Config::resolve(&flags, &self.pools.file()?, |name| std::env::var(name).ok())?)
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// An error that prevents the start. A later error is logged, and the exit code is 1.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    daemon::run(arguments.config()?, |config| &config.serving, check_standalone, Standalone::open, Standalone::serve)
}
