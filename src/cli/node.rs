//! `holdfast node`: CSI Identity and Node on a socket, and this node's pools for the controllers.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use holdfast::config::{DaemonFlags, EnrolFlags, Flags, KubeletFlags, NodeConfig, NodeFlags, WireFlags};
use holdfast::daemon::{NodeDaemon, check_node};

use super::{PoolArguments, daemon};

/// Flags of `holdfast node`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The name of this node in the orchestrator. Default: NODE_NAME.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    #[command(flatten)]
    pools: PoolArguments,
    #[command(flatten)]
    node: NodeFlags,
    #[command(flatten)]
    wire: WireFlags,
    #[command(flatten)]
    enrol: EnrolFlags,
    #[command(flatten)]
    kubelet: KubeletFlags,
    #[command(flatten)]
    daemon: DaemonFlags,
}

impl Arguments {
    fn config(self) -> Result<NodeConfig> {
        let Self { node_name, pools, node, wire, enrol, kubelet, daemon } = self;
        let file = pools.file()?;
        let flags = Flags { node_name, pools: pools.pools, node, wire, enrol, kubelet, daemon, ..Flags::default() };
        Ok(NodeConfig::resolve(&flags, &file, |name| std::env::var(name).ok())?)
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// An error that prevents the start. A later error is logged, and the exit code is 1.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    daemon::run(arguments.config()?, |config| &config.serving, check_node, NodeDaemon::open, NodeDaemon::serve)
}
