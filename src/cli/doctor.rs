//! `holdfast doctor`: what is wrong with the pools, and the command that settles it. Reads only.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use holdfast::attach::linear_name;
use holdfast::config::PoolConfig;
use holdfast::home::record::{Phase, Record, VolumeRecord};
use holdfast::home::{Finding, FindingKind, FormatState};
use holdfast::os::{DevNum, DmSupport, Os};
use holdfast::pool::Object;
use holdfast::telemetry::PoolFindings;
use holdfast::types::{Bytes, Error, Kind, Provisioning, VolumeId, printable};

use super::cluster;
use super::inventory::{Kernel, LookArguments, PoolView, claim_of};
use super::output::{Format, Paint, document, say, say_as_is, say_marked};

/// What kubelet keeps its pods in.
const KUBELET: &str = "/var/lib/kubelet";
/// Names that begin so belong to work that is under way or was cut off.
const TEMPORARY: &str = ".tmp-";

/// Findings of one pool.
struct Ward<'a> {
    os: &'a Os,
    pool: String,
    findings: Vec<Finding>,
}

/// Prints every finding: 0 when there is none, 1 when there is.
///
/// # Errors
/// When the kernel cannot be asked. A pool that cannot be read is a finding.
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

/// What raw block volumes are published as on this machine, and what that means: no finding, since a kernel may have no
/// choice.
fn raw_blocks(os: &Os) -> Result<String> {
    let paint = Paint::detect();
    Ok(match os.dm_support().context("ask the kernel for device-mapper")? {
        DmSupport::Yes(_) => format!(
            "{}  raw block volumes are published through device-mapper: their pods have no control of what is below",
            paint.good("ok")
        ),
        DmSupport::No(why) => format!(
            "{}  raw block volumes are published as loop devices, because {why}: a pod with one can detach or resize its own loop device; load the module dm_mod and restart the driver to prevent that",
            paint.strong("--")
        ),
    })
}

/// Looks at pools beside whoever serves them: those with nothing to say, and what there is to say of the others.
///
/// # Errors
/// When the kernel cannot be asked. A pool that cannot be read is a finding.
pub(crate) fn examine(os: &Os, pools: &[PoolConfig]) -> Result<(Vec<String>, Vec<Finding>)> {
    let kernel = Kernel::look(os)?;
    let mut findings = Vec::new();
    let mut healthy = Vec::new();
    for config in pools {
        let mut ward = Ward { os, pool: config.spec.name.to_string(), findings: Vec::new() };
        let looked = PoolView::open(os, config).and_then(|view| ward.examine(&view, &kernel));
        if let Err(error) = looked {
            let place = config.root().display().to_string();
            ward.found(
                FindingKind::Unreadable,
                format!("the pool cannot be read: {error:#}"),
                place,
                "settle what the message names".to_owned(),
            );
        }
        if ward.findings.is_empty() {
            healthy.push(config.spec.to_string());
        }
        findings.append(&mut ward.findings);
    }
    Ok((healthy, findings))
}

/// What [`examine`] finds, for whoever asks the daemon.
///
/// # Errors
/// `Internal` when the kernel cannot be asked.
pub(crate) fn findings(os: &Os, pools: &[PoolConfig]) -> holdfast::types::Result<Vec<Finding>> {
    let failed = |error: anyhow::Error| Error::new(Kind::Internal, format!("the pools cannot be looked at: {error:#}"));
    examine(os, pools).map(|(_, findings)| findings).map_err(failed)
}

/// How many findings of each kind each pool has, for metrics.
///
/// # Errors
/// As [`findings`].
pub(crate) fn counted(os: &Os, pools: &[PoolConfig]) -> holdfast::types::Result<Vec<PoolFindings>> {
    let found = findings(os, pools)?;
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
        say_marked(&paint.good("ok"), &format!("{pool}: nothing to say"));
    }
    for finding in findings {
        let pool = printable(&finding.pool);
        say_as_is(&format!("{}  pool {pool}: {}", paint.bad("!!"), paint.strong(&finding.what)));
        say(&format!("    at  {}", finding.place));
        say(&format!("    do  {}", finding.remedy));
    }
}

impl Ward<'_> {
    fn found(&mut self, kind: FindingKind, what: String, place: String, remedy: String) {
        self.findings.push(Finding { kind, pool: self.pool.clone(), what, place, remedy });
    }

    fn examine(&mut self, view: &PoolView, kernel: &Kernel) -> Result<()> {
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
                "restore {thing}.json there from a backup of the pool; if the data is not needed: rm -r {place}. Until then this {thing} is not served, and no {parts} are listed"
            );
            self.found(FindingKind::Unreadable, error.chain(), place, remedy);
        }
        self.temporaries(view.config.root())?;
        self.ground(view)?;
        self.room(view);
        self.devices(view, kernel);
        for record in &view.survey.volumes {
            self.published(view, record, kernel)?;
            self.volume(view, record, kernel)?;
        }
        Ok(())
    }

    /// Temporary names and the trash: the driver removes them when it starts.
    fn temporaries(&mut self, root: &Path) -> Result<()> {
        for directory in [root.to_owned(), root.join("volumes"), root.join("snapshots"), root.join("trash")] {
            let is_trash = directory.ends_with("trash");
            let names = self.os.list_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
            for name in names.into_iter().filter(|name| is_trash || name.starts_with(TEMPORARY)) {
                self.found(
                    FindingKind::Unfinished,
                    "a temporary name: work under way, or cut off".to_owned(),
                    directory.join(name).display().to_string(),
                    "run holdfast doctor again; if it stays, restart the driver, which removes it".to_owned(),
                );
            }
        }
        Ok(())
    }

    /// A pool should not share a filesystem with what must not run full.
    fn ground(&mut self, view: &PoolView) -> Result<()> {
        let root = view.config.root();
        let Some(ours) = self.os.identity(root)? else { return Ok(()) };
        for (path, why) in [("/", "the system's root"), (KUBELET, "kubelet's directory")] {
            if self.os.identity(Path::new(path))?.is_some_and(|other| other.device == ours.device) {
                self.found(
                    FindingKind::Shared,
                    format!("the pool shares a filesystem with {why} ({path}): one can fill the other"),
                    root.display().to_string(),
                    "give the pool a filesystem of its own: stop the driver, copy the directory there, mount it at this path"
                        .to_owned(),
                );
                break;
            }
        }
        Ok(())
    }

    /// Bytes and inodes.
    fn room(&mut self, view: &PoolView) {
        let report = &view.survey.report;
        let place = view.config.root().display().to_string();
        let min_free = view.config.limits.min_free.of(report.room.total);
        let usable = report.room.total.saturating_sub(min_free);
        if report.available < Bytes::new(usable.get() / 10) {
            self.found(
                FindingKind::Space,
                format!(
                    "the pool is nearly full: new volumes may take {} of {usable} (free {}, promised {}, kept free {min_free})",
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
                    "{} are promised to snapshots and volumes that share blocks or are thin, and only {} are free: somebody else fills the filesystem, and writes to these volumes may fail",
                    report.promised, report.room.available
                ),
                place.clone(),
                "remove files that are not the pool's, delete snapshots, or grow the filesystem".to_owned(),
            );
        }
        if let (Some(all), Some(free)) = (report.room.inodes, report.room.inodes_free)
            && free < all / 20
        {
            self.found(
                FindingKind::Space,
                format!("the pool's filesystem is nearly out of inodes: {free} of {all} are free"),
                place,
                "remove files that are not the pool's, or move the pool to a filesystem with more inodes".to_owned(),
            );
        }
    }

    /// Loop devices of volumes that nobody should be using, with their mounts.
    fn devices(&mut self, view: &PoolView, kernel: &Kernel) {
        for (uuid, device) in &view.devices {
            let record = view.survey.volumes.iter().find(|record| record.uuid == *uuid);
            let unreadable = view.survey.unreadable.iter().any(|(object, _)| object.uuid() == *uuid);
            let reason = match record {
                Some(record) if record.attachments.is_empty() && record.still_staged.is_some() => {
                    "a volume that was detached while this node used it"
                }
                Some(record) if record.attachments.is_empty() => "a volume that is granted to no node",
                None if !unreadable => "a volume without a record",
                _ => continue,
            };
            let mounts: Vec<_> =
                kernel.mounts_of(device.number).iter().map(|entry| entry.mount_point.display().to_string()).collect();
            let volume = VolumeId { pool: view.pool.identity().id, uuid: *uuid };
            let (above, remove) = if kernel.has_linear(&volume) {
                let name = linear_name(&volume);
                (format!(", under the device-mapper device {name}"), format!("dmsetup remove {name}; "))
            } else {
                (String::new(), String::new())
            };
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

    /// A raw block volume whose pods have a device that is not its own any more.
    fn published(&mut self, view: &PoolView, record: &VolumeRecord, kernel: &Kernel) -> Result<()> {
        let boot: Option<uuid::Uuid> = self.os.boot_id()?.parse().ok();
        let uses = record.attachments.iter().chain(&record.still_staged);
        for attachment in uses.filter(|attachment| attachment.boot_id == boot) {
            let Some(mark) = &attachment.device else { continue };
            let Ok(number) = mark.number.parse::<DevNum>() else { continue };
            let now = view.device_of(record.uuid);
            if now.is_some_and(|now| now.number == number && now.diskseq == mark.diskseq) {
                continue;
            }
            let mounts = kernel.mounts_of(number);
            let Some(first) = mounts.first() else { continue };
            let device = self.os.device_path(number);
            let shows = match self.os.loop_of(number)?.map(|device| self.os.loop_view(device)).transpose()?.flatten() {
                Some(view) => format!("shows {} by now", view.backing.display()),
                None => "shows nothing any more".to_owned(),
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
                "delete the pod that uses it: its path is removed, and a new pod gets the volume's own device".to_owned(),
            );
        }
        Ok(())
    }

    fn volume(&mut self, view: &PoolView, record: &VolumeRecord, kernel: &Kernel) -> Result<()> {
        let who = claim_of(record).unwrap_or_else(|| record.co_name.clone());
        let place = record.handle.clone();
        if let FormatState::Formatting { fs, .. } = record.format.known {
            self.found(
                FindingKind::Unfinished,
                format!("volume {who} is in formatting: a mkfs.{fs} was begun and its end is not recorded"),
                place.clone(),
                "start its pod: staging the volume finishes or repeats the mkfs; no user data can be on it yet"
                    .to_owned(),
            );
        }
        if record.phase == Phase::Deleting {
            self.found(
                FindingKind::Unfinished,
                format!("volume {who} is being deleted and still there"),
                place.clone(),
                "the orchestrator's next DeleteVolume finishes it; if its claim is gone, send DeleteVolume for this handle"
                    .to_owned(),
            );
        }
        if record.phase == Phase::Ready
            && let Some(facts) = view.pool.facts(record.object())?
        {
            if facts.size < record.size {
                self.found(
                    FindingKind::Image,
                    format!("volume {who} has an image of {}, its record says {}", facts.size, record.size),
                    place.clone(),
                    "it is not attached like this: restore the image from a backup of the pool".to_owned(),
                );
            } else if record.provisioning == Provisioning::Thick && facts.allocated < record.size {
                self.found(
                    FindingKind::Image,
                    format!("volume {who} is thick, and only {} of {} are reserved", facts.allocated, record.size),
                    place.clone(),
                    "stage it again (restart its pod): its holes are then filled".to_owned(),
                );
            }
        }
        let broken = view.device_of(record.uuid).is_some_and(|device| {
            kernel.mounts_of(device.number).iter().any(|entry| entry.super_read_only() && !entry.read_only())
        });
        if broken {
            self.found(
                FindingKind::Filesystem,
                format!("the filesystem of volume {who} went read-only after errors"),
                place,
                "look at the kernel's log (dmesg), stop its pod and start it again: it is checked before it is mounted"
                    .to_owned(),
            );
        }
        Ok(())
    }
}
