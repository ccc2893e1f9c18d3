//! A node with a real home, pool and kernel, in the test's own mount namespace. Faults apply to the node's own calls.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::fs::RequestedOptions;
use crate::home::{CreateVolume, FormatState, GrantRequest, Home, LocalHome, ReadOnly, SpaceLimits};
use crate::node::{ExpandRequest, Node, PublishRequest, StageRequest};
use crate::os::{Call, Interceptor, Os};
use crate::pool::{ObjectKind, Pool};
use crate::testing::scratch::{PoolFs, Scratch, home as node_id};
use crate::types::*;

pub(crate) const EXT4: VolumeMode = VolumeMode::Mount(FsType::Ext4);
pub(crate) const XFS: VolumeMode = VolumeMode::Mount(FsType::Xfs);
const ACCESS: AccessMode = AccessMode::SingleNodeMultiWriter;

pub(crate) struct Rig {
    pub(crate) node: Node,
    pub(crate) home: Arc<LocalHome>,
    pub(crate) faults: Faults,
    pub(crate) os: Os,
    pool: Option<Arc<dyn Pool>>,
    kubelet: tempfile::TempDir,
    scratch: Scratch,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::of(512)
    }

    pub(crate) fn of(mib: u64) -> Self {
        let scratch = Scratch::of(PoolFs::Xfs, mib);
        let pool = scratch.pool();
        let os = scratch.os().clone();
        let home = LocalHome::open(os.clone(), node_id(), vec![(Arc::clone(&pool), SpaceLimits::default())]).unwrap();
        let home = Arc::new(home);
        let faults = Faults::default();
        let intercepted = Os::intercepted(Box::new(faults.clone()));
        let node = Node::new(intercepted, node_id(), Arc::clone(&home) as Arc<dyn Home>);
        Self { node, home, faults, os, pool: Some(pool), kubelet: tempfile::tempdir().unwrap(), scratch }
    }

    /// Restarts the node's process.
    pub(crate) fn restart(&mut self) {
        let os = Os::intercepted(Box::new(self.faults.clone()));
        self.node = Node::new(os, node_id(), Arc::clone(&self.home) as Arc<dyn Home>);
    }

    /// Restarts node and home, without the pool.
    pub(crate) fn without_pool(&mut self) {
        self.home = Arc::new(LocalHome::open(Os::new(), node_id(), Vec::new()).unwrap());
        self.restart();
    }

    /// Restarts node, home and pool: everything is read again.
    pub(crate) fn reopen(&mut self) {
        self.without_pool();
        self.pool = None;
        let os = Os::new();
        let pool = crate::pool::open(&os, &crate::testing::scratch::spec(&self.scratch.root()), &node_id()).unwrap();
        self.pool = Some(Arc::clone(&pool));
        self.os = os.clone();
        self.home = Arc::new(LocalHome::open(os, node_id(), vec![(pool, SpaceLimits::default())]).unwrap());
        self.restart();
    }

    pub(crate) fn pool(&self) -> &dyn Pool {
        self.pool.as_deref().unwrap()
    }

    /// A volume, attached to this node.
    pub(crate) fn volume(&self, name: &str, mib: u64, mode: VolumeMode) -> VolumeId {
        self.volume_with(name, mib, mode, &[])
    }

    pub(crate) fn volume_with(&self, name: &str, mib: u64, mode: VolumeMode, class: &[(&str, &str)]) -> VolumeId {
        self.volume_for(name, mib, &[mode], class)
    }

    /// A volume that was created for all these modes, attached in the first one.
    pub(crate) fn volume_for(&self, name: &str, mib: u64, modes: &[VolumeMode], class: &[(&str, &str)]) -> VolumeId {
        let parameters = class.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let request = CreateVolume {
            // Loop devices belong to the machine: another test's volume of the same name would have the same uuid.
            name: format!("{name}-{}", self.pool().identity().id),
            range: CapacityRange { required: Some(Bytes::mib(mib)), limit: None },
            capabilities: modes.iter().map(|mode| Capability { mode: *mode, access: ACCESS }).collect(),
            parameters: VolumeParameters::parse(&parameters).unwrap(),
            source: None,
        };
        let id = self.home.create_volume(&request).unwrap().into_inner().id;
        self.grant(&id, modes[0], ACCESS);
        id
    }

    pub(crate) fn grant(&self, id: &VolumeId, mode: VolumeMode, access: AccessMode) {
        let request = GrantRequest { node: node_id(), mode: mode.into(), access, read_only: ReadOnly::No };
        self.home.grant(id, &request).unwrap();
    }

    pub(crate) fn regrant(&self, id: &VolumeId, mode: VolumeMode, access: AccessMode) {
        self.home.revoke(id, None).unwrap();
        self.grant(id, mode, access);
    }

    pub(crate) fn format(&self, id: &VolumeId) -> FormatState {
        self.home.volume(id).unwrap().format
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.kubelet.path().canonicalize().unwrap().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.kubelet.path().canonicalize().unwrap().join(name)
    }

    pub(crate) fn stage_request(&self, volume: VolumeId, mode: VolumeMode) -> StageRequest {
        let staging = self.directory(&format!("staging-{}", volume.uuid));
        StageRequest { volume, staging, mode: mode.into(), access: ACCESS, mount: RequestedOptions::default() }
    }

    pub(crate) fn publish_request(&self, volume: VolumeId, mode: VolumeMode, target: &str) -> PublishRequest {
        PublishRequest {
            volume,
            staging: Some(self.staging(&volume)),
            target: self.path(target),
            mode: mode.into(),
            access: ACCESS,
            read_only: ReadOnly::No,
            mount: RequestedOptions::default(),
        }
    }

    pub(crate) fn expand_request(&self, volume: VolumeId, path: &Path) -> ExpandRequest {
        ExpandRequest { volume, path: path.to_owned(), staging: None, range: CapacityRange::default() }
    }

    pub(crate) fn staging(&self, volume: &VolumeId) -> PathBuf {
        self.path(&format!("staging-{}", volume.uuid))
    }

    pub(crate) fn image(&self, id: &VolumeId) -> PathBuf {
        self.scratch.root().join("volumes").join(id.uuid.to_string()).join("data")
    }

    /// A checksum over every byte of a volume's image.
    pub(crate) fn bytes(&self, id: &VolumeId) -> u32 {
        let mut file = fs::File::open(self.image(id)).unwrap();
        let (mut sum, mut buffer) = (0, vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => return sum,
                count => sum = crc32c::crc32c_append(sum, &buffer[..count]),
            }
        }
    }

    /// Writes into a volume's image directly.
    pub(crate) fn write(&self, id: &VolumeId, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.image(id)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
        file.sync_all().unwrap();
    }

    /// Edits the ext4 superblock in a volume's image, and corrects its checksum.
    pub(crate) fn edit_ext4(&self, id: &VolumeId, edit: impl FnOnce(&mut [u8; 1024])) {
        let mut superblock = [0; 1024];
        fs::File::open(self.image(id)).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
        edit(&mut superblock);
        let sum = !crc32c::crc32c(&superblock[..0x3fc]);
        superblock[0x3fc..].copy_from_slice(&sum.to_le_bytes());
        self.write(id, 1024, &superblock);
    }

    /// A command that only tests need.
    pub(crate) fn shell(&self, script: &str) {
        let program = crate::os::Program::find("sh", Path::new("test"), std::time::Duration::from_secs(60)).unwrap();
        let output = self.os.run(&program.arg("-c").arg(script)).unwrap();
        assert!(output.success(), "{script}: {}", output.summary());
    }

    /// Loop devices over the volume's image, existing or deleted.
    pub(crate) fn loops(&self, id: &VolumeId) -> usize {
        let name = id.uuid.to_string();
        self.os.loop_views(|image| image.to_string_lossy().contains(&name)).unwrap().len()
    }

    pub(crate) fn depth(&self, path: &Path) -> usize {
        self.os.mounts().unwrap().depth(path)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.faults.clear();
        let root = self.kubelet.path().canonicalize().unwrap();
        while let Some(point) = self.os.mounts().ok().and_then(|table| {
            let below = |entry: &&crate::os::MountEntry| entry.mount_point.starts_with(&root);
            table.entries().iter().rev().find(below).map(|entry| entry.mount_point.clone())
        }) {
            if !self.os.unmount(&point).unwrap_or(false) {
                break;
            }
        }
        self.restart();
        for uuid in self.pool().list(ObjectKind::Volume).unwrap_or_default() {
            let _ = self.pool().local().deactivate(uuid);
        }
    }
}

/// A staged ext4 volume.
pub(crate) fn staged(rig: &Rig, name: &str) -> VolumeId {
    let id = rig.volume(name, 32, EXT4);
    rig.node.stage(&rig.stage_request(id, EXT4)).unwrap();
    id
}

/// The kind of a failed call's error.
pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.unwrap_err().kind()
}

/// Makes chosen calls fail, and records every call.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<Plan>>);

#[derive(Default)]
struct Plan {
    /// The n-th of all calls fails, before or after its effect.
    nth: Option<(usize, When)>,
    /// Every call of a kind fails.
    kinds: BTreeMap<Call, When>,
    count: usize,
    fired: bool,
    made: Vec<(Call, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    Before,
    After,
}

impl Faults {
    pub(crate) fn fail(&self, call: Call, when: When) {
        self.0.lock().unwrap().kinds.insert(call, when);
    }

    pub(crate) fn fail_nth(&self, n: usize, when: When) {
        let mut plan = self.0.lock().unwrap();
        *plan = Plan { nth: Some((n, when)), ..Plan::default() };
    }

    pub(crate) fn clear(&self) {
        *self.0.lock().unwrap() = Plan::default();
    }

    pub(crate) fn fired(&self) -> bool {
        self.0.lock().unwrap().fired
    }

    /// How often a program was run.
    pub(crate) fn runs(&self, program: &str) -> usize {
        let plan = self.0.lock().unwrap();
        plan.made.iter().filter(|(call, what)| *call == Call::Exec && what.starts_with(program)).count()
    }

    fn verdict(&self, call: Call, when: When) -> io::Result<()> {
        let mut plan = self.0.lock().unwrap();
        let nth = plan.nth == Some((plan.count, when));
        if nth || plan.kinds.get(&call) == Some(&when) {
            plan.fired = true;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }
}

impl Interceptor for Faults {
    fn before(&self, call: Call, target: &str) -> io::Result<()> {
        {
            let mut plan = self.0.lock().unwrap();
            plan.count += 1;
            plan.made.push((call, target.to_owned()));
        }
        self.verdict(call, When::Before)
    }

    fn after(&self, call: Call, _target: &str) -> io::Result<()> {
        self.verdict(call, When::After)
    }
}
