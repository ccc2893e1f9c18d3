//! Mount flags and mkfs options: whatever is accepted, every word of it is in the list written down here a second time.

use holdfast::fs::{MkfsOptions, MountOptions};
use holdfast::os::MountTable;
use holdfast::types::FsType;

use crate::text;

/// The text is one flag a line, then one line of mkfs options.
pub fn run(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let flags: Vec<String> = text.split('\n').map(str::to_owned).collect();
    for fs in FsType::ALL {
        match MountOptions::parse(fs, &flags) {
            Ok(options) => mount_allowed(fs, &options),
            Err(error) => quiet(fs, &error.to_string()),
        }
        if let Ok(options) = MkfsOptions::parse(fs, text) {
            mkfs_allowed(fs, options.arguments());
        }
    }
}

/// Mount flags may be sensitive: every refusal is the same sentence, whatever was said.
fn quiet(fs: FsType, said: &str) {
    let usual = MountOptions::parse(fs, &["?".to_owned()]).expect_err("no such option").to_string();
    assert_eq!(said, usual);
}

fn mount_allowed(fs: FsType, options: &MountOptions) {
    let data = options.data(fs);
    assert!(data.bytes().all(|byte| byte.is_ascii_graphic()), "{data:?}");
    let mut rest = data.as_str();
    while !rest.is_empty() {
        let (option, after) = next(rest);
        assert!(mount_option_allowed(fs, option), "{option:?} reached {fs}");
        rest = after;
    }
    // Known again by what the kernel would print of it.
    let kind = fs.to_string();
    let own: Vec<&str> = options.flags().read_only.then_some("ro").into_iter().collect();
    let line = format!("9 1 7:1 / /m rw{} - {kind} /dev/loop1 rw,{data}\n", own.join(","));
    let table = MountTable::parse(line.as_bytes()).expect("a line of mountinfo");
    let _ = options.made(fs, &table.entries()[0]);
    assert!(!format!("{options:?}").contains('='), "{options:?}");
}

/// One option of mount(2)'s data: a comma in a quoted label does not end it (security/selinux/hooks.c).
fn next(data: &str) -> (&str, &str) {
    let mut quoted = false;
    for (at, c) in data.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => return (&data[..at], &data[at + 1..]),
            _ => {}
        }
    }
    assert!(!quoted, "a quote is left open in {data:?}");
    (data, "")
}

fn mount_option_allowed(fs: FsType, option: &str) -> bool {
    let label = |rest: &str| {
        let inner = rest.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        inner.is_some_and(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:.,-".contains(&b)))
    };
    let (key, value) = option.split_once('=').unwrap_or((option, ""));
    let number = |low: u64, high: u64| value.parse().is_ok_and(|n: u64| (low..=high).contains(&n));
    let kilobytes = |low: u64, high: u64| {
        value.strip_suffix('k').is_some_and(|n| n.parse().is_ok_and(|n: u64| (low..=high).contains(&n)))
    };
    match (fs, key) {
        (_, "context" | "fscontext" | "defcontext" | "rootcontext") => label(value),
        (FsType::Ext4, "commit") => number(1, 900),
        (FsType::Ext4, "data") => value == "journal",
        (FsType::Ext4, "max_batch_time" | "min_batch_time") => number(0, 1_000_000),
        (FsType::Ext4, "discard" | "nodelalloc" | "noauto_da_alloc") => option == key,
        (FsType::Xfs, "nouuid" | "discard" | "inode32" | "largeio" | "swalloc" | "wsync") => option == key,
        (FsType::Xfs, "usrquota" | "grpquota" | "prjquota") => option == key,
        (FsType::Xfs, "allocsize") => kilobytes(4, 1 << 20),
        (FsType::Xfs, "logbsize") => kilobytes(32, 256),
        (FsType::Xfs, "logbufs") => number(2, 8),
        (FsType::Ext4 | FsType::Xfs, _) => false,
    }
}

/// Checks mkfs arguments against the list of docs/operations.md.
pub fn mkfs_allowed(fs: FsType, arguments: &[String]) {
    assert!(arguments.len().is_multiple_of(2), "{arguments:?}");
    for pair in arguments.chunks_exact(2) {
        let (option, value) = (pair[0].as_str(), pair[1].as_str());
        let allowed = match fs {
            FsType::Ext4 => ext4(option, value),
            FsType::Xfs => value.split(',').all(|part| xfs(option, part)),
        };
        assert!(allowed, "{option} {value} reached mkfs.{fs}");
    }
}

fn ext4(option: &str, value: &str) -> bool {
    let number = |low: u64, high: u64| {
        value.bytes().all(|b| b.is_ascii_digit()) && value.parse().is_ok_and(|n: u64| (low..=high).contains(&n))
    };
    match option {
        "-i" => number(1024, 67_108_864),
        "-N" => number(16, u64::from(u32::MAX)),
        "-I" => matches!(value, "256" | "512" | "1024" | "2048"),
        "-m" => number(0, 50),
        "-J" => value.strip_prefix("size=").is_some_and(|n| n.parse().is_ok_and(|n: u64| (4..=40_960).contains(&n))),
        "-O" => value.split(',').all(|feature| {
            matches!(feature, "quota" | "project" | "verity" | "encrypt" | "large_dir" | "ea_inode" | "^huge_file")
        }),
        _ => false,
    }
}

fn xfs(option: &str, part: &str) -> bool {
    let Some((key, value)) = part.split_once('=') else { return false };
    let digits = |text: &str, low: u64, high: u64| {
        text.bytes().all(|b| b.is_ascii_digit()) && text.parse().is_ok_and(|n: u64| (low..=high).contains(&n))
    };
    match (option, key) {
        ("-i", "size") => matches!(value, "512" | "1024" | "2048"),
        ("-i", "maxpct") => digits(value, 0, 100),
        ("-l", "size") => value.strip_suffix('m').is_some_and(|n| digits(n, 64, 2038)),
        ("-n", "size") => matches!(value, "4096" | "8192" | "16384" | "32768" | "65536"),
        _ => false,
    }
}
