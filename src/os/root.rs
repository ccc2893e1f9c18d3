//! A directory that is held open. Paths below it are resolved from its descriptor with openat2(2). No symbolic link is
//! followed, no path leaves the directory, and no mount below it is entered. Whatever the directory's path leads to
//! later, the files are those of the directory that was opened.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, fstatat};

use super::file_identity::FileIdentity;
use super::{Call, FileVersion, Os};

/// A directory held open, and the path it was opened at.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    /// `None` after [`Root::let_go`]: nothing below it is reachable.
    held: RwLock<Option<Arc<Held>>>,
}

#[derive(Debug)]
struct Held {
    directory: File,
    identity: FileIdentity,
}

/// What is at the path of a [`Root`] now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The directory that is held open.
    Itself,
    /// Another one: a filesystem was mounted over it, or it was moved and replaced.
    Other,
    /// Nothing.
    Nothing,
}

impl Root {
    /// The path it was opened at.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the directory, so that its filesystem can be unmounted. Files below it that are open stay open.
    pub fn let_go(&self) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Holds the directory of another root of the same path instead.
    pub fn hold(&self, other: &Self) {
        let held = other.held();
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
    }

    fn held(&self) -> Option<Arc<Held>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Os {
    /// Opens a directory and holds it; `None` when the path does not exist. No symbolic link is followed, so the caller
    /// passes a canonical path.
    ///
    /// # Errors
    /// Those of openat2(2) except ENOENT: ENOTDIR when it is not a directory.
    pub fn open_root(&self, path: &Path) -> io::Result<Option<Root>> {
        self.call(Call::OpenRoot, &path.display(), || {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
            let directory = match openat2(AT_FDCWD, path, how) {
                Ok(directory) => File::from(directory),
                Err(Errno::ENOENT) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            let identity = FileIdentity::of(&directory.metadata()?);
            let held = RwLock::new(Some(Arc::new(Held { directory, identity })));
            Ok(Some(Root { path: path.to_owned(), held }))
        })
    }

    /// The same system, in which paths at or below the root's path lead into the directory that is held open. Other
    /// paths are unaffected.
    #[must_use]
    pub fn below(&self, root: Arc<Root>) -> Self {
        Self { root: Some(root), ..self.clone() }
    }

    /// What is at the root's path now, and the version of a file in the directory that is held open.
    ///
    /// # Errors
    /// Those of stat(2); `InvalidInput` without a root.
    pub fn look_at_root(&self, file: &str) -> io::Result<(Shown, Option<FileVersion>)> {
        let root = self.root.as_deref();
        let root = root.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no directory is held open"))?;
        self.call(Call::RootIdentity, &root.path.display(), || {
            let held = root.held().ok_or_else(released)?;
            let shown = match fs::metadata(&root.path).map(|meta| FileIdentity::of(&meta)) {
                Ok(now) if (now.device, now.inode) == (held.identity.device, held.identity.inode) => Shown::Itself,
                Ok(_) => Shown::Other,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    Shown::Nothing
                }
                Err(error) => return Err(error),
            };
            let version = match fstatat(held.directory.as_fd(), file, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(FileVersion::of(&stat)),
                Err(Errno::ENOENT) => None,
                Err(errno) => return Err(errno.into()),
            };
            Ok((shown, version))
        })
    }

    /// The place at which a path is looked up.
    pub(super) fn place<'p>(&'p self, path: &'p Path) -> Place<'p> {
        let below = self.root.as_deref().and_then(|root| Some((root, path.strip_prefix(&root.path).ok()?)));
        match below {
            Some((root, rest)) => Place { start: Start::Root(root.held()), path: rest },
            None => Place { start: Start::Anywhere, path },
        }
    }
}

/// A path, and the directory at which it starts.
#[derive(Debug)]
pub(super) struct Place<'p> {
    start: Start,
    /// Below the root, or the whole path.
    path: &'p Path,
}

#[derive(Debug)]
enum Start {
    Anywhere,
    /// `None` when it was released.
    Root(Option<Arc<Held>>),
}

impl<'p> Place<'p> {
    /// Opens the object. Below a root no path leads out of it; elsewhere `links` says what is followed.
    pub(super) fn open(&self, flags: OFlag, mode: Mode, links: ResolveFlag) -> io::Result<File> {
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode);
        let opened = match &self.start {
            Start::Anywhere => openat2(AT_FDCWD, self.path, how.resolve(links)),
            Start::Root(held) => {
                let held = held.as_ref().ok_or_else(released)?;
                openat2(held.directory.as_fd(), self.own_path(), how.resolve(beneath()))
            }
        };
        opened.map(File::from).map_err(entered)
    }

    /// The parent directory, and the name in it.
    pub(super) fn parent(&self) -> io::Result<Name<'p>> {
        let Start::Root(held) = &self.start else { return Ok(Name { directory: None, name: self.path }) };
        let held = held.as_ref().ok_or_else(released)?;
        let none = || io::Error::new(io::ErrorKind::InvalidInput, "the root directory has no name in itself");
        let name = Path::new(self.path.file_name().ok_or_else(none)?);
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).resolve(beneath());
        let directory = openat2(held.directory.as_fd(), parent.unwrap_or(Path::new(".")), how).map_err(entered)?;
        Ok(Name { directory: Some(directory), name })
    }

    /// stat(2) of the object; symbolic links are followed only without a root.
    pub(super) fn identity(&self) -> io::Result<FileIdentity> {
        match self.start {
            Start::Anywhere => Ok(FileIdentity::of(&fs::metadata(self.path)?)),
            Start::Root(_) => {
                let file = self.open(OFlag::O_PATH, Mode::empty(), ResolveFlag::empty())?;
                Ok(FileIdentity::of(&file.metadata()?))
            }
        }
    }

    fn own_path(&self) -> &'p Path {
        if self.path.as_os_str().is_empty() { Path::new(".") } else { self.path }
    }
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Name<'p> {
    directory: Option<OwnedFd>,
    name: &'p Path,
}

impl Name<'_> {
    /// The directory, for system calls with names ending in "at".
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_ref().map_or(AT_FDCWD, AsFd::as_fd)
    }

    /// The name in it, or the whole path.
    pub(super) fn name(&self) -> &Path {
        self.name
    }

    /// lstat(2) of it.
    pub(super) fn stat(&self) -> nix::Result<FileStat> {
        fstatat(self.directory(), self.name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Opens it without following a symbolic link.
    pub(super) fn open(&self, flags: OFlag, mode: Mode) -> io::Result<File> {
        let resolve = if self.directory.is_some() { beneath() } else { ResolveFlag::empty() };
        let how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).mode(mode).resolve(resolve);
        openat2(self.directory(), self.name, how).map(File::from).map_err(entered)
    }
}

fn released() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "its directory disappeared and is no longer held open")
}

/// How a path below a root is resolved.
fn beneath() -> ResolveFlag {
    ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | ResolveFlag::RESOLVE_NO_XDEV
}

/// EXDEV of openat2(2) means a mount point below the root.
fn entered(errno: Errno) -> io::Error {
    match errno {
        Errno::EXDEV => io::Error::new(
            io::ErrorKind::CrossesDevices,
            "another filesystem is mounted over it or over a directory above it; unmount that (findmnt shows it)",
        ),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_a_root_stays_where_it_was_when_its_path_leads_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        let (path, moved) = (base.join("pool"), base.join("moved"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("here"), "ours").unwrap();
        let os = Os::new();
        let root = os.open_root(&path).unwrap().unwrap();
        let held = os.below(Arc::new(root));
        assert_eq!(held.look_at_root("here").unwrap().0, Shown::Itself);
        fs::rename(&path, &moved).unwrap();
        assert_eq!(held.look_at_root("here").unwrap().0, Shown::Nothing);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("here"), "somebody else's").unwrap();
        let (shown, version) = held.look_at_root("here").unwrap();
        assert_eq!((shown, version.is_some()), (Shown::Other, true));
        assert_eq!(held.read_plain(&path.join("here")).unwrap().unwrap(), b"ours");
        held.write_new(&path.join("new"), b"x").unwrap();
        held.create_dir(&path.join("dir")).unwrap();
        held.rename(&path.join("new"), &path.join("dir/name")).unwrap();
        assert_eq!(held.list_dir(&path).unwrap(), ["dir", "here"]);
        assert_eq!(fs::read(moved.join("dir/name")).unwrap(), b"x");
        assert!(held.remove_file(&path.join("dir/name")).unwrap() && held.remove_dir(&path.join("dir")).unwrap());
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "nothing was made in the other directory");
        assert!(os.open_root(&base.join("none")).unwrap().is_none());
    }

    #[test]
    fn nothing_leads_out_of_a_root() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        let path = base.join("pool");
        fs::create_dir(&path).unwrap();
        fs::write(base.join("secret"), "not the pool's").unwrap();
        std::os::unix::fs::symlink(&base, path.join("link")).unwrap();
        std::os::unix::fs::symlink(base.join("secret"), path.join("file")).unwrap();
        let os = Os::new();
        let held = os.below(Arc::new(os.open_root(&path).unwrap().unwrap()));
        // A link that stays inside is one too.
        fs::create_dir(path.join("dir")).unwrap();
        fs::write(path.join("dir/inside"), "another name's").unwrap();
        std::os::unix::fs::symlink("dir", path.join("alias")).unwrap();
        for out in ["link/secret", "file", "../secret", "alias/inside"] {
            assert!(held.read_plain(&path.join(out)).is_err(), "{out}");
            assert!(held.open_image(&path.join(out)).is_err(), "{out}");
            assert!(held.identity(&path.join(out)).is_err(), "{out}");
        }
        assert!(held.list_dir(&path.join("link")).is_err());
        assert!(held.write_new(&path.join("link/secret"), b"x").is_err());
        assert!(held.write_new(&path.join("file"), b"x").is_err());
        assert!(held.remove_file(&path.join("link/secret")).is_err());
        assert!(held.rename(&path.join("file"), &path.join("../stolen")).is_err());
        assert_eq!(fs::read(base.join("secret")).unwrap(), b"not the pool's");
        assert_eq!(held.entry(&path.join("link")).unwrap(), Some(super::super::Entry::Symlink));
        assert!(held.remove_file(&path.join("link")).unwrap(), "the link itself goes");
    }
}
