//! One node of its own: pool, home and workflows over a real kernel, in lives that can end at any call.

use std::cell::{Cell, RefCell};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use holdfast::csi::{Rpc, code_of};
use holdfast::fs::RequestedOptions;
use holdfast::home::{
    CreateSnapshot, CreateVolume, GrantRequest, Home, LocalHome, MinFree, Overcommit, ReadOnly, Source, SpaceLimits,
};
use holdfast::node::{ExpandRequest, Node, PublishRequest, StageRequest};
use holdfast::os::{Os, Stopwatch};
use holdfast::pool::{self, Pool};
use holdfast::testing::FaultInjector;
use holdfast::testing::scratch::{PoolFs, Scratch, home as node_id, spec};
use holdfast::types::*;

pub(super) const BLOCK: VolumeMode = VolumeMode::Block;
pub(super) const EXT4: VolumeMode = VolumeMode::Mount(FsType::Ext4);
pub(super) const XFS: VolumeMode = VolumeMode::Mount(FsType::Xfs);
const ACCESS: AccessMode = AccessMode::SingleNodeMultiWriter;
/// Programs that stand-ins replace in this test's mounts.
const TOOLS: [&str; 5] = ["mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_repair", "resize2fs"];
/// How often a sidecar asks again before the test gives up on it.
const PATIENCE: usize = 8;

/// A call that failed: which, and how. None for the daemon's own start.
pub(super) struct Failed {
    pub(super) rpc: Option<Rpc>,
    pub(super) failure: Failure,
}

impl Failed {
    pub(super) fn code(&self) -> Option<tonic::Code> {
        self.rpc.map(|rpc| code_of(rpc, &self.failure))
    }
}

impl std::fmt::Debug for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.failure {
            Failure::Clean(_) => "clean",
            Failure::Dirty(_) => "dirty",
        };
        write!(f, "{:?} {:?} {kind} {}", self.rpc, self.code(), self.failure.error().chain())
    }
}

pub(super) type Answer = Result<(), Failed>;

/// What became of one attempt.
pub(super) enum Ended {
    Answered(Answer),
    /// The process was killed in it.
    Killed,
}

/// What a volume is made as.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) mib: u64,
    pub(super) mode: VolumeMode,
    pub(super) provisioning: Provisioning,
    pub(super) on_delete: OnDelete,
}

pub(super) const fn thick(mib: u64, mode: VolumeMode) -> Shape {
    Shape { mib, mode, provisioning: Provisioning::Thick, on_delete: OnDelete::Unlink }
}

pub(super) const fn thin(mib: u64, mode: VolumeMode) -> Shape {
    Shape { provisioning: Provisioning::Thin, ..thick(mib, mode) }
}

struct Life {
    pool: Arc<dyn Pool>,
    home: Arc<LocalHome>,
    node: Arc<Node>,
}

pub(super) struct World {
    life: RefCell<Option<Life>>,
    hand: RefCell<FaultInjector>,
    /// What growth of this round begins from, MiB: sizes are compared relative to it.
    pub(super) base: Cell<u64>,
    /// Undisturbed.
    pub(super) os: Os,
    kubelet: tempfile::TempDir,
    tools: StandIns,
    pub(super) scratch: Scratch,
}

impl World {
    pub(super) fn new(ground: PoolFs, mib: u64) -> Self {
        let scratch = Scratch::of(ground, mib);
        let hand = FaultInjector::default();
        let tools = StandIns::new(&hand);
        let world = Self {
            life: RefCell::default(),
            hand: RefCell::new(hand),
            base: Cell::new(0),
            os: Os::new(),
            kubelet: tempfile::tempdir().unwrap(),
            tools,
            scratch,
        };
        world.start().unwrap();
        world
    }

    pub(super) fn hand(&self) -> FaultInjector {
        self.hand.borrow().clone()
    }

    /// The daemon's process ends, and its threads with it.
    pub(super) fn end(&self) {
        if let Some(life) = self.life.borrow_mut().take() {
            life.home.abandon();
        }
        let next = self.hand().next();
        *self.hand.borrow_mut() = next;
    }

    /// The daemon starts. One that fails has to be started again.
    pub(super) fn start(&self) -> Answer {
        let os = Os::intercepted(Box::new(self.hand()));
        let watch = Stopwatch::start();
        let own = |error: Error| Failed { rpc: None, failure: error.into() };
        let pool = loop {
            match pool::open(&os, &spec(&self.scratch.root()), &node_id()) {
                // A thread of the life before may still be on its way out, with the pool's lock.
                Err(error) if error.kind() == Kind::InUse && watch.elapsed() < Duration::from_secs(20) => {
                    thread::sleep(Duration::from_millis(2));
                }
                result => break result.map_err(own)?,
            }
        };
        let limits = SpaceLimits { overcommit: Overcommit::default(), min_free: MinFree::Percent(5) };
        let home = LocalHome::open(os.clone(), node_id(), vec![(Arc::clone(&pool), limits)]).map_err(own)?;
        let home = Arc::new(home);
        self.hand().kills(&home);
        let node = Arc::new(Node::new(os, node_id(), Arc::clone(&home) as Arc<dyn Home>));
        *self.life.borrow_mut() = Some(Life { pool, home, node });
        Ok(())
    }

    pub(super) fn restart(&self) {
        self.end();
        self.start().unwrap();
    }

    /// One attempt, in which the process may be killed.
    pub(super) fn attempt(&self, run: fn(&Self) -> Answer) -> Ended {
        let result = catch_unwind(AssertUnwindSafe(|| run(self)));
        match result {
            _ if self.hand().is_dead() => Ended::Killed,
            Ok(answer) => Ended::Answered(answer),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// The same request again until it succeeds, as a sidecar would.
    pub(super) fn insist(&self, run: fn(&Self) -> Answer, at: &dyn std::fmt::Display) -> Result<(), String> {
        let mut last = String::new();
        for attempt in 0..PATIENCE {
            match run(self) {
                Ok(()) => return Ok(()),
                Err(failed) => last = format!("{failed:?}"),
            }
            thread::sleep(Duration::from_millis(10 << attempt));
        }
        Err(format!("{at}: asked {PATIENCE} times, and still: {last}"))
    }

    pub(super) fn home(&self) -> Arc<LocalHome> {
        Arc::clone(&self.life.borrow().as_ref().expect("alive").home)
    }

    pub(super) fn pool(&self) -> Arc<dyn Pool> {
        Arc::clone(&self.life.borrow().as_ref().expect("alive").pool)
    }

    pub(super) fn node(&self) -> Arc<Node> {
        Arc::clone(&self.life.borrow().as_ref().expect("alive").node)
    }

    /// Loop devices are the machine's: another test's volume of the same name would have the same uuid.
    fn full_name(&self, name: &str) -> String {
        format!("{name}-{}", self.pool().identity().id)
    }

    pub(super) fn id(&self, name: &str) -> VolumeId {
        VolumeId::new(self.pool().identity().id, ObjectUuid::of_volume(&self.full_name(name)))
    }

    pub(super) fn snapshot_id(&self, name: &str) -> SnapshotId {
        SnapshotId::new(self.pool().identity().id, ObjectUuid::of_snapshot(&self.full_name(name)))
    }

    pub(super) fn create(&self, name: &str, shape: Shape, source: Option<Source>) -> Answer {
        let request = CreateVolume {
            name: self.full_name(name),
            range: CapacityRange { required: Some(Bytes::mib(shape.mib)), limit: None },
            capabilities: vec![Capability { mode: shape.mode, access: ACCESS }],
            parameters: VolumeParameters {
                provisioning: Some(shape.provisioning),
                on_delete: shape.on_delete,
                ..VolumeParameters::default()
            },
            source,
        };
        answer(Rpc::CreateVolume, self.home().create_volume(&request))
    }

    pub(super) fn delete(&self, name: &str) -> Answer {
        answer(Rpc::DeleteVolume, self.home().delete_volume(&self.id(name)))
    }

    pub(super) fn snapshot(&self, name: &str, of: &str) -> Answer {
        let request = CreateSnapshot { name: self.full_name(name), source: self.id(of) };
        let made = self.home().create_snapshot(&request);
        let copying = matches!(&made, Ok(made) if made.clone().into_inner().copy != holdfast::home::CopyState::Ready);
        if copying {
            // The snapshotter asks again while it is not ready to use.
            return answer(Rpc::CreateSnapshot, Err::<(), _>(Failure::Dirty(Error::new(Kind::Busy, "not ready"))));
        }
        answer(Rpc::CreateSnapshot, made)
    }

    pub(super) fn delete_snapshot(&self, name: &str) -> Answer {
        answer(Rpc::DeleteSnapshot, self.home().delete_snapshot(&self.snapshot_id(name)))
    }

    pub(super) fn grant(&self, name: &str, mode: VolumeMode) -> Answer {
        let request = GrantRequest { node: node_id(), mode: mode.into(), access: ACCESS, read_only: ReadOnly::No };
        answer(Rpc::ControllerPublishVolume, self.home().grant(&self.id(name), &request))
    }

    pub(super) fn revoke(&self, name: &str) -> Answer {
        answer(Rpc::ControllerUnpublishVolume, self.home().revoke(&self.id(name), Some(&node_id())))
    }

    /// What a stage does first: the device is there.
    pub(super) fn open(&self, name: &str) -> Answer {
        answer(Rpc::NodeStageVolume, self.home().open(&self.id(name), &node_id()))
    }

    pub(super) fn stage(&self, name: &str, mode: VolumeMode) -> Answer {
        let request = self.stage_request(name, mode);
        answer(Rpc::NodeStageVolume, self.node().stage(&request))
    }

    pub(super) fn stage_request(&self, name: &str, mode: VolumeMode) -> StageRequest {
        let staging = self.staging(name);
        fs::create_dir_all(&staging).unwrap();
        StageRequest {
            volume: self.id(name),
            staging,
            mode: mode.into(),
            access: ACCESS,
            mount: RequestedOptions::default(),
        }
    }

    pub(super) fn unstage(&self, name: &str) -> Answer {
        let (id, staging) = (self.id(name), self.staging(name));
        answer(Rpc::NodeUnstageVolume, self.node().unstage(&id, &staging))
    }

    pub(super) fn publish(&self, name: &str, mode: VolumeMode, read_only: ReadOnly) -> Answer {
        let request = PublishRequest {
            volume: self.id(name),
            staging: Some(self.staging(name)),
            target: self.target(name),
            mode: mode.into(),
            access: ACCESS,
            read_only,
            mount: RequestedOptions::default(),
        };
        answer(Rpc::NodePublishVolume, self.node().publish(&request))
    }

    pub(super) fn unpublish(&self, name: &str) -> Answer {
        let (id, target) = (self.id(name), self.target(name));
        answer(Rpc::NodeUnpublishVolume, self.node().unpublish(&id, &target))
    }

    pub(super) fn expand(&self, name: &str, mib: u64) -> Answer {
        let range = CapacityRange { required: Some(Bytes::mib(mib)), limit: None };
        answer(Rpc::ControllerExpandVolume, self.home().expand(&self.id(name), &range))
    }

    pub(super) fn expand_on_node(&self, name: &str) -> Answer {
        let path = self.staging(name);
        let request = ExpandRequest { volume: self.id(name), path, staging: None, range: CapacityRange::default() };
        answer(Rpc::NodeExpandVolume, self.node().expand(&request))
    }

    pub(super) fn kubelet(&self) -> PathBuf {
        self.kubelet.path().canonicalize().unwrap()
    }

    pub(super) fn staging(&self, name: &str) -> PathBuf {
        self.kubelet().join(format!("staging-{name}"))
    }

    pub(super) fn target(&self, name: &str) -> PathBuf {
        self.kubelet().join(format!("target-{name}"))
    }

    pub(super) fn image(&self, name: &str) -> PathBuf {
        self.scratch.root().join("volumes").join(self.id(name).uuid.to_string()).join("data")
    }

    pub(super) fn snapshot_image(&self, name: &str) -> PathBuf {
        self.scratch.root().join("snapshots").join(self.snapshot_id(name).uuid.to_string()).join("data")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.hand().release();
        self.hand().disarm();
        let root = self.kubelet();
        while let Some(point) = self.os.mounts().ok().and_then(|table| {
            let below = |entry: &&holdfast::os::MountEntry| entry.mount_point.starts_with(&root);
            table.entries().iter().rev().find(below).map(|entry| entry.mount_point.clone())
        }) {
            if !self.os.unmount(&point).unwrap_or(false) {
                break;
            }
        }
        self.end();
        let place = self.os.identity(&self.scratch.root()).ok().flatten();
        if let (true, Some(place)) = (thread::panicking(), place) {
            for status in self.os.loops_beside(&place).unwrap_or_default() {
                let _ = self.os.loop_clear(&status);
            }
        }
        self.tools.take_away(&self.os);
    }
}

fn answer<T>(rpc: Rpc, result: Result<T, impl Into<Failure>>) -> Answer {
    result.map(drop).map_err(|failure| Failed { rpc: Some(rpc), failure: failure.into() })
}

const PATTERN: &[u8] = b"what fsync confirmed stays";

/// Data in an image, behind everybody's back: far from where filesystems keep theirs.
pub(super) fn mark(image: &Path) {
    let file = OpenOptions::new().write(true).open(image).unwrap();
    for offset in [0, 5 << 20, 11 << 20] {
        file.write_all_at(PATTERN, offset).unwrap();
    }
    file.sync_all().unwrap();
}

#[track_caller]
pub(super) fn is_marked(image: &Path) {
    let file = fs::File::open(image).unwrap();
    for offset in [0, 5 << 20, 11 << 20] {
        let mut found = vec![0; PATTERN.len()];
        file.read_exact_at(&mut found, offset).unwrap();
        assert_eq!(found, PATTERN, "{} lost its data at {offset}", image.display());
    }
}

/// Tools that are killed, before they did anything or after they did all, when the hand says so.
struct StandIns {
    _directory: tempfile::TempDir,
    places: Vec<PathBuf>,
}

impl StandIns {
    fn new(hand: &FaultInjector) -> Self {
        let mut places = Vec::new();
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().canonicalize().unwrap();
        let mode = place.join("mode");
        let os = Os::new();
        for tool in TOOLS {
            let real = fs::canonicalize(Path::new("/usr/sbin").join(tool)).unwrap();
            let room = place.join(format!("room-{tool}"));
            fs::create_dir(&room).unwrap();
            // The copy is called like the tool: mke2fs looks at its own name.
            let (copy, script) = (room.join(tool), room.join("script"));
            fs::copy(&real, &copy).unwrap();
            let text = format!(
                "#!/bin/sh\nmode=\n[ -e {mode} ] && read -r mode < {mode}\ncase $mode in\nbefore) kill -9 $$;;\nafter) {copy} \"$@\"; kill -9 $$;;\nesac\nexec {copy} \"$@\"\n",
                mode = mode.display(),
                copy = copy.display()
            );
            fs::write(&script, text).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
            os.bind(&script, &real, holdfast::os::MountFlags::default()).unwrap();
            places.push(real);
        }
        hand.tools_at(mode);
        Self { _directory: directory, places }
    }

    fn take_away(&self, os: &Os) {
        for place in &self.places {
            let _ = os.unmount(place);
        }
    }
}
