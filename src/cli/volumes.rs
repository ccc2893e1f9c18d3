//! `holdfast volumes`: each volume, its attachments and its mounts.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use holdfast::home::record::{Phase, VolumeRecord};
use holdfast::home::{FormatState, Kernel, PoolView, Source};
use holdfast::os::{Os, Timestamp};
use holdfast::types::{Bytes, Provisioning};
use serde::Serialize;

use super::cluster;
use super::inventory::{LookArguments, open_all};
use super::output::{Columns, Format, age, complain, document};
use super::show;

/// A volume as `--output json` shows it; size in bytes, times in seconds since 1970.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    handle: String,
    name: String,
    claim: Option<String>,
    pool: String,
    node: String,
    size: Bytes,
    provisioning: Provisioning,
    phase: Phase,
    format: FormatState,
    attached_to: Vec<String>,
    device: Option<String>,
    mounts: Vec<String>,
    source: Option<String>,
    created: i64,
}

impl Row {
    fn of(view: &PoolView, record: &VolumeRecord, kernel: &Kernel) -> Self {
        let device = view.device_of(record.uuid);
        let mounts = device.map(|device| kernel.mounts_of(device.number)).unwrap_or_default();
        Self {
            handle: record.handle.clone(),
            name: record.co_name.clone(),
            claim: record.claim().map(|claim| claim.to_string()),
            pool: view.name.to_string(),
            node: view.pool.identity().home.to_string(),
            size: record.size,
            provisioning: record.provisioning,
            phase: record.phase,
            format: record.format.known,
            attached_to: record.attachments.iter().map(|grant| grant.node.to_string()).collect(),
            device: device.map(|device| device.path.display().to_string()),
            mounts: mounts.iter().map(|entry| entry.mount_point.display().to_string()).collect(),
            source: record.source.map(|source| match source {
                Source::Snapshot(id) => format!("snapshot {id}"),
                Source::Volume(id) => format!("volume {id}"),
            }),
            created: record.created.seconds(),
        }
    }

    fn state(&self) -> String {
        match (self.phase, self.format) {
            (Phase::Creating, _) => "copying".to_owned(),
            (Phase::Deleting, _) => "deleting".to_owned(),
            (Phase::Ready, FormatState::Never) => "never used".to_owned(),
            (Phase::Ready, FormatState::Raw) => "raw".to_owned(),
            (Phase::Ready, FormatState::Formatting { fs, .. }) => format!("formatting {fs}"),
            (Phase::Ready, FormatState::Formatted { fs, .. }) => fs.to_string(),
        }
    }

    fn mounted(&self) -> String {
        match self.mounts.as_slice() {
            [] => String::new(),
            [only] => only.clone(),
            [first, rest @ ..] => format!("{first} (+{})", rest.len()),
        }
    }
}

/// Flags of `holdfast volumes`.
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
    /// Prints one volume, or the PersistentVolume for it.
    Show(show::Arguments),
}

/// Prints every volume, or one.
///
/// # Errors
/// When a pool cannot be read, or no pool has the volume.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.action {
        None => list(&arguments.look),
        Some(Action::Show(arguments)) => show::run(arguments),
    }
}

/// Omits a volume whose record cannot be read, and names it on standard error.
fn list(arguments: &LookArguments) -> Result<ExitCode> {
    if let Some(mut asked) = arguments.controller()? {
        return cluster::volumes(&mut asked, arguments.output);
    }
    let (views, kernel) = open_all(&Os::new(), arguments)?;
    let mut rows = Vec::new();
    for view in &views {
        rows.extend(view.survey.volumes.iter().map(|record| Row::of(view, record, &kernel)));
        for (object, error) in &view.survey.unreadable {
            complain(&format!("{object} is omitted: {}", error.chain()));
        }
    }
    if arguments.output != Format::Table {
        document(arguments.output, &rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now().seconds();
    let mut columns = Columns::new(&[
        "handle",
        "claim",
        "pool",
        "size",
        "state",
        "attached to",
        "device",
        "mounted",
        "source",
        "age",
    ]);
    for row in rows {
        let cells = [
            row.handle.clone(),
            row.claim.clone().unwrap_or_else(|| row.name.clone()),
            row.pool.clone(),
            row.size.to_string(),
            row.state(),
            row.attached_to.join(", "),
            row.device.clone().unwrap_or_default(),
            row.mounted(),
            row.source.clone().unwrap_or_default(),
            age(now.saturating_sub(row.created)),
        ];
        columns.row(cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }));
    }
    columns.print();
    Ok(ExitCode::SUCCESS)
}
