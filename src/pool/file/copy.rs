//! Long operations: copies and erasures. They work in pieces, and each piece is durable before it is reported.

use super::super::{Continue, Object, Progress};
use super::FilePool;
use crate::types::{Bytes, Error, Kind, OsContext, Result};

/// Bytes between two fsyncs.
const PIECE: u64 = 64 << 20;

impl FilePool {
    /// Copies only data (SEEK_DATA), so holes and unwritten space are skipped. After every 64 MiB of data, and at the
    /// end: fsync, then report. After a crash the target may have more than was reported; a copy that starts at the
    /// reported position writes the same bytes again.
    pub(super) fn copy_image(&self, from: Object, to: Object, start: Bytes, progress: &dyn Progress) -> Result<()> {
        let (source, source_path) = self.image(from)?;
        let (target, target_path) = self.edit(to)?;
        let total =
            self.os.image_identity(&source, &source_path).at(|| format!("stat {}", source_path.display()))?.size;
        let room = self.os.image_identity(&target, &target_path).at(|| format!("stat {}", target_path.display()))?.size;
        if room < total {
            return Err(Error::new(
                Kind::OutOfRange,
                format!("{from} ({}) does not fit into {to} ({})", Bytes::new(total), Bytes::new(room)),
            ));
        }
        let look = || format!("look for data in {}", source_path.display());
        let mut position = start.get();
        let mut pending = 0;
        while position < total {
            let Some(data) = self.os.next_data(&source, &source_path, position).at(look)? else { break };
            let hole = self.os.next_hole(&source, &source_path, data).at(look)?.unwrap_or(total).min(total);
            let end = hole.min(data.saturating_add(PIECE - pending));
            position = data;
            while position < end {
                let copied = self
                    .os
                    .copy_range(&source, &target, &target_path, position, end - position)
                    .at(|| format!("copy {} to {}", source_path.display(), target_path.display()))?;
                if copied == 0 {
                    return Err(Error::new(
                        Kind::Internal,
                        format!("{} ended at byte {position} of {total} during the copy; retry", source_path.display()),
                    ));
                }
                position = position.saturating_add(copied);
                pending = pending.saturating_add(copied);
            }
            if pending >= PIECE && position < total {
                self.os.sync_file(&target, &target_path).at(|| format!("fsync {}", target_path.display()))?;
                pending = 0;
                if progress.step(Bytes::new(position), Bytes::new(total)) == Continue::No {
                    return Ok(());
                }
            }
        }
        self.os.sync_file(&target, &target_path).at(|| format!("fsync {}", target_path.display()))?;
        progress.step(Bytes::new(total), Bytes::new(total));
        Ok(())
    }

    /// Writes every byte, allocated or not: unwritten space may be where data was before. Blocks that a reflink shares
    /// with a snapshot stay in the snapshot.
    pub(super) fn erase_image(&self, object: Object, start: Bytes, progress: &dyn Progress) -> Result<()> {
        if let Object::Volume(volume) = object {
            self.no_device_shows(volume, "erase")?;
        }
        let (image, path) = self.edit(object)?;
        let total = self.os.image_identity(&image, &path).at(|| format!("stat {}", path.display()))?.size;
        let mut position = start.get().min(total);
        while position < total {
            let piece = PIECE.min(total - position);
            self.os.write_zeroes(&image, &path, position, piece).at(|| format!("erase {}", path.display()))?;
            self.os.sync_file(&image, &path).at(|| format!("fsync {}", path.display()))?;
            position = position.saturating_add(piece);
            if progress.step(Bytes::new(position), Bytes::new(total)) == Continue::No {
                return Ok(());
            }
        }
        Ok(())
    }
}
