//! The deadline of the caller of this thread's work. A workflow is blocking code in its own thread (docs/adr/0001). Its
//! requests to another machine must return before its own caller's deadline.

#![expect(clippy::disallowed_types, reason = "a point on the monotonic clock")]

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

thread_local! {
    static CURRENT: Cell<Option<Deadline>> = const { Cell::new(None) };
    static CALLER: RefCell<Option<Weak<()>>> = const { RefCell::new(None) };
}

/// A caller that waits for work in another thread. It waits while this value exists.
#[derive(Debug, Default)]
pub struct Caller(Arc<()>);

/// The caller as its work sees it.
#[derive(Clone, Debug)]
pub struct Called(Weak<()>);

impl Caller {
    /// For its work.
    #[must_use]
    pub fn called(&self) -> Called {
        Called(Arc::downgrade(&self.0))
    }

    /// Whether the caller of this thread's work still waits; also if it is not known. A request that changes something
    /// later than its caller expects may undo what another one did since.
    #[must_use]
    pub fn waits() -> bool {
        CALLER.with_borrow(|caller| caller.as_ref().is_none_or(|caller| caller.strong_count() > 0))
    }
}

impl Called {
    /// Runs work for this caller.
    pub fn scope<R>(self, work: impl FnOnce() -> R) -> R {
        struct Restore(Option<Weak<()>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CALLER.set(self.0.take());
            }
        }
        let _restore = Restore(CALLER.replace(Some(self.0)));
        work()
    }
}

/// A point in time after which the caller no longer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// This long from now; `None` if the clock cannot represent it.
    #[must_use]
    pub fn after(time: Duration) -> Option<Self> {
        Instant::now().checked_add(time).map(Self)
    }

    /// The time left; zero when it is over.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The deadline of this thread's work, if its caller gave one.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.get()
    }

    /// Runs work with this deadline, or with the deadline of the outer work if that one is earlier.
    pub fn scope<R>(deadline: Option<Self>, work: impl FnOnce() -> R) -> R {
        struct Restore(Option<Deadline>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let before = CURRENT.get();
        let _restore = Restore(before);
        CURRENT.set(match (before, deadline) {
            (Some(outer), Some(inner)) => Some(outer.min(inner)),
            (outer, inner) => inner.or(outer),
        });
        work()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_waits_until_it_is_gone_and_the_outer_comes_back() {
        assert!(Caller::waits());
        let (outer, inner) = (Caller::default(), Caller::default());
        outer.called().scope(|| {
            inner.called().scope(|| {
                assert!(Caller::waits());
                drop(inner);
                assert!(!Caller::waits());
            });
            assert!(Caller::waits());
            drop(outer);
            assert!(!Caller::waits());
        });
        assert!(Caller::waits());
    }

    #[test]
    fn the_earlier_of_two_holds_and_the_outer_comes_back() {
        let (soon, late) = (Deadline::after(Duration::from_secs(1)), Deadline::after(Duration::from_secs(60)));
        assert_eq!(Deadline::current(), None);
        Deadline::scope(soon, || {
            Deadline::scope(late, || assert_eq!(Deadline::current(), soon));
            Deadline::scope(None, || assert_eq!(Deadline::current(), soon));
        });
        Deadline::scope(late, || Deadline::scope(soon, || assert_eq!(Deadline::current(), soon)));
        let panicked = std::panic::catch_unwind(|| Deadline::scope(soon, || panic!("on purpose")));
        assert!(panicked.is_err() && Deadline::current().is_none());
        assert!(soon.unwrap().left() <= Duration::from_secs(1));
    }
}
