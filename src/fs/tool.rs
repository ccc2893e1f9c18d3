//! The common part of e2fsprogs and xfsprogs: limits, finding and running a tool, and its errors.

use std::path::Path;
use std::time::Duration;

use super::MkfsOptions;
use crate::os::{Exit, Os, Output, Program};
use crate::types::{Bytes, Error, FsType, Kind, OsContext, Result};

/// For mkfs: it takes seconds, because it writes no tables.
pub(super) const MAKE_LIMIT: Duration = Duration::from_secs(300);
/// For a check of a filesystem that mkfs may not have finished: it is empty.
pub(super) const CHECK_LIMIT: Duration = Duration::from_secs(300);
/// For a repair or a resize of a filesystem with data.
pub(super) const REPAIR_LIMIT: Duration = Duration::from_secs(1800);

/// A sentence longer than this many bytes is cut at the end of its line.
const LONGEST_REASON: usize = 160;

/// A program of this name for this device.
pub(super) fn find(name: &str, device: &Path, limit: Duration) -> Result<Program> {
    Program::find(name, device, limit).map_err(|error| {
        Error::new(Kind::Precondition, format!("{name} is needed for {}", device.display())).because(error)
    })
}

/// Runs it to its end; the caller evaluates a non-zero exit.
pub(super) fn run(os: &Os, name: &str, device: &Path, program: &Program) -> Result<Output> {
    os.run(program).at(|| format!("run {name} on {}", device.display()))
}

/// Output of a tool before its reason: name and version, its steps, and warnings about its configuration.
fn prelude(line: &str) -> bool {
    const VERSIONS: [&str; 4] = ["e2fsck 1.", "mke2fs 1.", "mkfs.ext4 1.", "resize2fs 1."];
    const STEPS: [&str; 5] = ["Pass ", "Phase ", "Resizing the filesystem", "Filesystem at ", "Creating filesystem"];
    let begins = |words: &[&str]| words.iter().any(|word| line.starts_with(word));
    begins(&VERSIONS) || begins(&STEPS) || line.starts_with("Warning:") || line.starts_with("old_desc_blocks")
}

/// The reason that a tool gives: its first sentence, over any number of lines. Usage texts and advice come after it.
pub(super) fn said(output: &Output) -> String {
    [&output.stderr, &output.stdout].into_iter().find_map(|text| reason(text)).unwrap_or_else(|| "no output".into())
}

fn reason(text: &str) -> Option<String> {
    let mut reason = String::new();
    for line in text.lines().map(str::trim) {
        match (reason.is_empty(), line.is_empty() || line.starts_with("Usage")) {
            (true, true) => continue,
            (true, false) if prelude(line) => continue,
            (true, false) => reason.push_str(line),
            (false, true) => break,
            (false, false) => {
                reason.push(' ');
                reason.push_str(line);
            }
        }
        if reason.ends_with(['.', '!', '?']) || reason.len() > LONGEST_REASON {
            break;
        }
    }
    (!reason.is_empty()).then_some(reason)
}

/// Whether mkfs reports that an option asks for more than the device has.
pub(super) fn too_much(output: &Output) -> bool {
    let words = ["too big for", "too large", "requested number of inodes", "too many inodes", "requested journal size"];
    words.iter().any(|words| output.stderr.contains(words))
}

/// The result of a trial run of mkfs with options at a size.
///
/// # Errors
/// `InvalidArgument` when they cannot be used; `Internal` when the tool gives no result.
pub(super) fn rehearsed(fs: FsType, size: Bytes, options: &MkfsOptions, output: &Output) -> Result<()> {
    match output.exit {
        Exit::Code(0) => Ok(()),
        Exit::Code(1) if !output.stderr.contains("emory") => Err(Error::new(
            Kind::InvalidArgument,
            format!(
                "mkfsOptions: \"{}\" cannot be used on a volume of {size} ({} bytes): {}; correct the StorageClass, or request another size",
                options.arguments().join(" "),
                size.get(),
                said(output)
            ),
        )),
        _ => Err(failed(Kind::Internal, &format!("a trial run of mkfs.{fs}"), Path::new("nothing"), output)),
    }
}

/// The error of a tool that failed.
pub(super) fn failed(kind: Kind, name: &str, device: &Path, output: &Output) -> Error {
    let exit = match output.exit {
        Exit::Code(code) => format!("exit code {code}"),
        Exit::Signal(signal) => format!("killed by signal {signal}"),
    };
    let next = match kind {
        Kind::Busy => "another process has the device open; retry",
        Kind::NoCapacity => "the pool is full; free space in it",
        Kind::OutOfRange => "make the volume larger, or correct mkfsOptions in its StorageClass and create it again",
        Kind::Unsupported => "install newer tools in the image of the driver",
        Kind::Precondition | Kind::Corrupt => "inspect the device before you use it again",
        _ => "retry; the kernel log may show the cause",
    };
    Error::new(kind, format!("{name} on {} failed ({exit}): {}; {next}", device.display(), said(output)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the tools of e2fsprogs 1.47.0 and xfsprogs 6.1.0 wrote it.
    #[test]
    fn the_reason_is_told_and_not_what_comes_before_it() {
        let of = |stderr: &str, stdout: &str| {
            let output = Output { exit: Exit::Code(1), stdout: stdout.to_owned(), stderr: stderr.to_owned() };
            said(&output)
        };
        let inodes = "Warning: the fs_type small is not defined in mke2fs.conf\n\n\nmkfs.ext4: inode_size (256) * inodes_count (100000) too big for a\n\tfilesystem with 4096 blocks, specify higher inode_ratio (-i)\n\tor lower inode count (-N).\n\n";
        assert_eq!(
            of(inodes, ""),
            "mkfs.ext4: inode_size (256) * inodes_count (100000) too big for a filesystem with 4096 blocks, specify higher inode_ratio (-i) or lower inode count (-N)."
        );
        assert_eq!(
            of("\nTotal journal size too big for filesystem.\n", ""),
            "Total journal size too big for filesystem."
        );
        let journal = "\nThe total requested journal size is 10485760 blocks; it must be\nbetween 1024 and 10240000 blocks.  Aborting.\n";
        assert!(of(journal, "").ends_with("it must be between 1024 and 10240000 blocks.  Aborting."));
        let resize = "resize2fs 1.47.0 (5-Feb-2023)\nresize2fs: Illegal doubly indirect block found while trying to resize img\nPlease run 'e2fsck -fy img' to fix the filesystem\nafter the aborted resize operation.\n";
        assert!(
            of(resize, "Resizing the filesystem on img to 4456448 (4k) blocks.\n")
                .starts_with("resize2fs: Illegal doubly indirect block found")
        );
        let log = "internal log size 51200 too large, must be less than 19186\nUsage: mkfs.xfs\n/* blocksize */\t\t[-b size=num]\n";
        assert_eq!(of(log, ""), "internal log size 51200 too large, must be less than 19186");
        let unsound = "Pass 1: Checking inodes, blocks, and sizes\nInode 7 has illegal block(s).  Clear? no\n\nIllegal block #6 (71) in inode 7.  IGNORED.\n";
        assert_eq!(of("e2fsck 1.47.0 (5-Feb-2023)\n", unsound), "Inode 7 has illegal block(s).  Clear? no");
        assert_eq!(of("mke2fs 1.47.0 (5-Feb-2023)\n", ""), "no output");
    }
}
