//! A controller tells the users of pods why their volume does not work: an event on each pod of a volume that a node
//! reports. Nodes have no access to the API server.
//!
//! A node can cause events only on pods that run on it and use that volume. All controllers do the same, and give an event
//! the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::Stop;
use crate::csi::DRIVER_NAME;
use crate::kubernetes::{PodEvent, PodEvents, connect};
use crate::os::{Stopwatch, Timestamp};
use crate::route::{Router, STALLED, Seen, Silence, Trouble, TroubleKind};
use crate::types::{ClaimName, Kind, Named, NodeId, ObjectName, Result, VolumeId};

/// The pause between two looks at the heartbeats, and after an error of the API server.
const LOOKING: Duration = Duration::from_secs(10);
const AFTER_ERROR: Duration = Duration::from_secs(60);
/// A volume whose connection breaks again and again causes one event in this time.
const AGAIN: Duration = Duration::from_secs(600);

/// A node, a volume of it, and the kind of its trouble: one event each.
type Key = (NodeId, VolumeId, &'static str);

/// The troubles that have their event, with the time at which each began.
#[derive(Debug, Default)]
struct Told(BTreeMap<Key, (Timestamp, Stopwatch)>);

impl Told {
    /// The troubles of reachable nodes that their pods were not told of.
    fn due(&mut self, seen: &[Seen]) -> Vec<(NodeId, Trouble)> {
        self.0.retain(|_, (_, told)| told.elapsed() < AGAIN);
        let reachable = seen.iter().filter(|node| node.silence == Silence::Heard);
        let all = reachable.flat_map(|node| {
            let troubles = node.heartbeat.connections.iter().flat_map(|connections| &connections.troubles);
            troubles.map(|trouble| (node.heartbeat.node.clone(), trouble.clone()))
        });
        all.filter(|(node, trouble)| {
            let is_brief = matches!(trouble.kind, TroubleKind::Stalled { .. }) && trouble.since.age() < STALLED;
            !is_brief && !self.0.contains_key(&key(node, trouble))
        })
        .collect()
    }

    fn told(&mut self, node: &NodeId, trouble: &Trouble) {
        self.0.insert(key(node, trouble), (trouble.since, Stopwatch::start()));
    }
}

fn key(node: &NodeId, trouble: &Trouble) -> Key {
    (node.clone(), trouble.volume, trouble.reason())
}

/// Tells until the process stops.
///
/// # Errors
/// The API server is not configured.
pub(super) async fn begin(router: Arc<Router>, stop: &Stop) -> Result<()> {
    let events = PodEvents::new(connect().await?, DRIVER_NAME);
    let mut stop = stop.receiver();
    tokio::spawn(async move {
        let (mut told, mut pause) = (Told::default(), LOOKING);
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.changed() => return,
            }
            pause = LOOKING;
            if let Err(error) = tell(&events, &router.directory().seen(), &mut told).await {
                warn!(
                    error = error.chain(),
                    "cannot create events on pods whose volume does not work; the controller tries again"
                );
                pause = AFTER_ERROR;
            }
        }
    });
    Ok(())
}

/// Creates the events that are due.
async fn tell(events: &PodEvents, seen: &[Seen], told: &mut Told) -> Result<()> {
    let due = told.due(seen);
    if due.is_empty() {
        return Ok(());
    }
    let claims = events.claims(&due.iter().map(|(_, trouble)| trouble.volume).collect::<BTreeSet<_>>()).await?;
    let mut failed = None;
    for (node, trouble) in due {
        // Without a claim no pod uses it.
        let result = match claims.get_key_value(&trouble.volume) {
            Some((volume, claim)) => tell_users(events, claim, &event_of(seen, &node, &trouble, volume, claim)).await,
            None => Ok(()),
        };
        match result {
            Ok(()) => told.told(&node, &trouble),
            Err(error) if error.kind() == Kind::Unavailable => return Err(error),
            // Another namespace may permit it.
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn tell_users(events: &PodEvents, claim: &ObjectName, event: &PodEvent) -> Result<()> {
    for pod in events.users(claim, &event.node).await? {
        events.tell(&pod, event).await?;
        info!(pod = %pod.name, node = %event.node, reason = event.reason, volume = %event.volume, "created an event on the pod");
    }
    Ok(())
}

/// `volume` has the handle of the PersistentVolume.
fn event_of(seen: &[Seen], node: &NodeId, trouble: &Trouble, volume: &VolumeId, claim: &ObjectName) -> PodEvent {
    let has = |row: &&Seen| row.heartbeat.pools.iter().any(|pool| pool.id == trouble.volume.pool);
    let home = seen.iter().find(has).map(|row| &row.heartbeat.node);
    let named = Named::volume(*volume, claim.to_string().parse::<ClaimName>().ok());
    PodEvent {
        reason: trouble.reason(),
        message: trouble.sentence(&named, home),
        since: trouble.since,
        node: node.clone(),
        volume: *volume,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Connections, Heartbeat};

    const HANDLE: &str = "hf1_00000000000000aa_0123456789abcdef0123456789abcdef_node-a";

    fn trouble(age: Duration, kind: TroubleKind) -> Trouble {
        let age = u64::try_from(age.as_nanos()).unwrap();
        let since = Timestamp::from_nanos(Timestamp::now().as_nanos() - age);
        Trouble { volume: HANDLE.parse().unwrap(), since, kind }
    }

    fn stalled(seconds: u64) -> Trouble {
        trouble(Duration::from_secs(seconds), TroubleKind::Stalled { address: "10.0.0.1:4500".into() })
    }

    fn node(name: &str, silence: Silence, troubles: Vec<Trouble>) -> Seen {
        let heartbeat = Heartbeat {
            node: name.parse().unwrap(),
            boot_id: String::new(),
            version: String::new(),
            endpoint: String::new(),
            fabric: "rack-1".into(),
            pools: Vec::new(),
            known: Vec::new(),
            left_out: 0,
            connections: Some(Connections { live: 0, troubles }),
        };
        Seen { heartbeat, heard: Timestamp::now(), silence }
    }

    #[test]
    fn a_trouble_that_lasts_is_told_once_and_a_brief_one_never() {
        let mut told = Told::default();
        let due = |told: &mut Told, seen: &[Seen]| told.due(seen);
        assert!(due(&mut told, &[node("b", Silence::Heard, vec![stalled(29)])]).is_empty());
        let lasting = [node("b", Silence::Heard, vec![stalled(31)]), node("c", Silence::Silent, vec![stalled(31)])];
        let now = due(&mut told, &lasting);
        let [(on, trouble_of)] = now.as_slice() else { panic!("{now:?}") };
        assert_eq!(on.as_str(), "b", "an unreachable node may be connected again");
        // It is due until its event was created.
        assert_eq!(due(&mut told, &lasting).len(), 1);
        told.told(on, trouble_of);
        assert!(due(&mut told, &lasting).is_empty());
        // A connection that breaks again and again gets few events. The end of a connection gets its own at once.
        assert!(due(&mut told, &[node("b", Silence::Heard, vec![stalled(40)])]).is_empty());
        let ended = trouble(Duration::ZERO, TroubleKind::Detached);
        assert_eq!(due(&mut told, &[node("b", Silence::Heard, vec![ended])]).len(), 1);
        assert_eq!(due(&mut told, &[node("d", Silence::Heard, vec![stalled(31)])]).len(), 1);
    }

    #[test]
    fn an_event_names_the_claim_and_what_to_do() {
        let (volume, claim): (VolumeId, ObjectName) = (HANDLE.parse().unwrap(), "shop/data".parse().unwrap());
        let on = "node-b".parse().unwrap();
        let stalled = event_of(&[], &on, &stalled(31), &volume, &claim).message;
        for words in [HANDLE, "claim shop/data", "10.0.0.1:4500", "wait", "nothing is lost"] {
            assert!(stalled.contains(words), "{words}: {stalled}");
        }
        let ended = event_of(&[], &on, &trouble(Duration::ZERO, TroubleKind::Detached), &volume, &claim);
        assert!(ended.reason == "VolumeDetached" && ended.message.contains("delete the pod"), "{ended:?}");
    }
}
