//! The mount that a path leads into. A mount in mountinfo may be covered by a later mount on a parent directory. Then
//! no path leads to it, not even for umount(2).

use std::path::Path;

use super::mountinfo::plain;
use super::{MountEntry, MountTable};

/// The mount that a program finds at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'t> {
    /// Nothing is mounted at exactly this path.
    Nothing,
    /// This mount.
    Mount(&'t MountEntry),
    /// There are mounts at this path, but no path leads to them.
    Covered {
        /// The last one in the table.
        hidden: &'t MountEntry,
        /// The mount that the path leads into instead.
        by: &'t MountEntry,
    },
}

impl MountTable {
    /// The mount that contains a path: where a lookup from the root ends. A mount at the path itself counts.
    ///
    /// `None` when the table does not show which mount is the root.
    #[must_use]
    pub fn holding(&self, path: &Path) -> Option<&MountEntry> {
        let mut found = self.root()?;
        let mut prefixes: Vec<&Path> = path.ancestors().collect();
        // A lookup starts in the root mount, and not in a mount over it.
        prefixes.pop();
        for prefix in prefixes.into_iter().rev() {
            let prefix = plain(prefix);
            // A table that was read while mounts changed may contain a cycle: the number of steps is limited to the
            // number of mounts.
            for _ in self.entries() {
                let on_it =
                    |entry: &&MountEntry| entry.parent == found.id && entry.is_at(&prefix) && entry.id != found.id;
                match self.entries().iter().find(on_it) {
                    Some(entry) => found = entry,
                    None => break,
                }
            }
        }
        Some(found)
    }

    /// The mount that a program finds at exactly this path, which has no symbolic links.
    #[must_use]
    pub fn seen(&self, path: &Path) -> Seen<'_> {
        let Some(listed) = self.at(path) else { return Seen::Nothing };
        match self.holding(path) {
            Some(found) if found.mount_point == path => Seen::Mount(found),
            Some(by) if self.is_rooted(listed) => Seen::Covered { hidden: listed, by },
            // The table was read while mounts changed, and does not show how this mount is connected.
            _ => Seen::Mount(listed),
        }
    }

    fn root(&self) -> Option<&MountEntry> {
        self.entries().iter().find(|entry| entry.is_at(b"/") && self.parent_of(entry).is_none())
    }

    fn parent_of(&self, entry: &MountEntry) -> Option<&MountEntry> {
        self.entries().iter().find(|other| other.id == entry.parent && other.id != entry.id)
    }

    /// Whether every mount below this one, down to the root, is in the table.
    fn is_rooted(&self, entry: &MountEntry) -> bool {
        let Some(root) = self.root() else { return false };
        let mut at = entry;
        for _ in self.entries() {
            match self.parent_of(at) {
                Some(below) => at = below,
                None => break,
            }
        }
        at.id == root.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> MountTable {
        MountTable::parse(text.as_bytes()).unwrap()
    }

    const STAGED: &str = "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        21 20 8:2 / /k rw - xfs /dev/sdb rw\n\
        30 21 7:3 / /k/p/mount rw - ext4 /dev/loop3 rw\n";

    #[test]
    fn the_topmost_mount_is_seen() {
        let stacked = table(&format!("{STAGED}31 30 7:4 / /k/p/mount rw - ext4 /dev/loop4 rw\n"));
        assert!(matches!(stacked.seen(Path::new("/k/p/mount")), Seen::Mount(entry) if entry.id == 31));
        assert_eq!(stacked.seen(Path::new("/k/p")), Seen::Nothing);
        assert_eq!(stacked.holding(Path::new("/k/p/x")).unwrap().id, 21);
        assert_eq!(stacked.holding(Path::new("/other")).unwrap().id, 20);
        assert_eq!(stacked.holding(Path::new("/k/p/mount/below")).unwrap().id, 31);
    }

    #[test]
    fn a_mount_over_a_parent_covers_it() {
        for (cover, by) in [("32 21 8:3 / /k rw - xfs /dev/sdc rw\n", 32), ("32 21 0:9 / /k/p rw - tmpfs t rw\n", 32)] {
            let covered = table(&format!("{STAGED}{cover}"));
            let Seen::Covered { hidden, by: found } = covered.seen(Path::new("/k/p/mount")) else {
                panic!("{cover}: {:?}", covered.seen(Path::new("/k/p/mount")))
            };
            assert_eq!((hidden.id, found.id), (30, by), "{cover}");
        }
    }

    #[test]
    fn a_mount_at_the_same_path_in_what_covers_it_is_the_one_that_is_seen() {
        let again = table(&format!(
            "{STAGED}32 21 8:3 / /k rw - xfs /dev/sdc rw\n33 32 7:5 / /k/p/mount rw - ext4 /dev/loop5 rw\n"
        ));
        assert!(matches!(again.seen(Path::new("/k/p/mount")), Seen::Mount(entry) if entry.id == 33));
    }

    #[test]
    fn what_the_table_does_not_show_is_not_said_to_be_covered() {
        let torn = table("20 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 21 7:3 / /k/p/mount rw - ext4 /dev/loop3 rw\n");
        assert!(matches!(torn.seen(Path::new("/k/p/mount")), Seen::Mount(entry) if entry.id == 30));
        let circle = table("1 2 7:1 / /m rw - ext4 /dev/a rw\n2 1 7:1 / /m rw - ext4 /dev/a rw\n");
        assert!(matches!(circle.seen(Path::new("/m")), Seen::Mount(_)));
        assert_eq!(table("").seen(Path::new("/m")), Seen::Nothing);
    }
}
