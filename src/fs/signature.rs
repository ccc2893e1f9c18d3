//! Describes the content of a device for an error message, from a small table of well-known signatures.
//!
//! For messages only; no decision depends on it. A result is a guess that helps an operator find out what wrote to a
//! device. No result does not mean that the device is blank (docs/design.md section 8).

use std::fmt;

use super::probe::{Contents, Found};
use crate::os::{BlockDevice, Os};

/// The number of bytes that are read from the start and from the end: the ring of a ZFS label ends there.
const WINDOW: u64 = 256 * 1024;

/// The position of a signature.
#[derive(Clone, Copy)]
enum At {
    /// Bytes from the start.
    Start(usize),
    /// Bytes before the end; the position is then rounded down to a multiple of the second value.
    End(usize, usize),
    /// Anywhere at a multiple of 1 KiB in the second half of the window: a ZFS uberblock.
    Ring,
}

/// The most specific signatures come first: a LUKS or RAID header may be followed by remains of older content, and FAT
/// has the mark of a partition table.
const TABLE: &[(&str, At, &[u8])] = &[
    ("a LUKS header (encrypted data)", At::Start(0), b"LUKS\xba\xbe"),
    ("a BitLocker volume (encrypted data)", At::Start(3), b"-FVE-FS-"),
    ("an LVM physical volume", At::Start(512), b"LABELONE"),
    ("an LVM physical volume", At::Start(0), b"LABELONE"),
    ("a Linux RAID member (version 1.1)", At::Start(0), b"\xfc\x4e\x2b\xa9"),
    ("a Linux RAID member (version 1.2)", At::Start(4096), b"\xfc\x4e\x2b\xa9"),
    ("a Linux RAID member (version 1.0)", At::End(8192, 4096), b"\xfc\x4e\x2b\xa9"),
    ("a Linux RAID member (version 0.90)", At::End(65536, 65536), b"\xfc\x4e\x2b\xa9"),
    ("a ZFS pool member", At::Ring, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    ("a ZFS pool member", At::Ring, b"\x00\x00\x00\x00\x00\xba\xb1\x0c"),
    ("a Ceph BlueStore device", At::Start(0), b"bluestore block device"),
    ("a bcache device", At::Start(4096 + 24), b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    ("swap space", At::Start(4096 - 10), b"SWAPSPACE2"),
    ("swap space", At::Start(4096 - 10), b"SWAP-SPACE"),
    ("a hibernated system's memory", At::Start(4096 - 10), b"S1SUSPEND"),
    ("btrfs", At::Start(65536 + 64), b"_BHRfS_M"),
    ("bcachefs", At::Start(4096 + 24), b"\xc6\x85\x73\xf6\x66\xce\x90\xa9"),
    ("F2FS", At::Start(1024), b"\x10\x20\xf5\xf2"),
    ("EROFS", At::Start(1024), b"\xe2\xe1\xf5\xe0"),
    ("NILFS2", At::Start(1024 + 6), b"\x34\x34"),
    ("JFS", At::Start(32768), b"JFS1"),
    ("ReiserFS", At::Start(65536 + 52), b"ReIsEr"),
    ("GFS2", At::Start(65536), b"\x01\x16\x19\x70"),
    ("OCFS2", At::Start(8192), b"OCFSV2"),
    ("HFS+", At::Start(1024), b"H+\x00\x04"),
    ("APFS", At::Start(32), b"NXSB"),
    ("Minix", At::Start(1024 + 16), b"\x7f\x13"),
    ("Minix", At::Start(1024 + 16), b"\x8f\x13"),
    ("Minix", At::Start(1024 + 16), b"\x68\x24"),
    ("Minix", At::Start(1024 + 16), b"\x78\x24"),
    ("Minix", At::Start(1024 + 24), b"\x5a\x4d"),
    ("BFS", At::Start(0), b"\xce\xfa\xad\x1b"),
    ("cramfs", At::Start(0), b"\x45\x3d\xcd\x28"),
    ("squashfs", At::Start(0), b"hsqs"),
    ("an ISO 9660 image", At::Start(32768 + 1), b"CD001"),
    ("UDF", At::Start(32768 + 1), b"BEA01"),
    ("NTFS", At::Start(3), b"NTFS    "),
    ("exFAT", At::Start(3), b"EXFAT   "),
    ("FAT", At::Start(54), b"FAT12   "),
    ("FAT", At::Start(54), b"FAT16   "),
    ("FAT", At::Start(82), b"FAT32   "),
    ("a GPT partition table", At::Start(512), b"EFI PART"),
    ("a GPT partition table", At::Start(4096), b"EFI PART"),
    ("a partition table or a boot sector", At::Start(510), b"\x55\xaa"),
    ("a gzip archive", At::Start(0), b"\x1f\x8b\x08"),
    ("a QCOW image", At::Start(0), b"QFI\xfb"),
    ("a tar archive", At::Start(257), b"ustar"),
    // Last, because the parsers of these two recognize them more reliably.
    ("an ext2, ext3 or ext4 superblock", At::Start(1024 + 0x38), b"\x53\xef"),
    ("an XFS superblock", At::Start(0), b"XFSB"),
];

/// The result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A signature of the table.
    Label(&'static str),
    /// Only zeroes where signatures are; the bytes in between are unknown.
    Zeroes,
    /// No signature of the table.
    Unknown,
    /// It could not be read.
    Unreadable,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(name) => write!(f, "it looks like {name}"),
            Self::Zeroes => f.write_str("its beginning and its end are zeroes"),
            Self::Unknown => f.write_str("it has no known signature"),
            Self::Unreadable => f.write_str("it cannot be read completely"),
        }
    }
}

/// The content of a device as text: its superblocks if there are any, otherwise its signature.
#[must_use]
pub fn describe(os: &Os, device: &BlockDevice, contents: &Contents) -> String {
    if [&contents.ext4, &contents.xfs].into_iter().any(|found| *found != Found::Absent) {
        return contents.to_string();
    }
    format!("{contents} ({})", look(os, device))
}

/// Reads the beginning and the end of a device. An error is a result here, because no decision depends on it.
#[must_use]
pub fn look(os: &Os, device: &BlockDevice) -> Seen {
    let read = || {
        let size = os.device_size(device).ok()?;
        let length = usize::try_from(size.min(WINDOW)).ok()?;
        let (mut head, mut tail) = (vec![0; length], vec![0; length]);
        os.read_device(device, 0, &mut head).ok()?;
        os.read_device(device, size - size.min(WINDOW), &mut tail).ok()?;
        Some(name(&head, &tail, size))
    };
    read().unwrap_or(Seen::Unreadable)
}

/// The first matching signature in the first and last bytes of a device of `size` bytes.
#[must_use]
pub fn name(head: &[u8], tail: &[u8], size: u64) -> Seen {
    let found = TABLE.iter().find(|(_, at, magic)| match *at {
        At::Start(offset) => matches(head, offset, magic),
        At::End(back, align) => before_end(tail, size, back, align).is_some_and(|offset| matches(tail, offset, magic)),
        At::Ring => {
            let half = head.len().min(128 * 1024);
            (half..head.len()).step_by(1024).any(|offset| matches(head, offset, magic))
        }
    });
    match found {
        Some((name, ..)) => Seen::Label(name),
        None if head.iter().chain(tail).all(|byte| *byte == 0) => Seen::Zeroes,
        None => Seen::Unknown,
    }
}

fn matches(bytes: &[u8], offset: usize, magic: &[u8]) -> bool {
    offset.checked_add(magic.len()).and_then(|end| bytes.get(offset..end)) == Some(magic)
}

/// The position in the tail that is `back` bytes before the end, rounded down to `align`.
fn before_end(tail: &[u8], size: u64, back: usize, align: usize) -> Option<usize> {
    let place = size.checked_sub(u64::try_from(back).ok()?)?;
    let place = place - place.checked_rem(u64::try_from(align).ok()?)?;
    let begins = size.checked_sub(u64::try_from(tail.len()).ok()?)?;
    usize::try_from(place.checked_sub(begins)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn device(offset: usize, magic: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut all = vec![0; usize::try_from(MIB).unwrap()];
        all[offset..offset + magic.len()].copy_from_slice(magic);
        let window = usize::try_from(WINDOW).unwrap();
        (all[..window].to_vec(), all[all.len() - window..].to_vec())
    }

    #[test]
    fn every_label_of_the_table_is_found_where_it_lies() {
        for (label, at, magic) in TABLE {
            let end = usize::try_from(MIB).unwrap();
            let offset = match at {
                At::Start(offset) => *offset,
                At::End(back, align) => (end - back) / align * align,
                At::Ring => 128 * 1024 + 5 * 1024,
            };
            let (head, tail) = device(offset, magic);
            assert_eq!(name(&head, &tail, MIB), Seen::Label(label));
        }
    }

    #[test]
    fn no_label_is_not_called_blank() {
        let (head, tail) = device(0, b"");
        assert_eq!(name(&head, &tail, MIB), Seen::Zeroes);
        assert!(!Seen::Zeroes.to_string().contains("blank") && !Seen::Zeroes.to_string().contains("empty"));
        let (head, tail) = device(0, b"hello");
        assert_eq!(name(&head, &tail, MIB), Seen::Unknown);
        assert_eq!(name(&[], &[], 0), Seen::Zeroes);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            head in proptest::collection::vec(any::<u8>(), 0..2048),
            tail in proptest::collection::vec(any::<u8>(), 0..2048),
            size in any::<u64>(),
        ) {
            let _ = name(&head, &tail, size);
        }
    }
}
