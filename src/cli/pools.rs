//! `holdfast pools`: each pool and its space.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use holdfast::os::Os;
use holdfast::pool::{self, Ability, Claimed, PoolSpec};
use holdfast::types::{Bytes, NodeId, PoolId};
use serde::Serialize;

use super::asked::ControllerArguments;
use super::cluster;
use super::inventory::{LookArguments, open_all};
use super::output::{Columns, Format, document, say};

/// Flags of `holdfast pools`.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    look: LookArguments,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Makes this node the home node of a pool whose disks were moved here. Stop the driver first.
    Claim(Claim),
    /// Creates a pool in an empty directory. Needed if this node served a pool of the same name before: the driver then
    /// creates none by itself.
    Init(Init),
    /// Ends the quarantine of a pool that was declared lost and came back.
    Readmit(Readmit),
}

#[derive(Args, Clone, Debug)]
struct Claim {
    /// The new home node of the pool.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: String,
    /// The name and directory of the pool.
    #[arg(long, value_name = "NAME=file:DIR")]
    pool: PoolSpec,
}

#[derive(Args, Clone, Debug)]
struct Init {
    /// The home node of the pool.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: String,
    /// The name and directory of the pool.
    #[arg(long, value_name = "NAME=file:DIR")]
    pool: PoolSpec,
}

#[derive(Args, Clone, Debug)]
struct Readmit {
    /// The id of the pool, 16 hex digits.
    #[arg(value_name = "ID")]
    pool: PoolId,
    #[command(flatten)]
    controller: ControllerArguments,
}

/// Prints every pool, or performs an action on one.
///
/// # Errors
/// When it fails; nothing was changed then.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.action {
        None => match arguments.look.controller()? {
            Some(mut asked) => cluster::pools(&mut asked, arguments.look.output),
            None => list(&arguments.look),
        },
        Some(Action::Claim(claim)) => claim.run(),
        Some(Action::Init(init)) => init.run(),
        Some(Action::Readmit(readmit)) => {
            let mut asked =
                readmit.controller.asked()?.context("no controller: set --controller HOST:PORT or unix:///PATH")?;
            asked.readmit(readmit.pool)?;
            say(&format!("pool {} is served again", readmit.pool));
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Claim {
    fn run(&self) -> Result<ExitCode> {
        let node = NodeId::from_node_name(&self.node_name)?;
        match pool::claim(&Os::new(), &self.pool, &node)? {
            Claimed::From(before) => {
                say(&format!("node {node} is now the home node of pool {}; before it was {before}", self.pool.name))
            }
            Claimed::Already => say(&format!("node {node} is already the home node of pool {}", self.pool.name)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Init {
    fn run(&self) -> Result<ExitCode> {
        let node = NodeId::from_node_name(&self.node_name)?;
        let pool = pool::open(&Os::new(), &self.pool, &node)?;
        let identity = pool.identity();
        say(&format!("pool {} ({}) is in {}, with home node {node}", identity.name, identity.id, identity.place));
        Ok(ExitCode::SUCCESS)
    }
}

/// A pool as `--output json` shows it; sizes in bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    id: String,
    kind: String,
    place: String,
    node: String,
    filesystem: String,
    cloning: &'static str,
    thick: bool,
    size: Bytes,
    used: Bytes,
    free: Bytes,
    available: Bytes,
    promised: Bytes,
    provisioned: Bytes,
    overcommit: String,
    min_free: String,
    volumes: u64,
    snapshots: u64,
}

/// Prints every pool of this machine.
fn list(arguments: &LookArguments) -> Result<ExitCode> {
    let (views, kernel) = open_all(&Os::new(), arguments)?;
    let rows: Vec<Row> = views
        .iter()
        .map(|view| {
            let (report, identity) = (&view.survey.report, view.pool.identity());
            Row {
                name: report.name.to_string(),
                id: report.id.to_string(),
                kind: report.kind.to_string(),
                place: report.place.clone(),
                node: identity.home.to_string(),
                filesystem: kernel.filesystem_of(Path::new(&identity.place)).unwrap_or("unknown").to_owned(),
                cloning: view.pool.abilities().cloning.word(),
                thick: view.pool.abilities().thick == Ability::Yes,
                size: report.room.total,
                used: report.room.total.saturating_sub(report.room.available),
                free: report.room.available,
                available: report.available,
                promised: report.promised,
                provisioned: report.provisioned,
                overcommit: view.limits.overcommit.to_string(),
                min_free: view.limits.min_free.to_string(),
                volumes: report.volumes,
                snapshots: report.snapshots,
            }
        })
        .collect();
    if arguments.output != Format::Table {
        document(arguments.output, &rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut columns = Columns::new(&[
        "pool",
        "kind",
        "filesystem",
        "node",
        "size",
        "used",
        "available",
        "reserved",
        "volumes",
        "snapshots",
    ]);
    for row in rows {
        columns.row([
            row.name,
            row.kind,
            format!("{} ({})", row.filesystem, row.cloning),
            row.node,
            row.size.to_string(),
            row.used.to_string(),
            row.available.to_string(),
            row.promised.to_string(),
            row.volumes.to_string(),
            row.snapshots.to_string(),
        ]);
    }
    columns.print();
    Ok(ExitCode::SUCCESS)
}
