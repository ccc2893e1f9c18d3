//! `holdfast pools`: each pool and how full it is.

use std::process::ExitCode;

use anyhow::Result;
use holdfast::os::Os;
use holdfast::pool::{Ability, Cloning};
use holdfast::types::Bytes;
use serde::Serialize;

use super::inventory::{LookArguments, PoolView};
use super::output::{Columns, Format, document};

/// A pool as `--output json` shows it; sizes in bytes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    id: String,
    kind: &'static str,
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

/// Prints every pool.
///
/// # Errors
/// When one cannot be read.
pub(crate) fn run(arguments: &LookArguments) -> Result<ExitCode> {
    let (views, kernel) = PoolView::open_all(&Os::new(), arguments)?;
    let rows: Vec<Row> = views
        .iter()
        .map(|view| {
            let (report, identity) = (&view.survey.report, view.pool.identity());
            Row {
                name: report.name.to_string(),
                id: report.id.to_string(),
                kind: report.kind,
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
            row.kind.to_owned(),
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
