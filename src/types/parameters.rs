//! StorageClass parameters (docs/design.md section 12). [`TABLE`] is the only list: the parser rejects every other key,
//! and tests compare docs/operations.md and the chart's schema with it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::{Error, FsType, Kind, PoolName, Result};

/// One parameter, for the parser and the documentation.
#[derive(Clone, Copy, Debug)]
pub struct ParameterRow {
    /// The key in a StorageClass.
    pub key: &'static str,
    /// The values; alternatives separated by `|`.
    pub values: &'static str,
    /// The value when the key is absent; empty for none.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
    set: fn(&mut VolumeParameters, &str) -> std::result::Result<(), String>,
    /// The value, unless it is the default.
    get: fn(&VolumeParameters) -> Option<String>,
}

/// Every parameter, in the order of the documentation.
pub const TABLE: &[ParameterRow] = &[
    ParameterRow {
        key: "pool",
        values: "a pool's name",
        default: "default",
        meaning: "The pool of the volume. If a node has exactly one pool, that pool is the default, whatever its name.",
        set: |p, v| {
            p.pool = Some(v.parse().map_err(|e: Error| e.to_string())?);
            Ok(())
        },
        get: |p| p.pool.as_ref().map(ToString::to_string),
    },
    ParameterRow {
        key: "access",
        values: "local|network",
        default: "local",
        meaning: "How nodes reach the volume. local: on its home node only. network (a preview, not for data that you cannot lose): on every node of the home node's fabric, over NVMe/TCP.",
        set: |p, v| {
            p.access = match v {
                "local" => Access::Local,
                "network" => Access::Network,
                _ => return one_of("local, network"),
            };
            Ok(())
        },
        get: |p| (p.access == Access::Network).then(|| "network".to_owned()),
    },
    ParameterRow {
        key: "authentication",
        values: "auto|required",
        default: "auto",
        meaning: "Whether connections to a volume with access: network are authenticated (DH-HMAC-CHAP). auto: where the kernels of both nodes can. required: always; the volume is created and attached only on nodes whose kernels can.",
        set: |p, v| {
            p.authentication = match v {
                "auto" => Authentication::Auto,
                "required" => Authentication::Required,
                _ => return one_of("auto, required"),
            };
            Ok(())
        },
        get: |p| (p.authentication == Authentication::Required).then(|| "required".to_owned()),
    },
    ParameterRow {
        key: "provisioning",
        values: "thick|thin",
        default: "thick",
        meaning: "thick allocates all bytes at creation. thin allocates bytes when they are written, and the pool may run out of space. btrfs pools: thin only.",
        set: |p, v| {
            p.provisioning = Some(match v {
                "thick" => Provisioning::Thick,
                "thin" => Provisioning::Thin,
                _ => return one_of("thick, thin"),
            });
            Ok(())
        },
        get: |p| {
            p.provisioning.map(|provisioning| match provisioning {
                Provisioning::Thick => "thick".to_owned(),
                Provisioning::Thin => "thin".to_owned(),
            })
        },
    },
    ParameterRow {
        key: "placement",
        values: "selected|any",
        default: "selected",
        meaning: "selected: a new empty volume is created on the node that the scheduler selected, or its creation fails. any: on the first node that has space, for classes with volumeBindingMode Immediate. A restored or cloned volume is always created in the pool of its source.",
        set: |p, v| {
            p.placement = match v {
                "selected" => Placement::Selected,
                "any" => Placement::Any,
                _ => return one_of("selected, any"),
            };
            Ok(())
        },
        get: |p| (p.placement == Placement::Any).then(|| "any".to_owned()),
    },
    ParameterRow {
        key: "csi.storage.k8s.io/fstype",
        values: "ext4|xfs",
        default: "ext4",
        meaning: "The filesystem of mounted volumes.",
        set: |p, v| {
            p.fs_type = Some(v.parse().map_err(|e: Error| e.to_string())?);
            Ok(())
        },
        get: |p| p.fs_type.map(|fs| fs.to_string()),
    },
    ParameterRow {
        key: "mkfsOptions",
        values: "options from the filesystem's allow-list",
        default: "",
        meaning: "Additional options for mkfs, separated by spaces.",
        set: |p, v| {
            v.clone_into(&mut p.mkfs_options);
            Ok(())
        },
        get: |p| Some(p.mkfs_options.clone()).filter(|options| !options.is_empty()),
    },
    ParameterRow {
        key: "fsck",
        values: "auto|never",
        default: "auto",
        meaning: "auto checks a filesystem before the mount only if its superblock reports errors. never rejects the mount instead.",
        set: |p, v| {
            p.fsck = match v {
                "auto" => FsckPolicy::Auto,
                "never" => FsckPolicy::Never,
                _ => return one_of("auto, never"),
            };
            Ok(())
        },
        get: |p| (p.fsck == FsckPolicy::Never).then(|| "never".to_owned()),
    },
    ParameterRow {
        key: "onDelete",
        values: "unlink|zero",
        default: "unlink",
        meaning: "unlink frees the space at once. zero (thick only) overwrites the image with zeroes first.",
        set: |p, v| {
            p.on_delete = match v {
                "unlink" => OnDelete::Unlink,
                "zero" => OnDelete::Zero,
                "discard" => return Err("discard is for linear LVM volumes; for a file pool use unlink or zero".into()),
                _ => return one_of("unlink, zero"),
            };
            Ok(())
        },
        get: |p| (p.on_delete == OnDelete::Zero).then(|| "zero".to_owned()),
    },
    ParameterRow {
        key: "encryption",
        values: "none",
        default: "none",
        meaning: "none: the driver does not encrypt data.",
        set: |_, v| match v {
            "none" => Ok(()),
            "luks2" => Err("luks2 is not in this release; use none, or encrypt the disk below the pool".into()),
            _ => one_of("none"),
        },
        get: |_| None,
    },
];

/// Keys that the external-provisioner adds with --extra-create-metadata: stored for messages, never compared.
const METADATA: &[&str] =
    &["csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pv/name"];

fn one_of<T>(values: &str) -> std::result::Result<T, String> {
    Err(format!("use one of: {values}"))
}

/// When a volume allocates its space in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provisioning {
    /// All of it at creation, permanently.
    Thick,
    /// When it is written.
    Thin,
}

/// How nodes may reach a volume: set by the StorageClass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Only on its home node.
    #[default]
    Local,
    /// On every node of the home node's fabric, over NVMe/TCP.
    Network,
}

impl Access {
    fn is_local(&self) -> bool {
        *self == Self::Local
    }
}

/// Whether the connections of other nodes to a network volume are authenticated, with a key of each attachment
/// (DH-HMAC-CHAP).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Authentication {
    /// Where the kernels of both nodes can.
    #[default]
    Auto,
    /// Always: without it there is no connection.
    Required,
}

impl Authentication {
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// On which nodes a blank volume may be created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// The first preferred node only.
    #[default]
    Selected,
    /// Any of the preferred nodes, in order.
    Any,
}

/// Whether a filesystem with recorded errors is checked before it is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsckPolicy {
    /// Checked, and repaired where that is safe.
    #[default]
    Auto,
    /// The mount is rejected.
    Never,
}

/// What happens to the bytes of a deleted volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDelete {
    /// The image is unlinked.
    #[default]
    Unlink,
    /// The image is overwritten with zeroes, then unlinked.
    Zero,
}

/// A class's parameters, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeParameters {
    /// The requested pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// How nodes may reach the volume. Absent in records of local volumes, which older releases read.
    #[serde(default, skip_serializing_if = "Access::is_local")]
    pub access: Access,
    /// Whether connections must be authenticated.
    #[serde(default, skip_serializing_if = "Authentication::is_auto")]
    pub authentication: Authentication,
    /// Thick or thin, if requested; the pool has the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provisioning: Option<Provisioning>,
    /// Where a blank volume may be created.
    #[serde(default)]
    pub placement: Placement,
    /// The filesystem, if the class names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs_type: Option<FsType>,
    /// Additional mkfs options from the class; `fs` checks them against its allow-list.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mkfs_options: String,
    /// The check before the mount.
    #[serde(default)]
    pub fsck: FsckPolicy,
    /// What happens to the bytes at deletion.
    #[serde(default)]
    pub on_delete: OnDelete,
    /// For messages only: the names of claim and volume from the provisioner.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl VolumeParameters {
    /// Parses a class's parameters.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`]: an unknown key, with the nearest known one; an invalid value.
    pub fn parse(raw: &HashMap<String, String>) -> Result<Self> {
        let mut parsed = Self::default();
        let sorted: BTreeMap<_, _> = raw.iter().collect();
        for (key, value) in sorted {
            if METADATA.contains(&key.as_str()) {
                parsed.metadata.insert(key.clone(), value.clone());
                continue;
            }
            let Some(row) = TABLE.iter().find(|row| row.key == key) else { return Err(unknown(key)) };
            (row.set)(&mut parsed, value).map_err(|reason| {
                Error::new(Kind::InvalidArgument, format!("parameter {key}: {value:?} is invalid: {reason}"))
            })?;
        }
        if parsed.authentication == Authentication::Required && parsed.access == Access::Local {
            return Err(Error::new(
                Kind::InvalidArgument,
                "parameter authentication: required is for volumes with access: network only, because local volumes have no connections; set access: network, or remove it",
            ));
        }
        if parsed.on_delete == OnDelete::Zero && parsed.provisioning == Some(Provisioning::Thin) {
            return Err(Error::new(
                Kind::InvalidArgument,
                "parameter onDelete: zero is for thick volumes only; remove it or provisioning: thin",
            ));
        }
        Ok(parsed)
    }

    /// The valid parameters of a class, with defaults for the rest: for queries that an invalid class must not fail.
    #[must_use]
    pub fn readable(raw: &HashMap<String, String>) -> Self {
        let mut parsed = Self::default();
        for row in TABLE {
            if let Some(value) = raw.get(row.key) {
                // CreateVolume reports an invalid value.
                let _ = (row.set)(&mut parsed, value);
            }
        }
        parsed
    }

    /// The parameters as a class has them, without defaults: [`VolumeParameters::parse`] returns the same value.
    #[must_use]
    pub fn to_map(&self) -> HashMap<String, String> {
        let mut raw: HashMap<String, String> = self.metadata.clone().into_iter().collect();
        for row in TABLE {
            if let Some(value) = (row.get)(self) {
                raw.insert(row.key.to_owned(), value);
            }
        }
        raw
    }

    /// Whether a retry with `other` requests the same volume: compares everything but the metadata.
    #[must_use]
    pub fn same_request(&self, other: &Self) -> bool {
        let plain = |p: &Self| Self { metadata: BTreeMap::new(), ..p.clone() };
        plain(self) == plain(other)
    }
}

fn unknown(key: &str) -> Error {
    let mut message = format!("parameter {key:?} is unknown");
    if let Some(nearest) = nearest(key, TABLE.iter().map(|row| row.key)) {
        let _ = write!(message, "; did you mean {nearest:?}?");
    } else {
        let keys: Vec<_> = TABLE.iter().map(|row| row.key).collect();
        let _ = write!(message, "; the known ones are {}", keys.join(", "));
    }
    Error::new(Kind::InvalidArgument, message)
}

/// The known word that is nearest to a mistyped one, if it is near enough.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, nearest) = known.map(|known| (distance(word, known), known)).min()?;
    (distance <= nearest.len().max(word.len()) / 2).then_some(nearest)
}

/// The edit distance (Levenshtein) of the first 64 characters of each, ignoring case.
fn distance(a: &str, b: &str) -> usize {
    let fold = |s: &str| s.chars().take(64).flat_map(char::to_lowercase).collect::<Vec<_>>();
    let (a, b) = (fold(a), fold(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut previous = i;
        let mut left = i + 1;
        for (y, slot) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *slot;
            let here = if x == y { previous } else { 1 + previous.min(above).min(left) };
            previous = above;
            left = here;
            *slot = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<VolumeParameters> {
        VolumeParameters::parse(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn every_default_in_the_table_is_accepted_and_changes_nothing_that_is_compared() {
        for row in TABLE.iter().filter(|row| !row.default.is_empty()) {
            assert!(parse(&[(row.key, row.default)]).is_ok(), "{}", row.key);
        }
    }

    #[test]
    fn what_can_be_read_is_read_around_what_cannot() {
        let raw = [("provisioning", "thin"), ("provisionning", "thick"), ("fsck", "sometimes"), ("pool", "fast")];
        let raw = raw.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let read = VolumeParameters::readable(&raw);
        let expected = parse(&[("provisioning", "thin"), ("pool", "fast")]).unwrap();
        assert_eq!(read, expected);
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let said = |key| parse(&[(key, "x")]).unwrap_err().to_string();
        assert!(said("provisoning").contains("\"provisioning\""), "{}", said("provisoning"));
        assert!(said("fstype").contains("fstype"));
        assert!(said("POOL").contains("\"pool\""));
        assert!(said("somethingElseEntirely").contains("the known ones are pool"));
    }

    #[test]
    fn a_wrong_value_names_the_key_and_the_choices() {
        let error = parse(&[("provisioning", "fat")]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("provisioning") && error.to_string().contains("thick, thin"));
        assert!(parse(&[("encryption", "luks2")]).unwrap_err().to_string().contains("not in this release"));
        assert!(parse(&[("onDelete", "zero"), ("provisioning", "thin")]).is_err());
        let error = parse(&[("authentication", "none"), ("access", "network")]).unwrap_err();
        assert!(error.to_string().contains("auto, required"), "{error}");
        for local in [&[("authentication", "required")][..], &[("authentication", "required"), ("access", "local")]] {
            let error = parse(local).unwrap_err();
            assert!(error.kind() == Kind::InvalidArgument && error.to_string().contains("access: network"), "{error}");
        }
    }

    #[test]
    fn what_a_class_says_can_be_said_again() {
        let set = [
            ("pool", "fast"),
            ("access", "network"),
            ("authentication", "required"),
            ("provisioning", "thin"),
            ("placement", "any"),
            ("csi.storage.k8s.io/fstype", "xfs"),
            ("mkfsOptions", "-i size=512"),
            ("fsck", "never"),
            ("csi.storage.k8s.io/pvc/name", "claim"),
        ];
        let zero = [("onDelete", "zero"), ("provisioning", "thick")];
        for pairs in [&set[..], &zero[..], &[]] {
            let parsed = parse(pairs).unwrap();
            assert_eq!(VolumeParameters::parse(&parsed.to_map()).unwrap(), parsed);
            assert_eq!(parsed.to_map().len(), pairs.len());
        }
    }

    #[test]
    fn the_names_of_claims_do_not_make_a_retry_another_request() {
        let a = parse(&[("csi.storage.k8s.io/pvc/name", "a")]).unwrap();
        let b = parse(&[("csi.storage.k8s.io/pvc/name", "b")]).unwrap();
        assert!(a.same_request(&b));
        assert!(!a.same_request(&parse(&[("provisioning", "thin")]).unwrap()));
    }
}
