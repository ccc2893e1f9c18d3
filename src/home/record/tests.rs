//! Records of every release, whole and damaged.

use super::*;
use proptest::prelude::*;

/// A record as the first release writes it. Never edit: a later release must read it as it is.
const VOLUME_V1: &str = include_str!("../fixtures/volume-v1.json");
const SNAPSHOT_V1: &str = include_str!("../fixtures/snapshot-v1.json");

fn volume() -> VolumeRecord {
    serde_json::from_str(VOLUME_V1).unwrap()
}

#[test]
fn records_of_every_released_schema_are_read_and_written_back_whole() {
    let record = volume();
    let again: Value = serde_json::from_slice(&record.encode().unwrap()).unwrap();
    assert_eq!(again, serde_json::from_str::<Value>(VOLUME_V1).unwrap());
    assert_eq!(record.unknown.get("a_field_of_the_future"), Some(&Value::from("kept")));
    let snapshot: SnapshotRecord = serde_json::from_str(SNAPSHOT_V1).unwrap();
    let again: Value = serde_json::from_slice(&snapshot.encode().unwrap()).unwrap();
    assert_eq!(again, serde_json::from_str::<Value>(SNAPSHOT_V1).unwrap());
}

#[test]
fn a_number_of_the_future_is_the_same_after_a_write() {
    let mut record = volume();
    // Steps of Knuth's generator: every exponent, and more digits than a fast parser gets right.
    let mut bits = 1_u64;
    for i in 0..2000 {
        bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = f64::from_bits(bits);
        if number.is_finite() {
            record.unknown.insert(format!("n{i}"), Value::from(number));
        }
    }
    record.unknown.insert("most".to_owned(), Value::from(u64::MAX));
    let written = record.encode().unwrap();
    assert_eq!(VolumeRecord::decode(record.object(), record.pool, &written).unwrap(), record);
}

/// Puts a field of a later release into every one of our objects in a record, and counts them.
fn with_a_future(value: &mut Value) -> u32 {
    match value {
        Value::Object(fields) => {
            // An enum with its content, and names for display, are not objects with fields.
            let leave = |name: &str| ["mode", "source", "from", "attributes", "metadata"].contains(&name);
            let parts = fields.iter_mut().filter(|(name, _)| !leave(name));
            let inner: u32 = parts.map(|(_, value)| with_a_future(value)).sum();
            fields.insert("future".to_owned(), serde_json::json!({ "kept": [1.5, null, { "to": "the end" }] }));
            inner + 1
        }
        Value::Array(items) => items.iter_mut().map(with_a_future).sum(),
        _ => 0,
    }
}

fn written_back<R: Record>(value: &Value) -> Value {
    let record: R = serde_json::from_value(value.clone()).unwrap();
    let read = R::decode(record.object(), record.pool(), &serde_json::to_vec(value).unwrap()).unwrap();
    serde_json::from_slice(&read.encode().unwrap()).unwrap()
}

#[test]
fn what_is_not_known_at_any_depth_of_a_record_is_written_back() {
    let copy = serde_json::json!({ "from": { "volume": ObjectUuid::of_volume("v") }, "done": 1, "total": 2 });
    let mut value: Value = serde_json::from_str(VOLUME_V1).unwrap();
    value["copy"] = copy.clone();
    assert_eq!(with_a_future(&mut value), 8, "record, request, range, capability, parameters, format, grant, copy");
    assert_eq!(written_back::<VolumeRecord>(&value), value);
    let mut value: Value = serde_json::from_str(SNAPSHOT_V1).unwrap();
    value["copy"] = copy;
    assert_eq!(with_a_future(&mut value), 3, "record, format, copy");
    assert_eq!(written_back::<SnapshotRecord>(&value), value);
}

#[test]
fn what_is_not_known_outlives_a_change_of_what_is() {
    let mut value: Value = serde_json::from_str(VOLUME_V1).unwrap();
    with_a_future(&mut value);
    let mut record: VolumeRecord = serde_json::from_value(value.clone()).unwrap();
    record.format.known = FormatState::Raw;
    record.size = Bytes::new(2 << 30);
    let written: Value = serde_json::from_slice(&record.encode().unwrap()).unwrap();
    let future = value["future"].clone();
    value["format"] = serde_json::json!({ "state": "raw", "future": future });
    value["size"] = Value::from(2_u64 << 30);
    assert_eq!(written, value);
}

#[test]
fn a_choice_that_is_not_known_is_refused_and_never_dropped() {
    for choice in ["/source", "/request/capabilities/0/mode", "/attachments/0/mode"] {
        let mut value: Value = serde_json::from_str(VOLUME_V1).unwrap();
        value.pointer_mut(choice).unwrap()["future"] = Value::from("lost");
        let record = volume();
        let kind = |value: &Value| {
            let text = serde_json::to_vec(value).unwrap();
            VolumeRecord::decode(record.object(), record.pool, &text).unwrap_err().kind()
        };
        // A word beside a known one is damage, or of a later release; the order of the words decides which is seen.
        assert!(matches!(kind(&value), Kind::Corrupt | Kind::Precondition), "{choice}");
        value["min_reader"] = Value::from(SCHEMA + 1);
        assert_eq!(kind(&value), Kind::Precondition, "{choice}");
    }
}

#[test]
fn what_is_not_known_does_not_make_a_retry_another_request() {
    let mut value: Value = serde_json::from_str(VOLUME_V1).unwrap();
    with_a_future(&mut value);
    let record: VolumeRecord = serde_json::from_value(value).unwrap();
    let request = CreateVolume {
        name: record.co_name.clone(),
        range: record.request.range.known,
        capabilities: record.request.capabilities.iter().map(|part| part.known).collect(),
        parameters: record.request.parameters.known.clone(),
        source: record.source,
    };
    assert_eq!(record.differs_from(&request), None);
}

#[test]
fn bytes_that_are_no_text_are_corrupt_wherever_they_are() {
    let text = VOLUME_V1.replace("data-db-0", "d\u{1}ta");
    let bytes: Vec<u8> = text.bytes().map(|byte| if byte == 1 { 0xff } else { byte }).collect();
    let record = volume();
    assert_eq!(VolumeRecord::decode(record.object(), record.pool, &bytes).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn a_record_of_another_volume_or_pool_is_corrupt() {
    let record = volume();
    let other = Object::Volume(ObjectUuid::of_volume("other"));
    let text = record.encode().unwrap();
    assert_eq!(VolumeRecord::decode(other, record.pool, &text).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(VolumeRecord::decode(record.object(), PoolId::random(), &text).unwrap_err().kind(), Kind::Corrupt);
    for cut in [0, 1, text.len() / 2, text.len() - 3] {
        assert_eq!(VolumeRecord::decode(record.object(), record.pool, &text[..cut]).unwrap_err().kind(), Kind::Corrupt);
    }
}

#[test]
fn a_newer_record_is_not_changed() {
    let mut record = volume();
    assert!(record.changeable().is_ok());
    record.min_reader = SCHEMA + 1;
    assert_eq!(record.changeable().unwrap_err().kind(), Kind::Precondition);
}

#[test]
fn min_reader_is_what_the_words_need_unless_a_later_release_said_more() {
    let written = |record: &VolumeRecord| -> Value { serde_json::from_slice(&record.encode().unwrap()).unwrap() };
    let mut record = volume();
    assert_eq!(record.needed_reader(), 1);
    for (said, kept) in [(0, 1), (1, 1), (SCHEMA + 1, SCHEMA + 1)] {
        record.min_reader = said;
        assert_eq!(written(&record)["min_reader"], kept, "{said}");
    }
    let mut record = volume();
    record.request.known.parameters.known.authentication = Authentication::Required;
    let text = record.encode().unwrap();
    assert_eq!(written(&record)["min_reader"], 2);
    assert_eq!(VolumeRecord::decode(record.object(), record.pool, &text).unwrap().request, record.request);
    // What a later release requires of a connection is never left out: such a volume is not served.
    let later = String::from_utf8(text).unwrap().replace("\"required\"", "\"encrypted\"");
    let error = VolumeRecord::decode(record.object(), record.pool, later.as_bytes()).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition, "{error}");
}

#[test]
fn a_copy_asks_for_what_the_claim_asked_for_also_of_an_older_release_s_record() {
    let mut record = volume();
    assert_eq!(record.least_request(), Bytes::new(1 << 30));
    // "10G", made by 0.1.0.
    record.request.known.range.known.required = Some(Bytes::new(10_000_000_000));
    record.size = Bytes::mib(9537);
    assert_eq!(record.least_request(), Bytes::new(10_000_000_000));
    // Grown by 0.1.0; the request is not known any more: "20G" or a little less.
    record.size = Bytes::mib(19074);
    assert!(record.least_request() <= Bytes::new(20_000_000_000) && record.least_request() > Bytes::mib(19073));
    record.size_request = Some(Part::new(SizeRequest { required: Bytes::new(20_000_000_000), size: record.size }));
    assert_eq!(record.least_request(), Bytes::new(20_000_000_000));
    // Grown once more by 0.1.0, which keeps the field as it was.
    record.size = Bytes::mib(20000);
    assert!(record.least_request() > Bytes::mib(19999) && record.least_request() < record.size);
    let snapshot: SnapshotRecord = serde_json::from_str(SNAPSHOT_V1).unwrap();
    assert!(snapshot.least_request() < snapshot.size);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_corrupt_and_never_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        let record = volume();
        prop_assert!(VolumeRecord::decode(record.object(), record.pool, &text).is_err());
    }
}
