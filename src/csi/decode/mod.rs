//! Requests as our types. A handler never sees a raw string: required fields are checked first, then the form of
//! everything, ids last, so that a bad request is INVALID_ARGUMENT whatever its id. Secrets are dropped here.

mod capability;
mod controller;
mod node;

pub(super) use capability::{RequestedCapability, asked, supported};
pub(super) use controller::{
    CapacityOf, ListSnapshots, Unpublish, capacity, create_snapshot, create_volume, expand, list_snapshots,
    list_volumes, publish, unpublish, validate,
};
pub(super) use node::{node_expand, node_health, node_publish, node_stage, node_stats, node_unpublish, node_unstage};

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::proto;
use crate::types::{Bytes, CapacityRange, Error, FsType, Kind, Result};

/// The filesystem where neither capability nor StorageClass names one.
const DEFAULT_FS: FsType = FsType::Ext4;
/// The longest name, in bytes (CSI's limit for any string without one of its own).
const MAX_NAME: usize = 128;
/// The longest node id, in bytes.
const MAX_NODE_ID: usize = 256;
/// The most bytes of a map or of the mount flags.
const MAX_MAP: usize = 4096;
/// The longest path, in bytes (PATH_MAX of limits.h, with its terminator).
const MAX_PATH: usize = 4095;

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::InvalidArgument, message.into())
}

fn missing(field: &str) -> Error {
    invalid(format!("{field} is required and missing"))
}

/// A field that must not be empty.
pub(super) fn required<'a>(field: &str, value: &'a str) -> Result<&'a str> {
    if value.is_empty() { Err(missing(field)) } else { Ok(value) }
}

/// The characters that CSI forbids in names: control characters except tab, line feed and carriage return.
fn forbidden(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r')
}

/// The CO's name for a volume or snapshot.
fn name(field: &str, value: &str) -> Result<String> {
    required(field, value)?;
    if value.len() > MAX_NAME {
        return Err(invalid(format!("{field} has {} bytes; at most {MAX_NAME} are allowed", value.len())));
    }
    if value.chars().any(forbidden) {
        return Err(invalid(format!("{field} {value:?} contains control characters, which CSI forbids")));
    }
    Ok(value.to_owned())
}

/// A map within CSI's limit. Its content is not shown: it may be sensitive.
fn bounded(field: &str, map: &HashMap<String, String>) -> Result<()> {
    let size: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_MAP {
        return Err(invalid(format!("{field} has {size} bytes; at most {MAX_MAP} are allowed")));
    }
    Ok(())
}

/// An absolute path without `..`, as kubelet gives it.
fn path(field: &str, value: &str) -> Result<PathBuf> {
    required(field, value)?;
    if value.len() > MAX_PATH {
        return Err(invalid(format!("{field} has {} bytes; a path has at most {MAX_PATH}", value.len())));
    }
    if value.contains('\0') {
        return Err(invalid(format!("{field} contains a NUL byte")));
    }
    let path = Path::new(value);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.file_name().is_none() {
        return Err(invalid(format!(
            "{field} {value:?} must be an absolute path without .. and not the root directory"
        )));
    }
    Ok(path.components().collect())
}

/// The path of a volume to query: one that cannot be ours is not found, as csi-sanity expects.
fn known_path(field: &str, value: &str) -> Result<PathBuf> {
    required(field, value)?;
    path(field, value).map_err(|error| error.with_kind(Kind::NotFound))
}

/// An optional path.
fn optional_path(field: &str, value: &str) -> Result<Option<PathBuf>> {
    if value.is_empty() { Ok(None) } else { path(field, value).map(Some) }
}

/// A capacity range; zero means unset.
fn range(value: Option<&proto::CapacityRange>) -> Result<CapacityRange> {
    let Some(value) = value else { return Ok(CapacityRange::default()) };
    let side = |field: &str, bytes: i64| match u64::try_from(bytes) {
        Ok(0) => Ok(None),
        Ok(bytes) => Ok(Some(Bytes::new(bytes))),
        Err(_) => Err(invalid(format!("capacity_range.{field} is negative: {bytes}"))),
    };
    let range = CapacityRange {
        required: side("required_bytes", value.required_bytes)?,
        limit: side("limit_bytes", value.limit_bytes)?,
    };
    if let (Some(required), Some(limit)) = (range.required, range.limit)
        && limit < required
    {
        return Err(invalid(format!(
            "capacity_range.limit_bytes ({}) is less than required_bytes ({})",
            limit.get(),
            required.get()
        )));
    }
    Ok(range)
}

/// The range of an expansion: it must have a bound.
fn some_range(value: Option<&proto::CapacityRange>) -> Result<CapacityRange> {
    let parsed = range(value)?;
    if parsed == CapacityRange::default() {
        return Err(missing("capacity_range"));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "n".repeat(128);
        for good in ["pvc-1", "ü ☃ /../ names are only names", "tab\tand\r\nlines", &long] {
            assert_eq!(name("name", good).unwrap(), good);
        }
        for (bad, word) in [("", "required"), ("a\0b", "control"), ("a\u{7f}", "control"), ("a\u{9b}", "control")] {
            let error = name("name", bad).unwrap_err();
            assert!(error.kind() == Kind::InvalidArgument && error.to_string().contains(word), "{error}");
        }
        assert!(name("name", &"n".repeat(129)).unwrap_err().to_string().contains("128"));
    }

    #[test]
    fn paths() {
        let deep = format!("/{}", "d/".repeat(2000));
        for good in ["/var/lib/kubelet/pods/x/mount", "/a b/ü", "/a//b/", "/a/./b", &deep] {
            assert!(path("target_path", good).is_ok(), "{good}");
        }
        assert_eq!(path("target_path", "/a//b/./c/").unwrap(), Path::new("/a/b/c"));
        let endless = format!("/{}", "p".repeat(4095));
        for bad in ["", "relative", "/", "/a/../b", "..", "/a\0b", &endless] {
            let error = path("target_path", bad).unwrap_err();
            assert!(error.kind() == Kind::InvalidArgument && error.to_string().contains("target_path"), "{error}");
        }
        assert_eq!(known_path("volume_path", "some/path").unwrap_err().kind(), Kind::NotFound);
        assert_eq!(known_path("volume_path", "").unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(optional_path("staging_target_path", "").unwrap(), None);
    }

    #[test]
    fn maps_are_bounded_and_not_repeated_in_the_error() {
        let map = |bytes: usize| HashMap::from([("key".to_owned(), "v".repeat(bytes - 3))]);
        assert!(bounded("parameters", &map(4096)).is_ok());
        let error = bounded("volume_context", &map(4097)).unwrap_err().to_string();
        assert!(error.contains("volume_context") && !error.contains("vvvv"), "{error}");
    }

    #[test]
    fn ranges() {
        let of = |required_bytes, limit_bytes| range(Some(&proto::CapacityRange { required_bytes, limit_bytes }));
        assert_eq!(range(None).unwrap(), CapacityRange::default());
        assert_eq!(of(0, 0).unwrap(), CapacityRange::default());
        assert_eq!(of(0, 7).unwrap(), CapacityRange { required: None, limit: Some(Bytes::new(7)) });
        assert_eq!(of(7, 7).unwrap(), CapacityRange { required: Some(Bytes::new(7)), limit: Some(Bytes::new(7)) });
        for (required, limit) in [(-1, 0), (0, -1), (i64::MIN, i64::MIN), (8, 7)] {
            assert_eq!(of(required, limit).unwrap_err().kind(), Kind::InvalidArgument, "{required} {limit}");
        }
        assert!(some_range(None).is_err());
        assert!(some_range(Some(&proto::CapacityRange::default())).is_err());
    }
}
