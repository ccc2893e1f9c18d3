//! The rules against real pools: image files on XFS with reflink and on ext4 without.

/// The scenarios of a file, run in both modes.
macro_rules! both_ways {
    ($($scenario:ident,)+) => {
        mod in_process {
            $(#[test] fn $scenario() { super::$scenario(super::Way::InProcess); })+
        }
        mod over_grpc {
            $(#[test] fn $scenario() { super::$scenario(super::Way::OverGrpc); })+
        }
    };
}

mod copies;
mod exports;
mod format;
mod grants;
mod later;
mod names;
mod pools;
mod retries;
mod space;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use super::record::{Record, VolumeRecord};
use super::*;
use crate::os::{Call, Interceptor, Os};
use crate::pool::{self, Object, ObjectKind, Pool};
use crate::testing::Loopback;
use crate::testing::scratch::{PoolFs, Scratch, spec};
use crate::types::*;

const NODE: &str = "node-1";

/// How the test calls the home.
#[derive(Clone, Copy)]
enum Way {
    InProcess,
    OverGrpc,
}

impl Way {
    fn to(self, local: LocalHome) -> (Arc<dyn Home>, Option<Loopback>) {
        match self {
            Self::InProcess => (Arc::new(local), None),
            Self::OverGrpc => {
                let wire = Loopback::new(Arc::new(local));
                (wire.home(), Some(wire))
            }
        }
    }
}

struct Rig {
    way: Way,
    _devices: Devices,
    home: Arc<dyn Home>,
    wire: Option<Loopback>,
    local: LocalHome,
    pool: Arc<dyn Pool>,
    os: Os,
    scratch: Scratch,
}

/// Detaches every device at the end of a run, unless the pool was taken out.
struct Devices(Option<Arc<dyn Pool>>);

impl Drop for Devices {
    fn drop(&mut self) {
        let Some(pool) = &self.0 else { return };
        for uuid in pool.list(ObjectKind::Volume).unwrap_or_default() {
            let _ = pool.local().deactivate(uuid);
        }
    }
}

impl Rig {
    fn on(way: Way, scratch: Scratch) -> Self {
        Self::with(way, Os::new(), scratch, SpaceLimits::default())
    }

    fn with(way: Way, os: Os, scratch: Scratch, limits: SpaceLimits) -> Self {
        let pool = pool::open(&os, &spec(&scratch.root()), &node()).unwrap();
        let local = LocalHome::open(os.clone(), node(), vec![(Arc::clone(&pool), limits)]).unwrap();
        let (home, wire) = way.to(local.clone());
        Self { way, _devices: Devices(Some(Arc::clone(&pool))), home, wire, local, pool, os, scratch }
    }

    /// Another run of the driver on the same pool.
    fn again(self) -> Self {
        let Self { way, _devices, home, wire, local, pool, scratch, .. } = self;
        drop((home, wire));
        // A copy's thread may still be ending, with the pool's lock.
        while Arc::strong_count(&local.shared) > 1 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        drop((_devices, local, pool));
        Self::on(way, scratch)
    }

    fn image(&self, id: &VolumeId) -> PathBuf {
        self.scratch.root().join("volumes").join(id.uuid.to_string()).join("data")
    }

    fn write(&self, id: &VolumeId, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.image(id)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
        file.sync_all().unwrap();
    }

    fn read(&self, id: &VolumeId, offset: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        std::fs::File::open(self.image(id)).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn create(&self, name: &str, mib: u64) -> Volume {
        self.home.create_volume(&request(name, mib)).unwrap().into_inner()
    }

    /// A volume that may be used as a filesystem and as a raw block device.
    fn create_for_both(&self, name: &str, mib: u64) -> Volume {
        let mut request = request(name, mib);
        request.capabilities.push(Capability { mode: VolumeMode::Block, access: AccessMode::SingleNodeMultiWriter });
        self.home.create_volume(&request).unwrap().into_inner()
    }

    fn grant(&self, id: &VolumeId) {
        self.home.grant(id, &grant()).unwrap();
    }
}

fn node() -> NodeId {
    NODE.parse().unwrap()
}

fn request(name: &str, mib: u64) -> CreateVolume {
    CreateVolume {
        name: name.to_owned(),
        range: CapacityRange { required: Some(Bytes::mib(mib)), limit: None },
        capabilities: vec![Capability {
            mode: VolumeMode::Mount(FsType::Ext4),
            access: AccessMode::SingleNodeMultiWriter,
        }],
        parameters: VolumeParameters::default(),
        source: None,
    }
}

fn from(name: &str, mib: u64, source: Source) -> CreateVolume {
    CreateVolume { source: Some(source), ..request(name, mib) }
}

fn grant() -> GrantRequest {
    GrantRequest {
        node: node(),
        mode: VolumeMode::Mount(FsType::Ext4).into(),
        access: AccessMode::SingleNodeMultiWriter,
        read_only: ReadOnly::No,
    }
}

fn snapshot_of(name: &str, source: VolumeId) -> CreateSnapshot {
    CreateSnapshot { name: name.to_owned(), source }
}

fn clean(result: Result<Created<Volume>, Failure>) -> Kind {
    clean_error(result).kind()
}

fn clean_error(result: Result<Created<Volume>, Failure>) -> Error {
    match result.unwrap_err() {
        Failure::Clean(error) => error,
        Failure::Dirty(error) => panic!("dirty: {}", error.chain()),
    }
}

/// Waits for a snapshot that is copied.
fn ready(rig: &Rig, id: SnapshotId) -> Snapshot {
    for _ in 0..500 {
        let snapshot = rig.home.snapshot(&id).unwrap();
        if snapshot.copy == CopyState::Ready {
            return snapshot;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{id} is never ready");
}

/// Retries a create as the provisioner does.
fn until_made(rig: &Rig, request: &CreateVolume) -> Volume {
    for _ in 0..500 {
        match rig.home.create_volume(request) {
            Ok(created) => return created.into_inner(),
            Err(Failure::Dirty(error)) if error.kind() == Kind::Busy => {}
            Err(failure) => panic!("{}", failure.error().chain()),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} is never made", request.name);
}

/// Blocks every copy_file_range until it is released.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, open: bool) {
        *self.open.lock().unwrap() = open;
        self.changed.notify_all();
    }
}

struct Gated(Arc<Gate>);

impl Interceptor for Gated {
    fn before(&self, call: Call, _target: &str) -> io::Result<()> {
        if call == Call::CopyRange {
            let open = self.0.open.lock().unwrap();
            drop(self.0.changed.wait_while(open, |open| !*open).unwrap());
        }
        Ok(())
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}

/// Fails every write of a record with this error while it is set.
struct Unwritable(Gated, Arc<Mutex<Option<i32>>>);

impl Interceptor for Unwritable {
    fn before(&self, call: Call, target: &str) -> io::Result<()> {
        let a_record = target.contains(".json") || target.ends_with("/reserve");
        if let (Call::WriteFile, true, Some(error)) = (call, a_record, *self.1.lock().unwrap()) {
            return Err(io::Error::from_raw_os_error(error));
        }
        self.0.before(call, target)
    }

    fn after(&self, _call: Call, _target: &str) -> io::Result<()> {
        Ok(())
    }
}
