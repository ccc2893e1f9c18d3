//! The files of a pool. Every path of the pool is built here, from validated types: no unparsed string reaches a path.
//!
//! ```text
//! <root>/pool.json                        what identifies the pool
//! <root>/lock                             held by the owner while it runs
//! <root>/reserve                          space for records in a full pool
//! <root>/volumes/<uuid>/volume.json, data
//! <root>/snapshots/<uuid>/snapshot.json, data
//! <root>/trash/<class>-<uuid>-<random>/   removed, not yet unlinked
//! <root>/foreign/<name in the trash>/     files that another process put into it
//! .tmp-* in any of them                   objects that are not complete
//! ```

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::super::{Object, ObjectKind};
use crate::types::ObjectUuid;

/// The prefix of everything that is not complete.
pub(super) const TEMPORARY: &str = ".tmp-";
/// The image's file name in its object's directory.
pub(super) const DATA: &str = "data";
/// The directories of a pool.
pub(super) const DIRECTORIES: [&str; 3] = ["volumes", "snapshots", "trash"];
/// Holds the files of others from the directories of removed objects; created when it is needed.
pub(super) const FOREIGN: &str = "foreign";
/// The directory that mkfs.ext4 creates in every filesystem.
pub(super) const LOST_AND_FOUND: &str = "lost+found";
/// What identifies the pool.
pub(super) const POOL_FILE: &str = "pool.json";
/// The owner's lock.
pub(super) const LOCK_FILE: &str = "lock";
/// Space for records in a full pool.
pub(super) const RESERVE: &str = "reserve";

/// The paths of one pool.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The paths of the pool at a canonical path: image files are opened without following any symbolic link.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn pool_file(&self) -> PathBuf {
        self.root.join(POOL_FILE)
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join(LOCK_FILE)
    }

    pub(super) fn reserve(&self) -> PathBuf {
        self.root.join(RESERVE)
    }

    pub(super) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(super) fn foreign(&self) -> PathBuf {
        self.root.join(FOREIGN)
    }

    /// A new name for a directory with files of others.
    pub(super) fn foreign_name(&self, directory: &Path) -> PathBuf {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let name = name.trim_start_matches(TEMPORARY);
        self.foreign().join(format!("{name}-{}", Uuid::new_v4().as_simple()))
    }

    pub(super) fn probe(&self) -> PathBuf {
        self.root.join(format!("{TEMPORARY}probe"))
    }

    pub(super) fn class(&self, class: ObjectKind) -> PathBuf {
        self.root.join(match class {
            ObjectKind::Volume => "volumes",
            ObjectKind::Snapshot => "snapshots",
        })
    }

    pub(super) fn object(&self, object: Object) -> PathBuf {
        self.class(class_of(object)).join(object.uuid().to_string())
    }

    pub(super) fn temporary(&self, object: Object) -> PathBuf {
        self.class(class_of(object)).join(format!("{TEMPORARY}{}", object.uuid()))
    }

    pub(super) fn data(&self, object: Object) -> PathBuf {
        self.object(object).join(DATA)
    }

    pub(super) fn record(&self, object: Object) -> PathBuf {
        self.object(object).join(record_name(class_of(object)))
    }

    /// The prefix of an object's names in the trash.
    pub(super) fn trash_prefix(object: Object) -> String {
        let class = match class_of(object) {
            ObjectKind::Volume => "volume",
            ObjectKind::Snapshot => "snapshot",
        };
        format!("{class}-{}-", object.uuid())
    }

    /// A new name in the trash.
    pub(super) fn trash_name(&self, object: Object) -> PathBuf {
        self.trash().join(format!("{}{}", Self::trash_prefix(object), Uuid::new_v4().as_simple()))
    }
}

pub(super) fn class_of(object: Object) -> ObjectKind {
    match object {
        Object::Volume(_) => ObjectKind::Volume,
        Object::Snapshot(_) => ObjectKind::Snapshot,
    }
}

pub(super) fn object_of(class: ObjectKind, uuid: ObjectUuid) -> Object {
    match class {
        ObjectKind::Volume => Object::Volume(uuid),
        ObjectKind::Snapshot => Object::Snapshot(uuid),
    }
}

pub(super) fn record_name(class: ObjectKind) -> &'static str {
    match class {
        ObjectKind::Volume => "volume.json",
        ObjectKind::Snapshot => "snapshot.json",
    }
}
