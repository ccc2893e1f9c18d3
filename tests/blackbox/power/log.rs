//! The requests of a disk, and the disk after a power cut at any moment.

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A disk writes so many bytes atomically: a request may be torn there.
pub(super) const SECTOR: usize = 4096;

/// One request that changed something.
#[derive(Debug)]
pub(super) enum Entry {
    Write { offset: u64, data: Vec<u8> },
    Flush,
}

/// The surviving writes of a disk after a power cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Left {
    /// Everything up to a flush, by its number, and nothing after it.
    Flushed(usize),
    /// That, and some sectors written before the next flush, chosen by this seed.
    Torn(usize, u64),
    /// The first so many requests, and so many bytes of those that follow: a disk that writes in order.
    Bytes(usize, usize),
}

/// All requests of a disk.
pub(crate) struct Log {
    pub(super) entries: Vec<Entry>,
    pub(super) size: u64,
}

impl Log {
    /// How many bytes were written.
    pub(crate) fn bytes(&self) -> usize {
        self.written(0..self.entries.len())
    }

    /// How many bytes these requests wrote.
    pub(crate) fn written(&self, among: Range<usize>) -> usize {
        let written = |entry: &Entry| match entry {
            Entry::Write { data, .. } => data.len(),
            Entry::Flush => 0,
        };
        self.entries[among].iter().map(written).sum()
    }

    /// How many flushes the first so many requests contain.
    fn flush(&self, number: usize) -> usize {
        let mut seen = 0;
        self.entries
            .iter()
            .position(|entry| {
                seen += usize::from(matches!(entry, Entry::Flush));
                seen == number
            })
            .map_or(0, |position| position + 1)
    }

    /// Builds the disk after the power cut.
    pub(crate) fn build(&self, left: Left, file: &Path) {
        let file = File::create_new(file).unwrap();
        file.set_len(self.size).unwrap();
        let (whole, torn) = match left {
            Left::Flushed(number) => (self.flush(number), None),
            Left::Torn(number, seed) => (self.flush(number), Some(seed)),
            Left::Bytes(requests, _) => (requests, None),
        };
        for entry in &self.entries[..whole] {
            if let Entry::Write { offset, data } = entry {
                file.write_all_at(data, *offset).unwrap();
            }
        }
        if let Left::Bytes(_, mut bytes) = left {
            for entry in &self.entries[whole..] {
                if let Entry::Write { offset, data } = entry {
                    let part = data.len().min(bytes / SECTOR * SECTOR);
                    file.write_all_at(&data[..part], *offset).unwrap();
                    bytes = bytes.saturating_sub(data.len());
                }
            }
        }
        let Some(mut seed) = torn else { return };
        for entry in self.entries[whole..].iter().take_while(|entry| matches!(entry, Entry::Write { .. })) {
            let Entry::Write { offset, data } = entry else { continue };
            for (sector, at) in data.chunks(SECTOR).zip((*offset..).step_by(SECTOR)) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                if seed >> 63 == 1 {
                    file.write_all_at(sector, at).unwrap();
                }
            }
        }
    }
}

/// Flush numbers to try: the requested ones, and so many more, evenly distributed.
pub(crate) fn points(among: Range<usize>, wanted: impl IntoIterator<Item = usize>, more: usize) -> Vec<usize> {
    let even = (0..more).map(|n| among.start + n * among.len() / more.max(1));
    let mut points: Vec<_> = wanted.into_iter().chain(even).filter(|point| among.contains(point)).collect();
    let mut seen = HashSet::new();
    points.retain(|point| seen.insert(*point));
    points.sort_unstable();
    points
}
