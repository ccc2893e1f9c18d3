//! The connections of this node to exports of other nodes: which volumes wait for theirs, and since when. In memory, for
//! metrics, heartbeats and the health of volumes; it decides nothing.
//!
//! The kernel does not say since when a controller is not live. The time is that of the first look that found it so.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use super::Node;
use crate::os::{NvmeCondition, NvmeController, Timestamp};
use crate::route::{Connections as Reported, Trouble, TroubleKind};
use crate::telemetry::{ConnectionFigures, NetworkMetrics};
use crate::types::{OsContext, Result, SubsystemNqn, VolumeId};

/// What this process saw.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) metrics: NetworkMetrics,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Volumes without a live controller.
    stalled: HashMap<VolumeId, Timestamp>,
    /// Volumes whose connection was ended while pods used them, until they are unstaged.
    ended: HashMap<VolumeId, Timestamp>,
}

/// A volume's connections at one moment.
#[derive(Clone, Debug, Default)]
struct Now {
    is_live: bool,
    /// Whether a controller is not being deleted.
    is_wanted: bool,
    address: String,
}

impl Connections {
    fn with<T>(&self, act: impl FnOnce(&mut Seen) -> T) -> T {
        act(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of the state of all controllers. A volume with several, such as a broken one and its successor, waits
    /// only if none is live.
    pub(super) fn look(&self, controllers: &[NvmeController]) -> Reported {
        let mut volumes = BTreeMap::<VolumeId, Now>::new();
        for controller in controllers {
            let Ok(name) = controller.subsystem.parse::<SubsystemNqn>() else { continue };
            let now = volumes.entry(name.volume).or_default();
            now.is_live |= controller.condition() == NvmeCondition::Live;
            if controller.condition() != NvmeCondition::Ending {
                now.is_wanted = true;
                now.address = address_in(&controller.address);
            }
        }
        let stalled: BTreeMap<_, _> = volumes.iter().filter(|(_, now)| now.is_wanted && !now.is_live).collect();
        self.with(|seen| {
            seen.stalled.retain(|volume, _| stalled.contains_key(volume));
            // A volume that is connected again was attached again.
            seen.ended.retain(|volume, _| !volumes.contains_key(volume));
            let mut troubles: Vec<_> = stalled
                .into_iter()
                .map(|(volume, now)| Trouble {
                    volume: *volume,
                    since: *seen.stalled.entry(*volume).or_insert_with(Timestamp::now),
                    kind: TroubleKind::Stalled { address: now.address.clone() },
                })
                .collect();
            let ended = |(volume, since): (&VolumeId, &Timestamp)| Trouble {
                volume: *volume,
                since: *since,
                kind: TroubleKind::Detached,
            };
            troubles.extend(seen.ended.iter().map(ended));
            troubles.sort_unstable_by_key(|trouble| (trouble.since, trouble.volume));
            Reported { live: volumes.values().filter(|now| now.is_live).count(), troubles }
        })
    }

    /// The connection of a volume was ended because the volume was detached from this node while pods used it.
    pub(super) fn ended(&self, volume: VolumeId) {
        self.metrics.ended_detached();
        self.with(|seen| seen.ended.insert(volume, Timestamp::now()));
    }

    /// The volume is no longer in use here.
    pub(super) fn forget(&self, volume: &VolumeId) {
        self.with(|seen| seen.ended.remove(volume));
    }
}

/// `HOST:PORT` of an address as sysfs shows it: `traddr=10.1.0.11,trsvcid=4500,src_addr=..`.
fn address_in(text: &str) -> String {
    let part = |name: &str| text.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    match (part("traddr"), part("trsvcid")) {
        (Some(host), Some(port)) if host.contains(':') => format!("[{host}]:{port}"),
        (Some(host), Some(port)) => format!("{host}:{port}"),
        _ => text.to_owned(),
    }
}

/// The connections of these controllers, as one look shows them: without the time before it.
#[must_use]
pub fn connections_of(controllers: &[NvmeController]) -> Reported {
    Connections::default().look(controllers)
}

impl Node {
    /// Counts connections in these metrics.
    #[must_use]
    pub fn counted(mut self, metrics: NetworkMetrics) -> Self {
        self.connections.metrics = metrics;
        self
    }

    /// The connections to exports of other nodes, and the volumes that have none that works; `None` where this node makes
    /// no connections. Each call takes note of the time, so one call every few seconds makes the times precise.
    ///
    /// # Errors
    /// `Internal` when the controllers cannot be listed.
    pub fn connections(&self) -> Result<Option<Reported>> {
        if self.network.is_none() {
            return Ok(None);
        }
        let mut reported = self.connections.look(&self.controllers()?);
        reported.troubles.retain(|trouble| {
            let is_over = trouble.kind == TroubleKind::Detached && !self.is_used(&trouble.volume);
            if is_over {
                self.connections.forget(&trouble.volume);
            }
            !is_over
        });
        Ok(Some(reported))
    }

    /// The same for metrics.
    ///
    /// # Errors
    /// As [`Node::connections`].
    pub fn connection_figures(&self) -> Result<ConnectionFigures> {
        let controllers = self.controllers()?;
        let reported = self.connections.look(&controllers);
        let is_ours = |one: &NvmeController| one.subsystem.parse::<SubsystemNqn>().is_ok();
        let stalled = |one: &Trouble| matches!(one.kind, TroubleKind::Stalled { .. }).then(|| one.since.age());
        Ok(ConnectionFigures {
            states: controllers.into_iter().filter(is_ours).map(|one| one.state).collect(),
            stalled: reported.troubles.iter().filter_map(stalled).collect(),
        })
    }

    /// Whether a pod may still use a volume here. If that cannot be read, it may.
    fn is_used(&self, volume: &VolumeId) -> bool {
        self.raw.holds(volume) || self.unused(volume).is_err()
    }

    fn controllers(&self) -> Result<Vec<NvmeController>> {
        self.os.nvme_controllers().at(|| "list the NVMe controllers")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const HANDLES: [&str; 2] = [
        "hf1_00000000000000aa_0123456789abcdef0123456789abcdef_node-a",
        "hf1_00000000000000aa_1123456789abcdef0123456789abcdef_node-a",
    ];

    fn volume(index: usize) -> VolumeId {
        HANDLES[index].parse().unwrap()
    }

    fn controller(instance: u32, volume: VolumeId, state: &str) -> NvmeController {
        NvmeController {
            instance,
            subsystem: SubsystemNqn { volume, nonce: Uuid::from_u128(u128::from(instance)) }.to_string(),
            transport: "tcp".into(),
            address: "traddr=10.1.0.11,trsvcid=4500,src_addr=10.1.0.12".into(),
            state: state.into(),
            id: None,
            namespaces: Vec::new(),
        }
    }

    #[test]
    fn a_volume_waits_from_the_first_look_until_a_controller_is_live() {
        let connections = Connections::default();
        let of_others = NvmeController { subsystem: "nqn.other".into(), ..controller(9, volume(0), "connecting") };
        let both = [controller(0, volume(0), "live"), controller(1, volume(1), "live"), of_others];
        assert_eq!(connections.look(&both), Reported { live: 2, troubles: Vec::new() });

        let broken = [controller(0, volume(0), "connecting"), controller(1, volume(1), "live")];
        let first = connections.look(&broken);
        let [trouble] = first.troubles.as_slice() else { panic!("{first:?}") };
        assert!(first.live == 1 && trouble.volume == volume(0), "{first:?}");
        assert_eq!(trouble.kind, TroubleKind::Stalled { address: "10.1.0.11:4500".into() });
        // The time stays, also with another state of the same connection.
        let again = connections.look(&[controller(0, volume(0), "resetting"), controller(1, volume(1), "live")]);
        assert_eq!(again, first);

        // A new connection beside the broken one.
        let successor = [controller(0, volume(0), "connecting"), controller(2, volume(0), "live")];
        assert!(connections.look(&successor).troubles.is_empty());
        let since = connections.look(&broken).troubles[0].since;
        assert!(since > trouble.since, "another break has its own time");
        // One that is being deleted does not wait.
        assert!(connections.look(&[controller(0, volume(0), "deleting (no IO)")]).troubles.is_empty());
    }

    #[test]
    fn an_ended_connection_is_reported_until_the_volume_is_unstaged_or_connected_again() {
        let connections = Connections::default();
        connections.ended(volume(0));
        let reported = connections.look(&[controller(1, volume(1), "live")]);
        let [trouble] = reported.troubles.as_slice() else { panic!("{reported:?}") };
        assert!(trouble.volume == volume(0) && trouble.kind == TroubleKind::Detached, "{trouble:?}");
        connections.forget(&volume(0));
        assert!(connections.look(&[]).troubles.is_empty());
        connections.ended(volume(0));
        assert!(connections.look(&[controller(3, volume(0), "live")]).troubles.is_empty());
        assert!(connections.look(&[]).troubles.is_empty());
    }

    #[test]
    fn addresses_of_sysfs_are_shown_as_they_are_configured() {
        assert_eq!(address_in("traddr=10.1.0.11,trsvcid=4500"), "10.1.0.11:4500");
        assert_eq!(address_in("traddr=fd00::1,trsvcid=4500,src_addr=fd00::2"), "[fd00::1]:4500");
        assert_eq!(address_in("other"), "other");
    }
}
