//! `holdfast doctor`: problems of the pools, each with the next step. Read-only.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use holdfast::config::PoolConfig;
use holdfast::fs;
use holdfast::home::record::{Phase, Record, VolumeRecord};
use holdfast::home::{Finding, FindingKind, FormatState, Health, LocalHome};
use holdfast::node::unseen;
use holdfast::os::{DevNum, DmSupport, LoopView, Os};
use holdfast::pool::Object;
use holdfast::telemetry::PoolFindings;
use holdfast::types::{Bytes, Error, Kind, PoolName, Provisioning, VolumeId, printable};

use super::cluster;
use super::inventory::{Kernel, LookArguments, PoolView, claim_of};
use super::output::{Format, Paint, document, say, say_as_is, say_marked};

/// The root directory of kubelet.
const KUBELET: &str = "/var/lib/kubelet";
/// The prefix of temporary names: work in progress, or interrupted work.
const TEMPORARY: &str = ".tmp-";

/// Findings of one pool.
struct PoolExaminer<'a> {
    os: &'a Os,
    pool: String,
    findings: Vec<Finding>,
}

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
    let (healthy, findings) = examine(&os, &arguments.pools()?)?;
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

/// Inspects pools while a driver may serve them. Returns the pools without problems, and the findings of the others.
///
/// # Errors
/// When the state of the kernel cannot be read. A pool that cannot be read is a finding.
pub(crate) fn examine(os: &Os, pools: &[PoolConfig]) -> Result<(Vec<String>, Vec<Finding>)> {
    examine_served(os, pools, &BTreeMap::new())
}

/// The same, with the pools that the daemon reports as not served. Those are not inspected: their disks may not answer.
fn examine_served(
    os: &Os,
    pools: &[PoolConfig],
    outages: &BTreeMap<PoolName, String>,
) -> Result<(Vec<String>, Vec<Finding>)> {
    let kernel = Kernel::look(os)?;
    let mut findings = Vec::new();
    let mut healthy = Vec::new();
    for config in pools {
        let mut ward = PoolExaminer { os, pool: config.spec.name.to_string(), findings: Vec::new() };
        if let Some(outage) = outages.get(&config.spec.name) {
            ward.found(
                FindingKind::Unreadable,
                outage.clone(),
                config.root().display().to_string(),
                "follow the message; the driver then serves the pool without a restart".to_owned(),
            );
            findings.append(&mut ward.findings);
            continue;
        }
        let looked = PoolView::open(os, config).and_then(|view| ward.examine(&view, &kernel));
        if let Err(error) = looked {
            let place = config.root().display().to_string();
            ward.found(
                FindingKind::Unreadable,
                format!("the pool cannot be read: {error:#}"),
                place,
                "follow the message, then run holdfast doctor again".to_owned(),
            );
        }
        if ward.findings.is_empty() {
            healthy.push(config.spec.to_string());
        }
        findings.append(&mut ward.findings);
    }
    Ok((healthy, findings))
}

/// Why kubelet and pods would not see the mounts of this process; `None` if they do, or if there is no kubelet.
///
/// # Errors
/// `Internal` when the mounts cannot be read.
pub(crate) fn unseen_by_kubelet(os: &Os) -> holdfast::types::Result<Option<String>> {
    match os.entry(Path::new(KUBELET)) {
        Ok(Some(_)) => unseen(os, &Path::new(KUBELET).join("pods")),
        _ => Ok(None),
    }
}

/// The findings of [`examine`] for a request to the daemon; `home` reports the pools that are not served.
///
/// # Errors
/// `Internal` when the state of the kernel cannot be read.
pub(crate) fn findings(
    os: &Os,
    pools: &[PoolConfig],
    home: Option<&LocalHome>,
) -> holdfast::types::Result<Vec<Finding>> {
    let failed = |error: anyhow::Error| Error::new(Kind::Internal, format!("the pools cannot be inspected: {error:#}"));
    let conditions = home.map(LocalHome::conditions).unwrap_or_default();
    let outages = conditions.into_iter().filter_map(|condition| match condition.health {
        Health::Failing(reason) => Some((condition.name, reason)),
        Health::Served(_) | Health::Quarantined(_) => None,
    });
    examine_served(os, pools, &outages.collect()).map(|(_, findings)| findings).map_err(failed)
}

/// The number of findings of each kind in each pool, for metrics.
///
/// # Errors
/// As [`findings`].
pub(crate) fn counted(
    os: &Os,
    pools: &[PoolConfig],
    home: Option<&LocalHome>,
) -> holdfast::types::Result<Vec<PoolFindings>> {
    let found = findings(os, pools, home)?;
    let of = |pool: &str, kind: FindingKind| {
        let count = found.iter().filter(|finding| finding.pool == pool && finding.kind == kind).count();
        PoolFindings { pool: pool.to_owned(), kind: kind.word(), findings: u64::try_from(count).unwrap_or(u64::MAX) }
    };
    let names = pools.iter().map(|config| config.spec.name.as_str());
    Ok(names
        .flat_map(|pool| FindingKind::OF_A_NODE.into_iter().map(move |kind| (pool, kind)))
        .map(|(pool, kind)| of(pool, kind))
        .collect())
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

impl PoolExaminer<'_> {
    fn found(&mut self, kind: FindingKind, what: String, place: String, remedy: String) {
        self.findings.push(Finding { kind, pool: self.pool.clone(), what, place, remedy });
    }

    fn examine(&mut self, view: &PoolView, kernel: &Kernel) -> Result<()> {
        let (there, place) = (view.pool.identity(), view.config.root().display().to_string());
        if there.name != view.config.spec.name {
            self.found(
                FindingKind::Unreadable,
                format!(
                    "this directory has pool {} ({}) of node {}: another disk is mounted there",
                    there.name, there.id, there.home
                ),
                place.clone(),
                format!(
                    "mount the right filesystem there (findmnt {place} shows the current one), or name the pool {} in the configuration",
                    there.name
                ),
            );
        }
        for stray in view.pool.strays()? {
            let kind = if stray.missing { FindingKind::Image } else { FindingKind::Orphan };
            self.found(kind, stray.what, stray.place, stray.remedy);
        }
        for (object, error) in &view.survey.unreadable {
            let (parts, thing) = match object {
                Object::Volume(_) => ("volumes", "volume"),
                Object::Snapshot(_) => ("snapshots", "snapshot"),
            };
            let place = view.config.root().join(parts).join(object.uuid().to_string()).display().to_string();
            let remedy = format!(
                "restore {thing}.json there from a backup of the pool; if the data is not needed: rm -r {place}. Until then the {thing} is not served, and lists of {parts} fail"
            );
            self.found(FindingKind::Unreadable, error.chain(), place, remedy);
        }
        if let Some(why) = unseen_by_kubelet(self.os)? {
            self.found(
                FindingKind::Service,
                "no volume can be staged or published on this node: kubelet would not see the mounts".to_owned(),
                KUBELET.to_owned(),
                why,
            );
        }
        self.temporaries(view.config.root())?;
        self.ground(view)?;
        self.room(view);
        self.devices(view, kernel);
        for record in &view.survey.volumes {
            self.published(record, kernel)?;
            self.volume(view, record, kernel)?;
        }
        Ok(())
    }

    /// Temporary names and the trash; the driver removes both at start.
    fn temporaries(&mut self, root: &Path) -> Result<()> {
        for directory in [root.to_owned(), root.join("volumes"), root.join("snapshots"), root.join("trash")] {
            let is_trash = directory.ends_with("trash");
            let names = self.os.list_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
            for name in names.into_iter().filter(|name| is_trash || name.starts_with(TEMPORARY)) {
                self.found(
                    FindingKind::Unfinished,
                    "a temporary name: work in progress, or interrupted work".to_owned(),
                    directory.join(name).display().to_string(),
                    "run holdfast doctor again; if it is still there, restart the driver, which removes it".to_owned(),
                );
            }
        }
        Ok(())
    }

    /// A pool should not share a filesystem with the system or with kubelet.
    fn ground(&mut self, view: &PoolView) -> Result<()> {
        let root = view.config.root();
        let Some(ours) = self.os.identity(root)? else { return Ok(()) };
        for (path, why) in [("/", "the system's root"), (KUBELET, "kubelet's directory")] {
            if self.os.identity(Path::new(path))?.is_some_and(|other| other.device == ours.device) {
                self.found(
                    FindingKind::Shared,
                    format!("the pool shares a filesystem with {why} ({path}): one can fill the other"),
                    root.display().to_string(),
                    "use a separate filesystem for the pool: stop the driver, copy the directory to it, mount it at this path"
                        .to_owned(),
                );
                break;
            }
        }
        Ok(())
    }

    /// Free bytes and inodes.
    fn room(&mut self, view: &PoolView) {
        let report = &view.survey.report;
        let place = view.config.root().display().to_string();
        let min_free = view.config.limits.min_free.of(report.room.total);
        let usable = report.room.total.saturating_sub(min_free);
        if report.available < Bytes::new(usable.get() / 10) {
            self.found(
                FindingKind::Space,
                format!(
                    "the pool is nearly full: {} of {usable} are available for new volumes (free {}, reserved {}, minFree {min_free})",
                    report.available, report.room.available, report.promised
                ),
                place.clone(),
                "delete volumes or snapshots, grow the filesystem, or lower minFree in the configuration".to_owned(),
            );
        }
        if report.promised > report.room.available {
            self.found(
                FindingKind::Space,
                format!(
                    "{} are reserved for snapshots and volumes that share blocks or are thin, and only {} are free: other files fill the filesystem, and writes to these volumes may fail",
                    report.promised, report.room.available
                ),
                place.clone(),
                "remove files that do not belong to the pool, delete snapshots, or grow the filesystem".to_owned(),
            );
        }
        if let (Some(all), Some(free)) = (report.room.inodes, report.room.inodes_free)
            && free < all / 20
        {
            self.found(
                FindingKind::Space,
                format!("the pool's filesystem is nearly out of inodes: {free} of {all} are free"),
                place,
                "remove files that do not belong to the pool, or move the pool to a filesystem with more inodes"
                    .to_owned(),
            );
        }
    }

    /// Loop devices of volumes that are not in use, with their mounts.
    fn devices(&mut self, view: &PoolView, kernel: &Kernel) {
        for (uuid, device) in &view.devices {
            let record = view.survey.volumes.iter().find(|record| record.uuid == *uuid);
            let unreadable = view.survey.unreadable.iter().any(|(object, _)| object.uuid() == *uuid);
            let reason = match record {
                Some(record) if record.attachments.is_empty() && record.still_staged.is_some() => {
                    "a volume that was detached while this node used it"
                }
                Some(record) if record.attachments.is_empty() => "a volume that is attached to no node",
                None if !unreadable => "a volume without a record",
                _ => continue,
            };
            let mounts: Vec<_> =
                kernel.mounts_of(device.number).iter().map(|entry| entry.mount_point.display().to_string()).collect();
            let volume = VolumeId { pool: view.pool.identity().id, uuid: *uuid };
            let names = kernel.linear_of(&volume);
            let above = match names.as_slice() {
                [] => String::new(),
                names => format!(", under the device-mapper device {}", names.join(" and ")),
            };
            let remove: String = names.iter().map(|name| format!("dmsetup remove {name}; ")).collect();
            let umounts: String = mounts.iter().map(|point| format!("umount {point}; ")).collect();
            let mounted = if mounts.is_empty() { String::new() } else { format!(", mounted at {}", mounts.join(", ")) };
            self.found(
                FindingKind::Orphan,
                format!("a loop device of {reason} ({uuid}){above}{mounted}"),
                device.path.display().to_string(),
                format!("if no pod uses it: {umounts}{remove}losetup -d {}", device.path.display()),
            );
        }
    }

    /// A raw block volume whose pods have a device that no longer belongs to it.
    fn published(&mut self, record: &VolumeRecord, kernel: &Kernel) -> Result<()> {
        let boot: Option<uuid::Uuid> = self.os.boot_id()?.parse().ok();
        let uses = record.attachments.iter().chain(&record.still_staged);
        for attachment in uses.filter(|attachment| attachment.boot_id == boot) {
            for mark in attachment.marks() {
                let Ok(number) = mark.number.parse::<DevNum>() else { continue };
                let loop_device = self.os.loop_of(number)?;
                let shown = loop_device.map(|device| self.os.loop_view(device)).transpose()?.flatten();
                // The same loop device, of the image or, for pods that only read, of the volume's own device.
                if shown.as_ref().is_some_and(|shown| shown.diskseq == mark.diskseq) {
                    continue;
                }
                // A crash after a read-only device was removed leaves its mark; the number may be a volume's since.
                let is_volume = |shown: &LoopView| shown.backing.ends_with("data") || shown.below().is_some();
                if Some(mark) == attachment.view.as_ref() && shown.as_ref().is_some_and(is_volume) {
                    continue;
                }
                let mut mounts = kernel.mounts_of(number);
                mounts.retain(|entry| kernel.mounts.bound_device(entry) == Some(number));
                let Some(first) = mounts.first() else { continue };
                let device = self.os.device_path(number);
                let shows = match shown {
                    Some(view) => format!("now shows {}", view.backing.display()),
                    None => "no longer has a file".to_owned(),
                };
                let points: Vec<_> = mounts.iter().map(|entry| entry.mount_point.display().to_string()).collect();
                let who = claim_of(record).unwrap_or_else(|| record.co_name.clone());
                self.found(
                FindingKind::Device,
                format!(
                    "volume {who} ({}) is published at {} as {}, which {shows}: its loop device was detached under its pod",
                    record.handle,
                    points.join(", "),
                    device.display()
                ),
                first.mount_point.display().to_string(),
                "delete the pod that uses it; a new pod gets the device of the volume".to_owned(),
            );
            }
        }
        Ok(())
    }

    fn volume(&mut self, view: &PoolView, record: &VolumeRecord, kernel: &Kernel) -> Result<()> {
        let who = claim_of(record).unwrap_or_else(|| record.co_name.clone());
        let place = record.handle.clone();
        if let FormatState::Formatting { fs, .. } = record.format.known {
            self.found(
                FindingKind::Unfinished,
                format!("volume {who} is being formatted: mkfs.{fs} has begun, and its end is not recorded"),
                place.clone(),
                "start its pod: NodeStageVolume finishes or repeats the mkfs; the volume cannot have user data yet"
                    .to_owned(),
            );
        }
        if record.phase == Phase::Deleting {
            self.found(
                FindingKind::Unfinished,
                format!("volume {who} is being deleted, and its data still exists"),
                place.clone(),
                "the next DeleteVolume finishes the deletion; if no PersistentVolume is left, send DeleteVolume for this handle"
                    .to_owned(),
            );
        }
        if record.phase == Phase::Ready
            && let Some(facts) = view.pool.facts(record.object())?
        {
            if facts.size < record.size {
                self.found(
                    FindingKind::Image,
                    format!("volume {who} has an image of {}, but its record has {}", facts.size, record.size),
                    place.clone(),
                    "restore the image from a backup of the pool; the driver does not attach the volume until then"
                        .to_owned(),
                );
            } else if record.provisioning == Provisioning::Thick && facts.allocated < record.size {
                self.found(
                    FindingKind::Image,
                    format!("volume {who} is thick, but only {} of {} are allocated", facts.allocated, record.size),
                    place.clone(),
                    "restart its pod: the next NodeStageVolume fills the holes".to_owned(),
                );
            }
        }
        let mounts: Vec<_> = view
            .device_of(record.uuid)
            .map(|device| {
                kernel.mounts_of(device.number).into_iter().filter(|entry| entry.root == Path::new("/")).collect()
            })
            .unwrap_or_default();
        if let Some(stopped) = fs::stopped(self.os, &mounts) {
            self.found(
                FindingKind::Filesystem,
                format!("the filesystem of volume {who} {stopped}"),
                place,
                "check the kernel log (dmesg), then stop and start its pod: the driver checks the filesystem before the mount"
                    .to_owned(),
            );
        }
        Ok(())
    }
}
