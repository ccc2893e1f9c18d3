//! A measurement that needs a blocking read. At most one thread reads at a time, and a scrape or probe waits for it only
//! briefly. A disk that hangs is reported and blocks nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::os::Stopwatch;
use crate::types::{Error, Kind, Result};

/// The result of a measurement, or its error.
type Outcome<T> = std::result::Result<Arc<T>, (Kind, String)>;
type Source<T> = dyn Fn() -> Result<T> + Send + Sync;

/// A result older than this multiple of `fresh` is not returned.
const STALE: u32 = 3;

/// One measurement.
pub(super) struct Measurement<T> {
    inner: Arc<Inner<T>>,
    /// What is measured, for messages: a plural noun.
    what: &'static str,
    patience: Duration,
    /// How long a result is returned again without a new measurement.
    fresh: Duration,
}

struct Inner<T> {
    source: Box<Source<T>>,
    state: Mutex<State<T>>,
    news: watch::Sender<()>,
}

struct State<T> {
    /// Since when a thread has been measuring.
    measuring: Option<Stopwatch>,
    last: Option<(Stopwatch, Outcome<T>)>,
}

impl<T> Inner<T> {
    fn state(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + Sync + 'static> Measurement<T> {
    /// A new measurement, without a result; `source` may block.
    pub(super) fn new(
        what: &'static str,
        patience: Duration,
        fresh: Duration,
        source: impl Fn() -> Result<T> + Send + Sync + 'static,
    ) -> Self {
        let state = Mutex::new(State { measuring: None, last: None });
        Self {
            inner: Arc::new(Inner { source: Box::new(source), state, news: watch::Sender::new(()) }),
            what,
            patience,
            fresh,
        }
    }

    /// The current result, or one that is still fresh.
    ///
    /// # Errors
    /// Those of the source; `Timeout` with the elapsed time when it does not answer in time.
    pub(super) async fn now(&self) -> Result<Arc<T>> {
        let Some(mut news) = self.begin() else { return self.last() };
        match tokio::time::timeout(self.patience, news.changed()).await {
            Ok(_) => self.last(),
            Err(_) => {
                let age = self.inner.state().measuring.map_or(self.patience, |since| since.elapsed()).as_secs();
                Err(Error::new(
                    Kind::Timeout,
                    format!(
                        "{} have not been available for {age} s: a disk of a pool may hang; see dmesg and run holdfast doctor",
                        self.what
                    ),
                ))
            }
        }
    }

    fn last(&self) -> Result<Arc<T>> {
        match &self.inner.state().last {
            Some((_, Ok(figure))) => Ok(Arc::clone(figure)),
            Some((_, Err((kind, said)))) => Err(Error::new(*kind, said.clone())),
            None => Err(Error::new(Kind::Unavailable, format!("{} are not available yet; retry", self.what))),
        }
    }

    /// The current result or, if that takes long, the last one, unless it is [`STALE`] times as old as a fresh one. The
    /// measurement continues, and a later call returns it.
    ///
    /// # Errors
    /// As [`Measurement::now`], if no measurement has succeeded, or the last one failed.
    pub(super) async fn lately(&self) -> Result<Arc<T>> {
        match self.now().await {
            Err(error) if error.kind() == Kind::Timeout => self.not_stale().ok_or(error),
            answer => answer,
        }
    }

    fn not_stale(&self) -> Option<Arc<T>> {
        match &self.inner.state().last {
            Some((since, Ok(figure))) if since.elapsed() < self.fresh * STALE => Some(Arc::clone(figure)),
            _ => None,
        }
    }

    /// Starts a measurement unless one runs; the receiver is notified of its end. `None` when the last one is fresh.
    fn begin(&self) -> Option<watch::Receiver<()>> {
        let mut state = self.inner.state();
        if state.last.as_ref().is_some_and(|(since, outcome)| outcome.is_ok() && since.elapsed() < self.fresh) {
            return None;
        }
        let news = self.inner.news.subscribe();
        if state.measuring.is_none() {
            state.measuring = Some(Stopwatch::start());
            let (inner, what) = (Arc::clone(&self.inner), self.what);
            tokio::task::spawn_blocking(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| (inner.source)()))
                    .unwrap_or_else(|_| Err(Error::new(Kind::Internal, format!("reading {what} panicked"))))
                    .map(Arc::new)
                    .map_err(|error| (error.kind(), error.chain()));
                let mut state = inner.state();
                *state = State { measuring: None, last: Some((Stopwatch::start(), outcome)) };
                inner.news.send_replace(());
            });
        }
        Some(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[tokio::test]
    async fn one_that_hangs_costs_one_thread_and_is_named() {
        let (release, gate) = mpsc::channel::<()>();
        let (gate, asked) = (Mutex::new(gate), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let figures = Measurement::new("the figures", Duration::from_millis(20), Duration::ZERO, move || {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = gate.lock().unwrap().recv();
            Ok(7)
        });
        for _ in 0..3 {
            let error = figures.now().await.unwrap_err();
            assert!(error.kind() == Kind::Timeout && error.to_string().contains("the figures"), "{error}");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        drop(release);
    }

    #[tokio::test]
    async fn what_was_told_last_is_told_for_a_while_when_the_next_takes_long() {
        let (release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let (patience, fresh) = (Duration::from_millis(20), Duration::from_millis(200));
        let figures = Measurement::new("the figures", patience, fresh, move || {
            gate.lock().unwrap().recv().map(|()| 7).map_err(|_| Error::new(Kind::Internal, "gone"))
        });
        assert_eq!(figures.lately().await.unwrap_err().kind(), Kind::Timeout);
        release.send(()).unwrap();
        while figures.last().is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(fresh).await;
        assert_eq!(figures.now().await.unwrap_err().kind(), Kind::Timeout);
        assert_eq!(*figures.lately().await.unwrap(), 7);
        tokio::time::sleep(fresh * STALE).await;
        assert_eq!(figures.lately().await.unwrap_err().kind(), Kind::Timeout);
        drop(release);
    }

    #[tokio::test]
    async fn a_fresh_answer_is_given_again_and_an_error_never() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let hour = Duration::from_secs(3600);
        let figures = Measurement::new("the figures", hour, hour, move || match count.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Error::new(Kind::Internal, "not yet")),
            1 => panic!("as a source must not"),
            _ => Ok(7),
        });
        assert!(figures.now().await.is_err());
        assert_eq!(figures.now().await.unwrap_err().kind(), Kind::Internal);
        assert_eq!((*figures.now().await.unwrap(), *figures.now().await.unwrap()), (7, 7));
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }
}
