//! Handles and names: what parses prints as itself, fits CSI's limits and cannot leave a directory.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use holdfast::pool::PoolSpec;
use holdfast::types::{FsType, NodeId, ObjectUuid, PoolId, PoolName, SnapshotId, VolumeId};

use crate::text;

/// Reads the text as everything that has a text.
pub fn run(data: &[u8]) {
    let Some(text) = text(data) else { return };
    for exact in [same::<PoolId>(text), same::<ObjectUuid>(text), same::<PoolName>(text), same::<NodeId>(text)]
        .into_iter()
        .flatten()
    {
        assert_eq!(exact, text, "a name is printed as it was said");
        contained(&exact);
    }
    for (handle, prefix) in [(same::<VolumeId>(text), "hf1_"), (same::<SnapshotId>(text), "hfs1_")] {
        let Some(handle) = handle else { continue };
        contained(&handle);
        assert!(handle.starts_with(prefix) && text.starts_with(&handle) && text.len() <= 128);
    }
    if let (Ok(node), Ok(id)) = (NodeId::from_node_name(text), text.parse::<VolumeId>()) {
        home(&id, &node);
    }
    if let Ok(node) = NodeId::from_node_name(text) {
        contained(node.as_str());
        assert!(node.as_str().len() <= 63);
        home(&"hf1_00112233445566aa_0123456789abcdef0123456789abcdef".parse().expect("a handle"), &node);
    }
    drop((same::<PoolSpec>(text), same::<FsType>(text)));
}

fn home(id: &VolumeId, node: &NodeId) {
    let handle = id.born_on(node).to_string();
    assert!(handle.len() <= 128 && handle.ends_with(node.as_str()) && handle.parse::<VolumeId>().is_ok_and(|again| again == *id));
}

fn contained(name: &str) {
    assert!(!name.is_empty() && name != "." && name != ".." && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/'));
}

/// The printed form, which must mean the same.
fn same<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> Option<String> {
    match text.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string();
            assert!(printed.parse::<T>().is_ok_and(|again| again == value), "{printed:?} is not {value:?}");
            Some(printed)
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}
