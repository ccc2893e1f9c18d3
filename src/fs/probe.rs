//! Reads the ext4 and XFS superblocks in the first bytes of a device: pure parsers, with checksums.
//!
//! `Absent` means only that these bytes are not a superblock. This module never decides whether a device is blank. A
//! device that cannot be read has no result at all (docs/design.md section 8).

use std::fmt;

use uuid::Uuid;

use crate::os::{BlockDevice, Os};
use crate::types::{FsType, OsContext, Result};

/// The number of bytes that are read: the largest sector that an XFS superblock can fill.
pub const HEAD: usize = 32 * 1024;

/// The result at the position of a filesystem's superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No superblock of this filesystem.
    Absent,
    /// A valid superblock.
    Valid(Superblock),
    /// An inconsistent superblock.
    Damaged {
        /// The inconsistency.
        what: String,
    },
}

/// A superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The filesystem.
    pub fs: FsType,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its health according to the superblock.
    pub health: Health,
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes per block.
    pub block_size: u32,
    /// Blocks that may be unused at the end because they do not fill a block group (ext4); 0 for XFS.
    pub slack: u64,
}

/// The health of a filesystem according to its superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Cleanly unmounted (ext4), or no error mark (XFS: the log may contain more).
    Clean,
    /// Not unmounted: its journal is replayed at the next mount.
    Unclean,
    /// The kernel has found errors in it: EXT4_ERROR_FS, XFS_SB_FEAT_INCOMPAT_NEEDSREPAIR.
    Errors,
}

impl Superblock {
    /// The size of the filesystem in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(u64::from(self.block_size))
    }
}

impl fmt::Display for Superblock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with UUID {}", self.fs, self.uuid)
    }
}

/// The results of both filesystems for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The result for ext4.
    pub ext4: Found,
    /// The result for XFS.
    pub xfs: Found,
}

impl Contents {
    /// The result for one filesystem.
    #[must_use]
    pub fn of(&self, fs: FsType) -> &Found {
        match fs {
            FsType::Ext4 => &self.ext4,
            FsType::Xfs => &self.xfs,
        }
    }

    /// The valid superblocks.
    pub fn valid(&self) -> impl Iterator<Item = &Superblock> {
        [&self.ext4, &self.xfs].into_iter().filter_map(|found| match found {
            Found::Valid(superblock) => Some(superblock),
            Found::Absent | Found::Damaged { .. } => None,
        })
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = false;
        for (fs, found) in [(FsType::Ext4, &self.ext4), (FsType::Xfs, &self.xfs)] {
            let comma = if said { ", and " } else { "" };
            match found {
                Found::Absent => continue,
                Found::Valid(superblock) => write!(f, "{comma}an {superblock}")?,
                Found::Damaged { what } => write!(f, "{comma}a damaged {fs} superblock ({what})")?,
            }
            said = true;
        }
        if said { Ok(()) } else { f.write_str("no superblock of ext4 or XFS") }
    }
}

/// Reads and parses the first bytes of a device.
///
/// # Errors
/// `Internal` when they cannot all be read: then nothing is known about the content, least of all that there is none.
pub fn probe(os: &Os, device: &BlockDevice) -> Result<Contents> {
    let mut head = vec![0; HEAD];
    os.read_device(device, 0, &mut head)
        .at(|| format!("cannot read the first {HEAD} bytes of {}: its content is unknown", device.path().display()))?;
    Ok(Contents { ext4: ext4(&head), xfs: xfs(&head) })
}

/// The same from the disk, bypassing the page cache: for a mounted filesystem.
///
/// # Errors
/// As [`probe`].
pub fn probe_disk(os: &Os, device: &BlockDevice) -> Result<Contents> {
    let head = os
        .read_device_direct(device, 0, HEAD)
        .at(|| format!("cannot read the first {HEAD} bytes of {} from the disk", device.path().display()))?;
    Ok(Contents { ext4: ext4(&head), xfs: xfs(&head) })
}

fn damaged(what: impl Into<String>) -> Found {
    Found::Damaged { what: what.into() }
}

/// Little- and big-endian fields of a superblock; `None` past its end.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    fn u8(self, offset: usize) -> Option<u8> {
        self.0.get(offset).copied()
    }

    fn le16(self, offset: usize) -> Option<u16> {
        self.bytes(offset).map(u16::from_le_bytes)
    }

    fn le32(self, offset: usize) -> Option<u32> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    fn be16(self, offset: usize) -> Option<u16> {
        self.bytes(offset).map(u16::from_be_bytes)
    }

    fn be32(self, offset: usize) -> Option<u32> {
        self.bytes(offset).map(u32::from_be_bytes)
    }

    fn be64(self, offset: usize) -> Option<u64> {
        self.bytes(offset).map(u64::from_be_bytes)
    }
}

/// `struct ext4_super_block` of fs/ext4/ext4.h, 1024 bytes at offset 1024. ext2 and ext3 look the same here.
#[must_use]
pub fn ext4(head: &[u8]) -> Found {
    match head.get(1024..2048) {
        Some(bytes) => ext4_fields(bytes).unwrap_or_else(|| damaged("it is truncated")),
        None => damaged("fewer than 2048 bytes were given"),
    }
}

fn ext4_fields(bytes: &[u8]) -> Option<Found> {
    const VALID_FS: u16 = 1;
    const ERROR_FS: u16 = 2;
    const INCOMPAT_RECOVER: u32 = 0x4;
    const INCOMPAT_64BIT: u32 = 0x80;
    const RO_COMPAT_METADATA_CSUM: u32 = 0x400;
    let fields = Fields(bytes);
    if fields.le16(0x38)? != 0xef53 {
        return Some(Found::Absent);
    }
    let (incompat, ro_compat) = (fields.le32(0x60)?, fields.le32(0x64)?);
    if ro_compat & RO_COMPAT_METADATA_CSUM != 0 {
        // ext4_superblock_csum: CRC32c of all before the field, seeded with ~0 and not inverted at the end.
        let expected = !crc32c::crc32c(bytes.get(..0x3fc)?);
        if fields.le32(0x3fc)? != expected {
            return Some(damaged("its checksum is wrong"));
        }
    }
    let log_block_size = fields.le32(0x18)?;
    let Some(block_size) = 1024_u32.checked_shl(log_block_size).filter(|size| (1024..=65536).contains(size)) else {
        return Some(damaged(format!("its block size is 1024 << {log_block_size}")));
    };
    let high = if incompat & INCOMPAT_64BIT != 0 { fields.le32(0x150)? } else { 0 };
    let blocks = u64::from(high) << 32 | u64::from(fields.le32(0x4)?);
    let (per_group, inodes_per_group) = (fields.le32(0x20)?, fields.le32(0x28)?);
    if blocks == 0 || per_group == 0 || inodes_per_group == 0 {
        return Some(damaged("it has no blocks or no inodes"));
    }
    let state = fields.le16(0x3a)?;
    let health = if state & ERROR_FS != 0 {
        Health::Errors
    } else if state & VALID_FS == 0 || incompat & INCOMPAT_RECOVER != 0 {
        Health::Unclean
    } else {
        Health::Clean
    };
    // resize2fs and the kernel leave out a last group that has space for little more than its own tables.
    let inode_table = u64::from(inodes_per_group) * u64::from(fields.le16(0x58)?) / u64::from(block_size);
    let tables =
        inode_table.saturating_add(2 + 64 + u64::from(fields.le16(0xce)?) + blocks / u64::from(per_group) / 32);
    let slack = tables.min(u64::from(per_group));
    let uuid = Uuid::from_bytes(fields.bytes(0x68)?);
    Some(Found::Valid(Superblock { fs: FsType::Ext4, uuid, health, blocks, block_size, slack }))
}

/// `struct xfs_dsb` of fs/xfs/libxfs/xfs_format.h, one sector at offset 0.
#[must_use]
pub fn xfs(head: &[u8]) -> Found {
    xfs_fields(head).unwrap_or_else(|| damaged("it is truncated"))
}

fn xfs_fields(head: &[u8]) -> Option<Found> {
    const INCOMPAT_NEEDSREPAIR: u32 = 0x10;
    const CRC: usize = 224;
    let fields = Fields(head);
    if fields.bytes(0)? != *b"XFSB" {
        return Some(Found::Absent);
    }
    let sector = usize::from(fields.be16(102)?);
    if !sector.is_power_of_two() || !(512..=HEAD).contains(&sector) {
        return Some(damaged(format!("its sector size is {sector}")));
    }
    let version = fields.be16(100)? & 0xf;
    let mut health = Health::Clean;
    if version == 5 {
        let mut whole = head.get(..sector)?.to_vec();
        whole.get_mut(CRC..CRC + 4)?.fill(0);
        if fields.le32(CRC)? != crc32c::crc32c(&whole) {
            return Some(damaged("its checksum is wrong"));
        }
        if fields.be32(216)? & INCOMPAT_NEEDSREPAIR != 0 {
            health = Health::Errors;
        }
    } else if version != 4 {
        return Some(damaged(format!("its version is {version}")));
    }
    if fields.u8(126)? != 0 {
        return Some(damaged("mkfs.xfs did not finish it"));
    }
    let (block_size, blocks) = (fields.be32(4)?, fields.be64(8)?);
    if !block_size.is_power_of_two() || !(512..=65536).contains(&block_size) || blocks == 0 {
        return Some(damaged(format!("it has {blocks} blocks of {block_size} bytes")));
    }
    let uuid = Uuid::from_bytes(fields.bytes(32)?);
    Some(Found::Valid(Superblock { fs: FsType::Xfs, uuid, health, blocks, block_size, slack: 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn zeroes_are_absent_and_a_short_read_is_not() {
        assert_eq!(ext4(&[0; HEAD]), Found::Absent);
        assert_eq!(xfs(&[0; HEAD]), Found::Absent);
        assert!(matches!(ext4(&[0; 100]), Found::Damaged { .. }));
        assert!(matches!(xfs(&[0; 2]), Found::Damaged { .. }));
    }

    #[test]
    fn a_bit_that_flipped_is_damage_never_absence() {
        let mut head = vec![0; HEAD];
        head[1024 + 0x38] = 0x53;
        head[1024 + 0x39] = 0xef;
        head[1024 + 0x65] = 0x04;
        assert_eq!(ext4(&head), damaged("its checksum is wrong"));
        head[..4].copy_from_slice(b"XFSB");
        assert!(matches!(xfs(&head), Found::Damaged { .. }));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = (ext4(&bytes), xfs(&bytes));
        }

        #[test]
        fn arbitrary_fields_behind_the_magic_never_panic(bytes in proptest::collection::vec(any::<u8>(), 4096)) {
            let mut bytes = bytes;
            bytes[..4].copy_from_slice(b"XFSB");
            bytes[1024 + 0x38] = 0x53;
            bytes[1024 + 0x39] = 0xef;
            prop_assert_ne!(ext4(&bytes), Found::Absent);
            prop_assert_ne!(xfs(&bytes), Found::Absent);
        }
    }
}
