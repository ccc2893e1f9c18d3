//! Works: blocking workflows on threads of their own (docs/adr/0001), bounded in number, counted until they end. What
//! asked for one may go away; the work does not notice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tracing::{Span, error, info};

use crate::os::Deadline;

/// The works under way. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Works {
    running: Arc<watch::Sender<usize>>,
    slots: Arc<AtomicUsize>,
    most: usize,
}

/// The right to one work, free when the last clone is dropped: the work has one, and its answer may have another.
#[derive(Clone, Debug)]
pub struct Slot(#[expect(dead_code, reason = "its drop is what it is for")] Arc<Taken>);

#[derive(Debug)]
struct Taken(Arc<AtomicUsize>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One work that counts until it ends.
struct Counted(Arc<watch::Sender<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running = running.saturating_sub(1));
    }
}

/// How a work ended for who asked for it.
#[derive(Debug)]
pub enum Ended<T> {
    /// With this.
    Done(T),
    /// In a panic, which is logged: nothing is known of what it did.
    Panicked,
    /// It was not begun: as many as may be are under way.
    Crowded,
}

impl Works {
    /// None yet, and never more than `most` at once.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { running: Arc::new(watch::Sender::new(0)), slots: Arc::default(), most }
    }

    /// The right to one more.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        let taken = Taken(Arc::clone(&self.slots));
        (self.slots.fetch_add(1, Ordering::SeqCst) < self.most).then(|| Slot(Arc::new(taken)))
    }

    fn count(&self) -> Counted {
        self.running.send_modify(|running| *running += 1);
        Counted(Arc::clone(&self.running))
    }

    /// Waits until none is left, at most `grace`; how many are.
    pub async fn ended(&self, grace: Duration) -> usize {
        let mut running = self.running.subscribe();
        match tokio::time::timeout(grace, running.wait_for(|running| *running == 0)).await {
            Ok(_) => 0,
            Err(_) => *self.running.borrow(),
        }
    }

    /// Does one work, called `what` in the log, for a caller who waits until `deadline`.
    pub async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        deadline: Option<Deadline>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Ended<T> {
        match self.slot() {
            Some(slot) => self.run_in(&slot, what, deadline, work).await,
            None => Ended::Crowded,
        }
    }

    /// As [`Works::run`], in a slot that was taken before.
    pub async fn run_in<T: Send + 'static>(
        &self,
        slot: &Slot,
        what: &'static str,
        deadline: Option<Deadline>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Ended<T> {
        let (tell, told) = oneshot::channel();
        let (span, counted, slot) = (Span::current(), self.count(), slot.clone());
        tokio::task::spawn_blocking(move || {
            let (_counted, _slot) = (counted, slot);
            let _in_span = span.enter();
            let ended = match catch_unwind(AssertUnwindSafe(|| Deadline::scope(deadline, work))) {
                Ok(done) => Ended::Done(done),
                Err(panic) => {
                    let reason = reason_of(&*panic);
                    error!(reason, "{what} panicked; what it began is finished by the next try");
                    Ended::Panicked
                }
            };
            if tell.send(ended).is_err() {
                info!("{what} ended after its caller had gone away");
            }
        });
        told.await.unwrap_or(Ended::Panicked)
    }
}

/// What a panic said.
#[must_use]
pub fn reason_of(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_free_when_work_and_answer_are_done_with_it() {
        let works = Works::new(3);
        let slots: Vec<_> = (0..3).map(|_| works.slot().unwrap()).collect();
        let answer = slots[0].clone();
        assert!(works.slot().is_none());
        drop(slots);
        assert_eq!(works.slots.load(Ordering::SeqCst), 1);
        drop(answer);
        assert_eq!(works.slots.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_work_goes_on_without_its_caller_and_a_panic_is_told() {
        let works = Works::new(3);
        let (begin, begun) = std::sync::mpsc::channel::<()>();
        let gone = tokio::spawn({
            let works = works.clone();
            async move { works.run("slow", None, move || begun.recv().is_ok()).await }
        });
        tokio::task::yield_now().await;
        gone.abort();
        let _ = gone.await;
        assert_eq!(works.ended(Duration::from_millis(10)).await, 1);
        begin.send(()).unwrap();
        assert_eq!(works.ended(Duration::from_secs(10)).await, 0);
        assert!(matches!(works.run("panics", None, || panic!("on purpose")).await, Ended::<()>::Panicked));
        assert!(matches!(Works::new(0).run("late", None, || ()).await, Ended::Crowded));
    }

    #[tokio::test]
    async fn a_work_knows_how_long_its_caller_waits() {
        let deadline = Deadline::after(Duration::from_secs(7));
        let Ended::Done(seen) = Works::new(1).run("asks", deadline, Deadline::current).await else { panic!() };
        assert_eq!(seen, deadline);
    }
}
