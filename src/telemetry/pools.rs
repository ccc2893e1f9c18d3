//! The figures of the pools, asked for at each scrape and probe by at most one thread, and never waited for longer
//! than a probe can: a disk that hangs is told as such and holds up nothing else.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::os::Stopwatch;
use crate::types::{Error, Kind, Result};

/// How long a pool may take to say how full it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// One pool's figures, in bytes and numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolFigures {
    /// Its name.
    pub pool: String,
    /// Its id.
    pub id: String,
    /// `file`, `lvm`, ...
    pub kind: String,
    /// The node it is on.
    pub node: String,
    /// Bytes of the filesystem below.
    pub total: u64,
    /// Bytes that new volumes may still take.
    pub available: u64,
    /// Bytes promised and not yet taken.
    pub promised: u64,
    /// Sum of all volumes' sizes.
    pub provisioned: u64,
    /// Inodes of the filesystem below, where they are limited.
    pub inodes: Option<u64>,
    /// Free ones.
    pub inodes_free: Option<u64>,
    /// Number of volumes.
    pub volumes: u64,
    /// Number of snapshots.
    pub snapshots: u64,
}

/// Whether this process can serve.
#[derive(Debug)]
pub enum Readiness {
    /// Its pools are being opened.
    Starting,
    /// All pools answer.
    Ready(Vec<PoolFigures>),
    /// A pool cannot be read.
    Failing(Error),
}

type Source = dyn Fn() -> Result<Vec<PoolFigures>> + Send + Sync;
/// A measurement: figures, or why there are none.
type Measured = std::result::Result<Vec<PoolFigures>, (Kind, String)>;

/// Asks the pools. Cheap to clone.
#[derive(Clone)]
pub struct PoolWatch(Arc<Inner>);

struct Inner {
    open: AtomicBool,
    source: Box<Source>,
    patience: Duration,
    /// Since when a thread has been asking.
    asking: Mutex<Option<Stopwatch>>,
    last: watch::Sender<Option<Measured>>,
}

impl fmt::Debug for PoolWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolWatch").field("open", &self.0.open).finish_non_exhaustive()
    }
}

impl PoolWatch {
    /// Pools that are being opened; `source` blocks and reads their figures.
    pub fn new(source: impl Fn() -> Result<Vec<PoolFigures>> + Send + Sync + 'static) -> Self {
        Self::with_patience(PATIENCE, source)
    }

    fn with_patience(
        patience: Duration,
        source: impl Fn() -> Result<Vec<PoolFigures>> + Send + Sync + 'static,
    ) -> Self {
        let (open, asking, last) = (AtomicBool::new(false), Mutex::default(), watch::Sender::new(None));
        Self(Arc::new(Inner { open, source: Box::new(source), patience, asking, last }))
    }

    /// The pools are open: from now on they must answer.
    pub fn opened(&self) {
        self.0.open.store(true, Ordering::SeqCst);
    }

    /// Whether the process can serve now. Answers within two seconds, whatever the pools do.
    pub async fn readiness(&self) -> Readiness {
        if !self.0.open.load(Ordering::SeqCst) {
            return Readiness::Starting;
        }
        match self.figures().await {
            Ok(figures) => Readiness::Ready(figures),
            Err(error) => Readiness::Failing(error),
        }
    }

    /// The figures now.
    ///
    /// # Errors
    /// Those of the source; `Timeout` when it does not answer in time, saying for how long it has not.
    pub async fn figures(&self) -> Result<Vec<PoolFigures>> {
        let mut news = self.ask();
        match tokio::time::timeout(self.0.patience, news.changed()).await {
            Ok(Ok(())) => match &*news.borrow() {
                Some(Ok(figures)) => Ok(figures.clone()),
                Some(Err((kind, said))) => Err(Error::new(*kind, said.clone())),
                None => Ok(Vec::new()),
            },
            Ok(Err(_)) | Err(_) => {
                let asking = *self.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
                let age = asking.map_or(self.0.patience, |since| since.elapsed()).as_secs();
                Err(Error::new(
                    Kind::Timeout,
                    format!(
                        "the pools have not said how full they are for {age} s: a disk below them may hang; see dmesg and `holdfast doctor`"
                    ),
                ))
            }
        }
    }

    /// Starts asking unless a thread does already; the receiver sees the next answer.
    fn ask(&self) -> watch::Receiver<Option<Measured>> {
        let mut asking = self.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let news = self.0.last.subscribe();
        if asking.is_none() {
            *asking = Some(Stopwatch::start());
            let inner = Arc::clone(&self.0);
            tokio::task::spawn_blocking(move || {
                let measured = catch_unwind(AssertUnwindSafe(|| (inner.source)()))
                    .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "reading the pools' figures panicked")))
                    .map_err(|error| (error.kind(), error.chain()));
                let mut asking = inner.asking.lock().unwrap_or_else(PoisonError::into_inner);
                *asking = None;
                inner.last.send_replace(Some(measured));
            });
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn starting_then_ready_then_failing() {
        let broken = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&broken);
        let pools = PoolWatch::new(move || match seen.load(Ordering::SeqCst) {
            false => Ok(vec![PoolFigures { volumes: 3, ..PoolFigures::default() }]),
            true => Err(Error::new(Kind::Internal, "the root is gone")),
        });
        assert!(matches!(pools.readiness().await, Readiness::Starting));
        pools.opened();
        assert!(matches!(pools.readiness().await, Readiness::Ready(figures) if figures[0].volumes == 3));
        broken.store(true, Ordering::SeqCst);
        assert!(matches!(pools.readiness().await, Readiness::Failing(error) if error.to_string().contains("root")));
    }

    #[tokio::test]
    async fn a_pool_that_hangs_costs_one_thread_and_is_named() {
        let (release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let pools = PoolWatch::with_patience(Duration::from_millis(20), move || {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = gate.lock().unwrap().recv();
            Ok(Vec::new())
        });
        for _ in 0..3 {
            assert_eq!(pools.figures().await.unwrap_err().kind(), Kind::Timeout);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        drop(release);
    }
}
