//! What lies in a pool's place and does not belong there, and images that are missing. Records are not looked at.
//! Reads only; what `sweep` settles by itself is not listed, nor
//! are temporaries, which belong to work under way.

use std::path::Path;

use super::super::{Class, Object, Stray};
use super::FilePool;
use super::device::image_of;
use super::layout::{
    DATA, DIRECTORIES, LOCK_FILE, LOST_AND_FOUND, POOL_FILE, RESERVE, TEMPORARY, object_of, record_name,
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
        Ok(strays)
    }

    fn strays_in_root(&self, strays: &mut Vec<Stray>) -> Result<()> {
        let root = self.layout.root();
        let unfinished = format!("{POOL_FILE}.tmp");
        let known = [POOL_FILE, LOCK_FILE, RESERVE, LOST_AND_FOUND, &unfinished];
        let reserve = self.layout.reserve();
        let entry = self.os.entry(&reserve).at(|| format!("look at {}", reserve.display()))?;
        if entry.is_some_and(|entry| entry != Entry::File) {
            strays.push(unknown(&reserve));
        }
        for name in self.os.list_dir(root).at(|| format!("list {}", root.display()))? {
            let known = known.contains(&name.as_str()) || DIRECTORIES.contains(&name.as_str());
            if !known && !name.starts_with(TEMPORARY) {
                strays.push(unknown(&root.join(name)));
            }
        }
        Ok(())
    }

    fn strays_in_object(&self, object: Object, class: Class, strays: &mut Vec<Stray>) -> Result<()> {
        let directory = self.layout.object(object);
        let entry = |path: &Path| self.os.entry(path).at(|| format!("look at {}", path.display()));
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
            // What is wrong with a record is said by whoever reads it.
            let known = name == record || (name == DATA || name == format!("{record}.tmp"));
            let plain = name == record || entry(&path)?.is_none_or(|entry| entry == Entry::File);
            if !known || !plain {
                strays.push(unknown(&path));
            }
        }
        if entry(&directory.join(DATA))?.is_none() && entry(&directory)?.is_some() {
            strays.push(Stray {
                missing: true,
                what: format!("{object} without {DATA}, its image"),
                place: directory.display().to_string(),
                remedy: format!("restore it from a backup, or rm -r {} if the data is not needed", directory.display()),
            });
        }
        Ok(())
    }

    /// Loop devices over a file of this pool that is no volume's image, or over one image twice, or that do not answer.
    fn stray_loops(&self, strays: &mut Vec<Stray>) -> Result<()> {
        let place = self.place()?;
        let root = self.layout.root();
        let candidate = |backing: &Path| backing.starts_with(root) || image_of(backing).is_some();
        let mut seen: Vec<LoopStatus> = Vec::new();
        for view in self.os.loop_views(candidate).at(|| "look at the loop devices")? {
            let backing = view.backing.display();
            let device = view.device.path();
            let status = match self.os.loop_status(view.device) {
                Ok(Some(status)) => status,
                Ok(None) => continue,
                Err(_) if !self.is_here(&view) && !view.backing.starts_with(root) => continue,
                Err(error) => {
                    strays.push(Stray {
                        missing: false,
                        what: format!("a loop device over {backing} that does not answer: {error}"),
                        place: device.display().to_string(),
                        remedy: "see why its filesystem does not respond (the kernel's log); end its users, then losetup -d it"
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
                format!("a loop device over {backing}, which is no volume's image or was not attached by Holdfast")
            };
            seen.push(status);
            strays.push(Stray {
                missing: false,
                what,
                place: device.display().to_string(),
                remedy: format!("end its users, then losetup -d {}", device.display()),
            });
        }
        Ok(())
    }

    /// Whether a device shows the image of the volume whose path it has, as the driver would.
    fn is_image(&self, view: &LoopView, status: &LoopStatus) -> Result<bool> {
        let Some(image) = image_of(&view.backing).filter(super::device::ImagePath::named) else { return Ok(false) };
        let path = self.layout.data(Object::Volume(image.uuid));
        let file = self.os.identity(&path).at(|| format!("stat {}", path.display()))?;
        Ok(file.is_some_and(|file| status.backs(&file)) && self.is_ours(image.uuid, status))
    }
}

fn unknown(path: &Path) -> Stray {
    Stray {
        missing: false,
        what: "not made by Holdfast".to_owned(),
        place: path.display().to_string(),
        remedy: "look at it, then move it out of the pool's directory".to_owned(),
    }
}
