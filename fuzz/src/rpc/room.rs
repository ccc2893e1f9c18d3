//! Where the driver lives while it is fuzzed, and how what it touches is watched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::config::{Config, LogLevel, PoolConfig, Serving};
use holdfast::daemon::{Standalone, Stop};
use holdfast::home::SpaceLimits;
use holdfast::os::{Call, Interceptor, MountFlags, Os};
use holdfast::pool::PoolSpec;
use holdfast::telemetry::LogFormat;
use prost::bytes::{Buf, BufMut};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};

/// The node of the driver.
pub const NODE: &str = "node-a";
/// A call that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A driver and its surroundings.
pub struct Room {
    runtime: Runtime,
    channel: Channel,
    os: Os,
    /// The tmpfs everything lies on.
    root: PathBuf,
    trespasses: Trespasses,
    mounts: usize,
    decoy: String,
}

/// Changing calls with a target outside the room.
#[derive(Clone, Default)]
struct Trespasses(Arc<Mutex<Vec<String>>>);

struct Watched {
    root: PathBuf,
    trespasses: Trespasses,
}

impl Interceptor for Watched {
    fn before(&self, call: Call, target: &str) -> io::Result<()> {
        use Call::{
            Allocate, Bind, CloneFile, CopyRange, CreateDir, CreateImage, Mount, RemoveDir, RemoveFile, Rename,
            SetLength, Unmount, WriteFile, WriteImage, ZeroRange,
        };
        let changes = matches!(
            call,
            Allocate
                | Bind
                | CloneFile
                | CopyRange
                | CreateDir
                | CreateImage
                | Mount
                | RemoveDir
                | RemoveFile
                | Rename
                | SetLength
                | Unmount
                | WriteFile
                | WriteImage
                | ZeroRange
        );
        let path = Path::new(target);
        let inside = ["pool", "kubelet"].iter().any(|part| path.starts_with(self.root.join(part)));
        if changes && (!inside || target.contains("/..")) {
            self.trespasses.0.lock().expect("lock").push(format!("{call:?} {target}"));
        }
        Ok(())
    }

    fn after(&self, _: Call, _: &str) -> io::Result<()> {
        Ok(())
    }
}

impl Room {
    /// Makes it: a tmpfs, on it an XFS for the pool and directories for kubelet, and a driver that serves.
    pub fn new() -> Self {
        let os = Os::new();
        os.own_mounts().expect("mounts of our own: run this as root");
        let root = tempfile::Builder::new().prefix("holdfast-fuzz-").tempdir().expect("tempdir").keep();
        os.mount(Path::new("tmpfs"), &root, "tmpfs", MountFlags::default(), "mode=0700").expect("tmpfs");
        // Too small for the size a volume has when none is asked for: to overwrite that with zeroes takes long.
        let disk = root.join("disk");
        fs::File::create(&disk).and_then(|file| file.set_len(1 << 30)).expect("a disk");
        command("mkfs.xfs", &["-q", "-m", "reflink=1", &disk.display().to_string()]);
        for part in ["pool", "kubelet", "decoy/inner"] {
            fs::create_dir_all(root.join(part)).expect("mkdir");
        }
        command("mount", &["-o", "loop", &disk.display().to_string(), &root.join("pool").display().to_string()]);
        for part in ["stage-0", "stage-1", "pods"] {
            fs::create_dir(root.join("kubelet").join(part)).expect("mkdir");
        }
        fs::write(root.join("decoy/file"), "untouched").expect("a decoy");
        std::os::unix::fs::symlink(root.join("decoy"), root.join("kubelet/link")).expect("a link");
        let trespasses = Trespasses::default();
        let watched = Os::intercepted(Box::new(Watched { root: root.clone(), trespasses: trespasses.clone() }));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let socket = root.join("csi.sock");
        served(&runtime, &watched, &root.join("pool"), &socket);
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("an endpoint");
        let channel = runtime.block_on(async {
            loop {
                match endpoint.connect().await {
                    Ok(channel) => return channel,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        let mounts = os.mounts().expect("mountinfo").entries().len();
        let decoy = listing(&root.join("decoy"));
        Self { runtime, channel, os, root, trespasses, mounts, decoy }
    }

    /// Where kubelet's directories are.
    pub fn kubelet(&self) -> PathBuf {
        self.root.join("kubelet")
    }

    /// Sends one message.
    pub fn call(&self, path: &str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
        let path = path.parse().expect("a path");
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        self.runtime.block_on(async {
            let call = async {
                grpc.ready().await.expect("the driver serves");
                grpc.unary(tonic::Request::new(message), path, Bytes).await.map(tonic::Response::into_inner)
            };
            tokio::time::timeout(PATIENCE, call).await.expect("the driver hangs")
        })
    }

    /// No mount, no loop, no file, no trespass.
    pub fn nothing_is_left(&self) {
        let trespasses = std::mem::take(&mut *self.trespasses.0.lock().expect("lock"));
        assert!(trespasses.is_empty(), "outside the room: {trespasses:?}");
        let mounts = self.os.mounts().expect("mountinfo");
        assert_eq!(mounts.entries().len(), self.mounts, "mounts: {:?}", mounts.entries().iter().rev().take(3));
        let pool = self.os.identity(&self.root.join("pool")).expect("stat").expect("the pool");
        assert!(self.os.loops_beside(&pool).expect("loops").is_empty(), "a loop device is left");
        for part in ["volumes", "snapshots", "trash"] {
            let left = listing(&self.root.join("pool").join(part));
            assert!(left.is_empty(), "left in {part}: {left}");
        }
        assert_eq!(listing(&self.root.join("decoy")), self.decoy, "the decoy was touched");
        let left: Vec<_> =
            fs::read_dir(self.kubelet().join("pods")).expect("pods").flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "targets are left: {left:?}");
    }
}

fn served(runtime: &Runtime, os: &Os, pool: &Path, socket: &Path) {
    let spec = PoolSpec::file("test".parse().expect("a name"), pool).expect("a pool");
    let config = Config {
        serving: Serving {
            socket: socket.to_owned(),
            metrics: None,
            log_format: LogFormat::default(),
            log_level: LogLevel::default(),
        },
        node: NODE.parse().expect("a node"),
        pools: vec![PoolConfig { spec, limits: SpaceLimits::default() }],
        registration: None,
    };
    let driver = runtime.block_on(Standalone::open(config, os.clone())).expect("the driver starts");
    runtime.spawn(async move {
        let (_never, stop) = Stop::channel();
        driver.serve(stop).await.expect("it serves");
    });
}

#[expect(clippy::disallowed_methods, reason = "mount and mkfs of the room the driver is tried in")]
fn command(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect(program);
    assert!(status.success(), "{program}");
}

/// Names and contents, flat.
fn listing(directory: &Path) -> String {
    let mut all: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().collect();
    all.sort_by_key(fs::DirEntry::file_name);
    let text = |entry: &fs::DirEntry| {
        let content = fs::read_to_string(entry.path()).unwrap_or_default();
        format!("{:?} {:?} {content:?}\n", entry.file_name(), entry.file_type().ok())
    };
    all.iter().map(text).collect()
}

/// Messages as they are on the wire.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; from.remaining()];
        from.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}
