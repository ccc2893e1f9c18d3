//! A limit on log lines about refused clients: each cause of each address once a minute, so that a flood does not fill
//! the log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::os::Stopwatch;

/// The least time between two identical log lines.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// The most addresses and causes that are kept; further ones are only counted.
const MOST: usize = 256;

/// The logged clients and causes.
#[derive(Debug, Default)]
pub struct RateLimitedLog {
    said: Mutex<BTreeMap<(String, &'static str), Said>>,
}

#[derive(Debug)]
struct Said {
    at: Stopwatch,
    since: u64,
}

impl RateLimitedLog {
    /// How often it happened since it was last logged; `None` when it must not be logged now.
    pub fn may_say(&self, who: &str, reason: &'static str) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= MOST {
            said.retain(|_, one| one.at.elapsed() < SAID_EVERY);
        }
        let full = said.len() >= MOST;
        match said.get_mut(&(who.to_owned(), reason)) {
            Some(one) if one.at.elapsed() < SAID_EVERY => {
                one.since += 1;
                None
            }
            Some(one) => {
                one.at = Stopwatch::start();
                Some(std::mem::take(&mut one.since))
            }
            None if full => None,
            None => {
                said.insert((who.to_owned(), reason), Said { at: Stopwatch::start(), since: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_said_once_for_each_address_and_cause() {
        let complaints = RateLimitedLog::default();
        assert_eq!(complaints.may_say("a", "expired"), Some(0));
        assert_eq!(complaints.may_say("a", "expired"), None);
        assert_eq!(complaints.may_say("a", "not_tls"), Some(0));
        assert_eq!(complaints.may_say("b", "expired"), Some(0));
        let said = (0..10_000).filter(|n| complaints.may_say(&format!("x{n}"), "not_tls").is_some()).count();
        assert_eq!(said, MOST - 3);
        assert!(complaints.said.lock().unwrap().len() <= MOST);
    }
}
