//! The filesystem under a pool: identified by the magic number of statfs(2), then by tests. A name guarantees nothing,
//! so reflinks and preallocation are tested on two small files each time the owner opens the pool.

use std::io;

use super::super::{Ability, BackingFs, Cloning};
use super::layout::Layout;
use crate::os::{CowHint, Os};
use crate::types::{Error, Kind, OsContext, Result};

/// A snapshot of an image with more extents than this is rejected. Writes wait about 20 microseconds per extent during
/// a clone (0.74 s measured for 40 000 extents), so this is some 4 s.
pub(super) const MAX_EXTENTS: u64 = 200_000;
/// XFS allocates an image, and copies on write, in units of this many bytes.
const EXTENT_HINT: u32 = 1 << 20;

/// The filesystems that a pool may be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filesystem {
    /// Supports everything, if it was created with reflinks.
    Xfs,
    /// Thick and thin; clones are copies.
    Ext4,
    /// Images are created without copy-on-write (+C), so space cannot be reserved permanently: thin only.
    Btrfs,
    /// For tests.
    Fuse,
}

/// The result of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) cloning: Cloning,
    pub(super) thick: Ability,
}

impl Filesystem {
    /// The filesystem of the pool at this root.
    ///
    /// # Errors
    /// `Unsupported`, with the filesystem's name or magic number, for one that no pool may be on.
    pub(super) fn of(os: &Os, layout: &Layout, ground: BackingFs) -> Result<Self> {
        let root = layout.root().display();
        let magic = os.fs_space(layout.root()).at(|| format!("statfs {root}"))?.magic;
        let refused = |what: &str, why: &str| {
            Err(Error::new(
                Kind::Unsupported,
                format!("{root} cannot hold a pool: it is on {what}, {why}; use a directory on XFS, ext4 or btrfs"),
            ))
        };
        let network = "a network filesystem, which other machines can lock and write";
        let memory = "which loses its content at a reboot";
        match magic {
            0x5846_5342 => Ok(Self::Xfs),
            0xef53 => Ok(Self::Ext4),
            0x9123_683e => Ok(Self::Btrfs),
            0x6573_5546 if ground == BackingFs::FuseForTests => Ok(Self::Fuse),
            0x6573_5546 => refused("FUSE", "whose fsync gives no known guarantee"),
            0x6969 => refused("NFS", network),
            0x517b | 0xff53_4d42 | 0xfe53_4d42 => refused("SMB", network),
            0x00c3_6400 => refused("CephFS", network),
            0x0102_1997 => refused("9p", network),
            0x0bd0_0bd0 => refused("Lustre", network),
            0x5346_414f | 0x6b41_4653 => refused("AFS", network),
            0x0116_1970 => refused("GFS2", network),
            0x7461_636f => refused("OCFS2", network),
            0x794c_7630 => refused("overlayfs", "a container's own layer, which is deleted with the container"),
            0x0102_1994 => refused("tmpfs", memory),
            0x8584_58f6 => refused("ramfs", memory),
            other => refused(&format!("a filesystem with magic number {other:#x}"), "which was not tested for pools"),
        }
    }

    /// Prepares the directories for images: +C where the filesystem would otherwise copy on write.
    pub(super) fn prepare(self, os: &Os, directory: &std::path::Path) -> Result<()> {
        if self == Self::Btrfs {
            os.set_nocow(directory).at(|| format!("set No_COW (chattr +C) on {}", directory.display()))?;
        }
        Ok(())
    }

    /// Sets attributes that can only be set while an image is empty.
    pub(super) fn hint(self, os: &Os, file: &std::fs::File, path: &std::path::Path, cloning: Cloning) -> Result<()> {
        if self != Self::Xfs {
            return Ok(());
        }
        let cow = match cloning {
            Cloning::Instant { .. } => CowHint::Yes,
            Cloning::Copy | Cloning::None => CowHint::No,
        };
        os.set_extent_hints(file, path, EXTENT_HINT, cow).at(|| format!("set extent size hints on {}", path.display()))
    }

    /// Tests what the filesystem supports, in a temporary directory of the pool.
    ///
    /// 1. Remove what an earlier test left. A crash leaves `.tmp-probe`, which the next test and `sweep` remove.
    /// 2. Create two files in the way images are created, one with a block of data.
    /// 3. FICLONE one onto the other; fallocate.
    /// 4. Remove them.
    ///
    /// # Errors
    /// `NoCapacity` when the filesystem is too full for the test; `Internal`.
    pub(super) fn probe(self, os: &Os, layout: &Layout) -> Result<Found> {
        let directory = layout.probe();
        let clean = || super::trash::delete_tree(os, layout, &directory);
        clean()?;
        let found = self.try_out(os, &directory);
        match (found, clean()) {
            (Ok(found), Ok(())) => Ok(found),
            (Err(error), Ok(())) | (Ok(_), Err(error)) => Err(error),
            (Err(error), Err(undo)) => Err(error.and_undo_failed(&undo)),
        }
    }

    fn try_out(self, os: &Os, directory: &std::path::Path) -> Result<Found> {
        let trying = |what: &str| format!("test what the filesystem supports: {what} in {}", directory.display());
        os.create_dir(directory).at(|| trying("mkdir"))?;
        self.prepare(os, directory)?;
        let (from, to) = (directory.join("from"), directory.join("to"));
        os.write_new(&from, &[1; 4096]).at(|| trying("write"))?;
        let source = os.view_image(&from).at(|| trying("open"))?;
        let source =
            source.ok_or_else(|| Error::new(Kind::Internal, trying("a file that was just created does not exist")))?;
        let target = os.create_image(&to).at(|| trying("create"))?;
        let cloning = match os.clone_file(&source, &target, &to) {
            Ok(()) => Cloning::Instant { max_extents: MAX_EXTENTS },
            Err(error) if cannot(&error) => Cloning::Copy,
            Err(error) => return Err(error).at(|| trying("FICLONE")),
        };
        let thick = match os.allocate(&target, &to, 1 << 16) {
            Ok(()) if self != Self::Btrfs => Ability::Yes,
            Ok(()) => Ability::No,
            Err(error) if cannot(&error) => Ability::No,
            Err(error) => return Err(error).at(|| trying("fallocate")),
        };
        Ok(Found { cloning, thick })
    }
}

/// Whether this error means that the filesystem does not support the operation.
pub(super) fn cannot(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EXDEV | libc::EINVAL | libc::ENOSYS))
}
