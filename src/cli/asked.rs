//! A controller that is asked about the whole cluster: `--controller`, or the variable.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast::config::TlsMode;
use holdfast::home::Finding;
use holdfast::os::{Activity, Os};
use holdfast::registry::{Cluster, Everything, Nodes};
use holdfast::telemetry::Metrics;
use holdfast::tls::Role;
use holdfast::types::PoolId;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::serving;

/// Where the cluster is asked about.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ControllerArguments {
    /// Asks this controller about the whole cluster, instead of reading the pools of this machine: over the network, or on
    /// its own machine through its CSI socket, unix:///PATH, which needs no certificate. Default: HOLDFAST_CONTROLLER.
    #[arg(long, value_name = "HOST:PORT")]
    controller: Option<String>,
    /// A directory with ca.crt, tls.crt and tls.key of an operator or a controller.
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// Nobody is verified and nothing encrypted: for tests only.
    #[arg(long, conflicts_with = "tls")]
    insecure_plain_text: bool,
}

/// The variable that names the controller where `--controller` does not.
const VARIABLE: &str = "HOLDFAST_CONTROLLER";

/// A controller that can be asked, and what runs the asking.
pub(crate) struct Asked {
    runtime: Runtime,
    cluster: Cluster,
}

impl ControllerArguments {
    /// Whether `--controller` was said, not only the variable.
    pub(crate) fn is_explicit(&self) -> bool {
        self.controller.is_some()
    }

    /// The controller, where one was named.
    ///
    /// # Errors
    /// Certificates that are missing or wrong, an address that is none.
    pub(crate) fn asked(&self) -> Result<Option<Asked>> {
        let variable = || std::env::var(VARIABLE).ok().filter(|address| !address.is_empty());
        let Some(address) = &self.controller.clone().or_else(variable) else {
            if self.tls.is_some() || self.insecure_plain_text {
                bail!("--tls and --insecure-plain-text say how a controller is asked: name it with --controller");
            }
            return Ok(None);
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
        let _in_runtime = runtime.enter();
        let channel = self.channel(address)?;
        drop(_in_runtime);
        Ok(Some(Asked { cluster: Cluster::new(address, channel)?, runtime }))
    }

    /// The way to a controller; connects when it is needed.
    fn channel(&self, address: &str) -> Result<Channel> {
        if address.starts_with("unix:") {
            if self.tls.is_some() || self.insecure_plain_text {
                bail!(
                    "--controller {address} is a socket of this machine, without certificates; drop --tls and --insecure-plain-text"
                );
            }
            return serving::socket_channel(address);
        }
        let mode = match (&self.tls, self.insecure_plain_text) {
            (Some(directory), _) => TlsMode::Files(directory.clone()),
            (None, true) => TlsMode::InsecurePlainText,
            (None, false) => bail!(
                "the controller {address} needs --tls DIR with ca.crt, tls.crt and tls.key (holdfast ca issue --role operator)"
            ),
        };
        let metrics = Metrics::new(Activity::default());
        let credentials = serving::operator_credentials(&Os::new(), &mode, &metrics)?;
        Ok(serving::channel(&credentials, &Role::Controller, address)?)
    }
}

impl Asked {
    /// Its nodes and their pools.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn nodes(&mut self) -> Result<Nodes> {
        Ok(self.runtime.block_on(self.cluster.nodes())?)
    }

    /// All volumes and snapshots of nodes that answer.
    ///
    /// # Errors
    /// When the controller does not.
    pub(crate) fn everything(&mut self) -> Result<Everything> {
        Ok(self.runtime.block_on(self.cluster.everything())?)
    }

    /// What each node finds in its own pools, and what could not be asked.
    pub(crate) fn findings(&mut self) -> (Vec<(String, Finding)>, Vec<String>) {
        let answer = self.runtime.block_on(self.cluster.findings());
        answer.unwrap_or_else(|error| (Vec::new(), vec![error.chain()]))
    }

    /// `pools readmit`.
    ///
    /// # Errors
    /// A pool that is still declared lost, or whose node is not heard.
    pub(crate) fn readmit(&mut self, pool: PoolId) -> Result<()> {
        Ok(self.runtime.block_on(self.cluster.readmit(pool))?)
    }
}
