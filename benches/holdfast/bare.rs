//! The commands an administrator would type to do by hand what the driver does.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{Use, run};

/// An image in the pool's filesystem, beside the pool, and where it is shown.
#[derive(Debug)]
pub(crate) struct Bare {
    pub(crate) point: PathBuf,
    image: PathBuf,
    bound: PathBuf,
    device: Option<String>,
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Bare {
    /// Reserves an image's space in one directory, and makes the mount points in another.
    pub(crate) fn new(images: &Path, points: &Path, name: &str, size: i64) -> Self {
        let image = images.join(format!("{name}.img"));
        run("/usr/bin/fallocate", &["-l", &size.to_string(), text(&image)]);
        let (point, bound) = (points.join(name), points.join(format!("{name}-bound")));
        fs::create_dir_all(&point).unwrap();
        fs::create_dir_all(&bound).unwrap();
        Self { point, image, bound, device: None }
    }

    /// losetup with the settings the driver uses.
    pub(crate) fn attach(&mut self) {
        let flags = ["--find", "--show", "--direct-io=on", "--sector-size", "4096", text(&self.image)];
        self.device = Some(run("/usr/sbin/losetup", &flags).trim().to_owned());
    }

    fn device(&self) -> &str {
        self.device.as_deref().unwrap()
    }

    /// mkfs with the options the driver uses.
    pub(crate) fn make(&self, kind: Use) {
        match kind {
            Use::Ext4 => {
                let options = ["-q", "-b", "4096", "-m", "0", "-e", "remount-ro"];
                let extended = ["-E", "nodiscard,assume_storage_prezeroed=1", "-O", "^metadata_csum_seed,^orphan_file"];
                run("/usr/sbin/mkfs.ext4", &[&options[..], &extended, &[self.device()]].concat());
            }
            Use::Xfs => {
                let options = ["-q", "-K", "-s", "size=4096", "-b", "size=4096", "-i", "sparse=1"];
                let features = ["-m", "crc=1,finobt=1,rmapbt=0,reflink=1,bigtime=1,inobtcount=1"];
                run("/usr/sbin/mkfs.xfs", &[&options[..], &features, &[self.device()]].concat());
            }
            Use::Block => {}
        }
    }

    pub(crate) fn mount(&self) {
        run("/usr/bin/mount", &[self.device(), text(&self.point)]);
    }

    pub(crate) fn bind(&self) {
        run("/usr/bin/mount", &["--bind", text(&self.point), text(&self.bound)]);
    }

    pub(crate) fn unbind(&self) {
        run("/usr/bin/umount", &[text(&self.bound)]);
    }

    pub(crate) fn unmount(&self) {
        run("/usr/bin/umount", &[text(&self.point)]);
    }

    pub(crate) fn detach(&mut self) {
        run("/usr/sbin/losetup", &["--detach", self.device()]);
        self.device = None;
    }

    pub(crate) fn remove(self) {
        run("/usr/bin/rm", &[text(&self.image)]);
        fs::remove_dir(&self.point).unwrap();
        fs::remove_dir(&self.bound).unwrap();
    }
}
