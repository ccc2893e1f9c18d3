//! What every daemon has: metrics and health, and its part of the limit of open files.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use super::Stop;
use crate::config::Serving;
use crate::home::Home;
use crate::home::remote::RemoteHome;
use crate::kubelet::{Registrar, Registration};
use crate::os::Os;
use crate::route::Dial;
use crate::telemetry::{HomeMetrics, Http, Metrics, PoolWatch};
use crate::tls::{Credentials, Role};
use crate::types::{NodeId, OsContext, Result};
use crate::wire::Shares;

/// The metrics of a daemon, and what limits its ports and sockets.
pub(super) struct Base {
    pub(super) socket: PathBuf,
    pub(super) metrics: Arc<Metrics>,
    pub(super) pools: PoolWatch,
    pub(super) shares: Shares,
    /// The bound listener of metrics and health, if one is configured.
    health: Option<Http>,
}

impl Base {
    /// Binds the address of metrics and health. All checks that can fail come before the first line of the log.
    ///
    /// # Errors
    /// The address is in use.
    pub(super) async fn bind(
        serving: &Serving,
        metrics: Arc<Metrics>,
        pools: PoolWatch,
        shares: Shares,
    ) -> Result<Self> {
        let health = match serving.metrics {
            Some(address) => Some(Http::bind(address, Arc::clone(&metrics), pools.clone()).await?.within(shares)),
            None => None,
        };
        Ok(Self { socket: serving.socket.clone(), metrics, pools, shares, health })
    }

    /// Answers metrics and health until the process stops.
    pub(super) fn serve_health(&mut self, stop: &Stop) {
        let Some(http) = self.health.take() else { return };
        let until = stop.clone();
        tokio::spawn(async move {
            if let Err(error) = http.serve(until.begun()).await {
                error!("{}", error.chain());
            }
        });
    }
}

/// The registration with kubelet, or nothing if none is configured.
pub(super) struct Registering(Option<JoinHandle<()>>);

impl Registering {
    /// Registers the driver as soon as CSI answers, until the process stops.
    pub(super) fn start(registration: Option<Registration>, metrics: &Metrics, stop: &Stop) -> Self {
        let registrar = registration.map(|registration| Registrar::new(registration, metrics.kubelet().clone()));
        Self(registrar.map(|registrar| tokio::spawn(registrar.run(stop.clone().begun()))))
    }

    /// Its socket is removed when this completes, whatever ended CSI.
    pub(super) async fn end(self) {
        if let Some(task) = self.0 {
            task.abort();
            let _ = task.await;
        }
    }
}

/// The share of each port in the limit of open files, which was raised as far as possible. Warns if it is too low.
pub(super) fn shares(os: &Os) -> Result<Shares> {
    let limit = os.open_files().at(|| "read the limit of open files")?;
    let shares = Shares::of(limit);
    if let Some(wanted) = shares.wanted() {
        warn!(
            limit,
            "the limit of open files is low, so the process accepts fewer connections; raise it to {wanted} or more (LimitNOFILE= of systemd, ulimit -n)"
        );
    }
    Ok(shares)
}

/// Connects to nodes: the certificate of the node that answers must be for the intended node.
pub(super) fn dial(credentials: Credentials, metrics: HomeMetrics) -> Dial {
    let runtime = Handle::current();
    Box::new(move |node: &NodeId, endpoint: &str| {
        let _in_runtime = runtime.enter();
        let channel = credentials.channel(&Role::Node(node.clone()), endpoint)?;
        let home = RemoteHome::new(node.clone(), endpoint, channel, runtime.clone());
        Ok(Arc::new(home.counted(metrics.clone())) as Arc<dyn Home>)
    })
}
