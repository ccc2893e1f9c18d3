//! What metrics and doctor show of attachments to other nodes and of their exports.

use std::collections::HashMap;
use std::time::Duration;

use super::LocalHome;
use super::attached::{Authentication, State};
use super::export::export_of;
use super::local::Shared;
use super::record::{AttachPath, Attachment, GrantState, VolumeRecord};
use crate::export::{Enabled, ExportState};
use crate::os::Timestamp;
use crate::telemetry::{AttachmentFigures, ExportFigures};
use crate::types::{Result, SubsystemNqn};

impl Shared {
    /// Enters an attachment to another node as it was recorded.
    pub(super) fn count_attachment(&self, record: &VolumeRecord, attachment: &Attachment) {
        let Some(fabric) = self.fabric.as_ref().filter(|_| attachment.path == AttachPath::NvmeTcp) else { return };
        let state = match attachment.state {
            GrantState::Revoking => State::Detaching(attachment.revoking_since.unwrap_or_else(Timestamp::now)),
            GrantState::Granted => {
                // One without an export was logged, and cannot be attached.
                let Ok((export, known)) = export_of(record, attachment) else { return };
                let authentication =
                    if known.key.is_some() { Authentication::Dhchap } else { Authentication::HostName };
                State::Attached { export, authentication }
            }
        };
        fabric.attached.with(|all| match (all.get(&record.id()), state) {
            // A record of an earlier release does not say since when: the first time that it was seen counts.
            (Some(State::Detaching(_)), State::Detaching(_)) if attachment.revoking_since.is_none() => {}
            _ => drop(all.insert(record.id(), state)),
        });
    }
}

impl LocalHome {
    /// The attachments to other nodes, from memory; `None` on a node that exports nothing.
    #[must_use]
    pub fn attachment_figures(&self) -> Option<AttachmentFigures> {
        let fabric = self.shared.fabric.as_ref()?;
        let (ports_taken, ports) = fabric.ports();
        let mut figures = AttachmentFigures { ports_taken, ports, ..AttachmentFigures::default() };
        for state in fabric.attached.with(|all| all.values().copied().collect::<Vec<_>>()) {
            match state {
                State::Attached { authentication: Authentication::Dhchap, .. } => figures.authenticated += 1,
                State::Attached { authentication: Authentication::HostName, .. } => figures.unauthenticated += 1,
                State::Detaching(since) => figures.detaching.push(since.age()),
            }
        }
        Some(figures)
    }

    /// The kernel's exports; `None` on a node that exports nothing. Blocks as long as the NVMe target does.
    ///
    /// # Errors
    /// `Internal` when they cannot be listed.
    pub fn export_figures(&self) -> Result<Option<ExportFigures>> {
        let Some(fabric) = self.shared.fabric.as_ref() else { return Ok(None) };
        let attached = || {
            fabric.attached.with(|all| {
                let exports = all.iter().filter_map(|(volume, state)| match state {
                    State::Attached { export, .. } => Some((*volume, *export)),
                    State::Detaching(_) => None,
                });
                exports.collect::<HashMap<_, _>>()
            })
        };
        // An attachment counts if it is the same before and after the kernel is read: it may change meanwhile.
        let before = attached();
        let exports = fabric.export.exports()?;
        let after = attached();
        let mut figures = ExportFigures::default();
        for export in &exports {
            figures.connections += export.connections;
            match (is_open(export), export.connections) {
                (false, _) => figures.closed += 1,
                (true, 0) => figures.idle += 1,
                (true, _) => figures.connected += 1,
            }
        }
        let is_there = |nqn: &SubsystemNqn| exports.iter().any(|one| one.subsystem == Some(*nqn) && is_open(one));
        figures.missing =
            before.iter().filter(|(volume, nqn)| after.get(*volume) == Some(nqn) && !is_there(nqn)).count();
        Ok(Some(figures))
    }
}

/// Whether a client can connect to an export.
pub(super) fn is_open(export: &ExportState) -> bool {
    export.namespace == Enabled::Yes && !export.ports.is_empty() && export.hosts > 0
}

/// A time for people: "5 s", "7 min".
pub(super) fn shown(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}
