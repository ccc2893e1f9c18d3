//! Another process that fills the pool's filesystem, to the last block and the last inode.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

/// Filesystems with fewer inodes than this are filled with empty files too.
const COUNTED: u64 = 100_000;

/// Files that fill a filesystem until this is dropped.
#[derive(Debug)]
pub(crate) struct Hog {
    directory: PathBuf,
    files: u64,
}

impl Hog {
    /// Takes every inode, if they are counted and few, then every block, then the rest with small and empty files: as
    /// root, so also the space reserved for root.
    pub(crate) fn fill(root: &Path) -> Self {
        let mut hog = Self::in_directory(root);
        if (1..COUNTED).contains(&statvfs(root).unwrap().files()) {
            hog.take_inodes();
        }
        hog.take_blocks();
        hog
    }

    /// Takes every inode and no blocks.
    pub(crate) fn inodes(root: &Path) -> Self {
        let mut hog = Self::in_directory(root);
        hog.take_inodes();
        hog
    }

    fn in_directory(root: &Path) -> Self {
        let directory = root.join("hog");
        fs::create_dir(&directory).unwrap();
        // Created while there is space.
        let mut big = Self { directory, files: 0 };
        big.next().unwrap();
        big
    }

    /// Takes also the space that was freed since.
    pub(crate) fn take_blocks(&mut self) {
        let mut big = File::options().append(true).open(self.directory.join("0")).unwrap();
        let mut piece = 1_i64 << 30;
        while piece >= 4096 {
            let end = i64::try_from(big.metadata().unwrap().len()).unwrap();
            if fallocate(&big, FallocateFlags::empty(), end, piece).is_err() {
                piece /= 2;
            }
        }
        while big.write_all(&[1; 4096]).and_then(|()| big.sync_all()).is_ok() {}
        if statvfs(&self.directory).unwrap().files() == 0 {
            // btrfs: its metadata has its own space.
            return;
        }
        // Small enough to be stored in its inode, where the filesystem does that.
        for content in [&[1; 1500][..], &[]] {
            while self.next().and_then(|mut file| file.write_all(content)).is_ok() {}
        }
        nix::unistd::sync();
        while big.write_all(&[1; 512]).and_then(|()| big.sync_all()).is_ok() {}
    }

    fn take_inodes(&mut self) {
        while self.next().is_ok() {}
    }

    fn next(&mut self) -> io::Result<File> {
        let file = File::create_new(self.directory.join(self.files.to_string()))?;
        self.files += 1;
        Ok(file)
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).expect("there is space again");
        nix::unistd::sync();
    }
}
