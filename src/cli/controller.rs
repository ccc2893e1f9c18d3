//! `holdfast controller`: CSI Identity and Controller on a socket, and the port for the heartbeats of nodes. It is
//! stateless; several can serve at the same time.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use holdfast::config::{ControllerConfig, DaemonFlags, Flags, SigningFlags, WireFlags};
use holdfast::daemon::{Controller, check_controller};

use super::{PoolArguments, daemon};

/// Flags of `holdfast controller`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The configuration file, YAML.
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    #[command(flatten)]
    wire: WireFlags,
    #[command(flatten)]
    signing: SigningFlags,
    #[command(flatten)]
    daemon: DaemonFlags,
}

impl Arguments {
    fn config(self) -> Result<ControllerConfig> {
        let Self { config, wire, signing, daemon } = self;
        let file = PoolArguments::of_file(config).file()?;
        let flags = Flags { wire, signing, daemon, ..Flags::default() };
        Ok(ControllerConfig::resolve(&flags, &file, |name| std::env::var(name).ok())?)
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// An error that prevents the start. A later error is logged, and the exit code is 1.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    daemon::run(arguments.config()?, |config| &config.serving, check_controller, Controller::open, Controller::serve)
}
