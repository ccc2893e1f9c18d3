//! Image files: space, holes, clones and copies. Nothing here makes decisions.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, ResolveFlag, copy_file_range, fallocate};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek64};

use super::file_identity::FileIdentity;
use super::files::{OWN_FILE, open_plain};
use super::ioctl::{self, FIEMAP_BATCH, Fiemap, FiemapExtent, FiemapHeader};
use super::{Call, Os};

/// FS_XFLAG_EXTSIZE and FS_XFLAG_COWEXTSIZE of include/uapi/linux/fs.h.
const XFLAG_EXTSIZE: u32 = 0x0000_0800;
const XFLAG_COWEXTSIZE: u32 = 0x0001_0000;
/// FS_NOCOW_FL of include/uapi/linux/fs.h.
const NOCOW_FL: libc::c_long = 0x0080_0000;
/// FS_SYNC_FL of include/uapi/linux/fs.h.
const SYNC_FL: libc::c_long = 0x8;
/// FIEMAP flags of include/uapi/linux/fiemap.h.
const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;

/// The size of one write of [`Os::write_zeroes`], bytes.
const ZEROES: usize = 1 << 20;

/// A summary of the FIEMAP of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtentSummary {
    /// Number of extents.
    pub extents: u64,
    /// Bytes in extents that are not shared.
    pub exclusive: u64,
    /// Bytes in extents shared with another file.
    pub shared: u64,
    /// Bytes in allocated extents that were never written.
    pub unwritten: u64,
}

impl Os {
    /// Opens an image for reading and writing; `None` when it does not exist. No symbolic link in the path is followed,
    /// so the caller passes a canonical path.
    ///
    /// # Errors
    /// Those of openat2(2) except ENOENT: ELOOP for a symbolic link in the path; `InvalidInput` when it is not a
    /// regular file.
    pub fn open_image(&self, path: &Path) -> io::Result<Option<File>> {
        self.call(Call::OpenImage, &path.display(), || open_plain(&self.place(path), OFlag::O_RDWR))
    }

    /// Opens an image for reading; otherwise as [`Os::open_image`].
    ///
    /// # Errors
    /// Those of [`Os::open_image`].
    pub fn view_image(&self, path: &Path) -> io::Result<Option<File>> {
        self.call(Call::OpenImage, &path.display(), || open_plain(&self.place(path), OFlag::O_RDONLY))
    }

    /// The identity of an open image.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn image_identity(&self, file: &File, path: &Path) -> io::Result<FileIdentity> {
        self.call(Call::Identity, &path.display(), || Ok(FileIdentity::of(&file.metadata()?)))
    }

    /// Writes zeroes over `offset..offset+bytes`. Durable after [`Os::sync_file`].
    ///
    /// # Errors
    /// Those of pwrite(2); a part may be written.
    pub fn write_zeroes(&self, file: &File, path: &Path, offset: u64, bytes: u64) -> io::Result<()> {
        self.call(Call::WriteImage, &path.display(), || {
            let zeroes = vec![0; ZEROES];
            let end = offset.saturating_add(bytes);
            let mut position = offset;
            while position < end {
                let piece = usize::try_from(end - position).map_or(ZEROES, |left| left.min(ZEROES));
                file.write_all_at(zeroes.get(..piece).unwrap_or_default(), position)?;
                position = position.saturating_add(u64::try_from(piece).map_err(io::Error::other)?);
            }
            Ok(())
        })
    }

    /// Creates an empty image with mode 0600.
    ///
    /// # Errors
    /// Those of open(2); EEXIST when it exists.
    pub fn create_image(&self, path: &Path) -> io::Result<File> {
        self.call(Call::CreateImage, &path.display(), || {
            self.place(path).parent()?.open(OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL, OWN_FILE)
        })
    }

    /// ftruncate(2).
    ///
    /// # Errors
    /// Those of ftruncate(2).
    pub fn set_length(&self, file: &File, path: &Path, bytes: u64) -> io::Result<()> {
        self.call(Call::SetLength, &path.display(), || file.set_len(bytes))
    }

    /// fallocate(2) of the first `bytes` bytes: fills every hole with unwritten extents, keeps data, extends a shorter
    /// file to that length. Idempotent.
    ///
    /// # Errors
    /// Those of fallocate(2); after ENOSPC a part may be allocated.
    pub fn allocate(&self, file: &File, path: &Path, bytes: u64) -> io::Result<()> {
        self.call(Call::Allocate, &path.display(), || {
            fallocate(file.as_fd(), FallocateFlags::empty(), 0, signed(bytes)?).map_err(Into::into)
        })
    }

    /// FALLOC_FL_ZERO_RANGE over `offset..offset+bytes`, with the same length: allocated, unwritten, reads as zeroes.
    ///
    /// # Errors
    /// Those of fallocate(2); EOPNOTSUPP if the filesystem does not support it.
    pub fn zero_range(&self, file: &File, path: &Path, offset: u64, bytes: u64) -> io::Result<()> {
        self.call(Call::ZeroRange, &path.display(), || {
            let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file.as_fd(), flags, signed(offset)?, signed(bytes)?).map_err(Into::into)
        })
    }

    /// FALLOC_FL_PUNCH_HOLE over `offset..offset+bytes`: unallocated, reads as zeroes.
    ///
    /// # Errors
    /// Those of fallocate(2); EOPNOTSUPP if the filesystem does not support it.
    pub fn punch_hole(&self, file: &File, path: &Path, offset: u64, bytes: u64) -> io::Result<()> {
        self.call(Call::ZeroRange, &path.display(), || {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file.as_fd(), flags, signed(offset)?, signed(bytes)?).map_err(Into::into)
        })
    }

    /// FALLOC_FL_UNSHARE_RANGE: gives a reflinked file its own blocks, by copying the shared ones.
    ///
    /// # Errors
    /// Those of fallocate(2).
    pub fn unshare(&self, file: &File, path: &Path, bytes: u64) -> io::Result<()> {
        self.call(Call::Unshare, &path.display(), || {
            let flags = FallocateFlags::FALLOC_FL_UNSHARE_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file.as_fd(), flags, 0, signed(bytes)?).map_err(Into::into)
        })
    }

    /// The offset of the next data at or after `from` (SEEK_DATA of lseek(2)); `None` when there is none.
    ///
    /// A filesystem without support for it reports everything as data, never as a hole.
    ///
    /// # Errors
    /// Those of lseek(2) except ENXIO.
    pub fn next_data(&self, file: &File, path: &Path, from: u64) -> io::Result<Option<u64>> {
        self.call(Call::NextData, &path.display(), || seek(file, from, Whence::SeekData))
    }

    /// The offset of the next hole at or after `from` (SEEK_HOLE): at the latest the end of the file; `None` past the
    /// end.
    ///
    /// # Errors
    /// Those of lseek(2) except ENXIO.
    pub fn next_hole(&self, file: &File, path: &Path, from: u64) -> io::Result<Option<u64>> {
        self.call(Call::NextHole, &path.display(), || seek(file, from, Whence::SeekHole))
    }

    /// copy_file_range(2) of up to `bytes` bytes at the same offset in both; returns the number of copied bytes.
    ///
    /// # Errors
    /// Those of copy_file_range(2).
    pub fn copy_range(&self, from: &File, to: &File, to_path: &Path, offset: u64, bytes: u64) -> io::Result<u64> {
        self.call(Call::CopyRange, &to_path.display(), || {
            let (mut source, mut target) = (signed(offset)?, signed(offset)?);
            let length = usize::try_from(bytes).map_err(io::Error::other)?;
            let copied = copy_file_range(from.as_fd(), Some(&mut source), to.as_fd(), Some(&mut target), length)?;
            u64::try_from(copied).map_err(io::Error::other)
        })
    }

    /// FICLONE: `to` becomes a copy of `from` that shares its extents; atomic against writes to `from`.
    ///
    /// # Errors
    /// Those of ioctl_ficlone(2): EOPNOTSUPP or EXDEV if reflinks are not possible.
    pub fn clone_file(&self, from: &File, to: &File, to_path: &Path) -> io::Result<()> {
        self.call(Call::CloneFile, &to_path.display(), || ioctl::clone_file(from.as_fd(), to.as_fd()))
    }

    /// Sets the extent size hints of XFS for allocation (and copy-on-write) to `bytes`: fewer extents, cheaper
    /// snapshots. The file must be empty.
    ///
    /// # Errors
    /// Those of ioctl_xfs_fsgetxattr(2).
    pub fn set_extent_hints(&self, file: &File, path: &Path, bytes: u32, copy_on_write: CowHint) -> io::Result<()> {
        self.call(Call::SetExtentHints, &path.display(), || {
            let mut attr = ioctl::get_xattr(file.as_fd())?;
            attr.xflags |= XFLAG_EXTSIZE;
            attr.extsize = bytes;
            if copy_on_write == CowHint::Yes {
                attr.xflags |= XFLAG_COWEXTSIZE;
                attr.cowextsize = bytes;
            }
            ioctl::set_xattr(file.as_fd(), &attr)
        })
    }

    /// FS_NOCOW_FL on a directory: new files in it are written in place (btrfs).
    ///
    /// # Errors
    /// Those of ioctl_iflags(2).
    pub fn set_nocow(&self, directory: &Path) -> io::Result<()> {
        self.call(Call::SetNoCow, &directory.display(), || {
            let file = self.place(directory).open(OFlag::O_RDONLY, Mode::empty(), ResolveFlag::empty())?;
            let flags = ioctl::get_flags(file.as_fd())?;
            ioctl::set_flags(file.as_fd(), flags | NOCOW_FL)
        })
    }

    /// Whether an image has FS_SYNC_FL.
    ///
    /// # Errors
    /// Those of ioctl_iflags(2).
    pub fn is_synchronous(&self, file: &File, path: &Path) -> io::Result<bool> {
        self.call(Call::ImageFlags, &path.display(), || Ok(ioctl::get_flags(file.as_fd())? & SYNC_FL != 0))
    }

    /// FS_SYNC_FL on an image: each write is durable when it returns, whoever writes. False when it was set so already.
    /// Reads it back.
    ///
    /// # Errors
    /// Those of ioctl_iflags(2); EOPNOTSUPP when the filesystem does not keep the flag.
    pub fn set_synchronous(&self, file: &File, path: &Path, synchronous: bool) -> io::Result<bool> {
        self.call(Call::SetSynchronous, &path.display(), || {
            let flags = ioctl::get_flags(file.as_fd())?;
            if (flags & SYNC_FL != 0) == synchronous {
                return Ok(false);
            }
            ioctl::set_flags(file.as_fd(), if synchronous { flags | SYNC_FL } else { flags & !SYNC_FL })?;
            match (ioctl::get_flags(file.as_fd())? & SYNC_FL != 0) == synchronous {
                true => Ok(true),
                false => Err(Errno::EOPNOTSUPP.into()),
            }
        })
    }

    /// The number of extents of an image, without listing them.
    ///
    /// # Errors
    /// Those of FS_IOC_FIEMAP; EOPNOTSUPP if the filesystem does not support it.
    pub fn extent_count(&self, file: &File, path: &Path) -> io::Result<u64> {
        self.call(Call::Extents, &path.display(), || {
            let mut header = FiemapHeader { length: u64::MAX, flags: FIEMAP_FLAG_SYNC, ..FiemapHeader::default() };
            ioctl::fiemap_count(file.as_fd(), &mut header)?;
            Ok(u64::from(header.mapped_extents))
        })
    }

    /// The shared, exclusive and unwritten bytes of an image. Takes time for each extent.
    ///
    /// # Errors
    /// Those of FS_IOC_FIEMAP; EOPNOTSUPP if the filesystem does not support it.
    pub fn extents(&self, file: &File, path: &Path) -> io::Result<ExtentSummary> {
        self.call(Call::Extents, &path.display(), || {
            let mut summary = ExtentSummary::default();
            let mut start = 0;
            loop {
                let header = FiemapHeader {
                    start,
                    length: u64::MAX - start,
                    flags: FIEMAP_FLAG_SYNC,
                    ..FiemapHeader::default()
                };
                let mut request = Box::new(Fiemap { header, extents: [FiemapExtent::default(); FIEMAP_BATCH] });
                ioctl::fiemap(file.as_fd(), &mut request)?;
                let found = usize::try_from(request.header.mapped_extents).map_err(io::Error::other)?;
                for extent in request.extents.iter().take(found) {
                    summary.add(extent);
                    start = extent.logical.saturating_add(extent.length);
                    if extent.flags & FIEMAP_EXTENT_LAST != 0 {
                        return Ok(summary);
                    }
                }
                if found == 0 {
                    return Ok(summary);
                }
            }
        })
    }
}

/// Whether the copy-on-write hint is set too: only if the filesystem has reflinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CowHint {
    /// Set it.
    Yes,
    /// The filesystem has no reflinks.
    No,
}

impl ExtentSummary {
    fn add(&mut self, extent: &FiemapExtent) {
        self.extents += 1;
        if extent.flags & FIEMAP_EXTENT_SHARED == 0 {
            self.exclusive += extent.length;
        } else {
            self.shared += extent.length;
        }
        if extent.flags & FIEMAP_EXTENT_UNWRITTEN != 0 {
            self.unwritten += extent.length;
        }
    }
}

fn signed(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn seek(file: &File, from: u64, whence: Whence) -> io::Result<Option<u64>> {
    match lseek64(file.as_fd(), signed(from)?, whence) {
        Ok(offset) => u64::try_from(offset).map(Some).map_err(io::Error::other),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
