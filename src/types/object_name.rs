//! Names of Kubernetes objects.

use std::fmt;
use std::str::FromStr;

use super::{Error, Kind, Result};

/// The name of an object in a namespace, `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    namespace: String,
    name: String,
}

impl ObjectName {
    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name in it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ObjectName {
    type Err = Error;

    /// Namespaces are DNS labels, names DNS subdomains (RFC 1123): no other text reaches a path of the API.
    fn from_str(text: &str) -> Result<Self> {
        let label = |label: &str| {
            let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            label.bytes().all(|byte| inside(byte) || byte == b'-')
                && label.bytes().next().is_some_and(inside)
                && label.bytes().next_back().is_some_and(inside)
        };
        match text.split_once('/') {
            Some((namespace, name))
                if namespace.len() <= 63 && label(namespace) && name.len() <= 253 && name.split('.').all(label) =>
            {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(Error::new(
                Kind::InvalidArgument,
                format!("{text:?} is not a Kubernetes object name; use NAMESPACE/NAME"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_objects_are_of_kubernetes() {
        let name: ObjectName = "kube-system/holdfast.ca-1".parse().unwrap();
        assert_eq!((name.namespace(), name.name()), ("kube-system", "holdfast.ca-1"));
        assert_eq!(name.to_string(), "kube-system/holdfast.ca-1");
        for wrong in ["", "a", "/a", "a/", "a/b/c", "a/..", "a/-b", "a.b/c", "A/b", "a/b?x=1", "a/b%2f"] {
            assert_eq!(wrong.parse::<ObjectName>().unwrap_err().kind(), Kind::InvalidArgument, "{wrong}");
        }
    }
}
