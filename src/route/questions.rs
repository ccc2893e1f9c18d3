//! Queries to home nodes that many calls have at the same time: whether a name already exists there.
//!
//! Fifty creates at once send fifty queries to each home node. A home node without CPU time answers all of them, but
//! later than any limit of one query. So only a few queries to one home node run at a time, and the rest wait for their
//! turn without a limit of their own. A home node counts as one that does not answer only when it answered no query at
//! all meanwhile. All waiting calls then fail at once: a home node that hangs delays each call once.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::os::Deadline;
use crate::types::{Error, Kind, NodeId, Result};

/// How long one query may take; the home node gets half of it.
pub(super) const ASKING: Duration = Duration::from_secs(4);
/// Concurrent queries to one home node.
const AT_ONCE: usize = 8;

/// The queries to all home nodes.
#[derive(Debug, Default)]
pub(super) struct Questions {
    queues: Mutex<HashMap<NodeId, Arc<Queue>>>,
}

/// The queries to one home node.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    waiting: u64,
    /// How many were answered, and how often the home node was found not to answer.
    answered: u64,
    unanswered: u64,
    /// The error when it last did not answer.
    why: String,
}

impl Questions {
    /// Sends a query when it is its turn, until the home node answers it or does not answer any query.
    ///
    /// # Errors
    /// Those of `ask`; `Timeout` when the home node answered none of the running queries, or the caller's deadline has
    /// passed.
    pub(super) fn ask<T>(&self, node: &NodeId, ask: impl Fn() -> Result<T>) -> Result<T> {
        let queue =
            Arc::clone(self.queues.lock().unwrap_or_else(PoisonError::into_inner).entry(node.clone()).or_default());
        loop {
            let before = queue.take_turn(node)?;
            let turn = Turn(&queue);
            let answer = Deadline::scope(Deadline::after(ASKING), &ask);
            let mut state = queue.lock();
            match &answer {
                Err(error) if error.kind() == Kind::Timeout => {
                    // It answers others: this query is queued behind them, or the node is slow.
                    if state.answered != before && Deadline::current().is_none_or(|caller| caller.left() > ASKING) {
                        drop((state, turn));
                        continue;
                    }
                    state.unanswered += 1;
                    state.why = error.to_string();
                }
                _ => state.answered += 1,
            }
            drop((state, turn));
            return answer;
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn; returns the number of queries answered until then.
    fn take_turn(&self, node: &NodeId) -> Result<u64> {
        let mut state = self.lock();
        let before = state.unanswered;
        while state.under_way >= AT_ONCE {
            let left = Deadline::current().map_or(ASKING, Deadline::left);
            let timeout = |why: &str| Err(Error::new(Kind::Timeout, why.to_owned()));
            if left.is_zero() {
                return timeout(&format!("node {node} is still answering earlier queries; retry"));
            }
            state.waiting += 1;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
            if state.unanswered != before {
                return timeout(&state.why);
            }
        }
        state.under_way += 1;
        Ok(state.answered)
    }
}

/// A slot among the running queries.
struct Turn<'q>(&'q Queue);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    fn node() -> NodeId {
        "node-a".parse().unwrap()
    }

    fn overdue<T>() -> Result<T> {
        Err(Error::new(Kind::Timeout, "node-a has not answered in time"))
    }

    /// Sends so many queries at once and returns their answers.
    fn many<T: Send>(count: usize, questions: &Questions, ask: impl Fn() -> Result<T> + Sync) -> Vec<Result<T>> {
        thread::scope(|scope| {
            let asking: Vec<_> = (0..count).map(|_| scope.spawn(|| questions.ask(&node(), &ask))).collect();
            asking.into_iter().map(|one| one.join().unwrap()).collect()
        })
    }

    #[test]
    fn many_questions_wait_for_their_turn_and_all_are_answered() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let answers = many(100, &Questions::default(), || {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(7)
        });
        assert!(answers.iter().all(|answer| matches!(answer, Ok(7))));
        assert!(most.load(Ordering::SeqCst) <= AT_ONCE);
    }

    fn of(questions: &Questions, figure: fn(&State) -> u64) -> u64 {
        questions.queues.lock().unwrap().get(&node()).map_or(0, |queue| figure(&queue.lock()))
    }

    /// One of four is answered, and the rest time out meanwhile: a home node without CPU time.
    #[test]
    fn a_slow_home_that_answers_one_after_the_other_is_asked_until_it_has_answered_all() {
        let (questions, asked) = (Questions::default(), AtomicUsize::new(0));
        let answered = || of(&questions, |state| state.answered);
        let answers = many(50, &questions, || {
            let before = answered();
            if asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(4) || before >= 46 {
                return Ok(());
            }
            while answered() == before {
                thread::yield_now();
            }
            overdue()
        });
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        assert!(asked.load(Ordering::SeqCst) > 100, "{asked:?}");
    }

    #[test]
    fn a_home_that_hangs_is_asked_by_those_under_way_and_by_nobody_who_waits() {
        let (asked, let_go) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let questions = Questions::default();
        let hanging = || {
            asked.fetch_add(1, Ordering::SeqCst);
            while let_go.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            overdue::<()>()
        };
        let answers = thread::scope(|scope| {
            let all = scope.spawn(|| many(50, &questions, hanging));
            while of(&questions, |state| state.waiting) < 42 {
                thread::yield_now();
            }
            let_go.store(1, Ordering::SeqCst);
            all.join().unwrap()
        });
        assert!(answers.iter().all(|answer| answer.as_ref().unwrap_err().kind() == Kind::Timeout));
        assert_eq!(asked.load(Ordering::SeqCst), AT_ONCE);
        // Later it answers again.
        assert!(questions.ask(&node(), || Ok(())).is_ok());
    }

    #[test]
    fn who_waits_is_asked_though_those_before_were_refused() {
        let (questions, held) = (Questions::default(), AtomicUsize::new(1));
        let refused = || -> Result<()> {
            while held.load(Ordering::SeqCst) > 0 {
                thread::yield_now();
            }
            Err(Error::new(Kind::Unavailable, "connection refused"))
        };
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| questions.ask(&node(), refused).unwrap_err());
            }
            while of(&questions, |state| u64::try_from(state.under_way).unwrap()) < 8 {
                thread::yield_now();
            }
            let last = scope.spawn(|| questions.ask(&node(), || Ok(7)));
            while of(&questions, |state| state.waiting) == 0 {
                thread::yield_now();
            }
            held.store(0, Ordering::SeqCst);
            assert_eq!(last.join().unwrap().unwrap(), 7);
        });
    }

    #[test]
    fn a_refusal_is_an_answer_and_a_callers_time_is_kept() {
        let questions = Questions::default();
        let refused = || -> Result<()> { Err(Error::new(Kind::Unavailable, "connection refused")) };
        assert_eq!(questions.ask(&node(), refused).unwrap_err().kind(), Kind::Unavailable);
        let hold = (Mutex::new(true), Condvar::new());
        let waiting = || {
            drop(hold.1.wait_while(hold.0.lock().unwrap(), |held| *held).unwrap());
            Ok(())
        };
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| questions.ask(&node(), waiting).unwrap());
            }
            while of(&questions, |state| u64::try_from(state.under_way).unwrap()) < 8 {
                thread::yield_now();
            }
            let late =
                Deadline::scope(Deadline::after(Duration::from_millis(20)), || questions.ask(&node(), || Ok(())));
            assert_eq!(late.unwrap_err().kind(), Kind::Timeout);
            *hold.0.lock().unwrap() = false;
            hold.1.notify_all();
        });
    }
}
