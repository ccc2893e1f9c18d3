//! Foreign content that a device may have: created by the tools of a Debian system if they are installed, or written as
//! bytes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::unistd::{Whence, lseek64};

use crate::harness::{run, try_run};

/// The size of every device of the corpus, in bytes: the smallest possible XFS.
pub(super) const SIZE: u64 = 320 << 20;
const SIZE_AS_INDEX: i64 = 320 << 20;

/// One kind of foreign content.
pub(super) struct Specimen {
    pub(super) name: &'static str,
    /// Words of which one must be in the refusal; none where the content cannot be identified.
    pub(super) said: &'static [&'static str],
    /// The content.
    pub(super) pieces: Vec<(u64, Vec<u8>)>,
}

impl Specimen {
    /// Writes it to an image of [`SIZE`] bytes.
    pub(super) fn write(&self, image: &Path) {
        let file = File::options().write(true).open(image).unwrap();
        for (offset, bytes) in &self.pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file.sync_all().unwrap();
    }
}

/// A tool of the corpus: name, program, arguments before the image, words.
type Tool = (&'static str, &'static str, &'static [&'static str], &'static [&'static str]);

/// Without these the test fails.
const TOOLS: &[Tool] = &[
    ("ext2", "mkfs.ext2", &["-q", "-F"], &["an ext4 with UUID"]),
    ("ext3", "mkfs.ext3", &["-q", "-F"], &["an ext4 with UUID"]),
    ("ext4", "mkfs.ext4", &["-q", "-F"], &["an ext4 with UUID"]),
    ("ext4 of 1 KiB blocks", "mkfs.ext4", &["-q", "-F", "-b", "1024"], &["an ext4 with UUID"]),
    ("ext4 journal", "mke2fs", &["-q", "-F", "-O", "journal_dev"], &["ext4 superblock", "an ext4"]),
    ("xfs", "mkfs.xfs", &["-q", "-f"], &["an xfs with UUID"]),
    ("xfs without checksums", "mkfs.xfs", &["-q", "-f", "-m", "crc=0"], &["an xfs with UUID"]),
    ("btrfs", "mkfs.btrfs", &["-q", "-f"], &["btrfs"]),
    ("minix 1", "mkfs.minix", &["-1"], &["Minix"]),
    ("minix 2", "mkfs.minix", &["-2"], &["Minix"]),
    ("minix 3", "mkfs.minix", &["-3"], &["Minix"]),
    ("bfs", "mkfs.bfs", &[], &["BFS"]),
    ("swap", "mkswap", &["-q"], &["swap"]),
];

/// These where they are installed.
const MORE_TOOLS: &[Tool] = &[
    ("vfat", "mkfs.vfat", &[], &["FAT"]),
    ("exfat", "mkfs.exfat", &[], &["exFAT"]),
    ("ntfs", "mkfs.ntfs", &["-F", "-Q", "-q"], &["NTFS"]),
    ("f2fs", "mkfs.f2fs", &["-q", "-f"], &["F2FS"]),
];

/// All of it; `ground` is a scratch directory.
pub(super) fn all(ground: &Path) -> Vec<Specimen> {
    let mut found: Vec<_> = TOOLS.iter().map(|tool| made(ground, tool).unwrap_or_else(|| missing(tool))).collect();
    found.extend(MORE_TOOLS.iter().filter_map(|tool| made(ground, tool)));
    found.extend(labels());
    found.extend(bytes_anywhere());
    found.extend(damaged(ground));
    found
}

fn missing((_, program, ..): &Tool) -> Specimen {
    panic!("{program} is missing: scripts/prepare test installs it")
}

/// The result of a tool on an empty device; `None` if the tool is not installed.
fn made(ground: &Path, (name, program, arguments, said): &Tool) -> Option<Specimen> {
    let found = ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|place| Path::new(place).join(program));
    let program = found.into_iter().find(|path| path.exists())?;
    let image = ground.join("specimen");
    File::create(&image).unwrap().set_len(SIZE).unwrap();
    let path = image.to_str().unwrap();
    let result = try_run(program.to_str().unwrap(), &[arguments, &[path][..]].concat());
    assert_eq!(result.code, Some(0), "{name}: {} {}", result.stdout, result.stderr);
    let specimen = Specimen { name, said, pieces: pieces(&image) };
    fs::remove_file(&image).unwrap();
    assert!(!specimen.pieces.is_empty(), "{name} wrote nothing");
    Some(specimen)
}

/// Where a file is not zero, in blocks.
fn pieces(image: &Path) -> Vec<(u64, Vec<u8>)> {
    let file = File::open(image).unwrap();
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(data) = lseek64(&file, at, Whence::SeekData) {
        at = lseek64(&file, data, Whence::SeekHole).unwrap().min(SIZE_AS_INDEX);
        for block in (data..at).step_by(4096) {
            let (mut bytes, offset) = (vec![0; 4096], u64::try_from(block).unwrap());
            file.read_exact_at(&mut bytes, offset).unwrap();
            if bytes.iter().any(|byte| *byte != 0) {
                found.push((offset, bytes));
            }
        }
    }
    found
}

fn label(name: &'static str, said: &'static [&'static str], pieces: &[(u64, &[u8])]) -> Specimen {
    Specimen { name, said, pieces: pieces.iter().map(|(offset, bytes)| (*offset, bytes.to_vec())).collect() }
}

/// Labels whose tools need a kernel or packages that are not everywhere, written where blkid looks for them.
fn labels() -> Vec<Specimen> {
    const RAID: &[u8] = b"\xfc\x4e\x2b\xa9\x01\x00\x00\x00";
    const UBERBLOCK: &[u8] = b"\x0c\xb1\xba\x00\x00\x00\x00\x00\x88\x13";
    let mbr = [b"\x00\x20\x21\x00\x83\x28\x20\x28\x00\x08\x00\x00\x00\x78\x09\x00".as_slice(), &[0; 48], b"\x55\xaa"]
        .concat();
    let mut fat = b"\xeb\x58\x90mkfs.fat\x00\x02\x08\x20\x00\x02".to_vec();
    fat.resize(82, 0);
    fat.extend_from_slice(b"FAT32   ");
    vec![
        label("MBR", &["partition table"], &[(446, &mbr)]),
        label("GPT", &["GPT"], &[(510, b"\x55\xaa"), (512, b"EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")]),
        label("GPT of 4 KiB sectors", &["GPT"], &[(4096, b"EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")]),
        label("GPT, only its copy at the end", &["no known signature"], &[(SIZE - 512, b"EFI PART\x00\x00\x01\x00")]),
        label("FAT", &["FAT"], &[(0, &fat), (510, b"\x55\xaa")]),
        label("NTFS", &["NTFS"], &[(0, b"\xeb\x52\x90NTFS    "), (510, b"\x55\xaa")]),
        label("exFAT", &["exFAT"], &[(0, b"\xeb\x76\x90EXFAT   "), (510, b"\x55\xaa")]),
        label("LUKS 1", &["LUKS"], &[(0, b"LUKS\xba\xbe\x00\x01aes\x00")]),
        label("LUKS 2", &["LUKS"], &[(0, b"LUKS\xba\xbe\x00\x02"), (16384, b"SKUL\xba\xbe\x00\x02")]),
        label("BitLocker", &["BitLocker"], &[(0, b"\xeb\x58\x90-FVE-FS-")]),
        label(
            "LVM",
            &["LVM"],
            &[(512, b"LABELONE\x01\x00\x00\x00\x00\x00\x00\x00\x8c\x4c\x5f\xb1\x20\x00\x00\x00LVM2 001")],
        ),
        label("RAID 0.90", &["RAID"], &[(SIZE - 65536, RAID)]),
        label("RAID 1.0", &["RAID"], &[(SIZE - 8192, RAID)]),
        label("RAID 1.1", &["RAID"], &[(0, RAID)]),
        label("RAID 1.2", &["RAID"], &[(4096, RAID)]),
        label("ZFS", &["ZFS"], &[(131_072 + 4096, UBERBLOCK), (SIZE - 131_072, UBERBLOCK)]),
        label(
            "bcache",
            &["bcache"],
            &[(4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81")],
        ),
        label("BlueStore", &["BlueStore"], &[(0, b"bluestore block device\n0f3a")]),
        label("hibernation", &["hibernated"], &[(4086, b"S1SUSPEND")]),
        label("ISO 9660", &["ISO"], &[(32768, b"\x01CD001\x01")]),
        label("ReiserFS", &["ReiserFS"], &[(65536 + 52, b"ReIsEr2Fs")]),
        label("JFS", &["JFS"], &[(32768, b"JFS1\x01\x00\x00\x00")]),
        label("squashfs", &["squashfs"], &[(0, b"hsqs\x04\x00\x00\x00")]),
        label("F2FS", &["F2FS"], &[(1024, b"\x10\x20\xf5\xf2\x01\x00")]),
        label("a shell script", &["no known signature"], &[(0, b"#!/bin/sh\nrm -rf /\n")]),
    ]
}

/// Bytes without a meaning, in places that a probe may miss.
fn bytes_anywhere() -> Vec<Specimen> {
    vec![
        label("the first byte", &["at byte 0", "no superblock"], &[(0, b"x")]),
        label("a byte after the labels", &[], &[(1 << 20, b"x")]),
        label("a byte in the middle", &[], &[(SIZE / 2 + 12_345, b"\x01")]),
        label("a byte in the last sector", &[], &[(SIZE - 300, b"x")]),
        label("the very last byte", &[], &[(SIZE - 1, b"\x80")]),
    ]
}

/// Superblocks with the right magic and something wrong with the rest.
fn damaged(ground: &Path) -> Vec<Specimen> {
    let cut = |name: &'static str, tool: &Tool, said, until: u64, spoil: &dyn Fn(&mut [u8])| {
        let mut specimen = made(ground, tool).unwrap_or_else(|| missing(tool));
        specimen.pieces.retain(|(offset, _)| *offset < until);
        specimen.pieces.iter_mut().filter(|(offset, _)| *offset == 0).for_each(|(_, bytes)| spoil(bytes));
        Specimen { name, said, ..specimen }
    };
    let ext4: &Tool = &("ext4", "mkfs.ext4", &["-q", "-F"], &[]);
    let xfs: &Tool = &("xfs", "mkfs.xfs", &["-q", "-f"], &[]);
    let whole = SIZE;
    vec![
        cut("ext4, a bit of its superblock flipped", ext4, &["damaged ext4"], whole, &|block| block[1024 + 0x7f] ^= 1),
        cut("ext4, its checksum gone", ext4, &["damaged ext4"], whole, &|block| block[2044..2048].fill(0)),
        cut("ext4, its magic gone", ext4, &["no superblock", "at byte 0"], whole, &|block| block[1080..1082].fill(0)),
        cut("ext4, its superblock only", ext4, &["an ext4 with UUID"], 4096, &|_| {}),
        cut("ext4, its first block blank", ext4, &["no superblock", "at byte"], whole, &|block| block.fill(0)),
        cut("xfs, a bit of its superblock flipped", xfs, &["damaged xfs"], whole, &|block| block[120] ^= 1),
        cut("xfs, its checksum gone", xfs, &["damaged xfs"], whole, &|block| block[224..228].fill(0)),
        cut("xfs, its magic gone", xfs, &["no superblock", "at byte 0"], whole, &|block| block[..4].fill(0)),
        cut("xfs, being made", xfs, &["damaged xfs"], whole, &|block| {
            block[126] = 1;
            block[224..228].fill(0);
            let sum = crc32c::crc32c(&block[..512]);
            block[224..228].copy_from_slice(&sum.to_le_bytes());
        }),
        cut("xfs, its superblock only", xfs, &["an xfs with UUID"], 4096, &|_| {}),
    ]
}

/// A copy of an image that takes no time, beside it in the pool's filesystem.
pub(super) fn reflink(from: &Path, to: &Path) {
    run("/usr/bin/cp", &["--reflink=always", from.to_str().unwrap(), to.to_str().unwrap()]);
}
