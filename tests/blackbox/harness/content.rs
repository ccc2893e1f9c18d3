//! Content that can be verified byte for byte, and the properties of an image that are visible from outside.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Whence, lseek64};
use uuid::Uuid;

use super::Use;

const PIECE: usize = 1 << 20;
const BLOCK: usize = 4096;

/// `length` bytes that depend on the seed and on nothing else (xorshift64).
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut made = Vec::with_capacity(length + 8);
    while made.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        made.extend_from_slice(&state.to_le_bytes());
    }
    made.truncate(length);
    made
}

fn files(seed: u64) -> [(&'static str, Vec<u8>); 4] {
    [
        ("small", bytes(seed, 11)),
        ("one page more", bytes(seed + 1, 4097)),
        ("deep/er/big", bytes(seed + 2, (3 << 20) + 7)),
        ("empty", Vec::new()),
    ]
}

/// Writes a small tree of files, all durable.
pub(crate) fn write_tree(root: &Path, seed: u64) {
    for (name, content) in files(seed) {
        let path = root.join(format!("tree-{seed}")).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = File::create(&path).unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
    }
    File::open(root).unwrap().sync_all().unwrap();
}

/// Compares a tree with what was written, byte for byte.
pub(crate) fn check_tree(root: &Path, seed: u64) {
    for (name, content) in files(seed) {
        let path = root.join(format!("tree-{seed}")).join(name);
        let found = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(found == content, "{}: not what was written", path.display());
    }
}

/// Writes files of 1 MiB, each durable, until the filesystem mounted here is full to its last byte; returns how many.
/// Only a write may fail, for lack of the volume's own space: an fsync never does.
pub(crate) fn fill_filesystem(root: &Path, seed: u64) -> u64 {
    fs::create_dir(root.join("full")).unwrap();
    for number in 0.. {
        let mut file = match File::create_new(root.join("full").join(number.to_string())) {
            Ok(file) => file,
            Err(error) => return ends(root, number, &error),
        };
        let written = file.write_all(&bytes(seed + number, PIECE));
        file.sync_all().unwrap_or_else(|error| panic!("{}: fsync of file {number}: {error}", root.display()));
        if let Err(error) = written {
            return ends(root, number, &error);
        }
    }
    unreachable!()
}

fn ends(root: &Path, number: u64, error: &std::io::Error) -> u64 {
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{}: file {number}: {error}", root.display());
    let stat = nix::sys::statvfs::statvfs(root).unwrap();
    let left = stat.blocks_available() * stat.fragment_size();
    assert!(left < 2 << 20, "{}: file {number}: {error}, and it has {left} bytes left", root.display());
    number
}

/// Compares what [`fill_filesystem`] wrote, from the device, and deletes it.
pub(crate) fn empty_filesystem(root: &Path, seed: u64, count: u64) {
    for number in 0..count {
        let path = root.join("full").join(number.to_string());
        let file = File::open(&path).unwrap();
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        assert!(fs::read(&path).unwrap() == bytes(seed + number, PIECE), "{} differs", path.display());
    }
    fs::remove_dir_all(root.join("full")).unwrap();
}

/// Fills a part of a raw device or image, durably; whole MiB.
pub(crate) fn write_device(path: &Path, seed: u64, offset: u64, mib: u64) {
    let file = File::options().write(true).open(path).unwrap();
    for piece in 0..mib {
        file.write_all_at(&bytes(seed + piece, PIECE), offset + piece * (1 << 20)).unwrap();
    }
    file.sync_all().unwrap();
}

/// Compares a part of a raw device with what was written.
pub(crate) fn check_device(path: &Path, seed: u64, offset: u64, mib: u64) {
    let file = File::open(path).unwrap();
    let mut found = vec![0; PIECE];
    for piece in 0..mib {
        file.read_exact_at(&mut found, offset + piece * (1 << 20)).unwrap();
        assert!(found == bytes(seed + piece, PIECE), "{} differs in MiB {piece} from {offset}", path.display());
    }
}

/// Writes a chunk at an offset, durably, into a device or into a file, which is created if it is missing.
pub(crate) fn write_piece(path: &Path, seed: u64, offset: u64, length: usize) {
    let missing = !path.exists();
    let file = File::options().write(true).create(missing).open(path).unwrap();
    file.write_all_at(&bytes(seed, length), offset).unwrap();
    file.sync_all().unwrap();
    if missing {
        File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
    }
}

/// Compares a chunk with what was written; returns the difference as text.
pub(crate) fn check_piece(path: &Path, seed: u64, offset: u64, length: usize) -> Result<(), String> {
    let mut found = vec![0; length];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut found, offset));
    read.map_err(|error| format!("{} at {offset}: {error}", path.display()))?;
    let wanted = bytes(seed, length);
    if found == wanted {
        return Ok(());
    }
    let zeroes = found.iter().all(|byte| *byte == 0);
    let at = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted).unwrap();
    let but = if zeroes { "zeroes" } else { "something else" };
    Err(format!("{} at {offset}: from byte {at} of {length} it has {but}", path.display()))
}

/// The length of a chunk.
const CHUNK: usize = 64 << 10;

/// Where the chunk with this number is in a volume that is used so: a file, or a place in the device.
fn chunk(kind: Use, path: &Path, number: u64) -> (PathBuf, u64) {
    match kind {
        Use::Block => (path.to_owned(), number << 20),
        Use::Ext4 | Use::Xfs => (path.join(format!("chunk-{number}")), 0),
    }
}

/// Writes a chunk of a volume, durably; `path` is where it is mounted, or its device. A small raw volume has 16.
pub(crate) fn write_chunk(kind: Use, path: &Path, number: u64, seed: u64) {
    let (path, offset) = chunk(kind, path, number);
    write_piece(&path, seed, offset, CHUNK);
}

/// Compares the chunks of a volume with what was written: these seeds, from number 0 on.
pub(crate) fn check_chunks(kind: Use, path: &Path, seeds: &[u64]) {
    for (number, seed) in (0..).zip(seeds) {
        let (path, offset) = chunk(kind, path, number);
        check_piece(&path, *seed, offset, CHUNK).unwrap();
    }
}

/// Length and content of an image: equal when nothing was written.
pub(crate) fn checksum(path: &Path) -> (u64, u32) {
    let file = File::open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let mut sum = 0;
    let mut block = [0; BLOCK];
    let mut at = 0;
    // Holes and unwritten extents read as zeroes, and either may look like the other: only non-zero bytes and their
    // offsets count.
    while let Ok(data) = lseek64(&file, at, Whence::SeekData) {
        let hole = lseek64(&file, data, Whence::SeekHole).unwrap();
        at = data / 4096 * 4096;
        while at < hole {
            let count = file.read_at(&mut block, u64::try_from(at).unwrap()).unwrap();
            if block[..count] != [0; BLOCK][..count] {
                sum = crc32c::crc32c_append(sum, &at.to_le_bytes());
                sum = crc32c::crc32c_append(sum, &block[..count]);
            }
            at += 4096;
        }
    }
    (length, sum)
}

/// Bytes of storage behind a file.
pub(crate) fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Whether every byte of a file has storage behind it.
pub(crate) fn is_dense(path: &Path) -> bool {
    allocated(path) >= fs::metadata(path).unwrap().len()
}

/// The size of a mounted filesystem in bytes, as df reports it.
pub(crate) fn fs_size(path: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(path).unwrap();
    stat.blocks() * stat.fragment_size()
}

/// Bytes of a block device.
pub(crate) fn device_size(path: &Path) -> i64 {
    lseek64(File::open(path).unwrap(), 0, Whence::SeekEnd).unwrap()
}

/// The UUID in the superblock of an ext4 or XFS (offsets of their on-disk formats).
pub(crate) fn superblock_uuid(path: &Path) -> Uuid {
    let file = File::open(path).unwrap();
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).unwrap();
    let offset = if &magic == b"XFSB" { 32 } else { 1024 + 0x68 };
    let mut uuid = [0; 16];
    file.read_exact_at(&mut uuid, offset).unwrap();
    Uuid::from_bytes(uuid)
}
