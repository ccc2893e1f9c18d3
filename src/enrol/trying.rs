//! [`Trying`]: repeated work, also when it fails: with pauses, and without logging the same reason each time.

use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, warn};
use uuid::Uuid;

use crate::types::{Error, Kind, Result};

/// The state between two attempts.
pub(super) struct Trying {
    /// The text before a reason in the log.
    failing: &'static str,
    first: Duration,
    longest: Duration,
    pause: Duration,
    told: String,
}

impl Trying {
    /// With these pauses after failed attempts: the first, and the longest.
    pub(super) fn new(failing: &'static str, (first, longest): (Duration, Duration)) -> Self {
        Self { failing, first, longest, pause: first, told: String::new() }
    }

    /// Waits for the next attempt: after a success, for the time it returned. False when `stop` came first. A reason is
    /// logged when it is new.
    pub(super) async fn next(&mut self, tried: Result<Duration>, stop: &mut watch::Receiver<()>) -> bool {
        let wait = match tried {
            Ok(wait) => {
                self.worked();
                wait
            }
            Err(failed) => {
                let (wait, news) = self.failed(&failed);
                if news {
                    self.say(failed.kind());
                }
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            _ = stop.changed() => false,
        }
    }

    fn worked(&mut self) {
        self.pause = self.first;
        self.told.clear();
    }

    /// How long to wait, and whether the reason differs from the last one.
    ///
    /// The pause doubles each time. A random part, up to half, is left out, so that many nodes that failed at the same
    /// moment do not retry at the same moment.
    fn failed(&mut self, error: &Error) -> (Duration, bool) {
        let half = self.pause / 2;
        let wait = half + half.mul_f64(chance());
        self.pause = (self.pause * 2).min(self.longest);
        let why = error.chain();
        let news = why != self.told;
        self.told = why;
        (wait, news)
    }

    fn say(&self, kind: Kind) {
        let (failing, why) = (self.failing, &self.told);
        match kind {
            // Waiting does not help: an operator must act.
            Kind::Precondition | Kind::Denied => error!("{failing}: {why}"),
            _ => warn!("{failing}: {why}"),
        }
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    let (random, ..) = Uuid::new_v4().as_fields();
    f64::from(random) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn error(why: &'static str) -> Error {
        Error::new(Kind::Unavailable, why)
    }

    #[test]
    fn pauses_double_to_the_longest_and_begin_anew_after_what_worked() {
        let mut trying = Trying::new("x", (SECOND, 60 * SECOND));
        for _ in 0..2 {
            for whole in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
                let (wait, _) = trying.failed(&error("no"));
                assert!(wait >= whole * SECOND / 2 && wait <= whole * SECOND, "{wait:?} of {whole} s");
            }
            trying.worked();
        }
    }

    #[test]
    fn a_thousand_that_fail_at_once_come_back_one_by_one() {
        let mut seconds = [0_u32; 60];
        for _ in 0..1000 {
            let mut trying = Trying::new("x", (60 * SECOND, 60 * SECOND));
            let (wait, _) = trying.failed(&error("no"));
            seconds[usize::try_from(wait.as_secs().min(59)).unwrap()] += 1;
        }
        // 33 in each of 30 seconds, on average.
        assert!(seconds.iter().all(|n| *n < 100), "{seconds:?}");
    }

    #[test]
    fn a_reason_is_news_once_and_again_after_what_worked() {
        let mut trying = Trying::new("x", (SECOND, SECOND));
        assert!(trying.failed(&error("a")).1);
        assert!(!trying.failed(&error("a")).1);
        assert!(trying.failed(&error("b")).1);
        assert!(trying.failed(&error("a")).1);
        trying.worked();
        assert!(trying.failed(&error("a")).1);
    }

    #[tokio::test]
    async fn the_end_waits_for_no_pause() {
        let (end, mut stop) = watch::channel(());
        let mut trying = Trying::new("x", (3600 * SECOND, 3600 * SECOND));
        assert!(trying.next(Ok(Duration::ZERO), &mut stop).await);
        end.send_replace(());
        assert!(!trying.next(Err(error("no")), &mut stop).await);
    }
}
