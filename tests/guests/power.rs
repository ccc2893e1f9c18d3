//! Disks that lose, when their guest loses power, what was written and not flushed.
//!
//! QEMU's driver `blklogwrites` lies over such a disk and logs every write and flush in the format of dm-log-writes
//! (Documentation/admin-guide/device-mapper/log-writes.rst of Linux). The power cut builds the disk again from its
//! content at the boot and that log.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::harness::run;

/// Bytes of a sector of the log; a header is one.
pub(crate) const SECTOR: u64 = 512;
/// A disk writes so many bytes atomically: a request may be torn there.
const ATOMIC: usize = 4096;
/// LOG_FLUSH_FLAG, LOG_FUA_FLAG and LOG_DISCARD_FLAG of drivers/md/dm-log-writes.c.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// What a disk keeps of the writes after its last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Nothing.
    Nothing,
    /// Some sectors, chosen by this seed.
    Some(u64),
}

/// What a power cut did to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The flushes since the boot.
    pub(crate) flushes: usize,
    /// The writes up to the last of them.
    pub(crate) kept: usize,
    /// The writes after it.
    pub(crate) unflushed: usize,
}

/// A disk and the log of what its guest did to it since it booted.
#[derive(Debug)]
pub(crate) struct Recording {
    disk: PathBuf,
    /// The content at the boot.
    before: PathBuf,
    pub(crate) log: PathBuf,
}

impl Recording {
    /// Begins, before the guest boots; its files are in a directory under this number.
    pub(crate) fn begin(disk: &Path, directory: &Path, number: usize) -> Self {
        let (before, log) = (directory.join(format!("before{number}")), directory.join(format!("log{number}")));
        let (from, to) = (disk.to_str().unwrap(), before.to_str().unwrap());
        run("/usr/bin/env", &["cp", "--sparse=always", "--reflink=auto", from, to]);
        File::create(&log).unwrap();
        Self { disk: disk.to_owned(), before, log }
    }

    /// Puts the disk in the state after the power cut. QEMU has ended.
    pub(crate) fn cut(&self, left: Left) -> Cut {
        let log = File::open(&self.log).unwrap();
        let entries = entries(&log);
        let until = entries.iter().rposition(|entry| entry.flags & (FLUSH | FUA) != 0).map_or(0, |last| last + 1);
        let (flushed, unflushed) = entries.split_at(until);
        let disk = OpenOptions::new().write(true).open(&self.before).unwrap();
        for entry in flushed {
            disk.write_all_at(&entry.data(&log), entry.offset).unwrap();
        }
        if let Left::Some(mut seed) = left {
            for entry in unflushed {
                let data = entry.data(&log);
                for (sector, at) in data.chunks(ATOMIC).zip((entry.offset..).step_by(ATOMIC)) {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    if seed >> 63 == 1 {
                        disk.write_all_at(sector, at).unwrap();
                    }
                }
            }
        }
        fs::rename(&self.before, &self.disk).unwrap();
        let writes = |among: &[Entry]| among.iter().filter(|entry| entry.length > 0).count();
        let flushes = flushed.iter().filter(|entry| entry.flags & (FLUSH | FUA) != 0).count();
        Cut { flushes, kept: writes(flushed), unflushed: writes(unflushed) }
    }
}

/// One request: what it wrote, in bytes of the disk, and where the log has it.
#[derive(Debug)]
struct Entry {
    offset: u64,
    length: u64,
    flags: u64,
    at: u64,
}

impl Entry {
    fn data(&self, log: &File) -> Vec<u8> {
        let mut data = vec![0; usize::try_from(self.length).unwrap()];
        log.read_exact_at(&mut data, self.at).unwrap();
        data
    }
}

/// The requests in their order. The count in the log's first sector is not used: QEMU writes it with a flush only. QEMU
/// has one thread for files (`thread-pool-max`), so all requests are whole except, after a SIGKILL, the last.
fn entries(log: &File) -> Vec<Entry> {
    let end = log.metadata().unwrap().len();
    let mut entries = Vec::new();
    let mut at = SECTOR;
    while at + SECTOR <= end {
        let mut header = [0_u8; 32];
        log.read_exact_at(&mut header, at).unwrap();
        let [sector, sectors, flags, _] =
            [0, 8, 16, 24].map(|from| u64::from_le_bytes(header[from..from + 8].try_into().unwrap()));
        at += SECTOR;
        let length = sectors * SECTOR;
        if header == [0; 32] || at + length > end {
            break;
        }
        // QEMU passes no discard on unless it is told to.
        assert_eq!(flags & DISCARD, 0, "a discard in {header:?}");
        entries.push(Entry { offset: sector * SECTOR, length, flags, at });
        at += length;
    }
    assert!(!entries.is_empty(), "the log of {end} bytes has no request");
    entries
}
