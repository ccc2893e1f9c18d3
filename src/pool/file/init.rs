//! Opening a pool: as its owner, making it on first use, or to look at beside the owner.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::super::{Abilities, Ability, FirstUse, Ground, Identity};
use super::filesystem::{Filesystem, Found};
use super::identity::PoolFile;
use super::layout::{DIRECTORIES, LOCK_FILE, LOST_AND_FOUND, Layout, POOL_FILE, TEMPORARY};
use super::presence::{Presence, explained};
use super::reserve::Reserve;
use super::{FilePool, Ownership};
use crate::os::{Entry, Os, OwnerLock, Root, Timestamp};
use crate::types::{Error, Kind, NodeId, OsContext, PoolName, Provisioning, Result};

impl FilePool {
    /// Opens the pool in a directory as its owner, for as long as the result lives; makes it in an empty directory.
    ///
    /// 1. Find the directory, hold it, and find its filesystem; refuse a directory with something else in it, and one
    ///    without a pool where none is to be made. Nothing was written.
    /// 2. Lock the directory and `lock`, made if missing. A crash drops the locks with the process.
    /// 3. Try what the filesystem can do. A crash leaves `.tmp-probe`, which the next open removes.
    /// 4. A new pool: make its directories, then write pool.json, durably. Before that file is in place the directory
    ///    counts as empty and the next open begins again.
    /// 5. A pool that is there: see that it is ours and whole; write down in pool.json when cloning changed.
    /// 6. Make the reserve whole, if there is room. A crash leaves it short, which the next open mends.
    ///
    /// # Errors
    /// `NotFound` without the directory; `Unsupported` on a filesystem no pool may lie on; `Precondition` for a
    /// directory with other things in it, and for a pool of another node or name; `InUse` while another process owns
    /// it; `Unavailable` where no pool is and none is to be made, and for a filesystem that fails; `Corrupt` for a pool that
    /// misses a part; `Internal`.
    pub fn open(
        os: &Os,
        name: &PoolName,
        root: &Path,
        ground: Ground,
        home: &NodeId,
        first: FirstUse,
    ) -> Result<Arc<Self>> {
        Self::open_here(os, name, root, ground, home, first).map_err(|error| explained(name, root, error))
    }

    fn open_here(
        outside: &Os,
        name: &PoolName,
        root: &Path,
        ground: Ground,
        home: &NodeId,
        first: FirstUse,
    ) -> Result<Arc<Self>> {
        let (layout, held) = hold(outside, root, name)?;
        let os = &outside.below(Arc::clone(&held));
        let filesystem = Filesystem::of(os, &layout, ground)?;
        if PoolFile::read(os, &layout)?.is_none() {
            refuse_foreign(os, &layout)?;
            may_make(&layout, name, home, first)?;
        }
        let lock = lock(os, &layout)?;
        let known = PoolFile::read(os, &layout)?;
        let found = match (filesystem.probe(os, &layout), &known) {
            (Ok(found), _) => found,
            (Err(error), Some(file)) if error.kind() == Kind::NoCapacity => {
                Found { cloning: file.cloning.into(), thick: thick_of(filesystem) }
            }
            (Err(error), _) => return Err(error),
        };
        let file = match known {
            Some(file) => {
                file.belongs(&layout, name, home)?;
                let mut now = file.clone();
                now.cloning = found.cloning.into();
                if now != file {
                    now.write(os, &layout)?;
                }
                whole(os, &layout)?;
                now
            }
            None => make(os, &layout, filesystem, PoolFile::new(name, home, found.cloning))?,
        };
        let ownership = Ownership::Owner { lock: Mutex::new(Some(lock)) };
        let pool = Self::assemble((outside, held), layout, &file, filesystem, found, ownership);
        pool.hold_reserve();
        Ok(Arc::new(pool))
    }

    /// Opens the pool in a directory to look at, beside its owner or without one: takes no lock and writes nothing.
    /// Every method that changes something answers `Unsupported`.
    ///
    /// # Errors
    /// `NotFound` where no pool is; `Corrupt`, `Unsupported` for a pool.json that cannot be read; `Internal`.
    pub fn view(os: &Os, root: &Path) -> Result<Arc<Self>> {
        Self::view_here(os, root).map_err(|error| explained(&"there", root, error))
    }

    fn view_here(outside: &Os, root: &Path) -> Result<Arc<Self>> {
        let (layout, held) = hold(outside, root, &"a pool")?;
        let os = &outside.below(Arc::clone(&held));
        let file = PoolFile::present(os, &layout)?;
        let filesystem = Filesystem::of(os, &layout, Ground::FuseForTests)?;
        let found = Found { cloning: file.cloning.into(), thick: thick_of(filesystem) };
        Ok(Arc::new(Self::assemble((outside, held), layout, &file, filesystem, found, Ownership::View)))
    }

    /// Makes another node the home of the pool in a directory, which no process may own meanwhile: what a human does
    /// who has moved its disks.
    ///
    /// 1. Lock it as an owner does. 2. Write pool.json, durably: the old home or the new after a crash.
    ///
    /// # Errors
    /// `NotFound` where no pool is; `InUse` while a process owns it; `Precondition` for one of another name; `Corrupt`,
    /// `Unsupported` for a pool.json that cannot be read; `NoCapacity`, `Internal`.
    pub fn claim(os: &Os, name: &PoolName, root: &Path, home: &NodeId) -> Result<Claimed> {
        let (layout, held) = hold(os, root, name)?;
        let os = &os.below(held);
        PoolFile::present(os, &layout)?;
        let _lock = lock(os, &layout)?;
        let mut file = PoolFile::present(os, &layout)?;
        file.is_called(&layout, name)?;
        let before = std::mem::replace(&mut file.home, home.clone());
        if before == *home {
            return Ok(Claimed::Already);
        }
        file.write(os, &layout)?;
        Ok(Claimed::From(before))
    }

    /// Writes down since when the pool is out of use, or that it is not.
    pub(super) fn write_quarantine(&self, since: Option<Timestamp>) -> Result<()> {
        // The disk may hang: nobody waits for it to read what is known.
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = PoolFile::present(&self.os, &self.layout)?;
        if file.quarantined != since {
            file.quarantined = since;
            file.write(&self.os, &self.layout)?;
        }
        *self.quarantine.lock().unwrap_or_else(PoisonError::into_inner) = since;
        Ok(())
    }

    fn assemble(
        (outside, root): (&Os, Arc<Root>),
        layout: Layout,
        file: &PoolFile,
        filesystem: Filesystem,
        found: Found,
        ownership: Ownership,
    ) -> Self {
        let identity = Identity {
            id: file.id,
            name: file.name.clone(),
            kind: "file",
            home: file.home.clone(),
            place: layout.root().display().to_string(),
        };
        let abilities = Abilities {
            cloning: found.cloning,
            thick: found.thick,
            default_provisioning: match found.thick {
                Ability::Yes => Provisioning::Thick,
                Ability::No => Provisioning::Thin,
            },
        };
        Self {
            os: outside.below(Arc::clone(&root)),
            outside: outside.clone(),
            root,
            presence: Presence::default(),
            using: RwLock::default(),
            layout,
            identity,
            filesystem,
            abilities,
            ownership,
            hints: Mutex::new(HashMap::new()),
            reserve: Reserve::default(),
            quarantine: Mutex::new(file.quarantined),
            changing: Mutex::default(),
        }
    }
}

/// What claiming a pool came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// It belonged to this node before.
    From(NodeId),
    /// It is this node's already.
    Already,
}

/// The lock of an owner.
pub(super) fn lock(os: &Os, layout: &Layout) -> Result<OwnerLock> {
    let lock = os.lock_owner(layout.root(), &layout.lock()).at(|| format!("lock {}", layout.lock().display()))?;
    lock.ok_or_else(|| {
        Error::new(
            Kind::InUse,
            format!(
                "the pool in {} is owned by another running process, which holds {} or the directory locked; stop that one first",
                layout.root().display(),
                layout.lock().display()
            ),
        )
    })
}

/// The directory of a pool, held.
fn hold(os: &Os, root: &Path, name: &dyn std::fmt::Display) -> Result<(Layout, Arc<Root>)> {
    let path = canonical(os, root, name)?;
    let held = os.open_root(&path).at(|| format!("open {}", path.display()))?;
    let gone = || Error::new(Kind::NotFound, format!("the directory {} for {name} has just gone", path.display()));
    let held = Arc::new(held.ok_or_else(gone)?);
    Ok((Layout::new(path), held))
}

/// Whether a pool is made in an empty directory: not where one is waited for. Its disk may not be mounted yet, and the new
/// pool would lie on what is below the mount point.
fn may_make(layout: &Layout, name: &PoolName, home: &NodeId, first: FirstUse) -> Result<()> {
    let root = layout.root().display();
    let before = match first {
        FirstUse::Make => return Ok(()),
        FirstUse::Wait(Some(id)) => {
            format!("{root} is empty, and node {home} served pool {name} ({id}) from it before")
        }
        FirstUse::Wait(None) => format!("{root} is empty, and while the driver waits for a pool it makes none"),
    };
    Err(Error::new(
        Kind::Unavailable,
        format!(
            "{before}: mount its filesystem there (findmnt {root}), and it is served without a restart. To make a new, empty pool there: holdfast pools init --node-name {home} --pool {name}=file:{root}"
        ),
    ))
}

fn canonical(os: &Os, root: &Path, name: &dyn std::fmt::Display) -> Result<std::path::PathBuf> {
    let shown = root.display();
    let found = os.canonical(root).at(|| format!("find {shown}"))?;
    let path = found.ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            format!("the directory {shown} for {name} does not exist; make it: mkdir -p {shown}"),
        )
    })?;
    if os.entry(&path).at(|| format!("look at {shown}"))? != Some(Entry::Directory) {
        return Err(Error::new(Kind::InvalidArgument, format!("{shown} for {name} is not a directory; name another")));
    }
    Ok(path)
}

/// Refuses a directory that holds anything but what a half-made pool and mkfs leave.
fn refuse_foreign(os: &Os, layout: &Layout) -> Result<()> {
    let root = layout.root();
    let unfinished = format!("{POOL_FILE}.tmp");
    for name in os.list_dir(root).at(|| format!("list {}", root.display()))? {
        let ours = name.starts_with(TEMPORARY)
            || [LOST_AND_FOUND, LOCK_FILE, &unfinished].contains(&name.as_str())
            || (DIRECTORIES.contains(&name.as_str())
                && os.list_dir(&root.join(&name)).at(|| format!("list {}", root.join(&name).display()))?.is_empty());
        if !ours {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "{} is not empty (there is {name:?}) and has no {POOL_FILE}, so no pool is made in it; name an empty directory, or put the pool's own {POOL_FILE} back",
                    root.display()
                ),
            ));
        }
    }
    Ok(())
}

/// Step 4 of opening.
fn make(os: &Os, layout: &Layout, filesystem: Filesystem, file: PoolFile) -> Result<PoolFile> {
    for name in DIRECTORIES {
        let directory = layout.root().join(name);
        if os.entry(&directory).at(|| format!("look at {}", directory.display()))?.is_none() {
            os.create_dir(&directory).at(|| format!("mkdir {}", directory.display()))?;
        }
        filesystem.prepare(os, &directory)?;
    }
    whole(os, layout)?;
    os.sync_dir(layout.root()).at(|| format!("fsync {}", layout.root().display()))?;
    file.write(os, layout)?;
    Ok(file)
}

/// A pool's directories are there, and are directories.
pub(super) fn whole(os: &Os, layout: &Layout) -> Result<()> {
    for name in DIRECTORIES {
        let directory = layout.root().join(name);
        if os.entry(&directory).at(|| format!("look at {}", directory.display()))? != Some(Entry::Directory) {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "the pool in {} misses its directory {name}; see that its filesystem is mounted and whole, then restore the directory or, if nothing was lost, mkdir it",
                    layout.root().display()
                ),
            ));
        }
    }
    Ok(())
}

/// What is believed of a filesystem that could not be tried.
fn thick_of(filesystem: Filesystem) -> Ability {
    match filesystem {
        Filesystem::Xfs | Filesystem::Ext4 => Ability::Yes,
        Filesystem::Btrfs | Filesystem::Fuse => Ability::No,
    }
}
