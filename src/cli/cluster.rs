//! `pools`, `volumes` and `doctor` for a whole cluster: requested from a controller instead of read from the pools.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::Result;
use holdfast::home::{Finding, FindingKind, FormatState, Health, PoolHealth, Source, Volume};
use holdfast::os::Timestamp;
use holdfast::registry::{Everything, NodeRow, Nodes};
use holdfast::route::{Silence, Trouble, TroubleKind};
use holdfast::types::{Bytes, Named, PoolId};
use serde::Serialize;

use super::asked::ControllerConnection;
use super::output::{Columns, Format, age, complain, document};

/// A pool as `--output json` shows it; sizes in bytes, times in seconds since 1970.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolRow {
    name: String,
    id: String,
    kind: String,
    place: String,
    node: String,
    size: Option<Bytes>,
    used: Option<Bytes>,
    available: Option<Bytes>,
    promised: Option<Bytes>,
    volumes: Option<u64>,
    snapshots: Option<u64>,
    state: String,
    heard: i64,
}

impl PoolRow {
    fn of(node: &NodeRow, pool: &PoolHealth) -> Self {
        let report = match &pool.health {
            Health::Served(report) => Some(report),
            Health::Failing(_) | Health::Quarantined(_) => None,
        };
        let state = match (&pool.health, node.silence) {
            (_, Silence::Silent) => "unreachable".to_owned(),
            (Health::Served(_), _) => "served".to_owned(),
            (Health::Failing(why), _) => format!("failing: {why}"),
            (Health::Quarantined(_), _) => "quarantine".to_owned(),
        };
        Self {
            name: pool.name.to_string(),
            id: pool.id.to_string(),
            kind: report.map(|report| report.kind.to_string()).unwrap_or_default(),
            place: report.map(|report| report.place.clone()).unwrap_or_default(),
            node: node.node.to_string(),
            size: report.map(|report| report.room.total),
            used: report.map(|report| report.room.total.saturating_sub(report.room.available)),
            available: report.map(|report| report.available),
            promised: report.map(|report| report.promised),
            volumes: report.map(|report| report.volumes),
            snapshots: report.map(|report| report.snapshots),
            state,
            heard: node.heard.seconds(),
        }
    }
}

/// Prints every pool of the cluster.
///
/// # Errors
/// When the controller does not answer.
pub(crate) fn pools(asked: &mut ControllerConnection, output: Format) -> Result<ExitCode> {
    let Nodes { nodes, missing } = asked.nodes()?;
    let mut rows: Vec<_> =
        nodes.iter().flat_map(|node| node.pools.iter().map(move |pool| PoolRow::of(node, pool))).collect();
    let shown: Vec<_> = rows.iter().map(|row| row.id.clone()).collect();
    for entry in missing.iter().filter(|entry| !shown.contains(&entry.pool.to_string())) {
        rows.push(PoolRow {
            name: entry.name.to_string(),
            id: entry.pool.to_string(),
            kind: String::new(),
            place: String::new(),
            node: entry.node.to_string(),
            size: None,
            used: None,
            available: None,
            promised: None,
            volumes: None,
            snapshots: None,
            state: "not served".to_owned(),
            heard: entry.heard.seconds(),
        });
    }
    if output != Format::Table {
        document(output, &rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now().seconds();
    let mut columns = Columns::new(&[
        "pool",
        "id",
        "node",
        "size",
        "used",
        "available",
        "reserved",
        "volumes",
        "snapshots",
        "state",
        "heartbeat",
    ]);
    let bytes = |figure: Option<Bytes>| figure.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
    let count = |figure: Option<u64>| figure.map_or_else(|| "-".to_owned(), |count| count.to_string());
    for row in rows {
        columns.row([
            row.name,
            row.id,
            row.node,
            bytes(row.size),
            bytes(row.used),
            bytes(row.available),
            bytes(row.promised),
            count(row.volumes),
            count(row.snapshots),
            row.state,
            format!("{} ago", age(now.saturating_sub(row.heard))),
        ]);
    }
    columns.print();
    Ok(ExitCode::SUCCESS)
}

/// A volume as `--output json` shows it; size in bytes, times in seconds since 1970.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeRow {
    handle: String,
    name: String,
    claim: Option<String>,
    pool: String,
    node: String,
    size: Bytes,
    format: FormatState,
    attached_to: Vec<String>,
    source: Option<String>,
    created: i64,
}

impl VolumeRow {
    fn of(volume: &Volume) -> Self {
        Self {
            handle: volume.id.to_string(),
            name: volume.name.clone(),
            claim: volume.claim.as_ref().map(ToString::to_string),
            pool: volume.id.pool.to_string(),
            node: volume.home.to_string(),
            size: volume.size,
            format: volume.format,
            attached_to: volume.published.iter().map(ToString::to_string).collect(),
            source: volume.source.map(|source| match source {
                Source::Snapshot(id) => format!("snapshot {id}"),
                Source::Volume(id) => format!("volume {id}"),
            }),
            created: volume.created.seconds(),
        }
    }

    fn state(&self) -> String {
        match self.format {
            FormatState::Never => "never used".to_owned(),
            FormatState::Raw => "raw".to_owned(),
            FormatState::Formatting { fs, .. } => format!("formatting {fs}"),
            FormatState::Formatted { fs, .. } => fs.to_string(),
        }
    }
}

/// Prints every volume of the cluster. Exit code 1 if a node did not answer; standard error then names it.
///
/// # Errors
/// When the controller does not answer.
pub(crate) fn volumes(asked: &mut ControllerConnection, output: Format) -> Result<ExitCode> {
    let everything = asked.everything()?;
    let rows: Vec<_> = everything.volumes.iter().map(VolumeRow::of).collect();
    if output == Format::Table {
        let now = Timestamp::now().seconds();
        let mut columns = Columns::new(&["handle", "claim", "node", "size", "state", "attached to", "source", "age"]);
        for row in rows {
            let cells = [
                row.handle.clone(),
                row.claim.clone().unwrap_or_else(|| row.name.clone()),
                row.node.clone(),
                row.size.to_string(),
                row.state(),
                row.attached_to.join(", "),
                row.source.clone().unwrap_or_default(),
                age(now.saturating_sub(row.created)),
            ];
            columns.row(cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }));
        }
        columns.print();
    } else {
        document(output, &rows)?;
    }
    for why in &everything.unheard {
        complain(&format!("the list is incomplete: {why}"));
    }
    Ok(if everything.unheard.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The pools of the cluster without problems, and the findings of the others, for [`super::doctor`].
///
/// # Errors
/// When the controller does not answer.
pub(crate) fn findings(asked: &mut ControllerConnection) -> Result<(Vec<String>, Vec<Finding>)> {
    let Nodes { nodes, missing } = asked.nodes()?;
    let everything = asked.everything()?;
    let (on_nodes, unasked) = asked.findings();
    let is_of = |at: &String, finding: &Finding, node: &NodeRow, pool: &PoolHealth| {
        *at == node.node.as_str() && finding.pool == pool.name.as_str()
    };
    let (mut healthy, mut found) = (Vec::new(), Vec::new());
    if nodes.is_empty() {
        found.push(finding(
            "-".to_owned(),
            "this controller has received no heartbeat of any node".to_owned(),
            "the whole cluster".to_owned(),
            "check that holdfast node runs, and that its --controllers name this controller".to_owned(),
        ));
    }
    for node in &nodes {
        for pool in &node.pools {
            let place = format!("node {} at {}", node.node, node.endpoint);
            let wrong = match (&pool.health, node.silence) {
                (_, Silence::Silent) => Some((
                    format!("its node is unreachable: the last heartbeat was {} s ago", node.heard.age().as_secs()),
                    "check that holdfast runs there; if the node never returns, add it to lostHomes".to_owned(),
                )),
                (Health::Failing(why), _) => Some((
                    format!("it cannot be read: {why}"),
                    "check the node's disk (dmesg) and the driver's log".to_owned(),
                )),
                (Health::Quarantined(since), _) => Some((
                    format!("in quarantine for {} s: it was declared lost and came back", since.age().as_secs()),
                    format!("remove it from lostHomes, check its data, then run holdfast pools readmit {}", pool.id),
                )),
                (Health::Served(_), Silence::Heard) => None,
            };
            match wrong {
                Some((what, remedy)) => {
                    found.push(finding(format!("{} ({})", pool.name, pool.id), what, place, remedy))
                }
                None if on_nodes.iter().any(|(at, finding)| is_of(at, finding, node, pool)) => {}
                None => healthy.push(format!("{} on node {}", pool.name, node.node)),
            }
        }
        found.extend(troubles(node, &nodes, &everything));
        if node.version != env!("CARGO_PKG_VERSION") {
            found.push(finding(
                "-".to_owned(),
                format!("the node runs release {}, this command is {}", node.version, env!("CARGO_PKG_VERSION")),
                format!("node {}", node.node),
                "finish the upgrade: run the same release on all nodes and controllers".to_owned(),
            ));
        }
    }
    let told: Vec<PoolId> = nodes.iter().flat_map(|node| node.pools.iter().map(|pool| pool.id)).collect();
    for entry in missing.iter().filter(|entry| !told.contains(&entry.pool)) {
        found.push(finding(
            format!("{} ({})", entry.name, entry.pool),
            format!("no node serves it; node {} did {}", entry.node, entry.ago()),
            format!("node {} at {}", entry.node, entry.endpoint),
            "start that node, or start holdfast on the node with the disks; if the disks are lost, add the pool to lostHomes"
                .to_owned(),
        ));
    }
    found.extend(duplicates(&everything));
    let on_node = |(node, finding): &(String, Finding)| Finding {
        place: format!("node {node}: {}", finding.place),
        ..finding.clone()
    };
    found.extend(on_nodes.iter().map(on_node));
    let unheard: BTreeSet<String> = everything.unheard.iter().cloned().chain(unasked).collect();
    for why in &unheard {
        found.push(finding(
            "-".to_owned(),
            "the findings are incomplete: not every node answered".to_owned(),
            why.clone(),
            "retry later".to_owned(),
        ));
    }
    Ok((healthy, found))
}

fn finding(pool: String, what: String, place: String, remedy: String) -> Finding {
    Finding { kind: FindingKind::Service, pool, what, place, remedy }
}

/// Volumes of other nodes that do not work on a node, according to its last heartbeat.
fn troubles(node: &NodeRow, nodes: &[NodeRow], everything: &Everything) -> Vec<Finding> {
    let all = node.connections.iter().flat_map(|connections| &connections.troubles);
    let now = Timestamp::now().seconds();
    let one = |trouble: &Trouble| {
        let pool = trouble.volume.pool;
        let home = nodes.iter().find(|node| node.pools.iter().any(|one| one.id == pool));
        let volume = everything.volumes.iter().find(|volume| volume.id == trouble.volume);
        let named = Named::volume(
            volume.map_or(trouble.volume, |volume| volume.id),
            volume.and_then(|volume| volume.claim.clone()),
        );
        let home = home.map_or_else(|| "its home node".to_owned(), |home| format!("its home node {}", home.node));
        let since = age(now.saturating_sub(trouble.since.seconds()));
        let (what, remedy) = match &trouble.kind {
            TroubleKind::Stalled { address } => (
                format!(
                    "{named} has had no connection to {home} at {address} for {since}: its reads and writes wait, nothing is lost"
                ),
                format!("start {home}, or repair the network between the two nodes; reads and writes then go on"),
            ),
            TroubleKind::Detached => (
                format!("{named} was detached {since} ago while pods used it: their reads and writes fail"),
                "delete the pods that use it on this node".to_owned(),
            ),
        };
        finding(pool.to_string(), what, format!("node {}", node.node), remedy)
    };
    all.map(one).collect()
}

/// One name in several pools: created twice while a node was unreachable.
fn duplicates(everything: &Everything) -> Vec<Finding> {
    let mut by_name = BTreeMap::<&str, Vec<&Volume>>::new();
    for volume in &everything.volumes {
        by_name.entry(&volume.name).or_default().push(volume);
    }
    let twice = by_name.into_iter().filter(|(_, volumes)| volumes.len() > 1);
    let one = |(name, volumes): (&str, Vec<&Volume>)| {
        let place = |volume: &&Volume| {
            let named = Named::volume(volume.id, volume.claim.clone());
            format!("{named} on node {}", volume.home)
        };
        let places: Vec<_> = volumes.iter().map(place).collect();
        Finding {
            kind: FindingKind::Duplicate,
            pool: "-".to_owned(),
            what: format!(
                "volume {name} exists {} times: it was created again while a node was unreachable",
                places.len()
            ),
            place: places.join("; "),
            remedy: "keep the one that its PersistentVolume names; delete the other with DeleteVolume for its handle"
                .to_owned(),
        }
    };
    twice.map(one).collect()
}
