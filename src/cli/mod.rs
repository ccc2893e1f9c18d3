//! The command line: one file per command. An error before a command starts is one line, with exit code 2.

mod asked;
mod ca;
mod cluster;
mod controller;
mod daemon;
mod demo;
mod doctor;
mod inventory;
mod node;
mod output;
mod pools;
mod show;
mod standalone;
mod volumes;
mod why;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use holdfast::config::File;
use holdfast::os::Os;

use self::inventory::LookArguments;

/// Exit code for invalid usage or a start that failed its checks: nothing was changed.
const REFUSED: u8 = 2;

/// A CSI driver that makes persistent volumes from the disks that nodes already have.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the whole driver for one node in one process.
    Standalone(standalone::Arguments),
    /// Runs a controller: serves CSI Controller and receives the heartbeats of the nodes.
    Controller(controller::Arguments),
    /// Runs the driver on a node: serves CSI Node, and the node's pools to the controllers.
    Node(node::Arguments),
    /// Lists the pools and their space.
    Pools(pools::Arguments),
    /// Lists the volumes, where they are attached and where they are mounted.
    Volumes(volumes::Arguments),
    /// Reports problems of the pools, each with the next step.
    Doctor(LookArguments),
    /// Explains what a claim, pod or volume of Kubernetes waits for, with the next command.
    Why(why::Arguments),
    /// Issues certificates for daemons and operators.
    Ca(ca::Arguments),
    /// Runs the lifecycle of a volume on a temporary pool, step by step.
    Demo(demo::Arguments),
}

/// The flags that name pools.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PoolArguments {
    /// The name and directory of a pool. Repeatable; replaces the list in the configuration file.
    #[arg(long = "pool", value_name = "NAME=file:DIR")]
    pools: Vec<String>,
    /// The configuration file, YAML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl PoolArguments {
    /// Pools from a file alone.
    fn of_file(config: Option<PathBuf>) -> Self {
        Self { pools: Vec::new(), config }
    }

    /// Whether no pool is named.
    fn is_empty(&self) -> bool {
        self.pools.is_empty() && self.config.is_none()
    }

    fn file(&self) -> Result<File> {
        self.config.as_deref().map(read_file).transpose().map(Option::unwrap_or_default)
    }
}

fn read_file(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--config {} cannot be read; set the path of a YAML file", path.display()))?;
    Ok(File::parse(path, &text)?)
}

/// Parses the arguments of the process, runs the command and returns its exit code.
pub(crate) fn main() -> ExitCode {
    Os::new().survive_file_limit();
    match run(std::env::args_os()) {
        Ok(code) => output::end(code),
        Err(error) => {
            output::complain(&one_line(&format!("{error:#}")));
            ExitCode::from(REFUSED)
        }
    }
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<ExitCode> {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        Command::Standalone(arguments) => standalone::run(arguments),
        Command::Controller(arguments) => controller::run(arguments),
        Command::Node(arguments) => node::run(arguments),
        Command::Pools(arguments) => pools::run(&arguments),
        Command::Volumes(arguments) => volumes::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Why(arguments) => why::run(&arguments),
        Command::Ca(arguments) => ca::run(&arguments),
        Command::Demo(arguments) => demo::run(arguments),
    }
}

/// Help and version are printed unchanged; every error of the parser becomes one line.
fn usage(error: &clap::Error) -> Result<ExitCode> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::say_as_is(error.render().to_string().trim_end());
            Ok(ExitCode::SUCCESS)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::complain_as_is(error.render().to_string().trim_end());
            Ok(ExitCode::from(REFUSED))
        }
        _ => {
            let text = error.render().to_string();
            let said: Vec<_> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
                .filter(|line| !line.is_empty())
                .collect();
            let said = said.join(" ");
            anyhow::bail!("{}; see holdfast --help", said.strip_prefix("error: ").unwrap_or(&said))
        }
    }
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn refused(arguments: &[&str]) -> String {
        let arguments = std::iter::once("holdfast").chain(arguments.iter().copied()).map(OsString::from);
        one_line(&format!("{:#}", run(arguments).unwrap_err()))
    }

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_parser_refuses_is_one_line_that_names_it() {
        assert!(refused(&["demo", "--colour"]).contains("--colour"));
        assert!(refused(&["dmo"]).contains("demo"));
    }
}
