//! The options that a StorageClass may add to mkfs: an allow list for each filesystem.

use crate::types::{Error, FsType, Kind, Result};

/// Extra arguments for mkfs, checked. Never `-F`/`-f` (force), a UUID, a block size, a label or any option that decides
/// whether or where mkfs writes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MkfsOptions {
    arguments: Vec<String>,
}

/// Features of ext4 that a class may change. Kernel 5.15 mounts all of them, and none disables the journal or a
/// checksum.
const EXT4_FEATURES: [&str; 7] = ["quota", "project", "verity", "encrypt", "large_dir", "ea_inode", "^huge_file"];

const EXT4_ALLOWED: &str = "-i <bytes per inode, 1024 to 67108864>, -N <inodes>, -I 256|512|1024|2048, -m <reserved percent, 0 to 50>, \
                            -J size=<journal MiB, 4 to 40960>, -O <of quota, project, verity, encrypt, large_dir, ea_inode, ^huge_file>";
const XFS_ALLOWED: &str =
    "-i size=512|1024|2048, -i maxpct=<0 to 100>, -l size=<log MiB, 64 to 2038>m, -n size=4096|8192|16384|32768|65536";

impl MkfsOptions {
    /// Checks the `mkfsOptions` of a class: words separated by spaces.
    ///
    /// # Errors
    /// `InvalidArgument` with the first option that is not in the list, and the list.
    pub fn parse(fs: FsType, text: &str) -> Result<Self> {
        let mut words = text.split_ascii_whitespace();
        let mut arguments = Vec::new();
        while let Some(option) = words.next() {
            let value = words.next();
            let allowed = value.is_some_and(|value| match fs {
                FsType::Ext4 => ext4_takes(option, value),
                FsType::Xfs => xfs_takes(option, value),
            });
            if !allowed {
                return Err(refused(fs, option, value));
            }
            arguments.push(option.to_owned());
            arguments.extend(value.map(str::to_owned));
        }
        Ok(Self { arguments })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.arguments.is_empty()
    }

    /// The arguments, to be placed before the device.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }
}

fn ext4_takes(option: &str, value: &str) -> bool {
    match option {
        "-i" => within(value, 1024, 67_108_864),
        "-N" => within(value, 16, u64::from(u32::MAX)),
        "-I" => ["256", "512", "1024", "2048"].contains(&value),
        "-m" => within(value, 0, 50),
        "-J" => value.strip_prefix("size=").is_some_and(|size| within(size, 4, 40_960)),
        "-O" => value.split(',').all(|feature| EXT4_FEATURES.contains(&feature)),
        _ => false,
    }
}

fn xfs_takes(option: &str, value: &str) -> bool {
    value.split(',').all(|part| match (option, part.split_once('=')) {
        ("-i", Some(("size", size))) => ["512", "1024", "2048"].contains(&size),
        ("-i", Some(("maxpct", percent))) => within(percent, 0, 100),
        ("-l", Some(("size", size))) => size.strip_suffix('m').is_some_and(|mib| within(mib, 64, 2038)),
        ("-n", Some(("size", size))) => ["4096", "8192", "16384", "32768", "65536"].contains(&size),
        _ => false,
    })
}

/// Whether a text is a plain decimal number in a range.
fn within(text: &str, low: u64, high: u64) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse().is_ok_and(|value: u64| (low..=high).contains(&value))
}

fn refused(fs: FsType, option: &str, value: Option<&str>) -> Error {
    let allowed = match fs {
        FsType::Ext4 => EXT4_ALLOWED,
        FsType::Xfs => XFS_ALLOWED,
    };
    let said = value.map_or_else(|| format!("{option:?} without a value"), |value| format!("\"{option} {value}\""));
    Error::new(
        Kind::InvalidArgument,
        format!("mkfsOptions: {said} is not allowed for {fs}; allowed are {allowed}; correct the StorageClass"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepted(fs: FsType, text: &str) -> bool {
        MkfsOptions::parse(fs, text).is_ok()
    }

    #[test]
    fn what_is_in_the_list_passes_word_by_word() {
        let options = MkfsOptions::parse(FsType::Ext4, " -i 65536  -m 1 -O quota,^huge_file ").unwrap();
        assert_eq!(options.arguments(), ["-i", "65536", "-m", "1", "-O", "quota,^huge_file"]);
        assert!(accepted(FsType::Ext4, ""));
        assert!(accepted(FsType::Xfs, "-i size=1024,maxpct=5 -l size=128m -n size=8192"));
    }

    #[test]
    fn force_identity_and_geometry_are_refused() {
        for text in [
            "-F",
            "-F -F",
            "-U clear",
            "-b 1024",
            "-E discard",
            "-O ^has_journal",
            "-i",
            "-T news",
            "-i x",
            "/dev/sda 1",
        ] {
            let error = MkfsOptions::parse(FsType::Ext4, text).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{text}");
            assert!(error.to_string().contains("-O <of"), "{error}");
        }
        for text in
            ["-f", "-f -f", "-m uuid=x", "-i sparse=0", "-d size=1g", "-i size=512,nrext64=1", "-b size=1024", "-K x"]
        {
            assert!(!accepted(FsType::Xfs, text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_accepted_forces_or_leaves_the_list(text in "[-fFUbEKimNOsz0-9=, ]{0,24}") {
            for fs in FsType::ALL {
                if let Ok(options) = MkfsOptions::parse(fs, &text) {
                    prop_assert!(!options.arguments().iter().any(|a| ["-f", "-F", "-U", "-b", "-E", "-K"].contains(&a.as_str())));
                }
            }
        }
    }
}
