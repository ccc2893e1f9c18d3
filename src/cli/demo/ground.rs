//! The environment of the demonstration: a temporary directory with its own pool filesystem, the driver as a child
//! process, and a list of everything that the driver left.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use holdfast::os::{Daemon, Discard, LoopAccess, LoopConfig, LoopStatus, MountFlags, Os, Program, Stopwatch};
use holdfast::types::{Bytes, FsType, NodeId};

use super::client::Client;

/// The size of the pool's filesystem; sparse, so it only takes the space that is written.
const POOL_SIZE: Bytes = Bytes::mib(4096);
/// The time limit for a tool, and for the start and the end of the driver.
const PATIENCE: Duration = Duration::from_secs(60);

/// What exists because of the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    things: BTreeSet<String>,
}

impl Footprint {
    /// Everything in `self` that was not in `before`.
    pub(super) fn since(&self, before: &Self) -> Vec<String> {
        self.things.difference(&before.things).cloned().collect()
    }
}

/// The environment.
pub(super) struct DemoEnvironment {
    os: Os,
    directory: PathBuf,
    image: Option<LoopStatus>,
    driver: Option<Daemon>,
    /// The pool's filesystem.
    pub(super) fs: FsType,
    /// Why it is not XFS, if it is not.
    pub(super) fallback: Option<String>,
}

impl DemoEnvironment {
    /// Creates the directory only.
    pub(super) fn new(os: &Os) -> Result<Self> {
        let name = format!("holdfast-demo-{}", std::process::id());
        let directory = std::env::temp_dir().canonicalize()?.join(name);
        os.create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
        Ok(Self { os: os.clone(), directory, image: None, driver: None, fs: FsType::Xfs, fallback: None })
    }

    /// Creates a filesystem for the pool on a loop device: XFS with reflink, or ext4 if XFS is not available.
    pub(super) fn make_pool(&mut self) -> Result<()> {
        let xfs = ["-q", "-m", "reflink=1"];
        let ext4 = ["-q", "-E", "lazy_itable_init=1,nodiscard"];
        if let Err(error) = self.make_filesystem(FsType::Xfs, "mkfs.xfs", &xfs) {
            self.take_pool_away().context(format!("{error:#}"))?;
            self.make_filesystem(FsType::Ext4, "mkfs.ext4", &ext4).context(format!("{error:#}"))?;
            self.fallback = Some(format!("{error:#}"));
        }
        self.os.create_dir(&self.pool())?;
        for name in ["pods", "staging"] {
            self.os.create_dir(&self.directory.join(name))?;
        }
        Ok(())
    }

    fn make_filesystem(&mut self, fs: FsType, tool: &str, arguments: &[&str]) -> Result<()> {
        let path = self.directory.join("pool.img");
        self.os.remove_file(&path)?;
        let image = self.os.create_image(&path)?;
        self.os.set_length(&image, &path, POOL_SIZE.get())?;
        let mkfs = Program::find(tool, &path, PATIENCE)?.args(arguments.iter().copied());
        let done = self.os.run(&mkfs.arg(path.display().to_string()))?;
        if !done.success() {
            bail!("{tool}: {}", done.summary());
        }
        let name = "holdfast-demo".to_owned();
        let config = LoopConfig {
            block_size: 512,
            owner: name.clone(),
            name,
            discard: Discard::On,
            access: LoopAccess::Writable,
        };
        let device = self.os.loop_attach(&image, &path, &config).context("attach a loop device")?;
        self.image = self.os.loop_status(device)?;
        let point = self.directory.join("fs");
        self.os.ensure_dir(&point)?;
        self.os
            .mount(&device.path(), &point, fs.as_str(), MountFlags::default(), "")
            .with_context(|| format!("mount {fs} on {}", device.path().display()))?;
        self.fs = fs;
        Ok(())
    }

    /// The pool's directory.
    pub(super) fn pool(&self) -> PathBuf {
        self.directory.join("fs/pool")
    }

    /// The loop device of the pool's filesystem.
    pub(super) fn device(&self) -> String {
        self.image.as_ref().map(|image| image.device.path().display().to_string()).unwrap_or_default()
    }

    /// A staging directory, as kubelet creates it for a volume.
    pub(super) fn staging(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join("staging").join(name);
        self.os.ensure_dir(&path)?;
        Ok(path)
    }

    /// The target path of a pod; the driver creates it.
    pub(super) fn target(&self, pod: &str) -> PathBuf {
        self.directory.join("pods").join(pod)
    }

    /// Starts the driver and waits until its socket answers.
    pub(super) async fn start_driver(&mut self, node: &NodeId) -> Result<Client> {
        let program = std::env::current_exe().context("find our own binary")?;
        let socket = self.socket();
        let log = File::options().create(true).append(true).open(self.log())?;
        let arguments = [
            "standalone".to_owned(),
            "--endpoint".to_owned(),
            format!("unix://{}", socket.display()),
            "--node-name".to_owned(),
            node.to_string(),
            "--pool".to_owned(),
            format!("demo=file:{}", self.pool().display()),
        ];
        self.driver = Some(self.os.start(&program, &arguments, &log).context("start the driver")?);
        let watch = Stopwatch::start();
        loop {
            // The volumes use the filesystem type of the pool: without XFS for one, there is none for the other.
            match Client::connect(&socket, node.clone(), self.fs).await {
                Ok(client) => return Ok(client),
                Err(error) if watch.elapsed() > PATIENCE => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = self.driver.as_mut().map(Daemon::ended).transpose()?.flatten() {
                bail!("the driver ended with {status}: {}", self.last_words());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// kill -9; returns the pid of the killed process.
    pub(super) fn kill_driver(&mut self) -> Result<u32> {
        let mut driver = self.driver.take().context("the driver does not run")?;
        let pid = driver.pid();
        let status = driver.kill()?;
        if status.signal().is_some() { Ok(pid) } else { Err(anyhow!("the driver had ended by itself: {status}")) }
    }

    /// SIGTERM; the driver must exit by itself with code 0, and remove its socket.
    pub(super) async fn stop_driver(&mut self) -> Result<()> {
        let mut driver = self.driver.take().context("the driver does not run")?;
        driver.terminate()?;
        let watch = Stopwatch::start();
        let status = loop {
            if let Some(status) = driver.ended()? {
                break status;
            }
            if watch.elapsed() > PATIENCE {
                bail!("the driver had not ended {} s after SIGTERM", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        if !status.success() {
            bail!("the driver ended with {status} on SIGTERM: {}", self.last_words());
        }
        if self.socket().exists() {
            bail!("the driver did not remove its socket {}", self.socket().display());
        }
        Ok(())
    }

    /// The last lines of the driver's log, printed after a step failed.
    pub(super) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let mut lines: Vec<_> = log.lines().rev().take(8).collect();
        lines.reverse();
        lines.join("\n    ")
    }

    /// Everything that exists because of the driver: loop devices on the pool's filesystem, mounts and files.
    pub(super) fn footprint(&self) -> Result<Footprint> {
        let mut things = BTreeSet::new();
        for status in self.loops()? {
            things.insert(format!("loop device {}", status.device.path().display()));
        }
        for entry in self.os.mounts()?.entries() {
            if entry.mount_point.starts_with(&self.directory) {
                things.insert(format!("mount {}", entry.mount_point.display()));
            }
        }
        for place in [self.pool(), self.directory.join("pods")] {
            walk(&place, &mut things)?;
        }
        Ok(Footprint { things })
    }

    /// Removes everything, whatever state it is in; the error names the part that remains.
    pub(super) fn clear(mut self) -> Result<()> {
        self.driver = None;
        self.take_pool_away()?;
        fs::remove_dir_all(&self.directory).with_context(|| format!("remove {}", self.directory.display()))
    }

    fn take_pool_away(&mut self) -> Result<()> {
        let pool = self.directory.join("fs");
        // Unmounts in reverse order; the pool's own mount follows the loop devices of its files.
        let table = self.os.mounts()?;
        let ours = table.entries().iter().rev().filter(|entry| entry.mount_point.starts_with(&self.directory));
        for entry in ours.filter(|entry| entry.mount_point != pool) {
            self.os.unmount(&entry.mount_point).with_context(|| format!("unmount {}", entry.mount_point.display()))?;
        }
        if table.at(&pool).is_some() {
            for status in self.loops()? {
                self.clear_loop(&status)?;
            }
            self.os.unmount(&pool).with_context(|| format!("unmount {}", pool.display()))?;
        }
        if let Some(image) = self.image.take() {
            self.clear_loop(&image)?;
        }
        Ok(())
    }

    fn clear_loop(&self, status: &LoopStatus) -> Result<()> {
        let path = status.device.path();
        if self.os.loop_clear(status)? { Ok(()) } else { Err(anyhow!("{} is still in use", path.display())) }
    }

    /// The loop devices of files in the pool's filesystem; empty when it is not mounted.
    fn loops(&self) -> Result<Vec<LoopStatus>> {
        let pool = self.directory.join("fs");
        let Some(file) = self.os.identity(&pool)? else { return Ok(Vec::new()) };
        if self.os.mounts()?.at(&pool).is_none() {
            return Ok(Vec::new());
        }
        Ok(self.os.loops_beside(&file)?)
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("csi.sock")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("driver.log")
    }
}

fn walk(place: &Path, things: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(place).with_context(|| format!("read {}", place.display()))? {
        let entry = entry?;
        things.insert(format!("file {}", entry.path().display()));
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), things)?;
        }
    }
    Ok(())
}
