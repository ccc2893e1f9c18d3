//! Where the driver lives while it is fuzzed, and how what it touches is watched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::config::{Config, LogLevel, PoolConfig, Serving};
use holdfast::daemon::{Standalone, Stop};
use holdfast::home::SpaceLimits;
use holdfast::os::{Call, Interceptor, MountFlags, Os};
use holdfast::pool::PoolSpec;
use holdfast::telemetry::LogFormat;
use holdfast::testing::scratch::{Cache, Disk, PoolFs, Scratch, Store};
use prost::bytes::{Buf, BufMut};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};

/// The node of the driver.
pub const NODE: &str = "node-a";
/// A call that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the driver names the devices of staged volumes. Here it is a tmpfs of the room's own.
const LINKS: &str = "/run/holdfast/dev";

/// A driver and its surroundings.
pub struct Room {
    runtime: Runtime,
    channel: Channel,
    os: Os,
    /// Its disk and the directories of kubelet are in one tmpfs.
    scratch: Scratch,
    trespasses: Trespasses,
    mounts: usize,
    decoy: String,
}

/// Changing calls with a target outside the room.
#[derive(Clone, Default)]
struct Trespasses(Arc<Mutex<Vec<String>>>);

struct Watched {
    inside: [PathBuf; 3],
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
        let inside = self.inside.iter().any(|part| path.starts_with(part));
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
        // Too small for the size a volume has when none is asked for: to overwrite that with zeroes takes long.
        let disk = Disk { store: Store::Memory, cache: Cache::Buffered, ..Disk::of(1 << 30) };
        let scratch = Scratch::on(PoolFs::Xfs, disk);
        let (os, root) = (scratch.os().clone(), scratch.path().to_owned());
        for part in ["kubelet", "decoy/inner"] {
            fs::create_dir_all(root.join(part)).expect("mkdir");
        }
        for part in ["stage-0", "stage-1", "pods"] {
            fs::create_dir(root.join("kubelet").join(part)).expect("mkdir");
        }
        fs::write(root.join("decoy/file"), "untouched").expect("a decoy");
        std::os::unix::fs::symlink(root.join("decoy"), root.join("kubelet/link")).expect("a link");
        let trespasses = Trespasses::default();
        let watched = Os::intercepted(Box::new(Watched {
            inside: [scratch.root(), root.join("kubelet"), LINKS.into()],
            trespasses: trespasses.clone(),
        }));
        fs::create_dir_all(LINKS).expect("mkdir");
        os.mount(Path::new("tmpfs"), Path::new(LINKS), "tmpfs", MountFlags::default(), "mode=0700").expect("a tmpfs");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let socket = root.join("csi.sock");
        served(&runtime, &watched, &scratch.root(), &socket);
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
        Self { runtime, channel, os, scratch, trespasses, mounts, decoy }
    }

    /// Where kubelet's directories are.
    pub fn kubelet(&self) -> PathBuf {
        self.scratch.beside("kubelet")
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
        assert!(self.scratch.loops().is_empty(), "a loop device is left");
        for part in ["volumes", "snapshots", "trash"] {
            let left = listing(&self.scratch.root().join(part));
            assert!(left.is_empty(), "left in {part}: {left}");
        }
        let left = listing(Path::new(LINKS));
        assert!(left.is_empty(), "links to devices are left: {left}");
        assert_eq!(listing(&self.scratch.beside("decoy")), self.decoy, "the decoy was touched");
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
