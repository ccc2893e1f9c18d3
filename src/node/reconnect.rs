//! Lost connections to exports of other nodes. The kernel does not make them again by itself, because the home node must
//! first end what a lost connection left there (docs/protocol.md): this node asks for that, and then connects again.
//! Reads and writes of the pods wait meanwhile, and then go on.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Node;
use crate::attach::Wanted;
use crate::home::{Changed, Client, Renaming};
use crate::os::{Deadline, Stopwatch};
use crate::telemetry::Reconnected;
use crate::types::{Result, SubsystemNqn, VolumeId};

/// The pause between two looks at the connections.
pub const LOOKING: Duration = Duration::from_secs(1);
/// How long a home node may take to end what a connection left.
const OPENING: Duration = Duration::from_secs(20);

/// The lost connections, and since when this process has known.
#[derive(Debug, Default)]
pub(super) struct Lost(Mutex<HashMap<SubsystemNqn, Since>>);

#[derive(Clone, Copy, Debug)]
struct Since {
    found: Stopwatch,
    /// Whether the reason why it is not connected again was logged.
    was_told: bool,
}

impl Lost {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<SubsystemNqn, Since>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Those of now; returns the new ones.
    fn are(&self, now: &[SubsystemNqn]) -> Vec<SubsystemNqn> {
        self.with(|lost| {
            lost.retain(|export, _| now.contains(export));
            let new = now.iter().filter(|export| !lost.contains_key(export)).copied().collect::<Vec<_>>();
            lost.extend(new.iter().map(|export| (*export, Since { found: Stopwatch::start(), was_told: false })));
            new
        })
    }

    fn ended(&self, export: &SubsystemNqn) -> Option<Duration> {
        self.with(|lost| lost.remove(export)).map(|since| since.found.elapsed())
    }

    /// Whether this is the first failure.
    fn is_news(&self, export: &SubsystemNqn) -> bool {
        self.with(|lost| lost.get_mut(export).is_some_and(|since| !std::mem::replace(&mut since.was_told, true)))
    }
}

impl Node {
    /// The exports whose connection is lost now.
    ///
    /// # Errors
    /// `Internal` when the connections cannot be listed.
    pub fn lost_connections(&self) -> Result<Vec<SubsystemNqn>> {
        let Some(network) = &self.network else { return Ok(Vec::new()) };
        let waiting = network.waiting()?;
        for export in self.lost.are(&waiting) {
            tracing::warn!(volume = %self.named(&export.volume), export = %export, "the connection to the volume's home node is lost; reads and writes wait and go on when it is back");
        }
        Ok(waiting)
    }

    /// Makes a lost connection again. A failure is logged once and told by the next call.
    ///
    /// 1. The home node ends what the connection left, and opens the export again. A crash leaves an export that nobody
    ///    is connected to; the next call does both again.
    /// 2. Connect; the device answers; the earlier controller goes ([`crate::attach::NvmeTcp`]). After a crash the next
    ///    call continues.
    pub fn reconnect(&self, export: &SubsystemNqn) -> Changed {
        let volume = &export.volume;
        // Not under the volume's lock: what holds it may be waiting for this device, such as mkfs or an unmount.
        match self.connected_again(volume) {
            Ok(Changed::No) => Changed::No,
            Ok(Changed::Yes) => {
                self.connections.metrics.reconnected(Reconnected::Yes);
                let seconds = self.lost.ended(export).map(|time| time.as_secs());
                tracing::info!(volume = %self.named(volume), export = %export, seconds, "the volume is connected again; its reads and writes go on");
                Changed::Yes
            }
            Err(error) => {
                self.connections.metrics.reconnected(Reconnected::NotYet);
                // It is expected while the home node is away.
                if self.lost.is_news(export) {
                    tracing::warn!(volume = %self.named(volume), export = %export, error = error.chain(), "the volume cannot be connected again yet; its reads and writes wait, and the node tries every second");
                }
                Changed::No
            }
        }
    }

    fn connected_again(&self, volume: &VolumeId) -> Result<Changed> {
        let Some(network) = &self.network else { return Ok(Changed::No) };
        let client = Client { renaming: Renaming::Refused, ..network.client(volume)? };
        if client.connection.is_none() {
            return Ok(Changed::No);
        }
        let open = || self.home(volume)?.open_for(volume, &self.id, &client);
        let opened = Deadline::scope(Deadline::after(OPENING), open)?;
        network.rejoin(volume, &Wanted::from(&opened))?;
        Ok(Changed::Yes)
    }
}
