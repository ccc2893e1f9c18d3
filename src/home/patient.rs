//! Queries to a disk that may never answer. One runs at a time, in its own thread, and callers wait for a limited time
//! only.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::os::Stopwatch;
use crate::types::{Error, Kind, Result};

/// One query at a time; callers that arrive while it runs get its answer too.
pub(super) struct Patient<T>(Arc<Inner<T>>);

struct Inner<T> {
    state: Mutex<State<T>>,
    answered: Condvar,
}

struct State<T> {
    /// The number of queries so far, and of the last one that was answered.
    asked: u64,
    answered: u64,
    since: Option<Stopwatch>,
    last: Option<T>,
}

impl<T> Default for Patient<T> {
    fn default() -> Self {
        let state = State { asked: 0, answered: 0, since: None, last: None };
        Self(Arc::new(Inner { state: Mutex::new(state), answered: Condvar::new() }))
    }
}

impl<T: Clone + Send + 'static> Patient<T> {
    /// Runs a query and waits for its answer. A query that is still running is not started again; if it has been
    /// running for longer than `limit`, the error is returned at once.
    ///
    /// # Errors
    /// `Unavailable` when there is no answer after `limit`, with the time so far.
    pub(super) fn ask(&self, what: &str, limit: Duration, question: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let mut state = self.0.lock();
        let since = match state.since {
            Some(since) => since,
            None => {
                let inner = Arc::clone(&self.0);
                let asking = thread::Builder::new().name("patient".to_owned()).spawn(move || {
                    // The panic hook logs a panic; then there is no answer.
                    let answer = catch_unwind(AssertUnwindSafe(question)).ok();
                    let mut state = inner.lock();
                    (state.last, state.since, state.answered) = (answer, None, state.asked);
                    inner.answered.notify_all();
                });
                asking.map_err(|error| {
                    Error::new(Kind::Unavailable, "cannot start a thread to query a pool").because(error)
                })?;
                let since = Stopwatch::start();
                (state.since, state.asked) = (Some(since), state.asked + 1);
                since
            }
        };
        let number = state.asked;
        let left = limit.saturating_sub(since.elapsed());
        let unanswered = |state: &mut State<T>| state.answered < number;
        let (state, _) =
            self.0.answered.wait_timeout_while(state, left, unanswered).unwrap_or_else(PoisonError::into_inner);
        match &state.last {
            Some(answer) if state.answered >= number => Ok(answer.clone()),
            _ => Err(Error::new(
                Kind::Unavailable,
                format!(
                    "{what} has not ended for {} s: its disk does not answer; see dmesg, and the metric holdfast_operation_age_seconds",
                    since.elapsed().as_secs()
                ),
            )),
        }
    }
}

impl<T> Inner<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[test]
    fn one_that_hangs_costs_one_thread_and_is_answered_for_at_once() {
        let (release, gate) = mpsc::channel::<()>();
        let asked = Arc::new(AtomicUsize::new(0));
        let patient = Patient::<u8>::default();
        let count = Arc::clone(&asked);
        let hangs = move || {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = gate.recv();
            7
        };
        let limit = Duration::from_millis(20);
        let error = patient.ask("reading", limit, hangs).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        let count = Arc::clone(&asked);
        let again = move || {
            count.fetch_add(1, Ordering::SeqCst);
            8
        };
        assert!(patient.ask("reading", limit, again.clone()).is_err());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        release.send(()).unwrap();
        while patient.0.lock().since.is_some() {
            thread::yield_now();
        }
        assert_eq!(patient.ask("reading", Duration::from_secs(60), again).unwrap(), 8);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_query_that_panics_has_no_answer_and_the_next_one_runs() {
        let patient = Patient::<u8>::default();
        assert_eq!(patient.ask("reading", LONG, || 1).unwrap(), 1);
        let since = Stopwatch::start();
        let error = patient.ask("reading", LONG, || panic!("on purpose")).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(since.elapsed() < LONG / 2, "its end is noticed");
        assert_eq!(patient.ask("reading", LONG, || 2).unwrap(), 2);
    }

    #[test]
    fn an_earlier_answer_is_not_that_of_a_query_that_hangs_and_its_time_counts_from_its_start() {
        let patient = Patient::<u8>::default();
        assert_eq!(patient.ask("reading", LONG, || 1).unwrap(), 1);
        let (release, gate) = mpsc::channel::<()>();
        let limit = Duration::from_secs(1);
        let hangs = move || {
            let _ = gate.recv();
            2
        };
        assert!(patient.ask("reading", limit, hangs).is_err());
        let since = Stopwatch::start();
        assert!(patient.ask("reading", limit, || 3).is_err());
        assert!(since.elapsed() < limit / 2, "it has had its time");
        // Callers that wait longer get the answer of the query that is running.
        thread::scope(|scope| {
            let waiting = [(); 2].map(|()| scope.spawn(|| patient.ask("reading", LONG, || 4).unwrap()));
            thread::sleep(Duration::from_millis(50));
            release.send(()).unwrap();
            assert_eq!(waiting.map(|one| one.join().unwrap()), [2, 2]);
        });
    }
}
