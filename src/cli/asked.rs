//! A controller that answers for the whole cluster: `--controller`, or the variable.

use std::convert::Infallible;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast::config::{self, TlsMode};
use holdfast::home::Finding;
use holdfast::os::{Activity, Os};
use holdfast::registry::{Cluster, Everything, Nodes};
use holdfast::telemetry::Metrics;
use holdfast::tls::{Credentials, Role};
use holdfast::types::PoolId;
use holdfast::wire;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

/// The flags that name a controller.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ControllerArguments {
    /// The controller to connect to. With it, pools, volumes and doctor show the whole cluster instead of the pools of
    /// this machine. On the machine of the controller, unix:///PATH of its CSI socket needs no certificate. Default:
    /// HOLDFAST_CONTROLLER.
    #[arg(long, value_name = "HOST:PORT")]
    controller: Option<String>,
    /// A directory with ca.crt, tls.crt and tls.key of an operator or a controller.
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// No certificates and no encryption: for tests only.
    #[arg(long, conflicts_with = "tls")]
    insecure_plain_text: bool,
}

/// The variable that names the controller if `--controller` is not set.
const VARIABLE: &str = "HOLDFAST_CONTROLLER";

/// A connection to a controller, and its runtime.
pub(crate) struct ControllerConnection {
    runtime: Runtime,
    cluster: Cluster,
}

impl ControllerArguments {
    /// Whether `--controller` was set, not only the variable.
    pub(crate) fn is_explicit(&self) -> bool {
        self.controller.is_some()
    }

    /// The controller, if one was named.
    ///
    /// # Errors
    /// Certificates that are missing or wrong, or an invalid address.
    pub(crate) fn asked(&self) -> Result<Option<ControllerConnection>> {
        let variable = || std::env::var(VARIABLE).ok().filter(|address| !address.is_empty());
        let Some(address) = &self.controller.clone().or_else(variable) else {
            if self.tls.is_some() || self.insecure_plain_text {
                bail!("--tls and --insecure-plain-text need a controller: set --controller");
            }
            return Ok(None);
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
        let _in_runtime = runtime.enter();
        let channel = self.channel(address)?;
        drop(_in_runtime);
        Ok(Some(ControllerConnection { cluster: Cluster::new(address, channel)?, runtime }))
    }

    /// A channel to the controller; connects when needed.
    fn channel(&self, address: &str) -> Result<Channel> {
        if address.starts_with("unix:") {
            if self.tls.is_some() || self.insecure_plain_text {
                bail!(
                    "--controller {address} is a Unix socket and uses no certificates; drop --tls and --insecure-plain-text"
                );
            }
            return Ok(wire::socket_channel(&config::socket_path(address)?)?);
        }
        let mode = match (&self.tls, self.insecure_plain_text) {
            (Some(directory), _) => TlsMode::Files(directory.clone()),
            (None, true) => TlsMode::InsecurePlainText,
            (None, false) => bail!(
                "the controller {address} needs certificates: set --tls DIR with ca.crt, tls.crt and tls.key (run holdfast ca issue --role operator)"
            ),
        };
        let metrics = Metrics::new(Activity::default());
        let credentials = operator_credentials(&Os::new(), &mode, &metrics)?;
        Ok(credentials.channel(&Role::Controller, address)?)
    }
}

/// The certificates for a command: those of an operator, or of a controller if the command runs beside one.
///
/// # Errors
/// Files that are missing or wrong.
fn operator_credentials(os: &Os, mode: &TlsMode<Infallible>, metrics: &Metrics) -> Result<Credentials> {
    let metrics = metrics.tls().clone();
    match mode {
        TlsMode::Files(directory) => {
            let of = |role| Credentials::from_files(os.clone(), directory, role, metrics.clone());
            of(Role::Operator).or_else(|error| of(Role::Controller).map_err(|_| error.into()))
        }
        TlsMode::Auto(never) => match *never {},
        TlsMode::InsecurePlainText => Ok(Credentials::plain(metrics)),
    }
}

impl ControllerConnection {
    /// Its nodes and their pools.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn nodes(&mut self) -> Result<Nodes> {
        Ok(self.runtime.block_on(self.cluster.nodes())?)
    }

    /// All volumes and snapshots of the nodes that answer.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub(crate) fn everything(&mut self) -> Result<Everything> {
        Ok(self.runtime.block_on(self.cluster.everything())?)
    }

    /// The findings of each node in its own pools, and the nodes that did not answer.
    pub(crate) fn findings(&mut self) -> (Vec<(String, Finding)>, Vec<String>) {
        let answer = self.runtime.block_on(self.cluster.findings());
        answer.unwrap_or_else(|error| (Vec::new(), vec![error.chain()]))
    }

    /// `pools readmit`.
    ///
    /// # Errors
    /// A pool that is still declared lost, or whose node is unreachable.
    pub(crate) fn readmit(&mut self, pool: PoolId) -> Result<()> {
        Ok(self.runtime.block_on(self.cluster.readmit(pool))?)
    }
}
