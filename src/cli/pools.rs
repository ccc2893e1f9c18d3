//! `holdfast pools`: each pool and how full it is.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use holdfast::os::Os;
use holdfast::pool::file::{Claimed, FilePool};
use holdfast::pool::{self, Ability, Cloning, PoolKind, PoolSpec};
use holdfast::types::{Bytes, NodeId, PoolId};
use serde::Serialize;

use super::asked::ControllerArguments;
use super::cluster;
use super::inventory::{LookArguments, PoolView};
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
    /// Makes this node the home of a pool whose disks were moved here. The driver that serves it must be stopped.
    Claim(Claim),
    /// Makes a pool in an empty directory, where the driver does not make one by itself: it served another from there.
    Init(Init),
    /// Takes a pool out of the quarantine it was put in when it was declared lost.
    Readmit(Readmit),
}

#[derive(Args, Clone, Debug)]
struct Claim {
    /// The node that is its home from now on.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: String,
    /// The pool: its name and directory.
    #[arg(long, value_name = "NAME=file:DIR")]
    pool: PoolSpec,
}

#[derive(Args, Clone, Debug)]
struct Init {
    /// The node that is its home.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: String,
    /// The pool: its name and directory.
    #[arg(long, value_name = "NAME=file:DIR")]
    pool: PoolSpec,
}

#[derive(Args, Clone, Debug)]
struct Readmit {
    /// The pool's id, 16 hex digits.
    #[arg(value_name = "ID")]
    pool: PoolId,
    #[command(flatten)]
    controller: ControllerArguments,
}

/// Prints every pool, or does what is asked with one.
///
/// # Errors
/// When it cannot be done; nothing was changed then.
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
                readmit.controller.asked()?.context("say --controller HOST:PORT or --controller unix:///PATH")?;
            asked.readmit(readmit.pool)?;
            say(&format!("pool {} is served again", readmit.pool));
            Ok(ExitCode::SUCCESS)
        }
    }
}

impl Claim {
    fn run(&self) -> Result<ExitCode> {
        let node = NodeId::from_node_name(&self.node_name)?;
        let PoolKind::File { root, .. } = &self.pool.kind;
        match FilePool::claim(&Os::new(), &self.pool.name, root, &node)? {
            Claimed::From(before) => {
                say(&format!("pool {} was of node {before} and is of node {node} now", self.pool.name))
            }
            Claimed::Already => say(&format!("pool {} is of node {node} already", self.pool.name)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Init {
    fn run(&self) -> Result<ExitCode> {
        let node = NodeId::from_node_name(&self.node_name)?;
        let pool = pool::open(&Os::new(), &self.pool, &node)?;
        let identity = pool.identity();
        say(&format!("pool {} ({}) is at {}, of node {node}", identity.name, identity.id, identity.place));
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
    let (views, kernel) = PoolView::open_all(&Os::new(), arguments)?;
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
                filesystem: kernel.filesystem_of(view.config.root()).unwrap_or("unknown").to_owned(),
                cloning: match view.pool.abilities().cloning {
                    Cloning::Reflink { .. } => "reflink",
                    Cloning::Copy => "copy",
                },
                thick: view.pool.abilities().thick == Ability::Yes,
                size: report.room.total,
                used: report.room.total.saturating_sub(report.room.available),
                free: report.room.available,
                available: report.available,
                promised: report.promised,
                provisioned: report.provisioned,
                overcommit: view.config.limits.overcommit.to_string(),
                min_free: view.config.limits.min_free.to_string(),
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
        "promised",
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
