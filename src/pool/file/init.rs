//! Opening a pool: as its owner, with creation on first use, or read-only beside the owner.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::super::{Abilities, Ability, BackingFs, FirstUse, Identity};
use super::filesystem::{Filesystem, Found};
use super::identity::PoolFile;
use super::layout::{DIRECTORIES, LOCK_FILE, LOST_AND_FOUND, Layout, POOL_FILE, TEMPORARY};
use super::presence::{Presence, explained, lock, whole};
use super::reserve::Reserve;
use super::{FilePool, Ownership};
use crate::os::{Entry, Os, Root, Timestamp};
use crate::types::{Bytes, Error, Kind, NodeId, OsContext, PoolName, Provisioning, Result};

/// The logical block size of every device, bytes: that of the disks that are sold now, so that a volume can be moved to
/// one (docs/design.md section 7).
const BLOCK_SIZE: u32 = 4096;

impl FilePool {
    /// Opens the pool in a directory as its owner, until the result is dropped. Creates the pool in an empty directory.
    ///
    /// 1. Find and open the directory, and identify its filesystem. A directory with other files is an error, and so is
    ///    one without a pool where none is to be created. Nothing was written.
    /// 2. Lock the directory and the file `lock`, which is created if missing. A crash releases the locks.
    /// 3. Test what the filesystem supports. A crash leaves `.tmp-probe`, which the next open removes.
    /// 4. A new pool: create its directories, then write pool.json, durably. Until that file is in place the directory
    ///    counts as empty, and the next open starts again.
    /// 5. An existing pool: check that it belongs to this node and is complete; update pool.json when cloning changed.
    /// 6. Complete the reserve, if there is space. A crash leaves it incomplete, and the next open completes it.
    ///
    /// # Errors
    /// `NotFound` without the directory; `Unsupported` on a filesystem that no pool may be on; `Precondition` for a
    /// directory with other files, and for a pool of another node or name; `InUse` while another process owns it;
    /// `Unavailable` where there is no pool and none is to be created, and for a filesystem that fails; `Corrupt` for
    /// an incomplete pool; `Internal`.
    pub(in crate::pool) fn open(
        os: &Os,
        name: &PoolName,
        root: &Path,
        ground: BackingFs,
        home: &NodeId,
        first: FirstUse,
    ) -> Result<Arc<Self>> {
        Self::open_here(os, name, root, ground, home, first).map_err(|error| explained(name, root, error))
    }

    fn open_here(
        outside: &Os,
        name: &PoolName,
        root: &Path,
        ground: BackingFs,
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

    /// Opens the pool in a directory read-only, whether or not it has an owner: takes no lock and writes nothing. Every
    /// method that changes something returns `Unsupported`.
    ///
    /// # Errors
    /// `NotFound` where there is no pool; `Corrupt`, `Unsupported` for a pool.json that cannot be read; `Internal`.
    pub(in crate::pool) fn view(os: &Os, root: &Path) -> Result<Arc<Self>> {
        Self::view_here(os, root).map_err(|error| explained(&"(unknown)", root, error))
    }

    fn view_here(outside: &Os, root: &Path) -> Result<Arc<Self>> {
        let (layout, held) = hold(outside, root, &"a pool")?;
        let os = &outside.below(Arc::clone(&held));
        let file = PoolFile::present(os, &layout)?;
        let filesystem = Filesystem::of(os, &layout, BackingFs::FuseForTests)?;
        let found = Found { cloning: file.cloning.into(), thick: thick_of(filesystem) };
        Ok(Arc::new(Self::assemble((outside, held), layout, &file, filesystem, found, Ownership::View)))
    }

    /// Makes another node the home node of the pool in a directory. No process may own the pool meanwhile. An operator
    /// uses this after moving the pool's disks.
    ///
    /// 1. Lock it as an owner does.
    /// 2. Write pool.json, durably: after a crash it names the old home node or the new one.
    ///
    /// # Errors
    /// `NotFound` where there is no pool; `InUse` while a process owns it; `Precondition` for a pool with another name;
    /// `Corrupt`, `Unsupported` for a pool.json that cannot be read; `NoCapacity`, `Internal`.
    pub(in crate::pool) fn claim(os: &Os, name: &PoolName, root: &Path, home: &NodeId) -> Result<Claimed> {
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

    /// Stores since when the pool is in quarantine, or that it is not.
    pub(super) fn write_quarantine(&self, since: Option<Timestamp>) -> Result<()> {
        // The disk may hang: reading the known state must not wait for it.
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
            block_size: BLOCK_SIZE,
            growth_unit: Bytes::mib(1),
            thick: found.thick,
            thin: Ability::Yes,
            default_provisioning: match found.thick {
                Ability::Yes => Provisioning::Thick,
                Ability::No => Provisioning::Thin,
            },
            stable: match filesystem {
                Filesystem::Xfs | Filesystem::Ext4 => Ability::Yes,
                Filesystem::Btrfs | Filesystem::Fuse => Ability::No,
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

/// The result of claiming a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// It belonged to this node before; now it belongs to the claiming node.
    From(NodeId),
    /// It belongs to the claiming node already.
    Already,
}

/// The directory of a pool, opened.
fn hold(os: &Os, root: &Path, name: &dyn std::fmt::Display) -> Result<(Layout, Arc<Root>)> {
    let path = canonical(os, root, name)?;
    let held = os.open_root(&path).at(|| format!("open {}", path.display()))?;
    let gone = || {
        Error::new(
            Kind::NotFound,
            format!("the directory {} for {name} was removed or unmounted just now; retry", path.display()),
        )
    };
    let held = Arc::new(held.ok_or_else(gone)?);
    Ok((Layout::new(path), held))
}

/// Whether a pool may be created in an empty directory. Not where one is expected: its disk may not be mounted yet, and
/// the new pool would be below the mount point.
fn may_make(layout: &Layout, name: &PoolName, home: &NodeId, first: FirstUse) -> Result<()> {
    let root = layout.root().display();
    let before = match first {
        FirstUse::Make => return Ok(()),
        FirstUse::Wait(Some(id)) => {
            format!("{root} is empty, and node {home} served pool {name} ({id}) from it before")
        }
        FirstUse::Wait(None) => format!("{root} is empty, and the driver creates no pool while it waits for one"),
    };
    Err(Error::new(
        Kind::Unavailable,
        format!(
            "{before}: mount its filesystem there (findmnt {root}); no restart is needed. To create a new, empty pool there, run holdfast pools init --node-name {home} --pool {name}=file:{root}"
        ),
    ))
}

fn canonical(os: &Os, root: &Path, name: &dyn std::fmt::Display) -> Result<std::path::PathBuf> {
    let shown = root.display();
    let found = os.canonical(root).at(|| format!("find {shown}"))?;
    let path = found.ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            format!("the directory {shown} for {name} does not exist; create it: mkdir -p {shown}"),
        )
    })?;
    if os.entry(&path).at(|| format!("stat {shown}"))? != Some(Entry::Directory) {
        return Err(Error::new(
            Kind::InvalidArgument,
            format!("{shown} for {name} is not a directory; set another path"),
        ));
    }
    Ok(path)
}

/// Returns an error for a directory that holds anything except the files of an incomplete pool or of mkfs.
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
                    "{} is not empty (there is {name:?}) and has no {POOL_FILE}, so no pool is created in it; use an empty directory, or restore the pool's own {POOL_FILE}",
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
        if os.entry(&directory).at(|| format!("stat {}", directory.display()))?.is_none() {
            os.create_dir(&directory).at(|| format!("mkdir {}", directory.display()))?;
        }
        filesystem.prepare(os, &directory)?;
    }
    whole(os, layout)?;
    os.sync_dir(layout.root()).at(|| format!("fsync {}", layout.root().display()))?;
    file.write(os, layout)?;
    Ok(file)
}

/// The assumption for a filesystem that could not be tested.
fn thick_of(filesystem: Filesystem) -> Ability {
    match filesystem {
        Filesystem::Xfs | Filesystem::Ext4 => Ability::Yes,
        Filesystem::Btrfs | Filesystem::Fuse => Ability::No,
    }
}
