//! Heartbeats and directory entries <-> messages.

use std::str::FromStr;

use super::proto as pb;
use crate::home::remote;
use crate::home::{Health, PoolHealth};
use crate::os::Timestamp;
use crate::route::{Entry, Heartbeat, MOST_KNOWN};
use crate::types::{Error, Kind, NodeId, Result, cut_printable, is_printable};

/// The longest endpoint, boot id or version that is accepted.
const LONGEST: usize = 255;
/// The most bytes kept of a message of another process.
const LONGEST_SENTENCE: usize = 2048;
/// The most pools of one node.
pub(super) const MOST_POOLS: usize = 1024;

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
    }
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
        ] {
            assert_eq!(heartbeat_in(request).unwrap_err().kind(), Kind::InvalidArgument);
        }
        let state = Some(pb::pool_health::State::Failing(bad.repeat(1000)));
        let failing = health_in(pb::PoolHealth { id: "00000000000000aa".into(), name: "x".into(), state }).unwrap();
        let Health::Failing(why) = failing.health else { panic!("{failing:?}") };
        assert!(why.chars().all(is_printable) && why.starts_with("a\\u{1b}[2J"), "{why}");
    }
}
