//! `holdfast standalone`: the whole driver of one node in one process on one socket.

use std::fmt;
use std::sync::Arc;

use tracing::info;

use super::Stop;
use super::parts::{Base, shares};
use super::pools::{NodePools, Opening, Others};
use crate::config::Config;
use crate::os::Os;
use crate::telemetry::Metrics;
use crate::types::Result;

/// A driver whose pools are open.
pub struct Standalone {
    config: Config,
    base: Base,
    pools: NodePools,
}

impl fmt::Debug for Standalone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standalone").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Standalone {
    /// Opens the pools.
    ///
    /// # Errors
    /// An error that prevents the start.
    pub async fn open(mut config: Config, os: Os) -> Result<Self> {
        let (metrics, opening) = (Metrics::new(os.activity().clone()), Opening::default());
        let base = Base::bind(&config.serving, metrics, opening.watch(), shares(&os)?).await?;
        let configs = std::mem::take(&mut config.pools);
        let metrics = base.metrics.network().clone();
        let others = Others { elsewhere: Box::new(|_| None), network: None, metrics };
        let pools = NodePools::open(&os, &opening, configs, config.node.clone(), Vec::new(), others).await?;
        base.pools.opened();
        Ok(Self { config, base, pools })
    }

    /// Serves until `stop`, and ends what is running.
    ///
    /// # Errors
    /// Those of [`crate::csi::serve`].
    pub async fn serve(self, stop: Stop) -> Result<()> {
        let Self { config, mut base, pools } = self;
        pools.find(&stop);
        base.serve_health(&stop);
        info!(
            version = env!("CARGO_PKG_VERSION"),
            node = %config.node,
            endpoint = %config.serving.socket.display(),
            pools = pools.described,
            metrics = config.serving.metrics.map(|address| address.to_string()),
            "holdfast serves"
        );
        let served = pools.serve(base, Some(Arc::clone(&pools.router)), config.registration, &stop).await;
        pools.keep_devices().await;
        served
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{LogLevel, PoolConfig, Serving};
    use crate::csi::proto::{GetPluginInfoRequest, identity_client::IdentityClient};
    use crate::home::{FindingKind, SpaceLimits};
    use crate::registry::proto::registry_client::RegistryClient;
    use crate::registry::proto::{ListFindingsRequest, ListNodesRequest};
    use crate::telemetry::LogFormat;
    use crate::testing::scratch::{PoolFs, Scratch, spec};
    use crate::types::Kind;
    use crate::wire::socket_channel;

    fn config(socket: &Path, root: &Path) -> Config {
        let (log_format, log_level) = (LogFormat::default(), LogLevel::default());
        Config {
            serving: Serving { socket: socket.to_owned(), metrics: None, log_format, log_level },
            node: "node-a".parse().unwrap(),
            pools: vec![PoolConfig { spec: spec(root), limits: SpaceLimits::default() }],
            registration: None,
        }
    }

    #[test]
    fn it_answers_csi_and_what_doctor_finds_until_it_is_stopped() {
        let scratch = Scratch::new(PoolFs::Xfs);
        let (root, socket) = (scratch.root(), scratch.beside("csi.sock"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let opened = Standalone::open(config(&socket, &root), scratch.os().clone()).await.unwrap();
            std::fs::write(root.join("volumes/notes.txt"), "not ours").unwrap();
            let router = opened.pools.router.clone();
            let (found, unheard) = tokio::task::spawn_blocking(move || router.findings()).await.unwrap();
            let is_stray = |(node, finding): &(crate::types::NodeId, crate::home::Finding)| {
                node.as_str() == "node-a" && finding.kind == FindingKind::Orphan && finding.place.ends_with("notes.txt")
            };
            assert!(found.iter().any(is_stray) && unheard.is_empty(), "{found:?} {unheard:?}");

            let (stop, stopped) = Stop::channel();
            let serving = tokio::spawn(opened.serve(stopped));
            while !socket.exists() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            let mut identity = IdentityClient::new(socket_channel(&socket).unwrap());
            identity.get_plugin_info(GetPluginInfoRequest {}).await.unwrap();

            // What `holdfast doctor`, `pools` and `volumes` ask with --controller.
            let mut registry = RegistryClient::new(socket_channel(&socket).unwrap());
            let nodes = registry.list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes;
            assert!(nodes.len() == 1 && nodes[0].node == "node-a" && nodes[0].pools.len() == 1, "{nodes:?}");
            let found = registry.list_findings(ListFindingsRequest {}).await.unwrap().into_inner();
            assert!(format!("{found:?}").contains("notes.txt"), "{found:?}");

            // Another one cannot start beside it, and so tells the caller that it did not.
            let second = Standalone::open(config(&socket, &root), scratch.os().clone()).await.unwrap_err();
            assert_eq!(second.kind(), Kind::InUse, "{}", second.chain());
            drop(stop);
            serving.await.unwrap().unwrap();
            assert!(!socket.exists());
        });
    }
}
