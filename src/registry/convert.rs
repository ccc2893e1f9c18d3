//! Heartbeats and directory entries <-> messages.

use std::str::FromStr;

use super::proto as pb;
use crate::home::remote;
use crate::home::{Health, PoolHealth};
use crate::os::Timestamp;
use crate::route::{Connections, Entry, Heartbeat, MOST_KNOWN, Trouble, TroubleKind};
use crate::types::{Error, Kind, NodeId, Result, cut_printable, is_printable};

/// The longest endpoint, boot id or version that is accepted.
const LONGEST: usize = 255;
/// The most bytes kept of a message of another process.
const LONGEST_SENTENCE: usize = 2048;
/// The most pools of one node.
pub(super) const MOST_POOLS: usize = 1024;
/// The most volumes that do not work which a node reports, and the most that a controller keeps of one node. The oldest
/// are the ones that matter.
const MOST_TROUBLES: usize = 128;

fn text<T: FromStr<Err = Error>>(text: &str) -> Result<T> {
    text.parse()
}

/// A text that is shown and dialled, never used as a path.
fn plain(what: &str, text: String) -> Result<String> {
    if text.len() > LONGEST || !text.chars().all(is_printable) {
        return Err(Error::new(Kind::InvalidArgument, format!("{what} is too long or contains control characters")));
    }
    Ok(text)
}

pub(super) fn entry_out(entry: &Entry) -> pb::DirectoryEntry {
    pb::DirectoryEntry {
        pool: entry.pool.to_string(),
        node: entry.node.to_string(),
        endpoint: entry.endpoint.clone(),
        heard: entry.heard.as_nanos(),
        name: entry.name.to_string(),
    }
}

pub(super) fn entry_in(entry: pb::DirectoryEntry) -> Result<Entry> {
    Ok(Entry {
        pool: text(&entry.pool)?,
        name: text(&entry.name)?,
        node: text(&entry.node)?,
        endpoint: plain("an endpoint", entry.endpoint)?,
        heard: Timestamp::from_nanos(entry.heard),
    })
}

pub(super) fn health_out(pool: &PoolHealth) -> pb::PoolHealth {
    use pb::pool_health::State;
    let state = match &pool.health {
        Health::Served(report) => State::Figures(remote::pool(report)),
        Health::Failing(why) => State::Failing(why.clone()),
        Health::Quarantined(since) => State::Quarantined(since.as_nanos()),
    };
    pb::PoolHealth { id: pool.id.to_string(), name: pool.name.to_string(), state: Some(state) }
}

pub(super) fn health_in(pool: pb::PoolHealth) -> Result<PoolHealth> {
    use pb::pool_health::State;
    let health = match pool.state {
        // Figures that this release cannot read make that one pool unusable, not its node unreachable.
        Some(State::Figures(report)) => match remote::pool_report(report) {
            Ok(report) if report.id.to_string() != pool.id || report.name.as_str() != pool.name => {
                Health::Failing("its figures belong to another pool".to_owned())
            }
            Ok(report) => Health::Served(Box::new(report)),
            Err(error) => Health::Failing(format!("its figures cannot be read: {}", error.chain())),
        },
        Some(State::Failing(why)) => Health::Failing(cut_printable(&why, LONGEST_SENTENCE)),
        Some(State::Quarantined(since)) => Health::Quarantined(Timestamp::from_nanos(since)),
        None => Health::Failing("its state is unknown to this release".to_owned()),
    };
    Ok(PoolHealth { id: text(&pool.id)?, name: text(&pool.name)?, health })
}

pub(super) fn heartbeat_out(heartbeat: &Heartbeat) -> pb::HeartbeatRequest {
    pb::HeartbeatRequest {
        node: heartbeat.node.to_string(),
        boot_id: heartbeat.boot_id.clone(),
        version: heartbeat.version.clone(),
        endpoint: heartbeat.endpoint.clone(),
        fabric: heartbeat.fabric.clone(),
        pools: heartbeat.pools.iter().map(health_out).collect(),
        known: heartbeat.known.iter().map(entry_out).collect(),
        connections: heartbeat.connections.as_ref().map(connections_out),
    }
}

pub(super) fn connections_out(connections: &Connections) -> pb::Connections {
    use pb::trouble::{Detached, Kind, Stalled};
    let trouble = |trouble: &Trouble| pb::Trouble {
        volume: trouble.volume.to_string(),
        since: trouble.since.as_nanos(),
        kind: Some(match &trouble.kind {
            TroubleKind::Stalled { address } => Kind::Stalled(Stalled { address: address.clone() }),
            TroubleKind::Detached => Kind::Detached(Detached {}),
        }),
    };
    pb::Connections {
        live: u64::try_from(connections.live).unwrap_or(u64::MAX),
        troubles: connections.troubles.iter().take(MOST_TROUBLES).map(trouble).collect(),
    }
}

/// The connections of a node. What this release does not know is left out: it is shown to people only.
///
/// # Errors
/// Those of an invalid volume or address.
pub(super) fn connections_in(connections: pb::Connections) -> Result<Connections> {
    use pb::trouble::Kind;
    let mut troubles = Vec::new();
    for trouble in connections.troubles.into_iter().take(MOST_TROUBLES) {
        let kind = match trouble.kind {
            Some(Kind::Stalled(stalled)) => {
                TroubleKind::Stalled { address: plain("the address of an export", stalled.address)? }
            }
            Some(Kind::Detached(_)) => TroubleKind::Detached,
            None => continue,
        };
        troubles.push(Trouble { volume: text(&trouble.volume)?, since: Timestamp::from_nanos(trouble.since), kind });
    }
    Ok(Connections { live: usize::try_from(connections.live).unwrap_or(usize::MAX), troubles })
}

/// A node's heartbeat. Of its directory entries, no more are accepted than can be kept.
///
/// # Errors
/// `InvalidArgument` for an invalid heartbeat, or more pools than a node may have.
pub(super) fn heartbeat_in(request: pb::HeartbeatRequest) -> Result<Heartbeat> {
    let node: NodeId = text(&request.node)?;
    if request.pools.len() > MOST_POOLS {
        let said = request.pools.len();
        let message = format!("node {node} reports {said} pools; at most {MOST_POOLS} are allowed");
        return Err(Error::new(Kind::InvalidArgument, message));
    }
    let fabric = text::<NodeId>(&request.fabric).map_err(|error| error.context("a fabric's name"))?.to_string();
    let left_out = request.known.len().saturating_sub(MOST_KNOWN);
    Ok(Heartbeat {
        node,
        boot_id: plain("a boot id", request.boot_id)?,
        version: plain("a version", request.version)?,
        endpoint: plain("an endpoint", request.endpoint)?,
        fabric,
        pools: request.pools.into_iter().map(health_in).collect::<Result<_>>()?,
        known: request.known.into_iter().take(MOST_KNOWN).map(entry_in).collect::<Result<_>>()?,
        left_out,
        connections: request.connections.map(connections_in).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat() -> pb::HeartbeatRequest {
        pb::HeartbeatRequest {
            node: "node-a".into(),
            endpoint: "a:1".into(),
            fabric: "none".into(),
            ..Default::default()
        }
    }

    fn entry() -> pb::DirectoryEntry {
        let text = |text: &str| text.to_owned();
        pb::DirectoryEntry {
            pool: text("00000000000000aa"),
            node: text("b"),
            endpoint: text("b:1"),
            heard: 1,
            name: text("x"),
        }
    }

    fn stalled(address: &str, times: usize) -> pb::Connections {
        use pb::trouble::{Kind, Stalled};
        let trouble = pb::Trouble {
            volume: "hf1_00000000000000aa_0123456789abcdef0123456789abcdef".into(),
            since: 7,
            kind: Some(Kind::Stalled(Stalled { address: address.into() })),
        };
        pb::Connections { live: 3, troubles: vec![trouble; times] }
    }

    #[test]
    fn connections_are_bounded_and_a_trouble_of_a_later_release_is_left_out() {
        let heard = connections_in(stalled("10.1.0.11:4500", MOST_TROUBLES + 1)).unwrap();
        assert_eq!((heard.live, heard.troubles.len()), (3, MOST_TROUBLES));
        assert_eq!(connections_in(connections_out(&heard)).unwrap(), heard);
        let mut later = stalled("10.1.0.11:4500", 2);
        later.troubles[0].kind = None;
        assert_eq!(connections_in(later).unwrap().troubles.len(), 1);
    }

    #[test]
    fn lists_are_bounded_and_what_is_left_out_is_counted() {
        let known = vec![entry(); MOST_KNOWN + 7];
        let heard = heartbeat_in(pb::HeartbeatRequest { known, ..heartbeat() }).unwrap();
        assert_eq!((heard.known.len(), heard.left_out), (MOST_KNOWN, 7));
        let pool = pb::PoolHealth { id: "00000000000000aa".into(), name: "x".into(), state: None };
        let pools = vec![pool; MOST_POOLS + 1];
        let error = heartbeat_in(pb::HeartbeatRequest { pools, ..heartbeat() }).unwrap_err();
        assert!(error.kind() == Kind::InvalidArgument && error.to_string().contains("node-a"), "{error}");
    }

    #[test]
    fn texts_that_act_on_a_terminal_are_refused_or_shown_by_numbers() {
        let bad = "a\u{1b}[2J\u{202e}";
        for request in [
            pb::HeartbeatRequest { version: bad.into(), ..heartbeat() },
            pb::HeartbeatRequest { boot_id: bad.into(), ..heartbeat() },
            pb::HeartbeatRequest { endpoint: bad.into(), ..heartbeat() },
            pb::HeartbeatRequest { fabric: bad.into(), ..heartbeat() },
            pb::HeartbeatRequest { known: vec![pb::DirectoryEntry { endpoint: bad.into(), ..entry() }], ..heartbeat() },
            pb::HeartbeatRequest { connections: Some(stalled(bad, 1)), ..heartbeat() },
        ] {
            assert_eq!(heartbeat_in(request).unwrap_err().kind(), Kind::InvalidArgument);
        }
        let state = Some(pb::pool_health::State::Failing(bad.repeat(1000)));
        let failing = health_in(pb::PoolHealth { id: "00000000000000aa".into(), name: "x".into(), state }).unwrap();
        let Health::Failing(why) = failing.health else { panic!("{failing:?}") };
        assert!(why.chars().all(is_printable) && why.starts_with("a\\u{1b}[2J"), "{why}");
    }
}
