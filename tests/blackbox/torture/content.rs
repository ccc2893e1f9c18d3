//! The expected content of a volume: the chunks that were fsynced, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{MIB, Use, check_piece, write_piece};

/// A block volume has a slot at every MiB, a filesystem so many files.
const FILES: u64 = 12;
/// Slots of a block volume that are read even if nothing was written to them.
const ALWAYS_READ: u64 = 16;
const BLOCK_PIECE: usize = 64 << 10;
/// A file keeps its slot's length, so that writing it again is writing in place.
const FILE_LENGTHS: [usize; 5] = [11, 4097, 70_001, 0, 200_000];

/// The content of a volume, or of a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) kind: Use,
    /// Slot and seed of its bytes.
    pieces: BTreeMap<u64, u64>,
    /// Slots that were being written when the snapshot was taken: any content is right.
    unsure: BTreeSet<u64>,
    /// The sizes of a volume and its filesystem, when both last matched.
    pub(super) fitted: Option<(i64, i64)>,
}

impl Content {
    pub(super) fn blank(kind: Use) -> Self {
        Self { kind, pieces: BTreeMap::new(), unsure: BTreeSet::new(), fitted: None }
    }

    fn slots(&self, size: i64) -> u64 {
        if self.kind == Use::Block { u64::try_from(size / MIB).unwrap() } else { FILES }
    }

    /// A slot of a volume of this size.
    pub(super) fn slot(&self, size: i64, choice: u64) -> u64 {
        choice % self.slots(size)
    }

    /// A slot without known content, from `choice` on.
    pub(super) fn free_slot(&self, size: i64, choice: u64) -> Option<u64> {
        let slots = self.slots(size);
        (0..slots).map(|step| (choice + step) % slots).find(|slot| !self.pieces.contains_key(slot))
    }

    /// File or device, offset and length of a slot.
    fn place(&self, root: &Path, slot: u64) -> (PathBuf, u64, usize) {
        if self.kind == Use::Block {
            return (root.to_owned(), slot << 20, BLOCK_PIECE);
        }
        let length = FILE_LENGTHS[usize::try_from(slot).unwrap() % FILE_LENGTHS.len()];
        (root.join(format!("file-{slot}")), 0, length)
    }

    /// Writes a slot, durably; its content is known from now on.
    pub(super) fn write(&mut self, root: &Path, slot: u64, seed: u64) {
        let (path, offset, length) = self.place(root, slot);
        write_piece(&path, seed, offset, length);
        self.pieces.insert(slot, seed);
        self.unsure.remove(&slot);
    }

    /// The content of a snapshot taken at some moment between `self` and now, while only slots that are free in `self`
    /// were written.
    pub(super) fn cut(&self, now: &Self) -> Self {
        let written = now.pieces.keys().filter(|slot| !self.pieces.contains_key(slot));
        Self { unsure: self.unsure.iter().chain(written).copied().collect(), ..self.clone() }
    }

    /// Reads all of it: returns how many bytes were compared, or the difference.
    pub(super) fn check(&self, root: &Path) -> Result<u64, String> {
        let mut bytes = 0;
        for (slot, seed) in &self.pieces {
            let (path, offset, length) = self.place(root, *slot);
            check_piece(&path, *seed, offset, length)?;
            bytes += u64::try_from(length).unwrap();
        }
        if self.kind == Use::Block {
            let known = |slot: &u64| self.pieces.contains_key(slot) || self.unsure.contains(slot);
            for slot in (0..ALWAYS_READ).filter(|slot| !known(slot)) {
                self.is_zero(root, slot)?;
                bytes += u64::try_from(BLOCK_PIECE).unwrap();
            }
        } else {
            self.only_these(root)?;
        }
        Ok(bytes)
    }

    fn is_zero(&self, root: &Path, slot: u64) -> Result<(), String> {
        let (path, offset, length) = self.place(root, slot);
        let file = fs::File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut found = vec![1; length];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, offset)
            .map_err(|error| format!("{} at {offset}: {error}", path.display()))?;
        if found == vec![0; length] {
            return Ok(());
        }
        Err(format!("{} at {offset}: nobody wrote there, and it is not zero", path.display()))
    }

    /// Exactly the known files, with their lengths.
    fn only_these(&self, root: &Path) -> Result<(), String> {
        let entries = fs::read_dir(root).map_err(|error| format!("{}: {error}", root.display()))?;
        for entry in entries {
            let entry = entry.map_err(|error| format!("{}: {error}", root.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let slot = name.strip_prefix("file-").and_then(|slot| slot.parse().ok());
            match slot {
                Some(slot) if self.pieces.contains_key(&slot) => {
                    let wanted = u64::try_from(self.place(root, slot).2).unwrap();
                    let length = entry.metadata().map_err(|error| format!("{name}: {error}"))?.len();
                    if length != wanted {
                        return Err(format!("{} has {length} bytes instead of {wanted}", entry.path().display()));
                    }
                }
                Some(slot) if self.unsure.contains(&slot) => {}
                None if name == "lost+found" => {}
                _ => return Err(format!("{} was never written in this volume", entry.path().display())),
            }
        }
        Ok(())
    }
}
