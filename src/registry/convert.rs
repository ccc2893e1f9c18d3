//! Heartbeats and directory entries <-> messages.

use std::str::FromStr;

use super::proto as pb;
use crate::home::remote;
use crate::home::{Health, PoolHealth};
use crate::os::Timestamp;
use crate::route::{Entry, Heartbeat};
use crate::types::{Error, Kind, Result};

/// The longest name of an endpoint, a boot or a version that is taken.
const LONGEST: usize = 255;

fn text<T: FromStr<Err = Error>>(text: &str) -> Result<T> {
    text.parse()
}

/// A text that is shown and dialled, never made into a path.
fn plain(what: &str, text: String) -> Result<String> {
    if text.len() > LONGEST || text.chars().any(char::is_control) {
        return Err(Error::new(Kind::InvalidArgument, format!("{what} is too long or has control characters")));
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
        // Figures this release cannot read make that one pool unusable, not its node silent.
        Some(State::Figures(report)) => match remote::pool_report(report) {
            Ok(report) => Health::Served(Box::new(report)),
            Err(error) => Health::Failing(format!("its figures are not understood: {}", error.chain())),
        },
        Some(State::Failing(why)) => Health::Failing(why),
        Some(State::Quarantined(since)) => Health::Quarantined(Timestamp::from_nanos(since)),
        None => Health::Failing("in a state that this release does not know".to_owned()),
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

pub(super) fn heartbeat_in(request: pb::HeartbeatRequest) -> Result<Heartbeat> {
    Ok(Heartbeat {
        node: text(&request.node)?,
        boot_id: plain("a boot id", request.boot_id)?,
        version: plain("a version", request.version)?,
        endpoint: plain("an endpoint", request.endpoint)?,
        fabric: plain("a fabric's name", request.fabric)?,
        pools: request.pools.into_iter().map(health_in).collect::<Result<_>>()?,
        known: request.known.into_iter().map(entry_in).collect::<Result<_>>()?,
    })
}
