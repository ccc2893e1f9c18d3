//! Options that users may pass to mount(2) and to mkfs: an allow list for each filesystem. Everything else is rejected
//! at the boundary, so no unparsed text reaches a command line or the kernel (docs/design.md section 5, promise 9).
//!
//! Mount flags may be sensitive (CSI specification, VolumeCapability.mount_flags): no message and no `Debug` contains
//! one.

use std::fmt;
use std::ops::RangeInclusive;

use crate::os::{MountEntry, MountFlags};
use crate::types::{Error, FsType, Kind, Result};

/// An option specific to one filesystem, as the kernel prints it.
struct Row {
    /// The user's spelling: a word, or `key=` followed by a value.
    name: &'static str,
    /// The values of a `key=`.
    value: Value,
    /// The kernel's name in mountinfo; differs from `name` for aliases only.
    shown: &'static str,
    /// The value (or `""` for a word) that is the kernel's default, which it may print or not.
    assumed: Assumed,
}

#[derive(Clone, Copy)]
enum Value {
    None,
    Number(u64, u64),
    Kilobytes(u64, u64),
    Word(&'static [&'static str]),
}

#[derive(Clone, Copy)]
enum Assumed {
    /// The option is the default.
    Always,
    /// The option with this value is the default.
    Value(&'static str),
    /// It is never the default.
    Never,
}

const fn word(name: &'static str, assumed: Assumed) -> Row {
    Row { name, value: Value::None, shown: name, assumed }
}

const fn alias(name: &'static str, shown: &'static str) -> Row {
    Row { name, value: Value::None, shown, assumed: Assumed::Never }
}

const fn key(name: &'static str, value: Value, assumed: Assumed) -> Row {
    Row { name, value, shown: name, assumed }
}

/// fs/ext4/super.c, `ext4_param_specs` and `_ext4_show_options`. Excluded: options that weaken an acknowledged write
/// (`nobarrier`, `data=writeback`), skip recovery (`noload`) or continue after errors (`errors=continue`).
const EXT4: &[Row] = &[
    key("commit=", Value::Number(1, 900), Assumed::Value("5")),
    key("data=", Value::Word(&["ordered", "journal"]), Assumed::Value("ordered")),
    word("discard", Assumed::Never),
    word("nodiscard", Assumed::Always),
    word("delalloc", Assumed::Always),
    word("nodelalloc", Assumed::Never),
    word("auto_da_alloc", Assumed::Always),
    word("noauto_da_alloc", Assumed::Never),
    key("errors=", Value::Word(&["remount-ro"]), Assumed::Value("remount-ro")),
    key("max_batch_time=", Value::Number(0, 1_000_000), Assumed::Value("15000")),
    key("min_batch_time=", Value::Number(0, 1_000_000), Assumed::Value("0")),
];

/// fs/xfs/xfs_super.c, `xfs_fs_parameters` and `xfs_fs_show_options`. Excluded: `norecovery` and deprecated options.
const XFS: &[Row] = &[
    word("nouuid", Assumed::Always),
    word("discard", Assumed::Never),
    word("nodiscard", Assumed::Always),
    word("inode64", Assumed::Always),
    word("inode32", Assumed::Never),
    word("largeio", Assumed::Never),
    word("nolargeio", Assumed::Always),
    word("swalloc", Assumed::Never),
    word("wsync", Assumed::Never),
    key("allocsize=", Value::Kilobytes(4, 1 << 20), Assumed::Never),
    key("logbufs=", Value::Number(2, 8), Assumed::Value("8")),
    key("logbsize=", Value::Kilobytes(32, 256), Assumed::Value("32k")),
    word("noquota", Assumed::Always),
    alias("uquota", "usrquota"),
    alias("usrquota", "usrquota"),
    alias("gquota", "grpquota"),
    alias("grpquota", "grpquota"),
    alias("pquota", "prjquota"),
    alias("prjquota", "prjquota"),
];

/// Options that mountinfo does not show reliably: ext4 and XFS drop `discard` if the device does not support it, ext4
/// adds `nodelalloc` to `data=journal`.
const NOT_TOLD: [&str; 2] = ["discard", "nodelalloc"];

/// SELinux labels (security/selinux/hooks.c): valid for every filesystem, on the first mount only; bind mounts inherit
/// them.
const LABELS: [&str; 4] = ["context=", "fscontext=", "defcontext=", "rootcontext="];

const FLAGS: &str = "defaults, ro, rw, nosuid, suid, nodev, dev, noexec, exec, noatime, atime, nodiratime, diratime, \
                     relatime, lazytime, nolazytime, sync, async, dirsync, context=, fscontext=, defcontext=, rootcontext=";

fn rows(fs: FsType) -> &'static [Row] {
    match fs {
        FsType::Ext4 => EXT4,
        FsType::Xfs => XFS,
    }
}

/// The checked mount flags of a volume: generic flags, and options of the filesystem in the kernel's spelling.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct MountOptions {
    flags: MountFlags,
    /// Sorted, without the kernel's defaults.
    own: Vec<String>,
    /// Sorted, `context="..."`.
    labels: Vec<String>,
}

/// Mount flags of a request, not checked yet: that needs the filesystem, which may be the volume's own.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RequestedOptions(Vec<String>);

impl RequestedOptions {
    /// As CSI's `mount_flags` contain them.
    #[must_use]
    pub fn new(flags: Vec<String>) -> Self {
        Self(flags)
    }

    /// Checks them for a filesystem.
    ///
    /// # Errors
    /// Those of [`MountOptions::parse`].
    pub fn of(&self, fs: FsType) -> Result<MountOptions> {
        MountOptions::parse(fs, &self.0)
    }
}

impl fmt::Debug for RequestedOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestedOptions({} flags)", self.0.len())
    }
}

impl MountOptions {
    /// Checks flags as CSI's `mount_flags` contain them: one option each, or several separated by commas.
    ///
    /// # Errors
    /// `InvalidArgument` for an option that is not in the list, with the list but never the option.
    pub fn parse(fs: FsType, flags: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for flag in flags {
            if LABELS.iter().any(|label| flag.starts_with(label)) {
                parsed.labels.push(label(flag).ok_or_else(|| refused(fs))?);
                continue;
            }
            for option in flag.split(',').map(str::trim).filter(|option| !option.is_empty()) {
                if !set_flag(&mut parsed.flags, option) {
                    let known = rows(fs).iter().find_map(|row| row.accept(option));
                    parsed.own.extend(known.ok_or_else(|| refused(fs))?);
                }
            }
        }
        parsed.own.sort_unstable();
        parsed.own.dedup();
        parsed.labels.sort_unstable();
        parsed.labels.dedup();
        Ok(parsed)
    }

    /// The generic flags.
    #[must_use]
    pub fn flags(&self) -> MountFlags {
        self.flags
    }

    /// Whether freed blocks are to be discarded.
    #[must_use]
    pub fn discards(&self) -> bool {
        self.own.iter().any(|option| option == "discard")
    }

    /// The same options, read-only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.flags.read_only = true;
        self
    }

    /// The options for mount(2)'s data, separated by commas; XFS always gets `nouuid` (docs/design.md section 8.8).
    #[must_use]
    pub fn data(&self, fs: FsType) -> String {
        let always = match fs {
            FsType::Ext4 => None,
            FsType::Xfs => Some("nouuid"),
        };
        let own = self.own.iter().chain(&self.labels).map(String::as_str);
        always.into_iter().chain(own).collect::<Vec<_>>().join(",")
    }

    /// Whether a mount was made with exactly these options, as far as mountinfo shows them.
    #[must_use]
    pub fn made(&self, fs: FsType, entry: &MountEntry) -> bool {
        let shown = |option: &str| rows(fs).iter().find_map(|row| row.accept(option)).flatten();
        let mut own: Vec<String> = entry.super_options.iter().filter_map(|option| shown(option)).collect();
        own.sort_unstable();
        own.dedup();
        let told = |options: &[String]| -> Vec<String> {
            options.iter().filter(|option| !NOT_TOLD.contains(&option.as_str())).cloned().collect()
        };
        let all = format!(",{},", entry.super_options.join(","));
        let says = |text: &str| all.contains(&format!(",{text},"));
        let label_shown = |label: &String| says(label) || says(&label.replace('"', ""));
        let unlabelled = || !LABELS.iter().any(|label| entry.super_options.iter().any(|o| o.starts_with(label)));
        let labels_agree = if self.labels.is_empty() { unlabelled() } else { self.labels.iter().all(label_shown) };
        told(&own) == told(&self.own) && labels_agree && self.flags_shown(entry) && self.super_flags_shown(entry)
    }

    /// Whether a mount has the requested per-mount flags; additional flags do not matter on a bind mount.
    #[must_use]
    pub fn flags_shown(&self, entry: &MountEntry) -> bool {
        let has = |name: &str| entry.options.iter().any(|option| option == name);
        let flags = self.flags;
        [
            (flags.no_suid, "nosuid"),
            (flags.no_dev, "nodev"),
            (flags.no_exec, "noexec"),
            (flags.no_atime, "noatime"),
            (flags.no_dir_atime, "nodiratime"),
        ]
        .into_iter()
        .all(|(wanted, name)| !wanted || has(name))
            && flags.read_only == entry.read_only()
    }

    fn super_flags_shown(&self, entry: &MountEntry) -> bool {
        let has = |name: &str| entry.super_options.iter().any(|option| option == name);
        let flags = self.flags;
        flags.synchronous == has("sync") && flags.dir_sync == has("dirsync") && flags.lazytime == has("lazytime")
    }
}

/// Prints the number of options, never the options.
impl fmt::Debug for MountOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.own.len() + self.labels.len();
        f.debug_struct("MountOptions").field("read_only", &self.flags.read_only).field("options", &count).finish()
    }
}

impl Row {
    /// The option in the kernel's spelling, `Some(None)` for a default; `None` when it does not match this row.
    fn accept(&self, option: &str) -> Option<Option<String>> {
        let rest = option.strip_prefix(self.name)?;
        let good = match self.value {
            Value::None => rest.is_empty(),
            Value::Number(low, high) => number(rest, low..=high).is_some(),
            Value::Kilobytes(low, high) => {
                rest.strip_suffix('k').is_some_and(|digits| number(digits, low..=high).is_some())
            }
            Value::Word(words) => words.contains(&rest),
        };
        let assumed = match self.assumed {
            Assumed::Always => true,
            Assumed::Value(value) => value == rest,
            Assumed::Never => false,
        };
        good.then(|| (!assumed).then(|| format!("{}{rest}", self.shown)))
    }
}

/// A number in canonical decimal.
fn number(text: &str, range: RangeInclusive<u64>) -> Option<u64> {
    let value: u64 = text.parse().ok()?;
    (value.to_string() == text && range.contains(&value)).then_some(value)
}

fn set_flag(flags: &mut MountFlags, option: &str) -> bool {
    match option {
        "defaults" | "rw" => {}
        "ro" => flags.read_only = true,
        "nosuid" => flags.no_suid = true,
        "suid" => flags.no_suid = false,
        "nodev" => flags.no_dev = true,
        "dev" => flags.no_dev = false,
        "noexec" => flags.no_exec = true,
        "exec" => flags.no_exec = false,
        "noatime" => flags.no_atime = true,
        "atime" => flags.no_atime = false,
        "nodiratime" => flags.no_dir_atime = true,
        "diratime" => flags.no_dir_atime = false,
        "relatime" => flags.relatime = true,
        "lazytime" => flags.lazytime = true,
        "nolazytime" => flags.lazytime = false,
        "sync" => flags.synchronous = true,
        "async" => flags.synchronous = false,
        "dirsync" => flags.dir_sync = true,
        _ => return false,
    }
    true
}

/// A SELinux label in quotes: letters, digits and `_ : . , -` only.
fn label(flag: &str) -> Option<String> {
    let (key, value) = flag.split_once('=')?;
    let value = match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => value,
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_:.,-".contains(&byte);
    (!value.is_empty() && value.bytes().all(plain)).then(|| format!("{key}=\"{value}\""))
}

fn refused(fs: FsType) -> Error {
    let own: Vec<_> = rows(fs).iter().map(|row| row.name).collect();
    Error::new(
        Kind::InvalidArgument,
        format!(
            "a mount option of this volume, or its value, is not allowed for {fs}; allowed are {FLAGS}, {}; correct mountOptions in the StorageClass or the PersistentVolume",
            own.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::MountTable;
    use proptest::prelude::*;

    fn parse(fs: FsType, flags: &[&str]) -> Result<MountOptions> {
        MountOptions::parse(fs, &flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    }

    fn made(fs: FsType, flags: &[&str], line: &str) -> bool {
        let table = MountTable::parse(line.as_bytes()).unwrap();
        parse(fs, flags).unwrap().made(fs, &table.entries()[0])
    }

    #[test]
    fn generic_flags_and_the_filesystem_s_own_are_told_apart() {
        let options = parse(FsType::Ext4, &["noatime,nosuid", "commit=30", "discard"]).unwrap();
        assert!(options.flags().no_atime && options.flags().no_suid && !options.flags().read_only);
        assert_eq!(options.data(FsType::Ext4), "commit=30,discard");
        assert_eq!(parse(FsType::Xfs, &["nouuid", "pquota"]).unwrap().data(FsType::Xfs), "nouuid,prjquota");
    }

    #[test]
    fn what_would_weaken_a_volume_or_is_unknown_is_refused_without_a_word_of_it() {
        for flag in [
            "nobarrier",
            "barrier=0",
            "data=writeback",
            "errors=continue",
            "noload",
            "commit=0",
            "commit=+5",
            "secret=hunter2",
        ] {
            let error = parse(FsType::Ext4, &[flag]).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{flag}");
            assert!(!error.to_string().contains(flag) && error.to_string().contains("commit="), "{error}");
        }
        assert!(parse(FsType::Xfs, &["norecovery"]).is_err() && parse(FsType::Xfs, &["logbsize=32768"]).is_err());
    }

    #[test]
    fn nothing_prints_a_flag() {
        let label = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
        let options = parse(FsType::Ext4, &[label, "commit=30"]).unwrap();
        assert_eq!(options.data(FsType::Ext4), format!("commit=30,{label}"));
        let printed = format!("{options:?}");
        assert!(!printed.contains("system_u") && !printed.contains("commit"), "{printed}");
        for bad in ["context=", "context=\"a\",exec", "context=a b", "context=\"a\\"] {
            assert!(parse(FsType::Ext4, &[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mount_is_known_again_by_what_the_kernel_prints_of_it() {
        let xfs = "9 1 7:1 / /m rw,relatime - xfs /dev/loop1 rw,nouuid,attr2,inode64,logbufs=8,logbsize=32k,noquota";
        assert!(made(FsType::Xfs, &[], xfs) && made(FsType::Xfs, &["inode64", "logbsize=32k", "discard"], xfs));
        assert!(!made(FsType::Xfs, &["logbsize=256k"], xfs) && !made(FsType::Xfs, &["noatime"], xfs));
        let ext4 = "9 1 7:1 / /m rw,noatime - ext4 /dev/loop1 rw,lazytime,nodelalloc,commit=30,data=journal";
        assert!(made(FsType::Ext4, &["noatime", "lazytime", "commit=30", "data=journal"], ext4));
        assert!(!made(FsType::Ext4, &["noatime", "lazytime", "commit=60", "data=journal"], ext4));
        assert!(!made(FsType::Ext4, &["noatime", "commit=30", "data=journal"], ext4));
        assert!(!made(FsType::Ext4, &[], ext4));
        let label = "9 1 7:1 / /m rw - ext4 /dev/loop1 rw,context=\"a:b:c:s0:c1,c2\"";
        assert!(made(FsType::Ext4, &["context=\"a:b:c:s0:c1,c2\""], label));
        assert!(!made(FsType::Ext4, &["context=\"a:b:c:s0:c1\""], label) && !made(FsType::Ext4, &[], label));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_made_of_known_words(flag in "[a-z_=0-9,k\" ]{0,40}") {
            for fs in FsType::ALL {
                if let Ok(options) = parse(fs, &[&flag]) {
                    for option in options.data(fs).split(',').filter(|option| !option.is_empty()) {
                        let known = rows(fs).iter().any(|row| option.starts_with(row.shown));
                        prop_assert!(known || option.contains("context="), "{option}");
                    }
                }
            }
        }
    }
}
