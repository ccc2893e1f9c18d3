//! Distinguishes versions of a file without reading it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::FileStat;

use super::{Call, Os};

/// A file as stat(2) shows it. Another file of the same name is another version, and so is other content in the same
/// file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    mode: u32,
}

impl FileVersion {
    pub(super) fn of(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
            mode: stat.st_mode,
        }
    }

    /// Whether a user who is neither the owner nor in the file's group may read it.
    #[must_use]
    pub fn readable_by_all(&self) -> bool {
        self.mode & 0o004 != 0
    }
}

impl Os {
    /// The version of the file at a path, through symbolic links; `None` when it does not exist.
    ///
    /// # Errors
    /// Those of stat(2) except ENOENT and ENOTDIR.
    pub fn version(&self, path: &Path) -> io::Result<Option<FileVersion>> {
        self.call(Call::Identity, &path.display(), || match fs::metadata(path) {
            Ok(meta) => Ok(Some(FileVersion {
                device: meta.dev(),
                inode: meta.ino(),
                size: meta.len(),
                modified: (meta.mtime(), meta.mtime_nsec()),
                changed: (meta.ctime(), meta.ctime_nsec()),
                mode: meta.mode(),
            })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        })
    }
}
