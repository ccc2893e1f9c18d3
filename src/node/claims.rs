//! The claims of the volumes that this process has opened, for messages. The home node reports a claim when a volume is
//! opened; an unstage does not open it, and its errors name the claim too.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::Node;
use crate::home::OpenVolume;
use crate::types::{ClaimName, Named, Result, VolumeId};

/// The claims, of volumes that have one.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<HashMap<VolumeId, ClaimName>>);

impl Claims {
    pub(super) fn forget(&self, volume: &VolumeId) {
        self.with(|claims| claims.remove(volume));
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<VolumeId, ClaimName>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Node {
    /// The volume as messages name it, with its claim if this process has opened it.
    #[must_use]
    pub fn named(&self, volume: &VolumeId) -> Named {
        Named::volume(*volume, self.claims.with(|claims| claims.get(volume).cloned()))
    }

    /// Opens a volume at its home node.
    pub(super) fn open(&self, volume: &VolumeId) -> Result<OpenVolume> {
        let client = self.network.as_ref().map(|network| network.client(volume)).transpose()?.unwrap_or_default();
        let opened = self.home(volume)?.open_for(volume, &self.id, &client)?;
        if let Some(claim) = &opened.claim {
            self.claims.with(|claims| claims.insert(*volume, claim.clone()));
        }
        Ok(opened)
    }
}
