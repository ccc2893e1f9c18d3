//! The figures of the pools, for scrapes and probes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::measurement::Measurement;
use crate::types::{Error, Result};

/// The time limit for the figures of the pools.
const PATIENCE: Duration = Duration::from_secs(2);
/// Counting extents reads every image's extent map, and examining a pool reads every record: not more often than this.
const DEAR_FRESH: Duration = Duration::from_secs(600);

/// One pool's figures, in bytes and numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolFigures {
    /// Its name.
    pub pool: String,
    /// Its id.
    pub id: String,
    /// `file`, `lvm`, ...
    pub kind: String,
    /// Its node.
    pub node: String,
    /// The size of the pool's filesystem in bytes.
    pub total: u64,
    /// Bytes available for new volumes.
    pub available: u64,
    /// Bytes reserved and not yet allocated.
    pub promised: u64,
    /// Sum of all volumes' sizes.
    pub provisioned: u64,
    /// Inodes of the pool's filesystem, if they are limited.
    pub inodes: Option<u64>,
    /// Free inodes.
    pub inodes_free: Option<u64>,
    /// Number of volumes.
    pub volumes: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Why the pool is not served, if it is not; it then has no figures.
    pub outage: Option<String>,
}

/// Whether this process can serve.
#[derive(Debug)]
pub enum Readiness {
    /// Its pools are being opened.
    Starting,
    /// All pools are served.
    Ready(Vec<PoolFigures>),
    /// Some pools are served and some are not.
    Partly {
        /// The names of those that are.
        served: Vec<String>,
        /// Why the others are not served, a sentence each.
        outages: Vec<String>,
    },
    /// No pool is served; the reasons, a sentence each.
    Nothing(Vec<String>),
    /// The pools cannot be read.
    Failing(Error),
}

impl Readiness {
    fn of(figures: Vec<PoolFigures>) -> Self {
        let outages: Vec<_> = figures.iter().filter_map(|one| one.outage.clone()).collect();
        if outages.is_empty() {
            return Self::Ready(figures);
        }
        let served: Vec<_> = figures.into_iter().filter(|one| one.outage.is_none()).map(|one| one.pool).collect();
        if served.is_empty() { Self::Nothing(outages) } else { Self::Partly { served, outages } }
    }
}

/// The fragmentation of an image: more extents make a clone slower.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeExtents {
    /// The volume's id.
    pub volume: String,
    /// Its pool's id.
    pub pool: String,
    /// The number.
    pub extents: u64,
}

/// The number of findings of one kind that doctor has in a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFindings {
    /// The pool's name.
    pub pool: String,
    /// The kind, as doctor's JSON names it.
    pub kind: &'static str,
    /// The number; zero is exported too, so that the first finding is a change.
    pub findings: u64,
}

/// Measures the pools. Cheap to clone.
#[derive(Clone)]
pub struct PoolWatch(Arc<Inner>);

struct Inner {
    open: AtomicBool,
    figures: Measurement<Vec<PoolFigures>>,
    extents: Measurement<Vec<VolumeExtents>>,
    findings: Measurement<Vec<PoolFindings>>,
}

impl fmt::Debug for PoolWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolWatch").field("open", &self.0.open).finish_non_exhaustive()
    }
}

impl PoolWatch {
    /// For pools that are being opened. The sources block: `figures` is read at each probe and scrape, `extents` and
    /// `findings` at a scrape when their last result is ten minutes old.
    pub fn new(
        figures: impl Fn() -> Result<Vec<PoolFigures>> + Send + Sync + 'static,
        extents: impl Fn() -> Result<Vec<VolumeExtents>> + Send + Sync + 'static,
        findings: impl Fn() -> Result<Vec<PoolFindings>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            open: AtomicBool::new(false),
            figures: Measurement::new("the figures of the pools", PATIENCE, Duration::ZERO, figures),
            extents: Measurement::new("the extents of the images", PATIENCE, DEAR_FRESH, extents),
            findings: Measurement::new("the findings of doctor", PATIENCE, DEAR_FRESH, findings),
        }))
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
            Ok(figures) => Readiness::of(figures),
            Err(error) => Readiness::Failing(error),
        }
    }

    /// The current figures.
    ///
    /// # Errors
    /// Those of the source; `Timeout` with the elapsed time when it does not answer in time.
    pub async fn figures(&self) -> Result<Vec<PoolFigures>> {
        self.0.figures.now().await.map(|figures| figures.to_vec())
    }

    /// The most fragmented images, at most ten minutes old, or half an hour if counting takes long.
    ///
    /// # Errors
    /// As [`PoolWatch::figures`].
    pub async fn extents(&self) -> Result<Vec<VolumeExtents>> {
        self.0.extents.lately().await.map(|extents| extents.to_vec())
    }

    /// The findings of doctor, at most ten minutes old, or half an hour if the examination takes long. Empty while the
    /// pools are being opened.
    ///
    /// # Errors
    /// As [`PoolWatch::figures`].
    pub async fn findings(&self) -> Result<Vec<PoolFindings>> {
        if !self.0.open.load(Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        self.0.findings.lately().await.map(|findings| findings.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Kind;

    #[tokio::test]
    async fn one_pool_that_is_not_served_is_named_and_the_others_are_too() {
        let of = |pool: &str, outage: Option<&str>| PoolFigures {
            pool: pool.into(),
            outage: outage.map(str::to_owned),
            ..PoolFigures::default()
        };
        assert!(matches!(Readiness::of(Vec::new()), Readiness::Ready(_)));
        assert!(matches!(Readiness::of(vec![of("a", None)]), Readiness::Ready(_)));
        assert!(matches!(Readiness::of(vec![of("a", Some("gone"))]), Readiness::Nothing(why) if why == ["gone"]));
        let Readiness::Partly { served, outages } = Readiness::of(vec![of("a", None), of("b", Some("gone"))]) else {
            panic!()
        };
        assert_eq!((served, outages), (vec!["a".to_owned()], vec!["gone".to_owned()]));
    }

    #[tokio::test]
    async fn starting_then_ready_then_failing() {
        let broken = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&broken);
        let figures = move || match seen.load(Ordering::SeqCst) {
            false => Ok(vec![PoolFigures { volumes: 3, ..PoolFigures::default() }]),
            true => Err(Error::new(Kind::Internal, "the root is gone")),
        };
        let pools = PoolWatch::new(figures, || Ok(Vec::new()), || Ok(Vec::new()));
        assert!(matches!(pools.readiness().await, Readiness::Starting));
        pools.opened();
        assert!(matches!(pools.readiness().await, Readiness::Ready(figures) if figures[0].volumes == 3));
        broken.store(true, Ordering::SeqCst);
        assert!(matches!(pools.readiness().await, Readiness::Failing(error) if error.to_string().contains("root")));
        assert!(pools.extents().await.unwrap().is_empty());
    }
}
