//! The daemons: each puts the modules below together from its resolved configuration.
//!
//! [`Standalone`], [`Controller`] and [`NodeDaemon`] have two steps. `open` checks everything that can prevent a start,
//! opens the pools and binds the ports. `serve` answers calls until [`Stop`]. The caller has the arguments, the log, the
//! runtime, the signals and the exit code. An error of `open`, and `Precondition` of `serve`, mean that the daemon did
//! not start.

mod certificates;
mod checks;
mod controller;
mod fabric;
mod node;
mod parts;
mod pod_events;
mod pools;
mod standalone;

pub use checks::{check_controller, check_node, check_standalone};
pub use controller::Controller;
pub use node::NodeDaemon;
pub use standalone::Standalone;

use tokio::sync::watch;

use crate::types::{Error, Kind, Result};

/// The signal that the process must stop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<()>);

impl Stop {
    /// A signal and its sender. The shutdown begins when the sender sends or is dropped.
    #[must_use]
    pub fn channel() -> (watch::Sender<()>, Self) {
        let (stop, stopped) = watch::channel(());
        (stop, Self(stopped))
    }

    /// Completes when the shutdown begins.
    pub async fn begun(mut self) {
        // A dropped sender means that no task waits for signals any more: that is a shutdown too.
        let _ = self.0.changed().await;
    }

    /// For tasks that wait for other events as well.
    fn receiver(&self) -> watch::Receiver<()> {
        self.0.clone()
    }
}

/// Runs work that blocks; `what` is its name in the error when it panics.
async fn blocking<T: Send + 'static>(what: &'static str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::new(Kind::Internal, what).because(error))
}
