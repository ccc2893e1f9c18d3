//! Directories and small files. Each change is durable when the method returns.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{OFlag, RenameFlags, ResolveFlag, renameat, renameat2};
use nix::sys::stat::{Mode, SFlag, mkdirat};
use nix::sys::statfs::fstatfs;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::file_identity::FileIdentity;
use super::root::Place;
use super::{Call, Os};

/// The largest record or configuration file; a larger file is rejected without reading it.
const MAX_SMALL_FILE: u64 = 1 << 20;
/// The mode of every file: access for its owner only.
pub(super) const OWN_FILE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// The space of a filesystem (statfs(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsSpace {
    /// `f_type`: the filesystem's magic number.
    pub magic: i64,
    /// Total bytes.
    pub total: u64,
    /// Bytes available to an unprivileged user (`f_bavail`).
    pub available: u64,
    /// Free bytes (`f_bfree`): `available` and the part reserved for root.
    pub free: u64,
    /// Total inodes; 0 where they are not counted (btrfs).
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

/// The type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

impl Os {
    /// Reads a small file whole; `None` when it does not exist.
    ///
    /// # Errors
    /// Any error of open(2) or read(2) except ENOENT; `InvalidData` for a file over 1 MiB.
    pub fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.call(Call::Read, &path.display(), || match File::open(path) {
            Ok(file) => read_small(file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// Reads a small file whole, as [`Os::read`], but follows no symbolic link anywhere in its path.
    ///
    /// # Errors
    /// Those of [`Os::read`]; ELOOP for a symbolic link in the path; `InvalidInput` when it is not a regular file.
    pub fn read_plain(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.call(Call::Read, &path.display(), || {
            open_plain(&self.place(path), OFlag::O_RDONLY)?.map(read_small).transpose()
        })
    }

    /// The type of a path itself, without following links; `None` when it does not exist.
    ///
    /// # Errors
    /// Those of lstat(2) except ENOENT and ENOTDIR.
    pub fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        self.call(Call::Identity, &path.display(), || {
            let stat = self.place(path).parent().and_then(|at| at.stat().map_err(Into::into));
            match stat.map(|stat| SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())) {
                Ok(SFlag::S_IFLNK) => Ok(Some(Entry::Symlink)),
                Ok(SFlag::S_IFDIR) => Ok(Some(Entry::Directory)),
                Ok(SFlag::S_IFREG) => Ok(Some(Entry::File)),
                Ok(_) => Ok(Some(Entry::Other)),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        })
    }

    /// The path without symbolic links, `.` and `..`; `None` when it does not exist.
    ///
    /// # Errors
    /// Those of realpath(3) except ENOENT.
    pub fn canonical(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        self.call(Call::Identity, &path.display(), || match fs::canonicalize(path) {
            Ok(path) => Ok(Some(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// Creates a directory with mode 0700 (its parents must exist).
    ///
    /// # Errors
    /// Those of mkdir(2), including EEXIST.
    pub fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Call::CreateDir, &path.display(), || {
            let at = self.place(path).parent()?;
            mkdirat(at.directory(), at.name(), Mode::S_IRWXU).map_err(Into::into)
        })
    }

    /// Creates a directory with the mode of a mount point for pods (0750), unless it exists.
    ///
    /// # Errors
    /// Those of mkdir(2), except EEXIST of a directory.
    pub fn ensure_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Call::CreateDir, &path.display(), || match fs::DirBuilder::new().mode(0o750).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            result => result,
        })
    }

    /// Creates a directory of the driver's own with its parents, mode 0700, unless it exists. Not durable.
    ///
    /// # Errors
    /// Those of mkdir(2), except EEXIST of a directory.
    pub fn ensure_own_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Call::CreateDir, &path.display(), || fs::DirBuilder::new().recursive(true).mode(0o700).create(path))
    }

    /// Creates a symbolic link, or replaces one in one step. Not durable.
    ///
    /// # Errors
    /// Those of symlink(2) and rename(2): EISDIR where a directory is.
    pub fn link(&self, path: &Path, to: &Path) -> io::Result<()> {
        self.call(Call::Link, &path.display(), || {
            let temporary = path.with_added_extension("new");
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => symlink(to, &temporary)?,
            }
            fs::rename(&temporary, path)
        })
    }

    /// Creates an empty file (the target of a bind mount), unless it exists.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn ensure_file(&self, path: &Path) -> io::Result<()> {
        self.call(Call::WriteFile, &path.display(), || {
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
        })
    }

    /// Replaces a file atomically: writes a temporary file beside it, fsync, rename, fsync of the directory.
    ///
    /// A crash leaves the old content or the new, and perhaps `<name>.tmp`, which the next write replaces.
    ///
    /// # Errors
    /// Those of open, write, fsync, rename. After an error the file has its old content, or the new one if only the
    /// last fsync failed. The temporary file is removed if possible.
    pub fn replace_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let temporary = path.with_added_extension("tmp");
        if let Err(error) = self.write_new(&temporary, content).and_then(|()| self.rename(&temporary, path)) {
            // If it remains, the next write replaces it; the first error is reported.
            let _ = self.remove_file(&temporary);
            return Err(error);
        }
        self.sync_dir(parent(path)?)
    }

    /// Writes and fsyncs a file, and truncates an existing one (a symbolic link is an error). Its name is durable after
    /// [`Os::sync_dir`].
    ///
    /// # Errors
    /// Those of open, write and fsync.
    pub fn write_new(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = self.call(Call::WriteFile, &path.display(), || {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
            let mut file = self.place(path).parent()?.open(flags, OWN_FILE)?;
            file.write_all(content)?;
            Ok(file)
        })?;
        self.call(Call::SyncFile, &path.display(), || file.flush().and_then(|()| file.sync_all()))
    }

    /// Replaces the content of an open file durably, in place: the existing blocks are used, the blocks after the new
    /// content are freed.
    ///
    /// # Errors
    /// Those of pwrite, ftruncate and fsync; its content is then undefined.
    pub fn write_over(&self, file: &File, path: &Path, content: &[u8]) -> io::Result<()> {
        self.call(Call::WriteFile, &path.display(), || {
            file.write_all_at(content, 0)?;
            file.set_len(content.len() as u64)
        })?;
        self.sync_file(file, path)
    }

    /// fsync(2) of an open file.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
        self.call(Call::SyncFile, &path.display(), || file.sync_all())
    }

    /// fsync(2) of a directory: makes its entries durable.
    ///
    /// # Errors
    /// Those of open(2) and fsync(2).
    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Call::SyncDir, &path.display(), || {
            self.place(path).open(OFlag::O_RDONLY, Mode::empty(), ResolveFlag::empty())?.sync_all()
        })
    }

    /// rename(2).
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Call::Rename, &to.display(), || {
            let (from, to) = (self.place(from).parent()?, self.place(to).parent()?);
            renameat(from.directory(), from.name(), to.directory(), to.name()).map_err(Into::into)
        })
    }

    /// Exchanges the names of two files on one filesystem atomically (RENAME_EXCHANGE of rename(2)).
    ///
    /// # Errors
    /// Those of renameat2(2): ENOENT when one is missing, EINVAL if the filesystem does not support it.
    pub fn exchange(&self, one: &Path, other: &Path) -> io::Result<()> {
        self.call(Call::Exchange, &other.display(), || {
            let (one, other) = (self.place(one).parent()?, self.place(other).parent()?);
            let flags = RenameFlags::RENAME_EXCHANGE;
            renameat2(one.directory(), one.name(), other.directory(), other.name(), flags).map_err(Into::into)
        })
    }

    /// unlink(2); true when the file existed.
    ///
    /// # Errors
    /// Those of unlink(2) except ENOENT.
    pub fn remove_file(&self, path: &Path) -> io::Result<bool> {
        self.call(Call::RemoveFile, &path.display(), || gone_is_fine(self.unlink(path, UnlinkatFlags::NoRemoveDir)))
    }

    /// rmdir(2), never recursive; true when the directory existed.
    ///
    /// # Errors
    /// Those of rmdir(2) except ENOENT.
    pub fn remove_dir(&self, path: &Path) -> io::Result<bool> {
        self.call(Call::RemoveDir, &path.display(), || gone_is_fine(self.unlink(path, UnlinkatFlags::RemoveDir)))
    }

    fn unlink(&self, path: &Path, flags: UnlinkatFlags) -> io::Result<()> {
        let at = self.place(path).parent()?;
        unlinkat(at.directory(), at.name(), flags).map_err(Into::into)
    }

    /// The names in a directory, sorted; empty when it does not exist.
    ///
    /// # Errors
    /// Those of opendir(3) and readdir(3) except ENOENT of the directory; `InvalidData` for a name that is not UTF-8.
    pub fn list_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        self.call(Call::ListDir, &path.display(), || {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            let directory = match self.place(path).open(flags, Mode::empty(), ResolveFlag::empty()) {
                Ok(directory) => directory,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let mut names = Vec::new();
            for entry in Dir::from_fd(OwnedFd::from(directory))?.iter() {
                let entry = entry?;
                let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
                if name == "." || name == ".." {
                    continue;
                }
                names.push(name.into_string().map_err(|name| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("the name {name:?} is not UTF-8"))
                })?);
            }
            names.sort_unstable();
            Ok(names)
        })
    }

    /// The identity of a file; `None` when the path does not exist. Below a root no symbolic link is followed.
    ///
    /// # Errors
    /// Those of stat(2) except ENOENT and ENOTDIR.
    pub fn identity(&self, path: &Path) -> io::Result<Option<FileIdentity>> {
        self.call(Call::Identity, &path.display(), || match self.place(path).identity() {
            Ok(identity) => Ok(Some(identity)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// statfs(2) of the filesystem of a path.
    ///
    /// # Errors
    /// Those of statfs(2).
    pub fn fs_space(&self, path: &Path) -> io::Result<FsSpace> {
        self.call(Call::FsSpace, &path.display(), || {
            let stat = fstatfs(self.place(path).open(OFlag::O_PATH, Mode::empty(), ResolveFlag::empty())?)?;
            let unit = u64::try_from(stat.block_size()).map_err(io::Error::other)?;
            Ok(FsSpace {
                magic: stat.filesystem_type().0,
                total: stat.blocks().saturating_mul(unit),
                available: stat.blocks_available().saturating_mul(unit),
                free: stat.blocks_free().saturating_mul(unit),
                inodes: stat.files(),
                inodes_free: stat.files_free(),
            })
        })
    }
}

/// Opens a regular file whose path has no symbolic link; `None` when it does not exist.
pub(super) fn open_plain(place: &Place<'_>, access: OFlag) -> io::Result<Option<File>> {
    let file = match place.open(access | OFlag::O_NONBLOCK, Mode::empty(), ResolveFlag::RESOLVE_NO_SYMLINKS) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(Some(file))
}

fn read_small(file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MAX_SMALL_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_SMALL_FILE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 1 MiB"));
    }
    Ok(text)
}

/// The parent directory of a path.
pub(super) fn parent(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} has no parent", path.display())))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
