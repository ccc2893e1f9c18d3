//! What `holdfast doctor` finds in a node's pools: problems, each with the next step. Read-only; a driver may serve the
//! pools meanwhile.

use std::path::Path;
use std::sync::Arc;

use super::export::export_of;
use super::figures::{is_open, shown};
use super::record::{AttachPath, Attachment, GrantState, Phase, Record, VolumeRecord};
use super::view::{KUBELET, Kernel, PoolView, unseen_by_kubelet};
use super::{Finding, FindingKind, FormatState, Health, LocalHome};
use crate::export::{Shortcoming, missing_modules, unfit_settings};
use crate::fs::{self, tools};
use crate::os::{DevNum, LoopView, Os};
use crate::pool::{Object, Stable, StrayKind};
use crate::types::{Access, Bytes, OsContext, PoolName, Provisioning, Result, VolumeId};

impl LocalHome {
    /// The findings in every configured pool. A pool that is not served is not inspected: its disk may not answer.
    ///
    /// # Errors
    /// `Internal` when the state of the kernel cannot be read.
    pub(super) fn examine_pools(&self) -> Result<Vec<Finding>> {
        let os = &self.shared.os;
        let kernel = Kernel::look_with(os, self.shared.fabric.as_ref().map(|fabric| Arc::clone(&fabric.export)))?;
        let mut findings = Vec::new();
        for (slot, condition) in self.shared.slots.iter().zip(self.conditions()) {
            match (slot.state(), condition.health) {
                (Some(state), Health::Served(_) | Health::Quarantined(_)) => {
                    let view = state.pool.view().and_then(|pool| PoolView::of(pool, &slot.name, slot.limits));
                    findings.extend(examine(os, &kernel, &slot.name, &condition.place, view));
                }
                (_, Health::Failing(what)) => findings.push(Finding {
                    kind: FindingKind::Unreadable,
                    pool: slot.name.to_string(),
                    what,
                    place: condition.place,
                    remedy: "follow the message; the driver then serves the pool without a restart".to_owned(),
                }),
                // It is served, and so it has a state.
                (None, Health::Served(_) | Health::Quarantined(_)) => {}
            }
        }
        Ok(findings)
    }
}

/// The findings in one pool, with this name and location in the configuration. A pool that cannot be read is a finding.
#[must_use]
pub fn examine(os: &Os, kernel: &Kernel, name: &PoolName, place: &str, view: Result<PoolView>) -> Vec<Finding> {
    let mut examiner = PoolExaminer { os, pool: name.to_string(), findings: Vec::new() };
    if let Err(error) = view.and_then(|view| examiner.examine(&view, kernel)) {
        examiner.found(
            FindingKind::Unreadable,
            format!("the pool cannot be read: {}", error.chain()),
            place.to_owned(),
            "follow the message, then run holdfast doctor again".to_owned(),
        );
    }
    examiner.findings
}

/// The text of a pool, which knows only uuids, with its volumes and snapshots named as everywhere else.
fn named_in(view: &PoolView, text: &str) -> String {
    let volumes = view.survey.volumes.iter().map(|record| (record.uuid, record.named()));
    let snapshots = view.survey.snapshots.iter().map(|record| (record.uuid, record.named()));
    let mut named = volumes.chain(snapshots).filter(|(uuid, _)| text.contains(&uuid.to_string()));
    named.next().map_or_else(|| text.to_owned(), |(_, named)| named.in_text(text))
}

/// Findings of one pool.
struct PoolExaminer<'a> {
    os: &'a Os,
    pool: String,
    findings: Vec<Finding>,
}

impl PoolExaminer<'_> {
    fn found(&mut self, kind: FindingKind, what: String, place: String, remedy: String) {
        self.findings.push(Finding { kind, pool: self.pool.clone(), what, place, remedy });
    }

    fn examine(&mut self, view: &PoolView, kernel: &Kernel) -> Result<()> {
        let (there, place) = (view.pool.identity(), &view.pool.identity().place);
        if there.name != view.name {
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
            let kind = match stray.kind {
                StrayKind::Foreign => FindingKind::Orphan,
                StrayKind::Missing => FindingKind::Image,
                StrayKind::Unfinished => FindingKind::Unfinished,
            };
            self.found(kind, named_in(view, &stray.what), stray.place, stray.remedy);
        }
        for (object, error) in &view.survey.unreadable {
            let (parts, thing) = match object {
                Object::Volume(_) => ("volumes", "volume"),
                Object::Snapshot(_) => ("snapshots", "snapshot"),
            };
            let place = view.pool.locate(*object);
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
        for missing in tools::missing() {
            let place = "/usr/sbin, /usr/bin, /sbin, /bin".to_owned();
            self.found(FindingKind::Service, missing.problem(), place, missing.remedy());
        }
        if view.survey.volumes.iter().any(|record| record.access == Access::Network) {
            for Shortcoming { what, place, remedy } in
                missing_modules(self.os)?.into_iter().chain(unfit_settings(self.os)?)
            {
                self.found(FindingKind::Service, what, place.to_owned(), remedy.to_owned());
            }
        }
        self.ground(view)?;
        self.room(view);
        self.devices(view, kernel);
        for record in &view.survey.volumes {
            self.published(record, kernel)?;
            self.volume(view, record, kernel)?;
        }
        Ok(())
    }

    /// A pool should not share a filesystem with the system or with kubelet.
    fn ground(&mut self, view: &PoolView) -> Result<()> {
        let root = Path::new(&view.pool.identity().place);
        let identity = |path: &Path| self.os.identity(path).at(|| format!("stat {}", path.display()));
        let Some(ours) = identity(root)? else { return Ok(()) };
        for (path, why) in [("/", "the system's root"), (KUBELET, "kubelet's directory")] {
            if identity(Path::new(path))?.is_some_and(|other| other.device == ours.device) {
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
        let place = view.pool.identity().place.clone();
        let min_free = view.limits.min_free.of(report.room.total);
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
                    format!("{}, which was detached while this node used it", record.named())
                }
                Some(record) if record.attachments.is_empty() => {
                    format!("{}, which is attached to no node", record.named())
                }
                None if !unreadable => format!("an image without a record ({uuid})"),
                _ => continue,
            };
            let mounts: Vec<_> =
                kernel.mounts_of(device.number).iter().map(|entry| entry.mount_point.display().to_string()).collect();
            let volume = VolumeId::new(view.pool.identity().id, *uuid);
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
                format!("a loop device of {reason}{above}{mounted}"),
                device.path.display().to_string(),
                format!("if no pod uses it: {umounts}{remove}losetup -d {}", device.path.display()),
            );
        }
    }

    /// A raw block volume whose pods have a device that no longer belongs to it.
    fn published(&mut self, record: &VolumeRecord, kernel: &Kernel) -> Result<()> {
        let boot: Option<uuid::Uuid> = self.os.boot_id().at(|| "read the boot id")?.parse().ok();
        let uses = record.attachments.iter().chain(&record.still_staged);
        for attachment in uses.filter(|attachment| attachment.boot_id == boot) {
            for mark in attachment.marks() {
                let Ok(number) = mark.number.parse::<DevNum>() else { continue };
                let read = || "read the state of the loop devices";
                let loop_device = self.os.loop_of(number).at(read)?;
                let shown = loop_device.map(|device| self.os.loop_view(device)).transpose().at(read)?.flatten();
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
                self.found(
                    FindingKind::Device,
                    format!(
                        "{} is published at {} as {}, which {shows}: its loop device was detached under its pod",
                        record.named(),
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

    /// Attachments over the network.
    fn exports(&mut self, view: &PoolView, record: &VolumeRecord, kernel: &Kernel) -> Result<()> {
        let named = record.named();
        for attachment in record.attachments.iter().filter(|one| one.path == AttachPath::NvmeTcp) {
            let node = &attachment.node;
            if attachment.state == GrantState::Revoking {
                let age = attachment.revoking_since.map(|since| format!(" for {}", shown(since.age())));
                self.found(
                    FindingKind::Unfinished,
                    format!(
                        "{named} has been in detaching from node {node}{}: no other node gets it until its requests in flight have ended",
                        age.unwrap_or_default()
                    ),
                    record.handle.clone(),
                    "the next ControllerUnpublishVolume continues; if it never ends, a disk of the pool does not answer: see dmesg and holdfast_operation_age_seconds on this node, and repair the disk or restart the node"
                        .to_owned(),
                );
                continue;
            }
            if self.is_export_missing(record, attachment, kernel) {
                self.found(
                    FindingKind::Service,
                    format!("{named} is attached to node {node} over the network, but this node does not export it: its pods wait"),
                    record.handle.clone(),
                    format!("after a restart of this machine, node {node} asks for the export within seconds, if the driver runs there and reaches this node: check both, and the logs of both"),
                );
            }
            if let Some(devices) = view.pool.devices()
                && devices.stable(record.uuid)? == Stable::No
            {
                self.found(
                    FindingKind::Image,
                    format!("{named} is attached to node {node} over the network, but its image is not synchronous: writes that were acknowledged can be lost with the power of this node"),
                    record.handle.clone(),
                    "restart the driver on the home node, which sets the flag; find out what removed it (chattr -S)".to_owned(),
                );
            }
        }
        Ok(())
    }

    /// Whether the kernel is known to have no export of an attachment that a client could connect to.
    fn is_export_missing(&self, record: &VolumeRecord, attachment: &Attachment, kernel: &Kernel) -> bool {
        let (Some(exports), Ok((nqn, _))) = (&kernel.exports, export_of(record, attachment)) else { return false };
        !exports.iter().any(|export| export.subsystem == Some(nqn) && is_open(export))
    }

    fn volume(&mut self, view: &PoolView, record: &VolumeRecord, kernel: &Kernel) -> Result<()> {
        let named = record.named();
        let place = record.handle.clone();
        if let FormatState::Formatting { fs, .. } = record.format.known {
            self.found(
                FindingKind::Unfinished,
                format!("{named} is being formatted: mkfs.{fs} has begun, and its end is not recorded"),
                place.clone(),
                "start its pod: NodeStageVolume finishes or repeats the mkfs; the volume cannot have user data yet"
                    .to_owned(),
            );
        }
        if record.phase == Phase::Deleting {
            self.found(
                FindingKind::Unfinished,
                format!("{named} is being deleted, and its data still exists"),
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
                    format!("{named} has an image of {}, but its record has {}", facts.size, record.size),
                    place.clone(),
                    "restore the image from a backup of the pool; the driver does not attach the volume until then"
                        .to_owned(),
                );
            } else if record.provisioning == Provisioning::Thick && facts.allocated < record.size {
                self.found(
                    FindingKind::Image,
                    format!("{named} is thick, but only {} of {} are allocated", facts.allocated, record.size),
                    place.clone(),
                    "restart its pod: the next NodeStageVolume fills the holes".to_owned(),
                );
            }
        }
        self.exports(view, record, kernel)?;
        let mounts: Vec<_> = view
            .device_of(record.uuid)
            .map(|device| {
                kernel.mounts_of(device.number).into_iter().filter(|entry| entry.root == Path::new("/")).collect()
            })
            .unwrap_or_default();
        if let Some(stopped) = fs::stopped(self.os, &mounts) {
            self.found(
                FindingKind::Filesystem,
                format!("the filesystem of {named} {stopped}"),
                place,
                "check the kernel log (dmesg), then stop and start its pod: the driver checks the filesystem before the mount"
                    .to_owned(),
            );
        }
        Ok(())
    }
}
