//! The driver in process: homes, router, node and services over real pools, in lives that can end at any moment.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use super::call::{NAMES, TARGETS};
use super::specification;
use holdfast::csi::ThisNode;
use holdfast::home::{Home, LocalHome, SpaceLimits};
use holdfast::node::Node;
use holdfast::os::{Os, Stopwatch};
use holdfast::pool;
use holdfast::route::{Directory, NO_FABRIC, Router};
use holdfast::testing::scratch::{self, Scratch, spec};
use holdfast::testing::{FaultInjector, InProcess};
use holdfast::types::{Kind, NodeId, ObjectUuid, PoolId, SnapshotId, VolumeId};

/// Size of the filesystem below all pools, MiB.
const DISK: u64 = 2048;
/// How long whatever goes on may take to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// CAP_SYS_RESOURCE of linux/capability.h: without it a mounted ext4 does not grow.
const CAP_SYS_RESOURCE: u32 = 24;

/// What pools lie on, and how many nodes have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) ground: scratch::PoolFs,
    pub(super) homes: usize,
}

/// A filesystem and a thread, for many cases one after the other.
pub(super) struct Machine {
    pub(super) setting: Setting,
    pub(super) os: Os,
    pub(super) runtime: Runtime,
    cases: Cell<usize>,
    kubelet: tempfile::TempDir,
    scratch: Scratch,
}

impl Machine {
    pub(super) fn new(setting: Setting) -> Self {
        let scratch = Scratch::in_memory(setting.ground, DISK);
        // Threads for calls are started from this one, and so see its mounts.
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let kubelet = tempfile::tempdir().unwrap();
        Self { setting, os: Os::new(), runtime, cases: Cell::default(), kubelet, scratch }
    }

    /// Mounts, devices and files that a case left, however it ended.
    fn clear(&self) {
        let below = self.kubelet();
        while let Some(point) = self.os.mounts().ok().and_then(|table| {
            let last = table.entries().iter().rev().find(|entry| entry.mount_point.starts_with(&below));
            last.map(|entry| entry.mount_point.clone())
        }) {
            if !self.os.unmount(&point).unwrap_or(false) {
                break;
            }
        }
        for status in self.loops() {
            let _ = self.os.loop_clear(&status);
        }
        for entry in fs::read_dir(&below).unwrap() {
            let path = entry.unwrap().path();
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }

    /// The loop devices of all pools here.
    pub(super) fn loops(&self) -> Vec<holdfast::os::LoopStatus> {
        let place = self.os.identity(&self.scratch.root()).unwrap().unwrap();
        self.os.loops_beside(&place).unwrap()
    }

    pub(super) fn kubelet(&self) -> PathBuf {
        self.kubelet.path().canonicalize().unwrap()
    }

    pub(super) fn staging(&self, name: usize) -> PathBuf {
        self.kubelet().join(format!("staging-{name}"))
    }

    pub(super) fn target(&self, target: usize) -> PathBuf {
        self.kubelet().join(format!("target-{target}"))
    }
}

/// One process of the driver.
pub(super) struct Life {
    pub(super) services: InProcess,
    homes: Vec<Arc<LocalHome>>,
    hand: FaultInjector,
}

impl Life {
    /// Whether it was killed.
    pub(super) fn is_dead(&self) -> bool {
        self.hand.is_dead()
    }
}

/// One case: pools that begin empty.
pub(super) struct World<'m> {
    pub(super) machine: &'m Machine,
    root: PathBuf,
    pub(super) pools: Vec<PoolId>,
    /// Names are the machine's: those of another test must not be ours.
    mark: String,
    life: RefCell<Option<Rc<Life>>>,
    hand: RefCell<FaultInjector>,
}

impl<'m> World<'m> {
    pub(super) fn new(machine: &'m Machine) -> Self {
        machine.clear();
        let case = machine.cases.replace(machine.cases.get() + 1);
        let root = machine.scratch.root().join(format!("case-{case}"));
        for name in 0..NAMES {
            fs::create_dir_all(machine.staging(name)).unwrap();
        }
        fs::create_dir_all(machine.kubelet().join("staging-none")).unwrap();
        let mut world = Self {
            machine,
            root,
            pools: Vec::new(),
            mark: uuid::Uuid::new_v4().simple().to_string(),
            life: RefCell::default(),
            hand: RefCell::default(),
        };
        for node in 0..machine.setting.homes {
            fs::create_dir_all(world.place(node)).unwrap();
        }
        world.pools = world.start();
        world
    }

    fn place(&self, node: usize) -> PathBuf {
        self.root.join(format!("pool-{node}"))
    }

    /// The life there is now.
    pub(super) fn life(&self) -> Option<Rc<Life>> {
        self.life.borrow().clone()
    }

    /// The process ends as by a kill: what it does ends at its next system call.
    pub(super) fn kill(&self) -> Option<Rc<Life>> {
        let life = self.life.borrow_mut().take();
        if let Some(life) = &life {
            life.homes.iter().for_each(|home| home.abandon());
            let next = life.hand.next();
            *self.hand.borrow_mut() = next;
        }
        life
    }

    /// A new process opens the pools; their ids.
    pub(super) fn start(&self) -> Vec<PoolId> {
        let hand = self.hand.borrow().clone();
        hand.watch();
        let os = Os::intercepted(Box::new(hand.clone()));
        // Half of what is there for all pools together: what the filesystem itself takes does not matter then.
        let overcommit = if self.machine.setting.homes == 1 { "0.4" } else { "0.2" };
        let limits =
            SpaceLimits { overcommit: overcommit.parse().unwrap(), min_free: holdfast::home::MinFree::Percent(5) };
        let mut ids = Vec::new();
        let mut homes = Vec::new();
        for number in 0..self.machine.setting.homes {
            let watch = Stopwatch::start();
            let pool = loop {
                match pool::open(&os, &spec(&self.place(number)), &node(number)) {
                    // A thread of the life before may still be on its way out, with the pool's lock.
                    Err(error) if error.kind() == Kind::InUse && watch.elapsed() < PATIENCE => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    result => break result.unwrap(),
                }
            };
            ids.push(pool.identity().id);
            homes.push(Arc::new(LocalHome::open(os.clone(), node(number), vec![(pool, limits)]).unwrap()));
        }
        let first = Arc::clone(&homes[0]) as Arc<dyn Home>;
        let directory = if homes.len() == 1 {
            Directory::standalone(Arc::clone(&first), homes[0].pools())
        } else {
            Directory::of_homes(homes.iter().map(|home| (Arc::clone(home) as Arc<dyn Home>, home.pools())))
        };
        let directory = directory.with_nodes([node(homes.len())]);
        let router = Arc::new(Router::new(directory));
        let workflows = Arc::new(Node::new(os, node(0), first));
        let this = ThisNode { id: node(0), fabric: NO_FABRIC.to_owned(), workflows };
        let services = InProcess::new(&router, this);
        *self.life.borrow_mut() = Some(Rc::new(Life { services, homes, hand }));
        ids
    }

    /// Waits until nothing of a life goes on any more.
    pub(super) async fn ended(&self, life: &Life) {
        let left = life.services.ended(PATIENCE).await;
        assert_eq!(left, 0, "works that do not end");
    }

    /// What the specification has to know of this place.
    pub(super) fn ground(&self) -> specification::CaseSetting {
        let homes = self.machine.setting.homes;
        let space = self.machine.os.fs_space(&self.root).unwrap();
        let usable = space.total - space.total / 100 * 5;
        let share = if homes == 1 { 4 } else { 2 };
        specification::CaseSetting {
            room: vec![usable * share / 10; homes],
            copying: self.machine.setting.ground == scratch::PoolFs::Ext4,
            grows_mounted_ext4: may(CAP_SYS_RESOURCE),
            nodes: homes + 1,
        }
    }

    pub(super) fn name(&self, name: usize) -> String {
        format!("volume {name} of {}", self.mark)
    }

    pub(super) fn cut_name(&self, cut: usize) -> String {
        format!("snapshot {cut} of {}", self.mark)
    }

    pub(super) fn volume_id(&self, pool: usize, name: usize) -> VolumeId {
        VolumeId::new(self.pools[pool], ObjectUuid::of_volume(&self.name(name)))
    }

    pub(super) fn cut_id(&self, pool: usize, cut: usize) -> SnapshotId {
        SnapshotId::new(self.pools[pool], ObjectUuid::of_snapshot(&self.cut_name(cut)))
    }

    /// What is wrong when every volume and snapshot was deleted and something is left.
    pub(super) fn leftovers(&self) -> Result<(), String> {
        let mut left = Vec::new();
        for number in 0..self.machine.setting.homes {
            for class in ["volumes", "snapshots", "trash"] {
                let names = fs::read_dir(self.place(number).join(class)).unwrap();
                left.extend(names.map(|name| format!("{class}/{}", name.unwrap().file_name().display())));
            }
        }
        left.extend(self.machine.loops().into_iter().map(|status| format!("{status:?}")));
        for target in 0..TARGETS {
            let target = self.machine.target(target);
            left.extend(target.exists().then(|| target.display().to_string()));
        }
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {}", left.join(", "))) }
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        if let Some(life) = self.kill() {
            let _ = self.machine.runtime.block_on(life.services.ended(PATIENCE));
        }
        self.machine.clear();
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The n-th node's id.
pub(super) fn node(number: usize) -> NodeId {
    format!("node-{number}").parse().unwrap()
}

/// Whether this process has a capability.
fn may(capability: u32) -> bool {
    let status = fs::read_to_string(Path::new("/proc/self/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() >> capability & 1 == 1
}
