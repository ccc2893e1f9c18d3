//! XFS through xfsprogs: created for kernel 5.15, checked, grown. Never repaired here: xfs_repair has no careful mode.

use std::path::Path;

use uuid::Uuid;

use super::probe::{Found, probe_disk};
use super::tool::{self, CHECK_LIMIT, MAKE_LIMIT};
use super::{Checked, Filesystem, Grown, MkfsOptions};
use crate::os::{BlockDevice, Exit, Os, Output, Program};
use crate::types::{Bytes, Error, FsType, Kind, OsContext, Result};

/// XFS.
pub(super) struct Xfs;

/// Features newer than the baseline: the first mkfs.xfs that has the switch, the option letter, and the value for off.
/// An older one has neither the feature nor the switch.
const LATER: &[((u32, u32), &str, &str)] = &[
    ((5, 19), "-i", "nrext64=0"),
    ((6, 10), "-i", "exchange=0"),
    ((6, 10), "-n", "parent=0"),
    ((6, 13), "-m", "metadir=0"),
];

/// The oldest mkfs.xfs that has every switch that is always passed.
const OLDEST: (u32, u32) = (5, 11);

impl Filesystem for Xfs {
    fn make(&self, os: &Os, device: &Path, uuid: Uuid, options: &MkfsOptions) -> Result<()> {
        let program = making(os, device, uuid, options)?.arg(device.display().to_string());
        let output = tool::run(os, "mkfs.xfs", device, &program)?;
        if output.success() { Ok(()) } else { Err(make_failed(device, &output)) }
    }

    fn rehearse(&self, os: &Os, size: Bytes, options: &MkfsOptions) -> Result<()> {
        let nowhere = Path::new("a blank file");
        let program = making(os, nowhere, Uuid::nil(), options)?.arg("-N").blank_file(size.get());
        tool::rehearsed(FsType::Xfs, size, options, &tool::run(os, "mkfs.xfs -N", nowhere, &program)?)
    }

    fn check(&self, os: &Os, device: &Path) -> Result<Checked> {
        let program = tool::find("xfs_repair", device, CHECK_LIMIT)?.arg("-n").arg(device.display().to_string());
        let output = tool::run(os, "xfs_repair -n", device, &program)?;
        match output.exit {
            Exit::Code(0) => Ok(Checked::Sound),
            Exit::Code(1) if !output.stderr.contains("fatal error") && !output.stderr.contains("cannot open") => {
                Ok(Checked::Unsound { said: tool::said(&output) })
            }
            _ => Err(tool::failed(check_kind(&output), "xfs_repair -n", device, &output)),
        }
    }

    fn repair(&self, _os: &Os, device: &Path) -> Result<()> {
        Err(Error::new(
            Kind::Corrupt,
            format!(
                "the XFS on {} needs a repair, which Holdfast does not run; snapshot or copy the volume, then run xfs_repair on it manually (use -L last: it discards the log)",
                device.display()
            ),
        ))
    }

    fn grow_mounted(&self, os: &Os, device: &BlockDevice, mount_point: &Path, target: Bytes) -> Result<Grown> {
        let look =
            || os.xfs_geometry(mount_point).at(|| format!("read the size of the XFS at {}", mount_point.display()));
        let now = look()?;
        let blocks = target.get() / u64::from(now.block_size.max(1));
        if now.blocks >= blocks {
            return Ok(Grown::AlreadyThere);
        }
        last_growth_is_on_disk(os, device, now.blocks)?;
        os.grow_xfs(mount_point, blocks, now.inode_percent)
            .at(|| format!("cannot grow the XFS on {} to {target}; kubelet retries", device.path().display()))?;
        let now = look()?;
        // A last allocation group under 16 MiB is left out (fs/xfs/xfs_fsops.c: XFS_MIN_AG_BLOCKS is 64 blocks).
        if now.blocks.saturating_add(64) > blocks {
            return Ok(Grown::Yes);
        }
        Err(Error::new(
            Kind::Internal,
            format!(
                "the XFS on {} has {} blocks after it was grown to {blocks}; kubelet retries",
                device.path().display(),
                now.blocks
            ),
        ))
    }

    fn grow_unmounted(&self, _os: &Os, _device: &BlockDevice, _target: Bytes) -> Result<Grown> {
        Ok(Grown::NotPermitted)
    }
}

/// Fails if the superblock on disk of a mounted XFS does not contain its last growth yet.
///
/// A growth that lengthens the last allocation group logs that group's headers before the superblock. If the superblock
/// on disk is still older than the group itself, a recovery rejects those headers as beyond the end of the filesystem
/// (fs/xfs/xfs_buf.c: xfs_buf_map_verify; seen on 6.18). The filesystem then fails with EUCLEAN permanently, after a
/// power loss and in a snapshot. The kernel writes the superblock back within fs.xfs.xfssyncd_centisecs, 30 s by
/// default. Only an unmount or a freeze makes it do so earlier, and a freeze would outlive our process.
fn last_growth_is_on_disk(os: &Os, device: &BlockDevice, blocks: u64) -> Result<()> {
    match probe_disk(os, device)?.xfs {
        Found::Valid(superblock) if superblock.blocks == blocks => Ok(()),
        _ => Err(Error::new(
            Kind::Busy,
            format!(
                "the XFS on {} has grown and has not written that to its superblock yet, which takes up to 30 s; growing it again earlier would make it unreadable after a crash; retry",
                device.path().display()
            ),
        )),
    }
}

/// The mkfs.xfs command of this driver, without its target.
fn making(os: &Os, target: &Path, uuid: Uuid, options: &MkfsOptions) -> Result<Program> {
    let version = version(os, target)?;
    let features = format!("uuid={uuid},crc=1,finobt=1,rmapbt=0,reflink=1,bigtime=1,inobtcount=1");
    let later = LATER.iter().filter(|(since, ..)| version >= *since);
    Ok(tool::find("mkfs.xfs", target, MAKE_LIMIT)?
        .args(["-q", "-K", "-s", "size=4096", "-b", "size=4096", "-i", "sparse=1", "-m", &features])
        .args(later.flat_map(|(_, letter, off)| [*letter, *off]))
        .args(options.arguments()))
}

/// The version of the installed mkfs.xfs.
///
/// # Errors
/// `Precondition` when it is missing; `Unsupported` when it is too old; those of [`tool::run`].
pub(super) fn version(os: &Os, device: &Path) -> Result<(u32, u32)> {
    let program = tool::find("mkfs.xfs", device, MAKE_LIMIT)?.arg("-V");
    let output = tool::run(os, "mkfs.xfs -V", device, &program)?;
    let version = parse_version(&output.stdout).filter(|version| *version >= OLDEST);
    version.ok_or_else(|| {
        let said = output.stdout.trim();
        Error::new(
            Kind::Unsupported,
            format!("mkfs.xfs reports {said:?}; install xfsprogs {}.{} or later to create volumes", OLDEST.0, OLDEST.1),
        )
    })
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().strip_prefix("mkfs.xfs version ")?.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The error of a failed mkfs.xfs. Its first line has the reason; the rest is usage.
fn make_failed(device: &Path, output: &Output) -> Error {
    let said = |text: &str| output.stderr.contains(text);
    let kind = if said("contains a mounted filesystem") || said("Device or resource busy") || said("is mounted") {
        Kind::Busy
    } else if said("appears to contain an existing filesystem") || said("appears to contain a partition table") {
        Kind::Precondition
    } else if said("No space left on device") {
        Kind::NoCapacity
    } else if said("must be larger than") || said("too small") || tool::too_much(output) {
        Kind::OutOfRange
    } else if said("unknown option") {
        Kind::Unsupported
    } else {
        Kind::Internal
    };
    tool::failed(kind, "mkfs.xfs", device, output)
}

/// The error kind when xfs_repair could not do its work.
fn check_kind(output: &Output) -> Kind {
    if output.stderr.contains("mounted") || output.stderr.contains("Device or resource busy") {
        Kind::Busy
    } else {
        Kind::Internal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_mkfs_xfs_said_has_its_meaning() {
        let kind = |said: &str| {
            let usage = "Usage: mkfs.xfs\n/* blocksize */\t\t[-b size=num]\n";
            let output = Output { exit: Exit::Code(1), stdout: String::new(), stderr: format!("{said}\n{usage}") };
            let error = make_failed(Path::new("/dev/loop1"), &output);
            assert!(error.to_string().contains(said), "{error}");
            error.kind()
        };
        assert_eq!(kind("mkfs.xfs: /dev/loop1 contains a mounted filesystem"), Kind::Busy);
        assert_eq!(kind("mkfs.xfs: cannot open /dev/loop1: Device or resource busy"), Kind::Busy);
        assert_eq!(kind("mkfs.xfs: /dev/loop1 appears to contain an existing filesystem (ext4)."), Kind::Precondition);
        assert_eq!(kind("unknown option -i nrext64=0"), Kind::Unsupported);
        assert_eq!(kind("Filesystem must be larger than 300MB."), Kind::OutOfRange);
        assert_eq!(kind("mkfs.xfs: pwrite failed: No space left on device"), Kind::NoCapacity);
        assert_eq!(kind("mkfs.xfs: pwrite failed: Input/output error"), Kind::Internal);
    }

    #[test]
    fn versions_are_read_and_strange_ones_are_not_guessed() {
        assert_eq!(parse_version("mkfs.xfs version 6.1.0\n"), Some((6, 1)));
        assert_eq!(parse_version("mkfs.xfs version 6.10.1-rc0"), Some((6, 10)));
        assert_eq!(parse_version("mkfs.btrfs, part of btrfs-progs v6.2"), None);
    }
}
