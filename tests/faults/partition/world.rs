//! Two homes on real pools, the proxies before them, and two controllers that hear both.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::proxy::{Fate, Proxy};
use holdfast::home::{Home, LocalHome, SpaceLimits};
use holdfast::os::Os;
use holdfast::pool;
use holdfast::route::{Directory, Heartbeat, NO_FABRIC, Rhythm, Router};
use holdfast::testing::scratch::{Scratch, spec};
use holdfast::types::{Error, Kind, NodeId};

pub(super) const NODES: [&str; 2] = ["node-a", "node-b"];
/// Between heartbeats; three of them without one are silence.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);

/// Everything but the filesystem below.
pub(super) struct World {
    pub(super) routers: [Arc<Router>; 2],
    pub(super) proxies: Arc<[Proxy; 2]>,
    beating: Arc<AtomicBool>,
    pub(super) silent: Arc<AtomicUsize>,
    /// The node whose pools are gone, while it is heard.
    bare: Arc<AtomicUsize>,
    /// What was wrong at some moment.
    pub(super) wrong: Arc<Mutex<Vec<String>>>,
    heart: Option<thread::JoinHandle<()>>,
}

pub(super) fn node(index: usize) -> NodeId {
    NODES[index].parse().unwrap()
}

fn home(os: &Os, root: &Path, index: usize) -> LocalHome {
    std::fs::create_dir_all(root).unwrap();
    let pool = pool::open(os, &spec(root), &node(index)).unwrap();
    LocalHome::open(os.clone(), node(index), vec![(pool, SpaceLimits::default())]).unwrap()
}

/// Where the home of a node that lost its pools is dialled.
fn bare_address(index: usize) -> String {
    format!("bare-{index}")
}

/// A node that has lost its pools.
fn bare_heartbeat(proxy: &Proxy, index: usize) -> Heartbeat {
    Heartbeat { endpoint: bare_address(index), pools: Vec::new(), ..heartbeat(proxy) }
}

fn heartbeat(proxy: &Proxy) -> Heartbeat {
    Heartbeat {
        node: proxy.local.node().clone(),
        boot_id: "boot".to_owned(),
        version: "0".to_owned(),
        endpoint: proxy.address.clone(),
        fabric: NO_FABRIC.to_owned(),
        pools: proxy.local.health(),
        known: Vec::new(),
        left_out: 0,
        connections: None,
    }
}

impl World {
    /// With pools in directories of `at`, which are made.
    pub(super) fn new(
        scratch: &Scratch,
        at: &str,
        fates: impl Fn(usize, &str, &str, u32) -> Fate + Send + Sync + Clone + 'static,
    ) -> Self {
        Self::on(&[scratch.os(), scratch.os()], scratch, at, fates)
    }

    /// The same, each home with system calls of its own.
    pub(super) fn on(
        os: &[&Os; 2],
        scratch: &Scratch,
        at: &str,
        fates: impl Fn(usize, &str, &str, u32) -> Fate + Send + Sync + Clone + 'static,
    ) -> Self {
        let proxies = [0, 1].map(|index| {
            let local = home(os[index], &scratch.root().join(at).join(NODES[index]), index);
            let fates = fates.clone();
            Proxy::new(local, move |rpc, about, nth| fates(index, rpc, about, nth))
        });
        let proxies = Arc::new(proxies);
        let mut ways: BTreeMap<String, Arc<dyn Home>> =
            proxies.iter().map(|proxy| (proxy.address.clone(), Arc::clone(&proxy.remote))).collect();
        for (index, os) in os.iter().enumerate() {
            let bare = LocalHome::open(Os::clone(os), node(index), Vec::new()).unwrap();
            ways.insert(bare_address(index), Arc::new(bare));
        }
        let routers = [(); 2].map(|()| {
            let ways = ways.clone();
            let dial = move |_: &NodeId, endpoint: &str| {
                let unknown = || Error::new(Kind::InvalidArgument, format!("nobody is at {endpoint}"));
                ways.get(endpoint).cloned().ok_or_else(unknown)
            };
            let directory = Directory::of_controller(
                Box::new(dial),
                Rhythm { interval: INTERVAL },
                std::collections::BTreeSet::new(),
            );
            Arc::new(Router::new(directory))
        });
        let beating = Arc::new(AtomicBool::new(true));
        let silent = Arc::new(AtomicUsize::new(usize::MAX));
        let bare = Arc::new(AtomicUsize::new(usize::MAX));
        let wrong = Arc::<Mutex<Vec<String>>>::default();
        let heart = {
            let (beating, silent, wrong) = (Arc::clone(&beating), Arc::clone(&silent), Arc::clone(&wrong));
            let (routers, proxies, bare) = (routers.clone(), Arc::clone(&proxies), Arc::clone(&bare));
            thread::spawn(move || {
                while beating.load(Ordering::SeqCst) {
                    for (index, proxy) in proxies.iter().enumerate() {
                        if silent.load(Ordering::SeqCst) != index {
                            let said = if bare.load(Ordering::SeqCst) == index {
                                bare_heartbeat(proxy, index)
                            } else {
                                heartbeat(proxy)
                            };
                            routers.iter().for_each(|router| drop(router.directory().hear(said.clone()).unwrap()));
                        }
                        let granted_twice = |volume: &holdfast::home::Volume| volume.published.len() > 1;
                        for volume in proxy.local.volumes(None, 0).into_iter().flat_map(|page| page.entries) {
                            if granted_twice(&volume) {
                                wrong.lock().unwrap().push(format!("granted twice: {volume:?}"));
                            }
                        }
                    }
                    thread::sleep(INTERVAL / 4);
                }
            })
        };
        while routers.iter().any(|router| router.directory().settled().is_err()) {
            thread::sleep(INTERVAL / 10);
        }
        Self { routers, proxies, beating, silent, bare, wrong, heart: Some(heart) }
    }

    /// No heartbeat of this node is heard any more; the node works on.
    pub(super) fn silence(&self, index: usize) {
        self.silent.store(index, Ordering::SeqCst);
        while self.routers.iter().any(|router| router.directory().home_on(&node(index)).is_ok()) {
            thread::sleep(INTERVAL / 10);
        }
    }

    /// This node is heard and has no pool any more.
    pub(super) fn without_pools(&self, index: usize) {
        self.bare.store(index, Ordering::SeqCst);
        let has = |seen: holdfast::route::Seen| seen.heartbeat.node == node(index) && !seen.heartbeat.pools.is_empty();
        while self.routers.iter().any(|router| router.directory().seen().into_iter().any(has)) {
            thread::sleep(INTERVAL / 10);
        }
    }

    /// Whether no home is kept silent.
    pub(super) fn is_all_heard(&self) -> bool {
        self.silent.load(Ordering::SeqCst) == usize::MAX
    }

    /// All are heard again, with their pools.
    pub(super) fn hear_all(&self) {
        self.silent.store(usize::MAX, Ordering::SeqCst);
        self.bare.store(usize::MAX, Ordering::SeqCst);
        while self.routers.iter().any(|router| router.directory().all().is_err()) {
            thread::sleep(INTERVAL / 10);
        }
    }

    /// What a caller sent arrives, and ends, before his next step.
    pub(super) fn settle(&self, mine: impl Fn(&str) -> bool) {
        self.proxies.iter().for_each(|proxy| proxy.settle(&mine));
    }

    /// The nodes whose homes have a volume of this name.
    pub(super) fn having(&self, name: &str) -> Vec<NodeId> {
        let uuid = holdfast::types::ObjectUuid::of_volume(name);
        let has = |proxy: &&Proxy| !proxy.local.find_volume(uuid).unwrap().is_empty();
        self.proxies.iter().filter(has).map(|proxy| proxy.local.node().clone()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.beating.store(false, Ordering::SeqCst);
        if let Some(heart) = self.heart.take() {
            let _ = heart.join();
        }
    }
}
