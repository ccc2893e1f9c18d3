//! Which loop devices have which images.
//!
//! A lookup of one volume's device looks at every loop device of the machine. Most of them are the same as at the lookup
//! before, and the kernel changes the sequence number of a device with each image (BLKGETDISKSEQ; block/genhd.c,
//! `inc_diskseq`). So a lookup reads the sequence number of each device through a descriptor that stays open, and the path
//! of an image only where that number is new.
//!
//! Two things change the path of an image but not the number: a file that is renamed, and a change of the image that this
//! process sees half done, because the kernel changes the number first. Every path is therefore read again after
//! [`VALID`]. The path only selects candidates: see [`super::LoopView`].

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::looks::Looks;
use super::loopview::{backing, loop_numbers};
use super::{LoopDevice, Stopwatch};

/// How long the path of an image counts without being read again.
const VALID: Duration = Duration::from_secs(1);
/// The most descriptors that are kept. Devices beyond these are read each time.
const MOST_KEPT: usize = 512;
/// Bytes for a number and a newline.
const ROOM: usize = 32;

/// The loop devices with an image, and its path, in the order of their numbers.
pub(super) type Attached = Vec<(LoopDevice, PathBuf)>;

/// The table. It is read by one call at a time; those that wait share the next reading.
#[derive(Debug, Default)]
pub(super) struct LoopTable {
    looks: Looks<Attached>,
    rows: Mutex<Rows>,
}

#[derive(Debug, Default)]
struct Rows {
    known: HashMap<LoopDevice, Row>,
    /// The time since all paths were read.
    read: Option<Stopwatch>,
}

#[derive(Debug)]
struct Row {
    /// The attribute `diskseq` of the device. A device that is removed and created again needs a new descriptor.
    sequence: File,
    /// Its value before the path was read; `None` where the path must be read again.
    seen: Option<u64>,
    backing: Option<PathBuf>,
}

impl LoopTable {
    /// The attached loop devices now.
    ///
    /// # Errors
    /// Those of reading sysfs, except for a device that disappears meanwhile.
    pub(super) fn attached(&self) -> io::Result<Arc<Attached>> {
        self.looks.share(|| self.rows(Rows::read))
    }

    /// The image of a device was changed by this process.
    pub(super) fn changed(&self, device: LoopDevice) {
        self.rows(|rows| rows.known.remove(&device));
    }

    fn rows<T>(&self, act: impl FnOnce(&mut Rows) -> T) -> T {
        act(&mut self.rows.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Rows {
    fn read(&mut self) -> io::Result<Attached> {
        let devices = loop_numbers()?;
        self.known.retain(|device, _| devices.binary_search(device).is_ok());
        if self.read.as_ref().is_none_or(|read| read.elapsed() >= VALID) {
            self.known.values_mut().for_each(|row| row.seen = None);
            self.read = Some(Stopwatch::start());
        }
        let mut found = Vec::new();
        for device in devices {
            found.extend(self.image_of(device)?.map(|backing| (device, backing)));
        }
        Ok(found)
    }

    fn image_of(&mut self, device: LoopDevice) -> io::Result<Option<PathBuf>> {
        let number = self.known.get(&device).and_then(|row| number(&row.sequence));
        match (self.known.get_mut(&device), number) {
            (Some(row), Some(_)) if row.seen == number => Ok(row.backing.clone()),
            (Some(row), Some(_)) => {
                row.backing = backing(device)?;
                row.seen = number;
                Ok(row.backing.clone())
            }
            _ => self.read_anew(device),
        }
    }

    /// A device that has no row, or was removed since.
    fn read_anew(&mut self, device: LoopDevice) -> io::Result<Option<PathBuf>> {
        self.known.remove(&device);
        // Before Linux 5.15 there is no such attribute: nothing is kept.
        let sequence = File::open(device.sysfs().join("diskseq")).ok().filter(|_| self.known.len() < MOST_KEPT);
        let row = sequence.and_then(|sequence| Some((number(&sequence)?, sequence)));
        let backing = backing(device)?;
        if let Some((seen, sequence)) = row {
            self.known.insert(device, Row { sequence, seen: Some(seen), backing: backing.clone() });
        }
        Ok(backing)
    }
}

/// The number in a sysfs attribute now; `None` when its device was removed.
fn number(attribute: &File) -> Option<u64> {
    let mut text = [0; ROOM];
    let length = attribute.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::os::{Discard, LoopAccess, LoopConfig, Os};

    fn config() -> LoopConfig {
        LoopConfig {
            block_size: 4096,
            name: "table".to_owned(),
            owner: "table".to_owned(),
            discard: Discard::On,
            access: LoopAccess::Writable,
        }
    }

    fn image(path: &Path) -> File {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(1 << 20).unwrap();
        file
    }

    /// Another program attaches and detaches: nothing tells this process.
    #[test]
    fn what_other_programs_attach_and_detach_is_seen_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let (ours, other) = (Os::new(), Os::new());
        // Each time another image: the same device has it, as far as no other test takes the number.
        let table = |wanted: &Path| {
            let views = ours.loop_views(|backing| backing == wanted).unwrap();
            views.into_iter().map(|view| (view.device, view.backing)).collect::<Vec<_>>()
        };
        for turn in 0..20 {
            let path = directory.path().join(format!("image-{turn}"));
            assert_eq!(table(&path), []);
            let device = other.loop_attach(&image(&path), &path, &config()).unwrap();
            assert_eq!(table(&path), [(device, path.clone())]);
            let status = other.loop_status(device).unwrap().unwrap();
            assert!(other.loop_clear(&status).unwrap());
            assert_eq!(table(&path), []);
        }
    }

    #[test]
    fn a_renamed_image_is_seen_after_a_moment() {
        let directory = tempfile::tempdir().unwrap();
        let os = Os::new();
        let path = directory.path().join("before");
        let device = os.loop_attach(&image(&path), &path, &config()).unwrap();
        let named = |name: &str| os.loop_views(|backing| backing.ends_with(name)).unwrap().len();
        let of_ours =
            |name: &str| named(&format!("{}/{name}", directory.path().file_name().unwrap().to_str().unwrap()));
        assert_eq!(of_ours("before"), 1);
        fs::rename(&path, directory.path().join("after")).unwrap();
        while of_ours("after") == 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(of_ours("before"), 0);
        let status = os.loop_status(device).unwrap().unwrap();
        assert!(os.loop_clear(&status).unwrap());
    }

    #[test]
    fn a_row_without_a_device_is_read_anew() {
        let directory = tempfile::tempdir().unwrap();
        let os = Os::new();
        let path = directory.path().join("image");
        // Of this test as long as it is attached: other tests remove and create the devices that are free.
        let device = os.loop_attach(&image(&path), &path, &config()).unwrap();
        let mut rows = Rows::default();
        rows.read().unwrap();
        // As after LOOP_CTL_REMOVE and LOOP_CTL_ADD: the descriptor is of a device that is no longer there.
        let gone = File::open("/dev/null").unwrap();
        let row = Row { sequence: gone, seen: Some(1), backing: Some(PathBuf::from("/of/the/removed/device")) };
        rows.known.insert(device, row);
        assert!(rows.read().unwrap().contains(&(device, path)));
        assert_eq!(rows.known.get(&device).and_then(|row| row.seen), number(&rows.known[&device].sequence));
        let status = os.loop_status(device).unwrap().unwrap();
        assert!(os.loop_clear(&status).unwrap());
    }
}
