//! Records of volumes and snapshots: what is read is written back as the same value, to the last unknown field.

use std::fmt::Debug;

use holdfast::home::record::{Record, SCHEMA, SnapshotRecord, VolumeRecord};
use serde_json::{Value, json};

use crate::text;

/// Reads the bytes as either record.
pub fn run(data: &[u8]) {
    round_trip::<VolumeRecord>(data);
    round_trip::<SnapshotRecord>(data);
}

fn round_trip<R: Record + Debug + PartialEq>(data: &[u8]) {
    let Ok(record) = serde_json::from_slice::<R>(data) else { return };
    if record.min_reader() <= SCHEMA && record.min_reader() != record.needed_reader() {
        // It is written with the schema that its words need: no record of ours has another one.
        return;
    }
    let (object, pool) = (record.object(), record.pool());
    let decoded = match R::decode(object, pool, data) {
        Ok(decoded) => decoded,
        Err(error) => return assert!(text(data).is_none(), "what serde reads is a record of itself: {error}"),
    };
    assert_eq!(decoded, record);
    let written = record.encode().expect("a record can be written");
    let again = R::decode(object, pool, &written).expect("what was written can be read");
    assert_eq!(again, record, "the value changed");
    assert_eq!(again.encode().expect("again"), written, "the bytes changed");
    assert_eq!(again.changeable().is_ok(), record.min_reader() <= SCHEMA);
    let before = serde_json::from_slice(data).expect("it is JSON");
    kept(&before, &value_of(&written));
    let mut newer = before;
    with_a_future(&mut newer);
    let text = serde_json::to_vec(&newer).expect("it can be written");
    let written = R::decode(object, pool, &text).expect("of a later release").encode().expect("again");
    kept(&newer, &value_of(&written));
}

fn value_of(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("it is JSON")
}

/// Puts a field into every object that a later release may add one to: not into a choice and its content, nor among names
/// for people.
fn with_a_future(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let leave = |name: &str| ["mode", "source", "from", "attributes", "metadata"].contains(&name);
            fields.iter_mut().filter(|(name, _)| !leave(name)).for_each(|(_, value)| with_a_future(value));
            fields.insert("future".to_owned(), Value::from(4.500_000_000_000_001e300));
        }
        Value::Array(items) => items.iter_mut().for_each(with_a_future),
        _ => {}
    }
}

/// Every field is there at every depth, and what is not a word is unchanged: words of ours may be written in another way
/// than they were read, and fields of ours that say nothing not at all.
fn kept(before: &Value, after: &Value) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (name, value) in before {
                match after.get(name) {
                    None => assert!(value.is_null() || *value == json!({}), "the field {name:?} was dropped"),
                    Some(now) => kept(value, now),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            assert_eq!(before.len(), after.len(), "an item was dropped");
            before.iter().zip(after).for_each(|(before, after)| kept(before, after));
        }
        (Value::String(_), Value::String(_)) => {}
        _ => assert_eq!(before, after, "a value changed"),
    }
}
