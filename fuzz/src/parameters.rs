//! StorageClass parameters: nothing unknown is accepted, and what is accepted survives its record.

use std::collections::HashMap;

use arbitrary::Unstructured;
use holdfast::fs::MkfsOptions;
use holdfast::types::{FsType, Kind, OnDelete, Provisioning, TABLE, VolumeParameters};

const METADATA: [&str; 3] =
    ["csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pv/name"];
const WORDS: [&str; 17] = [
    "local", "network", "required", "thick", "thin", "selected", "any", "ext4", "xfs", "-i 8192", "auto", "never", "unlink",
    "zero", "discard", "none", "default",
];

/// A map of known and unknown keys with likely and unlikely values.
pub fn run(data: &[u8]) {
    let _ = parsed(&mut Unstructured::new(data));
}

fn parsed(input: &mut Unstructured) -> arbitrary::Result<()> {
    let mut raw = HashMap::new();
    for _ in 0..input.int_in_range(0..=12)? {
        let key = match input.ratio(7, 8)? {
            true => TABLE.iter().map(|row| row.key).chain(METADATA).nth(input.int_in_range(0..=TABLE.len() + 2)?),
            false => None,
        };
        let key = match key {
            Some(key) => key.to_owned(),
            None => input.arbitrary::<String>()?,
        };
        let value =
            if input.ratio(3, 4)? { (*input.choose(&WORDS)?).to_owned() } else { input.arbitrary::<String>()? };
        raw.insert(key, value);
    }
    check(&raw);
    Ok(())
}

fn check(raw: &HashMap<String, String>) {
    let parameters = match VolumeParameters::parse(raw) {
        Ok(parameters) => parameters,
        Err(error) => return assert!(error.kind() == Kind::InvalidArgument && !error.to_string().is_empty()),
    };
    let known = |key: &String| TABLE.iter().any(|row| row.key == key) || METADATA.contains(&key.as_str());
    assert!(raw.keys().all(known), "an unknown key was accepted");
    let promised = parameters.provisioning == Some(Provisioning::Thin) && parameters.on_delete == OnDelete::Zero;
    assert!(!promised, "zero was promised of a thin volume");
    let text = serde_json::to_string(&parameters).expect("it can be written");
    let again: VolumeParameters = serde_json::from_str(&text).expect("it can be read");
    assert!(again == parameters && again.same_request(&parameters));
    for fs in FsType::ALL {
        if let Ok(options) = MkfsOptions::parse(fs, &parameters.mkfs_options) {
            crate::options::mkfs_allowed(fs, options.arguments());
        }
    }
}
