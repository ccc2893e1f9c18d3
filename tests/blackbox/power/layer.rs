//! A disk in user space: one file of a FUSE filesystem, over which a loop device carries the pool's filesystem. It logs
//! every write and flush, can fail, delay or shorten requests, and can be rebuilt as it was at any moment of a power
//! cut.

#![expect(clippy::disallowed_methods, reason = "the test mounts the ground its disks lie on")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::harness::own_mounts;

use super::log::{Entry, Log, SECTOR};

const ROOT: INodeNo = INodeNo(1);
const DISK: INodeNo = INodeNo(2);
/// The kernel asks again each time.
const KNOWN_FOR: Duration = Duration::ZERO;

/// A fault in place of normal requests.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Reads of these bytes fail.
    FailReads(Range<u64>),
    /// They return half of the requested bytes, in whole sectors, or nothing.
    ShortReads(Range<u64>),
    /// They take this long.
    SlowReads(Range<u64>, Duration),
    /// They are not answered while this fault is set.
    HoldReads(Range<u64>),
    /// What the disk's file is, its size and owner, is not answered while this stands.
    HoldAttributes,
    /// Writes of these bytes fail, once so many bytes were written there.
    FailWrites(Range<u64>, u64),
    /// Writes of these bytes are not answered while this fault is set, once so many bytes were written there.
    HoldWrites(Range<u64>, u64),
}

#[derive(Default)]
struct State {
    log: Vec<Entry>,
    flushes: usize,
    fault: Option<Fault>,
    /// Bytes written in the fault's range since it was set.
    written: u64,
    /// How often the fault took effect.
    hits: usize,
    /// Writes that are not answered yet.
    held: Vec<(u64, Vec<u8>, ReplyWrite)>,
    /// Reads that are not answered yet.
    held_reads: Vec<(u64, u32, ReplyData)>,
    /// The same of attributes.
    held_attributes: Vec<(INodeNo, ReplyAttr)>,
}

struct Shared {
    file: File,
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Writes, logs and answers.
    fn write(&self, state: &mut State, offset: u64, data: Vec<u8>, reply: ReplyWrite) {
        match self.file.write_all_at(&data, offset) {
            Ok(()) => {
                reply.written(u32::try_from(data.len()).unwrap());
                state.log.push(Entry::Write { offset, data });
            }
            Err(error) => reply.error(error.into()),
        }
    }
}

/// A tmpfs in a mount namespace of the thread's own: fast, and removed with the thread.
#[derive(Debug)]
pub(crate) struct DiskMemory {
    directory: tempfile::TempDir,
}

impl DiskMemory {
    pub(crate) fn new() -> Self {
        own_mounts();
        let directory = tempfile::Builder::new().prefix("holdfast-disk-").tempdir().unwrap();
        mount(Some("holdfast-test"), directory.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for DiskMemory {
    fn drop(&mut self) {
        // The remaining holder of a file, a loop device that is being detached, releases it in a moment.
        let _ = umount2(self.directory.path(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

/// The disk.
pub(crate) struct Layer {
    shared: Arc<Shared>,
    session: Option<BackgroundSession>,
    ground: DiskMemory,
    size: u64,
}

impl Layer {
    pub(crate) fn new(size: u64) -> Self {
        let ground = DiskMemory::new();
        let point = ground.path().join("layer");
        fs::create_dir(&point).unwrap();
        let file = File::options().read(true).write(true).create_new(true).open(ground.path().join("bytes")).unwrap();
        file.set_len(size).unwrap();
        let shared = Arc::new(Shared { file, state: Mutex::default() });
        let disk = Disk { size, shared: Arc::clone(&shared) };
        let mut config = Config::default();
        // A slow read must not delay all others.
        config.n_threads = Some(4);
        let session = fuser::spawn_mount(disk, &point, &config).expect("FUSE: /dev/fuse and root are needed");
        Self { shared, session: Some(session), ground, size }
    }

    /// The file that is the disk.
    pub(crate) fn disk(&self) -> PathBuf {
        self.ground.path().join("layer/disk")
    }

    /// How many flushes were answered so far.
    pub(crate) fn flushes(&self) -> usize {
        self.shared.lock().flushes
    }

    /// How many requests are in the log so far.
    pub(crate) fn requests(&self) -> usize {
        self.shared.lock().log.len()
    }

    /// Sets a fault; the one before ends.
    pub(crate) fn fault(&self, fault: Option<Fault>) {
        let mut state = self.shared.lock();
        state.fault = fault;
        state.written = 0;
        state.hits = 0;
        for (offset, data, reply) in std::mem::take(&mut state.held) {
            self.shared.write(&mut state, offset, data, reply);
        }
        for (ino, reply) in std::mem::take(&mut state.held_attributes) {
            reply.attr(&KNOWN_FOR, &attributes(self.size, ino));
        }
        for (offset, size, reply) in std::mem::take(&mut state.held_reads) {
            let mut data = vec![0; usize::try_from(size).unwrap()];
            match self.shared.file.read_exact_at(&mut data, offset) {
                Ok(()) => reply.data(&data),
                Err(error) => reply.error(error.into()),
            }
        }
    }

    /// How often the current fault took effect.
    pub(crate) fn hits(&self) -> usize {
        self.shared.lock().hits
    }

    /// The bytes written so far in the range of the current fault.
    pub(crate) fn written(&self) -> u64 {
        self.shared.lock().written
    }

    /// The log, once the disk is not used any more.
    pub(crate) fn into_log(mut self) -> Log {
        self.end();
        let entries = std::mem::take(&mut self.shared.lock().log);
        Log { entries, size: self.size }
    }

    fn end(&mut self) {
        let Some(session) = self.session.take() else { return };
        self.fault(None);
        // The loop device that used it goes a moment after its mount.
        for _ in 0..1000 {
            match umount2(&self.ground.path().join("layer"), MntFlags::UMOUNT_NOFOLLOW) {
                Err(nix::errno::Errno::EBUSY) => std::thread::sleep(Duration::from_millis(20)),
                result => {
                    result.unwrap();
                    session.join().unwrap();
                    return;
                }
            }
        }
        panic!("the layer is still in use");
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fault(None);
            let _ = umount2(&self.ground.path().join("layer"), MntFlags::MNT_DETACH);
        } else {
            self.end();
        }
    }
}

struct Disk {
    size: u64,
    shared: Arc<Shared>,
}

fn overlap(range: &Range<u64>, offset: u64, length: usize) -> bool {
    offset < range.end && range.start < offset + length as u64
}

fn attributes(disk: u64, ino: INodeNo) -> FileAttr {
    let (kind, perm, size) =
        if ino == ROOT { (FileType::Directory, 0o700, 0) } else { (FileType::RegularFile, 0o600, disk) };
    FileAttr {
        ino,
        size,
        blocks: size / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Disk {
    fn write_here(&self, offset: u64, data: &[u8], reply: ReplyWrite) {
        let mut state = self.shared.lock();
        let fault = state.fault.clone();
        if let Some(Fault::FailWrites(range, after) | Fault::HoldWrites(range, after)) = &fault
            && overlap(range, offset, data.len())
        {
            if state.written >= *after {
                state.hits += 1;
                if matches!(fault, Some(Fault::FailWrites(..))) {
                    return reply.error(Errno::EIO);
                }
                return state.held.push((offset, data.to_vec(), reply));
            }
            state.written += data.len() as u64;
        }
        self.shared.write(&mut state, offset, data.to_vec(), reply);
    }

    fn read_here(&self, offset: u64, size: u32) -> std::io::Result<Vec<u8>> {
        let length = usize::try_from(size).unwrap().min(usize::try_from(self.size - offset.min(self.size)).unwrap());
        let mut data = vec![0; length];
        self.shared.file.read_exact_at(&mut data, offset)?;
        let mut state = self.shared.lock();
        match state.fault.clone() {
            Some(Fault::FailReads(range)) if overlap(&range, offset, length) => {
                state.hits += 1;
                return Err(std::io::Error::from_raw_os_error(libc::EIO));
            }
            Some(Fault::ShortReads(range)) if overlap(&range, offset, length) => {
                state.hits += 1;
                data.truncate(length / 2 / SECTOR * SECTOR);
            }
            Some(Fault::SlowReads(range, pause)) if overlap(&range, offset, length) => {
                state.hits += 1;
                drop(state);
                std::thread::sleep(pause);
            }
            _ => {}
        }
        Ok(data)
    }
}

impl Filesystem for Disk {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Blocked writes must not use up the requests that may be in progress.
        let _ = config.set_max_background(4096);
        let _ = config.set_congestion_threshold(4096);
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).expect("a kernel with asynchronous direct I/O in FUSE");
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == ROOT && name == "disk" {
            reply.entry(&KNOWN_FOR, &attributes(self.size, DISK), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let mut state = self.shared.lock();
        if matches!(state.fault, Some(Fault::HoldAttributes)) {
            state.hits += 1;
            return state.held_attributes.push((ino, reply));
        }
        reply.attr(&KNOWN_FOR, &attributes(self.size, ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Nothing is kept in the page cache between the loop device and here.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.shared.lock();
        if let Some(Fault::HoldReads(range)) = &state.fault
            && overlap(range, offset, usize::try_from(size).unwrap())
        {
            state.hits += 1;
            return state.held_reads.push((offset, size, reply));
        }
        drop(state);
        match self.read_here(offset, size) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.write_here(offset, data, reply);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // close(2): it means nothing to a disk.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.shared.lock();
        state.log.push(Entry::Flush);
        state.flushes += 1;
        reply.ok();
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        // A disk without discard: it is not informed of freed blocks.
        reply.error(Errno::EOPNOTSUPP);
    }
}
