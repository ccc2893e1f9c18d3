//! The attachments to other nodes in memory, for metrics. Decides nothing: the records do. A scrape reads no disk, because
//! a disk that does not answer is the most likely reason for a fence that does not end.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::os::Timestamp;
use crate::types::{SubsystemNqn, VolumeId};

/// The attachments that this process recorded or read.
#[derive(Debug, Default)]
pub(super) struct Attached(Mutex<HashMap<VolumeId, State>>);

/// The state of an attachment.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    Attached { export: SubsystemNqn, authentication: Authentication },
    Detaching(Timestamp),
}

/// How the client of an export authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Authentication {
    Dhchap,
    HostName,
}

impl Attached {
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut HashMap<VolumeId, State>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The volume has no attachment to another node any more.
    pub(super) fn leave(&self, volume: VolumeId) {
        self.with(|all| all.remove(&volume));
    }
}
