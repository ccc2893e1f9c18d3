//! The PersistentVolumeClaim of a volume, beside its handle in messages and tables.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::{Error, Kind, Result};

/// The PersistentVolumeClaim that a volume was created for, for people. It identifies nothing: an administrator can
/// bind the PersistentVolume to another claim later.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimName {
    namespace: String,
    name: String,
}

impl ClaimName {
    /// The claim in the metadata that the external-provisioner adds with `--extra-create-metadata`; none without it.
    #[must_use]
    pub fn of_metadata(metadata: &BTreeMap<String, String>) -> Option<Self> {
        let of = |key: &str| metadata.get(&format!("csi.storage.k8s.io/pvc/{key}"));
        Self::new(of("namespace")?, of("name")?)
    }

    fn new(namespace: &str, name: &str) -> Option<Self> {
        let is_name = |text: &str, longest: usize| {
            let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
            !text.is_empty() && text.len() <= longest && text.bytes().all(known)
        };
        let valid = is_name(namespace, 63) && is_name(name, 253);
        valid.then(|| Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// `namespace/name`, as kubectl prints it.
impl fmt::Display for ClaimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ClaimName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let claim = text.split_once('/').and_then(|(namespace, name)| Self::new(namespace, name));
        claim.ok_or_else(|| {
            Error::new(Kind::InvalidArgument, format!("{text:?} is not a PersistentVolumeClaim: use namespace/name"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_named_only_if_it_can_be_one() {
        let key = |key: &str| format!("csi.storage.k8s.io/pvc/{key}");
        let of = |namespace: &str, name: &str| {
            ClaimName::of_metadata(&BTreeMap::from([
                (key("namespace"), namespace.to_owned()),
                (key("name"), name.to_owned()),
            ]))
        };
        let claim = of("db", "data-db-0").unwrap();
        assert_eq!(claim.to_string(), "db/data-db-0");
        assert_eq!(claim.to_string().parse::<ClaimName>().unwrap(), claim);
        for (namespace, name) in [("", "a"), ("db", ""), ("db", "a b"), ("\u{1b}", "a"), ("db", &"a".repeat(254))] {
            assert_eq!(of(namespace, name), None);
        }
        assert_eq!(ClaimName::of_metadata(&BTreeMap::new()), None);
        assert!("db".parse::<ClaimName>().is_err() && "db/a/b".parse::<ClaimName>().is_err());
    }
}
