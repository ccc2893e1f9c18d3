//! A scratch filesystem with a driver on it, and short forms of a volume's lifecycle.

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::csi::proto::identity_client::IdentityClient;
use holdfast::csi::proto::{ProbeRequest, VolumeCapability};
use holdfast::os::Stopwatch;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};

use super::{Daemon, PoolFs, Release, Scratch, Use, free_port};

/// How long any answer may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(100);

/// Polls for a condition.
pub(crate) fn await_that(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let watch = Stopwatch::start();
    while !holds() {
        assert!(watch.elapsed() < limit, "{what} did not happen within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the driver, which has our capabilities, may grow a mounted ext4 (CAP_SYS_RESOURCE, bit 24).
pub(crate) fn can_grow_ext4_online() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & (1 << 24) != 0
}

/// A volume as the CO remembers it.
#[derive(Clone, Debug)]
pub(crate) struct Vol {
    pub(crate) id: String,
    pub(crate) kind: Use,
    pub(crate) size: i64,
    pub(crate) capability: VolumeCapability,
    pub(crate) context: HashMap<String, String>,
}

impl Vol {
    /// The uuid that names its directory in the pool.
    pub(crate) fn uuid(&self) -> &str {
        self.id.split('_').nth(2).unwrap()
    }

    /// The same volume with another use.
    pub(crate) fn used_as(&self, kind: Use) -> Self {
        Self { kind, capability: super::capability(kind), ..self.clone() }
    }

    /// The same volume with another capability.
    pub(crate) fn with(&self, capability: VolumeCapability) -> Self {
        Self { capability, ..self.clone() }
    }
}

/// A driver, its pool and the objects of the test. [`World::finish`] removes all of them through the driver.
#[derive(Debug)]
pub(crate) struct World {
    daemon: Option<Daemon>,
    channel: Option<Channel>,
    runtime: Runtime,
    /// The release of the driver from the next start on.
    pub(crate) release: Release,
    pub(crate) node: String,
    pub(crate) pool: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) metrics: String,
    extra: Vec<String>,
    config: Option<PathBuf>,
    pub(super) publish_contexts: Arc<Mutex<HashMap<String, HashMap<String, String>>>>,
    pub(crate) scratch: Arc<Scratch>,
}

impl World {
    /// A running driver on a pool of 4 GiB (sparse) on this filesystem.
    pub(crate) fn new(kind: PoolFs) -> Self {
        Self::sized(kind, 4 << 30)
    }

    /// A running driver on a pool on a filesystem of so many bytes.
    pub(crate) fn sized(kind: PoolFs, size: u64) -> Self {
        let mut world = Self::stopped(kind, size);
        world.start();
        world
    }

    /// The same with further arguments.
    pub(crate) fn with_arguments(kind: PoolFs, size: u64, extra: &[&str]) -> Self {
        Self::started(Scratch::new(kind, size), extra)
    }

    /// The same, on this filesystem.
    pub(crate) fn started(scratch: Scratch, extra: &[&str]) -> Self {
        let mut world = Self::over(scratch);
        world.extra = extra.iter().map(|argument| (*argument).to_owned()).collect();
        world.start();
        world
    }

    /// Everything except the driver.
    pub(crate) fn stopped(kind: PoolFs, size: u64) -> Self {
        Self::over(Scratch::new(kind, size))
    }

    /// Everything except the driver, on a filesystem that may have a pool already.
    pub(crate) fn over(scratch: Scratch) -> Self {
        let pool = scratch.root().join("pool");
        fs::create_dir_all(&pool).unwrap();
        Self {
            daemon: None,
            channel: None,
            runtime: Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
            release: Release::This,
            node: "node-a".into(),
            pool,
            socket: scratch.path().join("csi.sock"),
            metrics: format!("127.0.0.1:{}", free_port()),
            extra: Vec::new(),
            config: None,
            publish_contexts: Arc::default(),
            scratch: Arc::new(scratch),
        }
    }

    /// Another caller of the same driver, for a thread of its own: it reconnects when necessary, and abandons a call
    /// that takes longer than `patience`.
    pub(crate) fn caller(&self, patience: Duration) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let endpoint = self.endpoint().timeout(patience);
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Self {
            daemon: None,
            channel: Some(channel),
            runtime,
            release: self.release,
            node: self.node.clone(),
            pool: self.pool.clone(),
            socket: self.socket.clone(),
            metrics: self.metrics.clone(),
            extra: self.extra.clone(),
            config: self.config.clone(),
            publish_contexts: Arc::clone(&self.publish_contexts),
            scratch: Arc::clone(&self.scratch),
        }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(format!("unix://{}", self.socket.display())).unwrap()
    }

    /// The pool comes from this file instead of a flag.
    pub(crate) fn configure_by(&mut self, file: &Path) {
        self.config = Some(file.to_owned());
    }

    /// The arguments the driver is started with.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let own = [
            "standalone".into(),
            "--endpoint".into(),
            format!("unix://{}", self.socket.display()),
            "--node-name".into(),
            self.node.clone(),
            "--metrics".into(),
            self.metrics.clone(),
        ];
        let level = if self.extra.iter().any(|extra| extra == "--log-level") {
            Vec::new()
        } else {
            vec!["--log-level".to_owned(), "debug".to_owned()]
        };
        let pool = match &self.config {
            Some(file) => ["--config".to_owned(), file.display().to_string()],
            None => ["--pool".to_owned(), format!("test=file:{}", self.pool.display())],
        };
        own.into_iter().chain(pool).chain(level).chain(self.extra.iter().cloned()).collect()
    }

    /// Starts the driver without waiting.
    pub(crate) fn launch(&mut self) {
        assert!(self.daemon.is_none(), "it runs already");
        self.daemon = Some(Daemon::start_with(self.release, &self.arguments(), &[], &self.log_path()));
        let endpoint = self.endpoint();
        self.channel = Some(self.block_on(async { endpoint.connect_lazy() }));
    }

    /// Starts the driver and waits until Probe reports ready.
    pub(crate) fn start(&mut self) {
        self.launch();
        self.await_ready();
    }

    /// Waits until Probe reports ready.
    pub(crate) fn await_ready(&mut self) {
        await_that("the driver is ready", Duration::from_secs(30), || {
            let daemon = self.daemon.as_mut().unwrap();
            assert!(daemon.ended().is_none(), "the driver ended: {}", daemon.log());
            let channel = self.channel.clone().unwrap();
            let probe = async { IdentityClient::new(channel).probe(ProbeRequest {}).await };
            self.runtime.block_on(probe).is_ok_and(|answer| answer.into_inner().ready != Some(false))
        });
    }

    /// Further arguments from the next start on.
    pub(crate) fn add_arguments(&mut self, extra: &[&str]) {
        self.extra.extend(extra.iter().map(|argument| (*argument).to_owned()));
    }

    /// Removes the last further arguments.
    pub(crate) fn drop_arguments(&mut self, count: usize) {
        self.extra.truncate(self.extra.len() - count);
    }

    /// The driver has exited without a kill by the test.
    pub(crate) fn stopped_by_itself(&mut self) {
        let mut daemon = self.daemon.take().expect("it was running");
        assert!(daemon.ended().is_some());
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.release.log_in(self.scratch.path(), "driver.log")
    }

    pub(crate) fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the driver runs")
    }

    /// All output of this release's driver so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// SIGKILL.
    pub(crate) fn kill9(&mut self) {
        self.daemon.take().expect("the driver runs").kill9();
    }

    /// SIGTERM; the exit code.
    pub(crate) fn terminate(&mut self) -> i32 {
        self.daemon.take().expect("the driver runs").terminate()
    }

    /// SIGKILL and a new start.
    pub(crate) fn crash(&mut self) {
        self.kill9();
        self.start();
    }

    /// The pool's disks move to a fresh install: nothing else is kept, and they are mounted elsewhere.
    pub(crate) fn reinstall(&mut self) {
        assert_eq!(self.terminate(), 0);
        let moved = self.scratch.root().join("moved");
        fs::rename(&self.pool, &moved).unwrap();
        self.pool = moved;
        self.socket = self.scratch.path().join("other.sock");
        self.start();
    }

    /// The connection, for concurrent calls.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone().expect("the driver was started")
    }

    /// Runs a call in the background.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(call)
    }

    /// Waits for it, with a limit.
    pub(crate) fn block_on<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, call).await.expect("the driver does not answer") })
    }

    /// A volume's image.
    pub(crate) fn image(&self, vol: &Vol) -> PathBuf {
        self.pool.join("volumes").join(vol.uuid()).join("data")
    }

    /// A volume's record.
    pub(crate) fn record(&self, vol: &Vol) -> serde_json::Value {
        let path = self.pool.join("volumes").join(vol.uuid()).join("volume.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The directory a volume is staged at.
    pub(crate) fn staging(&self, vol: &Vol) -> PathBuf {
        self.scratch.path().join("stage").join(&vol.id)
    }

    /// The path a volume is published at in a pod.
    pub(crate) fn target(&self, vol: &Vol, pod: &str) -> PathBuf {
        self.scratch.path().join("pods").join(pod).join(&vol.id).join("mount")
    }

    /// The content of a part of the pool: names of volumes, snapshots or trash.
    pub(crate) fn in_pool(&self, part: &str) -> Vec<String> {
        let entries = fs::read_dir(self.pool.join(part)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Free and total bytes of the pool's filesystem, for ordinary users.
    pub(crate) fn statfs(&self) -> (u64, u64) {
        let stat = nix::sys::statvfs::statvfs(&self.pool).unwrap();
        (stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size())
    }

    /// The volumes with a directory below `stage` and the targets below `pods`.
    pub(crate) fn in_use(&self) -> (Vec<String>, Vec<(String, PathBuf)>) {
        let names = |path: &Path| -> Vec<String> {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let pods = self.scratch.path().join("pods");
        let targets = names(&pods).into_iter().flat_map(|pod| {
            let pod = pods.join(pod);
            names(&pod).into_iter().map(move |id| (id.clone(), pod.join(id).join("mount"))).collect::<Vec<_>>()
        });
        (names(&self.scratch.path().join("stage")), targets.collect())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("-- the driver's last words --\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}
