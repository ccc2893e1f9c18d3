//! A part of a record that keeps unknown fields (docs/design.md section 6: readers keep fields they do not know and
//! write them back).
//!
//! Not serde's `flatten`: that also passes a tagged enum's own fields to the unknown ones.

use std::fmt;
use std::ops::Deref;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// A JSON object: the fields that this release knows, and those of later releases.
///
/// A new value in `known` leaves the unknown fields unchanged. A name that appears twice in one object is an error, as
/// in serde's own structs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<T> {
    /// The fields that this release knows.
    pub known: T,
    unknown: Map<String, Value>,
}

impl<T> Part<T> {
    /// A part without unknown fields.
    pub fn new(known: T) -> Self {
        Self { known, unknown: Map::new() }
    }
}

impl<T> Deref for Part<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.known
    }
}

impl<T: Serialize> Serialize for Part<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = fields_of(&self.known).map_err(S::Error::custom)?;
        for (name, value) in &self.unknown {
            fields.entry(name).or_insert_with(|| value.clone());
        }
        fields.serialize(serializer)
    }
}

impl<'de, T: Serialize + DeserializeOwned> Deserialize<'de> for Part<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut unknown = deserializer.deserialize_map(Once)?;
        let known = T::deserialize(Value::Object(unknown.clone())).map_err(D::Error::custom)?;
        let ours = fields_of(&known).map_err(D::Error::custom)?;
        unknown.retain(|name, _| !ours.contains_key(name));
        Ok(Self { known, unknown })
    }
}

fn fields_of<T: Serialize>(known: &T) -> serde_json::Result<Map<String, Value>> {
    match serde_json::to_value(known)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(<serde_json::Error as serde::ser::Error>::custom("a part of a record must be a JSON object")),
    }
}

/// Reads an object and requires that all names differ.
struct Once;

impl<'de> Visitor<'de> for Once {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut fields = Map::new();
        while let Some((name, value)) = access.next_entry::<String, Value>()? {
            if fields.contains_key(&name) {
                return Err(A::Error::custom(format_args!("the field {name:?} appears twice")));
            }
            fields.insert(name, value);
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::super::FormatState;
    use super::*;

    #[test]
    fn another_value_keeps_what_is_not_known() {
        let value = serde_json::json!({
            "state": "never", "future": { "deep": [1.5, null] }, "uuid": "of a later release"
        });
        let mut part: Part<FormatState> = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&part).unwrap(), value);
        let uuid = uuid::Uuid::nil();
        part.known = FormatState::Formatted { fs: crate::types::FsType::Xfs, uuid };
        let written = serde_json::to_value(&part).unwrap();
        let expected = serde_json::json!({
            "state": "formatted", "fs": "xfs", "uuid": uuid, "future": { "deep": [1.5, null] }
        });
        assert_eq!(written, expected, "what is known comes first");
    }

    #[test]
    fn a_name_that_is_there_twice_and_what_is_no_object_are_refused() {
        let read = |text| serde_json::from_str::<Part<FormatState>>(text);
        assert!(read(r#"{"state":"never","state":"raw"}"#).unwrap_err().to_string().contains("twice"));
        assert!(read(r#"{"state":"never","x":1,"x":1}"#).is_err());
        assert!(read("[]").is_err() && read("{}").is_err() && read(r#"{"state":"of a later release"}"#).is_err());
    }
}
