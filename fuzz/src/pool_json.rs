//! pool.json: what is read is written back as the same value.

use std::path::Path;

use holdfast::pool::PoolFile;
use serde_json::Value;

/// Reads the bytes as pool.json.
pub fn run(data: &[u8]) {
    let path = Path::new("/pool/pool.json");
    let file = match PoolFile::parse(path, data) {
        Ok(file) => file,
        Err(error) => return assert!(error.to_string().contains("/pool/pool.json"), "{error}"),
    };
    let written = file.encode(path).expect("it can be written");
    let again = PoolFile::parse(path, &written).expect("what was written can be read");
    assert_eq!(again, file, "the value changed");
    let value = |text| serde_json::from_slice::<Value>(text).expect("it is JSON");
    assert_eq!(value(data), value(&written), "a field changed");
}
