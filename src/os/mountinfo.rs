//! /proc/thread-self/mountinfo (proc_pid_mountinfo(5)): the only source about mounts. A failing stat(2) proves nothing
//! about them.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::{Call, DevNum, Os};

/// Of this thread: it may have its own mount namespace ([`Os::own_mounts`]).
const MOUNTINFO: &str = "/proc/thread-self/mountinfo";

/// One line of mountinfo. Its texts are parsed when they are first used: a table has a line for every mount of the node,
/// and a lookup concerns few of them.
#[derive(Clone)]
pub struct MountEntry {
    /// Its mount id.
    pub id: u64,
    /// The id of its parent mount.
    pub parent: u64,
    /// The filesystem's device: for ours the loop device; for a bind mount of a device node that of devtmpfs.
    pub device: DevNum,
    table: Arc<[u8]>,
    fields: Fields,
    texts: OnceLock<MountTexts>,
}

/// Where the fields of a line are in the table.
#[derive(Clone)]
struct Fields {
    root: Range<usize>,
    mount_point: Range<usize>,
    fs_type: Range<usize>,
    source: Range<usize>,
    line: Range<usize>,
}

/// The texts of a line, unescaped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountTexts {
    /// The mounted directory or file of the filesystem: `/` for all of it.
    pub root: PathBuf,
    /// The mount point.
    pub mount_point: PathBuf,
    /// Options of this mount (`ro`, `noexec`, ..).
    pub options: Vec<String>,
    /// Its peer group (`shared:N`): mounts on it also appear on the other mounts of the group.
    pub shared: Option<u64>,
    /// The peer group that it receives mounts from without passing any to it (`master:N`).
    pub master: Option<u64>,
    /// `ext4`, `xfs`, ..
    pub fs_type: String,
    /// The source, such as `/dev/loop3`.
    pub source: String,
    /// Options of the filesystem (superblock).
    pub super_options: Vec<String>,
}

impl Deref for MountEntry {
    type Target = MountTexts;

    fn deref(&self) -> &MountTexts {
        self.texts.get_or_init(|| parse_texts(self.raw(&self.fields.line)).unwrap_or_default())
    }
}

impl PartialEq for MountEntry {
    fn eq(&self, other: &Self) -> bool {
        self.raw(&self.fields.line) == other.raw(&other.fields.line)
    }
}

impl Eq for MountEntry {}

impl fmt::Debug for MountEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.raw(&self.fields.line)))
    }
}

impl MountEntry {
    /// Whether this mount is read-only, independent of its filesystem.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }

    /// Whether the filesystem itself is read-only: as requested, or after errors.
    #[must_use]
    pub fn super_read_only(&self) -> bool {
        self.super_options.iter().any(|option| option == "ro")
    }

    /// Whether its mount point is this path, as bytes without superfluous slashes.
    pub(super) fn is_at(&self, path: &[u8]) -> bool {
        let raw = self.raw(&self.fields.mount_point);
        raw == path
            || (is_unusual(raw) && Path::new(OsStr::from_bytes(&unescape(raw))) == Path::new(OsStr::from_bytes(path)))
    }

    /// Whether its source is this path, as bytes that the kernel prints unescaped.
    #[must_use]
    pub fn has_source(&self, path: &Path) -> bool {
        self.raw(&self.fields.source) == path.as_os_str().as_bytes()
    }

    /// Whether it shows a part of a filesystem of one of these types, instead of all of it.
    pub(super) fn is_part_of(&self, fs_types: &[&str]) -> bool {
        let fs_type = self.raw(&self.fields.fs_type);
        self.raw(&self.fields.root) != b"/" && fs_types.iter().any(|known| known.as_bytes() == fs_type)
    }

    fn raw(&self, range: &Range<usize>) -> &[u8] {
        self.table.get(range.clone()).unwrap_or_default()
    }
}

/// All mounts of our namespace, in mount order: the last one at a path is the visible one.
#[derive(Clone, Debug, Default)]
pub struct MountTable {
    entries: Vec<MountEntry>,
}

impl MountTable {
    /// Parses the text of a mountinfo file.
    ///
    /// # Errors
    /// `InvalidData` with the first invalid line.
    pub fn parse(text: &[u8]) -> io::Result<Self> {
        let table: Arc<[u8]> = text.into();
        let (mut entries, mut start) = (Vec::new(), 0);
        for line in text.split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                let entry = parse_line(&table, start, line).ok_or_else(|| {
                    let line = String::from_utf8_lossy(line).into_owned();
                    io::Error::new(io::ErrorKind::InvalidData, format!("not a mountinfo line: {line:?}"))
                })?;
                entries.push(entry);
            }
            start += line.len() + 1;
        }
        Ok(Self { entries })
    }

    /// Every mount.
    #[must_use]
    pub fn entries(&self) -> &[MountEntry] {
        &self.entries
    }

    /// The visible mount at exactly this path: the topmost. Paths are compared as the kernel prints them, so the caller
    /// passes one without symbolic links.
    #[must_use]
    pub fn at(&self, path: &Path) -> Option<&MountEntry> {
        let path = plain(path);
        self.entries.iter().rev().find(|entry| entry.is_at(&path))
    }

    /// The number of mounts stacked at exactly this path.
    #[must_use]
    pub fn depth(&self, path: &Path) -> usize {
        let path = plain(path);
        self.entries.iter().filter(|entry| entry.is_at(&path)).count()
    }

    /// The directory or file that a mount covers: the filesystem below, and the path in that filesystem.
    ///
    /// Two mounts that cover the same place are stacked, or one is a copy made by mount propagation
    /// (Documentation/filesystems/sharedsubtree.rst): they are unmounted together and count as one use.
    #[must_use]
    pub fn covers(&self, entry: &MountEntry) -> (DevNum, PathBuf) {
        let below = |of: &MountEntry| self.entries.iter().find(|other| other.id == of.parent);
        let mut lower = below(entry);
        // The parent of a stacked mount is the mount below it at the same place. A table that was read while mounts
        // changed may contain a cycle, so the number of steps is limited to the number of mounts.
        for _ in &self.entries {
            match lower {
                Some(parent) if parent.mount_point == entry.mount_point && parent.id != parent.parent => {
                    lower = below(parent);
                }
                Some(_) | None => break,
            }
        }
        let inside = |parent: &MountEntry| {
            let tail = entry.mount_point.strip_prefix(&parent.mount_point).ok()?;
            Some((parent.device, parent.root.join(tail)))
        };
        lower.and_then(inside).unwrap_or_else(|| (entry.device, entry.mount_point.clone()))
    }

    /// Every mount of the filesystem on this device.
    pub fn of_device(&self, device: DevNum) -> impl Iterator<Item = &MountEntry> {
        self.entries.iter().filter(move |entry| entry.device == device)
    }
}

impl Os {
    /// The mounts of our namespace.
    ///
    /// # Errors
    /// Those of reading /proc/thread-self/mountinfo.
    pub fn mounts(&self) -> io::Result<MountTable> {
        self.call(Call::Mounts, &MOUNTINFO, || MountTable::parse(&fs::read(MOUNTINFO)?))
    }
}

/// Whether a path can equal another one that has other bytes: it is escaped, or has empty or `.` components. The kernel
/// prints `//deleted` after the path of a mount point that was removed (fs/d_path.c, `path_with_deleted`).
fn is_unusual(raw: &[u8]) -> bool {
    raw.contains(&b'\\')
        || raw.windows(2).any(|pair| pair == b"//" || pair == b"/.")
        || (raw.len() > 1 && raw.ends_with(b"/"))
}

/// A path as bytes, with single slashes and none at its end.
pub(super) fn plain(path: &Path) -> Vec<u8> {
    path.components().collect::<PathBuf>().into_os_string().into_vec()
}

/// The numbers of a line, and where its texts are. `None` unless the line is whole.
fn parse_line(table: &Arc<[u8]>, start: usize, line: &[u8]) -> Option<MountEntry> {
    let mut at = start;
    let mut fields = line.split(|byte| *byte == b' ').map(|field| {
        let range = at..at + field.len();
        at = range.end + 1;
        (range, field)
    });
    let (_, id) = fields.next()?;
    let (_, parent) = fields.next()?;
    let (_, device) = fields.next()?;
    let (root, _) = fields.next()?;
    let (mount_point, _) = fields.next()?;
    fields.next()?;
    while fields.next()?.1 != b"-" {}
    let (fs_type, _) = fields.next()?;
    let (source, _) = fields.next()?;
    let mut device = device.split(|byte| *byte == b':');
    Some(MountEntry {
        id: number(id)?,
        parent: number(parent)?,
        device: DevNum { major: number(device.next()?)?, minor: number(device.next()?)? },
        table: Arc::clone(table),
        fields: Fields { root, mount_point, fs_type, source, line: start..start + line.len() },
        texts: OnceLock::new(),
    })
}

fn parse_texts(line: &[u8]) -> Option<MountTexts> {
    let mut fields = line.split(|byte| *byte == b' ').skip(3);
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = list(fields.next()?);
    let (mut shared, mut master) = (None, None);
    loop {
        match fields.next()? {
            b"-" => break,
            field => {
                shared = shared.or_else(|| group(field, b"shared:"));
                master = master.or_else(|| group(field, b"master:"));
            }
        }
    }
    let fs_type = text(fields.next()?);
    let source = text(fields.next()?);
    let super_options = list(fields.next().unwrap_or_default());
    Some(MountTexts { root, mount_point, options, shared, master, fs_type, source, super_options })
}

/// The number of an optional field such as `shared:7`.
fn group(field: &[u8], name: &[u8]) -> Option<u64> {
    field.strip_prefix(name).and_then(number)
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn list(field: &[u8]) -> Vec<String> {
    text(field).split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect()
}

/// The kernel writes space, tab, newline, `\` and `#` as `\ooo` (fs/seq_file.c, `mangle_path`).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte == b'\\'
            && let Some((digits, after)) = tail.split_at_checked(3)
            && let Some(value) = octal(digits)
        {
            plain.push(value);
            rest = after;
        } else {
            plain.push(*byte);
        }
    }
    plain
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &[u8] = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
        61 30 7:3 / /var/lib/a\\040b\\134c ro,relatime shared:7 master:2 - xfs /dev/loop3 rw,nouuid\n\
        62 61 7:3 / /var/lib/a\\040b\\134c rw - xfs /dev/loop3 rw\n";

    #[test]
    fn paths_are_unescaped_and_the_topmost_mount_wins() {
        let table = MountTable::parse(SAMPLE).unwrap();
        let path = Path::new("/var/lib/a b\\c");
        assert_eq!(table.depth(path), 2);
        assert!(!table.at(path).unwrap().read_only());
        assert!(table.entries()[1].read_only() && !table.entries()[1].super_read_only());
        assert_eq!(table.of_device(DevNum { major: 7, minor: 3 }).count(), 2);
        let lower = table.at(Path::new("/mnt2")).unwrap();
        assert_eq!(lower.fs_type, "ext3");
        assert!(lower.has_source(Path::new("/dev/root")) && !lower.has_source(Path::new("/dev/roo")));
        let groups: Vec<_> = table.entries().iter().map(|entry| (entry.shared, entry.master)).collect();
        assert_eq!(groups, [(None, Some(1)), (Some(7), Some(2)), (None, None)]);
    }

    #[test]
    fn a_propagated_copy_covers_what_its_original_covers() {
        let text = b"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            21 20 8:2 / /data rw - xfs /dev/sdb rw\n\
            22 20 8:2 /kubelet /var/lib/kubelet rw - xfs /dev/sdb rw\n\
            30 21 7:3 / /data/kubelet/p/globalmount rw - ext4 /dev/loop3 rw\n\
            31 22 7:3 / /var/lib/kubelet/p/globalmount rw - ext4 /dev/loop3 rw\n\
            32 31 7:3 / /var/lib/kubelet/p/globalmount rw - ext4 /dev/loop3 rw\n\
            33 22 7:3 / /var/lib/kubelet/q rw - ext4 /dev/loop3 rw\n";
        let table = MountTable::parse(text).unwrap();
        let covered: Vec<_> = table.entries().iter().skip(3).map(|entry| table.covers(entry)).collect();
        assert_eq!(covered[0], (DevNum { major: 8, minor: 2 }, PathBuf::from("/kubelet/p/globalmount")));
        assert!(covered[0] == covered[1] && covered[1] == covered[2] && covered[2] != covered[3]);
    }

    #[test]
    fn parents_that_lead_in_a_circle_end_somewhere() {
        let table = MountTable::parse(b"1 2 7:1 / /m rw - ext4 /dev/a rw\n2 1 7:1 / /m rw - ext4 /dev/a rw\n").unwrap();
        let _ = table.covers(&table.entries()[0]);
    }

    #[test]
    fn a_mount_point_is_found_at_its_own_path_however_it_is_printed() {
        for printed in ["/gone//deleted", "//var/lib/a\\040b", "/a/./b", "/a/", "/a/.b", "/"] {
            let text = format!("36 35 98:0 / {printed} rw - ext3 /dev/root rw\n");
            let table = MountTable::parse(text.as_bytes()).unwrap();
            let own = &table.entries()[0].mount_point;
            assert!(table.at(own).is_some() && table.depth(own) == 1, "{printed}");
        }
        let text = b"36 35 98:0 / /gone//deleted rw - ext3 /dev/root rw\n";
        assert!(MountTable::parse(text).unwrap().at(Path::new("/gone")).is_none());
    }

    #[test]
    fn a_line_that_is_none_is_an_error_not_an_empty_table() {
        assert!(MountTable::parse(b"36 35 98:0 /mnt1\n").is_err());
    }

    #[test]
    fn the_real_table_parses() {
        let table = Os::new().mounts().unwrap();
        assert!(table.at(Path::new("/")).is_some());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = MountTable::parse(&text);
        }
    }
}
