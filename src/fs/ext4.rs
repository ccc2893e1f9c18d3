//! ext4 through e2fsprogs: created for kernel 5.15, checked, repaired where e2fsck can do so without a decision, grown.

use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::probe::{self, Found};
use super::tool::{self, CHECK_LIMIT, MAKE_LIMIT, REPAIR_LIMIT};
use super::{Checked, Filesystem, Grown, MkfsOptions};
use crate::os::{BlockDevice, Exit, Os, Output, Program};
use crate::types::{Bytes, Error, FsType, Kind, Result};

/// ext4.
pub(super) struct Ext4;

/// Features that kernel 5.15 mounts and e2fsprogs 1.46 checks, independent of the image's /etc/mke2fs.conf: above all
/// no `metadata_csum_seed` and no `orphan_file` (docs/design.md section 8.7). One block size, inode size and ratio for
/// every size, so that a grown volume is like one created at that size. mke2fs treats an empty section as missing, and
/// warns about it.
const MKE2FS_CONF: &str = "\
[defaults]
	base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
	default_mntopts = acl,user_xattr
	enable_periodic_fsck = 0
	blocksize = 4096
	inode_size = 256
	inode_ratio = 16384

[fs_types]
	ext4 = {
		features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
	}
	small = {
		blocksize = 4096
	}
	big = {
		blocksize = 4096
	}
	huge = {
		blocksize = 4096
	}
";

/// The largest factor by which one run of resize2fs grows a filesystem. mke2fs reserves descriptors for a factor of
/// 1024. Beyond that, resize2fs 1.47 moves the tables of a filesystem of one group in a way that loses their blocks.
/// This was seen with inodes of 1024 and 2048 bytes. With smaller steps the filesystem has more groups by then.
const MOST_AT_ONCE: u64 = 256;
/// Address space for e2fsck: it needs about 600 MiB for 10 TiB.
const CHECK_MEMORY: u64 = 2 << 30;
/// The superblock of a mounted filesystem may be inconsistent while the kernel writes it: the pause between two reads.
const TORN_PAUSE: Duration = Duration::from_millis(50);
const TORN_READS: u32 = 5;

impl Filesystem for Ext4 {
    fn make(&self, os: &Os, device: &Path, uuid: Uuid, options: &MkfsOptions) -> Result<()> {
        let program = making(device, uuid, options)?.arg(device.display().to_string());
        let output = tool::run(os, "mkfs.ext4", device, &program)?;
        if output.success() { Ok(()) } else { Err(make_failed(device, &output)) }
    }

    fn rehearse(&self, os: &Os, size: Bytes, options: &MkfsOptions) -> Result<()> {
        let nowhere = Path::new("a blank file");
        let program = making(nowhere, Uuid::nil(), options)?.arg("-n").blank_file(size.get());
        tool::rehearsed(FsType::Ext4, size, options, &tool::run(os, "mkfs.ext4 -n", nowhere, &program)?)
    }

    fn check(&self, os: &Os, device: &Path) -> Result<Checked> {
        let program = tool::find("e2fsck", device, CHECK_LIMIT)?
            .memory(CHECK_MEMORY)
            .args(["-n", "-f"])
            .arg(device.display().to_string());
        let output = tool::run(os, "e2fsck -n", device, &program)?;
        match output.exit {
            Exit::Code(0) => Ok(Checked::Sound),
            // 4: errors left uncorrected, which is all that -n can find; 8: too damaged to continue.
            Exit::Code(4 | 8 | 12) if judged(&output) => Ok(Checked::Unsound { said: tool::said(&output) }),
            _ => Err(tool::failed(check_kind(&output), "e2fsck -n", device, &output)),
        }
    }

    fn repair(&self, os: &Os, device: &Path) -> Result<()> {
        let output = self.fsck(os, device, &["-p"])?;
        match output.exit {
            // 1: corrected. 2: corrected, reboot if it was mounted: it was not.
            Exit::Code(0..=3) => Ok(()),
            _ => Err(repair_failed(device, &output)),
        }
    }

    fn grow_mounted(&self, os: &Os, device: &BlockDevice, mount_point: &Path, target: Bytes) -> Result<Grown> {
        let superblock = settled(os, device)?;
        let blocks = target.get() / u64::from(superblock.block_size);
        if superblock.blocks >= blocks {
            return Ok(Grown::AlreadyThere);
        }
        if superblock.health == probe::Health::Errors {
            return Err(errors(device));
        }
        match os.grow_ext4(mount_point, blocks) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return Ok(if big_enough(&superblock, blocks) { Grown::AlreadyThere } else { Grown::NotPermitted });
            }
            Err(error) => {
                return Err(Error::new(
                    Kind::Internal,
                    format!("cannot grow the mounted ext4 on {} to {target}; kubelet retries", device.path().display()),
                )
                .because(error));
            }
        }
        // The kernel's change reaches the block device's cache with the commit of the journal; the count is in memory.
        verify(device, &settled(os, device)?, blocks)
    }

    fn grow_unmounted(&self, os: &Os, device: &BlockDevice, target: Bytes) -> Result<Grown> {
        let superblock = settled(os, device)?;
        let blocks = target.get() / u64::from(superblock.block_size);
        if big_enough(&superblock, blocks) {
            return Ok(Grown::AlreadyThere);
        }
        let path = device.path();
        let mut now = superblock;
        // A crash between two steps leaves a consistent filesystem of the size reached; the next growth continues.
        while !big_enough(&now, blocks) {
            let step = blocks.min(now.blocks.saturating_mul(MOST_AT_ONCE));
            let output = self.fsck(os, path, &["-f", "-p"])?;
            if !matches!(output.exit, Exit::Code(0..=3)) {
                return Err(repair_failed(path, &output));
            }
            let program = tool::find("resize2fs", path, REPAIR_LIMIT)?
                .outlives_us()
                .arg(path.display().to_string())
                .arg(step.to_string());
            let output = tool::run(os, "resize2fs", path, &program)?;
            if !output.success() {
                return Err(tool::failed(Kind::Internal, "resize2fs", path, &output));
            }
            now = settled(os, device)?;
            verify(device, &now, step)?;
        }
        Ok(Grown::Yes)
    }
}

/// The mkfs.ext4 command of this driver, without its target.
fn making(target: &Path, uuid: Uuid, options: &MkfsOptions) -> Result<Program> {
    let program = tool::find("mkfs.ext4", target, MAKE_LIMIT)?
        .env_file("MKE2FS_CONFIG", MKE2FS_CONF)
        .args(["-q", "-t", "ext4", "-U", &uuid.to_string(), "-b", "4096", "-m", "0", "-e", "remount-ro"])
        .args(["-E", "nodiscard,assume_storage_prezeroed=1"]);
    Ok(program.args(options.arguments()))
}

impl Ext4 {
    /// Like resize2fs, e2fsck writes the superblock in several parts (libext2fs: write_primary_superblock). If it is
    /// interrupted in between, the checksum is wrong. Therefore both tools continue when our process dies; they hold
    /// the device exclusively.
    fn fsck(&self, os: &Os, device: &Path, flags: &[&str]) -> Result<Output> {
        let program = tool::find("e2fsck", device, REPAIR_LIMIT)?
            .outlives_us()
            .memory(CHECK_MEMORY)
            .args(flags.iter().copied())
            .arg(device.display().to_string());
        tool::run(os, "e2fsck -p", device, &program)
    }
}

/// Whether the missing blocks are fewer than a last block group needs for itself.
fn big_enough(superblock: &probe::Superblock, blocks: u64) -> bool {
    superblock.blocks.saturating_add(superblock.slack) >= blocks
}

fn verify(device: &BlockDevice, now: &probe::Superblock, blocks: u64) -> Result<Grown> {
    if big_enough(now, blocks) {
        return Ok(Grown::Yes);
    }
    Err(Error::new(
        Kind::Internal,
        format!(
            "the ext4 on {} has {} blocks after it was grown to {blocks}; kubelet retries",
            device.path().display(),
            now.blocks
        ),
    ))
}

/// The superblock; read again while the kernel is changing it.
fn settled(os: &Os, device: &BlockDevice) -> Result<probe::Superblock> {
    let mut last = Found::Absent;
    for _ in 0..TORN_READS {
        match probe::probe(os, device)?.ext4 {
            Found::Valid(superblock) => return Ok(superblock),
            other => last = other,
        }
        std::thread::sleep(TORN_PAUSE);
    }
    Err(Error::new(
        Kind::Corrupt,
        format!("{} has no valid ext4 superblock ({last:?}); inspect it with dumpe2fs", device.path().display()),
    ))
}

fn errors(device: &BlockDevice) -> Error {
    Error::new(
        Kind::Precondition,
        format!(
            "the ext4 on {} is marked with errors, so it cannot grow; stop the pods that use the volume: the node checks it at the next stage",
            device.path().display()
        ),
    )
}

/// The error of a failed mkfs.ext4.
fn make_failed(device: &Path, output: &Output) -> Error {
    let said = |text: &str| output.stderr.contains(text) || output.stdout.contains(text);
    let kind = if said("apparently in use by the system") || said("is mounted") || said("Device or resource busy") {
        Kind::Busy
    } else if said("No space left on device") {
        Kind::NoCapacity
    } else if said("too small") || said("Not enough space") || tool::too_much(output) {
        Kind::OutOfRange
    } else if said("Bad option(s) specified") || said("Invalid filesystem option") || said("invalid option") {
        Kind::Unsupported
    } else {
        Kind::Internal
    };
    tool::failed(kind, "mkfs.ext4", device, output)
}

/// The error kind when e2fsck could not do its work.
fn check_kind(output: &Output) -> Kind {
    let said = |text: &str| output.stderr.contains(text) || output.stdout.contains(text);
    if said("is in use") || said("is mounted") || said("Device or resource busy") {
        Kind::Busy
    } else if said("Superblock invalid") || said("Bad magic number") {
        Kind::Corrupt
    } else {
        Kind::Internal
    }
}

/// Whether e2fsck has judged the filesystem, and did not merely fail to read it.
fn judged(output: &Output) -> bool {
    let text = format!("{}{}", output.stderr, output.stdout);
    let unable =
        ["Input/output error", "Error reading", "while reading", "emory allocation failed", "Cannot allocate memory"];
    check_kind(output) != Kind::Busy && !unable.iter().any(|words| text.contains(words))
}

fn repair_failed(device: &Path, output: &Output) -> Error {
    match output.exit {
        Exit::Code(4) => Error::new(
            Kind::Corrupt,
            format!(
                "e2fsck -p cannot repair the {} on {} automatically ({}); snapshot or copy the volume, then run e2fsck -f on it manually",
                FsType::Ext4,
                device.display(),
                tool::said(output)
            ),
        ),
        _ => tool::failed(check_kind(output), "e2fsck -p", device, output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(code: i32, stderr: &str) -> Output {
        Output { exit: Exit::Code(code), stdout: String::new(), stderr: stderr.to_owned() }
    }

    #[test]
    fn what_mkfs_ext4_said_has_its_meaning() {
        let kind = |said: &str| make_failed(Path::new("/dev/loop0"), &output(1, said)).kind();
        assert_eq!(kind("/dev/loop1 is mounted; will not make a filesystem here!\n"), Kind::Busy);
        let busy = "/dev/loop0 is apparently in use by the system; will not make a filesystem here!\n";
        assert_eq!(kind(busy), Kind::Busy);
        let full = "mkfs.ext4: No space left on device while writing out and closing file system\n";
        assert_eq!(kind(full), Kind::NoCapacity);
        assert_eq!(
            kind("\nBad option(s) specified: assume_storage_prezeroed\n\nExtended options are..."),
            Kind::Unsupported
        );
        assert_eq!(kind("mkfs.ext4: Filesystem too small for a journal\n"), Kind::OutOfRange);
        assert_eq!(kind("mkfs.ext4: Input/output error while writing superblock\n"), Kind::Internal);
    }

    #[test]
    fn what_e2fsck_said_has_its_meaning() {
        let device = Path::new("/dev/loop0");
        let manual = "/dev/loop0: UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.\n\t(i.e., without -a or -p options)\n";
        let error = repair_failed(device, &output(4, manual));
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.to_string().contains("manually"));
        assert_eq!(
            repair_failed(device, &output(8, "/dev/loop0 is in use.\ne2fsck: Cannot continue")).kind(),
            Kind::Busy
        );
        let magic = "e2fsck: Bad magic number in super-block while trying to open /dev/loop0\n";
        assert_eq!(repair_failed(device, &output(8, magic)).kind(), Kind::Corrupt);
        assert_eq!(repair_failed(device, &output(8, "e2fsck: Memory allocation failed")).kind(), Kind::Internal);
        let torn = "/usr/sbin/e2fsck: The journal superblock is corrupt while checking journal for /dev/loop5\n";
        assert!(judged(&output(12, torn)) && judged(&output(8, magic)));
        assert!(!judged(&output(8, "/dev/loop0 is in use.\ne2fsck: Cannot continue, aborting.\n")));
        assert!(!judged(&output(12, "Error reading block 1 (Input/output error).  Ignore error? no\n")));
    }

    /// A sparse file under a loop device, while this value exists.
    struct Disk {
        os: Os,
        file: tempfile::NamedTempFile,
        device: std::path::PathBuf,
    }

    impl Disk {
        fn new(size: Bytes) -> Self {
            let (os, file) = (Os::new(), tempfile::NamedTempFile::new().unwrap());
            file.as_file().set_len(size.get()).unwrap();
            let shown = losetup(&os, &["--find", "--show", &file.path().display().to_string()]);
            Self { os, file, device: shown.trim().into() }
        }

        fn grow(&self, size: Bytes) {
            self.file.as_file().set_len(size.get()).unwrap();
            losetup(&self.os, &["--set-capacity", &self.device.display().to_string()]);
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            losetup(&self.os, &["--detach", &self.device.display().to_string()]);
        }
    }

    fn losetup(os: &Os, arguments: &[&str]) -> String {
        let program =
            Program::find("losetup", Path::new("a test"), MAKE_LIMIT).unwrap().args(arguments.iter().copied());
        let output = os.run(&program).unwrap();
        assert!(output.success(), "{}", output.summary());
        output.stdout
    }

    #[test]
    fn grown_far_beyond_its_descriptors_it_is_whole() {
        for options in ["-I 1024", "-I 2048", "-I 2048 -i 65536"] {
            let disk = Disk::new(Bytes::mib(16));
            let options = MkfsOptions::parse(FsType::Ext4, options).unwrap();
            Ext4.make(&disk.os, &disk.device, Uuid::new_v4(), &options).unwrap();
            // A factor of more than 1024, which resize2fs does not survive in one run.
            let target = Bytes::mib(17 * 1024 + 3);
            disk.grow(target);
            let device = disk.os.open_device(&disk.device).unwrap();
            assert_eq!(Ext4.grow_unmounted(&disk.os, &device, target).unwrap(), Grown::Yes);
            assert_eq!(Ext4.check(&disk.os, &disk.device).unwrap(), Checked::Sound, "{options:?}");
            assert_eq!(Ext4.grow_unmounted(&disk.os, &device, target).unwrap(), Grown::AlreadyThere);
        }
    }

    #[test]
    fn mkfs_has_nothing_to_say_of_its_configuration() {
        let program = making(Path::new("nothing"), Uuid::new_v4(), &MkfsOptions::default()).unwrap();
        let output = Os::new().run(&program.arg("-n").blank_file(16 << 20)).unwrap();
        assert!(output.success() && output.stderr.trim().is_empty(), "{}", output.stderr);
    }
}
