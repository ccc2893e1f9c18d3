//! A pool of worker threads: blocking workflows in their own threads (docs/adr/0001), limited in number, counted until
//! they end. A workflow continues if its caller disconnects.
//!
//! If the disk of a pool hangs, all its workflows hang. A pool may therefore use at most as many threads as remain
//! free. One pool that hangs uses half of all threads, two use two thirds, and there is always one left for another.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tracing::{Span, error, info};

use crate::os::{Caller, Deadline};

/// The running workflows. Cheap to clone; clones share their counts.
#[derive(Clone, Debug)]
pub struct WorkerPool {
    running: Arc<watch::Sender<usize>>,
    slots: Arc<Mutex<Slots>>,
    most: usize,
}

/// The pool of a call, by its id or its name, or all pools: calls of one pool may hang together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Share(String);

impl Share {
    /// The pool in the handle of a volume or snapshot, unparsed.
    #[must_use]
    pub fn of_handle(handle: &str) -> Self {
        Self::cut(handle.split('_').nth(1).unwrap_or_default())
    }

    /// The pool with this name; empty if the StorageClass names none.
    #[must_use]
    pub fn of_pool_named(name: &str) -> Self {
        Self::cut(name)
    }

    /// All pools at once.
    #[must_use]
    pub fn of_all() -> Self {
        Self("*".to_owned())
    }

    /// Not longer than any name or id of a pool.
    fn cut(text: &str) -> Self {
        Self(text.chars().take(64).collect())
    }
}

/// Why a call is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Crowd {
    /// The limit for all workflows is reached.
    WorkerPool(usize),
    /// The limit for this pool is reached.
    Pool {
        /// The pool, by id or name.
        pool: String,
        /// Its running workflows.
        running: usize,
    },
}

impl std::fmt::Display for Crowd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::WorkerPool(most) => write!(f, "{most} calls are already running"),
            Self::Pool { pool, running } if pool == "*" => {
                write!(
                    f,
                    "{running} calls for all pools are already running, and the remaining threads are kept for other calls"
                )
            }
            Self::Pool { pool, running } => write!(
                f,
                "{running} calls for pool {pool:?} are already running, and the remaining threads are kept for the other pools; if none of the calls ends, the disk of the pool does not respond"
            ),
        }
    }
}

#[derive(Debug, Default)]
struct Slots {
    taken: usize,
    of: HashMap<Share, usize>,
}

/// The right to run one workflow, released when the last clone is dropped: the workflow has one, and its response may
/// have another.
#[derive(Clone, Debug)]
pub struct Slot(#[expect(dead_code, reason = "its drop is what it is for")] Arc<Taken>);

#[derive(Debug)]
struct Taken {
    slots: Arc<Mutex<Slots>>,
    share: Share,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut slots = lock(&self.slots);
        slots.taken = slots.taken.saturating_sub(1);
        if let Some(running) = slots.of.get_mut(&self.share) {
            *running = running.saturating_sub(1);
            if *running == 0 {
                slots.of.remove(&self.share);
            }
        }
    }
}

fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One workflow, counted until it ends.
struct Counted(Arc<watch::Sender<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running = running.saturating_sub(1));
    }
}

/// The result of a workflow for its caller.
#[derive(Debug)]
pub enum Ended<T> {
    /// It returned this value.
    Done(T),
    /// It panicked, which is logged: its effect is unknown.
    Panicked,
    /// It was not started: the limit is reached.
    Crowded(Crowd),
}

impl WorkerPool {
    /// None yet, and never more than `most` at once.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { running: Arc::new(watch::Sender::new(0)), slots: Arc::default(), most }
    }

    /// Takes a slot for a share.
    ///
    /// # Errors
    /// The limit of all workflows or of this share is reached.
    pub fn slot(&self, share: Share) -> Result<Slot, Crowd> {
        let mut slots = lock(&self.slots);
        let free = self.most.saturating_sub(slots.taken);
        if free == 0 {
            return Err(Crowd::WorkerPool(self.most));
        }
        let running = slots.of.get(&share).copied().unwrap_or_default();
        if running >= free {
            return Err(Crowd::Pool { pool: share.0, running });
        }
        slots.taken += 1;
        slots.of.insert(share.clone(), running + 1);
        Ok(Slot(Arc::new(Taken { slots: Arc::clone(&self.slots), share })))
    }

    fn count(&self) -> Counted {
        self.running.send_modify(|running| *running += 1);
        Counted(Arc::clone(&self.running))
    }

    /// Waits until all have ended, at most `grace`; returns the number that remain.
    pub async fn ended(&self, grace: Duration) -> usize {
        let mut running = self.running.subscribe();
        match tokio::time::timeout(grace, running.wait_for(|running| *running == 0)).await {
            Ok(_) => 0,
            Err(_) => *self.running.borrow(),
        }
    }

    /// Runs one workflow of a share, called `what` in the log, with the caller's `deadline`.
    pub async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        share: Share,
        deadline: Option<Deadline>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Ended<T> {
        match self.slot(share) {
            Ok(slot) => self.run_in(&slot, what, deadline, work).await,
            Err(crowd) => Ended::Crowded(crowd),
        }
    }

    /// As [`WorkerPool::run`], in a slot that was taken before.
    pub async fn run_in<T: Send + 'static>(
        &self,
        slot: &Slot,
        what: &'static str,
        deadline: Option<Deadline>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Ended<T> {
        let (tell, told) = oneshot::channel();
        let caller = Caller::default();
        let called = caller.called();
        let (span, counted, slot) = (Span::current(), self.count(), slot.clone());
        tokio::task::spawn_blocking(move || {
            let (_counted, _slot) = (counted, slot);
            let _in_span = span.enter();
            let ended = match catch_unwind(AssertUnwindSafe(|| called.scope(|| Deadline::scope(deadline, work)))) {
                Ok(done) => Ended::Done(done),
                Err(panic) => {
                    let reason = reason_of(&*panic);
                    error!(reason, "{what} panicked; the next retry completes what it began");
                    Ended::Panicked
                }
            };
            if tell.send(ended).is_err() {
                info!("{what} ended after its caller had disconnected");
            }
        });
        let ended = told.await.unwrap_or(Ended::Panicked);
        // Before this point it is dropped only if nobody waits any more.
        drop(caller);
        ended
    }
}

/// The message of a panic.
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

    fn any() -> Share {
        Share::of_all()
    }

    #[test]
    fn a_slot_is_free_when_work_and_answer_are_done_with_it() {
        let works = WorkerPool::new(5);
        let slots: Vec<_> = (0..3).map(|_| works.slot(any()).unwrap()).collect();
        let answer = slots[0].clone();
        assert!(works.slot(any()).is_err());
        drop(slots);
        assert_eq!(lock(&works.slots).taken, 1);
        drop(answer);
        let slots = lock(&works.slots);
        assert_eq!((slots.taken, slots.of.len()), (0, 0));
    }

    #[test]
    fn however_many_pools_hang_there_is_a_slot_for_another() {
        let works = WorkerPool::new(256);
        let mut held = Vec::new();
        let mut taken = Vec::new();
        for pool in ["a", "b", "c", "d"] {
            let before = held.len();
            let crowd = loop {
                match works.slot(Share::of_pool_named(pool)) {
                    Ok(slot) => held.push(slot),
                    Err(crowd) => break crowd,
                }
            };
            taken.push(held.len() - before);
            assert_eq!(crowd, Crowd::Pool { pool: pool.into(), running: held.len() - before });
            assert!(crowd.to_string().contains(pool), "{crowd}");
        }
        assert_eq!(taken, [128, 64, 32, 16]);
        assert!(works.slot(Share::of_handle("hf1_0123456789abcdef_0_n")).is_ok());
        held.clear();
        assert!(works.slot(Share::of_pool_named("a")).is_ok());
        assert_eq!(Share::of_handle("hf1_0123456789abcdef_0_n"), Share::of_pool_named("0123456789abcdef"));
    }

    #[tokio::test]
    async fn a_work_goes_on_without_its_caller_and_a_panic_is_told() {
        let works = WorkerPool::new(3);
        let (begin, begun) = std::sync::mpsc::channel::<()>();
        let gone = tokio::spawn({
            let works = works.clone();
            async move { works.run("slow", any(), None, move || begun.recv().is_ok()).await }
        });
        tokio::task::yield_now().await;
        gone.abort();
        let _ = gone.await;
        assert_eq!(works.ended(Duration::from_millis(10)).await, 1);
        begin.send(()).unwrap();
        assert_eq!(works.ended(Duration::from_secs(10)).await, 0);
        assert!(matches!(works.run("panics", any(), None, || panic!("on purpose")).await, Ended::<()>::Panicked));
        assert!(matches!(WorkerPool::new(0).run("late", any(), None, || ()).await, Ended::Crowded(_)));
    }

    #[tokio::test]
    async fn a_work_knows_how_long_its_caller_waits() {
        let deadline = Deadline::after(Duration::from_secs(7));
        let Ended::Done(seen) = WorkerPool::new(1).run("asks", any(), deadline, Deadline::current).await else {
            panic!()
        };
        assert_eq!(seen, deadline);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_work_knows_that_its_caller_is_gone() {
        let pool = WorkerPool::new(1);
        let (go, on) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let work = move || {
            tell.send(Caller::waits()).unwrap();
            on.recv().unwrap();
            tell.send(Caller::waits()).unwrap();
        };
        let call = tokio::spawn(async move { pool.run("changes", any(), None, work).await });
        let told = tokio::task::spawn_blocking(move || {
            assert!(told.recv().unwrap());
            told
        });
        let told = told.await.unwrap();
        call.abort();
        assert!(call.await.err().is_some_and(|ended| ended.is_cancelled()));
        go.send(()).unwrap();
        assert!(!tokio::task::spawn_blocking(move || told.recv().unwrap()).await.unwrap());
    }
}
