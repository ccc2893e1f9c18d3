//! `holdfast node`: CSI Identity and Node on a socket, and this node's pools for the controllers.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use holdfast::config::{Flags, NodeConfig};
use holdfast::daemon::{NodeDaemon, check_node};

use super::PoolArguments;
use super::auto::EnrolArguments;
use super::daemon::{self, DaemonArguments, KubeletArguments, WireArguments};

/// Flags of `holdfast node`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The name of this node in the orchestrator. Default: NODE_NAME.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    #[command(flatten)]
    pools: PoolArguments,
    /// The controllers; a name with several addresses means all of them. Repeatable, or separated by commas.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    controllers: Vec<String>,
    /// The address that controllers connect to. Default: --listen.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The name of the storage network of this node. Default: none.
    #[arg(long, value_name = "NAME")]
    fabric: Option<String>,
    /// The state directory: the known pools of all nodes, and the node's certificate. Default: /var/lib/holdfast.
    #[arg(long, value_name = "DIR")]
    state: Option<String>,
    #[command(flatten)]
    wire: WireArguments,
    #[command(flatten)]
    enrol: EnrolArguments,
    #[command(flatten)]
    kubelet: KubeletArguments,
    #[command(flatten)]
    daemon: DaemonArguments,
}

impl Arguments {
    fn config(&self) -> Result<NodeConfig> {
        let flags = Flags {
            node_name: self.node_name.clone(),
            controllers: self.controllers.clone(),
            advertise: self.advertise.clone(),
            fabric: self.fabric.clone(),
            state: self.state.clone(),
            ..self.pools.flags()
        };
        let flags = self.daemon.flags(self.kubelet.flags(self.enrol.flags(self.wire.flags(flags))));
        Ok(NodeConfig::resolve(&flags, &self.pools.file()?, |name| std::env::var(name).ok())?)
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// An error that prevents the start. A later error is logged, and the exit code is 1.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    daemon::run(arguments.config()?, |config| &config.serving, check_node, NodeDaemon::open, NodeDaemon::serve)
}
