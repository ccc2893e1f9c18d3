//! `holdfast doctor`: problems of the pools, each with the next step. Read-only.

use std::process::ExitCode;

use anyhow::{Context, Result};
use holdfast::config::PoolConfig;
use holdfast::home::{Finding, FindingKind, Kernel, PoolView, examine};
use holdfast::node::connections_of;
use holdfast::os::{DmSupport, NvmeController, Os};
use holdfast::route::{Trouble, TroubleKind};
use holdfast::types::{SubsystemNqn, printable};

use super::cluster;
use super::inventory::LookArguments;
use super::output::{Format, Paint, document, say, say_as_is, say_marked};

/// Prints every finding: 0 when there is none, 1 when there is.
///
/// # Errors
/// When the state of the kernel cannot be read. A pool that cannot be read is a finding.
pub(crate) fn run(arguments: &LookArguments) -> Result<ExitCode> {
    if let Some(mut asked) = arguments.controller()? {
        let (healthy, findings) = cluster::findings(&mut asked)?;
        return conclude(arguments, &healthy, &findings);
    }
    let os = Os::new();
    let (healthy, findings) = examine_all(&os, &arguments.pools()?)?;
    if arguments.output == Format::Table {
        say(&raw_blocks(&os)?);
    }
    conclude(arguments, &healthy, &findings)
}

/// How raw block volumes are published on this machine, and the consequence. Not a finding, because some kernels have no
/// device-mapper.
fn raw_blocks(os: &Os) -> Result<String> {
    let paint = Paint::detect();
    Ok(match os.dm_support().context("look for device-mapper in the kernel")? {
        DmSupport::Yes(_) => format!(
            "{}  raw block volumes are published through device-mapper: their pods cannot change the loop device below",
            paint.good("ok")
        ),
        DmSupport::No(why) => format!(
            "{}  raw block volumes are published as loop devices, because {why}: a pod can detach or resize its own loop device; to prevent that, run modprobe dm_mod and restart the driver",
            paint.strong("--")
        ),
    })
}

/// The pools without problems, and the findings of the others.
fn examine_all(os: &Os, pools: &[PoolConfig]) -> Result<(Vec<String>, Vec<Finding>)> {
    let kernel = Kernel::look(os)?;
    let (mut healthy, mut all) = (Vec::new(), Vec::new());
    for PoolConfig { spec, limits } in pools {
        let place = spec.place();
        let findings = examine(os, &kernel, &spec.name, &place, PoolView::open(os, spec, *limits));
        if findings.is_empty() {
            healthy.push(spec.to_string());
        }
        all.extend(findings);
    }
    all.extend(stalled(os)?);
    Ok((healthy, all))
}

/// Volumes of other nodes without a live connection. Only the driver knows since when: `doctor --controller` says it.
fn stalled(os: &Os) -> Result<Vec<Finding>> {
    let controllers = os.nvme_controllers().context("list the NVMe controllers of this machine")?;
    let reported = connections_of(&controllers);
    let finding = |trouble: Trouble| {
        let TroubleKind::Stalled { address } = trouble.kind else { return None };
        let of = |one: &&NvmeController| {
            one.subsystem.parse::<SubsystemNqn>().is_ok_and(|name| name.volume == trouble.volume)
        };
        let states: Vec<_> =
            controllers.iter().filter(of).map(|one| format!("nvme{} is {}", one.instance, one.state)).collect();
        Some(Finding {
            kind: FindingKind::Service,
            pool: trouble.volume.pool.to_string(),
            what: format!(
                "volume {} has no live connection to its home node at {address} ({}): its reads and writes wait, nothing is lost",
                trouble.volume,
                states.join(", ")
            ),
            place: "the connections of this machine (/sys/class/nvme)".to_owned(),
            remedy: "start the home node, or repair the network to it; dmesg shows when the connection broke, and holdfast doctor --controller names the home node"
                .to_owned(),
        })
    };
    Ok(reported.troubles.into_iter().filter_map(finding).collect())
}

fn conclude(arguments: &LookArguments, healthy: &[String], findings: &[Finding]) -> Result<ExitCode> {
    if arguments.output == Format::Table {
        tell(healthy, findings);
    } else {
        document(arguments.output, &findings)?;
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(healthy: &[String], findings: &[Finding]) {
    let paint = Paint::detect();
    for pool in healthy {
        say_marked(&paint.good("ok"), &format!("{pool}: no problems found"));
    }
    for finding in findings {
        let pool = printable(&finding.pool);
        say_as_is(&format!("{}  pool {pool}: {}", paint.bad("!!"), paint.strong(&finding.what)));
        say(&format!("    at  {}", finding.place));
        say(&format!("    do  {}", finding.remedy));
    }
}
