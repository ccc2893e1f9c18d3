//! [`Reporter`]: a node registers itself with every controller.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::Request;
use tonic::transport::Channel;
use tracing::{debug, error, info, warn};

use super::convert;
use super::directory_cache::DirectoryCache;
use super::proto::registry_client::RegistryClient;
use crate::route::Heartbeat;
use crate::types::{Error, Kind, PoolId, Result};
use crate::wire;

/// How long a controller may take to answer a heartbeat.
const PATIENCE: Duration = Duration::from_secs(4);

/// The addresses of the controllers, `HOST:PORT` each; a host may be a name with several addresses, each of which is a
/// controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controllers(pub Vec<String>);

/// Called with the pools that a controller declares lost.
pub type Said = Box<dyn Fn(&DeclaredLost) + Send + Sync>;

/// Pools that a controller declares lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeclaredLost {
    /// Those of this node.
    pub here: Vec<PoolId>,
    /// Those of other nodes.
    pub elsewhere: Vec<PoolId>,
}

/// How a controller's address is dialled; the channel connects when it is used.
pub type DialController = Box<dyn Fn(SocketAddr) -> Result<Channel> + Send + Sync>;

/// The current state of this node. May take a while, and does not run on the runtime's threads.
pub type Look = Arc<dyn Fn() -> Heartbeat + Send + Sync>;

/// Sends heartbeats to every controller.
pub struct Reporter {
    controllers: Controllers,
    interval: Duration,
    dial: DialController,
    look: Look,
    said: Said,
    card: Arc<Mutex<DirectoryCache>>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("controllers", &self.controllers).finish_non_exhaustive()
    }
}

impl Reporter {
    /// For these controllers. `look` fills everything in a heartbeat except `known`, which comes from the directory on
    /// disk.
    #[must_use]
    pub fn new(
        controllers: Controllers,
        interval: Duration,
        dial: DialController,
        look: Look,
        said: Said,
        card: Arc<Mutex<DirectoryCache>>,
    ) -> Arc<Self> {
        Arc::new(Self { controllers, interval, dial, look, said, card })
    }

    /// Runs until `stop`. Names are resolved again at every interval. Each address has a task of its own, so that one
    /// controller that does not answer delays no other. The figures are read once for all.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<()>) {
        let mut telling = BTreeMap::<SocketAddr, Telling>::new();
        let (news, latest) = watch::channel(None::<Arc<Heartbeat>>);
        let mut beat = tokio::time::interval(self.interval);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                _ = stop.changed() => return,
            }
            let addresses = self.addresses().await;
            // If a name cannot be resolved now, the known controllers are kept.
            if !addresses.is_empty() {
                telling.retain(|address, _| addresses.contains(address));
            }
            for address in addresses {
                telling.entry(address).or_insert_with(|| {
                    Telling(tokio::spawn(Arc::clone(&self).tell(address, latest.clone())).abort_handle())
                });
            }
            let this = Arc::clone(&self);
            let look = move || {
                let heartbeat = (this.look)();
                Heartbeat { known: this.card().entries(), ..heartbeat }
            };
            let heartbeat = match tokio::task::spawn_blocking(look).await {
                Ok(heartbeat) => heartbeat,
                Err(failed) => {
                    error!(error = %failed, "the state of this node cannot be read; no heartbeat is sent now");
                    continue;
                }
            };
            news.send_replace(Some(Arc::new(heartbeat)));
        }
    }

    async fn addresses(&self) -> BTreeSet<SocketAddr> {
        let mut all = BTreeSet::new();
        for name in &self.controllers.0 {
            match tokio::net::lookup_host(name).await {
                Ok(found) => all.extend(found),
                Err(failed) => warn!(controller = name, error = %failed, "the controller's name cannot be resolved"),
            }
        }
        all
    }

    /// One controller: sends each new heartbeat.
    async fn tell(self: Arc<Self>, address: SocketAddr, mut latest: watch::Receiver<Option<Arc<Heartbeat>>>) {
        let mut client = match (self.dial)(address) {
            Ok(channel) => RegistryClient::new(channel),
            Err(error) => return error!(controller = %address, "{}", error.chain()),
        };
        let mut heard = Heard::NotYet;
        loop {
            let heartbeat = latest.borrow_and_update().clone();
            if let Some(heartbeat) = heartbeat {
                let mut request = Request::new(convert::heartbeat_out(&heartbeat));
                request.set_timeout(PATIENCE);
                let answer = tokio::time::timeout(PATIENCE, client.heartbeat(request)).await;
                let said = match answer {
                    Ok(Ok(reply)) => Arc::clone(&self).take_in(reply.into_inner()).await,
                    Ok(Err(status)) => Err(Error::new(Kind::Unavailable, wire::reason(&status))),
                    Err(_) => Err(Error::new(Kind::Timeout, "the controller does not answer")),
                };
                heard = heard.then(address, said);
            }
            if latest.changed().await.is_err() {
                return;
            }
        }
    }

    fn card(&self) -> MutexGuard<'_, DirectoryCache> {
        self.card.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the directory of a controller, in a thread of its own: the disk may be slow.
    async fn take_in(self: Arc<Self>, reply: super::proto::HeartbeatReply) -> Result<()> {
        let keep = move || {
            let pools = |lost: &[String]| lost.iter().map(|pool| pool.parse()).collect::<Result<Vec<PoolId>>>();
            let lost = DeclaredLost { here: pools(&reply.lost)?, elsewhere: pools(&reply.lost_elsewhere)? };
            let entries = reply.directory.into_iter().map(convert::entry_in).collect::<Result<Vec<_>>>()?;
            self.card().learn(entries)?;
            if lost != DeclaredLost::default() {
                (self.said)(&lost);
            }
            Ok(())
        };
        let ended = tokio::task::spawn_blocking(keep).await;
        ended.unwrap_or_else(|ended| {
            Err(Error::new(Kind::Internal, "the answer of a controller cannot be stored").because(ended))
        })
    }
}

/// The task of one controller, which ends when this is dropped.
struct Telling(AbortHandle);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether a controller accepts our heartbeats: logged when it changes, not every five seconds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heard {
    NotYet,
    Yes,
    No,
}

impl Heard {
    fn then(self, controller: SocketAddr, said: Result<()>) -> Self {
        match said {
            Ok(()) => {
                if self != Self::Yes {
                    info!(%controller, "registered with the controller");
                }
                Self::Yes
            }
            Err(error) => {
                if self == Self::No {
                    debug!(
                        %controller, error = error.chain(),
                        "the controller still does not receive this node's heartbeats"
                    );
                } else {
                    warn!(
                        %controller, error = error.chain(),
                        "the controller does not receive this node's heartbeats; retrying"
                    );
                }
                Self::No
            }
        }
    }
}
