//! `holdfast controller`: CSI Identity and Controller on a socket, and the port for the heartbeats of nodes. It is
//! stateless; several can serve at the same time.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tonic::service::Routes;
use tracing::info;

use super::certificates::Certifying;
use super::parts::{Base, dial, shares};
use super::{Stop, pod_events};
use crate::config::{ControllerConfig, TlsMode};
use crate::csi::{ServeConfig, serve};
use crate::os::Os;
use crate::registry::RegistryService;
use crate::route::{Directory, Router};
use crate::telemetry::{Metrics, PoolWatch};
use crate::tls::{Credentials, Incoming, Role};
use crate::types::Result;
use crate::wire;

/// A controller whose ports are bound.
pub struct Controller {
    config: ControllerConfig,
    base: Base,
    router: Arc<Router>,
    incoming: Incoming,
    address: SocketAddr,
    certifying: Option<Certifying>,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Controller {
    /// Reads the certificates and binds the ports.
    ///
    /// # Errors
    /// An error that prevents the start.
    pub async fn open(config: ControllerConfig, os: Os) -> Result<Self> {
        let metrics = Metrics::new(os.activity().clone());
        let shares = shares(&os)?;
        let (credentials, certifying) = match &config.tls {
            TlsMode::Files(directory) => {
                let tls = metrics.tls().clone();
                (Credentials::from_files(os, directory, Role::Controller, tls)?, None)
            }
            TlsMode::Auto(auto) => {
                let (credentials, holder) = Credentials::held(Role::Controller, metrics.tls().clone());
                let certifying = Certifying::prepare(auto, &credentials, holder, &metrics, shares).await?;
                (credentials, Some(certifying))
            }
            TlsMode::InsecurePlainText => (Credentials::plain(metrics.tls().clone()), None),
        };
        let dial = dial(credentials.clone(), metrics.homes().clone());
        let router = Arc::new(Router::new(Directory::of_controller(dial, config.rhythm, config.lost.clone())));
        let (watched, asked) = (Arc::clone(&router), Arc::clone(&router));
        metrics.homes().watch(move || watched.directory().homes());
        let pools = PoolWatch::new(move || asked.figures(), || Ok(Vec::new()), || Ok(Vec::new()));
        let base = Base::bind(&config.serving, metrics, pools, shares).await?;
        let (incoming, address) = credentials.listen(config.listen, shares).await?;
        Ok(Self { config, base, router, incoming, address, certifying })
    }

    /// Serves until `stop`, and ends what is running.
    ///
    /// # Errors
    /// Those of [`crate::csi::serve`].
    pub async fn serve(self, stop: Stop) -> Result<()> {
        let Self { config, mut base, router, incoming, address, certifying } = self;
        let homes = base.metrics.homes();
        let registry = RegistryService::new(Arc::clone(&router)).counted(homes.clone());
        let operators = RegistryService::of_private_socket(Arc::clone(&router)).counted(homes.clone());
        base.serve_health(&stop);
        let mut server = wire::server_of_daemons(registry.bounds());
        tokio::spawn(wire::serve(
            server.add_service(registry.into_server()),
            incoming,
            stop.clone().begun(),
            "this controller no longer receives heartbeats; restart it",
        ));
        if config.pod_events {
            pod_events::begin(Arc::clone(&router), &stop).await?;
        }
        let signing = certifying.map(|certifying| certifying.begin(&stop));
        let (ready, settling) = (base.pools.clone(), config.rhythm.settling());
        tokio::spawn(async move {
            // No heartbeat can arrive before there is a certificate.
            if let Some(signing) = signing {
                signing.there().await;
            }
            tokio::time::sleep(settling).await;
            ready.opened();
        });
        info!(
            version = env!("CARGO_PKG_VERSION"),
            endpoint = %base.socket.display(),
            listen = %address,
            lost = config.lost.len(),
            "holdfast controller serves; it is ready after two heartbeats"
        );
        let config = ServeConfig {
            socket: base.socket,
            controller: Some(router),
            others: Routes::new(operators.into_server()),
            node: None,
            metrics: base.metrics,
            pools: base.pools,
            shares: base.shares,
        };
        serve(config, stop.begun()).await
    }
}
