//! Files and devices that do not belong to a pool, missing images, and what `sweep` removes. Records are not checked.
//! Reads only.

use std::path::Path;

use super::super::{Object, ObjectKind, Stray, StrayKind};
use super::FilePool;
use super::device::image_of;
use super::layout::{
    DATA, DIRECTORIES, FOREIGN, LOCK_FILE, LOST_AND_FOUND, POOL_FILE, RESERVE, TEMPORARY, object_of, record_name,
};
use crate::os::{Entry, LoopStatus, LoopView};
use crate::types::{ObjectUuid, OsContext, Result};

impl FilePool {
    pub(super) fn find_strays(&self) -> Result<Vec<Stray>> {
        let mut strays = Vec::new();
        self.strays_in_root(&mut strays)?;
        for (class, directory) in self.class_dirs() {
            for name in self.os.list_dir(&directory).at(|| format!("list {}", directory.display()))? {
                if name.starts_with(TEMPORARY) {
                    continue;
                }
                match name.parse::<ObjectUuid>() {
                    Ok(uuid) => self.strays_in_object(object_of(class, uuid), class, &mut strays)?,
                    Err(_) => strays.push(unknown(&directory.join(name))),
                }
            }
        }
        self.stray_loops(&mut strays)?;
        self.unfinished(&mut strays)?;
        Ok(strays)
    }

    /// Temporary names and the trash; the driver removes both at start.
    fn unfinished(&self, strays: &mut Vec<Stray>) -> Result<()> {
        let classes = self.class_dirs().map(|(_, directory)| directory);
        let trash = self.layout.trash();
        for directory in std::iter::once(self.layout.root().to_owned()).chain(classes).chain([trash.clone()]) {
            let names = self.os.list_dir(&directory).at(|| format!("list {}", directory.display()))?;
            for name in names.into_iter().filter(|name| directory == trash || name.starts_with(TEMPORARY)) {
                strays.push(Stray {
                    kind: StrayKind::Unfinished,
                    what: "a temporary name: work in progress, or interrupted work".to_owned(),
                    place: directory.join(name).display().to_string(),
                    remedy: "run holdfast doctor again; if it is still there, restart the driver, which removes it"
                        .to_owned(),
                });
            }
        }
        Ok(())
    }

    fn strays_in_root(&self, strays: &mut Vec<Stray>) -> Result<()> {
        let root = self.layout.root();
        let unfinished = format!("{POOL_FILE}.tmp");
        let known = [POOL_FILE, LOCK_FILE, RESERVE, LOST_AND_FOUND, &unfinished];
        let reserve = self.layout.reserve();
        let entry = self.os.entry(&reserve).at(|| format!("stat {}", reserve.display()))?;
        if entry.is_some_and(|entry| entry != Entry::File) {
            strays.push(unknown(&reserve));
        }
        for name in self.os.list_dir(root).at(|| format!("list {}", root.display()))? {
            if name == FOREIGN {
                self.kept(strays)?;
                continue;
            }
            let known = known.contains(&name.as_str()) || DIRECTORIES.contains(&name.as_str());
            if !known && !name.starts_with(TEMPORARY) {
                strays.push(unknown(&root.join(name)));
            }
        }
        Ok(())
    }

    /// The files that were found in the directories of removed objects.
    fn kept(&self, strays: &mut Vec<Stray>) -> Result<()> {
        let foreign = self.layout.foreign();
        for name in self.os.list_dir(&foreign).at(|| format!("list {}", foreign.display()))? {
            let place = foreign.join(name).display().to_string();
            strays.push(Stray {
                kind: StrayKind::Foreign,
                what: "files that Holdfast did not make: they were in the directory of a deleted volume or snapshot, and were kept"
                    .to_owned(),
                remedy: format!("inspect them and move away what is needed, then rm -r {place}"),
                place,
            });
        }
        Ok(())
    }

    fn strays_in_object(&self, object: Object, class: ObjectKind, strays: &mut Vec<Stray>) -> Result<()> {
        let directory = self.layout.object(object);
        let entry = |path: &Path| self.os.entry(path).at(|| format!("stat {}", path.display()));
        match entry(&directory)? {
            Some(Entry::Directory) => {}
            Some(_) => {
                strays.push(unknown(&directory));
                return Ok(());
            }
            // Removed since it was listed.
            None => return Ok(()),
        }
        let record = record_name(class);
        for name in self.os.list_dir(&directory).at(|| format!("list {}", directory.display()))? {
            let path = directory.join(&name);
            // Problems of a record are reported when it is read.
            let known = name == record || (name == DATA || name == format!("{record}.tmp"));
            let plain = name == record || entry(&path)?.is_none_or(|entry| entry == Entry::File);
            if !known || !plain {
                strays.push(unknown(&path));
            }
        }
        if entry(&directory.join(DATA))?.is_none() && entry(&directory)?.is_some() {
            strays.push(Stray {
                kind: StrayKind::Missing,
                what: format!("{object} has no image (the file {DATA})"),
                place: directory.display().to_string(),
                remedy: format!("restore it from a backup, or rm -r {} if the data is not needed", directory.display()),
            });
        }
        Ok(())
    }

    /// Loop devices over a file of this pool that is no volume's image, a second device over one image, and devices
    /// that cannot be queried.
    fn stray_loops(&self, strays: &mut Vec<Stray>) -> Result<()> {
        let place = self.place()?;
        let root = self.layout.root();
        let candidate = |backing: &Path| backing.starts_with(root) || image_of(backing).is_some();
        let mut seen: Vec<LoopStatus> = Vec::new();
        for view in self.os.loop_views(candidate).at(|| "list the loop devices")? {
            let backing = view.backing.display();
            let device = view.device.path();
            let status = match self.os.loop_status(view.device) {
                Ok(Some(status)) => status,
                Ok(None) => continue,
                Err(_) if !self.is_here(&view) && !view.backing.starts_with(root) => continue,
                Err(error) => {
                    strays.push(Stray {
                        kind: StrayKind::Foreign,
                        what: format!("a loop device over {backing} that cannot be queried: {error}"),
                        place: device.display().to_string(),
                        remedy: "see in dmesg why its filesystem does not respond; stop the processes that use it, then run losetup -d on it"
                            .to_owned(),
                    });
                    continue;
                }
            };
            if !status.on_filesystem_of(&place) {
                continue;
            }
            let what = if seen.iter().any(|other| other.shows_what(&status)) {
                format!("a second loop device over {backing}")
            } else if self.is_image(&view, &status)? || !view.backing.starts_with(root) {
                seen.push(status);
                continue;
            } else {
                format!("a loop device over {backing}, which is not a volume's image, or which Holdfast did not attach")
            };
            seen.push(status);
            strays.push(Stray {
                kind: StrayKind::Foreign,
                what,
                place: device.display().to_string(),
                remedy: format!("stop the processes that use it, then run losetup -d {}", device.display()),
            });
        }
        Ok(())
    }

    /// Whether the image of the volume whose path a device has backs the device, as attached by the driver.
    fn is_image(&self, view: &LoopView, status: &LoopStatus) -> Result<bool> {
        let Some(image) = image_of(&view.backing).filter(super::device::ImagePath::named) else { return Ok(false) };
        let path = self.layout.data(Object::Volume(image.uuid));
        let file = self.os.identity(&path).at(|| format!("stat {}", path.display()))?;
        Ok(file.is_some_and(|file| status.backs(&file)) && self.is_ours(image.uuid, status))
    }
}

fn unknown(path: &Path) -> Stray {
    Stray {
        kind: StrayKind::Foreign,
        what: "not made by Holdfast".to_owned(),
        place: path.display().to_string(),
        remedy: "inspect it, then move it out of the pool's directory".to_owned(),
    }
}
